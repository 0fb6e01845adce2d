"""What rounding costs: TokenBridge on an autoencoder, bins by bins, against the autoencoder with its latents untouched.

    python -m eval.tokenbridge_bins kl_vae_nano --data images128

encodes the validation split once, rounds each channel of the latents to 4, 8, ... 256 values, decodes, and scores each of them and
the unrounded latents alike. The range of every channel is measured on pictures of the training split. Beside the result file it
writes a page (`bins.md`) and a drawing (`bins.svg`), both made of the result file alone: `--redraw` makes them again.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.intervals import PairedDifference, paired_difference
from eval.protocols import default_protocol
from eval.results import Dataset, ItemRow, Point, Result, environment, item_scores, load_result, write_atomic
from eval.runner import Runner, batches, evaluation_mode, tensors_sha256
from recipes.data.corpus import Selection, content_hash
from zoo.image.tokenbridge import TokenBridge, frequency_order
from zoo.quantizers.dimension_wise import DimensionWise
from zoo.tokenizer import Tokenizer

__all__ = ["BINS", "Gap", "drawing", "gaps", "main", "measure", "page"]

BINS = (4, 8, 16, 32, 64, 128, 256)
_SCORERS = ("psnr_db", "ssim", "pdist_mbv2")
_PAR_DB = 0.1


# -- the measurement ---------------------------------------------------------------------------------------------------------------


def measure(
    vae: Tokenizer,
    corpus: Any,
    calibration: Any,
    *,
    bins: Sequence[int] = BINS,
    limit: float = 5.0,
    scorers: Sequence[str] = _SCORERS,
    batch_size: int = 32,
    dataset_name: str = "pictures",
    split: str | None = None,
) -> Result:
    """Score the rounded and the unrounded latents of an autoencoder.

    Args:
        vae: a tokenizer of pictures that gives a grid of latents.
        corpus: pictures to score.
        calibration: other pictures, on which mean and deviation of each channel are measured.
        bins: values of a channel, rising.
        limit: latents are rounded inside the mean +- so many deviations; the published release has 5.
        scorers: names of per-item scorers, `psnr_db` among them.
        batch_size: pictures at once.
        dataset_name: for people and file names.
        split: of the data set.

    Returns:
        a result of the tokenizer `NAME_tokenbridge` with a point for each number of bins and, last, one for the unrounded latents
        (rate `{}`); the last number of bins also has the order of the channels (`codes["frequency_order"]`).

    Raises:
        ValueError: bins that do not rise, `psnr_db` is missing, or the pictures of `calibration` are those of `corpus`.
        TypeError: `vae` gives no grid of latents.
    """
    from eval.measure import PointMeter  # torchmetrics takes seconds to import

    if not bins or list(bins) != sorted(set(bins)):
        raise ValueError(f"tokenbridge_bins: bins={list(bins)}. Needed: rising numbers.")
    if "psnr_db" not in scorers:
        raise ValueError(f"tokenbridge_bins: scorers={list(scorers)}. Needed: psnr_db among them, for the gap.")
    sha, calibration_sha = content_hash(corpus), content_hash(calibration)
    if sha == calibration_sha:
        raise ValueError("tokenbridge_bins: calibration holds the pictures that are scored. Give pictures of the training split.")
    protocol = default_protocol(vae.info.name, vae.info.native_size)
    with evaluation_mode(vae):
        measured_on = _latents(vae, calibration, protocol, batch_size)
        bridge = TokenBridge.on(vae, bins=bins[0], limit=limit, latents=measured_on)
        quantizers = {count: _quantizer(bridge, count) for count in bins}
        specs = {count: replace(bridge.spec, vocabulary=quantizers[count].codebook_sizes) for count in bins}
        networks: dict[tuple[str, int], Any] = {}
        shared: dict[str, Any] = {"networks": networks, "device": vae.device}
        names = [*scorers, "codebook_use"]
        meters = {count: PointMeter({"bins": count}, names, spec=specs[count], **shared) for count in bins}
        unrounded = PointMeter({}, scorers, spec=vae.spec, **shared)
        protocol = protocol.varied(
            dtype=str(vae.dtype).removeprefix("torch."),
            decode={
                "limit": float(limit),
                "reach": float(bridge.config.reach),
                "calibration": f"mean and deviation of each channel on {len(calibration)} pictures, SHA-256 {calibration_sha}",
            },
            scorers=meters[bins[0]].definitions,
        )
        runner = Runner(vae, protocol)
        with torch.inference_mode():
            for batch in batches(corpus, protocol, range(len(corpus)), batch_size, 0):
                latents, failed = runner.encode(batch)
                reference = batch.pictures.to(vae.device)
                common: dict[str, Any] = {"index": batch.index, "failed": failed.to(vae.device)}
                unrounded.update(reference, _pictures(vae.decode(latents)), tokens=latents, **common)
                for count in bins:
                    codes = quantizers[count].encode(latents.data.float())
                    rounded = replace(latents, data=quantizers[count].decode(codes).to(latents.data.dtype))
                    tokens = replace(latents, data=codes, spec=specs[count])
                    meters[count].update(reference, _pictures(vae.decode(rounded)), tokens=tokens, **common)
    points = [meter.point(seed=protocol.seed) for meter in (*meters.values(), unrounded)]
    order, share = frequency_order(measured_on)
    told = {**points[-2].codes, "frequency_order": list(order), "low_frequency_share": [round(value, 6) for value in share]}
    points[-2] = replace(points[-2], codes=told)
    return Result(
        tokenizer=f"{vae.info.name}_tokenbridge",
        weights_sha256=tensors_sha256(vae),
        dataset=Dataset(name=dataset_name, split=split, count=len(corpus), total=len(corpus), sha256=sha),
        protocol=protocol,
        points=tuple(points),
        environment=environment(),
        items=tuple(_rows([*meters.values(), unrounded], corpus)),
    )


def _latents(vae: Tokenizer, corpus: Any, protocol: Any, batch_size: int) -> Tensor:
    runner, parts = Runner(vae, protocol), []
    for batch in batches(corpus, protocol, range(len(corpus)), batch_size, 0):
        tokens, failed = runner.encode(batch)
        parts.append(tokens.data[~failed.to(tokens.data.device)].float())
    return torch.cat(parts)


def _quantizer(bridge: TokenBridge, count: int) -> DimensionWise:
    """That of the bridge, with another number of values."""
    config = bridge.config
    made = DimensionWise(
        dim=config.latent_channels,
        levels=(count,) * config.latent_channels,
        centre=config.centre,
        spread=config.spread,
        reach=config.reach,
    )
    return made.to(bridge.device).eval()


def _pictures(y: Tensor) -> Tensor:
    from zoo.media import to_uint8

    return to_uint8(y.float())


def _rows(meters: Sequence[Any], corpus: Any) -> list[ItemRow]:
    from eval.rates import rate_text

    rows = []
    for meter in meters:
        numbers, columns = meter.per_item()
        for i, number in enumerate(numbers):
            scores = {name: column[i] for name, column in columns.items()}
            rows.append(ItemRow(item=number, key=corpus.key(number), rate=rate_text(meter.rate), scores=scores))
    return rows


# -- what it says ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What one number of bins costs.

    Attributes:
        bins: values of a channel.
        point: its scores.
        psnr: PSNR of the unrounded latents less that of the rounded ones, picture by picture.
    """

    bins: int
    point: Point
    psnr: PairedDifference

    @property
    def par(self) -> bool:
        """With 95 % confidence the mean PSNR is less than 0.1 dB lower."""
        return self.psnr.ci95 is not None and self.psnr.ci95[1] < _PAR_DB


