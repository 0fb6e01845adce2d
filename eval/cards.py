"""Model cards: generated from the catalog entry and its results, never edited by hand.

`python -m eval.cards` writes `model_cards/NAME.md` for every entry; a test holds that they are up to date. A card says nothing that
neither the entry nor a result file says: an unknown licence stays unknown.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zoo
from eval.reported import reported_of
from eval.results import Result, load_result, read_items
from zoo.registry import Entry

__all__ = ["card", "card_path", "main", "results_of", "write_cards"]

_ROOT = Path(__file__).parents[1]
_HUB_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "GPL-3.0-or-later": "gpl-3.0",
    "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
    "BSD-3-Clause": "bsd-3-clause",
}
_HUB_TASKS = {"image": "image-feature-extraction", "video": "video-to-video", "audio": "audio-to-audio"}


def card_path(name: str) -> Path:
    """Where the card of an entry lies in the repository."""
    return _ROOT / "model_cards" / f"{name}.md"


def results_of(name: str) -> list[Result]:
    """Give the stored results of a tokenizer."""
    folder = Path(__file__).parent / "results" / name
    return [load_result(path) for path in sorted(folder.glob("*.json"))]


def card(entry: Entry, results: Sequence[Result] | None = None) -> str:
    """Write the card of an entry as Markdown with the Hub's front matter.

    Args:
        entry: from `zoo.info(name)` or `tokenizer.info`.
        results: None reads those stored in `eval/results`.
    """
    results = results_of(entry.name) if results is None else list(results)
    parts = [
        _front_matter(entry, results),
        f"# {entry.name}\n\n{entry.summary}",
        _glance(entry),
        _use(entry),
        _ladder(entry),
        *(_results(result) for result in results),
        _reported(entry),
        _made(entry, results),
        _training_sources(entry),
        _worst(entry.name, results),
        _not_for(entry),
        _cite(entry),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _front_matter(entry: Entry, results: Sequence[Result]) -> str:
    from huggingface_hub import ModelCardData

    licence = entry.license_weights
    known = _HUB_LICENCES.get(licence or "")
    values: dict[str, Any] = {"license": known or ("other" if licence else "unknown")}
    if licence and not known:
        values["license_name"] = licence.removeprefix("LicenseRef-").lower()
    arxiv = [word for word in (entry.paper or "").replace(",", " ").split() if word[:4].isdigit() and "." in word]
    tags = ["tokenizer", entry.modality, entry.family, *(f"arxiv:{number}" for number in arxiv), *entry.tags]
    data = ModelCardData(
        library_name="tokenizer-zoo",
        tags=tags,
        pipeline_tag=_HUB_TASKS[entry.modality],
        model_name=entry.name,
        eval_results=_model_index(entry, results),
        **values,
    )
    return f"---\n{data.to_yaml()}\n---"


def _model_index(entry: Entry, results: Sequence[Result]) -> list[Any] | None:
    """The measured scores at the full rate, in the form the Hub shows beside a model."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_HUB_TASKS[entry.modality],
            dataset_type=result.dataset.name,
            dataset_name=result.dataset.name,
            dataset_split=result.dataset.split,
            metric_type=name,
            metric_name=f"{name} ({result.protocol.id})",
            metric_value=float(f"{score.mean:.4g}"),
        )
        for result in results
        for name, score in result.points[-1].scores.items()
        if score.mean is not None
    ] or None


def _row(name: str, value: Any) -> str:
    return "" if value is None or value == "" else f"| {name} | {value} |\n"


def _size(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))


def _licence(value: str | None) -> str:
    return value or "unknown"


def _glance(entry: Entry) -> str:
    kind = "codes" if entry.discrete else "latents"
    order = "ordered: any prefix decodes" if entry.ordered else "residual: any depth decodes" if entry.residual else "fixed"
    vocabulary = f"{entry.codebook_size:,}" if entry.codebook_size else None
    return (
        "## At a glance\n\n| | |\n| --- | --- |\n"
        + _row("Modality", entry.modality)
        + _row("Tokens", f"{entry.layout}, {kind}, {order}")
        + _row("Positions at the native size", entry.tokens)
        + _row("Codes at a position", entry.depth if entry.discrete else None)
        + _row("Codebook", vocabulary)
        + _row("Channels", entry.channels)
        + _row("Native size", _size(entry.native_size) + " px" if entry.native_size else None)
        + _row("Downsampling (t, h, w)", _size(entry.downsample) if entry.downsample else None)
        + _row("Bits per pixel at the full rate", f"{entry.bits_per_pixel:.4g}" if entry.bits_per_pixel else None)
        + _row("Bits per second at the full rate", f"{entry.bits_per_second:.4g}" if entry.bits_per_second else None)
        + _row("Parameters", f"{entry.parameters:,}" if entry.parameters else None)
        + _row("Causal / streaming", f"{'yes' if entry.causal else 'no'} / {'yes' if entry.streaming else 'no'}")
        + _row("Later frames it may look at", entry.lookahead_frames)
        + _row("Licence of the code the weights were made with", _licence(entry.license_code))
        + _row("Licence of the weights", _licence(entry.license_weights))
        + _row("Original release", entry.source)
    ) + (f"\nNote: {entry.notice}\n" if entry.notice else "")


