"""Alignment loss: patch features of a model under training follow those of a frozen network (REPA, arXiv 2410.06940)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.features import BACKBONES, load_features

__all__ = ["Alignment"]


class _TimmPatches(nn.Module):
    """Patch features of a timm vision transformer; its weights come from the Hub at the user's site."""

    def __init__(self, name: str, *, pretrained: bool = True) -> None:
        super().__init__()
        import timm

        self.network = timm.create_model(name, pretrained=pretrained, num_classes=0).eval().requires_grad_(False)
        config = self.network.pretrained_cfg
        self.side = config["input_size"][-1]
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Give `(b, channels, h, w)` of pictures in [-1, 1], resized to the network's own size."""
        x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True)
        features = self.network.forward_features(((x + 1) / 2 - self.mean) / self.std)
        patches = features[:, self.network.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, self.network.patch_embed.grid_size)


class Alignment(nn.Module):
    """Three-layer projection and its negative cosine with the frozen features.

    Args:
        width: of the features under training.
        network: "efficientnet_lite0" (offline) or "timm:NAME" such as "timm:vit_large_patch14_dinov2.lvd142m".
        channels: of the frozen features.
        stage: of an offline network's five stages.

    The frozen network is loaded at the first use and is no part of the state dict.
    """

    def __init__(self, *, width: int, network: str, channels: int, stage: int = 3) -> None:
        super().__init__()
        if network not in BACKBONES and not network.startswith("timm:"):
            raise ValueError(f"Alignment: network={network!r}. Allowed: {', '.join(BACKBONES)}, or timm:NAME.")
        self.network = network
        self.stage = stage
        self.project = nn.Sequential(
            nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU(), nn.Linear(2 * width, channels)
        )
        self._frozen: list[Any] = []

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """Frozen features `(b, channels, h, w)` of pictures `(b, 3, h, w)` in [-1, 1]."""
        if not self._frozen:
            offline = self.network in BACKBONES
            self._frozen.append(load_features(self.network) if offline else _TimmPatches(self.network.removeprefix("timm:")))
        network = self._frozen[0].to(images.device)
        return network(images)[0][self.stage] if self.network in BACKBONES else network(images)

    def forward(self, patches: Tensor, images: Tensor) -> Tensor:
        """Scalar loss of patch features `(b, h, w, width)` for the pictures they belong to; the coarser map is enlarged."""
        target = self.target(images)
        projected = self.project(patches).permute(0, 3, 1, 2)
        if projected.shape[1] != target.shape[1]:
            raise ValueError(f"Alignment: {self.network} has {target.shape[1]} channels, not {projected.shape[1]}. Set channels.")
        side = tuple(max(a, b) for a, b in zip(projected.shape[2:], target.shape[2:], strict=True))
        projected, target = (F.interpolate(x.float(), side, mode="bilinear", align_corners=False) for x in (projected, target))
        return -F.cosine_similarity(projected, target, dim=1).mean()
