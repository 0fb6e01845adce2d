"""What a codec's sound is compared by: mel bands at several scales, the waveform, the features of discriminators.

Papers: Défossez et al., "High Fidelity Neural Audio Compression", arXiv 2210.13438, section 3.4; Kumar et al., "High-Fidelity Audio
Compression with Improved RVQGAN", arXiv 2306.06546, section 3.4. All is computed in float32, whatever the precision of training.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.quantizers.base import exact_math

__all__ = ["MelLoss", "si_sdr_db"]

_SILENCE = 1e-8


def _bank(window: int, bands: int, sample_rate: int) -> Tensor:
    """Slaney's triangles of unit area over the bins of a transform, `(bins, bands)`."""
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():  # where bands are narrower than bins some stay empty, in the published losses too
        warnings.filterwarnings("ignore", message="At least one mel filterbank", category=UserWarning)
        top = float(sample_rate // 2)
        return melscale_fbanks(window // 2 + 1, 0.0, top, bands, sample_rate, norm="slaney", mel_scale="slaney")


class MelLoss(nn.Module):
    """Distance of mel magnitudes at several scales, summed over the scales.

    Of each scale: `linear_weight` times the mean absolute difference of the magnitudes, and `log_weight` times that of their log10
    (for `squared_log` the mean squared difference). DAC's loss has only the logarithms: its value is the scorer `mel_distance`.

    Args:
        sample_rate: in Hz.
        windows: samples of each scale, even numbers; the hop is a quarter.
        bands: mel bands of each scale.
        linear_weight, log_weight: of the two parts.
        squared_log: square the difference of the logarithms.
        normalized: divide the magnitudes by the root of the window's energy.
        floor: least magnitude in the logarithm.

    Raises:
        ValueError: no scale, a window that is odd or below 4, or another number of bands than of windows.
    """

    def __init__(
        self,
        *,
        sample_rate: int,
        windows: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
        bands: Sequence[int] = (5, 10, 20, 40, 80, 160, 320),
        linear_weight: float = 0.0,
        log_weight: float = 1.0,
        squared_log: bool = False,
        normalized: bool = False,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        if not windows or len(windows) != len(bands) or min(bands) < 1:
            raise ValueError(f"MelLoss: windows={windows}, bands={bands}. Needed: as many bands, each 1 or more, as windows.")
        if any(window < 4 or window % 2 for window in windows):
            raise ValueError(f"MelLoss: windows={windows}. Allowed: even numbers of 4 and more.")
        self.windows = tuple(windows)
        self.linear_weight, self.log_weight, self.squared_log = linear_weight, log_weight, squared_log
        self.floor = floor
        for i, (window, count) in enumerate(zip(windows, bands, strict=True)):
            hann = torch.hann_window(window)
            bank = _bank(window, count, sample_rate)
            self.register_buffer(f"_hann{i}", hann, persistent=False)
            self.register_buffer(f"_bank{i}", bank / hann.square().sum().sqrt() if normalized else bank, persistent=False)

    def mels(self, x: Tensor) -> list[Tensor]:
        """Mel magnitudes of waveforms `(b, s)`, `(b, frames, bands)` of each scale; frames centred, zeros beyond the ends."""
        out = []
        for i, window in enumerate(self.windows):
            hann, bank = getattr(self, f"_hann{i}"), getattr(self, f"_bank{i}")
            spectra = torch.stft(
                x, window, hop_length=window // 4, window=hann, center=True, pad_mode="constant", return_complex=True
            )
            out.append(_magnitude(spectra).transpose(1, 2) @ bank)
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of sounds `(b, c, s)`, float32; the gradient goes to `y`."""
        with exact_math(x.device.type):
            with torch.no_grad():
                wanted = self.mels(x.float().flatten(0, 1))
            total = torch.zeros((), device=x.device)
            for a, b in zip(wanted, self.mels(y.float().flatten(0, 1)), strict=True):
                if self.linear_weight:
                    total = total + self.linear_weight * (a - b).abs().mean()
                if self.log_weight:
                    apart = a.clamp(min=self.floor).log10() - b.clamp(min=self.floor).log10()
                    total = total + self.log_weight * (apart.square() if self.squared_log else apart.abs()).mean()
        return total


def _magnitude(spectra: Tensor) -> Tensor:
    """Absolute values whose gradient at zero is zero."""
    power = spectra.real.square() + spectra.imag.square()
    return power.clamp(min=1e-14).sqrt()


def si_sdr_db(x: Tensor, y: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio of `y` for the reference `x`, both `(..., s)`, in dB `(...)`; means removed."""
    x, y = x.float() - x.float().mean(-1, keepdim=True), y.float() - y.float().mean(-1, keepdim=True)
    target = (x * y).sum(-1, keepdim=True) / (x.square().sum(-1, keepdim=True) + _SILENCE) * x
    return 10 * torch.log10((target.square().sum(-1) + _SILENCE) / ((target - y).square().sum(-1) + _SILENCE))
