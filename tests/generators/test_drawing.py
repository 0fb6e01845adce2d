"""Draws of codes against counted frequencies and hand-computed cases."""

import math

import pytest
import torch

from zoo.generators.base import _item_seeds
from zoo.generators.drawing import check_draw_options, draw_codes, gaussians, guidance_at, uniforms


def test_frequencies_follow_the_probabilities():
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    codes = draw_codes(probabilities.log().expand(1000, 4), u)
    assert torch.bincount(codes, minlength=4).tolist() == [500, 0, 200, 300]


def test_ends_of_the_interval_never_give_an_impossible_code():
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).expand(2, 4)
    u = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw_codes(logits, u).tolist() == [1, 2]


def test_temperature_top_k_and_top_p():
    logits = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    rows = logits.expand(1000, 4)
    assert draw_codes(rows, u, temperature=0).unique().tolist() == [1]
    assert draw_codes(rows, u, top_k=1).unique().tolist() == [1]
    assert draw_codes(rows, u, top_k=2).unique().tolist() == [1, 2]
    assert draw_codes(rows, u, top_p=0.4).unique().tolist() == [1]
    assert draw_codes(rows, u, top_p=0.71).unique().tolist() == [1, 2, 3]
    half = torch.bincount(draw_codes(rows, u, temperature=0.5), minlength=4)
    assert half.tolist() == pytest.approx([1000 * p * p / 0.3 for p in (0.1, 0.4, 0.3, 0.2)], abs=1)


def test_seeds_give_streams_of_their_own():
    seeds = _item_seeds(3, 4, "test")
    assert len({*seeds, *_item_seeds(4, 4, "test")}) == 8
    assert torch.equal(uniforms(seeds, (5,))[2], uniforms([seeds[2]], (5,))[0])
    assert not torch.equal(gaussians(seeds, (5,)), gaussians(seeds, (5,), stream=1))
    assert _item_seeds([3, 9], 2, "test") == [_item_seeds(3, 1, "test")[0], _item_seeds(9, 1, "test")[0]]


def test_schedules():
    ends = {name: guidance_at(name, 4.0, 9, 10) for name in ("constant", "linear", "cosine", "log", "square")}
    assert ends == pytest.approx(dict.fromkeys(ends, 4.0))
    assert guidance_at("linear", 4.0, 4, 10) == pytest.approx(2.5)
    assert guidance_at("square", 4.0, 4, 10) == pytest.approx(1.75)
    assert guidance_at("square_root", 4.0, 0, 10) == 1.0
    assert guidance_at("cosine", 4.0, 4, 10) == pytest.approx(1 + 3 * math.sqrt(0.5))
    with pytest.raises(ValueError, match="schedule='cubic'"):
        guidance_at("cubic", 4.0, 0, 10)


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"temperature": 1.0, "top_k": 0}, {"temperature": 1.0, "top_p": 0.0}])
def test_refused_options(options):
    with pytest.raises(ValueError, match="Allowed"):
        check_draw_options("here", **options)
