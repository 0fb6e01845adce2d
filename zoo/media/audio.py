"""Sounds as people have them, to tensors and back: files through soundfile, rates through torchaudio.

Whole sounds (`read_sounds`, `write_sound`) and endless ones at constant memory (`sound_chunks`, `SoundWriter`) give equal values.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from zoo.media.containers import check_complete
from zoo.whole_files import whole_file

__all__ = ["SOUND_ENDINGS", "SoundWriter", "read_sounds", "sound_chunks", "sound_length", "to_arrays", "write_sound"]

_OVERSHOOT = 1e-3
_LOUDEST = 4.0  # 12 dB above full scale: more is no headroom of a lossy file but another range
_LARGEST_FILTER = 1 << 26  # numbers in the table of filters; two rates without a common divisor need one for each pair of samples
_BLOCK = 1 << 16  # frames read or written at once
_ENCODINGS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".aiff": ("AIFF", "PCM_16"),
    ".aif": ("AIFF", "PCM_16"),
}
SOUND_ENDINGS = tuple(_ENCODINGS)
"""Endings of the names of files that can be written."""


# -- reading -----------------------------------------------------------------------------------------------------------------------


def read_sounds(source: Any, *, sample_rate: int | None, target_rate: int, channels: int) -> Tensor:
    """Turn a sound or a list of sounds into `(b, channels, samples)` float32 in [-1, 1] at the rate of a model.

    Args:
        source: path; array or tensor `(samples,)` or `(channels, samples)`, floating point in [-1, 1] or 8-, 16- or 32-bit
            integers; a batch `(b, channels, samples)`; or a list of these.
        sample_rate: of arrays and tensors, samples per second. A file knows its own; a number that differs from it is refused.
        target_rate: samples per second wanted.
        channels: wanted. One channel is copied to all, several are averaged to one.

    Returns:
        Resampled to `ceil(samples * target_rate / sample_rate)`; what the filter of the resampling lifts above full scale is
        clamped, as a player does.

    Raises:
        TypeError: something that is no sound.
        ValueError: no such file, a damaged or cut one, no sample, NaN, another range, a sample rate that is missing or wrong,
            channels that do not map, or sounds of unequal length in one list.
    """
    is_list = isinstance(source, list | tuple) or (isinstance(source, Tensor | np.ndarray) and source.ndim == 3)
    items = list(source) if is_list else [source]
    if not items:
        raise ValueError("preprocess: the list of sounds is empty. Give at least one.")
    sounds = [_read(item, sample_rate, target_rate, channels) for item in items]
    lengths = {sound.shape[1] for sound in sounds}
    if len(lengths) > 1:
        advice = "Give encode() a list: [tok.preprocess(sound)[0] for sound in sounds]"
        raise ValueError(f"preprocess: sounds of {len(lengths)} lengths ({min(lengths)} to {max(lengths)} samples). {advice}.")
    return torch.stack(sounds)


def _read(source: Any, sample_rate: int | None, target_rate: int, channels: int) -> Tensor:
    """One sound, `(channels, samples)`."""
    if isinstance(source, str | Path):
        return torch.cat(list(sound_chunks(source, target_rate=target_rate, channels=channels, sample_rate=sample_rate)), 2)[0]
    x = _to_float(source)
    if sample_rate is None:
        raise ValueError(f"preprocess: an array without sample_rate=. Say its samples per second, such as {target_rate}.")
    rate = _check_rate("sample_rate", sample_rate)
    return torch.cat(list(_resampled(iter([_mixed(x, channels)]), rate, target_rate)), 1)


def _to_float(source: Any) -> Tensor:
    """Turn an array or a tensor into `(channels, samples)` float32 in [-1, 1]."""
    if isinstance(source, np.ndarray):
        if source.dtype.kind not in "iuf":
            raise ValueError(f"preprocess: array of dtype {source.dtype}. Needed: floating point, or 8-, 16- or 32-bit integers.")
        source = torch.from_numpy(np.ascontiguousarray(source))
    if not isinstance(source, Tensor):
        raise TypeError(f"preprocess: {type(source).__name__} is no sound. Give a path, an array or a tensor.")
    shape = tuple(source.shape)
    x = source.detach().cpu()
    x = x[None] if x.ndim == 1 else x
    if x.ndim != 2:
        raise ValueError(f"preprocess: sound of shape {shape}. Needed: (samples,) or (channels, samples).")
    if not x.numel():
        raise ValueError(f"preprocess: sound of shape {shape}. At least one sample is needed.")
    if len(x) > 16:
        raise ValueError(f"preprocess: sound of shape {shape} has {len(x)} channels. Needed: (channels, samples); transpose it.")
    if not x.is_floating_point():
        scales = {torch.uint8: (128, 128), torch.int16: (0, 1 << 15), torch.int32: (0, 1 << 31)}
        if x.dtype not in scales:
            raise ValueError(f"preprocess: sound of dtype {x.dtype}. Needed: floating point, uint8, int16 or int32.")
        middle, scale = scales[x.dtype]
        return ((x.double() - middle) / scale).float()
    low, high = (float(value) for value in torch.aminmax(x))
    if not (low >= -1 - _OVERSHOOT and high <= 1 + _OVERSHOOT):
        advice = "divide 16-bit values by 32768, or clamp"
        raise ValueError(f"preprocess: sound that reaches from {low:.4g} to {high:.4g}. Allowed: [-1, 1], no NaN; {advice}.")
    return x.float().clamp(-1, 1)


def _check_rate(argument: str, rate: Any) -> int:
    """A sample rate is a whole number of at least 1."""
    whole = isinstance(rate, int | float | np.integer) and not isinstance(rate, bool) and math.isfinite(rate) and rate == int(rate)
    if not whole or rate < 1:
        raise ValueError(f"preprocess: {argument}={rate!r}. Needed: samples per second, a whole number of at least 1.")
    return int(rate)


def _mixed(x: Tensor, channels: int) -> Tensor:
    """Bring `(c, samples)` to the number of channels that a model wants."""
    found = len(x)
    if found == channels:
        return x
    if channels == 1:
        return x.mean(0, keepdim=True)
    if found == 1:
        return x.expand(channels, -1)
    raise ValueError(f"preprocess: a sound of {found} channels for a model of {channels}. Needed: {channels}, or 1 to copy.")


def _open(path: str | Path, sample_rate: int | None) -> Any:
    """Open a file; its sample rate must be the declared one."""
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"preprocess: no file {path}. Give a sound, or a list of sounds.")
    try:
        file = soundfile.SoundFile(path)
    except soundfile.SoundFileError as error:
        raise ValueError(f"preprocess: {path} is not a readable sound ({error}). Read are wav, flac, ogg, mp3 and aiff.") from error
    try:
        check_complete(path)
        if sample_rate is not None and _check_rate("sample_rate", sample_rate) != file.samplerate:
            said = f"sample_rate={sample_rate}, but the file has {file.samplerate} samples per second"
            raise ValueError(f"preprocess: {path}: {said}. Leave it out for files.")
    except ValueError:
        file.close()
        raise
    return file


def sound_length(path: str | Path, *, target_rate: int) -> int:
    """Samples that the file has at the rate of a model, by its header.

    Raises:
        ValueError: no such file, or a damaged or cut one.
    """
    with _open(path, None) as file:
        return -(-file.frames * target_rate // file.samplerate)


def sound_chunks(
    path: str | Path, *, target_rate: int, channels: int, sample_rate: int | None = None, seconds: float = 5.0
) -> Iterator[Tensor]:
    """Read a file in chunks `(1, channels, n)` of about so many seconds; joined they are what `read_sounds` gives.

    Args:
        path: wav, flac, ogg, mp3 or aiff.
        target_rate: samples per second wanted.
        channels: wanted, as for `read_sounds`.
        sample_rate: what the file is said to have; refused where it is wrong.
        seconds: of a chunk; memory is that of a few of them.

    Raises:
        ValueError: as `read_sounds`; a file whose damage lies further on is refused when it is reached.
    """
    with _open(path, sample_rate) as file:
        blocks = (_mixed(x, channels) for x in _blocks(file, Path(path), max(1, int(seconds * file.samplerate))))
        for x in _resampled(blocks, file.samplerate, target_rate):
            yield x[None]


def _blocks(file: Any, path: Path, size: int) -> Iterator[Tensor]:
    """Raw samples `(c, n)` float32 of an open file."""
    import soundfile

    read = 0
    while True:
        try:
            block = file.read(size, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise ValueError(f"preprocess: {path} is damaged after {read} samples ({error}).") from error
        if not len(block):
            break
        read += len(block)
        peak = float(np.abs(block).max())
        if not peak <= _LOUDEST:  # NaN included
            raise ValueError(f"preprocess: {path} holds the value {peak:.4g}. Allowed: [-1, 1], no NaN.")
        yield torch.from_numpy(block.T.copy())
    if read < file.frames:
        raise ValueError(f"preprocess: {path} is cut short: {read:,} samples of {file.frames:,} are there.")
    if not read:
        raise ValueError(f"preprocess: {path} holds no sample. Give a sound that lasts.")


def _resampled(blocks: Iterator[Tensor], rate: int, target_rate: int) -> Iterator[Tensor]:
    """Change the rate of stretches `(c, n)` of one sound: each output sample is computed from its whole neighbourhood.

    With the common divisor taken out, `old` input samples stand for `new` output ones; a stretch is a multiple of `old` and gets so
    many samples more on both sides as the filter reaches.
    """
    divisor = math.gcd(rate, target_rate)
    old, new = rate // divisor, target_rate // divisor
    if old == new:
        for block in blocks:
            yield block.clamp(-1, 1)
        return
    reach = math.ceil(6 * old / (min(old, new) * 0.99))  # half width of the filter, in input samples
    if new * (2 * reach + old) > _LARGEST_FILTER:
        advice = f"resample to a rate with a larger common divisor with {target_rate}, such as 48000, first"
        raise ValueError(f"preprocess: {rate} to {target_rate} samples per second needs {new} filters. Allowed: fewer; {advice}.")
    from torchaudio.functional import resample

    margin = (reach // old + 2) * old
    held, before, taken, given = torch.empty(0), 0, 0, 0  # `before`: samples at the start of `held` that are only context
    for block in blocks:
        held = block if not held.numel() else torch.cat([held, block], 1)
        taken += block.shape[1]
        ready = (held.shape[1] - before - margin) // old * old
        if ready < old:
            continue
        y = resample(held[:, : before + ready + margin], rate, target_rate)
        y = y[:, before // old * new : (before + ready) // old * new]
        given += y.shape[1]
        yield y.clamp(-1, 1)
        keep = min(margin, before + ready)
        held, before = held[:, before + ready - keep :].clone(), keep
    wanted = -(-taken * new // old)
    y = resample(held, rate, target_rate)[:, before // old * new :][:, : wanted - given]
    if y.shape[1]:
        yield y.clamp(-1, 1)


# -- writing -----------------------------------------------------------------------------------------------------------------------


def to_arrays(x: Tensor) -> list[np.ndarray]:
    """Turn `(b, c, samples)` into float32 arrays `(c, samples)`, clamped to [-1, 1].

    Raises:
        ValueError: another rank, no sample, or NaN.
    """
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"postprocess: tensor of shape {tuple(x.shape)}. Needed: (b, channels, samples), each at least 1.")
    if bool(x.isnan().any()):
        raise ValueError("postprocess: the tensor holds NaN, so it is no sound.")
    return list(x.detach().float().clamp(-1, 1).cpu().numpy())


class SoundWriter:
    """Write chunks `(1, c, n)` into a file that is there only when all is written: a context, whose errors leave nothing behind.

    Args:
        path: ends in one of `SOUND_ENDINGS`; wav, flac and aiff hold 16 bits.
        sample_rate: samples per second.
        channels: of every chunk.

    Raises:
        ValueError: another ending, or a rate that the format does not have.
    """

    def __init__(self, path: str | Path, *, sample_rate: int, channels: int) -> None:
        self.path, self.sample_rate, self.channels = Path(path), _check_rate("sample_rate", sample_rate), channels
        if self.path.suffix.lower() not in _ENCODINGS:
            endings = ", ".join(SOUND_ENDINGS)
            raise ValueError(f"SoundWriter: {self.path} ends in {self.path.suffix or 'nothing'}. Allowed: {endings}.")
        self._stack = ExitStack()
        self._written = 0

    def __enter__(self) -> Self:
        import soundfile

        temporary = self._stack.enter_context(whole_file(self.path))
        form, encoding = _ENCODINGS[self.path.suffix.lower()]
        try:
            self._file = self._stack.enter_context(
                soundfile.SoundFile(temporary, "w", self.sample_rate, self.channels, subtype=encoding, format=form)
            )
        except soundfile.SoundFileError as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise ValueError(
                f"SoundWriter: {self.path}: this format takes no {self.channels} channels at {self.sample_rate} samples per second "
                f"({error}). Use .wav or .flac."
            ) from error
        return self

    def write(self, x: Tensor) -> None:
        """Append a chunk.

        Raises:
            ValueError: another shape, or NaN.
        """
        if x.ndim != 3 or tuple(x.shape[:2]) != (1, self.channels):
            raise ValueError(f"SoundWriter.write: chunk of shape {tuple(x.shape)}. Needed: (1, {self.channels}, n).")
        (samples,) = to_arrays(x)
        for start in range(0, samples.shape[1], _BLOCK):
            self._file.write(samples[:, start : start + _BLOCK].T)
        self._written += samples.shape[1]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and not self._written:
            error = ValueError(f"SoundWriter: nothing was written to {self.path}. Write at least one sample.")
            self._stack.__exit__(ValueError, error, None)
            raise error
        self._stack.__exit__(kind, error, trace)


def write_sound(x: Tensor, path: str | Path, *, sample_rate: int) -> None:
    """Write `(1, c, samples)` in [-1, 1] to a file that is whole or not there.

    Raises:
        ValueError: another shape, NaN, an ending that is none of `SOUND_ENDINGS`, or a rate that the format does not have.
    """
    if x.ndim != 3 or len(x) != 1:
        raise ValueError(f"postprocess: {len(x) if x.ndim else 0} sounds for one file {path}. Give one item, such as x[:1].")
    with SoundWriter(path, sample_rate=sample_rate, channels=x.shape[1]) as writer:
        writer.write(x)
