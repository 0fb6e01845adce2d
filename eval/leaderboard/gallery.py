"""What tokenizers and codecs make of pictures and recordings, at the rates that were measured or at all, as parts of a page.

Reconstructions are made when the site is built, by the code that made what was scored, from weights that ship with the package.
"""

import base64
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.baselines.pictures import PICTURE_CODECS
from eval.baselines.sounds import SOUND_CODECS, pyav
from eval.baselines.video import VIDEO_CODECS
from eval.clips import Clips
from eval.leaderboard.words import number
from eval.rates import Rate, at_rate, rate_text
from eval.results import Result
from eval.runner import Batch, Runner, batches, evaluation_mode, tensors_sha256
from eval.sheet import spectrogram
from eval.sound_runner import SoundBatch, SoundRunner, sound_batches
from eval.sounds import Sounds, SoundSelection, pcm16
from eval.video_runner import ClipBatch, VideoRunner, clip_batches
from recipes.data.corpus import Selection
from zoo.registry import Entry

__all__ = ["Gallery", "Media", "Shown", "Unavailable", "make_gallery", "webp_address"]

SECONDS = 4.0  # of a recording
FRAMES = 48  # of a clip
_LOSSLESS_UP_TO = 160  # pixels a side; larger pictures are stored with a little loss, to keep the page small
_BATCH = 8
_STEPS = 64  # of a slider, about; tokenizers with more rates show some of them
_BETWEEN = 90  # WebP quality of rates that were not measured


class Unavailable(ValueError):
    """Reconstructions cannot be made here; the text says why, for the page."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """A picture, a recording with its spectrogram, or a clip with its first frame.

    Attributes:
        picture: data address.
        sound: data address of a FLAC file; None for pictures and clips.
        clip: data address of a WebM file; None for pictures and recordings.
        said: rate and scores in words.
    """

    picture: str
    sound: str | None = None
    clip: str | None = None
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
        side: longer side of the pictures or frames in pixels; 0 for sound.
        between: some of the rates were not measured.
    """

    modality: str
    steps: Sequence[str]
    items: Sequence[Shown]
    side: int
    between: bool = False

    @property
    def lossless(self) -> bool:
        """Pictures are stored without loss; sounds always are, clips never."""
        return self.modality != "video" and self.side <= _LOSSLESS_UP_TO


Remake = Callable[[Any], Iterator[tuple[Any, Tensor, list[float]]]]  # batch -> for each rate: items, failed, bits


def make_gallery(result: Result, corpus: Any, numbers: Sequence[int], *, entry: Entry | None, between: bool = False) -> Gallery:
    """Reconstruct items of a corpus at every rate of a result.

    Args:
        result: a measured one; its protocol prepares the items.
        corpus: pictures, recordings or clips.
        numbers: of the items. Recordings and clips are cut to their first seconds.
        entry: of the catalog; None for codecs.
        between: also at the rates between, where the tokenizer has them: every number of tokens or levels. Not for clips.

    Raises:
        Unavailable: no weights in the package, other weights than were measured, or a package is missing.
    """
    sound = result.protocol.modality == "audio"
    between = between and result.protocol.modality != "video"
    measured = [dict(point.rate) for point in result.points]
    rates, remake = (measured, _codec(result)) if entry is None else _tokenizer(result, entry, between)
    if result.protocol.modality == "video":
        return _clip_gallery(result, corpus, numbers, remake)
    protocol: Any = result.protocol
    chosen = SoundSelection(corpus, numbers) if sound else Selection(corpus, numbers)
    read: Any = sound_batches if sound else batches
    steps = [rate_text(rate) for rate in rates]
    shown = []
    for batch in read(chosen, protocol, range(len(numbers)), _BATCH, 0):
        keys = [chosen.key(i) for i in batch.index.tolist()]
        batch = replace(batch, index=torch.tensor([numbers[i] for i in batch.index.tolist()]))  # each item's own noise
        if sound:
            batch = _shortened(batch)
        originals = list(batch.sounds.waves if sound else batch.pictures)
        again: list[list[Media | None]] = [[] for _ in originals]
        for rate, (items, failed, bits) in zip(rates, remake(batch), strict=True):
            for i, made in enumerate(items.waves if sound else items):
                bad = bool(failed[i]) or bool(batch.unreadable[i])
                said = f"{rate_text(rate)}, {number(bits[i])} {_unit(sound)}"
                again[i].append(None if bad else _media(made, originals[i], said, protocol, exact=rate in measured))
        shown += [
            Shown(key=key, original=_media(original, None, "original", protocol), again=row)
            for key, original, row in zip(keys, originals, again, strict=True)
        ]
    side = 0 if sound else max(protocol.size)
    return Gallery(modality=protocol.modality, steps=steps, items=shown, side=side, between=len(rates) > len(measured))


