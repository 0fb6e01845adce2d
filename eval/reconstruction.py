"""The reconstruction scorer: encode once, cut to every rate, decode, round to 8 or 16 bits, score.

    result = evaluate(zoo.load("flextok_nano"), open_images("samples"), rates=[1, 4, 32])
    result.save("eval/results/flextok_nano/samples.image-64-v1.json")

`main` is what `zoo eval` runs. Under `torchrun` every process takes a stripe of the items and the scorers join.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from eval.protocols import AnyProtocol, default_protocol, default_sound_protocol, default_video_protocol, get_protocol
from eval.rates import Rate, at_rate, check_rates, ladder, parse_rates, rate_text
from eval.results import Dataset, ItemRow, Result, environment, load_result
from eval.runner import Runner, batches, evaluation_mode, tensors_sha256
from eval.scorers import DEFAULT_AUDIO, DEFAULT_IMAGE, DEFAULT_VIDEO, RECORDS, check_names
from recipes.data.clip_corpus import ClipCorpus, open_clips
from recipes.data.corpus import Selection, content_hash
from zoo.tokenizer import Tokenizer

__all__ = ["data_name", "dataset_of", "evaluate", "item_rows", "key_value", "main", "open_corpus", "show"]

logger = logging.getLogger(__name__)
_OF_CODES = ("codebook_use", "code_perplexity", "entropy_bits_per_second")
_NAMES = {"image": "pictures", "video": "clips", "audio": "recordings"}
_DEFAULTS = {"image": DEFAULT_IMAGE, "video": DEFAULT_VIDEO, "audio": DEFAULT_AUDIO}


# -- the evaluation --------------------------------------------------------------------------------------------------


def evaluate(
    tokenizer: Tokenizer,
    corpus: Any,
    *,
    protocol: AnyProtocol | str | None = None,
    rates: Sequence[int | Rate] | None = None,
    scorers: Sequence[str] | None = None,
    limit: int | None = None,
    decode: Mapping[str, Any] | None = None,
    seed: int | None = None,
    batch_size: int = 8,
    workers: int = 0,
    dataset_name: str | None = None,
    split: str | None = None,
    progress: bool = False,
) -> Result:
    """Measure how well a tokenizer reconstructs; one of pictures can also be measured on clips, of which it sees each frame alone.

    Args:
        tokenizer: on the device and in the dtype it is to be measured in.
        corpus: pictures, as `recipes.data.corpora.open_images` gives them, clips, as `recipes.data.clip_corpus.open_clips` does, or
            recordings, as `eval.sounds.open_sounds` does.
        protocol: or its id; None takes the zoo's own at the tokenizer's native size, or nearest below its sample rate.
        rates: numbers of tokens (ordered tokenizers) or levels (residual ones); None takes powers of two up to all.
        scorers: names of `eval.scorers.RECORDS`; None takes the default ones that this tokenizer and so many items allow.
        limit: only the first so many items.
        decode: options of the tokenizer's `decode`, such as `{"steps": 20}`.
        seed: of decoders that draw noise and of the bootstrap; None takes the protocol's.
        batch_size: items at once; scores do not depend on it (up to rounding).
        workers: threads that read ahead; 0 reads in between.
        dataset_name: for people and file names; None takes the corpus's source.
        split: of the source, as it was opened.
        progress: show a bar on standard error, if that is a terminal.

    Returns:
        The result, with the scores of every item in `result.items`.

    Raises:
        ValueError: no items, all unreadable, an unknown scorer, rate or protocol, a scorer that does not fit the tokenizer or
            needs more items, data of another kind, or an option that its decoder does not have.
        ModuleNotFoundError: a package of a scorer is missing.
        WeightsUnavailableError: official weights of a scorer are not to be had.
    """
    from eval.measure import PointMeter  # torchmetrics takes seconds to import, and `zoo eval --help` needs none of it

    rank, world = _place()
    info, spec = tokenizer.info, tokenizer.spec
    protocol = _protocol_for(tokenizer, _own_protocol(tokenizer, corpus) if protocol is None else protocol, seed, decode)
    _check_kind(corpus, protocol)
    corpus, dataset = dataset_of(corpus, limit, dataset_name, split, world=world)
    names = _scorers_for(tokenizer, protocol, scorers, len(corpus))
    chosen = ladder(info, spec) if rates is None else check_rates(rates, info, spec)
    networks: dict[tuple[str, int], Any] = {}
    scoring_device = "cpu" if tokenizer.device.type == "mps" else tokenizer.device  # float64 is needed
    sound = protocol.modality == "audio"
    spec = _spec_of(tokenizer, protocol)
    meters = [
        PointMeter(rate, names, spec=spec, positions=info.tokens, networks=networks, device=scoring_device, sound=sound)
        for rate in chosen
    ]
    protocol = replace(protocol, scorers=meters[0].definitions)
    runner, read = _room(tokenizer, protocol)
    unreadable = 0
    numbers = range(rank, len(corpus), world)
    with evaluation_mode(tokenizer), _bar(progress and rank == 0, info.name, len(numbers)) as advance:
        for batch in read(corpus, protocol, numbers, batch_size, workers):
            unreadable += int(batch.unreadable.sum())
            tokens, failed = runner.encode(batch)
            reference = batch.items if sound else batch.items.to(scoring_device)
            for meter, rate in zip(meters, chosen, strict=True):
                part = at_rate(tokens, rate)
                items, broken = runner.decode(part, batch, timed=meter is meters[-1])
                if not sound:
                    items = items.to(scoring_device)
                bad = (failed | broken).to(scoring_device)
                meter.update(reference, items, index=batch.index, failed=bad, tokens=runner.counted(part, batch))
            advance(len(batch.index))
    if world == 1 and unreadable == len(numbers):  # with more, one process must not leave the others waiting
        things = _NAMES[protocol.modality]
        raise ValueError(f"evaluate: none of the {len(numbers)} {things} of {corpus.source} can be read; the log names them.")
    return Result(
        tokenizer=info.name,
        weights_sha256=tensors_sha256(tokenizer),
        dataset=dataset,
        protocol=protocol,
        points=tuple(meter.point(seed=protocol.seed) for meter in meters),
        speed=runner.speed(),
        environment=environment(),
        items=tuple(item_rows(meters, corpus)),
    )


def _place() -> tuple[int, int]:
    """Rank and number of processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _room(tokenizer: Tokenizer, protocol: Any) -> tuple[Any, Any]:
    """Give the runner of a modality, and what reads its items."""
    if protocol.modality == "image":
        return Runner(tokenizer, protocol), batches
    if protocol.modality == "video":
        from eval.video_runner import VideoRunner, clip_batches

        return VideoRunner(tokenizer, protocol), clip_batches
    from eval.sound_runner import SoundRunner, sound_batches

    return SoundRunner(tokenizer, protocol), sound_batches


