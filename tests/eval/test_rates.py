import pytest
import torch

from eval.rates import at_rate, check_rates, ladder, parse_rates, rate_text
from zoo.registry import Entry
from zoo.tokens import Segment, Tokens, TokenSpec


def made(**facts) -> tuple[Entry, TokenSpec]:
    own = {key: facts.pop(key) for key in ("segments",) if key in facts}
    shared = {"name": "toy", "family": "toy", "modality": "image", "summary": "", "layout": "1d", "discrete": True, "tokens": 6}
    info = Entry(**{**shared, **facts})
    vocabulary = info.vocabulary or (8,) * info.depth
    spec = TokenSpec(tokenizer="toy", modality="image", vocabulary=vocabulary, ordered=info.ordered, residual=info.residual, **own)
    return info, spec


ORDERED = made(ordered=True)
RESIDUAL = made(residual=True, depth=4)
FIXED = made()
LEVELS = made(ordered=True, tokens=21, segments=tuple(Segment(length=n, stride=16 // n) for n in (1, 4, 16)))


def test_ladders():
    assert ladder(*ORDERED) == [{"tokens": k} for k in (1, 2, 4, 6)]
    assert ladder(*made(ordered=True, tokens=8)) == [{"tokens": k} for k in (1, 2, 4, 8)]
    assert ladder(*RESIDUAL) == [{"depth": d} for d in (1, 2, 4)]
    assert ladder(*FIXED) == [{}]
    assert ladder(*LEVELS) == [{"tokens": k} for k in (1, 5, 21)]


def test_rates_are_checked_and_sorted():
    assert check_rates([4, 1, {"tokens": 4}], *ORDERED) == [{"tokens": 1}, {"tokens": 4}]
    assert check_rates([3], *RESIDUAL) == [{"depth": 3}]
    assert check_rates([{}], *FIXED) == [{}]
    with pytest.raises(ValueError, match=r"rates of toy: tokens=7. Allowed: 1..6"):
        check_rates([7], *ORDERED)
    with pytest.raises(ValueError, match=r"tokens=2. Allowed: 1, 5, 21"):
        check_rates([2], *LEVELS)
    with pytest.raises(ValueError, match=r"The rate of this tokenizer is depth=, 1..4"):
        check_rates([{"tokens": 2}], *RESIDUAL)
    with pytest.raises(ValueError, match=r"one rate only. Leave it out"):
        check_rates([1], *FIXED)
    with pytest.raises(ValueError, match=r"the list is empty"):
        check_rates([], *ORDERED)


def test_parsing():
    assert parse_rates("1, 2,16") == [1, 2, 16]
    assert parse_rates("depth=1,2") == [{"depth": 1}, {"depth": 2}]
    with pytest.raises(ValueError, match=r"rates: 'token=4'. Did you mean tokens=4"):
        parse_rates("token=4")
    with pytest.raises(ValueError, match=r"Give whole numbers with commas"):
        parse_rates("1,two")


def test_cutting():
    codes = torch.arange(12).view(1, 6, 2) % 8
    ordered = Tokens(codes[..., :1], ORDERED[1], torch.tensor([[16, 16]]))
    assert at_rate(ordered, {"tokens": 2}).data.flatten().tolist() == [0, 2]
    residual = Tokens(codes, RESIDUAL[1], torch.tensor([[16, 16]]))
    assert at_rate(residual, {"depth": 1}).data.shape == (1, 6, 1)
    assert at_rate(residual, {}) is residual


def test_text():
    assert rate_text({"tokens": 4}) == "tokens=4"
    assert rate_text({}) == "full"
