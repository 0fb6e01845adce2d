"""xAR's partitions, what an entity sees, and its solver, from worked examples."""

import pytest
import torch

import zoo.generators as generators
from zoo.generators.xar import partition, scale_factors
from zoo.layers.patches import averaged

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


def test_scales_of_a_small_grid():
    """A grid of 0..15 averages to 2.5, 4.5, 10.5, 12.5 and those to 7.5; sides are halved while all of them can be."""
    assert scale_factors((4, 4)) == (4, 2, 1)
    assert scale_factors((6, 4)) == (2, 1)
    assert scale_factors((8,)) == (8, 4, 2, 1)
    latents = torch.arange(16.0).reshape(1, 4, 4, 1)
    assert averaged(latents, 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert averaged(latents, 4).flatten().tolist() == [7.5]
    clip = torch.randn(2, 2, 4, 2, 3)
    needed = torch.nn.functional.interpolate(clip.movedim(-1, 1), (1, 2, 1), mode="area").flatten(2).transpose(1, 2)
    torch.testing.assert_close(averaged(clip, 2), needed)


@pytest.fixture(params=[*EXPECTED, "scale"])
def gen(request, made_latents):
    torch.manual_seed(0)
    sizes = dict(width=16, heads=2, encoder_depth=1, decoder_depth=2, side=2, entity=request.param, classes=3)
    return generators.create("xar", tokens=made_latents((4, 4), 3), **sizes).eval()


def test_an_entity_sees_itself_and_those_before_it(gen):
    x, times = torch.randn(1, gen.starts[-1], 3), torch.rand(1, gen.entities)
    before, _ = gen.velocity(x, times, torch.tensor([1]))
    for start in gen.starts[:-1]:
        changed = x.clone()
        changed[:, start] += 1
        after, _ = gen.velocity(changed, times, torch.tensor([1]))
        assert torch.equal(before[:, :start], after[:, :start])
        moved = (before - after).abs().amax(-1)[0, start:]
        assert bool((moved > 0).all())


def test_noise_levels_of_later_entities_change_nothing_before(gen):
    x, times = torch.randn(1, gen.starts[-1], 3), torch.full((1, gen.entities), 0.5)
    other = times.clone()
    other[:, -1] = 0.9
    before, after = (gen.velocity(x, t, torch.tensor([1]))[0] for t in (times, other))
    assert torch.equal(before[:, : gen.starts[-2]], after[:, : gen.starts[-2]])
    assert not torch.equal(before[:, gen.starts[-2] :], after[:, gen.starts[-2] :])


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
    out = gen.eval().solve(torch.tensor([0]), [torch.full((1, 1, 1), 0.5)], [torch.full((1, 1, 1, 1), 0.25)], guidance=1.0)
    first = 0.5 + ((2 - 1) * -1 + 0.5) * (0.04 - 1) + (2 * 0.96) ** 0.5 * 0.25
    second = first + ((2 - 0.04) * -1 + first) * (0 - 0.04)
    assert float(out) == pytest.approx(second, abs=1e-5)


def test_refused_sides(made_latents):
    with pytest.raises(ValueError, match="side=3"):
        generators.create("xar", tokens=made_latents((4, 4), 3), width=16, heads=2, side=3)
    with pytest.raises(ValueError, match="even sides"):
        generators.create("xar", tokens=made_latents((4, 3), 3), width=16, heads=2, entity="scale")


def test_the_result_of_scales_is_the_last(made_latents, monkeypatch):
    """With a velocity that takes all noise away at once, every scale becomes the copy of one grid."""
    grid = torch.randn(1, 4, 4, 3, generator=torch.Generator().manual_seed(3))
    sizes = dict(width=16, heads=2, encoder_depth=1, decoder_depth=1, entity="scale")
    gen = generators.create("xar", tokens=made_latents((4, 4), 3), **sizes).eval()
    assert gen.sizes == (1, 4, 16)
    target = gen.entity_order(grid)

    def velocity(x, times, labels, cache=None, *, first=0):
        at = target[:, gen.starts[first] : gen.starts[first + times.shape[1]]].to(x)
        level = times.repeat_interleave(torch.tensor(gen.sizes[first : first + times.shape[1]]), 1)[..., None].to(x)
        return (x - at) / level.clamp(min=1e-6), x

    monkeypatch.setattr(gen, "velocity", velocity)
    made = gen.sample(steps=60, seed=1)
    assert made.data.shape == (1, 4, 4, 3)
    assert float((made.data - grid).abs().max()) < 0.3
    assert float((made.data - grid).abs().mean()) < 0.1
