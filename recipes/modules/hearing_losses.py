"""How far two sounds are apart for a listener: loudness on Bark bands after PESQ, structure of band levels after ViSQOL.

Papers: ITU-T P.862 (2001) and P.862.2, whose perceptual model became a loss in Martín-Doñas et al., "A Deep Learning Loss Function
Based on the Perceptual Evaluation of the Speech Quality", IEEE SPL 25(11), 2018; Hines et al., "ViSQOL: an objective speech quality
model", EURASIP JASM 2015:13, and Chinen et al., arXiv 2004.09584. Neither is the measure itself: nothing is aligned in time, bands
and thresholds come from formulas in place of tables, and frames are averaged plainly. A codec trained by them is made for the two
measures, which has to be said beside its scores. All is computed in float32, whatever the precision of training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.quantizers.base import exact_math

__all__ = ["LoudnessLoss", "StructureLoss"]

_LEVEL_DB = 79.0  # of the reference where it is active, as in P.862
_EXPONENT = 0.23  # Zwicker's
_DEAD_ZONE = 0.25  # share of the softer loudness by which the two may differ unheard
_NOISE = 50.0, 1.2, 3.0, 12.0  # of the weight of what is added: offset, exponent, values below are 0, values above are cut
_SYMMETRIC, _ADDED = 0.1, 0.0309  # what the two disturbances cost in P.862's score
_MOST = 45.0  # disturbance of a frame
_QUIET_FRAME, _BUSY_FRAME, _FRAME_EXPONENT = 1e5, 1e7, 0.04  # disturbances count for less where the reference is loud
_AUDIBLE, _GAINS = 5e3, (3e-4, 5.0)  # of the gain that brings a frame to the reference's

_RANGE = 45.0  # below the loudest band of a frame, in the unit of `levels`: so much of it counts
_LUMINANCE, _STRUCTURE = 1e-4, 4.5e-4
_FLAT = 1e-3  # variance added to both, which bounds the gradient where nothing varies
_NEAR = ((0.0113, 0.0838, 0.0113), (0.0838, 0.6193, 0.0838), (0.0113, 0.0838, 0.0113))


def _bark(hertz: Tensor) -> Tensor:
    return 6 * torch.asinh(hertz / 600)


def _quiet_db(hertz: Tensor) -> Tensor:
    """Threshold in quiet (Terhardt 1979), within what matters for speech."""
    k = hertz / 1000
    return (3.64 * k**-0.8 - 6.5 * torch.exp(-0.6 * (k - 3.3) ** 2) + 1e-3 * k**4).clamp(-5, 60)


def _powers(x: Tensor, hann: Tensor, hop: int, bank: Tensor, *, center: bool) -> Tensor:
    """Power in bands `(b, frames, bands)` of sounds `(b, s)`."""
    spectra = torch.stft(x, len(hann), hop_length=hop, window=hann, center=center, pad_mode="constant", return_complex=True)
    return (spectra.real.square() + spectra.imag.square()).transpose(1, 2) @ bank


class LoudnessLoss(nn.Module):
    """Difference of loudness, both ways and of what was added once more, in units of P.862's score before its last mapping.

    Args:
        sample_rate: in Hz.
        bands: of equal width on the Bark scale, from 80 Hz to half the rate.

    Raises:
        ValueError: a rate below 1,000 Hz or no band.
    """

    def __init__(self, *, sample_rate: int, bands: int = 49) -> None:
        super().__init__()
        if sample_rate < 1000 or bands < 1:
            raise ValueError(f"LoudnessLoss: sample_rate={sample_rate}, bands={bands}. Allowed: 1000 Hz or more, 1 band or more.")
        window = 2 * round(0.016 * sample_rate)
        self.hop = window // 2
        bins = torch.linspace(0, sample_rate / 2, window // 2 + 1)
        edges = torch.linspace(float(_bark(torch.tensor(80.0))), float(_bark(bins[-1])), bands + 1)
        half = (bins[1] - bins[0]) / 2
        low, high = _bark((bins - half).clamp(min=0)), _bark(bins + half)
        inside = torch.minimum(high[:, None], edges[1:]) - torch.maximum(low[:, None], edges[:-1])
        bank = inside.clamp(min=0) / (high - low)[:, None]  # each bin's power goes to the bands that it lies in
        quiet = 10 ** (_quiet_db(600 * torch.sinh((edges[1:] + edges[:-1]) / 12)) / 10)
        self.width = float(edges[1] - edges[0])
        self.register_buffer("_hann", torch.hann_window(window), persistent=False)
        self.register_buffer("_bank", bank, persistent=False)
        self.register_buffer("quiet", quiet, persistent=False)

    def loudness(self, power: Tensor) -> Tensor:
        """Zwicker's loudness `(..., bands)` of powers; none up to the threshold in quiet."""
        scale = (self.quiet / 0.5) ** _EXPONENT
        return (scale * ((0.5 + 0.5 * power / self.quiet) ** _EXPONENT - 1)).clamp(min=0)

    def _reference(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Powers of the reference at its level, and the gain `(b, 1, 1)` that brought it there."""
        power = _powers(x, self._hann, self.hop, self._bank, center=True)
        total = power.sum(2)
        active = total > 1e-3 * total.amax(1, keepdim=True)
        mean = (total * active).sum(1) / active.sum(1).clamp(min=1)
        gain = (10 ** (_LEVEL_DB / 10) / mean.clamp(min=1e-4))[:, None, None]
        return power * gain, gain

    def _audible(self, power: Tensor) -> Tensor:
        return (power * (power > self.quiet)).sum(2, keepdim=True) + _AUDIBLE

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of sounds `(b, c, s)`, float32; the gradient goes to `y`."""
        with exact_math(x.device.type):
            with torch.no_grad():
                clean, gain = self._reference(x.float().flatten(0, 1))
                loud = self.loudness(clean)
                busy = ((clean.sum(2) + _QUIET_FRAME) / _BUSY_FRAME) ** _FRAME_EXPONENT
            coded = _powers(y.float().flatten(0, 1), self._hann, self.hop, self._bank, center=True) * gain
            with torch.no_grad():
                frame_gain = (self._audible(clean) / self._audible(coded)).clamp(*_GAINS)
            coded = coded * frame_gain
            heard = self.loudness(coded)
            with torch.no_grad():
                unheard = _DEAD_ZONE * torch.minimum(loud, heard)
                offset, exponent, low, high = _NOISE
                added = ((coded + offset) / (clean + offset)).clamp(max=60) ** exponent
                added = torch.where(added < low, 0.0, added.clamp(max=high))
            apart = ((heard - loud).abs() - unheard).clamp(min=0) * self.width
            symmetric = (apart.square().sum(2) + 1e-8).sqrt()
            disturbances = (symmetric / busy).clamp(max=_MOST), ((apart * added).sum(2) / busy).clamp(max=_MOST)
            costs = [(frames.square().mean(1) + 1e-9).sqrt().mean() for frames in disturbances]
        return _SYMMETRIC * costs[0] + _ADDED * costs[1]


class StructureLoss(nn.Module):
    """1 less the structural similarity of band levels over time, 0 for equal sounds.

    Args:
        sample_rate: in Hz.
        bands: centred at equal steps of the ERB scale, from 50 Hz to almost half the rate.

    Raises:
        ValueError: a rate below 1,000 Hz or less than two bands.
    """

    def __init__(self, *, sample_rate: int, bands: int = 21) -> None:
        super().__init__()
        if sample_rate < 1000 or bands < 2:
            raise ValueError(f"StructureLoss: sample_rate={sample_rate}, bands={bands}. Allowed: 1000 Hz or more, 2 bands or more.")
        self.window = 4 * round(0.02 * sample_rate)
        self.hop = self.window // 4
        erb = 21.4 * torch.log10(1 + 0.00437 * torch.linspace(0, sample_rate / 2, self.window // 2 + 1))
        ends = 21.4 * torch.log10(1 + 0.00437 * torch.tensor([50.0, 0.9875 * sample_rate / 2]))
        centres = torch.linspace(float(ends[0]), float(ends[1]), bands)
        bank = (1 + ((erb[:, None] - centres) / 0.9).square()) ** -4  # power of a filter of order 4, about an ERB wide
        self.register_buffer("_hann", torch.hann_window(self.window), persistent=False)
        self.register_buffer("_bank", bank, persistent=False)
        self.register_buffer("_near", torch.tensor(_NEAR)[None, None], persistent=False)

    def levels(self, x: Tensor) -> Tensor:
        """Levels `(b, frames, bands)` of sounds `(b, s)`: 10 log10 of the root mean square, as ViSQOL takes them."""
        power = 2 * _powers(x, self._hann, self.hop, self._bank, center=False) / self.window**2
        return 5 * torch.log10(power + 1e-12)

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Neurogram similarity `(b, frames, bands)` of levels of that shape, from the 3 x 3 around each; 1 where they are equal."""

        def near(values: Tensor) -> Tensor:
            return F.conv2d(F.pad(values[:, None], (1, 1, 1, 1), mode="replicate"), self._near)[:, 0]

        mean_a, mean_b = near(a), near(b)
        spread_a, spread_b = (near(a * a) - mean_a * mean_a).clamp(min=0), (near(b * b) - mean_b * mean_b).clamp(min=0)
        together = near(a * b) - mean_a * mean_b
        luminance = (2 * mean_a * mean_b + _LUMINANCE) / (mean_a * mean_a + mean_b * mean_b + _LUMINANCE)
        apart = ((spread_a + _FLAT) * (spread_b + _FLAT)).sqrt() - _FLAT
        return luminance * (together + _STRUCTURE) / (apart + _STRUCTURE)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of sounds `(b, c, s)`, float32; the gradient goes to `y`.

        Raises:
            ValueError: sounds shorter than a window of 80 ms.
        """
        if x.shape[-1] < self.window:
            raise ValueError(f"StructureLoss: sounds of {x.shape[-1]} samples. Needed: {self.window} (80 ms) or more.")
        with exact_math(x.device.type):
            with torch.no_grad():
                a = self.levels(x.float().flatten(0, 1))
            b = self.levels(y.float().flatten(0, 1))
            with torch.no_grad():
                floor = (torch.maximum(a.amax(2, keepdim=True), b.amax(2, keepdim=True)) - _RANGE).clamp(min=-_RANGE)
            a, b = torch.maximum(a, floor), torch.maximum(b, floor)
            lowest = torch.minimum(a.amin((1, 2), keepdim=True), b.amin((1, 2), keepdim=True)).detach()
            return 1 - self.similarity(a - lowest, b - lowest).mean()
