"""Find the nearest code of many vectors with little memory.

argmin_k |x - c_k|^2 = argmin_k (|c_k|^2 / 2 - x.c_k): neither |x|^2 nor a square root is needed. Rows are taken a few
hundred at a time so that the scores stay in the cache; ties go to the first code.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Distance", "SearchTable", "nearest", "rows_at_once", "search_table", "squared_distances"]

Distance = Literal["euclidean", "cosine", "cosine_search"]

_SCORES_ON_CPU = 1 << 19  # scores held at once: 2 MB of float32, a second-level cache
_SCORES_ON_GPU = 1 << 26  # 256 MB


class SearchTable(NamedTuple):
    """A codebook prepared for the search: `offsets (k,)` = |c|^2 / 2 (zero for cosine) and `columns (dim, k)`."""

    offsets: Tensor
    columns: Tensor


def search_table(codebook: Tensor, distance: Distance = "euclidean") -> SearchTable:
    """Prepare `codebook (k, dim)`; no gradient."""
    codebook = codebook.detach()
    if distance == "euclidean":
        return SearchTable((codebook * codebook).sum(-1) / 2, codebook.t())
    return SearchTable(codebook.new_zeros(len(codebook)), F.normalize(codebook, dim=-1).t())


def rows_at_once(codebook_size: int, device: torch.device) -> int:
    """Rows whose scores are held together."""
    if device.type == "cpu":
        return max(64, min(1024, _SCORES_ON_CPU // codebook_size))
    return max(1024, _SCORES_ON_GPU // codebook_size)


def nearest(rows: Tensor, table: SearchTable) -> Tensor:
    """Give the code of each row.

    Args:
        rows: `(n, dim)`, no gradient needed; of any length for a cosine table.
        table: the prepared codebook.

    Returns:
        int64 `(n,)` in [0, k).
    """
    rows = rows.detach()
    if torch.compiler.is_compiling():  # the number of rows is symbolic, so it cannot steer a loop
        return torch.addmm(table.offsets, rows, table.columns, alpha=-1).argmin(-1)
    size = len(table.offsets)
    step = rows_at_once(size, rows.device)
    codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    scores = rows.new_empty(min(step, len(rows)), size)
    lowest = rows.new_empty(len(scores))
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        count = len(piece)
        torch.addmm(table.offsets, piece, table.columns, alpha=-1, out=scores[:count])
        # min with indices is about three times faster than argmin on a CPU and breaks ties in the same way
        torch.min(scores[:count], dim=-1, out=(lowest[:count], codes[start : start + count]))
    return codes


def squared_distances(rows: Tensor, codebook: Tensor) -> Tensor:
    """All |x - c|^2, `(n, k)`, differentiable, at the memory such a table needs."""
    lengths = (rows * rows).sum(-1, keepdim=True) + (codebook * codebook).sum(-1)
    return torch.addmm(lengths, rows, codebook.t(), alpha=-2)
