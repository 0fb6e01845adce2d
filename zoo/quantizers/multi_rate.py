"""Residual quantization at several rates: coarse levels see long stretches of the signal, fine ones what is left of short ones.

Paper: Siuzdak, Grötschla, Lanzendörfer, "SNAC: Multi-Scale Neural Audio Codec", arXiv 2410.14411. The numbers are those of the
public class (tests/parity/snac).

One position is one code of the coarsest level, and the codes of the finer levels that lie in it follow on the depth axis, level
after level, each in order of time: 1 + 2 + 4 codes for strides 4, 2, 1. Unlike the other quantizers it needs the axis of time, so
`x` is `(b, frames, dim)`, whole positions of frames, and codes are `(b, n, d)`.
"""

from typing import cast

import torch
from torch import Tensor, nn

from zoo.quantizers.base import Quantized, check_integer
from zoo.quantizers.composed import Projected
from zoo.quantizers.vq import VQ

__all__ = ["MultiRateRVQ"]


class MultiRateRVQ(nn.Module):
    """Residual quantizer whose levels see means over `strides` frames.

    Args:
        dim: channels of the vectors.
        codebook_size: entries of each level's codebook.
        codebook_dim: channels in which codes are compared, by angle.
        strides: frames that a code of each level stands for, coarse to fine; the first is a multiple of all.

    Raises:
        ValueError: sizes below 1, or strides that do not divide the first.
    """

    def __init__(self, *, dim: int, codebook_size: int, codebook_dim: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        check_integer("MultiRateRVQ", "dim", dim, low=1)
        if not strides or any(stride < 1 or strides[0] % stride for stride in strides):
            raise ValueError(f"MultiRateRVQ: strides={strides}. Needed: one or more, each 1 or more and a divisor of the first.")
        self.strides = tuple(strides)
        self.rates = tuple(strides[0] // stride for stride in strides)
        self.levels = nn.ModuleList(
            Projected(
                VQ(
                    dim=codebook_dim,
                    codebook_size=codebook_size,
                    learning="gradient",
                    distance="cosine_search",
                    commitment_weight=0.25,
                    codebook_weight=1.0,
                    kmeans_iterations=0,
                    seed=level,
                ),
                dim=dim,
            )
            for level in range(len(strides))
        )

    @property
    def _levels(self) -> list[Projected]:
        return [cast(Projected, level) for level in self.levels]

    def forward(self, x: Tensor) -> Quantized:
        """Quantize `x (b, frames, c)` for training: the gradient passes straight through, the loss is the mean over levels."""
        residual, total, results = x, torch.zeros_like(x), []
        for level, stride in zip(self._levels, self.strides, strict=True):
            result = level(residual.unflatten(1, (-1, stride)).mean(2))
            vectors = result.x.repeat_interleave(stride, 1)
            residual, total = residual - vectors.detach(), total + vectors
            results.append(result)
        codes = torch.cat([self._deep(r.codes, rate) for r, rate in zip(results, self.rates, strict=True)], -1)
        stats = {name: torch.cat([r.stats[name] for r in results]) for name in results[0].stats}
        return Quantized(total, codes, torch.stack([r.loss for r in results]).mean(), stats)

    def encode(self, x: Tensor, *, levels: int | None = None) -> Tensor:
        """Codes of `x (b, frames, c)`: `(b, n, d)` of the first levels."""
        residual, codes = x, []
        for level, stride, rate in list(zip(self._levels, self.strides, self.rates, strict=True))[:levels]:
            found = level.encode(residual.unflatten(1, (-1, stride)).mean(2))
            codes.append(self._deep(found, rate))
            residual = residual - level.decode(found).repeat_interleave(stride, 1)
        return torch.cat(codes, -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum the vectors of codes `(b, n, d)` of the first levels: `(b, frames, c)`."""
        rates = [rate for rate, end in zip(self.rates, self._ends(), strict=True) if end <= codes.shape[-1]]
        parts = codes.split(rates, -1)
        vectors = [
            level.decode(part.flatten(1)[..., None]).repeat_interleave(stride, 1)
            for level, part, stride in zip(self._levels, parts, self.strides, strict=False)
        ]
        total = vectors[0]
        for value in vectors[1:]:
            total = total + value
        return total

    def _deep(self, codes: Tensor, rate: int) -> Tensor:
        """Put the codes `(b, n * rate, 1)` of one level on the depth axis."""
        return codes[..., 0].unflatten(1, (-1, rate))

    def _ends(self) -> list[int]:
        return [sum(self.rates[: i + 1]) for i in range(len(self.rates))]