def _spec_of(tokenizer: Tokenizer, protocol: Any) -> Any:
    """What the numbers of the counted tokens mean."""
    if protocol.modality != "video":
        return tokenizer.spec
    from eval.video_runner import clip_spec

    return clip_spec(tokenizer.spec)


def _kind_of(corpus: Any) -> str:
    """Modality of the items of a corpus."""
    from eval.sounds import SoundCorpus

    return "video" if isinstance(corpus, ClipCorpus) else "audio" if isinstance(corpus, SoundCorpus) else "image"


def _check_kind(corpus: Any, protocol: Any) -> None:
    """Refuse items of another modality than the protocol's."""
    if (kind := _kind_of(corpus)) != protocol.modality:
        raise ValueError(
            f"evaluate: {corpus.source} holds {_NAMES[kind]}, protocol {protocol.id} is for {_NAMES[protocol.modality]}. "
            "Open the data as those, or choose another protocol."
        )


def _own_protocol(tokenizer: Tokenizer, corpus: Any) -> Any:
    """Give the zoo's protocol that is made for a tokenizer and items of this kind."""
    info = tokenizer.info
    if info.modality == "audio":
        return default_sound_protocol(info.name, info.sample_rate)
    if info.modality == "video" or _kind_of(corpus) == "video":
        return default_video_protocol(info.name, info.native_size)
    return default_protocol(info.name, info.native_size)


