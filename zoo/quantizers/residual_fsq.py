"""Residual finite scalar quantization: finer and finer grids, one per depth, each on what the coarser ones left over.

Behaviour checked against vector-quantize-pytorch 1.31.0 (MIT, `ResidualFSQ` with its default clamping) through a stored
fixture. Difference: the gradient reaches x once, through the squashing, not once per depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.quantizers.base import Quantized, Quantizer, check_integer, exact_math, working_dtype
from zoo.quantizers.fsq import FSQ
from zoo.quantizers.gradients import straight_through
from zoo.quantizers.usage import usage_stats

__all__ = ["ResidualFSQ"]


class ResidualFSQ(Quantizer):
    """Symmetric FSQ grids of shrinking size; codes `(..., num_codebooks)`, coarsest first. No parameters, no loss.

    x is squashed to a tanh(x / a) with a = 1 + 1/(L-1). At depth j the residual, divided by L^-j and clamped to [-1, 1],
    goes to the grid of `FSQ(symmetric=True)`; the result is the sum of the grid values times L^-j.

    Args:
        levels: levels of each channel, 2 or more; `dim = len(levels)`.
        num_codebooks: depth, with L^depth below 2^24 for every level (float32 resolves no more).

    Raises:
        ValueError: an argument outside its range.
    """

    _tops: Tensor

    def __init__(self, *, levels: Sequence[int], num_codebooks: int) -> None:
        grid = FSQ(levels=levels, symmetric=True)
        check_integer("ResidualFSQ", "num_codebooks", num_codebooks, low=1)
        if max(grid.levels) ** num_codebooks >= 1 << 24:
            raise ValueError(
                f"ResidualFSQ: levels={grid.levels} with num_codebooks={num_codebooks}. "
                f"Allowed: max(levels)^num_codebooks below 2^24. Use fewer codebooks or levels."
            )
        super().__init__(dim=grid.dim, codebook_sizes=grid.codebook_sizes * num_codebooks)
        self.levels = grid.levels
        self.grid = grid
        self.register_constant("_tops", torch.tensor([level - 1.0 for level in grid.levels], device="cpu"))

    def squash(self, x: Tensor) -> Tensor:
        """Squash `x (..., dim)` into what the grids cover: float32 `(..., dim)`, with gradient."""
        self._check_x(x, "squash")
        with exact_math(x.device.type):
            x = x.to(working_dtype(x.dtype))
            limit = 1 + 1 / self._tops.to(x.dtype)
            return torch.tanh(x / limit) * limit

    def forward(self, x: Tensor) -> Quantized:
        squashed = self.squash(x)
        codes, value = self._descend(squashed.detach(), self.depth)
        out = straight_through(squashed, value)
        loss = torch.zeros((), device=x.device)
        return Quantized(out.to(x.dtype), codes, loss, usage_stats(codes, self.codebook_sizes))

    def encode(self, x: Tensor, *, depth: int | None = None) -> Tensor:
        """Codes of `x (..., dim)`: int64 `(..., depth)`, of the first `depth` grids if given.

        Raises:
            ValueError: as `Quantizer.encode`, or `depth` outside 1..num_codebooks.
        """
        self._check_x(x, "encode", finite=True)
        depth = self.depth if depth is None else depth
        check_integer("ResidualFSQ.encode", "depth", depth, low=1, high=self.depth)
        return self._descend(self.squash(x.detach()), depth)[0]

    def decode(self, codes: Tensor) -> Tensor:
        """Sum the grid values of codes `(..., m)` for any m in 1..num_codebooks."""
        self._check_codes(codes, "decode", shorter=True)
        total = torch.zeros(*codes.shape[:-1], self.dim, device=codes.device)
        for j in range(codes.shape[-1]):
            total = total + self.grid.decode(codes[..., j : j + 1]) * self._scale(j)
        return total

    def _scale(self, depth: int) -> Tensor:
        return (self._tops + 1) ** -depth

    def _descend(self, squashed: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        residual, value, codes = squashed, torch.zeros_like(squashed), []
        for j in range(depth):
            scale = self._scale(j).to(squashed.dtype)
            digits = ((residual / scale).clamp(-1, 1) + 1) * (self._tops / 2)
            codes.append(self.grid.digits_to_codes((digits + 0.5).floor().long()))
            step = self.grid.decode(codes[-1]).to(squashed.dtype) * scale
            residual, value = residual - step, value + step
        return torch.cat(codes, -1), value