def gaps(result: Result) -> list[Gap]:
    """Give the cost of each number of bins, from the scores of the items.

    Raises:
        ValueError: not a result of `measure`.
    """
    rounded = [point for point in result.points if "bins" in point.rate]
    if not rounded or not result.items:
        raise ValueError(f"tokenbridge_bins: the result of {result.tokenizer} has no bins, or no items. Measure again.")
    whole = item_scores(result.items, "psnr_db", rate="full")
    out = []
    for point in rounded:
        count = int(point.rate["bins"])
        own = item_scores(result.items, "psnr_db", rate={"bins": count})
        out.append(Gap(bins=count, point=point, psnr=paired_difference(whole, own, score="psnr_db", seed=result.protocol.seed)))
    return out


def page(result: Result) -> str:
    """Write the table and the answer as Markdown; it says nothing that the result file does not hold."""
    found, unrounded = gaps(result), result.points[-1]
    vae = result.tokenizer.removesuffix("_tokenbridge")
    channels = len(found[-1].point.codes["frequency_order"])
    height, width = result.protocol.size
    par = [gap for gap in found if gap.par]
    lines = [
        f"# What bins cost: TokenBridge on {vae}",
        "",
        f"Each of the {channels} channels of a latent of `{vae}` is rounded to one of so many values after training, and decoded. "
        "The gap is the PSNR of the unrounded latents less that of the rounded ones, in dB, the mean over "
        f"{result.dataset.count:,} pictures with its 95 % interval.",
        "",
        _answer(par, found),
        "",
        "| bins | bits per token | per picture | per pixel | PSNR, dB | gap, dB | SSIM | feature distance | values used |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for gap in found:
        point, bits = gap.point, channels * math.log2(gap.bins)
        low, high = gap.psnr.ci95 or (math.nan, math.nan)
        use = point.scores["codebook_use"].mean
        lines.append(
            f"| {gap.bins} | {bits:.4g} | {bits * (point.tokens_per_item or 0):,.0f} | {point.bits_per_pixel:.4g} | "
            f"{_score(point, 'psnr_db', 3)} | {gap.psnr.mean:.4f} ({low:.4f} .. {high:.4f}) | {_score(point, 'ssim', 4)} | "
            f"{_score(point, 'pdist_mbv2', 4)} | {'-' if use is None else f'{use:.1%}'} |"
        )
    float_bits = (unrounded.bits_per_pixel or 0) * height * width
    lines += [
        f"| not rounded ({result.protocol.dtype}) | {float_bits / (unrounded.tokens_per_item or 1):.4g} | {float_bits:,.0f} | "
        f"{unrounded.bits_per_pixel:.4g} | {_score(unrounded, 'psnr_db', 3)} | 0 | {_score(unrounded, 'ssim', 4)} | "
        f"{_score(unrounded, 'pdist_mbv2', 4)} | - |",
        "",
        "![The gap against the number of bins](bins.svg)",
        "",
        f"- Data: {result.dataset.name}, split {result.dataset.split}, SHA-256 `{result.dataset.sha256}`.",
        f"- Weights: SHA-256 of the tensors `{result.weights_sha256}`.",
        f"- Protocol: `{result.protocol.id}`, fingerprint `{result.protocol.fingerprint}`.",
        f"- Range: every channel inside its mean +- {result.protocol.decode['limit']:g} of its deviations; "
        f"{result.protocol.decode['calibration']}.",
        "- Values: means of the cells of equal probability of a normal variable cut at "
        f"+-{result.protocol.decode['reach']:g}, stretched to that range, as the public release has them.",
        "- Order of the channels for a model that predicts them one by one, by the share of energy at low frequencies on the same "
        f"pictures: {', '.join(map(str, found[-1].point.codes['frequency_order']))}.",
        f"- Measured {(result.environment or {}).get('date', '')[:10]} by `python -m eval.tokenbridge_bins {vae} --data DATA`; "
        "scores of every picture are in the `.items.csv` beside this page.",
        "",
    ]
    return "\n".join(lines)


def _answer(par: Sequence[Gap], found: Sequence[Gap]) -> str:
    """Say whether 64 bins are on par, and from how many on it is so."""
    claim = next((gap for gap in found if gap.bins == 64), None)
    told = f"On par here means: with 95 % confidence less than {_PAR_DB:g} dB lost."
    if claim is None:
        return told
    verdict = "holds here" if claim.par else "does not hold here"
    text = f"The paper's claim that rounding is on par from 64 bins {verdict}: {claim.psnr.mean:.4f} dB are lost. {told}"
    if par:
        text += f" The fewest bins of this table that are: {min(gap.bins for gap in par)}."
    return text


def _score(point: Point, name: str, digits: int) -> str:
    score = point.scores.get(name)
    return "-" if score is None or score.mean is None else f"{score.mean:.{digits}f}"


def drawing(result: Result) -> str:
    """Draw the gap against the number of bins, both on logarithmic scales, as SVG; intervals as bars."""
    found = gaps(result)
    left, right, top, bottom = 70, 520, 40, 300
    low = 10.0 ** math.floor(math.log10(min([max(gap.psnr.mean, 1e-4) for gap in found])))
    high = 10.0 ** math.ceil(math.log10(max(max(gap.psnr.mean for gap in found), 10 * low)))

    def across(count: float) -> float:
        first, last = math.log2(found[0].bins), math.log2(found[-1].bins)
        return left + (right - left) * (math.log2(count) - first) / max(last - first, 1)

    def down(value: float) -> float:
        share = (math.log10(max(value, low)) - math.log10(low)) / (math.log10(high) - math.log10(low))
        return bottom - (bottom - top) * min(share, 1.0)

    vae = result.tokenizer.removesuffix("_tokenbridge")
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 360" font-family="sans-serif" font-size="13">',
        '<rect width="560" height="360" fill="white"/>',
        f'<text x="{left}" y="22" font-size="15">PSNR lost by rounding each channel of {vae}</text>',
    ]
    for exponent in range(round(math.log10(low)), round(math.log10(high)) + 1):
        y = down(10.0**exponent)
        out.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**exponent:g} dB</text>')
    if low < _PAR_DB < high:
        y = down(_PAR_DB)
        out.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#b33" stroke-dasharray="5 4"/>')
        out.append(f'<text x="{right}" y="{y - 6:.1f}" text-anchor="end" fill="#b33">on par below {_PAR_DB:g} dB</text>')
    path = " ".join(f"{across(gap.bins):.1f},{down(gap.psnr.mean):.1f}" for gap in found)
    out.append(f'<polyline points="{path}" fill="none" stroke="#246" stroke-width="2"/>')
    for gap in found:
        x, y = across(gap.bins), down(gap.psnr.mean)
        first, last = gap.psnr.ci95 or (gap.psnr.mean, gap.psnr.mean)
        out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{down(first):.1f}" y2="{down(last):.1f}" stroke="#246" stroke-width="5"/>')
        shown = "#246" if gap.psnr.mean >= low else "white"  # below the scale
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{shown}" stroke="#246"/>')
        out.append(f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle">{gap.bins}</text>')
    out.append(f'<text x="{(left + right) / 2:g}" y="{bottom + 44}" text-anchor="middle">values of a channel (bins)</text>')
    out.append("</svg>\n")
    return "\n".join(out)


# -- the command -------------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.tokenbridge_bins", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", metavar="NAME", help="an autoencoder that `zoo list` shows, a folder, or a Hub repository")
    parser.add_argument("--data", help="pictures, as for `zoo eval`, with the splits val and train")
    parser.add_argument("--bins", default=",".join(map(str, BINS)), help="values of a channel (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=5.0, help="range of a channel in its deviations (default: %(default)s)")
    parser.add_argument("--split", default="val", help="to score (default: %(default)s)")
    parser.add_argument("--calibration", default="train", help="split on which channels are measured (default: %(default)s)")
    parser.add_argument("--calibration-count", type=int, default=512, help="pictures of it, spread evenly (default: %(default)s)")
    parser.add_argument("--dataset-name", help="for file names; the last part of --data where nothing is said")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder (default: eval/results/NAME_tokenbridge)")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: make page and drawing of the result that is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write result, page and drawing, and show the table.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `zoo.load`, `open_images` and `measure`; nothing is written then.
    """
    args = _parser().parse_args(argv)
    folder = args.out or Path("eval") / "results" / f"{Path(args.name).name}_tokenbridge"
    if args.redraw:
        results = [load_result(path) for path in sorted(folder.glob("*.json"))]
        if len(results) != 1:
            raise ValueError(f"tokenbridge_bins: {folder} holds {len(results)} results. Needed for --redraw: one.")
        _write(results[0], folder)
        return 0
    if args.data is None:
        raise ValueError("tokenbridge_bins: --data is missing. Give pictures with the splits val and train.")
    import zoo
    from recipes.data.corpora import open_images

    bins = [int(part) for part in args.bins.split(",")]
    corpus, train = (open_images(args.data, split=split) for split in (args.split, args.calibration))
    count = min(args.calibration_count, len(train))
    calibration = Selection(train, [i * len(train) // count for i in range(count)])
    name = args.dataset_name or Path(args.data).name
    result = measure(
        zoo.load(args.name, device=args.device),
        corpus,
        calibration,
        bins=bins,
        limit=args.limit,
        batch_size=args.batch_size,
        dataset_name=name,
        split=args.split,
    )
    result.save(folder / f"{name}.{result.protocol.id}.json")
    _write(result, folder)
    return 0


def _write(result: Result, folder: Path) -> None:
    write_atomic(folder / "bins.md", page(result))
    write_atomic(folder / "bins.svg", drawing(result))
    sys.stdout.write(page(result) + f"wrote {folder}\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"{error}")
