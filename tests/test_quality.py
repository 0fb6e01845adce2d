"""Rate by quality: on stand-in scores that are known for every k, the smallest prefix is found, whatever their shape."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.tokens import Segment, Tokens, TokenSpec
from zoo.transforms.quality import Quality, psnr_db, smallest_tokens

SPEC = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(256,), ordered=True)


class Bench:
    """Items whose score at each k is given; `decode` gives the item's number and k as a picture, and counts its work."""

    def __init__(self, scores, spec=SPEC):
        self.scores = scores
        b, n = len(scores), len(scores[0])
        self.x = torch.arange(b, dtype=torch.float32).view(b, 1, 1, 1)
        self.tokens = Tokens(torch.arange(b).view(b, 1, 1).expand(b, n, 1), spec, torch.ones(b, 2, dtype=torch.int64))
        self.decoded = 0

    def decode(self, tokens):
        self.decoded += len(tokens)
        return torch.stack([tokens.data[:, 0, 0], tokens.counts], 1).float().view(-1, 2, 1, 1)

    def score(self, x, y):
        assert torch.equal(x[:, 0], y[:, 0]), "an item was scored against the reconstruction of another"
        return torch.tensor([self.scores[int(i)][int(k) - 1] for i, k in y.view(-1, 2)])

    def run(self, target, higher_is_better=True):
        return smallest_tokens(self.x, self.tokens, self.decode, Quality(target, self.score, higher_is_better))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 3), st.integers(1, 40), st.data())
def test_rising_scores_give_the_smallest_prefix(b, n, data):
    first = [data.draw(st.integers(1, n + 1)) for _ in range(b)]  # n + 1: never reached
    bench = Bench([[float(k >= f) for k in range(1, n + 1)] for f in first])
    tokens = bench.run(0.5)
    assert tokens.counts.tolist() == [min(f, n) for f in first]
    assert bench.decoded <= b * (2 * math.log2(n) + 3), "the search looks at few prefixes"


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 24), st.data())
def test_any_scores_give_a_k_that_reaches_while_the_one_before_does_not(n, data):
    scores = [[data.draw(st.floats(0, 1)) for _ in range(n)] for _ in range(2)]
    for row, k in zip(scores, Bench(scores).run(0.6).counts.tolist(), strict=True):
        if row[k - 1] >= torch.tensor(0.6):
            assert k == 1 or row[k - 2] < torch.tensor(0.6)
        else:
            assert k == n


def test_distances_are_better_when_they_are_small():
    bench = Bench([[5.0, 4.0, 3.0, 2.0], [9.0, 9.0, 9.0, 9.0]])
    assert bench.run(3.0, higher_is_better=False).counts.tolist() == [3, 4]


def test_a_score_that_is_no_number_reaches_nothing():
    assert Bench([[math.nan] * 4]).run(0.0).positions == (4,)


def test_multi_rate_tokens_are_cut_where_a_level_ends():
    levels = (Segment(length=1, stride=4), Segment(length=4, stride=2), Segment(length=16, stride=1))
    spec = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(256,), ordered=True, segments=levels)
    for first, wanted in ((1, 1), (2, 5), (5, 5), (6, 21), (99, 21)):
        bench = Bench([[float(k >= first) for k in range(1, 22)]], spec)
        assert bench.run(0.5).positions == (wanted,)


def test_items_that_already_differ_in_length():
    bench = Bench([[float(k >= first) for k in range(1, 9)] for first in (3, 7, 99)])
    bench.tokens = bench.tokens.keep([4, 8, 4])
    assert bench.run(0.5).counts.tolist() == [3, 7, 4]


def test_an_unordered_tokenizer_is_refused():
    spec = TokenSpec(tokenizer="stand_in", modality="image", vocabulary=(256,))
    with pytest.raises(ValueError, match=r"stand_in\.encode: quality needs an ordered tokenizer"):
        Bench([[1.0]], spec).run(0.5)


def test_one_prefix_needs_no_decode():
    bench = Bench([[0.0], [1.0]])
    assert bench.run(0.5).positions == (1,)
    assert bench.decoded == 0


def test_a_score_of_the_wrong_shape_is_refused():
    bench = Bench([[1.0, 1.0], [1.0, 1.0]])
    for wrong in (lambda x, y: torch.tensor(1.0), lambda x, y: torch.ones(1), lambda x, y: 1.0):
        with pytest.raises(ValueError, match=r"Quality: score.*each of the 2 items"):
            smallest_tokens(bench.x, bench.tokens, bench.decode, Quality(0.5, wrong))


# -- PSNR --------------------------------------------------------------------------------------------------------------------------


def test_psnr_by_hand():
    x = torch.zeros(3, 3, 4, 4)
    y = x + torch.tensor([0.2, 0.02, 0.0]).view(3, 1, 1, 1)
    assert psnr_db(x, y).tolist() == pytest.approx([20.0, 40.0, math.inf])


def test_psnr_cuts_an_overshoot_and_counts_in_full_precision():
    x = torch.ones(1, 3, 4, 4)
    assert psnr_db(x, x + 3).tolist() == [math.inf]
    y = torch.full((1, 3, 4, 4), 0.5)
    assert psnr_db(y.bfloat16(), y.bfloat16() + 0.25).tolist() == pytest.approx([10 * math.log10(4 / 0.0625)])
    assert psnr_db(y.bfloat16(), y.bfloat16()).dtype == torch.float32


def test_psnr_of_a_batch_is_that_of_its_items():
    draws = torch.Generator().manual_seed(0)
    x, y = (torch.rand(4, 3, 5, 6, generator=draws) * 2 - 1 for _ in range(2))
    for i in range(4):
        by_hand = 10 * math.log10(4 / float(((x[i].double() - y[i].double()) ** 2).mean()))
        assert float(psnr_db(x, y)[i]) == pytest.approx(by_hand, rel=1e-5)
