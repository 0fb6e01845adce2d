"""Gaussian noise that is a function of seed, stream and position, so that a signal gets the same however it is cut."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["PositionNoise"]

_BLOCK = 4096  # numbers of one draw; part of what a seed means
_MASK = (1 << 64) - 1


def _mixed(*numbers: int) -> int:
    """Mix numbers to 63 bits (the finaliser of splitmix64)."""
    state = 0
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


class PositionNoise:
    """Noise of items with a seed each.

    It is drawn on the CPU in fixed blocks, so that a seed means the same on every device and for every cut.

    Args:
        seeds: one for each item, or one for all.
        device: of the result.
        dtype: of the result.
    """

    def __init__(self, seeds: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> None:
        self.seeds, self.device, self.dtype = list(seeds), device, dtype

    def __call__(self, stream: int, positions: tuple[int, int]) -> Tensor:
        """Give `(n, items)` standard normal numbers of `positions` = (start, end) of one stream."""
        start, end = positions
        columns = [self._column(seed, stream, start, end) for seed in self.seeds]
        return torch.stack(columns, 1).to(self.device, self.dtype)

    def _column(self, seed: int, stream: int, start: int, end: int) -> Tensor:
        first = start // _BLOCK
        draws = []
        for block in range(first, -(-end // _BLOCK)):
            generator = torch.Generator().manual_seed(_mixed(seed, stream, block))
            draws.append(torch.randn(_BLOCK, generator=generator))
        return torch.cat(draws)[start - first * _BLOCK : end - first * _BLOCK] if draws else torch.empty(0)