def _protocol_for(tokenizer: Tokenizer, protocol: AnyProtocol | str, seed: int | None, decode: Mapping[str, Any] | None) -> Any:
    info = tokenizer.info
    if isinstance(protocol, str):
        protocol = get_protocol(protocol)
    if protocol.modality != info.modality and (info.modality, protocol.modality) != ("image", "video"):
        raise ValueError(
            f"evaluate: protocol {protocol.id} is for {_NAMES[protocol.modality]}, {info.name} for {_NAMES[info.modality]}. "
            "Leave it out for the tokenizer's own."
        )
    if decode and {"seed", "generator", "noise"} & decode.keys():
        raise ValueError(f"evaluate: decode={dict(decode)}. Chance is set by seed=, which gives each item a noise of its own.")
    changes: dict[str, Any] = {"dtype": str(tokenizer.dtype).removeprefix("torch."), "decode": dict(decode or protocol.decode)}
    if seed is not None:
        changes["seed"] = seed
    return protocol.varied(**changes)


def dataset_of(corpus: Any, limit: int | None, name: str | None, split: str | None, *, world: int = 1) -> tuple[Any, Dataset]:
    """Give the items to score, the first `limit` of a corpus, and what a result says of them.

    Raises:
        ValueError: an empty corpus, limit below 1, or fewer items than processes.
    """
    total = len(corpus)
    if not total:
        raise ValueError("evaluate: the corpus holds no item. Give at least one.")
    if limit is not None and limit < 1:
        raise ValueError(f"evaluate: limit={limit}. Allowed: at least 1, or None for all.")
    used = limit if limit is not None and limit < total else None
    if used is not None:
        corpus = _first(corpus, used)
    if len(corpus) < world:
        raise ValueError(f"evaluate: {len(corpus)} items for {world} processes. Needed: at least one each.")
    facts = {"count": len(corpus), "total": total, "limit": used, "sha256": content_hash(corpus)}
    return corpus, Dataset(name=name or data_name(corpus.source), split=split, **facts)


def _first(corpus: Any, limit: int) -> Any:
    """Give the first so many items of a corpus."""
    if isinstance(corpus, ClipCorpus):
        return corpus.select(range(limit))
    from eval.sounds import SoundCorpus, SoundSelection

    return (SoundSelection if isinstance(corpus, SoundCorpus) else Selection)(corpus, range(limit))


def _obstacle(name: str, tokenizer: Tokenizer, protocol: Any, count: int) -> str | None:
    """Say why a scorer cannot be used here."""
    record = RECORDS[name]
    if not record.fits(protocol.modality):
        return f"it is for {_NAMES.get(record.modality, 'pictures and clips')}"
    if name in _OF_CODES and not tokenizer.info.discrete:
        return f"{tokenizer.info.name} makes latents, which have no codebook"
    if count < record.min_items:
        return f"it needs at least {record.min_items} items and there are {count}"
    if protocol.modality == "audio":
        if protocol.sample_rate < (record.sample_rate or 0) and not record.raises_rate:
            return f"it needs at least {record.sample_rate} samples a second and the protocol has {protocol.sample_rate}"
    elif min(protocol.size) < record.min_side:
        return f"it needs sides of at least {record.min_side} px and the protocol has {protocol.size}"
    return None


