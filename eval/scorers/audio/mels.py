"""Mel bands as librosa and most codecs define them."""

import math

import torch
from torch import Tensor

__all__ = ["slaney_bank"]

_LINEAR_HZ = 200 / 3  # one mel below 1 kHz
_KNEE_HZ = 1000.0
_STEP = math.log(6.4) / 27  # of the logarithm of the frequency, for one mel above 1 kHz


def _to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _KNEE_HZ else _KNEE_HZ / _LINEAR_HZ + math.log(hz / _KNEE_HZ) / _STEP


def _to_hz(mel: Tensor) -> Tensor:
    knee = _KNEE_HZ / _LINEAR_HZ
    return torch.where(mel < knee, mel * _LINEAR_HZ, _KNEE_HZ * torch.exp((mel - knee).clamp(min=0) * _STEP))


def slaney_bank(window: int, bands: int, sample_rate: int) -> Tensor:
    """Triangles of unit area in Hz over the bins of a transform of `window` samples, `(window // 2 + 1, bands)` float64.

    The bands reach from 0 to half the rate. A band narrower than the bins may be empty. An odd window has its bins at their true
    places (torchaudio's bank, which is equal for even ones, stretches them).

    Source: Slaney's Auditory Toolbox, as in librosa; checked against both.
    """
    edges = _to_hz(torch.linspace(0, _to_mel(sample_rate / 2), bands + 2, dtype=torch.float64))
    bins = torch.arange(window // 2 + 1, dtype=torch.float64) * sample_rate / window
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - low) / (middle - low)
    falling = (high - bins[:, None]) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)
