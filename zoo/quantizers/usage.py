"""How well a codebook is used: per batch, cheaply, and over a window.

One batch answers only "is something broken now": with fewer codes than entries even a perfect tokenizer leaves entries
unused, and perplexity is biased low. `UsageMonitor` counts over twenty times the codebook size and over all ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.quantizers.base import check_integer
from zoo.quantizers.distributed import all_reduce_sum

__all__ = ["UsageMonitor", "usage_stats"]

_DENSE_LIMIT = 1 << 20


def usage_stats(codes: Tensor, codebook_sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Count the codes of one batch.

    Args:
        codes: integers `(..., depth)`; -1 (dropped) is not counted.
        codebook_sizes: entries at each depth.

    Returns:
        Float32 tensors `(depth,)`: `used_fraction` in [0, 1], the share of entries used at least once; `perplexity` in
        [1, codebook_size] (0 when nothing was counted), the exponential of the entropy of the code frequencies;
        `dead_codes`, the number of entries not used at all.
    """
    flat = codes.detach().reshape(-1, len(codebook_sizes))
    columns = [_used_and_perplexity(flat[:, j], size) for j, size in enumerate(codebook_sizes)]
    used = torch.stack([column[0] for column in columns])
    sizes = torch.tensor(codebook_sizes, dtype=torch.float32, device=codes.device)
    return {
        "used_fraction": used / sizes,
        "perplexity": torch.stack([column[1] for column in columns]),
        "dead_codes": sizes - used,
    }


def code_counts(codes: Tensor, size: int) -> Tensor:
    """Count a flat tensor of codes: int64 `(size,)`; negative codes are left out. Shapes do not depend on values."""
    if codes.device.type == "cpu" and not torch.compiler.is_compiling():  # elsewhere bincount waits for the device
        return torch.bincount(codes.long() + 1, minlength=size + 1)[1:]
    kept = codes >= 0
    counts = torch.zeros(size, dtype=torch.int64, device=codes.device)
    return counts.scatter_add_(0, codes.clamp_min(0).long(), kept.long())


def _used_and_perplexity(codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    if size <= _DENSE_LIMIT:
        return _summary(code_counts(codes, size))
    # A count per entry would be larger than the batch: count runs of the sorted codes instead, one slot per code.
    ordered = codes.sort().values
    starts = torch.ones_like(ordered)
    starts[1:] = (ordered[1:] != ordered[:-1]).long()
    runs = torch.zeros_like(ordered).scatter_add_(0, starts.cumsum(0) - 1, (ordered >= 0).long())
    return _summary(runs)


def _summary(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Number of positive counts and exp(entropy) of the frequencies, both float32 scalars."""
    total = counts.sum().clamp_min(1)
    share = counts.double() / total
    perplexity = torch.exp(-torch.xlogy(share, share).sum()) * (counts.sum() > 0)
    return (counts > 0).sum().float(), perplexity.float()


class UsageMonitor(nn.Module):
    """Codebook usage over a sliding window of codes and over all ranks.

    The window is cut into blocks; when the newest block is full the oldest one is forgotten, so a warm monitor looks back
    on at least `window * (blocks - 1) / blocks` codes per depth and rank. Nothing is kept in state dicts: after a resume
    the window fills again.

    Args:
        codebook_size: entries of one codebook; at most 2^20.
        depth: number of codebooks watched.
        window: codes per depth and rank to look back on; None is twenty times the codebook size.
        blocks: parts of the window.
    """

    counts: Tensor

    def __init__(self, *, codebook_size: int, depth: int = 1, window: int | None = None, blocks: int = 4) -> None:
        check_integer("UsageMonitor", "codebook_size", codebook_size, low=1, high=_DENSE_LIMIT)
        check_integer("UsageMonitor", "depth", depth, low=1)
        check_integer("UsageMonitor", "blocks", blocks, low=1)
        window = 20 * codebook_size if window is None else window
        check_integer("UsageMonitor", "window", window, low=1)
        super().__init__()
        self.codebook_size, self.depth, self.window = codebook_size, depth, window
        self._block_length = -(-window // blocks)
        self._filled = 0
        self._current = 0
        self.register_buffer("counts", torch.zeros(blocks, depth, codebook_size, dtype=torch.int64), persistent=False)

    def update(self, codes: Tensor) -> None:
        """Count `codes`, integers `(..., depth)` in [-1, codebook_size); -1 is not counted.

        Raises:
            ValueError: the last axis is not `depth`.
        """
        if codes.ndim < 1 or codes.shape[-1] != self.depth:
            raise ValueError(
                f"UsageMonitor.update: codes have shape {tuple(codes.shape)}. Allowed: (..., {self.depth}). "
                f"Pass the codes of a quantizer unchanged."
            )
        if self._filled >= self._block_length:
            self._current = (self._current + 1) % len(self.counts)
            self.counts[self._current].zero_()
            self._filled = 0
        flat = codes.detach().reshape(-1, self.depth)
        for j in range(self.depth):
            self.counts[self._current, j] += code_counts(flat[:, j], self.codebook_size)
        self._filled += len(flat)

    def compute(self) -> dict[str, Tensor]:
        """Give `used_fraction`, `perplexity`, `dead_codes`, `counted`, each float32 `(depth,)`, summed over all ranks.

        Every rank must call it at the same step: it is a collective.
        """
        totals = all_reduce_sum(self.counts.sum(0))
        summaries = [_summary(counts) for counts in totals]
        used = torch.stack([summary[0] for summary in summaries])
        return {
            "used_fraction": used / self.codebook_size,
            "perplexity": torch.stack([summary[1] for summary in summaries]),
            "dead_codes": self.codebook_size - used,
            "counted": totals.sum(-1).float(),
        }

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.counts.zero_()
        self._filled = self._current = 0