def _scorers_for(tokenizer: Tokenizer, protocol: Any, scorers: Sequence[str] | None, count: int) -> list[str]:
    """Give the scorers to use; one that was asked for and cannot be used is an error, a default one is left out and logged."""
    defaults = [name for name in _DEFAULTS[protocol.modality] if tokenizer.info.discrete or name not in _OF_CODES]
    names = check_names(defaults if scorers is None else scorers)
    obstacles = {name: reason for name in names if (reason := _obstacle(name, tokenizer, protocol, count))}
    for name, reason in obstacles.items():
        if scorers is not None:
            raise ValueError(f"evaluate: scorer {name} cannot be used: {reason}. Leave it out.")
        logger.warning("evaluate: %s is left out: %s.", name, reason)
    return [name for name in names if name not in obstacles]


def data_name(source: str) -> str:
    """Give a data set's name: the last part of its path, without what does not belong in a file name."""
    last = Path(str(source).partition(" and ")[0].rstrip("/")).name or "data"
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in last.removesuffix(".tar")).strip("-") or "data"


def item_rows(meters: Sequence[Any], corpus: Any) -> Iterator[ItemRow]:
    """Give the scores of every item at every rate, from the meters of the rates."""
    for meter in meters:
        numbers, columns = meter.per_item()
        for row, number in enumerate(numbers):
            scores = {name: values[row] for name, values in columns.items()}
            yield ItemRow(item=number, key=corpus.key(number), rate=rate_text(meter.rate), scores=scores)


