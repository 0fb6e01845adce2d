"""FlowAR's pyramid from a worked example, what a scale sees, its solver's levels, and two different autoencoders."""

import pytest
import torch

import zoo
import zoo.generators as generators
from zoo.generators.flowar import next_scale_input, pyramid, solver_times

SIZES = dict(width=16, heads=2, encoder_depth=1, decoder_depth=1, flow_width=16, flow_depth=1, flow_head=8, classes=3)


def test_pyramid_of_a_small_grid():
    latents = torch.arange(16.0).view(1, 4, 4, 1)
    one, two, four = pyramid(latents, (1, 2, 4))
    assert one.flatten().tolist() == [7.5]
    assert two.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(four, latents.view(1, 16, 1))
    assert next_scale_input(one, 2, 4).flatten().tolist() == pytest.approx([7.5] * 4)
    row = [1.4453, 2.1094, 3.2031, 3.8672, 4.1016, 4.7656, 5.8594, 6.5234]
    row += [8.4766, 9.1406, 10.2344, 10.8984, 11.1328, 11.7969, 12.8906, 13.5547]
    assert next_scale_input(two, 4, 4).flatten().tolist() == pytest.approx(row, abs=1e-4)


def test_solver_times():
    times = solver_times(25)
    assert len(times) == 25
    assert times[11:13] == pytest.approx([0.3, 0.25])
    assert times[0] == 1
    assert times[-1] == 0
    assert solver_times(50) == pytest.approx([1 - i / 50 for i in range(51)])


@pytest.fixture(params=[False, True])
def gen(request, made_latents):
    torch.manual_seed(0)
    made = generators.create("flowar", tokens=made_latents((4, 4), 3), cross=request.param, **SIZES).eval()
    torch.nn.init.normal_(made.flownet.final.weight, std=0.3)
    return made


def test_a_scale_sees_itself_and_coarser_ones(gen):
    inputs = torch.randn(1, 20, 3)
    before = gen.condition(inputs, torch.tensor([1]))
    for k in (1, 2):
        changed = inputs.clone()
        changed[:, gen.starts[k] - 1] += 1
        after = gen.condition(changed, torch.tensor([1]))
        assert torch.equal(before[:, : gen.starts[k]], after[:, : gen.starts[k]])
        assert bool(((before - after).abs().amax(-1)[0, gen.starts[k] :] > 0).all())


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_equals_uncached(gen, guidance):
    cached, plain = (gen.sample([0, 2], seed=4, steps=4, guidance=guidance, cache=cache).data for cache in (True, False))
    torch.testing.assert_close(cached, plain, rtol=0, atol=1e-5)


def test_guidance_of_one_is_the_condition_alone(gen):
    alone = gen.sample(1, seed=2, steps=4)
    guided = gen.sample(1, seed=2, steps=4, guidance=1.0 + 1e-9)
    torch.testing.assert_close(guided.data, alone.data, rtol=0, atol=1e-5)


def test_grids_that_have_no_pyramid(made_latents):
    for positions in ((6, 6), (4, 8), (16,)):
        with pytest.raises(ValueError, match="a square whose side is a power of two"):
            generators.create("flowar", tokens=made_latents(positions, 3), **SIZES)


@pytest.mark.parametrize("channels", [4, 16])
def test_any_autoencoder_serves(channels):
    """Tokens of two autoencoders of the zoo, no line changed; what is sampled decodes to pictures."""
    sizes = dict(block_channels=(8, 8, 16), norm_groups=4, layers_per_block=1)
    tok = zoo.create("autoencoder_kl", latent_channels=channels, **sizes).eval()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.inference_mode():
        tokens = tok.encode(x)
        gen = generators.create("flowar", tokens=tokens, **SIZES).eval()
        assert bool(gen.loss(tokens, [0, 1]).isfinite())
        assert tok.decode(gen.sample([0, 1], steps=2)).shape == x.shape
