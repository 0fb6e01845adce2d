"""xAR's partitions, what an entity sees, and its solver, from worked examples."""

import pytest
import torch

import zoo.generators as generators
from zoo.generators.xar import partition

EXPECTED = {
    "token": [[i] for i in range(16)],
    "cell": [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]],
    "subsample": [[0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15]],
    "whole": [list(range(16))],
}


@pytest.mark.parametrize("entity", EXPECTED)
def test_partition_of_a_small_grid(entity):
    assert partition(entity, (4, 4), 2).tolist() == EXPECTED[entity]


@pytest.mark.parametrize("entity", EXPECTED)
@pytest.mark.parametrize("positions", [(6, 4), (8,), (2, 4, 2)])
def test_partition_has_every_position_once(entity, positions):
    order = partition(entity, positions, 2).flatten()
    assert order.sort().values.tolist() == list(range(len(order)))
    assert len(order) == int(torch.tensor(positions).prod())


@pytest.fixture(params=EXPECTED)
def gen(request, made_latents):
    torch.manual_seed(0)
    sizes = dict(width=16, heads=2, encoder_depth=1, decoder_depth=2, side=2, entity=request.param, classes=3)
    return generators.create("xar", tokens=made_latents((4, 4), 3), **sizes).eval()


def test_an_entity_sees_itself_and_those_before_it(gen):
    x, times = torch.randn(1, 16, 3), torch.rand(1, gen.entities)
    before, _ = gen.velocity(x, times, torch.tensor([1]))
    for entity in range(gen.entities):
        changed = x.clone()
        changed[:, entity * gen.size] += 1
        after, _ = gen.velocity(changed, times, torch.tensor([1]))
        assert torch.equal(before[:, : entity * gen.size], after[:, : entity * gen.size])
        moved = (before - after).abs().amax(-1)[0, entity * gen.size :]
        assert bool((moved > 0).all())


def test_noise_levels_of_later_entities_change_nothing_before(gen):
    x, times = torch.randn(1, 16, 3), torch.full((1, gen.entities), 0.5)
    other = times.clone()
    other[:, -1] = 0.9
    before, after = (gen.velocity(x, t, torch.tensor([1]))[0] for t in (times, other))
    assert torch.equal(before[:, : -gen.size], after[:, : -gen.size])
    assert not torch.equal(before[:, -gen.size :], after[:, -gen.size :])


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_equals_uncached(gen, guidance):
    cached, plain = (gen.sample([0, 2], seed=4, steps=3, guidance=guidance, cache=cache).data for cache in (True, False))
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-5)


def test_calls_of_the_network(gen):
    calls = []
    handle = gen.pred.register_forward_hook(lambda *_: calls.append(1))
    gen.sample(0, steps=5)
    handle.remove()
    assert len(calls) == 5 * gen.entities + gen.entities - 1


def test_one_step_of_the_solver(made_latents, monkeypatch):
    """x = 0.5, v = -1, t = 0.68 -> 0.36, noise 0.25 gives 0.927324; here the first of two steps, from t = 1 to 0.04, then to 0."""
    gen = generators.create("xar", tokens=made_latents((1,), 1), entity="whole", width=8, heads=1, encoder_depth=1, decoder_depth=1)
    monkeypatch.setattr(gen, "velocity", lambda x, *_, **__: (-torch.ones_like(x), x))
    out = gen.eval().solve(torch.tensor([0]), torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1, 1), 0.25), guidance=1.0)
    first = 0.5 + ((2 - 1) * -1 + 0.5) * (0.04 - 1) + (2 * 0.96) ** 0.5 * 0.25
    second = first + ((2 - 0.04) * -1 + first) * (0 - 0.04)
    assert float(out) == pytest.approx(second, abs=1e-5)


def test_refused_sides(made_latents):
    with pytest.raises(ValueError, match="side=3"):
        generators.create("xar", tokens=made_latents((4, 4), 3), width=16, heads=2, side=3)
