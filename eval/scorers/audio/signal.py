"""Distances of waveforms and of their spectra. No package is needed."""

import math
from functools import cache

import torch
from torch import Tensor

from eval.scorers.audio.base import SoundScorer
from eval.scorers.audio.mels import slaney_bank

__all__ = [
    "SCORERS",
    "SISDR",
    "SNR",
    "LogSpectralDistance",
    "MelDistance",
    "STFTDistance",
    "log_spectral_distance_db",
    "mel_distance",
    "si_sdr_db",
    "snr_db",
    "stft_distance",
]

_MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))
_STFT_WINDOWS = (2048, 512)
_FLOOR = 1e-5
_TOP_DB = 100.0


def _ratio_db(wanted: Tensor, rest: Tensor) -> float:
    """10 log10 of a ratio of energies, kept in -100..100; NaN where nothing was wanted."""
    if float(wanted) == 0:
        return math.nan
    if float(rest) == 0:
        return _TOP_DB
    return max(-_TOP_DB, min(_TOP_DB, 10 * math.log10(float(wanted) / float(rest))))


def snr_db(reference: Tensor, reconstruction: Tensor) -> float:
    """Signal-to-noise ratio of waveforms `(s,)` in dB; NaN for a silent original."""
    a, b = reference.double(), reconstruction.double()
    return _ratio_db(a.square().sum(), (a - b).square().sum())


def si_sdr_db(reference: Tensor, reconstruction: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio of waveforms `(s,)` in dB, means removed; NaN for a silent original.

    A silent reconstruction of a sound is at the lower limit.

    Source: Le Roux et al., arXiv 1811.02508, equation 3; checked against torchmetrics.
    """
    a, b = (x.double() - x.double().mean() for x in (reference, reconstruction))
    energy = a.square().sum()
    if float(energy) == 0:
        return math.nan
    target = (a @ b) / energy * a
    if float(target.square().sum()) == 0:
        return -_TOP_DB
    return _ratio_db(target.square().sum(), (b - target).square().sum())


def _magnitude(x: Tensor, window: int) -> Tensor:
    """Magnitude of the short-time Fourier transform of `(s,)`, `(bins, frames)`; zeros beyond the ends."""
    taper = torch.hann_window(window, dtype=x.dtype)
    return torch.stft(x, window, window // 4, window=taper, center=True, pad_mode="constant", return_complex=True).abs()


@cache
def _bank(window: int, bands: int, sample_rate: int) -> Tensor:
    return slaney_bank(window, bands, sample_rate).T


def mel_distance(reference: Tensor, reconstruction: Tensor, sample_rate: int) -> float:
    """Sum over seven windows of the mean absolute difference of log10 mel magnitudes of waveforms `(s,)`."""
    a, b = reference.double(), reconstruction.double()
    total = 0.0
    for window, bands in _MEL_SCALES:
        bank = _bank(window, bands, sample_rate)
        logs = [(bank @ _magnitude(x, window)).clamp(min=_FLOOR).log10() for x in (a, b)]
        total += float((logs[0] - logs[1]).abs().mean())
    return total


def stft_distance(reference: Tensor, reconstruction: Tensor) -> float:
    """Sum over two windows of the mean absolute difference of the magnitudes and of their log10, of waveforms `(s,)`."""
    a, b = reference.double(), reconstruction.double()
    total = 0.0
    for window in _STFT_WINDOWS:
        x, y = (_magnitude(wave, window) for wave in (a, b))
        logs = [part.clamp(min=_FLOOR).log10() for part in (x, y)]
        total += float((x - y).abs().mean() + (logs[0] - logs[1]).abs().mean())
    return total


def log_spectral_distance_db(reference: Tensor, reconstruction: Tensor) -> float:
    """Mean over frames of the root mean squared difference of the spectra in dB, of waveforms `(s,)`."""
    x, y = (20 * _magnitude(wave.double(), 2048).clamp(min=_FLOOR).log10() for wave in (reference, reconstruction))
    return float((x - y).square().mean(0).sqrt().mean())


class SNR(SoundScorer):
    """`snr_db`."""

    def score_item(self, reference: Tensor, reconstruction: Tensor, sample_rate: int) -> float:
        return snr_db(reference, reconstruction)


class SISDR(SoundScorer):
    """`si_sdr_db`."""

    def score_item(self, reference: Tensor, reconstruction: Tensor, sample_rate: int) -> float:
        return si_sdr_db(reference, reconstruction)


class MelDistance(SoundScorer):
    """`mel_distance`."""

    def score_item(self, reference: Tensor, reconstruction: Tensor, sample_rate: int) -> float:
        return mel_distance(reference, reconstruction, sample_rate)


class STFTDistance(SoundScorer):
    """`stft_distance`."""

    def score_item(self, reference: Tensor, reconstruction: Tensor, sample_rate: int) -> float:
        return stft_distance(reference, reconstruction)


class LogSpectralDistance(SoundScorer):
    """`log_spectral_distance_db`."""

    def score_item(self, reference: Tensor, reconstruction: Tensor, sample_rate: int) -> float:
        return log_spectral_distance_db(reference, reconstruction)


SCORERS: dict[str, type[SoundScorer]] = {
    "snr_db": SNR,
    "si_sdr_db": SISDR,
    "mel_distance": MelDistance,
    "stft_distance": STFTDistance,
    "log_spectral_distance_db": LogSpectralDistance,
}
