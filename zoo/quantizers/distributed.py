"""Sums and means over ranks, decided when they are called.

A module is often built before its process group exists, so nothing is remembered from construction. Outside a process
group, or in a group of one, every function returns its argument's own value.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["all_reduce_sum", "differentiable_mean", "gather_rows", "rank", "world_size"]


def world_size() -> int:
    """Ranks of the default process group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process in the default group, 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum `value` over all ranks; same shape on every rank. No gradient. The argument is not changed."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


class _MeanOverRanks(torch.autograd.Function):
    """Mean over ranks whose gradient is the mean of the ranks' gradients.

    With y = (1/R) sum_r x_r used in every rank's loss L_r, the data-parallel objective is (1/R) sum_r L_r. Its gradient
    with respect to x_s is (1/R) * (1/R) sum_r dL_r/dy. Data-parallel averaging of parameter gradients supplies one
    factor 1/R, this backward the other one together with the sum.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return all_reduce_sum(value) / world_size()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return all_reduce_sum(grad) / world_size()


def differentiable_mean(value: Tensor) -> Tensor:
    """Average `value` over ranks with the gradient that data-parallel training needs; every rank must take part."""
    return value if world_size() == 1 else _MeanOverRanks.apply(value)


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate `(n_r, d)` of all ranks in rank order: `(sum n_r, d)`, the same on every rank; n_r may differ."""
    if world_size() == 1:
        return rows
    rows = rows.detach().contiguous()
    mine = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(mine) for _ in range(world_size())]
    dist.all_gather(counts, mine)
    longest = max(int(count) for count in counts)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    pieces = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[: int(count)] for piece, count in zip(pieces, counts, strict=True)])
