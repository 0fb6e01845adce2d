"""Scores of a reconstructed picture against its original."""

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.scorers.base import PictureScorer
from eval.scorers.networks import LPIPSNetwork, Networks, PictureFeatures
from eval.scorers.records import ScorerRecord
from zoo.layers.features import feature_distance

__all__ = ["LPIPS", "MAE", "MSE", "PSNR", "SSIM", "FeatureDistance", "make", "mean_squared_error", "psnr_db", "ssim"]

_PSNR_TOP = 100.0


def mean_squared_error(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean squared difference of uint8 pictures `(b, 3, h, w)`, `(b,)` in squared 8-bit levels, exact."""
    difference = reference.int() - reconstruction.int()
    return difference.square().flatten(1).sum(1).double() / reference[0].numel()


def psnr_db(reference: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of uint8 pictures `(b, 3, h, w)`, `(b,)` dB; 100 dB for equal pictures and at most."""
    return (10 * torch.log10(255.0**2 / mean_squared_error(reference, reconstruction))).clamp(max=_PSNR_TOP)


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Weight `(b, c, h, w)` by a separable window; no border is added."""
    b, c, h, w = x.shape
    x = F.conv2d(x.reshape(b * c, 1, h, w), kernel.view(1, 1, -1, 1))
    x = F.conv2d(x, kernel.view(1, 1, 1, -1))
    return x.view(b, c, *x.shape[2:])


def ssim(reference: Tensor, reconstruction: Tensor, *, mirror: bool = True) -> Tensor:
    """Structural similarity of uint8 pictures `(b, 3, h, w)`, `(b,)`.

    An 11x11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03, data range 255, mean over channels and positions. Variances are
    computed around mid-grey, which changes nothing but the rounding.

    Args:
        reference: originals.
        reconstruction: same shape.
        mirror: continue the pictures beyond their border, so that every pixel has a window (as torchmetrics 1.9); False uses
            only windows inside (as the authors' code).

    Source: Wang et al. 2004, equations 12 and 13; checked against torchmetrics and a loop over windows.
    """
    offset = torch.arange(11, device=reference.device, dtype=torch.float32) - 5
    kernel = torch.exp(-offset.square() / (2 * 1.5**2))
    kernel = kernel / kernel.sum()
    a, b = (pictures.float() / 255 - 0.5 for pictures in (reference, reconstruction))
    if mirror:
        a, b = (F.pad(pictures, (5, 5, 5, 5), mode="reflect") for pictures in (a, b))
    mean_a, mean_b, aa, bb, ab = _blur(torch.cat([a, b, a * a, b * b, a * b]), kernel).chunk(5)
    spread = (aa - mean_a.square()) + (bb - mean_b.square())
    together = ab - mean_a * mean_b
    mean_a, mean_b = mean_a + 0.5, mean_b + 0.5
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * together + c2) / (spread.clamp(min=0) + c2)
    return (luminance * structure).double().flatten(1).mean(1)


class PSNR(PictureScorer):
    """`psnr_db`."""

    def score(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        return psnr_db(reference, reconstruction)


class SSIM(PictureScorer):
    """`ssim`; `ssim_valid` uses only windows inside the picture."""

    def __init__(self, record: ScorerRecord, *, mirror: bool = True) -> None:
        super().__init__(record)
        self.mirror = mirror

    def score(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        return ssim(reference, reconstruction, mirror=self.mirror)


class MSE(PictureScorer):
    """Mean squared difference in squared 8-bit levels."""

    def score(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        return mean_squared_error(reference, reconstruction)


class MAE(PictureScorer):
    """Mean absolute difference in 8-bit levels."""

    def score(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        return (reference.int() - reconstruction.int()).abs().flatten(1).double().mean(1)


class FeatureDistance(PictureScorer):
    """Distance of five stages of feature maps; the form of LPIPS without learned heads."""

    def __init__(self, record: ScorerRecord, network: PictureFeatures) -> None:
        super().__init__(record.with_protocol(sha256=network.sha256))
        self.features = network

    def score(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        return feature_distance(self.features, reference, reconstruction)  # type: ignore[arg-type]  # called alike


class LPIPS(PictureScorer):
    """The official learned distance, of package lpips."""

    def __init__(self, record: ScorerRecord, network: LPIPSNetwork) -> None:
        super().__init__(record.with_protocol(sha256=network.sha256, heads_sha256=network.heads_sha256))
        self.network = network

    def score(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        return self.network(reference, reconstruction)


def make(record: ScorerRecord, networks: Networks) -> PictureScorer:
    """Build the item scorer of a record; networks are taken from, and put into, `networks`."""
    if record.name in _PLAIN:
        return _PLAIN[record.name](record)
    if record.name.startswith("ssim"):
        return SSIM(record, mirror=record.name == "ssim")
    if record.name.startswith("lpips"):
        trunk = record.protocol["network"]
        if (trunk, 0) not in networks:
            networks[trunk, 0] = LPIPSNetwork(trunk, scorer=record.name)
        return LPIPS(record, networks[trunk, 0])
    return FeatureDistance(record, PictureFeatures.shared(record, networks))


_PLAIN: dict[str, type[PictureScorer]] = {"psnr_db": PSNR, "mse": MSE, "mae": MAE}