def _clip_gallery(result: Result, corpus: Any, numbers: Sequence[int], remake: "Remake") -> Gallery:
    """One clip at a time: they are large."""
    protocol: Any = result.protocol
    steps = [rate_text(dict(point.rate)) for point in result.points]
    shown = []
    for batch in clip_batches(corpus, protocol, numbers, 1, 0):
        original, rate = batch.items.frames[0][:FRAMES], batch.items.frame_rates[0]
        batch = replace(batch, items=Clips([original], [rate]))
        again: list[Media | None] = []
        for step, (clips, failed, bits) in zip(steps, remake(batch), strict=True):
            bad = bool(failed[0]) or bool(batch.unreadable[0])
            said = f"{step}, {number(bits[0])} {_unit(False)}"
            again.append(None if bad else _clip(clips.frames[0], original, rate, said))
        key = corpus.key(int(batch.index[0]))
        shown.append(Shown(key=key, original=_clip(original, None, rate, "original"), again=again))
    return Gallery(modality="video", steps=steps, items=shown, side=max(protocol.size))


def _unit(sound: bool) -> str:
    return "bit/s" if sound else "bit/px"


def _shortened(batch: SoundBatch) -> SoundBatch:
    rate = batch.sounds.sample_rate
    return replace(batch, sounds=Sounds([wave[: round(SECONDS * rate)] for wave in batch.sounds.waves], rate))


# -- who makes them --------------------------------------------------------------------------------------------------


def _tokenizer(result: Result, entry: Entry, between: bool) -> tuple[list[Rate], Remake]:
    import zoo

    if not entry.embedded:
        raise Unavailable(f"The weights of {entry.name} do not ship with the package, so that nothing was reconstructed here.")
    tokenizer = zoo.load(entry.name)
    if tensors_sha256(tokenizer) != result.weights_sha256:
        raise Unavailable(f"The weights of {entry.name} in the package are not those that were measured.")
    sound = result.protocol.modality == "audio"
    kind: Any = {"audio": SoundRunner, "video": VideoRunner, "image": Runner}[result.protocol.modality]
    runner = kind(tokenizer, result.protocol)
    measured = [dict(point.rate) for point in result.points]
    rates = _with_between(measured, tokenizer) if between else measured

    def remake(batch: Any) -> Iterator[tuple[Any, Tensor, list[float]]]:
        with evaluation_mode(tokenizer):
            tokens, failed = runner.encode(batch)
            for rate in rates:
                cut = at_rate(tokens, rate)
                items, broken = runner.decode(cut, batch)
                counted = runner.counted(cut, batch)
                bits = counted.bits_per_second() if sound else counted.bits_per_pixel()
                yield items, failed | broken, bits.tolist()

    return rates, remake