def _use(entry: Entry) -> str:
    if entry.weights is None:
        return ""
    decode = "tok.decode(tokens)"
    keep = f"tokens.keep({max(1, (entry.tokens or 2) // 4)})" if entry.ordered else None
    lines = [
        "import zoo",
        f'tok = zoo.load("{entry.name}")',
        'tokens = tok.encode(tok.preprocess("picture.jpg"))',
        f"pictures = tok.postprocess({decode if keep is None else f'tok.decode({keep})'})",
    ]
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


def _ladder(entry: Entry) -> str:
    if not (entry.ordered and entry.tokens and entry.native_size and entry.vocabulary):
        return ""
    bits = sum(math.log2(size) for size in entry.vocabulary)
    pixels = math.prod(entry.native_size)
    rows = [2**i for i in range(entry.tokens.bit_length()) if 2**i <= entry.tokens]
    lines = [f"| {k} | {k * bits:.0f} | {k * bits / pixels:.4g} |" for k in rows]
    return "## Rate ladder\n\n| tokens | bits | bits per pixel |\n| ---: | ---: | ---: |\n" + "\n".join(lines)


def _results(result: Result) -> str:
    names = list(dict.fromkeys(name for point in result.points for name in point.scores))
    data = result.dataset
    split = f" ({data.split})" if data.split else ""
    head = f"## Results: {data.name}{split}, {data.count} items, protocol {result.protocol.id}"
    unit = "bits per second" if result.protocol.modality == "audio" else "bits per pixel"
    lines = [f"| rate | {unit} | " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) + 1)]
    for point in result.points:
        rate = ", ".join(f"{key} {value}" for key, value in point.rate.items()) or "full"
        cells = [_score(point.scores[name]) if name in point.scores else "" for name in names]
        amount = point.bits_per_second if result.protocol.modality == "audio" else point.bits_per_pixel
        bits = "" if amount is None else f"{amount:.4g}"
        lines.append(f"| {rate} | {bits} | " + " | ".join(cells) + " |")
    return f"{head}\n\n" + "\n".join(lines)


def _reported(entry: Entry) -> str:
    figures = reported_of(entry.name)
    if not figures:
        return ""
    lines = [
        "## Published by others",
        "",
        "Under protocols of their own, and never ranked with measured figures.",
        "",
        "| score | rate | value | data | source |",
        "| --- | --- | ---: | --- | --- |",
    ]
    lines += [f"| {f.score} | {f.rate} | {f.value:g} | {f.data} | {f.source} |" for f in figures]
    return "\n".join(lines)


def _score(score: Any) -> str:
    if score.mean is None:
        return f"failed ({score.failed})"
    text = f"{score.mean:.4g}"
    if score.ci95 is not None:
        text += f" [{score.ci95[0]:.4g}, {score.ci95[1]:.4g}]"
    return text + (f" ({score.failed} failed)" if score.failed else "")


def _made(entry: Entry, results: Sequence[Result]) -> str:
    lines = []
    if entry.recipe:
        lines.append(f"Recipe: `zoo train recipes/configs/{entry.recipe}.yaml`.")
    if entry.training:
        lines.append(entry.training)
    if entry.trained_on:
        lines.append(f"Trained on: {entry.trained_on}.")
    if entry.source:
        lines.append(f"Converted on load from the original release ({entry.source}); the parity fixtures hold the numbers equal.")
    measured = [result for result in results if result.weights_sha256]
    if measured:
        lines.append(f"Results are of the weights with tensors of SHA-256 {measured[0].weights_sha256}.")
    return "## How it was made\n\n" + "\n".join(lines) if lines else ""


def _training_sources(entry: Entry) -> str:
    """The packages of the pack that the weights were trained on, with what each gave and its licences."""
    if entry.training_pack is None:
        return ""
    packs = {"images128": _images128_sources, "speech16k": _speech16k_sources, "video128": _video128_sources}
    if entry.training_pack not in packs:
        raise ValueError(
            f"card: training_pack={entry.training_pack!r} of {entry.name} is no pack whose sources are known here. "
            f"Allowed: {', '.join(packs)}. Name one of them, or leave it out and say in trained_on what the data were."
        )
    return "\n".join(packs[entry.training_pack](entry))


