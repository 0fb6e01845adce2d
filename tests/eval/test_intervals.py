import math

import numpy as np
import pytest
import torch

from eval.intervals import bootstrap_mean, paired_difference


def test_interval_of_a_normal_sample():
    """For many values the percentile interval is mean +- 1.96 standard errors, up to the noise of 1,000 resamples."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 10
    low, high = bootstrap_mean(values)
    error = float(values.std() / math.sqrt(400))
    assert low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.15 * error)


def test_interval_of_two_values_is_exact():
    """Half the resamples of two values hold both, a quarter each holds one twice: the 2.5 % quantiles are the values."""
    assert bootstrap_mean(torch.tensor([1.0, 5.0])) == (1.0, 5.0)


def test_seeded_and_alone():
    values = torch.rand(30, generator=torch.Generator().manual_seed(1))
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    bootstrap_mean(values)
    assert torch.equal(torch.rand(1), before)
    assert bootstrap_mean(values[:1]) is None
    with pytest.raises(ValueError, match=r"values hold NaN or infinity"):
        bootstrap_mean(torch.tensor([1.0, math.nan]))


def test_pairing_sees_what_the_means_hide():
    """Items differ much more than the tokenizers do; only the paired difference is sure."""
    rng = np.random.default_rng(0)
    level = rng.normal(25, 6, 60)
    a = {f"k{i}": float(value + 0.3 + rng.normal(0, 0.2)) for i, value in enumerate(level)}
    b = {f"k{i}": float(value) for i, value in enumerate(level)}
    found = paired_difference(a, b, score="psnr_db")
    assert found.n == 60
    assert found.mean == pytest.approx(np.mean([a[key] - b[key] for key in a]))
    assert found.differs
    assert found.ci95[0] > 0.2
    alone = [bootstrap_mean(torch.tensor(list(items.values()))) for items in (a, b)]
    assert alone[0][0] < alone[1][1], "the two intervals overlap"


def test_failed_items_and_ties():
    a = {"x": 1.0, "y": 3.0, "z": math.nan, "w": 5.0}
    found = paired_difference(a, {"x": 1.0, "y": 2.0, "z": 1.0, "w": 6.0})
    assert (found.n, found.dropped) == (3, 1)
    assert found.mean == 0
    assert found.higher == pytest.approx(0.5)
    assert not found.differs


def test_other_items_are_refused():
    with pytest.raises(ValueError, match=r"1 items are in one set only, such as 'y'. Evaluate both"):
        paired_difference({"x": 1.0}, {"x": 1.0, "y": 2.0})
    with pytest.raises(ValueError, match=r"no item was scored by both"):
        paired_difference({"x": math.nan}, {"x": 1.0})
