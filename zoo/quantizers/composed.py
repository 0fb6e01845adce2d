"""Quantizers made of quantizers: a narrower space, several groups of channels, any chain of residuals.

Each is itself a `Quantizer` with the shared signature, so they nest: Descript's codec is `Residual` of `Projected` of `VQ`,
grouped RVQ is `Grouped` of `RVQ`, and two FSQ codebooks side by side are `Grouped` of `FSQ`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.quantizers.base import Quantized, Quantizer, check_integer, exact_math, working_dtype

__all__ = ["Grouped", "Projected", "Residual"]


class Projected(Quantizer):
    """Quantize in a narrower (or wider) space: linear map in, quantizer, linear map out, all in float32.

    Codes, loss and statistics are those of the quantizer inside. State dict: `project_in.*`, `project_out.*`,
    `quantizer.*`.

    Args:
        quantizer: what works on the `quantizer.dim` projected channels.
        dim: channels outside.

    Raises:
        ValueError: `dim` below 1.
    """

    def __init__(self, quantizer: Quantizer, *, dim: int) -> None:
        check_integer("Projected", "dim", dim, low=1)
        super().__init__(dim=dim, codebook_sizes=quantizer.codebook_sizes)
        self.project_in = nn.Linear(dim, quantizer.dim)
        self.quantizer = quantizer
        self.project_out = nn.Linear(quantizer.dim, dim)

    def forward(self, x: Tensor) -> Quantized:
        self._check_x(x, "forward")
        inner = self.quantizer(_linear(self.project_in, x))
        return inner._replace(x=_linear(self.project_out, inner.x).to(x.dtype))

    def encode(self, x: Tensor) -> Tensor:
        self._check_x(x, "encode", finite=True)
        return self.quantizer.encode(_linear(self.project_in, x))

    def decode(self, codes: Tensor) -> Tensor:
        return _linear(self.project_out, self.quantizer.decode(codes)).to(self.project_out.weight.dtype)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in float32 (or float64), autocast off."""
    with exact_math(x.device.type):
        dtype = working_dtype(x.dtype)
        return F.linear(x.to(dtype), layer.weight.to(dtype), layer.bias.to(dtype))


class _Several(Quantizer):
    """What `Grouped` and `Residual` share: parts, and codes side by side in order of the parts."""

    def __init__(self, parts: Sequence[Quantizer], *, dim: int) -> None:
        super().__init__(dim=dim, codebook_sizes=tuple(size for part in parts for size in part.codebook_sizes))
        self.parts = nn.ModuleList(parts)

    @property
    def _quantizers(self) -> list[Quantizer]:
        return [cast(Quantizer, part) for part in self.parts]

    def _join(self, x: Tensor, results: list[Quantized]) -> Quantized:
        """Codes and statistics one after the other, the loss averaged over parts."""
        names = results[0].stats.keys()
        stats = {name: torch.cat([result.stats[name] for result in results]) for name in names}
        loss = torch.stack([result.loss for result in results]).mean()
        return Quantized(x, torch.cat([result.codes for result in results], -1), loss, stats)


class Grouped(_Several):
    """Product quantization: consecutive groups of channels, each with a quantizer of its own.

    The loss is the mean over groups. State dict: `parts.{j}.*`.

    Args:
        parts: one quantizer per group, all of one class; the group has as many channels as its quantizer.

    Raises:
        ValueError: no parts, or parts of different classes.
    """

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        _check_parts("Grouped", parts)
        super().__init__(parts, dim=sum(part.dim for part in parts))

    def forward(self, x: Tensor) -> Quantized:
        self._check_x(x, "forward")
        results = [part(piece) for part, piece in zip(self._quantizers, self._split(x), strict=True)]
        return self._join(torch.cat([result.x for result in results], -1), results)

    def encode(self, x: Tensor) -> Tensor:
        self._check_x(x, "encode", finite=True)
        return torch.cat([part.encode(piece) for part, piece in zip(self._quantizers, self._split(x), strict=True)], -1)

    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes, "decode")
        pieces = codes.split([part.depth for part in self._quantizers], dim=-1)
        return torch.cat([part.decode(piece) for part, piece in zip(self._quantizers, pieces, strict=True)], -1)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split([part.dim for part in self._quantizers], dim=-1)


class Residual(_Several):
    """Any quantizers one after the other on what the ones before left over; for plain codebooks `RVQ` is much faster.

    The residual is a constant for the next part, so x gets the gradient of every part, as in `RVQ` with
    `gradient_scale="per_depth"`. The loss is the mean over parts. State dict: `parts.{j}.*`.

    Args:
        parts: quantizers of equal `dim` and class with one code each.

    Raises:
        ValueError: no parts, or parts of different classes or widths, or with several codes.
    """

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        _check_parts("Residual", parts)
        if len({part.dim for part in parts}) != 1 or any(part.depth != 1 for part in parts):
            raise ValueError(
                f"Residual: parts have dim {[part.dim for part in parts]} and depth {[part.depth for part in parts]}. "
                f"Allowed: equal widths, one code each."
            )
        super().__init__(parts, dim=parts[0].dim)

    def forward(self, x: Tensor, *, depth: int | None = None) -> Quantized:
        """Quantize `x (..., dim)` with the first `depth` parts, None is all; codes of the others are not given."""
        self._check_x(x, "forward")
        residual, results = x.to(working_dtype(x.dtype)), []
        total = torch.zeros_like(residual)
        for part in self._first(depth, "forward"):
            result = part(residual)
            residual = residual - result.x.detach()
            total = total + result.x
            results.append(result)
        return self._join(total.to(x.dtype), results)

    def encode(self, x: Tensor, *, depth: int | None = None) -> Tensor:
        """Codes `(..., depth)` of `x (..., dim)` with the first `depth` parts, None is all.

        Raises:
            ValueError: as `Quantizer.encode`, or `depth` outside 1..number of parts.
        """
        self._check_x(x, "encode", finite=True)
        residual, codes = x.detach().to(working_dtype(x.dtype)), []
        for part in self._first(depth, "encode"):
            codes.append(part.encode(residual))
            residual = residual - part.decode(codes[-1])
        return torch.cat(codes, -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum the vectors of codes `(..., m)`, those of the first m parts."""
        self._check_codes(codes, "decode", shorter=True)
        pieces = zip(self._quantizers, codes.split(1, dim=-1), strict=False)
        return torch.stack([part.decode(piece) for part, piece in pieces]).sum(0)

    def _first(self, depth: int | None, where: str) -> Sequence[Quantizer]:
        if depth is None:
            return self._quantizers
        check_integer(f"Residual.{where}", "depth", depth, low=1, high=self.depth)
        return self._quantizers[:depth]


def _check_parts(owner: str, parts: Sequence[Quantizer]) -> None:
    if not parts or len({type(part) for part in parts}) != 1:
        raise ValueError(
            f"{owner}: parts are {[type(part).__name__ for part in parts]}. Allowed: one or more quantizers of one class."
        )
