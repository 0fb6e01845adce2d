"""A sheet: originals and their reconstructions at every rate, with what each row is written beside it.

Sounds are drawn as spectrograms. Of a clip a row holds frames of the original, and the rows below those of the reconstructions.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from eval.clips import Clips
from eval.rates import at_rate, rate_text
from eval.results import Result, write_atomic
from eval.runner import Runner, batches, evaluation_mode
from eval.scorers import RECORDS
from recipes.data.corpus import Selection
from zoo.tokenizer import Tokenizer

__all__ = ["SheetRow", "draw_sheet", "item_sheet", "save_sheet", "spectrogram"]

_WORST = 5
_FILM = 6  # frames of a clip
_CELL = 96  # pictures smaller than this are enlarged by a whole number
_GAP = 6
_LINE = 14


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One row of the sheet.

    Attributes:
        label: written above the pictures.
        pictures: the original first, then one for each rate; None where the reconstruction failed.
    """

    label: str
    pictures: Sequence[Image.Image | None]


def draw_sheet(columns: Sequence[str], rows: Sequence[SheetRow]) -> Image.Image:
    """Draw rows of pictures under the names of the columns; small pictures are enlarged without smoothing.

    Raises:
        ValueError: no rows, or a row with another number of pictures than columns.
    """
    if not rows:
        raise ValueError("draw_sheet: there are no rows. Give at least one.")
    wrong = [row for row in rows if len(row.pictures) != len(columns)]
    if wrong:
        raise ValueError(f"draw_sheet: row {wrong[0].label!r} has {len(wrong[0].pictures)} pictures for {len(columns)} columns.")
    sizes = [picture.size for row in rows for picture in row.pictures if picture is not None]
    width, height = (max(sides) for sides in zip(*sizes, strict=True)) if sizes else (_CELL, _CELL)
    factor = max(1, -(-_CELL // max(width, height)))
    width, height = width * factor, height * factor
    sheet = Image.new(
        "RGB",
        (len(columns) * (width + _GAP) + _GAP, _LINE + _GAP + len(rows) * (height + _LINE + _GAP)),
        "white",
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for i, column in enumerate(columns):
        draw.text((_GAP + i * (width + _GAP), 2), column, fill="black", font=font)
    for j, row in enumerate(rows):
        top = _LINE + _GAP + j * (height + _LINE + _GAP)
        draw.text((_GAP, top), row.label, fill="black", font=font)
        for i, picture in enumerate(row.pictures):
            place = (_GAP + i * (width + _GAP), top + _LINE)
            if picture is None:
                draw.rectangle((*place, place[0] + width - 1, place[1] + height - 1), outline="red")
                draw.text((place[0] + 4, place[1] + 4), "failed", fill="red", font=font)
            else:
                size = (picture.width * factor, picture.height * factor)
                sheet.paste(picture.resize(size, Image.Resampling.NEAREST), place)
    return sheet


def save_sheet(sheet: Image.Image, path: str | Path) -> Path:
    """Write a PNG, beside its place and then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())
    return path


def item_sheet(tokenizer: Tokenizer, corpus: Any, result: Result, *, first: int = 8, batch_size: int = 8) -> Image.Image:
    """Draw originals and reconstructions at every rate: the first items, and the five worst by the first per-item score.

    The items are encoded again; with the same corpus and the result's protocol they give what was scored.

    Args:
        tokenizer: the one that was measured.
        corpus: the one that was measured.
        result: of it, with `items`.
        first: how many items from the start.
        batch_size: items at once.

    Returns:
        A PIL image.
    """
    score, worst = _worst(result)
    numbers = [*range(min(first, result.dataset.count)), *worst]
    labels = [f"{number}: {corpus.key(number)}" for number in numbers]
    for place, value in enumerate(worst.values(), start=len(numbers) - len(worst)):
        labels[place] = f"worst by {score} ({value:.4g}) - {labels[place]}"
    rates = [dict(point.rate) for point in result.points]
    runner, read, chosen = _room(tokenizer, result, corpus, numbers)
    rows: list[list[Any]] = [[] for _ in numbers]
    with evaluation_mode(tokenizer):
        start = 0
        for batch in read(chosen, result.protocol, range(len(numbers)), batch_size, 0):
            tokens, failed = runner.encode(batch)
            batch = replace(batch, index=torch.tensor([numbers[i] for i in batch.index.tolist()]))
            _append(rows, start, batch.items, batch.unreadable)
            for rate in rates:
                items, broken = runner.decode(at_rate(tokens, rate), batch)
                _append(rows, start, items, failed | broken)
            start += len(batch.index)
    columns = ["original", *(rate_text(rate) for rate in rates)]
    if result.protocol.modality == "video":
        return _film_sheet(columns, labels, rows)
    return draw_sheet(columns, [SheetRow(label=label, pictures=row) for label, row in zip(labels, rows, strict=True)])


def _film_sheet(names: Sequence[str], labels: Sequence[str], rows: Sequence[Sequence[Any]]) -> Image.Image:
    """Draw clips: frames from start to end beside each other, the original above its reconstructions."""
    columns = [f"{100 * i // (_FILM - 1)} %" for i in range(_FILM)]
    out = []
    for label, strips in zip(labels, rows, strict=True):
        for name, strip in zip(names, strips, strict=True):
            pictures = [None] * _FILM if strip is None else strip
            out.append(SheetRow(label=f"{label} - {name}" if name == names[0] else name, pictures=pictures))
    return draw_sheet(columns, out)


def _film(frames: Tensor) -> list[Image.Image]:
    """Pick frames from the first to the last of uint8 `(t, 3, h, w)`."""
    numbers = [round(i * (len(frames) - 1) / (_FILM - 1)) for i in range(_FILM)]
    return [Image.fromarray(frames[number].permute(1, 2, 0).cpu().numpy()) for number in numbers]


def _worst(result: Result) -> tuple[str, dict[int, float]]:
    """Give the first per-item score of pictures, and the items that it finds worst at the last rate, the worst first."""
    score = next((name for name in result.protocol.scorers if RECORDS[name].kind == "item"), None)
    if score is None:
        return "", {}
    last = rate_text(dict(result.points[-1].rate))
    rows = [(row.scores[score], row.item) for row in result.items if row.rate == last and not math.isnan(row.scores[score])]
    rows.sort(reverse=RECORDS[score].better == "lower")
    return score, {item: value for value, item in rows[:_WORST]}


def _room(tokenizer: Tokenizer, result: Result, corpus: Any, numbers: list[int]) -> tuple[Any, Any, Any]:
    """Give runner, reader and the chosen items of a modality."""
    if result.protocol.modality == "image":
        return Runner(tokenizer, result.protocol), batches, Selection(corpus, numbers)
    if result.protocol.modality == "video":
        from eval.video_runner import VideoRunner, clip_batches

        return VideoRunner(tokenizer, result.protocol), clip_batches, corpus.select(numbers)
    from eval.sound_runner import SoundRunner, sound_batches
    from eval.sounds import SoundSelection

    return SoundRunner(tokenizer, result.protocol), sound_batches, SoundSelection(corpus, numbers)


def _append(rows: list[list[Any]], start: int, items: Any, failed: Tensor) -> None:
    if isinstance(items, Tensor):
        drawn: list[Any] = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in items.cpu()]
    elif isinstance(items, Clips):
        drawn = [_film(frames) for frames in items.frames]
    else:
        drawn = [spectrogram(wave, items.sample_rate) for wave in items.waves]
    for i, (picture, bad) in enumerate(zip(drawn, failed.tolist(), strict=True)):
        rows[start + i].append(None if bad else picture)


_SOUND_SIZE = (256, 128)  # frames, bands
_SOUND_SECONDS = 4.0
_DECIBELS = 80.0


def spectrogram(wave: Tensor, sample_rate: int, *, seconds: float = _SOUND_SECONDS) -> Image.Image:
    """Draw the first seconds of a waveform `(s,)`: time to the right, 128 mel bands to half the rate upwards.

    White is the full scale of a sine, black 80 dB less: the same for all pictures, so that loudness can be compared.
    """
    from eval.scorers.audio.mels import slaney_bank

    frames, bands = _SOUND_SIZE
    wave = wave[: round(seconds * sample_rate)].double()
    wave = torch.nn.functional.pad(wave, (0, round(seconds * sample_rate) - len(wave)))
    window = 1024
    taper = torch.hann_window(window, dtype=torch.float64)
    hop = max(1, len(wave) // frames)
    bank = slaney_bank(window, bands, sample_rate)
    bank = bank / bank.sum(0).clamp(min=1e-12)
    power = torch.stft(wave, window, hop, window=taper, pad_mode="constant", return_complex=True).abs().square()[:, :frames]
    decibels = 10 * (bank.T @ power / (window / 4) ** 2).clamp(min=1e-20).log10()
    grey = ((decibels / _DECIBELS + 1).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(grey.flip(0).numpy()).convert("RGB")
