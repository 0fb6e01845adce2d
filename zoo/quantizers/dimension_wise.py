"""Dimension-wise post-training quantization: every latent channel on its own, without training.

Paper: Wang et al., "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation" (TokenBridge),
arXiv 2503.16430. Behaviour checked against YuqingWang1029/TokenBridge (MIT) through stored fixtures. Differences: binary
search instead of a table of values x levels; besides the published fixed range, `calibrate` and `allocate_bits` fit range
and levels to the latents of any autoencoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.quantizers.base import Quantized, Quantizer, check_integer, check_number, exact_math, working_dtype
from zoo.quantizers.gradients import straight_through
from zoo.quantizers.usage import usage_stats

__all__ = ["DimensionWise", "allocate_bits", "calibrate", "normal_cells"]


def normal_cells(levels: int, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a standard normal variable, limited to +-reach, into cells of equal probability.

    Computed in float32 after the quantiles, as the published tables were, so that values agree in the last digits.

    Args:
        levels: number of cells, 1..1024.
        reach: where the outer cells end.

    Returns:
        float32 on the CPU: edges `(levels + 1,)`, Phi^-1(i / levels) clipped to +-reach; values `(levels,)`, the mean of
        the variable inside each cell; thresholds `(levels - 1,)`, the midpoints of neighbouring values. The thresholds,
        not the edges, decide: a number goes to the nearest value.
    """
    share = torch.arange(levels + 1, dtype=torch.float64, device="cpu") / levels
    edges = torch.special.ndtri(share).float().clamp(-reach, reach)
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    mass = ((1 + torch.erf(edges / math.sqrt(2))) / 2).diff().clamp_min(1e-10)
    values = -density.diff() / mass
    return edges, values, (values[:-1] + values[1:]) / 2


class DimensionWise(Quantizer):
    """Scalar quantizer per channel: codes `(..., dim)`, one per channel. No parameters, no loss.

    u = clip((x - centre) / spread, -reach, reach) goes to the nearest of the cell values of `normal_cells`; the result is
    centre + spread * value. The published setting, range +-5 and reach 3, is the default: centre 0 and spread 5/3.
    Gradients pass unchanged.

    Args:
        dim: channels.
        levels: cells of every channel, or one number per channel, 1..1024; 64 is the published 6 bits.
        centre: one number, or one per channel.
        spread: one number, or one per channel, above 0. Where latents have a known deviation, that deviation makes the
            cells equally probable; see `calibrate`.
        reach: limit of u.

    Raises:
        ValueError: an argument outside its range.
    """

    _centre: Tensor
    _spread: Tensor
    _values: Tensor
    _thresholds: Tensor

    def __init__(
        self,
        *,
        dim: int,
        levels: int | Sequence[int] = 64,
        centre: float | Sequence[float] = 0.0,
        spread: float | Sequence[float] = 5.0 / 3.0,
        reach: float = 3.0,
    ) -> None:
        check_integer("DimensionWise", "dim", dim, low=1)
        check_number("DimensionWise", "reach", reach, low=0, open_low=True)
        per_channel = [levels] * dim if isinstance(levels, int) else list(levels)
        centres = [centre] * dim if isinstance(centre, int | float) else list(centre)
        spreads = [spread] * dim if isinstance(spread, int | float) else list(spread)
        for name, given in (("levels", per_channel), ("centre", centres), ("spread", spreads)):
            if len(given) != dim:
                raise ValueError(f"DimensionWise: {name} has {len(given)} entries. Allowed: one number, or dim={dim} of them.")
        for level in per_channel:
            check_integer("DimensionWise", "levels", level, low=1, high=1024)
        for value in centres:
            check_number("DimensionWise", "centre", value, low=-math.inf)
        for value in spreads:
            check_number("DimensionWise", "spread", value, low=0, open_low=True)
        super().__init__(dim=dim, codebook_sizes=tuple(per_channel))
        self.reach = reach
        self.register_constant("_centre", torch.tensor(centres, dtype=torch.float32, device="cpu"))
        self.register_constant("_spread", torch.tensor(spreads, dtype=torch.float32, device="cpu"))
        # One row of tables if all channels have the same levels, else one per channel, filled up with infinities.
        rows = per_channel[:1] if len(set(per_channel)) == 1 else per_channel
        values = torch.zeros(len(rows), max(rows), device="cpu")
        thresholds = torch.full((len(rows), max(rows) - 1), math.inf, device="cpu")
        for row, level in enumerate(rows):
            _, row_values, row_thresholds = normal_cells(level, reach)
            values[row, :level] = row_values
            thresholds[row, : level - 1] = row_thresholds
        self.register_constant("_values", values)
        self.register_constant("_thresholds", thresholds)

    def forward(self, x: Tensor) -> Quantized:
        self._check_x(x, "forward")
        with exact_math(x.device.type):
            inside = x.to(working_dtype(x.dtype))
            codes = self._codes(inside.detach())
            out = straight_through(inside, self._lookup(codes).to(inside.dtype))
        loss = torch.zeros((), device=x.device)
        return Quantized(out.to(x.dtype), codes, loss, usage_stats(codes, self.codebook_sizes))

    def encode(self, x: Tensor) -> Tensor:
        self._check_x(x, "encode", finite=True)
        return self._codes(x.detach().to(working_dtype(x.dtype)))

    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes, "decode")
        return self._lookup(codes.long())

    @property
    def values(self) -> Tensor:
        """The values a channel can take, float32 `(dim, largest number of levels)`, ascending; NaN where fewer."""
        table = self._values.expand(self.dim, -1) * self._spread[:, None] + self._centre[:, None]
        sizes = torch.tensor(self.codebook_sizes, device=table.device)
        return table.masked_fill(torch.arange(table.shape[1], device=table.device) >= sizes[:, None], math.nan)

    def _codes(self, x: Tensor) -> Tensor:
        unit = ((x - self._centre) / self._spread).clamp(-self.reach, self.reach).float()
        if len(self._thresholds) == 1:
            return torch.bucketize(unit.contiguous(), self._thresholds[0])
        columns = unit.reshape(-1, self.dim).t().contiguous()
        return torch.searchsorted(self._thresholds, columns).t().reshape(x.shape)

    def _lookup(self, codes: Tensor) -> Tensor:
        if len(self._values) == 1:
            picked = self._values[0][codes]
        else:
            picked = self._values.gather(1, codes.reshape(-1, self.dim).t()).t().reshape(codes.shape)
        return picked * self._spread + self._centre


