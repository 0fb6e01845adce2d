"""What tokenizers and codecs make of pictures and recordings, at every rate that was measured, as parts of a page.

Reconstructions are made when the site is built, by the code that made what was scored, from weights that ship with the package.
"""

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.baselines.pictures import PICTURE_CODECS
from eval.baselines.sounds import SOUND_CODECS
from eval.leaderboard.words import number
from eval.rates import at_rate, rate_text
from eval.results import Result
from eval.runner import Batch, Runner, batches, evaluation_mode, tensors_sha256
from eval.sheet import spectrogram
from eval.sound_runner import SoundBatch, SoundRunner, sound_batches
from eval.sounds import Sounds, SoundSelection, pcm16
from recipes.data.corpus import Selection
from zoo.registry import Entry

__all__ = ["Gallery", "Media", "Shown", "Unavailable", "make_gallery"]

SECONDS = 4.0  # of a recording
_LOSSLESS_UP_TO = 160  # pixels a side; larger pictures are stored with a little loss, to keep the page small
_BATCH = 8


class Unavailable(ValueError):
    """Reconstructions cannot be made here; the text says why, for the page."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """A picture, or a recording with its spectrogram.

    Attributes:
        picture: data address.
        sound: data address of a FLAC file; None for pictures.
        said: rate and scores in words.
    """

    picture: str
    sound: str | None = None
    said: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One item: the original, and its reconstruction at each rate; None where the decoder failed."""

    key: str
    original: Media
    again: Sequence[Media | None]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Some items at every rate of a result.

    Attributes:
        modality: of the result.
        steps: the rates in words, rising.
        items: in the order asked for.
        side: longer side of the pictures in pixels; 0 for sound.
    """

    modality: str
    steps: Sequence[str]
    items: Sequence[Shown]
    side: int

    @property
    def lossless(self) -> bool:
        """Pictures are stored without loss; sounds always are."""
        return self.side <= _LOSSLESS_UP_TO


Remake = Callable[[Any], Iterator[tuple[Any, Tensor, list[float]]]]  # batch -> for each rate: items, failed, bits


def make_gallery(result: Result, corpus: Any, numbers: Sequence[int], *, entry: Entry | None) -> Gallery:
    """Reconstruct items of a corpus at every rate of a result.

    Args:
        result: a measured one; its protocol prepares the items.
        corpus: pictures or recordings.
        numbers: of the items. Recordings are cut to their first seconds.
        entry: of the catalog; None for codecs.

    Raises:
        Unavailable: no weights in the package, other weights than were measured, or a package is missing.
    """
    sound = result.protocol.modality == "audio"
    remake = _codec(result) if entry is None else _tokenizer(result, entry)
    protocol: Any = result.protocol
    chosen = SoundSelection(corpus, numbers) if sound else Selection(corpus, numbers)
    read: Any = sound_batches if sound else batches
    steps = [rate_text(dict(point.rate)) for point in result.points]
    shown = []
    for batch in read(chosen, protocol, range(len(numbers)), _BATCH, 0):
        keys = [chosen.key(i) for i in batch.index.tolist()]
        batch = replace(batch, index=torch.tensor([numbers[i] for i in batch.index.tolist()]))  # each item's own noise
        if sound:
            batch = _shortened(batch)
        originals = list(batch.sounds.waves if sound else batch.pictures)
        again: list[list[Media | None]] = [[] for _ in originals]
        for step, (items, failed, bits) in zip(steps, remake(batch), strict=True):
            for i, made in enumerate(items.waves if sound else items):
                bad = bool(failed[i]) or bool(batch.unreadable[i])
                again[i].append(None if bad else _media(made, originals[i], f"{step}, {number(bits[i])} {_unit(sound)}", protocol))
        shown += [
            Shown(key=key, original=_media(original, None, "original", protocol), again=row)
            for key, original, row in zip(keys, originals, again, strict=True)
        ]
    return Gallery(modality=result.protocol.modality, steps=steps, items=shown, side=0 if sound else max(protocol.size))


def _unit(sound: bool) -> str:
    return "bit/s" if sound else "bit/px"


def _shortened(batch: SoundBatch) -> SoundBatch:
    rate = batch.sounds.sample_rate
    return replace(batch, sounds=Sounds([wave[: round(SECONDS * rate)] for wave in batch.sounds.waves], rate))


# -- who makes them --------------------------------------------------------------------------------------------------


def _tokenizer(result: Result, entry: Entry) -> Remake:
    import zoo

    if not entry.embedded:
        raise Unavailable(f"The weights of {entry.name} do not ship with the package, so that nothing was reconstructed here.")
    tokenizer = zoo.load(entry.name)
    if tensors_sha256(tokenizer) != result.weights_sha256:
        raise Unavailable(f"The weights of {entry.name} in the package are not those that were measured.")
    sound = result.protocol.modality == "audio"
    runner: Any = (SoundRunner if sound else Runner)(tokenizer, result.protocol)  # type: ignore[arg-type]  # of the modality

    def remake(batch: Any) -> Iterator[tuple[Any, Tensor, list[float]]]:
        with evaluation_mode(tokenizer):
            tokens, failed = runner.encode(batch)
            for point in result.points:
                cut = at_rate(tokens, dict(point.rate))
                items, broken = runner.decode(cut, batch)
                bits = cut.bits_per_second() if sound else cut.bits_per_pixel()
                yield items, failed | broken, bits.tolist()

    return remake


def _codec(result: Result) -> Remake:
    codecs: dict[str, Any] = {**PICTURE_CODECS, **SOUND_CODECS}
    codec = codecs.get(result.tokenizer)
    if codec is None or result.weights_sha256 is not None:
        raise Unavailable(f"{result.tokenizer} is neither in the catalog nor a codec, so that nothing was reconstructed here.")
    if result.protocol.modality == "audio":
        return lambda batch: _coded_sounds(codec, result, batch)
    return lambda batch: _coded_pictures(codec, result, batch)


def _coded_pictures(codec: Any, result: Result, batch: Batch) -> Iterator[tuple[Tensor, Tensor, list[float]]]:
    for point in result.points:
        (setting,) = point.rate.values()
        coded = [codec.code(picture.permute(1, 2, 0).contiguous().numpy(), setting) for picture in batch.pictures]
        pictures = torch.from_numpy(np.stack([array for array, _ in coded])).permute(0, 3, 1, 2)
        pixels = batch.pictures.shape[2] * batch.pictures.shape[3]
        yield pictures, torch.zeros(len(coded), dtype=torch.bool), [bits / pixels for _, bits in coded]


def _coded_sounds(codec: Any, result: Result, batch: SoundBatch) -> Iterator[tuple[Sounds, Tensor, list[float]]]:
    sounds = batch.sounds
    for point in result.points:
        (setting,) = point.rate.values()
        try:
            coded = [codec.code(wave, sounds.sample_rate, setting) for wave in sounds.waves]
        except ModuleNotFoundError as error:
            raise Unavailable(f"Nothing was reconstructed here: {error}.") from error
        bits = [amount * sounds.sample_rate / len(wave) for (_, amount), wave in zip(coded, sounds.waves, strict=True)]
        yield Sounds([pcm16(wave) for wave, _ in coded], sounds.sample_rate), torch.zeros(len(coded), dtype=torch.bool), bits


# -- what is put into the page ---------------------------------------------------------------------------------------


def _media(item: Tensor, original: Tensor | None, said: str, protocol: Any) -> Media:
    if protocol.modality == "audio":
        drawn = _webp(spectrogram(item, protocol.sample_rate, seconds=SECONDS), lossless=False, quality=70)
        return Media(picture=drawn, sound=_flac(item, protocol.sample_rate), said=said)
    if original is not None:
        error = float((item.double() - original.double()).square().mean())
        psnr = 100.0 if error == 0 else min(100.0, 10 * math.log10(255**2 / error))
        said = f"{said}, PSNR {psnr:.1f} dB"
    image = Image.fromarray(item.permute(1, 2, 0).contiguous().numpy())
    return Media(picture=_webp(image, lossless=max(image.size) <= _LOSSLESS_UP_TO, quality=92), said=said)


def _webp(image: Image.Image, *, lossless: bool, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=100 if lossless else quality, method=4)
    return _address("image/webp", buffer.getvalue())


def _flac(wave: Tensor, sample_rate: int) -> str:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, wave.numpy(), sample_rate, format="FLAC", subtype="PCM_16")
    return _address("audio/flac", buffer.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
