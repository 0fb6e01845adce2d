"""Rotary tables, masks and the key-value cache against independent formulas."""

import math

import pytest
import torch

from zoo.layers.transformer import CausalTransformer, KVCache, grid_coordinates, group_mask, rope_table, rotate


def test_rotary_table_of_a_grid():
    table = rope_table(grid_coordinates((2, 3)), 8)
    assert table.shape == (6, 4, 2)
    for n, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        angles = [row, row / 100, column, column / 100]
        expected = torch.tensor([[math.cos(a), math.sin(a)] for a in angles])
        torch.testing.assert_close(table[n], expected)


def test_pairs_are_shared_among_three_axes():
    table = rope_table(torch.tensor([[1.0, 2.0, 3.0]]), 8)
    expected = torch.tensor([1.0, 1 / 100, 2.0, 3.0])
    torch.testing.assert_close(torch.atan2(table[0, :, 1], table[0, :, 0]), expected)
    with pytest.raises(ValueError, match="head=4"):
        rope_table(torch.zeros(1, 3), 4)


def test_scores_depend_on_distances_only():
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    table = rope_table(torch.arange(10.0)[:, None], 8)
    score = [float((rotate(q, table[i : i + 1]) * rotate(k, table[j : j + 1])).sum()) for i, j in ((2, 0), (7, 5), (7, 4))]
    assert score[0] == pytest.approx(score[1], abs=1e-5)
    assert abs(score[0] - score[2]) > 1e-3


def test_group_mask():
    expected = [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert group_mask((1, 2, 1)).int().tolist() == expected


def test_cache_writes_over_what_was_not_kept():
    cache = KVCache(blocks=1, batch=1, heads=1, head=2, length=3, like=torch.zeros(1))
    cache.extend(0, torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    keys, _ = cache.extend(0, 2 * torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert keys.flatten().tolist() == [2, 2]
    cache.keep(1)
    keys, values = cache.extend(0, 3 * torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert keys.flatten().tolist() == [2, 2, 3, 3, 3, 3]
    assert values.flatten().tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("pieces", [(1,) * 6, (6,), (2, 3, 1), (1, 5)])
def test_a_cached_run_in_pieces_equals_the_whole(pieces):
    torch.manual_seed(0)
    trunk = CausalTransformer(width=16, depth=2, heads=2, hidden_multiple=8, eps=1e-5, dropout=0.0).eval()
    x = torch.randn(2, 6, 16)
    table = rope_table(torch.arange(6.0)[:, None], 8)
    whole = trunk(x, table)
    cache, start, parts = trunk.cache(2, 6), 0, []
    for count in pieces:
        parts.append(trunk(x[:, start : start + count], table[start : start + count], cache))
        start += count
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


def test_nothing_sees_later_positions():
    torch.manual_seed(0)
    trunk = CausalTransformer(width=16, depth=2, heads=2, hidden_multiple=8, eps=1e-5, dropout=0.0).eval()
    x = torch.randn(1, 5, 16)
    table = rope_table(torch.arange(5.0)[:, None], 8)
    changed = x.clone()
    changed[:, 3:] += 1
    before, after = trunk(x, table), trunk(changed, table)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])
