"""How the demo speaks of rates and pictures, the same on the page, on the sheet and in the terminal."""

from pathlib import Path

from zoo import samples
from zoo.cli.commands.demo.ladder import Ladder, Rung
from zoo.cli.text import plural

__all__ = ["axis_text", "bits_text", "bytes_text", "dial_text", "heading", "lede", "picture_name", "rung_text"]

_SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def heading(ladder: Ladder) -> str:
    return f"{ladder.entry.name}: {plural(len(ladder.paths), 'picture')} at every rate"


def lede(ladder: Ladder) -> str:
    """What happened to the pictures, in two sentences at most."""
    number = len(ladder.paths)
    pictures = f"{_SMALL[number] if number < len(_SMALL) else number} picture{'s' if number != 1 else ''}".capitalize()
    full, entry = ladder.rungs[-1], ladder.entry
    each = ", each" if number > 1 else ""
    if ladder.axis == "tokens":
        return (
            f"{pictures}{each} written as 1 to {full.count} whole numbers and painted again from them. The first numbers say most: "
            "move the slider to see what the others add."
        )
    if ladder.axis == "depth":
        return (
            f"{pictures}{each} written as a grid of whole numbers, 1 to {full.count} at every place, and painted again from them. "
            "The first level says most: move the slider to see what the others add."
        )
    if entry.discrete:
        depth = f" of {entry.depth} codes each" if entry.depth > 1 else ""
        what = f"tokens{depth}" if depth else "whole numbers"
        return f"{pictures}{each} written as {full.count} {what} and painted again from them."
    return f"{pictures}{each} written as {full.count} places of {entry.channels} real numbers and painted again from them."


def axis_text(ladder: Ladder) -> str:
    """What the numbers of the rates count."""
    return {"tokens": "tokens", "depth": "levels"}.get(ladder.axis or "", "positions")


def dial_text(ladder: Ladder) -> str:
    return "Levels kept" if ladder.axis == "depth" else "Tokens kept"


def rung_text(ladder: Ladder, rung: Rung) -> str:
    if ladder.axis == "depth":
        return plural(rung.count, "level")
    if not ladder.entry.discrete:
        return f"{rung.count} latents"
    return plural(rung.count, "token")


def bytes_text(rung: Rung) -> str:
    """Bytes of one picture; a few have a fraction, because codes rarely fill whole bits."""
    number = rung.bits / 8
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


def bits_text(rung: Rung) -> str:
    return f"{bytes_text(rung)} bytes a picture · {rung.bits_per_pixel:.3g} bits per pixel"


def picture_name(path: Path) -> str:
    """The title of a sample picture, or the name of the file in words."""
    if path.parent == samples.folder() / "images":
        return samples.info(path).title
    return path.stem.replace("_", " ")
