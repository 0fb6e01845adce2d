"""TokenFLEX: a grid of continuous features to any number of tokens, with one set of weights.

Paper: "TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference", arXiv 2504.03154; no public code is known. Fewer
tokens are a coarser pooling of the whole grid, not a prefix of an ordered sequence. Choices of ours where the sources are silent:
one draw for a batch, so that its shapes are equal; every count equally likely; projections without biases and norms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config

__all__ = ["FlexPool", "SwiGLU", "TokenFlex", "TokenFlexConfig", "draw_side", "pooling_cells"]


def pooling_cells(length: int, cells: int) -> list[tuple[int, int]]:
    """Give the stretch `[start, end)` of an axis that each output cell averages.

    Neighbours overlap where `cells` does not divide `length`.

    Args:
        length: positions along the axis.
        cells: output cells, 1..length.

    Raises:
        ValueError: a number of cells outside that range.
    """
    if not 1 <= cells <= length:
        raise ValueError(f"pooling_cells: cells={cells} for an axis of {length}. Allowed: 1..{length}.")
    return [(i * length // cells, -(-(i + 1) * length // cells)) for i in range(cells)]


def draw_side(sides: Sequence[int], *, generator: torch.Generator) -> int:
    """Draw the side of the token grid of one training step: every side is equally likely, and a batch shares one.

    Args:
        sides: the sides `n` to choose from; `n * n` tokens each.
        generator: source of the draw.

    Raises:
        ValueError: no sides, or one below 1.
    """
    if len(sides) == 0 or min(sides) < 1:
        raise ValueError(f"draw_side: sides={tuple(sides)}. Needed: at least one side, each at least 1.")
    return sides[int(torch.randint(len(sides), (), generator=generator, device=generator.device))]


class FlexPool(nn.Module):
    """Average a grid of any size over `side x side` cells; see `pooling_cells`."""

    def forward(self, x: Tensor, side: int) -> Tensor:
        """Pool features `(b, c, h, w)` to `(b, c, side, side)`; `side` in 1..min(h, w).

        Raises:
            ValueError: another rank, or a side that the grid does not have.
        """
        if x.ndim != 4:
            raise ValueError(f"FlexPool: x has shape {tuple(x.shape)}. Needed: (b, c, h, w).")
        most = min(x.shape[2:])
        if not 1 <= side <= most:
            raise ValueError(f"FlexPool: side={side} for a grid of {tuple(x.shape[2:])}. Allowed: 1..{most}; take fewer tokens.")
        return F.adaptive_avg_pool2d(x, side)


class SwiGLU(nn.Module):
    """Gated projection `out(silu(gate(x)) * value(x))` of the last axis.

    Args:
        in_channels: width of x.
        hidden_channels: width of the gated product.
        out_channels: width of the result.
    """

    def __init__(self, *, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.gate = nn.Linear(in_channels, hidden_channels, bias=False)
        self.value = nn.Linear(in_channels, hidden_channels, bias=False)
        self.out = nn.Linear(hidden_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., in_channels)` to `(..., out_channels)`."""
        return self.out(F.silu(self.gate(x)) * self.value(x))


@dataclass(frozen=True, kw_only=True)
class TokenFlexConfig(Config):
    """Sizes of the projector, and the sides of the token grid that training draws from.

    Attributes:
        in_channels: channels of the features.
        hidden_channels: width inside the projection.
        out_channels: width of a token.
        sides: sides `n` of the grids seen in training; the paper's are 64, 144 and 256 tokens.
    """

    in_channels: int
    hidden_channels: int
    out_channels: int
    sides: tuple[int, ...] = (8, 12, 16)

    def __post_init__(self) -> None:
        for name in ("in_channels", "hidden_channels", "out_channels"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(len(self.sides) >= 1 and min(self.sides, default=0) >= 1, "sides", "at least one side, each at least 1")
        self.require(list(self.sides) == sorted(set(self.sides)), "sides", "rising, without repeats")


class TokenFlex(nn.Module):
    """Projector of features `(b, c, h, w)` to `n * n` tokens; no weight depends on n.

    Args:
        config: sizes.
    """

    def __init__(self, config: TokenFlexConfig) -> None:
        super().__init__()
        self.config = config
        self.pool = FlexPool()
        self.project = SwiGLU(
            in_channels=config.in_channels, hidden_channels=config.hidden_channels, out_channels=config.out_channels
        )

    @property
    def token_counts(self) -> tuple[int, ...]:
        """Numbers of tokens seen in training, rising."""
        return tuple(side * side for side in self.config.sides)

    def extrapolates(self, tokens: int) -> bool:
        """Tell whether a number of tokens was never seen in training: it works, and how well must be measured."""
        return tokens not in self.token_counts

    def forward(self, x: Tensor, *, tokens: int | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Turn features into tokens.

        Args:
            x: features `(b, c, h, w)`, without a class token.
            tokens: a square number up to `min(h, w) ** 2`. None draws one of `token_counts` for the whole batch in training
                mode, and takes the largest of them in evaluation mode.
            generator: source of that draw.

        Returns:
            `(b, tokens, out_channels)`, rows of the pooled grid one after another.

        Raises:
            ValueError: features of another shape, a number that is no square or that the grid does not hold, a draw without a
                generator, or a generator where nothing is drawn.
        """
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(f"TokenFlex: x has shape {tuple(x.shape)}. Needed: (b, {self.config.in_channels}, h, w).")
        side = self._side(tokens, generator, most=min(x.shape[2:]))
        return self.project(self.pool(x, side).flatten(2).transpose(1, 2))

    def _side(self, tokens: int | None, generator: torch.Generator | None, *, most: int) -> int:
        drawn = tokens is None and self.training
        if drawn and generator is None:
            raise ValueError("TokenFlex: tokens and generator are None in training. Give a torch.Generator to draw with or tokens.")
        if not drawn and generator is not None:
            raise ValueError("TokenFlex: a generator is given, but nothing is drawn. Leave it out; in training, leave tokens out.")
        if drawn:
            side = draw_side(self.config.sides, generator=generator)
        elif tokens is None:
            side = self.config.sides[-1]
        else:
            side = math.isqrt(max(tokens, 0))
            if side < 1 or side * side != tokens:
                raise ValueError(f"TokenFlex: tokens={tokens}. Allowed: square numbers 1, 4, 9, ... {most * most}.")
        if side > most:
            raise ValueError(
                f"TokenFlex: {side * side} tokens of a grid with short side {most}. Allowed: up to {most * most}; give a larger "
                "grid, or fewer tokens."
            )
        return side