def _images128_sources(entry: Entry) -> list[str]:
    from recipes.data.build import sources
    from recipes.data.build.manifest import RELEASE_WITHOUT

    lines = [
        "## Pictures it was trained on, and their licences",
        "",
        "From public packages, by `zoo data build images128 --release`, which leaves out pictures of undocumented origin and one "
        "under a licence that does not combine with the others. Counts are source pictures; per-picture licences as the packages' "
        "copyright files give them.",
        "",
        "| package | version | sources (train) | crops (train) | licences |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for record in sources(without=RELEASE_WITHOUT):
        licences = ", ".join(f"{name}: {count}" for name, count in record.licenses.items())
        package = record.package
        lines.append(f"| {package.name} | {package.version} | {record.sources['train']} | {record.crops['train']} | {licences} |")
    return [
        *lines,
        "",
        f"The weights carry {_licence(entry.license_weights)}, which public-domain, CC0, CC BY, CC BY-SA (through 4.0) and GPL "
        "sources allow. "
        "The single credits stand in the README that the build writes beside the pictures.",
    ]


def _speech16k_sources(entry: Entry) -> list[str]:
    from recipes.data.build import speech_sources
    from recipes.data.build.speech_manifest import RELEASE_WITHOUT

    lines = [
        "## Speech it was trained on, and its licences",
        "",
        "From public packages, by `zoo data build speech16k --release`, which leaves out two packages under a licence that does "
        "not combine with the others. A speaker of asterisk or festvox is a named person, one of tuxpaint no more than a language.",
        "",
        "| package | version | licence | minutes (train) | speakers |",
        "| --- | --- | --- | ---: | --- |",
    ]
    for record in speech_sources(without=RELEASE_WITHOUT):
        package = record.package
        licence = f"{package.license} ({package.note})" if package.note else package.license
        cells = (package.name, package.version, licence, f"{record.minutes['train']:.2f}", ", ".join(record.speakers))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"Licence of the weights: {_licence(entry.license_weights)}."]


def _video128_sources(entry: Entry) -> list[str]:
    """Clips are trained on together with still pictures, so both are listed."""
    from recipes.data.build import video_manifest

    selected = video_manifest.load().select(without=video_manifest.RELEASE_WITHOUT)
    lines = [
        "## Clips it was trained on, and their licences",
        "",
        "From public packages, by `zoo data build video128 --release`, which leaves out videos of undocumented origin and two "
        "packages under a licence that does not combine with the others.",
        "",
        "| package | version | videos (train) | clips (train) | licence |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for package in selected.packages:
        own = [clip for clip in selected.splits["train"] if clip.package == package.name]
        videos = {clip.source_id for clip in own}
        told = [source.license for source in selected.sources if source.source_id in videos and source.license is not None]
        if own:
            licence = ", ".join(dict.fromkeys(told)) or package.license
            lines.append(f"| {package.name} | {package.version} | {len(videos)} | {len(own)} | {licence} |")
    return [*lines, "", *_images128_sources(entry)]


def _worst(name: str, results: Sequence[Result]) -> str:
    """The five items of the largest set with the lowest PSNR, or for sound the largest mel distance, at the full rate."""
    for result in sorted(results, key=lambda result: -result.dataset.count):
        path = Path(__file__).parent / "results" / name / f"{result.dataset.name}.{result.protocol.id}.items.csv"
        if not path.exists():
            continue
        sound = result.protocol.modality == "audio"
        score, what = {
            "audio": ("mel_distance", "largest mel distance"),
            "video": ("frame_psnr_db", "lowest PSNR of frames"),
        }.get(result.protocol.modality, ("psnr_db", "lowest PSNR"))
        rows = [row for row in read_items(path) if score in row.scores]
        full = [row for row in rows if row.rate == rows[-1].rate and not math.isnan(row.scores[score])]
        worst = sorted(full, key=lambda row: row.scores[score], reverse=sound)[:5]
        lines = [f"- `{row.key}`: " + ", ".join(f"{key} {value:.4g}" for key, value in row.scores.items()) for row in worst]
        head = f"The five items of {result.dataset.name} with the {what} at the full rate:"
        return f"## Where it fails\n\n{head}\n\n" + "\n".join(lines)
    return ""


def _not_for(entry: Entry) -> str:
    lines = []
    if entry.stochastic_decode:
        lines.append("The decoder is generative: details are made up. Do not use it where a picture must be evidence.")
    if entry.name.endswith("_nano"):
        lines.append("A nano model, trained in minutes to hours on one CPU core: for tests, teaching and recipes, not for quality.")
    if entry.license_weights and entry.license_weights.startswith("LicenseRef-"):
        lines.append(f"Uses that {entry.license_weights} does not allow.")
    return "## Do not use for\n\n" + "\n".join(f"- {line}" for line in lines) if lines else ""


def _cite(entry: Entry) -> str:
    return f"## Cite\n\n{entry.paper}" if entry.paper else ""


def write_cards(folder: Path | None = None) -> list[Path]:
    """Write the card of every entry; gives the files that changed."""
    changed = []
    for entry in zoo.find():
        path = (folder / f"{entry.name}.md") if folder else card_path(entry.name)
        text = card(entry)
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            changed.append(path)
    return changed


def main(args: Sequence[str] | None = None) -> int:
    """Write all cards and list those that changed."""
    parser = argparse.ArgumentParser(prog="python -m eval.cards", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder; model_cards of the repository if left out")
    import sys

    for path in write_cards(parser.parse_args(args).out):
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
