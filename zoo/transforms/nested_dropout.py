"""Nested dropout: how many of the ordered tokens an item keeps in training.

Source: FlexTok (arXiv 2502.13967), after nested dropout (arXiv 1402.0915); the map of "uniform_pow2" is checked against
tests/parity/flextok/units.
"""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["KeepSampling", "draw_keep", "powers_of_two", "round_up_to_power_of_two"]

KeepSampling = Literal["uniform", "pow2", "uniform_pow2", "all"]


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most` itself."""
    ladder = [2**i for i in range(most.bit_length()) if 2**i <= most]
    return ladder if ladder[-1] == most else [*ladder, most]


def round_up_to_power_of_two(k: Tensor, most: int) -> Tensor:
    """Smallest power of two that is not below `k`, at most `most`; int64, same shape."""
    ladder = torch.tensor(powers_of_two(most), device=k.device)
    return ladder[torch.searchsorted(ladder, k)]


def draw_keep(batch: int, most: int, *, sampling: KeepSampling, generator: torch.Generator) -> Tensor:
    """Draw the number of kept tokens for each item, `(b,)` int64 in 1..most.

    Args:
        batch: number of items.
        most: tokens there are.
        sampling: "uniform" over 1..most; "pow2" uniform over the powers of two; "uniform_pow2" uniform, then rounded up to a
            power of two; "all" keeps everything.
        generator: source of the draws.
    """
    device = generator.device
    if sampling == "all":
        return torch.full((batch,), most, dtype=torch.int64, device=device)
    if sampling == "pow2":
        ladder = torch.tensor(powers_of_two(most), device=device)
        return ladder[torch.randint(len(ladder), (batch,), generator=generator, device=device)]
    k = torch.randint(1, most + 1, (batch,), generator=generator, device=device)
    if sampling == "uniform":
        return k
    if sampling == "uniform_pow2":
        return round_up_to_power_of_two(k, most)
    raise ValueError(f"draw_keep: sampling={sampling!r}. Allowed: uniform, pow2, uniform_pow2, all.")