def calibrate(latents: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure `centre` and `spread` of each channel so that cells become about equally probable.

    Args:
        latents: finite `(..., dim)`, at least two vectors.

    Returns:
        means and standard deviations per channel, as plain numbers for `DimensionWise`; a constant channel gets spread 1.

    Raises:
        ValueError: fewer than two vectors, or values that are not finite.
    """
    rows = latents.detach().reshape(-1, latents.shape[-1]).double()
    if len(rows) < 2 or not torch.isfinite(rows).all():
        raise ValueError(f"calibrate: latents {tuple(latents.shape)}. Allowed: two or more vectors of finite values.")
    deviation = rows.std(0)
    spread = torch.where(deviation > 0, deviation, 1.0)
    return tuple(rows.mean(0).tolist()), tuple(spread.tolist())


def allocate_bits(spread: Sequence[float], *, total_bits: int, max_bits: int = 8) -> tuple[int, ...]:
    """Share bits among channels so that the summed squared error is about smallest.

    One more bit divides a channel's error by about four, so each bit goes where error is largest.

    Args:
        spread: standard deviation of each channel.
        total_bits: bits of one position, at most max_bits * channels.
        max_bits: bits of one channel.

    Returns:
        bits per channel, 0 or more, adding up to `total_bits`; levels are 2^bits.

    Raises:
        ValueError: `total_bits` or `max_bits` outside its range.
    """
    check_integer("allocate_bits", "max_bits", max_bits, low=1, high=10)
    check_integer("allocate_bits", "total_bits", total_bits, low=0, high=max_bits * len(spread))
    bits = [0] * len(spread)
    for _ in range(total_bits):
        errors = [s * s / 4.0**b if b < max_bits else -1.0 for s, b in zip(spread, bits, strict=True)]
        bits[errors.index(max(errors))] += 1
    return tuple(bits)
