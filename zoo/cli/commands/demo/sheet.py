"""The demo as one PNG: originals and reconstructions at every rate, with rate and scores under each."""

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoo.cli.commands.demo.ladder import Ladder
from zoo.cli.commands.demo.words import heading, picture_name, rung_text

__all__ = ["draw_sheet"]

_PAPER, _INK, _SOFT = "#fbfaf8", "#23211e", "#6b665f"
_CELL, _GAP, _LINE, _MARGIN, _HEAD = 128, 10, 15, 28, 74


def draw_sheet(ladder: Ladder) -> Image.Image:
    """Draw one row a picture and one column a rate; small pictures are enlarged by a whole number, without smoothing."""
    height, width = ladder.originals.shape[2:]
    factor = max(1, round(_CELL / max(height, width)))
    cell_w, cell_h = width * factor, height * factor
    lines = 1 + len(ladder.scores)
    step_x, step_y = max(cell_w, 96) + _GAP, cell_h + lines * _LINE + 2 * _GAP
    size = (2 * _MARGIN + (1 + len(ladder.rungs)) * step_x - _GAP, _MARGIN + _HEAD + len(ladder.paths) * step_y)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=20), ImageFont.load_default(size=12)
    draw.text((_MARGIN, _MARGIN - 8), heading(ladder), fill=_INK, font=large)
    titles = ["original", *[rung_text(ladder, rung) for rung in ladder.rungs]]
    for j, title in enumerate(titles):
        draw.text((_MARGIN + j * step_x, _MARGIN + _HEAD - 46), title, fill=_INK, font=small)
    for i, path in enumerate(ladder.paths):
        top = _MARGIN + _HEAD - 26 + i * step_y
        _paste(sheet, ladder.originals[i], (_MARGIN, top), factor)
        draw.text((_MARGIN, top + cell_h + 2), picture_name(path), fill=_INK, font=small)
        for j, rung in enumerate(ladder.rungs, start=1):
            left = _MARGIN + j * step_x
            _paste(sheet, rung.pictures[i], (left, top), factor)
            words = [f"{rung.bits_per_pixel:.3g} bits per pixel"]
            words += [_score_text(score.title, rung.of(score, i)) for score in ladder.scores]
            for line, text in enumerate(words):
                draw.text((left, top + cell_h + 2 + line * _LINE), text, fill=_SOFT, font=small)
    return sheet


def _score_text(title: str, value: str) -> str:
    if title == "PSNR, dB":
        return f"PSNR {value} dB"
    return f"{'distance' if title == 'feature distance' else title} {value}"


def _paste(sheet: Image.Image, picture: Tensor, place: tuple[int, int], factor: int) -> None:
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    sheet.paste(image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST), place)
