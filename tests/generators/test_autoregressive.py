"""The autoregressive transformer: what a step sees, what is drawn, any prefix, and tokens of real tokenizers."""

import itertools
import math

import pytest
import torch

import zoo
import zoo.generators as generators
from zoo.tokens import Tokens

SIZES = dict(width=16, depth_blocks=2, heads=2, hidden_multiple=8, classes=3)
PATTERNS = ("parallel", "delay", "flat")


def randomize(gen, scale=0.5):
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gen.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draws) * scale)
    return gen.eval()


@pytest.fixture
def sound(made_codes):
    def make(**more):
        return made_codes((5,), (7, 4, 6), modality="audio", extent=(500,), residual=True, sample_rate=100.0, **more)

    return make


@pytest.mark.parametrize("pattern", PATTERNS)
def test_codes_become_steps_and_come_back(sound, pattern):
    tokens = sound()
    gen = generators.create("autoregressive", tokens=tokens, pattern=pattern, **SIZES)
    steps = gen.to_steps(tokens.data)
    assert steps.shape == (2, *{"parallel": (5, 3), "delay": (7, 3), "flat": (15, 1)}[pattern])
    assert torch.equal(gen.from_steps(steps), tokens.data)
    order = {"parallel": "position", "flat": "position", "delay": "delay"}[pattern]
    assert torch.equal(steps.flatten(1), tokens.flatten(order=order, pad=0))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_code_changes_later_steps_only(sound, pattern):
    tokens = sound(b=1)
    gen = randomize(generators.create("autoregressive", tokens=tokens, pattern=pattern, **SIZES))
    steps = gen.to_steps(tokens.data)
    real = gen.real(steps, None)
    before = gen.code_losses(steps, torch.tensor([1]))
    for t in range(steps.shape[1]):
        for j in range(steps.shape[2]):
            if real is not None and not bool(real[0, t, j]):
                continue
            changed = steps.clone()
            changed[0, t, j] = (changed[0, t, j] + 1) % 4
            after = gen.code_losses(changed, torch.tensor([1]))
            assert torch.equal(before[:, :t], after[:, :t])
            if t + 1 < steps.shape[1]:
                assert not torch.equal(before[:, t + 1 :], after[:, t + 1 :])
            other = [i for i in range(steps.shape[2]) if i != j]
            assert torch.equal(before[0, t, other], after[0, t, other])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_corners_of_the_delay_hold_no_codes(sound, pattern):
    tokens = sound()
    gen = randomize(generators.create("autoregressive", tokens=tokens, pattern=pattern, **SIZES))
    steps = gen.to_steps(tokens.data)
    real = gen.real(steps, None)
    count = steps.numel() if real is None else int(real.sum())
    assert count == tokens.data.numel()
    if real is not None:
        losses = gen.code_losses(steps, torch.tensor([1, 2]))
        junk = gen.code_losses(torch.where(real, steps, 3), torch.tensor([1, 2]))
        assert torch.equal(losses[real], junk[real])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("guidance", [1.0, 1.7])
def test_the_cache_changes_no_token(sound, pattern, guidance):
    gen = randomize(generators.create("autoregressive", tokens=sound(), pattern=pattern, **SIZES))
    cached, plain = (gen.sample([0, 1, 2], seed=3, guidance=guidance, cache=cache).data for cache in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_sample_that_stops_early_is_the_beginning(sound, pattern):
    gen = randomize(generators.create("autoregressive", tokens=sound(), pattern=pattern, **SIZES))
    whole = gen.sample([0, 1, 2], seed=3)
    for k in (1, 3, 5):
        part = gen.sample([0, 1, 2], seed=3, tokens=k)
        assert torch.equal(part.data, whole.data[:, :k])
        assert part.extent.tolist() == [[100 * k]] * 3
    with pytest.raises(ValueError, match=r"tokens=6\. Allowed: 1\.\.5"):
        gen.sample(0, tokens=6)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_samples_follow_the_probabilities_of_the_loss(made_codes, pattern):
    """Every sequence of two positions of two binary codes: its share among 3,000 samples is its probability."""
    tokens = made_codes((2,), (2, 2), modality="audio", extent=(2,), residual=True, b=1)
    gen = randomize(generators.create("autoregressive", tokens=tokens, pattern=pattern, **SIZES), 0.4)
    every = torch.tensor(list(itertools.product((0, 1), repeat=4))).view(16, 2, 2)
    steps = gen.to_steps(every)
    losses, real = gen.code_losses(steps, torch.full((16,), 1)), gen.real(steps, None)
    expected = (-(losses if real is None else losses * real).flatten(1).sum(1)).exp().detach()
    assert float(expected.sum()) == pytest.approx(1, abs=1e-5)
    drawn = gen.sample(1, n=3000, seed=0).data.flatten(1) @ torch.tensor([8, 4, 2, 1])
    shares = torch.bincount(drawn, minlength=16) / 3000
    assert float((shares - expected).abs().max()) < 4 * (0.25 / 3000) ** 0.5


def test_items_of_unequal_length_count_their_own_codes(sound):
    for pattern in PATTERNS:
        gen = randomize(generators.create("autoregressive", tokens=sound(), pattern=pattern, **SIZES))
        whole = sound(b=1)
        short = Tokens(whole.data[:, :3], whole.spec, [[300]])
        both = Tokens.cat([whole, short])
        counts = []
        for part in (whole, short):
            steps = gen.to_steps(part.data)
            real = gen.real(steps, part.mask)
            counts.append(steps.numel() if real is None else int(real.sum()))
        a, b = (gen.loss(part, 1) for part in (whole, short))
        expected = (a * counts[0] + b * counts[1]) / sum(counts)
        torch.testing.assert_close(gen.loss(both, 1), expected, rtol=0, atol=1e-5)


def test_one_code_for_each_position_makes_all_patterns_equal(made_codes):
    tokens = made_codes((6,), (11,), ordered=True)
    losses = []
    for pattern in PATTERNS:
        torch.manual_seed(0)
        gen = randomize(generators.create("autoregressive", tokens=tokens, pattern=pattern, **SIZES))
        losses.append(gen.loss(tokens, 1))
    assert torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2], rtol=0, atol=1e-6)


