"""The tokenizer a command works with: loading it by name, folder or Hub repository, and the options its decoder takes."""

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from zoo.registry import info

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer

__all__ = [
    "add_tile_argument",
    "add_tokenizer_arguments",
    "decode_options",
    "known_modality",
    "load_tokenizer",
    "only_pictures",
    "sides",
    "tile_option",
]

_TILE = 1024  # about 4 GB for the autoencoder of Stable Diffusion in float32


def add_tokenizer_arguments(parser: argparse.ArgumentParser, *, default: str | None = None) -> None:
    words = "a name that `zoo list` shows, a folder, or a Hub repository org/name"
    if default is None:
        parser.add_argument("name", metavar="NAME", help=words)
    else:
        parser.add_argument("name", metavar="NAME", nargs="?", default=default, help=f"{words} (default: {default})")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="B", help="items at a time (default: %(default)s)")


def known_modality(name: str) -> str | None:
    """Modality of a name of the catalog; None for a folder or a repository, which must be loaded to tell.

    Raises:
        ValueError: an unknown name.
    """
    if "/" in name or name.startswith((".", "~")) or Path(name).is_dir():
        return None
    return info(name).modality


def load_tokenizer(arguments: argparse.Namespace, command: str) -> "Tokenizer":
    """Load what NAME means, on the device asked for.

    Raises:
        ValueError: an unknown name (before torch is imported), device or batch size, or weights that do not load.
    """
    name = arguments.name
    if arguments.batch_size < 1:
        raise ValueError(f"{command}: --batch-size {arguments.batch_size}. Allowed: 1 or more.")
    known_modality(name)
    from zoo.cli.progress import waiting

    with waiting(f"loading {name}"):
        import zoo

        device = _device(arguments.device, command)
        return zoo.load(name, device=device)


def _device(text: str, command: str) -> Any:
    import torch

    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ValueError(f"{command}: --device {text} is none that torch knows. Allowed: cpu, cuda, cuda:1, mps.") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise ValueError(f"{command}: --device {text} is not there. Usable: {', '.join(name for name, ok in there.items() if ok)}.")
    return device


def only_pictures(tokenizer: "Tokenizer", command: str) -> None:
    """Refuse sound and video.

    Raises:
        ValueError: with the way in Python.
    """
    if tokenizer.info.modality != "image":
        raise ValueError(
            f"{command}: {tokenizer.info.name} is for {tokenizer.info.modality}; this command reads and writes pictures only. "
            "In Python: tok.encode(x), tok.decode(tokens)."
        )


def add_tile_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile", type=int, metavar="SIDE",
        help="pictures with a larger side go in overlapping tiles of so many pixels, so that memory is that of one tile "
        f"(default: {_TILE}, or the native side where that is larger; 0 never cuts); frames of clips only where it is given",
    )  # fmt: skip


def tile_option(tokenizer: "Tokenizer", side: int | None) -> dict[str, int]:
    """Give `tile=` for `encode` and `decode`; nothing where --tile is left out for clips or whole signals.

    Raises:
        ValueError: --tile for a tokenizer that takes whole signals only.
    """
    clips = tokenizer.info.modality == "video"  # nothing is cut that nobody asks for
    if side == 0 or (side is None and (clips or not tokenizer.tileable)):
        return {}
    if not tokenizer.tileable:
        raise ValueError(f"--tile {side}: {tokenizer.info.name} takes whole signals only. Leave it out.")
    return {"tile": max(_TILE, *(tokenizer.info.native_size or ())) if side is None else side}


def decode_options(tokenizer: "Tokenizer", given: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` texts as options of this tokenizer's decoder.

    Raises:
        ValueError: no '=', an option that the decoder does not take (those it takes are listed), or a value of another type.
    """
    command, allowed = f"{tokenizer.info.name}.decode", _allowed_options(tokenizer)
    options: dict[str, Any] = {}
    for text in given:
        key, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"{command}: --option {text!r} has no '='. Write key=value.")
        if key not in allowed:
            there = f"Allowed: {', '.join(allowed)}." if allowed else "This decoder has none."
            raise ValueError(f"{command}: no option {key!r}. {there}")
        options[key] = _read(command, key, value, allowed[key])
    return options


def _allowed_options(tokenizer: "Tokenizer") -> dict[str, list[Any]]:
    """Keyword arguments of the decoder that a text can give, with their types."""
    decode = type(tokenizer)._decode
    hints = get_type_hints(decode)
    allowed: dict[str, list[Any]] = {}
    for parameter in inspect.signature(decode).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            hint = hints.get(parameter.name)
            members = (hint,) if get_origin(hint) in (None, Literal) else get_args(hint)
            types = [t for t in members if t in (int, float, bool, str) or get_origin(t) is Literal]
            if types:
                allowed[parameter.name] = types
    return allowed


def _read(command: str, key: str, text: str, types: Sequence[Any]) -> Any:
    for kind in types:
        if get_origin(kind) is Literal:
            if text in get_args(kind):
                return text
        elif kind is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
        else:
            try:
                return kind(text)
            except ValueError:
                continue
    words = [", ".join(map(str, get_args(t))) if get_origin(t) is Literal else t.__name__ for t in types]
    raise ValueError(f"{command}: option {key}={text!r}. Needed: {' or '.join(words)}.")


def sides(text: str | None, command: str) -> int | tuple[int, int] | None:
    """Read `--size`: one side, height and width, or nothing.

    Raises:
        ValueError: anything else; `command` names who was asked.
    """
    if text is None:
        return None
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(number.isdigit() and int(number) > 0 for number in numbers):
        raise ValueError(f"{command}: --size {text}. Write one side such as 256, or height and width such as 256x384.")
    return int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))
