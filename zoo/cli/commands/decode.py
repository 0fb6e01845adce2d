"""Turn tokens back into pictures, sounds or clips.

OUT that ends in .png, in .wav, .flac, .ogg or .mp3, or in .mp4 or .mkv receives one item. Any other OUT is a folder: NAME.png (or
.wav, .mp4) for a file of one item, NAME_0000.png and so on for a file of several.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.files import expand_inputs
from zoo.cli.models import add_tile_argument, add_tokenizer_arguments, decode_options, load_tokenizer, only_pictures, tile_option
from zoo.cli.progress import progress
from zoo.cli.text import plural
from zoo.whole_files import whole_file

if TYPE_CHECKING:
    from zoo.token_files import TokenFile
    from zoo.tokenizer import Tokenizer
    from zoo.tokens import Tokens

__all__ = ["configure", "run"]


def configure(parser: argparse.ArgumentParser) -> None:
    add_tokenizer_arguments(parser)
    parser.add_argument("inputs", nargs="+", metavar="TOKENS", help=".safetensors files of `zoo encode`, or folders of them")
    parser.add_argument("out", metavar="OUT", help="a file, or a folder")
    parser.add_argument("--tokens", type=int, metavar="K", help="use the first K tokens only (ordered tokenizers)")
    parser.add_argument("--depth", type=int, metavar="D", help="use the first D levels only (residual tokenizers)")
    add_tile_argument(parser)
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the decoder; repeatable")
    parser.add_argument("--frame-rate", type=float, metavar="R", help="of a clip (default: that of its source, else 25)")
    for name in ("seed", "steps", "guidance"):
        parser.add_argument(f"--{name}", metavar="N", help=f"short for --option {name}=N")


def run(arguments: argparse.Namespace) -> int:
    inputs = expand_inputs(arguments.inputs, command="zoo decode", ending=".safetensors")
    import torch

    from zoo.token_files import TokenFile
    from zoo.tokens import Tokens

    files = [TokenFile(path) for path, _ in inputs]
    kinds = sorted({file.spec.modality for file in files})
    if len(kinds) > 1:
        raise ValueError(f"zoo decode: tokens of {' and '.join(kinds)} in one call. Decode them apart.")
    if kinds != ["image"]:
        return _signals(arguments, files, [place for _, place in inputs])
    loaded = [Tokens.load(path) for path, _ in inputs]
    out = Path(arguments.out)
    count = sum(len(tokens) for tokens in loaded)
    if out.suffix == ".png" and count != 1:
        raise ValueError(f"zoo decode: OUT {out} is one picture, but there are {count} to write. Give a folder.")
    if out.suffix != ".png" and out.is_file():
        raise ValueError(f"zoo decode: OUT {out} is a file. Pictures are written as PNG: give a name ending in .png, or a folder.")
    targets = [out] if out.suffix == ".png" else _targets(inputs, loaded, out)
    tokenizer = load_tokenizer(arguments, "zoo decode")
    only_pictures(tokenizer, "zoo decode")
    options = _options(arguments, tokenizer)

    batches = [tokens[i : i + arguments.batch_size] for tokens in loaded for i in range(0, len(tokens), arguments.batch_size)]
    place = iter(targets)
    for batch in progress(batches, "decoding", weights=[len(batch) for batch in batches]):
        batch = _cut(batch.to(tokenizer.device), arguments.tokens, arguments.depth)
        with torch.inference_mode():
            y = tokenizer.decode(batch, **options)
        for picture, (height, width) in zip(y, batch.extent.tolist(), strict=True):
            with whole_file(next(place)) as temporary:
                tokenizer.postprocess(picture[None, :, :height, :width])[0].save(temporary)
    sys.stdout.write(f"{plural(count, 'picture')} to {out}\n")
    return 0


def _options(arguments: argparse.Namespace, tokenizer: "Tokenizer") -> dict[str, Any]:
    short = [f"{name}={value}" for name in ("seed", "steps", "guidance") if (value := getattr(arguments, name)) is not None]
    return decode_options(tokenizer, [*short, *arguments.option]) | tile_option(tokenizer, arguments.tile)


def _signals(arguments: argparse.Namespace, files: list["TokenFile"], places: list[Path]) -> int:
    from zoo.cli.signals import decode_signals

    tokenizer = load_tokenizer(arguments, "zoo decode")
    for file in files:
        if file.spec.tokenizer != tokenizer.info.name:
            found = f"these are tokens of {file.spec.tokenizer!r}"
            raise ValueError(f"{tokenizer.info.name}.decode: {found}. Only their maker decodes them.")
    text = decode_signals(
        tokenizer,
        files,
        places,
        Path(arguments.out),
        options=_options(arguments, tokenizer),
        tokens=arguments.tokens,
        depth=arguments.depth,
        frame_rate=arguments.frame_rate,
    )
    sys.stdout.write(text)
    return 0


def _cut(tokens: "Tokens", k: int | None, d: int | None) -> "Tokens":
    tokens = tokens if k is None else tokens.keep(k)
    return tokens if d is None else tokens.depth(d)


def _targets(inputs: list[tuple[Path, Path]], loaded: list["Tokens"], out: Path) -> list[Path]:
    targets: list[Path] = []
    for (_, place), tokens in zip(inputs, loaded, strict=True):
        stem = place.with_suffix("")
        names = [f"{stem.name}.png"] if len(tokens) == 1 else [f"{stem.name}_{i:04d}.png" for i in range(len(tokens))]
        targets += [out / place.parent / name for name in names]
    twice = {path for path in targets if targets.count(path) > 1}
    if twice:
        raise ValueError(f"zoo decode: several inputs would be written to {min(twice)}. Decode them into different folders.")
    return targets