def test_video_has_three_axes(made_codes):
    tokens = made_codes((2, 3, 2), (9,), modality="video", extent=(4, 12, 8), sample_rate=8.0)
    gen = generators.create("autoregressive", tokens=tokens, **SIZES).eval()
    assert gen.sample(1, n=2).data.shape == (2, 2, 3, 2, 1)
    with pytest.raises(ValueError, match="one size"):
        gen.sample(1, tokens=3)
    with pytest.raises(ValueError, match="'delay' for one axis"):
        generators.create("autoregressive", tokens=tokens, pattern="delay", **SIZES)


def test_on_the_ordered_tokens_of_a_shipped_tokenizer():
    """Tokens of flextok_nano in, pictures of generated prefixes out."""
    tok = zoo.load("flextok_nano")
    h, w = tok.info.native_size
    x = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        tokens = tok.encode(x)
        gen = generators.create("autoregressive", tokens=tokens, **SIZES).eval()
        assert bool(gen.loss(tokens, [0, 2]).isfinite())
        for k in (1, 4):
            drawn = gen.sample([0, 2], tokens=k)
            assert drawn.data.shape == (2, k, tokens.levels)
            assert tok.decode(drawn, steps=1).shape == x.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [({"heads": 3}, "width=16"), ({"pattern": "sideways"}, "pattern='sideways'"), ({"dropout": 1.0}, "dropout=1.0")],
)
def test_refused_configurations(made_codes, change, words):
    with pytest.raises(ValueError, match=words):
        generators.create("autoregressive", tokens=made_codes((6,), (11,)), **{**SIZES, **change})


@pytest.mark.parametrize("pattern", PATTERNS)
def test_codes_in_digits(made_codes, pattern):
    """Digits are those of FSQ, the first the fastest; the loss stays that of a code; a prefix is the beginning of the whole."""
    tokens = made_codes((6,), (24,), ordered=True)
    gen = generators.create("autoregressive", tokens=tokens, pattern=pattern, factors=(2, 3, 4), **SIZES).eval()
    steps = gen.to_steps(tokens.data)
    assert torch.equal(gen.from_steps(steps), tokens.data)
    first = int(tokens.data[0, 0, 0])
    place = {"parallel": lambda j: (0, j), "delay": lambda j: (j, j), "flat": lambda j: (j, 0)}[pattern]
    assert [int(steps[0][place(j)]) for j in range(3)] == [first % 2, first // 2 % 3, first // 6]
    assert float(gen.loss(tokens, 1)) == pytest.approx(math.log(24), rel=1e-5)
    gen = randomize(gen)
    whole = gen.sample([0, 1, 2], seed=3).data
    assert int(whole.max()) < 24
    assert torch.equal(gen.sample([0, 1, 2], seed=3, tokens=4).data, whole[:, :4])
    assert torch.equal(gen.sample([0, 1, 2], seed=3, cache=False).data, whole)


def test_digits_must_make_up_the_codebook(made_codes):
    for vocabulary, factors in (((24,), (2, 3)), ((4, 6), (4, 6))):
        with pytest.raises(ValueError, match="factors"):
            generators.create("autoregressive", tokens=made_codes((6,), vocabulary), factors=factors, **SIZES)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_nats_are_the_sum_over_the_codes(sound, pattern):
    tokens = sound()
    gen = randomize(generators.create("autoregressive", tokens=tokens, pattern=pattern, **SIZES))
    nats = gen.nats(tokens, [0, 2])
    assert nats.shape == (2,)
    assert float(nats.sum()) / tokens.data.numel() == pytest.approx(float(gen.loss(tokens, [0, 2])), rel=1e-5)
    assert float(gen.nats(tokens[:1], 0)) == pytest.approx(float(nats[0]), rel=1e-5)
