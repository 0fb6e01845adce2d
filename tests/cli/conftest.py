"""Tiny tokenizers without training: a cosine transform (ordered) and a quantised mosaic (residual, fixed, latents).

What they give is known without running them, so the tests can hold real properties: more tokens or levels are never worse.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from zoo import registry
from zoo.checkpoint import write_folder
from zoo.config import Config
from zoo.publishing import folder_config
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

FAMILY = "toy_for_tests"
SIZE, COUNT, STEPS, CELL = 32, 16, 31, 4


@dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    kind: Literal["ordered", "residual", "fixed", "latents"] = "ordered"


def _zigzag() -> list[tuple[int, int]]:
    places = [(u, v) for u in range(SIZE) for v in range(SIZE)]
    return sorted(places, key=lambda p: (p[0] + p[1], p))[:COUNT]


class Toy(Tokenizer):
    """Ordered: the first cosine coefficients, all colours of one in one code. Else a mosaic, refined by a factor of 8 a level."""

    family = FAMILY
    Config = ToyConfig

    def __init__(self, config: ToyConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        k, x = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None]
        basis = torch.cos(math.pi * (2 * x + 1) * k / (2 * SIZE)) * math.sqrt(2 / SIZE)
        basis[0] /= math.sqrt(2)
        self.basis = nn.Parameter(basis)

    @classmethod
    def layout_of(cls, config: ToyConfig) -> dict[str, Any]:
        shared = {"modality": "image", "native_size": (SIZE, SIZE), "license_weights": "CC0-1.0"}
        if config.kind == "ordered":
            codes = STEPS**3
            rate = {"tokens": COUNT, "codebook_size": codes, "vocabulary": (codes,)}
            rate["bits_per_pixel"] = COUNT * math.log2(codes) / SIZE**2
            return {**shared, **rate, "layout": "1d", "discrete": True, "ordered": True, "size_multiple": SIZE, "max_size": SIZE}
        grid = {"layout": "2d", "tokens": 64, "downsample": (1, CELL, CELL), "size_multiple": CELL}
        if config.kind == "latents":
            return {**shared, **grid, "discrete": False, "channels": 3}
        depth = 3 if config.kind == "residual" else 1
        codes = {"depth": depth, "codebook_size": 512, "vocabulary": (512,) * depth, "bits_per_pixel": 64 * 9 * depth / SIZE**2}
        return {**shared, **grid, **codes, "discrete": True, "residual": config.kind == "residual"}

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        if self.config.kind == "ordered":
            spectrum = torch.einsum("ux,bcxy,vy->bcuv", self.basis, x, self.basis) / SIZE
            chosen = torch.stack([spectrum[:, :, u, v] for u, v in _zigzag()[: tokens or COUNT]], 1)
            half = STEPS // 2  # magnitudes are rounded towards zero, so no coefficient makes the picture worse
            steps = (chosen.sign() * (chosen.abs().sqrt() * half).floor()).long().clamp(-half, half) + half
            return (steps * torch.tensor([STEPS**2, STEPS, 1])).sum(-1, keepdim=True)
        mosaic = F.avg_pool2d(x, CELL).permute(0, 2, 3, 1)
        if self.config.kind == "latents":
            return mosaic
        rest, codes = (mosaic + 1) / 2, []
        for _ in range(depth or self.info.depth):
            step = (rest * 8).floor().clamp(0, 7)
            codes.append((step * torch.tensor([64, 8, 1])).sum(-1).long())
            rest = rest * 8 - step
        return torch.stack(codes, -1)

    def _decode(
        self, tokens: Tokens, size: tuple[int, ...], *, brightness: float = 0.0, mode: Literal["plain", "negative"] = "plain"
    ) -> Tensor:
        if self.config.kind == "ordered":
            codes = tokens.data[..., 0]
            steps = torch.stack([codes // STEPS**2, codes // STEPS % STEPS, codes % STEPS], -1)
            level = steps - STEPS // 2
            value = level.sign() * (level / (STEPS // 2)).square() * SIZE
            spectrum = torch.zeros(len(tokens), 3, SIZE, SIZE)
            for i, (u, v) in enumerate(_zigzag()[: codes.shape[1]]):
                real = tokens.mask[:, i, None]
                spectrum[:, :, u, v] = torch.where(real, value[:, i], 0.0)
            y = torch.einsum("ux,bcuv,vy->bcxy", self.basis, spectrum, self.basis)
        else:
            mosaic = tokens.data if self.config.kind == "latents" else self._mosaic(tokens.data)
            y = F.interpolate(mosaic.permute(0, 3, 1, 2), size=size, mode="nearest")
        return (-y if mode == "negative" else y) + brightness

    @staticmethod
    def _mosaic(codes: Tensor) -> Tensor:
        total, scale = 0.0, 1.0
        for level in range(codes.shape[-1]):
            code, scale = codes[..., level, None], scale / 8
            total = total + torch.cat([code // 64, code // 8 % 8, code % 8], -1) * scale
        return (total + scale / 2) * 2 - 1


@pytest.fixture(scope="module", autouse=True)
def _family() -> Iterator[None]:
    """Make the family known, as an entry of the catalog and a module would, for the tests of this folder only."""
    module = ModuleType(f"zoo.image.{FAMILY}")
    sys.modules[module.__name__] = module
    entry = zoo.register(Entry(name="toy_for_tests_entry", family=FAMILY, summary="For tests.", **Toy.layout_of(ToyConfig())))
    yield
    del registry._EXTRA[entry.name]
    del sys.modules[module.__name__]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give `toy(kind)`: the folder of a tiny tokenizer."""
    root = tmp_path_factory.mktemp("toys")

    def make(kind: str) -> Path:
        folder = root / f"toy_{kind}"
        if not folder.exists():
            tokenizer = zoo.create(FAMILY, info_name=folder.name, kind=kind)
            write_folder(folder, config=folder_config(tokenizer), tensors=tokenizer.state_dict())
        return folder

    return make