@contextmanager
def _bar(show: bool, name: str, total: int) -> Iterator[Callable[[int], None]]:
    if not (show and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda count: bar.advance(task, count)


# -- the command -----------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {record.name:18s}{record.unit:22s}{record.better or '':8s}" for record in RECORDS.values())
    parser = argparse.ArgumentParser(
        prog="zoo eval",
        usage="zoo eval NAME --data DATA ... | zoo eval baseline CODEC --data DATA ... | zoo eval generate NAME --generator ...",
        description="Measure how well a tokenizer reconstructs: one JSON with all rates, and a CSV with the scores of every item.",
        epilog=f"scorers (unit, which way is better):\n{names}\ndefault for pictures: {', '.join(DEFAULT_IMAGE)}\n"
        f"default for clips: {', '.join(DEFAULT_VIDEO)}\ndefault for sound: {', '.join(DEFAULT_AUDIO)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", help="catalog name, folder or Hub repository, as for zoo.load")
    add("--data", required=True, help="folder of pictures, clips or sounds, tar shards, hf:ORG/NAME (pictures), or samples (ours)")
    add("--split", help="of a folder of shards (SPLIT-*.tar) or a Hugging Face data set; speech or music of the samples")
    add("--limit", type=int, help="only the first so many items; the result says so")
    add("--rates", help="such as 1,2,4 (tokens, or levels of a residual tokenizer); default: powers of two up to all")
    add("--scorers", help="names with commas; default: see below")
    add("--protocol", help="such as image-256-v1, image-256-adm-v1, video-128-v1, audio-16k-v1; default: native size or rate, v1")
    add("--truncate", action="store_true", help="cut reconstructions to 8 bits instead of rounding them, as some papers do")
    add("--decode", nargs="*", default=[], metavar="KEY=VALUE", help="options of the decoder, such as steps=20 guidance=2")
    add("--seed", type=int, help="of decoders that draw noise and of the intervals; default 0")
    add("--batch-size", type=int, default=8, help="items at once; default 8")
    add("--workers", type=int, default=0, help="threads that read items ahead; default 0")
    add("--device", help="such as cuda; default: cuda where there is one, else cpu")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the tokenizer; default float32")
    add("--dataset-name", help="in the result and its file name; default: from --data")
    add("--out", type=Path, help="default: eval/results/<name>/<dataset>.<protocol>.json")
    add("--overwrite", action="store_true", help="replace a result at --out even where this run measures less or something else")
    add("--sheet", type=Path, help="write a PNG: originals and reconstructions (spectrograms of sound), and the five worst")
    add("--sheet-items", type=int, default=8, help="first so many items on the sheet; default 8")
    return parser


def key_value(text: str) -> tuple[str, Any]:
    """Read `key=value`; numbers, true and false become such.

    Raises:
        ValueError: no name, or no '='.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.isidentifier():
        raise ValueError(f"zoo eval: option {text!r}. Write options as key=value, such as steps=20.")
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, {"true": True, "false": False}.get(value.lower(), value)


def main(argv: Sequence[str]) -> int:
    """Run `zoo eval`.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `zoo.load`, `open_images` and `evaluate`; nothing is written then.
    """
    if argv and argv[0] == "baseline":
        from eval.baselines.command import main as baseline

        return baseline(argv[1:])
    if argv and argv[0] == "generate":
        from eval.generation_command import main as generate

        return generate(argv[1:])
    args = _parser().parse_args(argv)
    if args.batch_size < 1 or args.workers < 0:
        raise ValueError(f"zoo eval: --batch-size {args.batch_size} --workers {args.workers}. Allowed: at least 1, at least 0.")
    if args.out is not None and args.out.suffix != ".json":
        raise ValueError(f"zoo eval: --out {args.out}. The name must end in .json; the items go to a .items.csv beside it.")
    import zoo

    device, opened = _join_processes(args.device)
    scorers = None if args.scorers is None else check_names(part.strip() for part in args.scorers.split(",") if part.strip())
    rates = None if args.rates is None else parse_rates(args.rates)
    protocol = None if args.protocol is None else get_protocol(args.protocol)
    tokenizer = zoo.load(args.name, device=device, dtype=getattr(torch, args.dtype))
    corpus = open_corpus(args.data, args.split, tokenizer.info.modality if protocol is None else protocol.modality)
    protocol = protocol or _own_protocol(tokenizer, corpus)
    if args.truncate:
        protocol = protocol.varied(to_uint8="truncate")
    settings: dict[str, Any] = {
        "protocol": protocol,
        "rates": rates,
        "scorers": scorers,
        "limit": args.limit,
        "decode": dict(key_value(text) for text in args.decode),
        "seed": args.seed,
        "dataset_name": args.dataset_name or data_name(args.data),
        "split": args.split,
    }
    out = args.out or _default_out(tokenizer, len(corpus), settings)
    if not args.overwrite:
        _refuse_loss(out, tokenizer, len(corpus), settings)
    result = evaluate(tokenizer, corpus, batch_size=args.batch_size, workers=args.workers, progress=True, **settings)
    if _place()[0] == 0:
        result.save(out)
        if args.sheet:
            from eval.sheet import item_sheet, save_sheet

            sheet = item_sheet(tokenizer, corpus, result, first=args.sheet_items, batch_size=args.batch_size)
            save_sheet(sheet, args.sheet)
        show(result, out)
    if opened:
        torch.distributed.destroy_process_group()
    return 0


def open_corpus(source: str, split: str | None, modality: str) -> Any:
    """Open the pictures, clips or recordings of a source; see `open_images`, `open_clips` and `open_sounds`.

    For pictures, a source that holds only clips gives those: a tokenizer of pictures can be measured on their frames.
    """
    if modality == "audio":
        from eval.sounds import open_sounds

        return open_sounds(source, split=split)
    if modality == "video":
        return open_clips(source, split=split)
    from recipes.data.corpora import open_images

    try:
        return open_images(source, split=split)
    except ValueError as error:
        try:
            return open_clips(source, split=split)
        except (ValueError, FileNotFoundError):
            raise error from None


def _join_processes(device: str | None) -> tuple[str, bool]:
    """Choose the device; under torchrun also join the processes and take a GPU each."""
    cuda = torch.cuda.is_available() if device is None else device.startswith("cuda")
    device = device or ("cuda" if cuda else "cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or torch.distributed.is_initialized():
        return device, False
    if cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if cuda else "gloo")
    return device, True


def _planned(tokenizer: Tokenizer, count: int, settings: Mapping[str, Any]) -> tuple[Any, int, set[str], set[str]]:
    """Protocol, number of items, rates and scorers of a run that has not begun."""
    protocol = _protocol_for(tokenizer, settings["protocol"], settings["seed"], settings["decode"])
    count = min(count, settings["limit"] or count)
    info, spec, rates = tokenizer.info, tokenizer.spec, settings["rates"]
    chosen = ladder(info, spec) if rates is None else check_rates(rates, info, spec)
    fitting = [name for name in _DEFAULTS[protocol.modality] if not _obstacle(name, tokenizer, protocol, count)]
    names = settings["scorers"] or fitting
    return protocol, count, {rate_text(rate) for rate in chosen}, set(names)


def _default_out(tokenizer: Tokenizer, count: int, settings: Mapping[str, Any]) -> Path:
    protocol, used, _, _ = _planned(tokenizer, count, settings)
    data = settings["dataset_name"] + (f"-first{used}" if used < count else "")
    return Path("eval") / "results" / tokenizer.info.name / f"{data}.{protocol.id}.json"


def _refuse_loss(out: Path, tokenizer: Tokenizer, count: int, settings: Mapping[str, Any]) -> None:
    """Refuse to replace a result by one that measures something else, or fewer rates or scores."""
    if not out.exists():
        return
    try:
        old = load_result(out)
    except ValueError as error:
        raise ValueError(f"zoo eval: {out} is there and is no result ({error}). Give --out, or --overwrite.") from error
    protocol, used, rates, names = _planned(tokenizer, count, settings)
    new = {
        "tokenizer": tokenizer.info.name,
        "data set": (settings["dataset_name"], settings["split"], used),
        "protocol": protocol.id,
        "decode options": dict(protocol.decode),
    }
    there = {
        "tokenizer": old.tokenizer,
        "data set": (old.dataset.name, old.dataset.split, old.dataset.count),
        "protocol": old.protocol.id,
        "decode options": dict(old.protocol.decode),
    }
    reasons = [f"{key}: {there[key]} there, {new[key]} now" for key in new if new[key] != there[key]]
    lost_rates = [rate for rate in (rate_text(dict(point.rate)) for point in old.points) if rate not in rates]
    lost_scores = [name for name in old.protocol.scorers if name not in names]
    if lost_rates or lost_scores:
        reasons.append(f"this run does not measure {', '.join([*lost_rates, *lost_scores])}")
    if reasons:
        raise ValueError(f"zoo eval: {out} holds another measurement ({'; '.join(reasons)}). Give --out, or --overwrite.")


def show(result: Result, out: Path) -> None:
    """Print the means of a result as a table, and where it was written."""
    from rich.console import Console
    from rich.table import Table

    data = result.dataset
    limited = "" if data.limit is None else f" (the first {data.limit} of {data.total})"
    sound = result.protocol.modality == "audio"
    things = _NAMES[result.protocol.modality]
    table = Table(title=f"{result.tokenizer} on {data.count} {things} of {data.name}{limited}, {result.protocol.id}")
    for heading in ("rate", "bit/s" if sound else "bit/px", "score", "value", "95 % interval", "n"):
        table.add_column(heading, justify="left" if heading in ("rate", "score") else "right")
    for point in result.points:
        amount = point.bits_per_second if sound else point.bits_per_pixel
        rate, bits = rate_text(dict(point.rate)), "" if amount is None else f"{amount:.4g}"
        for name, score in point.scores.items():
            if name in ("bits_per_pixel", "bits_per_second"):
                continue
            value = "-" if score.mean is None else f"{score.mean:.4g}"
            interval = "" if score.ci95 is None else f"{score.ci95[0]:.4g} .. {score.ci95[1]:.4g}"
            count = f"{score.n}" + (f" ({score.failed} failed)" if score.failed else "")
            table.add_row(rate, bits, f"{name} [{RECORDS[name].unit}]".replace("[", "\\["), value, interval, count)
            rate = bits = ""
        table.add_section()
    console = Console()
    console.print(table)
    console.print(f"wrote {out}", soft_wrap=True)
