"""Entries as people read them: short numbers, and columns that fit a width. Imports no torch."""

from collections.abc import Sequence

from zoo.registry import Entry

__all__ = ["columns", "count", "layout", "licence", "plural", "rate", "tokens_by_vocabulary", "where_weights"]


def count(number: int | None) -> str:
    """Parameters in short: 3.3M, 1.5B."""
    if number is None:
        return "-"
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def plural(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def layout(entry: Entry) -> str:
    """Layout of the positions, and for sound the sample rate in kHz."""
    if entry.sample_rate is None:
        return entry.layout
    return f"{entry.layout} {entry.sample_rate / 1000:g}k"


def rate(entry: Entry) -> str:
    """Full rate: bits per pixel (bpp), or thousands of bits per second (kbps)."""
    if entry.modality == "image" or entry.bits_per_second is None:
        return "-" if entry.bits_per_pixel is None else f"{entry.bits_per_pixel:.3g} bpp"
    return f"{entry.bits_per_second / 1000:.3g} kbps"


def tokens_by_vocabulary(entry: Entry) -> str:
    """Positions x codes at each x codebook size; latents say their channels."""
    if entry.tokens is not None:
        positions = f"1-{entry.tokens}" if entry.ordered else f"{entry.tokens}"
    elif entry.frame_rate is not None:
        positions = f"{entry.frame_rate:.3g}/s"
    elif entry.downsample is not None:
        positions = "1/" + "x".join(map(str, entry.downsample))
    else:
        positions = "n"
    if not entry.discrete:
        return f"{positions} x {entry.channels} ch"
    depth = "" if entry.depth == 1 else f" x {'1-' if entry.residual else ''}{entry.depth}"
    return f"{positions}{depth} x {entry.codebook_size or max(entry.vocabulary, default=0):,}"


def licence(entry: Entry) -> str:
    """Licence of the weights without the prefix of own licences; nobody's statement is "unknown"."""
    return (entry.license_weights or "unknown").removeprefix("LicenseRef-")


def where_weights(entry: Entry) -> str:
    """Where the weights come from: the package, the Hub, a recipe, or nowhere yet."""
    if entry.weights is not None:
        return "embedded" if entry.embedded else "Hub"
    return "recipe" if entry.recipe else "-"


def columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, width: int, flexible: Sequence[int] = (), floor: int = 8
) -> str:
    """Lay rows out in columns with two blanks between.

    Args:
        header: one word or two for each column.
        rows: cells of text.
        width: characters a line may have.
        flexible: columns that are cut (with `…`), in this order, where lines would be longer; others never are.
        floor: characters a cut column keeps.
    """
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for i in flexible:
        over = sum(widths) + 2 * (len(widths) - 1) - width
        if over > 0:
            widths[i] = max(min(floor, widths[i]), widths[i] - over)
    lines = []
    for row in cells:
        cut = [cell if len(cell) <= size else cell[: size - 1] + "…" for cell, size in zip(row, widths, strict=True)]
        lines.append("  ".join(cell.ljust(size) for cell, size in zip(cut, widths, strict=True)).rstrip())
    return "\n".join(lines) + "\n"
