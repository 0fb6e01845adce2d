"""The network that tells pictures from reconstructions, and the losses of the two sides.

Papers: "Image-to-Image Translation with Conditional Adversarial Networks" (PatchGAN), arXiv 1611.07004; "Taming Transformers for
High-Resolution Image Synthesis" (hinge loss, its use here), arXiv 2012.09841; "Regularizing Generative Adversarial Networks under
Limited Data" (LeCam), arXiv 2104.03310.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GeneratorLoss", "Norm", "PatchDiscriminator", "generator_loss", "hinge_loss", "lecam_penalty"]

Norm = Literal["batch", "group"]
GeneratorLoss = Literal["hinge", "non_saturating"]
_SLOPE = 0.2
_WIDEST = 8  # times the first width
_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Score overlapping patches: pictures `(b, 3, h, w)` in [-1, 1] to logits `(b, 1, h', w')`, positive for real.

    Args:
        width: channels after the first convolution; they double with each layer, up to eight times.
        layers: convolutions that halve the sides.
        norm: "batch" as published, or "group", which works for one picture and needs no statistics of other ranks.

    Raises:
        ValueError: width or layers below 1, or an unknown norm.
    """

    def __init__(self, *, width: int = 64, layers: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise ValueError(f"PatchDiscriminator: width={width}, layers={layers}. Allowed: 1 or more.")
        if norm not in ("batch", "group"):
            raise ValueError(f"PatchDiscriminator: norm={norm!r}. Allowed: 'batch', 'group'.")
        widths = [width * min(2**i, _WIDEST) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            parts += [nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False), _norm(norm, widths[i])]
            parts.append(nn.LeakyReLU(_SLOPE))
        parts.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.network = nn.Sequential(*parts)
        for part in self.network:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.02)
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(_GROUPS if channels % _GROUPS == 0 else 1, channels)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the discriminator: half the sum of mean max(0, 1 - real) and mean max(0, 1 + fake), float32."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def generator_loss(fake: Tensor, kind: GeneratorLoss) -> Tensor:
    """Loss of the other side: -mean fake for "hinge", mean softplus(-fake) for "non_saturating", float32."""
    return -fake.float().mean() if kind == "hinge" else F.softplus(-fake.float()).mean()


def lecam_penalty(real: Tensor, fake: Tensor, real_average: Tensor, fake_average: Tensor) -> Tensor:
    """Keep the logits near the running averages of the other side: mean max(0, real - F)^2 + mean max(0, R - fake)^2."""
    real, fake = real.float(), fake.float()
    return torch.relu(real - fake_average).square().mean() + torch.relu(real_average - fake).square().mean()
