"""Fundamental frequency of speech by autocorrelation: frame by frame, deterministic."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Pitch", "track_pitch"]

_LOW_HZ, _HIGH_HZ = 60.0, 500.0
_WINDOW, _HOP = 0.04, 0.01  # seconds
_DIP, _VOICED = 0.15, 0.25
_QUIET_DB = 40.0


class Pitch(NamedTuple):
    """One value for each 10 ms: `hz` `(frames,)` float64, and `voiced` `(frames,)` boolean."""

    hz: Tensor
    voiced: Tensor


def track_pitch(x: Tensor, sample_rate: int = 16000) -> Pitch:
    """Track the pitch of a waveform `(s,)`, 60 to 500 Hz.

    The first dip of the normalised difference below 0.15, else its lowest place, between parabolically interpolated lags. A frame
    is voiced where that place is below 0.25 and the frame at most 40 dB below the loudest one.

    Source: de Cheveigne and Kawahara 2002 (YIN), steps 1 to 5; checked on tones, glides and against Praat.
    """
    window, hop = round(_WINDOW * sample_rate), round(_HOP * sample_rate)
    least, most = int(sample_rate / _HIGH_HZ), int(sample_rate / _LOW_HZ) + 1
    length = window + most + 1
    x = F.pad(x.double(), (length // 2, length))
    frames = x.unfold(0, length, hop)
    frames = frames[: max(1, (len(x) - length - length // 2) // hop)]
    difference = _difference(frames, window, most + 1)
    mean = difference[:, 1:].cumsum(1) / torch.arange(1, most + 2, dtype=torch.float64)
    normal = torch.cat([torch.ones_like(mean[:, :1]), difference[:, 1:] / mean.clamp(min=1e-30)], 1)
    part = normal[:, least : most + 1]
    before, after = normal[:, least - 1 : most], normal[:, least + 1 : most + 2]
    dips = (part < _DIP) & (part <= before) & (part < after)
    chosen = torch.where(dips.any(1), dips.long().argmax(1), part.argmin(1))
    lag = chosen + least
    low, here, high = (normal.gather(1, (lag + shift)[:, None])[:, 0] for shift in (-1, 0, 1))
    curve = low - 2 * here + high
    shift = torch.where(curve > 1e-12, 0.5 * (low - high) / curve.clamp(min=1e-12), 0).clamp(-0.5, 0.5)
    power = frames[:, :window].square().mean(1)
    loud = (power > power.max() * 10 ** (-_QUIET_DB / 10)) & (power > 1e-10)
    return Pitch(sample_rate / (lag + shift), (here < _VOICED) & loud)


def _difference(frames: Tensor, window: int, most: int) -> Tensor:
    """Sum over the window of the squared difference to the frame shifted by each lag, `(frames, most + 1)`."""
    size = 1 << (frames.shape[1] + window).bit_length()
    head = frames[:, :window]
    product = torch.fft.irfft(torch.fft.rfft(frames, size) * torch.fft.rfft(head, size).conj(), size)[:, : most + 1]
    total = F.pad(frames.square().cumsum(1), (1, 0))
    energy = total[:, window : window + most + 1] - total[:, : most + 1]
    return (energy[:, :1] + energy - 2 * product).clamp(min=0)
