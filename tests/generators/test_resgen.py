"""ResGen: the identities its parts rest on (no public weights exist), and counted calls."""

import math
from itertools import pairwise

import pytest
import torch

import zoo.generators as generators
from zoo.generators.resgen import MixtureHead, masked_counts, masked_share
from zoo.quantizers import RVQ

SIZES = dict(width=16, depth_blocks=1, heads=2, code_width=4, components=6, rank=2, classes=3)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def gen(made_codes):
    torch.manual_seed(0)
    return generators.create("resgen", tokens=made_codes((3, 2), (9, 9, 9), residual=True), **SIZES).eval()


@pytest.fixture
def mixture():
    torch.manual_seed(0)
    head = MixtureHead(8, 5, components=7, rank=3, least_scale=1e-3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head(torch.randn(20, 8)), torch.randn(20, 5)


# -- the forward process -----------------------------------------------------------------------------------------------


def test_masked_counts_are_hypergeometric():
    """n of L x D cells without replacement: mean n / L at each position, variance by the hypergeometric formula, sum n exactly."""
    positions, depth, n = 4, 3, 5
    k = masked_counts(torch.full((20000,), n), positions, depth, draws())
    assert bool((k.sum(1) == n).all())
    assert int(k.max()) <= depth
    cells, share = positions * depth, depth / (positions * depth)
    variance = n * share * (1 - share) * (cells - n) / (cells - 1)
    assert k.double().mean(0).tolist() == pytest.approx([n / positions] * positions, abs=0.02)
    assert k.double().var(0).tolist() == pytest.approx([variance] * positions, abs=0.03)


def test_equal_confidence_is_the_posterior_of_the_forward_process(gen):
    """From k = (3, 1, 0, 2, 0, 0) to 2 cells: multivariate hypergeometric over the masked cells of each position."""
    before, left = torch.tensor([3, 1, 0, 2, 0, 0]), 2
    chance = torch.rand(20000, 6, 3, generator=draws(), dtype=torch.float64)
    after = gen.still_masked(before.expand(20000, -1), torch.zeros(20000, 6), left, chance, 1.0)
    rows, counts = after.unique(dim=0, return_counts=True)
    found = {tuple(row): count / 20000 for row, count in zip(rows.tolist(), counts.tolist(), strict=True)}
    total = math.comb(6, left)
    for row, share in found.items():
        ways = math.prod(math.comb(int(b), a) for a, b in zip(row, before, strict=True))
        assert share == pytest.approx(ways / total, abs=0.015)
    assert sum(row[2] + row[4] + row[5] for row in found) == 0


def test_without_chance_the_least_sure_stay_masked(gen):
    sure = torch.tensor([[3.0, -1.0, 2.0, 5.0, 0.0, 4.0]])
    chance = torch.rand(1, 6, 3, generator=draws(), dtype=torch.float64)
    after = gen.still_masked(torch.full((1, 6), 3), sure, 8, chance, 0.0)
    assert after.tolist() == [[0, 3, 2, 0, 3, 0]]


def test_schedule():
    shares = [float(masked_share(r)) for r in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([1.0, math.sqrt(0.5), 0.0], abs=1e-12)


# -- the mixture -------------------------------------------------------------------------------------------------------


def naive(mixture, z):
    parts = []
    for component in range(mixture.table.shape[0]):
        mean = mixture.means(torch.full((len(z),), component))
        parts.append(torch.distributions.Normal(mean.double(), mixture.scale.double()).log_prob(z.double()).sum(-1))
    return torch.stack(parts, 1)


def test_likelihoods_equal_those_of_the_written_out_components(mixture):
    given, z = mixture
    torch.testing.assert_close(given.component_likelihoods(z).double(), naive(given, z), rtol=1e-4, atol=1e-3)
    exact = torch.logsumexp(naive(given, z) + given.weights.double(), 1)
    torch.testing.assert_close(given.log_likelihood(z).double(), exact, rtol=1e-4, atol=1e-3)


def test_the_loss_bounds_the_likelihood(mixture):
    given, z = mixture
    share = given.component_likelihoods(z).softmax(-1)
    entropy = -(share * share.clamp_min(1e-30).log()).sum(-1)
    assert bool((given.bound(z) - entropy >= -given.log_likelihood(z) - 1e-3).all())
    equal = given._replace(weights=torch.full_like(given.weights, -math.log(given.weights.shape[1])))
    torch.testing.assert_close(equal.bound(z) - entropy, -equal.log_likelihood(z), rtol=1e-4, atol=1e-3)


# -- codes and vectors -------------------------------------------------------------------------------------------------


def test_quantizing_is_that_of_the_residual_quantizer(gen):
    torch.manual_seed(0)
    quantizer = RVQ(dim=4, codebook_size=9, num_codebooks=3, learning="gradient").eval()
    gen.take_codebooks([quantizer.layer(j).codebook for j in range(3)])
    z = torch.randn(2, 6, 4)
    codes, sums = gen.quantize(z, torch.full((2, 6), 3), torch.zeros(2, 6, 3, dtype=torch.int64))
    assert torch.equal(codes, quantizer.encode(z))
    torch.testing.assert_close(sums, quantizer.decode(codes))
    torch.testing.assert_close(gen.vectors(codes).sum(2), quantizer.decode(codes))


def test_only_masked_levels_are_replaced(gen):
    codes = torch.randint(9, (2, 6, 3), generator=draws())
    masked = torch.tensor([[0, 1, 2, 3, 0, 2]] * 2)
    new, sums = gen.quantize(torch.randn(2, 6, 4, generator=draws()), masked, codes)
    kept = torch.arange(3) < 3 - masked[..., None]
    assert torch.equal(new[kept], codes[kept])
    assert bool((sums[masked == 0] == 0).all())
    lost = gen.vectors(new) * ~kept[..., None]
    torch.testing.assert_close(sums, lost.sum(2), rtol=0, atol=1e-5)


def test_masked_codes_are_not_seen(gen):
    codes = torch.randint(9, (1, 6, 3), generator=draws())
    masked = torch.tensor([[0, 1, 2, 3, 0, 2]])
    lost = torch.arange(3) >= 3 - masked[..., None]
    other = torch.where(lost, (codes + 1) % 9, codes)
    labels = torch.tensor([1])
    assert torch.equal(gen.features(codes, masked, labels), gen.features(other, masked, labels))
    changed = torch.where(lost, codes, (codes + 1) % 9)
    assert not torch.equal(gen.features(codes, masked, labels), gen.features(changed, masked, labels))


def test_refused_codebooks(gen):
    with pytest.raises(ValueError, match="Needed"):
        gen.take_codebooks([torch.zeros(9, 5)] * 3)
    with pytest.raises(ValueError, match="deviation=0"):
        gen.take_codebooks([torch.zeros(9, 4)] * 3)


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_calls_do_not_grow_with_depth(made_codes, depth):
    gen = generators.create("resgen", tokens=made_codes((3, 2), (9,) * depth, residual=True), **SIZES).eval()
    calls = []
    handle = gen.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    gen.sample(1, steps=5)
    handle.remove()
    assert len(calls) == 5


def test_codes_once_revealed_stay(gen, monkeypatch):
    seen = []
    original = gen.features

    def watched(codes, masked, labels):
        seen.append((codes, masked))
        return original(codes, masked, labels)

    monkeypatch.setattr(gen, "features", watched)
    final = gen.sample(1, n=2, steps=6).data.flatten(1, 2)
    assert [int(masked[0].sum()) for _, masked in seen] == [math.ceil(18 * math.cos(math.pi / 2 * t / 6) - 1e-12) for t in range(6)]
    for (_, before), (_, after) in pairwise(seen):
        assert bool((after <= before).all())
    for codes, masked in seen:
        kept = torch.arange(3) < 3 - masked[..., None]
        assert torch.equal(codes[kept], final[kept])


def test_one_picture_is_learned_and_comes_back(made_codes):
    """Trained on one item, the sampler gives its embedding back to a small error (codes may differ where levels are close)."""
    torch.manual_seed(0)
    tokens = made_codes((3, 2), (9, 9, 9), residual=True, b=1)
    gen = generators.create("resgen", tokens=tokens, **{**SIZES, "dropout": 0.0, "label_dropout": 0.0}).train()
    optimizer = torch.optim.AdamW(gen.parameters(), lr=1e-2)
    for step in range(300):
        loss = gen.loss(tokens, 1, generator=draws(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gen.eval()
    target = gen.vectors(tokens.data.flatten(1, 2)).sum(2)
    sampled = gen.vectors(gen.sample(1, n=4, steps=8, noise=0.0).data.flatten(1, 2)).sum(2)
    error = (sampled - target).square().mean() / target.square().mean()
    assert float(error) < 0.1
