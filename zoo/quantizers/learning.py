"""Statistics from which codebooks are learned, equal on all ranks.

Every rank holds its own rows; "the joint rows" are those of all ranks in rank order. Each function gives every rank the
result that one process would get from the joint rows, and every rank reaches the same collectives in the same order.
Non-finite rows are left out: one bad batch must not end a codebook.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.quantizers.distributed import all_reduce_sum, gather_rows, rank
from zoo.quantizers.search import nearest, search_table

__all__ = [
    "StepCounter",
    "batch_sums",
    "draw_rows",
    "joint_offset",
    "kmeans",
    "pick_indices",
    "seeded_generator",
]

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: spreads neighbouring seeds


def seeded_generator(seed: int, stream: int, step: int = 0) -> torch.Generator:
    """A CPU generator that depends on its arguments only, so all ranks and a resumed run draw alike.

    `stream` keeps apart what is drawn for different purposes at one step.
    """
    return torch.Generator().manual_seed(((seed * 16 + stream) * _GOLDEN + step) % (1 << 63))


class StepCounter(nn.Module):
    """A count of training steps that is part of the state dict (`steps`) and is read back from the device only once."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0))
        self._value: int | None = None

    @property
    def value(self) -> int:
        """The count as a Python int."""
        if self._value is None:
            self._value = int(self.steps)
        return self._value

    def add_one(self) -> None:
        """Count one more step."""
        self._value = self.value + 1
        self.steps += 1

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._value = None
        super()._load_from_state_dict(*args, **kwargs)


def batch_sums(rows: Tensor, codes: Tensor, size: int) -> Tensor:
    """Sum the rows of each code.

    Args:
        rows: `(n, dim)`.
        codes: int64 `(n,)` in [-1, size); -1 is left out, and so is a row that is not finite.
        size: codebook size.

    Returns:
        `(size, dim + 1)`: the sums, then the count.
    """
    sums = rows.new_zeros(size + 1, rows.shape[-1] + 1)  # the last row collects what is left out
    real = torch.isfinite(rows).all(-1) & (codes >= 0)
    where = torch.where(real, codes, size)
    sums[:, :-1].index_add_(0, where, rows)
    sums[:, -1].index_add_(0, where, torch.ones_like(rows[:, 0]))
    return sums[:size]


def joint_offset(count: int, device: torch.device) -> tuple[int, int]:
    """Where this rank's `count` rows begin in the joint rows, and how many joint rows there are."""
    counts = gather_rows(torch.tensor([[count]], device=device)).flatten().tolist()
    return sum(counts[: rank()]), sum(counts)


def draw_rows(own: Tensor, offset: int, picks: Tensor) -> Tensor:
    """Give rows of the joint rows to every rank.

    Args:
        own: this rank's rows `(n, dim)`.
        offset: index of its first row, from `joint_offset`.
        picks: joint indices `(m,)`, equal on all ranks.

    Returns:
        `(m, dim)`, equal on all ranks.
    """
    local = picks.to(own.device) - offset
    mine = (local >= 0) & (local < len(own))
    result = own.new_zeros(len(picks), own.shape[-1])
    result[mine] = own[local[mine]]
    return all_reduce_sum(result)


def pick_indices(count: int, total: int, generator: torch.Generator) -> Tensor:
    """Draw `count` indices below `total`, all different where that is possible; int64 `(count,)`."""
    if count <= total:
        return torch.randperm(total, generator=generator)[:count]
    return torch.randint(total, (count,), generator=generator)


def kmeans(rows: Tensor, start: Tensor, *, iterations: int, cosine: bool = False) -> tuple[Tensor, Tensor]:
    """Run Lloyd's algorithm on the joint rows.

    Args:
        rows: this rank's rows `(n, dim)`; of unit length for `cosine`.
        start: first means `(k, dim)`, equal on all ranks.
        iterations: assignments to make.
        cosine: assign by inner product and put the means back to unit length.

    Returns:
        means `(k, dim)` and the counts of the last assignment, float `(k,)`. A mean without rows stays where it is.
    """
    means, counts = start, rows.new_zeros(len(start))
    for _ in range(iterations):
        codes = nearest(rows, search_table(means, "cosine" if cosine else "euclidean"))
        sums = all_reduce_sum(batch_sums(rows, codes, len(means)))
        counts = sums[:, -1]
        moved = sums[:, :-1] / counts.clamp_min(1)[:, None]
        if cosine:
            moved = F.normalize(moved, dim=-1)
        means = torch.where((counts > 0)[:, None], moved, means)
    return means, counts
