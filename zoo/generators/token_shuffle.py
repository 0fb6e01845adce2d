"""Token-Shuffle: an autoregressive transformer that reads and writes windows of s x s codes of a grid as one step.

Paper: "Token-Shuffle: Towards High-Resolution Image Generation with Autoregressive Models", arXiv 2504.17789. No public code is
known; written from the abstract and public summaries. The number of fusing blocks and their form are our choice.

    codes -> embed -> width / s^2 each -> s^2 of a window side by side -> residual MLPs -> one step of the transformer
    transformer -> residual MLPs -> s^2 parts -> width each -> scores of the s^2 codes of the next window, in parallel

Steps, and with them calls of the network and cached keys, fall by s^2. With s = 1 there is nothing to fuse, no module more than in
`autoregressive`, and the numbers are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.generators.registry import GeneratorEntry
from zoo.generators.sequence import SequenceConfig, SequenceGenerator
from zoo.layers.transformer import grid_coordinates

__all__ = ["TokenShuffle", "TokenShuffleConfig", "shuffle", "unshuffle"]


def shuffle(x: Tensor, window: int) -> Tensor:
    """Cut a grid `(b, h, w, c)` into windows in raster order, `(b, h / s * w / s, s * s, c)`; inside a window in raster order too.

    Raises:
        ValueError: a side that the window does not divide.
    """
    b, h, w, c = x.shape
    if h % window or w % window:
        raise ValueError(f"shuffle: a grid of {h} x {w} with window={window}. Needed: a divisor of both sides.")
    x = x.reshape(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(b, (h // window) * (w // window), window * window, c)


def unshuffle(x: Tensor, window: int, positions: tuple[int, int]) -> Tensor:
    """Undo `shuffle` for a grid of `positions`."""
    b, c = len(x), x.shape[-1]
    h, w = positions
    x = x.reshape(b, h // window, w // window, window, window, c).transpose(2, 3)
    return x.reshape(b, h, w, c)


@dataclass(frozen=True, kw_only=True)
class TokenShuffleConfig(SequenceConfig):
    """Sizes of the transformer, and the window.

    Attributes:
        window: s, the side of a window; its square divides the width.
        fuse_depth: residual MLPs before and after the transformer.
    """

    window: int = 2
    fuse_depth: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.positions) == 2, "positions", "a grid of two axes")
        fits = self.window >= 1 and all(side % self.window == 0 for side in self.positions)
        self.require(fits, "window", f"a divisor of both sides of {self.positions}")
        self.require(self.width % self.window**2 == 0, "window", f"a number whose square divides width={self.width}")
        self.require(self.fuse_depth >= 0, "fuse_depth", "0 or more")


class _Fuse(nn.Module):
    """x + down(gelu(up(norm x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class TokenShuffle(SequenceGenerator):
    """Codes `(b, h, w, d)` from a class or text, a window at a time."""

    family = "token_shuffle"
    Config = TokenShuffleConfig
    facts = {"unit": "window", "objective": "cross-entropy", "context": "clean"}

    def __init__(self, config: TokenShuffleConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: TokenShuffleConfig = config
        s, width = config.window, config.width
        with torch.device("cpu"):
            where = grid_coordinates([side // s for side in config.positions])
        self._build(where)
        if s > 1:
            self.compress = nn.Linear(width, width // s**2, bias=False)
            self.fuse = nn.Sequential(*(_Fuse(width) for _ in range(config.fuse_depth)))
            self.unfuse = nn.Sequential(*(_Fuse(width) for _ in range(config.fuse_depth)))
            self.expand = nn.Linear(width // s**2, width, bias=False)

    @property
    def codes_per_step(self) -> int:
        return self.config.window**2 * self.config.depth

    def step_count(self, positions: Sequence[int]) -> int:
        h, w = positions
        return h * w // self.config.window**2

    def to_steps(self, data: Tensor) -> Tensor:
        return shuffle(data, self.config.window).flatten(2)

    def from_steps(self, steps: Tensor) -> Tensor:
        positions = self.config.positions
        return unshuffle(steps.unflatten(2, (-1, self.config.depth)), self.config.window, (positions[0], positions[1]))

    def real(self, steps: Tensor, mask: Tensor | None) -> Tensor | None:
        return None  # grids come whole

    def embed(self, steps: Tensor, first: int) -> Tensor:
        if self.config.window == 1:
            return super().embed(steps, first)
        x = self.embedding(steps.unflatten(2, (-1, self.config.depth)) + self.row_offsets).sum(3)
        return self.fuse(self.compress(x).flatten(2))

    def scores(self, hidden: Tensor, first: int) -> list[Tensor]:
        if self.config.window == 1:
            return super().scores(hidden, first)
        parts = self.unfuse(hidden).unflatten(2, (self.config.window**2, -1))
        by_code = self.head(self.expand(parts)).split(list(self.columns), -1)
        return [scores[:, :, i] for i in range(self.config.window**2) for scores in by_code]
