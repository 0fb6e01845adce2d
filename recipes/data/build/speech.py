"""Decode the recordings of the packages to 16 kHz mono, and encode them as the speech pack stores them.

Checked against the pack: FLAC files come out equal in every sample. Vorbis bytes differ from one run to the next, because
libsndfile draws the serial number of each Ogg stream.
"""

import io
from types import ModuleType

import numpy as np

__all__ = ["SAMPLE_RATE", "SpeechError", "decode", "encode_flac", "encode_vorbis"]

SAMPLE_RATE = 16000
VORBIS_LEVEL = 0.28  # compression_level of libsndfile, 0 (best) to 1: about 7 KB/s
_WIDTH, _ROLLOFF = 64, 0.95
_PEAK = 0.999
_INSTALL = "Install what sounds need: pip install 'tokenizer-zoo[audio,video]'."


class SpeechError(ValueError):
    """A recording that cannot be decoded."""


def decode(data: bytes, file: str) -> tuple[np.ndarray, int]:
    """Decode a recording: channels averaged, resampled by a windowed sinc, level and ends as they are.

    A sound whose peak is then above 0.999 is scaled down to that peak, as in the pack.

    Args:
        data: content of the file.
        file: its name: `.g722` is read as a raw stream of 64 kbit/s at 16 kHz, all else by libsndfile.

    Returns:
        Samples `(s,)` float32 at 16 kHz in [-1, 1], and the rate of the file in Hz.

    Raises:
        SpeechError: not a sound, or an empty one.
        ModuleNotFoundError: PyAV (for G.722) or soundfile is missing.
    """
    x, rate = _decode_g722(data, file) if file.endswith(".g722") else _decode_sndfile(data, file)
    if not x.size:
        raise SpeechError(f"decode: {file} holds no samples. Take the package of the lock list.")
    x = x.mean(axis=1)
    if rate != SAMPLE_RATE:
        import torch
        from torchaudio.functional import resample

        x = resample(torch.from_numpy(x), rate, SAMPLE_RATE, lowpass_filter_width=_WIDTH, rolloff=_ROLLOFF).numpy()
    return x * (_PEAK / max(_PEAK, float(np.abs(x).max()))), rate


def _decode_g722(data: bytes, file: str) -> tuple[np.ndarray, int]:
    """Return `(s, 1)` float32 and the rate."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"decode: package av is not installed, which reads {file}. {_INSTALL}") from error
    try:
        with av.open(io.BytesIO(data), format="g722") as container:
            rate = container.streams.audio[0].rate
            pieces = [frame.to_ndarray() for frame in container.decode(audio=0)]
    except av.FFmpegError as error:
        raise SpeechError(f"decode: {file} is no G.722 stream ({error}). Take the package of the lock list.") from error
    whole = np.concatenate(pieces, axis=1) if pieces else np.zeros((1, 0), np.int16)
    return whole.T.astype(np.float32) / 32768, rate


def _decode_sndfile(data: bytes, file: str) -> tuple[np.ndarray, int]:
    """Return `(s, c)` float32 and the rate."""
    soundfile = _soundfile()
    try:
        return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise SpeechError(f"decode: {file} is no sound ({error}). Take the package of the lock list.") from error


def encode_flac(x: np.ndarray) -> bytes:
    """Encode samples `(s,)` in [-1, 1] at 16 kHz as 16-bit FLAC; full scale is 32767, rounded to nearest."""
    return _encode(np.rint(np.clip(x, -1, 1) * 32767).astype(np.int16), format="FLAC", subtype="PCM_16")


def encode_vorbis(x: np.ndarray) -> bytes:
    """Encode samples `(s,)` in [-1, 1] at 16 kHz as Ogg Vorbis of about 7 KB/s."""
    return _encode(x.astype(np.float32), format="OGG", subtype="VORBIS", compression_level=VORBIS_LEVEL)


def _encode(x: np.ndarray, **settings: str | float) -> bytes:
    buffer = io.BytesIO()
    _soundfile().write(buffer, x, SAMPLE_RATE, **settings)
    return buffer.getvalue()


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"build: package soundfile is not installed. {_INSTALL}") from error
    return soundfile