def _with_between(measured: list[Rate], tokenizer: Any) -> list[Rate]:
    """Rates of a result and those between them: all, or evenly chosen ones of a tokenizer with very many."""
    axis, spec = next(iter(measured[0]), ""), tokenizer.spec
    if axis == "tokens" and not spec.segments and tokenizer.info.tokens is not None:
        there = range(1, tokenizer.info.tokens + 1)
    elif axis == "depth":
        there = spec.depths
    else:
        return measured
    chosen = {*there[:: -(-len(there) // _STEPS)], *(rate[axis] for rate in measured)}
    return [{axis: k} for k in sorted(chosen)]


def _codec(result: Result) -> Remake:
    codecs: dict[str, Any] = {**PICTURE_CODECS, **VIDEO_CODECS, **SOUND_CODECS}
    codec = codecs.get(result.tokenizer)
    if codec is None or result.weights_sha256 is not None:
        raise Unavailable(f"{result.tokenizer} is neither in the catalog nor a codec, so that nothing was reconstructed here.")
    if result.protocol.modality == "audio":
        return lambda batch: _coded_sounds(codec, result, batch)
    if result.protocol.modality == "video":
        return lambda batch: _coded_clips(codec, result, batch)
    return lambda batch: _coded_pictures(codec, result, batch)


def _coded_pictures(codec: Any, result: Result, batch: Batch) -> Iterator[tuple[Tensor, Tensor, list[float]]]:
    for point in result.points:
        (setting,) = point.rate.values()
        try:
            coded = [codec.code(picture.permute(1, 2, 0).contiguous().numpy(), setting) for picture in batch.pictures]
        except ModuleNotFoundError as error:
            raise Unavailable(f"Nothing was reconstructed here: {error}.") from error
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


def _coded_clips(codec: Any, result: Result, batch: ClipBatch) -> Iterator[tuple[Clips, Tensor, list[float]]]:
    (frames,), (rate,) = batch.items.frames, batch.items.frame_rates
    for point in result.points:
        (setting,) = point.rate.values()
        try:
            coded, bits = codec.code(frames.permute(0, 2, 3, 1).contiguous().numpy(), rate, setting)
        except ModuleNotFoundError as error:
            raise Unavailable(f"Nothing was reconstructed here: {error}.") from error
        made = torch.from_numpy(coded).permute(0, 3, 1, 2).contiguous()
        yield Clips([made], [rate]), torch.zeros(1, dtype=torch.bool), [bits / (len(made) * made.shape[2] * made.shape[3])]


# -- what is put into the page ---------------------------------------------------------------------------------------


def _media(item: Tensor, original: Tensor | None, said: str, protocol: Any, *, exact: bool = True) -> Media:
    if protocol.modality == "audio":
        drawn = webp_address(spectrogram(item, protocol.sample_rate, seconds=SECONDS), lossless=False, quality=70)
        return Media(picture=drawn, sound=_flac(item, protocol.sample_rate), said=said)
    if original is not None:
        error = float((item.double() - original.double()).square().mean())
        psnr = 100.0 if error == 0 else min(100.0, 10 * math.log10(255**2 / error))
        said = f"{said}, PSNR {psnr:.1f} dB"
    image = Image.fromarray(item.permute(1, 2, 0).contiguous().numpy())
    lossless = exact and max(image.size) <= _LOSSLESS_UP_TO
    return Media(picture=webp_address(image, lossless=lossless, quality=92 if exact else _BETWEEN), said=said)


def _clip(frames: Tensor, original: Tensor | None, frame_rate: float, said: str) -> Media:
    if original is not None:
        errors = (frames.double() - original.double()).square().flatten(1).mean(1)
        psnr = (10 * torch.log10(255**2 / errors)).clamp(max=100.0).mean()
        said = f"{said}, PSNR {psnr:.1f} dB"
    arrays = frames.permute(0, 2, 3, 1).contiguous().numpy()
    first = webp_address(Image.fromarray(arrays[0]), lossless=False, quality=90)
    return Media(picture=first, clip=_webm(arrays, frame_rate), said=said)


def _webm(frames: np.ndarray, frame_rate: float) -> str:
    """VP9 of a quality at which little is lost: every browser plays it."""
    av = pyav("libvpx-vp9")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as file:
        options = {"crf": "16", "b": "0", "deadline": "good", "cpu-used": "4", "threads": "1"}
        stream = file.add_stream("libvpx-vp9", rate=Fraction(frame_rate).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    return _address("video/webm", buffer.getvalue())


def webp_address(image: Image.Image, *, lossless: bool, quality: int) -> str:
    """Give a picture as the data address of a WebP file."""
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
