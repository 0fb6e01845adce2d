"""The networks that tell recordings from a codec's sound, and the losses of the two sides.

Papers: "High Fidelity Neural Audio Compression" (complex spectra at several scales), arXiv 2210.13438; "HiFi-GAN" (periods), arXiv
2010.05646; "High-Fidelity Audio Compression with Improved RVQGAN" (bands of the spectrum), arXiv 2306.06546. A network gives its
scores and the outputs of its layers before them, which `feature_loss` compares.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from zoo.quantizers.base import exact_math

__all__ = [
    "BandDiscriminator",
    "GameLoss",
    "Judged",
    "PeriodDiscriminator",
    "SoundDiscriminators",
    "SpectrumDiscriminator",
    "discriminator_loss",
    "feature_loss",
    "generator_loss",
]

GameLoss = Literal["hinge", "least_squares"]


class Judged(NamedTuple):
    """What one network says of a batch.

    Attributes:
        scores: logits `(b, 1, ...)`, high for recordings.
        features: outputs of its layers, `(b, ...)` each.
    """

    scores: Tensor
    features: list[Tensor]


def _conv(channels_in: int, channels_out: int, kernel: tuple[int, int], **options: object) -> nn.Conv2d:
    """A convolution that keeps the sides, but for its stride."""
    dilation = options.get("dilation", (1, 1))
    padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))  # type: ignore[call-overload]
    return weight_norm(nn.Conv2d(channels_in, channels_out, kernel, padding=padding, **options))  # type: ignore[arg-type]


def _spectra(x: Tensor, window: Tensor, *, center: bool, overlap: int = 4) -> Tensor:
    """Complex spectra of `(b, c, s)` with hop `window / overlap`, `(b, 2 c, frames, bins)` float32."""
    size = len(window)
    with exact_math(x.device.type):
        flat = x.float().flatten(0, 1)
        if flat.shape[1] < size:
            flat = F.pad(flat, (0, size - flat.shape[1]))
        found = torch.stft(
            flat, size, hop_length=size // overlap, window=window, center=center, normalized=False, return_complex=True
        )
        parts = torch.view_as_real(found / window.square().sum().sqrt()).permute(0, 3, 2, 1)
    return parts.reshape(x.shape[0], -1, *parts.shape[2:])


class SpectrumDiscriminator(nn.Module):
    """EnCodec's: 2-D convolutions over the real and imaginary parts of a spectrum.

    Args:
        window: samples of the transform.
        overlap: hops of a window.
        width: channels of all layers.
        channels: of the sound.
    """

    window: Tensor

    def __init__(self, *, window: int, overlap: int = 4, width: int = 32, channels: int = 1) -> None:
        super().__init__()
        self.overlap = overlap
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        layers = [_conv(2 * channels, width, (3, 9))]
        layers += [_conv(width, width, (3, 9), stride=(1, 2), dilation=(dilation, 1)) for dilation in (1, 2, 4)]
        layers.append(_conv(width, width, (3, 3)))
        self.layers = nn.ModuleList(layers)
        self.last = _conv(width, 1, (3, 3))

    def forward(self, x: Tensor) -> Judged:
        """Judge sounds `(b, c, s)`."""
        h, features = _spectra(x, self.window, center=False, overlap=self.overlap), []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
            features.append(h)
        return Judged(self.last(h), features)


class PeriodDiscriminator(nn.Module):
    """HiFi-GAN's: convolutions along samples that are a period apart.

    Args:
        period: in samples.
        widths: channels of the layers; all but the last have stride 3.
        channels: of the sound.
    """

    def __init__(self, *, period: int, widths: Sequence[int] = (32, 128, 512, 1024, 1024), channels: int = 1) -> None:
        super().__init__()
        self.period = period
        before = (channels, *widths)
        strides = [3] * (len(widths) - 1) + [1]
        self.layers = nn.ModuleList(_conv(before[i], width, (5, 1), stride=(strides[i], 1)) for i, width in enumerate(widths))
        self.last = _conv(before[-1], 1, (3, 1))

    def forward(self, x: Tensor) -> Judged:
        """Judge sounds `(b, c, s)`."""
        x = F.pad(x, (0, -x.shape[2] % self.period), mode="reflect")
        h, features = x.unflatten(2, (-1, self.period)), []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.1)
            features.append(h)
        return Judged(self.last(h), features)


class BandDiscriminator(nn.Module):
    """DAC's: each band of a complex spectrum has convolutions of its own; the last layer sees all bands side by side.

    Args:
        window: samples of the transform; the hop is a quarter.
        width: channels of all layers.
        edges: of the bands, as shares of the frequencies, from 0 to 1.
        channels: of the sound.
    """

    window: Tensor

    def __init__(
        self, *, window: int, width: int = 32, edges: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0), channels: int = 1
    ) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        bins = window // 2 + 1
        places = [int(edge * bins) for edge in edges]
        self.bands = list(pairwise(places))
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                [_conv(2 * channels, width, (3, 9))]
                + [_conv(width, width, (3, 9), stride=(1, 2)) for _ in range(3)]
                + [_conv(width, width, (3, 3))]
            )
            for _ in self.bands
        )
        self.last = _conv(width, 1, (3, 3))

    def forward(self, x: Tensor) -> Judged:
        """Judge sounds `(b, c, s)`, whose mean is removed and whose peak is brought to 0.8 first."""
        x = x.float() - x.float().mean(-1, keepdim=True)
        x = 0.8 * x / (x.abs().amax(-1, keepdim=True) + 1e-9)
        spectra, ends, features = _spectra(x, self.window, center=True), [], []
        for (low, high), stack in zip(self.bands, self.stacks, strict=True):
            h = spectra[..., low:high]
            for layer in stack:
                h = F.leaky_relu(layer(h), 0.1)
                features.append(h)
            ends.append(h)
        return Judged(self.last(torch.cat(ends, -1)), features)


class SoundDiscriminators(nn.Module):
    """Several networks on the same sound.

    Args:
        spectrum_windows, spectrum_overlap, spectrum_width: of `SpectrumDiscriminator`s.
        periods, period_widths: of `PeriodDiscriminator`s.
        band_windows, band_width: of `BandDiscriminator`s.
        channels: of the sound.

    Raises:
        ValueError: no network at all.
    """

    def __init__(
        self,
        *,
        spectrum_windows: Sequence[int] = (),
        spectrum_overlap: int = 4,
        spectrum_width: int = 32,
        periods: Sequence[int] = (),
        period_widths: Sequence[int] = (32, 128, 512, 1024, 1024),
        band_windows: Sequence[int] = (),
        band_width: int = 32,
        channels: int = 1,
    ) -> None:
        super().__init__()
        networks: list[nn.Module] = [
            SpectrumDiscriminator(window=window, overlap=spectrum_overlap, width=spectrum_width, channels=channels)
            for window in spectrum_windows
        ]
        networks += [PeriodDiscriminator(period=period, widths=period_widths, channels=channels) for period in periods]
        networks += [BandDiscriminator(window=window, width=band_width, channels=channels) for window in band_windows]
        if not networks:
            raise ValueError("SoundDiscriminators: no network. Give spectrum_windows, periods or band_windows.")
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> list[Judged]:
        """Judge sounds `(b, c, s)`."""
        return [network(x) for network in self.networks]


def discriminator_loss(real: Sequence[Judged], fake: Sequence[Judged], kind: GameLoss) -> Tensor:
    """Loss of the discriminators, float32.

    "hinge": mean over networks of mean max(0, 1 - real) + mean max(0, 1 + fake) (EnCodec). "least_squares": sum over networks of
    mean (1 - real)^2 + mean fake^2 (DAC).
    """
    parts = []
    for a, b in zip(real, fake, strict=True):
        r, f = a.scores.float(), b.scores.float()
        hinge = kind == "hinge"
        parts.append(F.relu(1 - r).mean() + F.relu(1 + f).mean() if hinge else (1 - r).square().mean() + f.square().mean())
    return torch.stack(parts).mean() if kind == "hinge" else torch.stack(parts).sum()


def generator_loss(fake: Sequence[Judged], kind: GameLoss) -> Tensor:
    """Loss of the other side, float32: mean over networks of mean max(0, 1 - fake), or sum over networks of mean (1 - fake)^2."""
    if kind == "hinge":
        return torch.stack([F.relu(1 - judged.scores.float()).mean() for judged in fake]).mean()
    return torch.stack([(1 - judged.scores.float()).square().mean() for judged in fake]).sum()


def feature_loss(real: Sequence[Judged], fake: Sequence[Judged], *, relative: bool) -> Tensor:
    """Distance of the layers' outputs, float32.

    Args:
        real: of recordings; constants.
        fake: of the codec's sound.
        relative: mean over networks and layers of mean |real - fake| / mean |real| (EnCodec); else the sum over networks and layers
            of mean |real - fake| (DAC).
    """
    parts = []
    for a, b in zip(real, fake, strict=True):
        for r, f in zip(a.features, b.features, strict=True):
            r = r.detach().float()
            apart = (r - f.float()).abs().mean()
            parts.append(apart / (r.abs().mean() + 1e-8) if relative else apart)
    return torch.stack(parts).mean() if relative else torch.stack(parts).sum()
