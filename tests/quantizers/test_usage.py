"""Usage statistics against counting by hand."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.quantizers import UsageMonitor, usage_stats


def by_hand(codes: list[int], size: int) -> tuple[float, float, float]:
    counts = Counter(code for code in codes if code >= 0)
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    return len(counts) / size, math.exp(entropy) if total else 0.0, size - len(counts)


@given(st.integers(1, 40), st.data())
def test_stats_equal_counting(size: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(st.integers(-1, size - 1), min_size=1, max_size=60))
    other = data.draw(st.lists(st.integers(-1, 2**40), min_size=len(codes), max_size=len(codes)))
    huge = 2**40 + 1  # counted by sorting, because it has more entries than memory
    stats = usage_stats(torch.tensor([codes, other]).t(), (size, huge))
    for depth, (column, k) in enumerate(((codes, size), (other, huge))):
        used, perplexity, dead = by_hand(column, k)
        assert stats["used_fraction"][depth].item() == pytest.approx(used, rel=1e-5)
        assert stats["perplexity"][depth].item() == pytest.approx(perplexity, rel=1e-4)
        assert stats["dead_codes"][depth].item() == pytest.approx(dead, rel=1e-5)


def test_stats_of_nothing() -> None:
    stats = usage_stats(torch.zeros(0, 1, dtype=torch.int64), (4,))
    assert stats["used_fraction"].tolist() == [0.0]
    assert stats["perplexity"].tolist() == [0.0]
    assert stats["dead_codes"].tolist() == [4.0]


def test_monitor_looks_back_over_its_window() -> None:
    monitor = UsageMonitor(codebook_size=8, window=40, blocks=4)
    for step in range(12):
        monitor.update(torch.full((5, 2, 1), step % 8))
    stats = monitor.compute()
    # blocks of ten codes, one step each: the last four hold steps 8..11, codes 0..3
    assert stats["counted"].tolist() == [40.0]
    assert stats["used_fraction"].tolist() == [0.5]
    assert stats["perplexity"].item() == pytest.approx(4)
    for _ in range(4):
        monitor.update(torch.zeros(10, 1, dtype=torch.int64))
    stats = monitor.compute()
    assert stats["dead_codes"].tolist() == [7.0]
    assert stats["perplexity"].item() == pytest.approx(1)
    monitor.reset()
    assert monitor.compute()["counted"].tolist() == [0.0]


def test_monitor_by_depth_and_default_window() -> None:
    monitor = UsageMonitor(codebook_size=4, depth=2)
    assert monitor.window == 80
    monitor.update(torch.tensor([[0, -1], [1, -1], [1, 3]]))
    stats = monitor.compute()
    assert stats["counted"].tolist() == [3.0, 1.0]
    assert stats["used_fraction"].tolist() == [0.5, 0.25]
    assert monitor.state_dict() == {}


def test_small_batches_mislead_but_the_window_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    monitor = UsageMonitor(codebook_size=256)
    for _ in range(100):
        codes = torch.randint(256, (64, 1), generator=generator)
        monitor.update(codes)
    assert usage_stats(codes, (256,))["perplexity"].item() < 64
    assert monitor.compute()["perplexity"].item() > 240


def test_refuses_arguments() -> None:
    with pytest.raises(ValueError, match="codebook_size=0"):
        UsageMonitor(codebook_size=0)
    with pytest.raises(ValueError, match="window=0"):
        UsageMonitor(codebook_size=4, window=0)
    with pytest.raises(ValueError, match=r"Allowed: \(\.\.\., 2\)"):
        UsageMonitor(codebook_size=4, depth=2).update(torch.zeros(3, 1, dtype=torch.int64))
