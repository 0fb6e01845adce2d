"""Turn pictures, sounds or clips into tokens.

OUT that ends in .safetensors receives all tokens in one file, in the order of the inputs (folders by name). Any other OUT is a
folder that receives one file an input. Sound is read from wav, flac, ogg, mp3 and aiff, video from what FFmpeg reads; where the
tokenizer streams, memory does not grow with their length.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.files import expand_inputs, refuse_other_kinds
from zoo.cli.models import add_tile_argument, add_tokenizer_arguments, known_modality, load_tokenizer, sides, tile_option
from zoo.cli.progress import progress
from zoo.cli.text import plural
from zoo.whole_files import whole_file

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer
    from zoo.tokens import Tokens

__all__ = ["configure", "run"]

ENDING = ".safetensors"


def configure(parser: argparse.ArgumentParser) -> None:
    add_tokenizer_arguments(parser)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="pictures, sounds or clips, or folders of them")
    parser.add_argument("out", metavar="OUT", help="a .safetensors file, or a folder")
    rate = parser.add_argument_group("rate (all of it where nothing is said)")
    one = rate.add_mutually_exclusive_group()
    one.add_argument("--tokens", type=int, metavar="K", help="keep the first K tokens of an ordered tokenizer")
    one.add_argument("--bits-per-pixel", type=float, metavar="R", help="the largest rate allowed, of pictures")
    one.add_argument("--bits-per-second", type=float, metavar="R", help="the largest rate allowed, of sound")
    one.add_argument("--quality", type=float, metavar="DB", help="for each picture the fewest tokens that reach this PSNR")
    rate.add_argument("--depth", type=int, metavar="D", help="keep the first D levels of a residual tokenizer")
    parser.add_argument("--size", metavar="S|HxW", help="resize to these sides; the native size where nothing is said")
    parser.add_argument("--no-crop", action="store_true", help="keep the aspect ratio, with the short side at the size")
    parser.add_argument("--sample", action="store_true", help="draw from the encoder's distribution instead of its mode")
    parser.add_argument("--seed", type=int, help="for --sample and --quality")
    add_tile_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    size = sides(arguments.size, "zoo encode")
    kind = known_modality(arguments.name)
    tokenizer = None
    if kind is None:
        tokenizer = load_tokenizer(arguments, "zoo encode")
        kind = tokenizer.info.modality
    inputs = expand_inputs(arguments.inputs, command="zoo encode", kind=kind)
    out = Path(arguments.out)
    targets = None if out.suffix == ENDING else _targets(inputs, out)
    if out.suffix == ENDING and out.is_dir():
        raise ValueError(f"zoo encode: OUT {out} is a folder with the name of a file. Choose another name.")
    tokenizer = tokenizer or load_tokenizer(arguments, "zoo encode")
    from zoo.tokens import Tokens

    refuse_other_kinds([path for path, _ in inputs], tokenizer.info)

    names = ("tokens", "depth", "bits_per_pixel", "bits_per_second", "quality", "seed")
    rate = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.sample:
        rate["sample"] = True
    rate |= tile_option(tokenizer, arguments.tile)
    paths = [path for path, _ in inputs]
    if kind != "image":
        from zoo.cli.signals import encode_signals

        _no_sizes_of_sound(arguments, kind)
        sys.stdout.write(encode_signals(tokenizer, paths, targets, out, size=size, crop=not arguments.no_crop, rate=rate))
        return 0
    parts: list[Tokens] = []
    batches = [range(i, min(i + arguments.batch_size, len(paths))) for i in range(0, len(paths), arguments.batch_size)]
    for rows in progress(batches, "encoding", weights=[len(rows) for rows in batches]):
        tokens = _encode(tokenizer, [paths[i] for i in rows], size, not arguments.no_crop, rate)
        parts.append(tokens)
        if targets is not None:
            for item, i in zip(tokens, rows, strict=True):
                _save(_trimmed(item), targets[i])
    if targets is None:
        _save(Tokens.cat(parts), out)
    written = [out] if targets is None else targets
    sys.stdout.write(_report(parts, len(paths), out, sum(path.stat().st_size for path in written)))
    return 0


def _no_sizes_of_sound(arguments: argparse.Namespace, kind: str) -> None:
    given = [name for name, said in (("--size", arguments.size), ("--no-crop", arguments.no_crop)) if said]
    if kind == "audio" and given:
        raise ValueError(f"zoo encode: {' and '.join(given)} for sound, which has no sides. Leave it out.")


def _targets(inputs: list[tuple[Path, Path]], out: Path) -> list[Path]:
    """Name one file for each input; two inputs of one name are refused before any work."""
    seen: dict[Path, Path] = {}
    for path, place in inputs:
        target = out / place.with_suffix(ENDING)
        if target in seen:
            raise ValueError(f"zoo encode: {seen[target]} and {path} would both be written to {target}. Rename one.")
        seen[target] = path
    if out.is_file():
        raise ValueError(f"zoo encode: OUT {out} is a file, but not a {ENDING}. Give a name ending in {ENDING}, or a folder.")
    return list(seen)


def _encode(tokenizer: "Tokenizer", paths: list[Path], size: Any, crop: bool, rate: dict[str, Any]) -> "Tokens":
    import torch

    with torch.inference_mode():
        if crop:
            return tokenizer.encode(tokenizer.preprocess(paths, size=size), **rate)
        items = [tokenizer.preprocess(path, size=size, crop=False)[0] for path in paths]
        return tokenizer.encode(items, **rate)


def _trimmed(item: "Tokens") -> "Tokens":
    """Cut one item to its real positions."""
    if item.lengths is None:
        return item
    return replace(item, data=item.data[:, : int(item.lengths[0])], lengths=None)


def _save(tokens: "Tokens", path: Path) -> None:
    with whole_file(path) as temporary:
        tokens.save(temporary)


def _report(parts: list["Tokens"], count: int, out: Path, size: int) -> str:
    counts = [int(n) for part in parts for n in part.counts]
    rates = [float(r) for part in parts for r in part.bits_per_pixel()]
    many = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    depth = "" if parts[0].levels == 1 or not parts[0].discrete else f" of depth {parts[0].levels}"
    kind = "tokens" if parts[0].discrete else "latents"
    mean = sum(rates) / len(rates)
    return f"{plural(count, 'picture')} to {out}: {many} {kind}{depth} each, {mean:.4g} bits per pixel, {size:,} bytes in all\n"
