"""How sure a mean is: bootstrap over items, seeded, and the paired difference of two tokenizers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RESAMPLES", "PairedDifference", "bootstrap_mean", "paired_difference"]

RESAMPLES = 1000
_MOST_AT_ONCE = 2**22  # draws held in memory


def bootstrap_mean(values: Tensor, *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """Give the 95 % percentile interval of the mean of `values` `(n,)`, items drawn with replacement; None for fewer than 2.

    Raises:
        ValueError: a value is not finite.
    """
    if len(values) < 2:
        return None
    if not bool(torch.isfinite(values).all()):
        raise ValueError("bootstrap_mean: values hold NaN or infinity. Leave failed items out, and count them.")
    values = values.double().cpu()
    generator = torch.Generator().manual_seed(seed)
    n, means = len(values), []
    for first in range(0, resamples, step := max(1, _MOST_AT_ONCE // n)):
        rows = min(step, resamples - first)
        means.append(values[torch.randint(n, (rows, n), generator=generator)].mean(1))
    low, high = torch.quantile(torch.cat(means), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Mean of a - b over the items that both scored.

    Attributes:
        mean: of the differences.
        ci95: its bootstrap interval; None for fewer than 2 items. A difference is shown where it does not hold 0.
        n: items that both scored.
        dropped: items that failed in one or both.
        higher: share of the items where a is higher; ties count half.
    """

    mean: float
    ci95: tuple[float, float] | None
    n: int
    dropped: int
    higher: float

    @property
    def differs(self) -> bool:
        """The interval does not hold 0."""
        return self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1]


def paired_difference(
    items_a: Mapping[str, float], items_b: Mapping[str, float], *, score: str = "score", seed: int = 0, resamples: int = RESAMPLES
) -> PairedDifference:
    """Compare two tokenizers on the same items; see `eval.results.item_scores` for reading the numbers.

    Args:
        items_a: key of the item -> score, NaN where it failed.
        items_b: the same items for the other tokenizer.
        score: name of the score, for messages.
        seed: of the bootstrap.
        resamples: draws of the bootstrap.

    Raises:
        ValueError: the two do not hold the same items, or no item was scored by both.
    """
    if items_a.keys() != items_b.keys():
        other = sorted(items_a.keys() ^ items_b.keys())
        raise ValueError(
            f"paired_difference of {score}: {len(other)} items are in one set only, such as {other[0]!r}. "
            "Evaluate both tokenizers on the same data set."
        )
    a = torch.tensor([items_a[key] for key in items_a], dtype=torch.float64)
    b = torch.tensor([items_b[key] for key in items_a], dtype=torch.float64)
    difference = a - b
    good = difference[~difference.isnan()]
    if not len(good):
        raise ValueError(f"paired_difference of {score}: no item was scored by both. Nothing can be compared.")
    wins = (good > 0).double() + 0.5 * (good == 0).double()
    return PairedDifference(
        mean=float(good.mean()),
        ci95=bootstrap_mean(good, seed=seed, resamples=resamples),
        n=len(good),
        dropped=len(difference) - len(good),
        higher=float(wins.mean()),
    )
