"""Entropies of soft code assignments without the table of all codes.

When the codes are all sign vectors and logits are linear in x, p(code | x) is a product of one sigmoid per bit. The mean
entropy per vector is then a sum of binary entropies, and the distribution averaged over a batch is one matrix product of
two tables with half the bits each. Both are exact; a table of vectors x codes never exists.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.quantizers.distributed import differentiable_mean

__all__ = ["LogGuard", "distribution_entropy", "mean_bit_entropy", "mean_code_distribution"]

LogGuard = Literal["exact", "clamp", "add"]

_GUARD = 1e-5  # what published losses put inside the logarithm


def mean_bit_entropy(logits: Tensor) -> Tensor:
    """Average over vectors of the entropy of p(code | x), in nats.

    Args:
        logits: `(n, bits)`; sigmoid(logits) are the probabilities of the positive sign.
    """
    size = logits.abs()
    # H(sigmoid(l)) in |l|, where no digits cancel
    return (F.softplus(-size) + size * torch.sigmoid(-size)).sum(-1).mean()


def mean_code_distribution(logits: Tensor) -> Tensor:
    """Average p(code | x) over the vectors of all ranks: `(2^bits,)`, in some fixed order of codes.

    Ranks count equally, as they do in the averaged gradient. Memory is n 2^(bits/2) + 2^bits numbers.

    Args:
        logits: `(n, bits)` as in `mean_bit_entropy`.
    """
    probabilities = torch.sigmoid(logits)
    half = logits.shape[-1] // 2
    left, right = _products(probabilities[:, :half]), _products(probabilities[:, half:])
    return differentiable_mean((left.t() @ right).flatten() / len(logits))


def _products(probabilities: Tensor) -> Tensor:
    """All products of p or 1 - p over the columns of `(n, m)`: `(n, 2^m)`."""
    table = probabilities.new_ones(len(probabilities), 1)
    for j in range(probabilities.shape[1]):
        taken = table * probabilities[:, j : j + 1]
        table = torch.cat([table - taken, taken], 1)
    return table


def distribution_entropy(distribution: Tensor, guard: LogGuard = "exact") -> Tensor:
    """Entropy in nats of a distribution `(k,)`.

    Args:
        distribution: non-negative, summing to 1.
        guard: "exact"; "clamp" takes log(max(p, 1e-5)) and "add" log(p + 1e-5), as published losses do. Both make the
            value wrong once k is near 1e5: at 2^18 codes a uniform distribution would count as 11.5 instead of 12.5 nats.
    """
    if guard == "add":
        logs = torch.log(distribution + _GUARD)
    else:
        logs = torch.log(distribution.clamp_min(_GUARD if guard == "clamp" else torch.finfo(distribution.dtype).tiny))
    return -(distribution * logs).sum()
