"""FlowAR against tensors of the public implementation (see the READMEs in tests/parity/flowar)."""

import pytest
import torch

import zoo.generators as generators
from zoo.generators.flowar import pyramid, solver_times
from zoo.layers.transformer import group_mask
from zoo.tokens import Tokens

CASES = ("small_like", "large_like")


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=CASES)
def case(request, parity):
    found = parity("flowar", request.param)
    return generators.load(found.folder, family="flowar"), found


def test_inputs_condition_velocity_and_loss(case):
    gen, found = case
    io = found.io
    data = io["tf.latents"].permute(0, 2, 3, 1)
    targets = pyramid(data, gen.config.scales)
    inputs = gen.inputs(targets)
    close(inputs, io["tf.ar_input"], 1e-5)
    close(gen.condition(inputs, io["tf.labels"]), io["tf.z"])
    loss, velocity = gen.flow_loss(data, io["tf.time"].T, io["tf.noise"], io["tf.labels"])
    close(velocity, io["tf.velocity"])
    close(loss[None], io["tf.loss"])


def test_mask_of_the_file(case):
    from safetensors.torch import load_file

    gen, found = case
    assert torch.equal(group_mask(gen.sizes), load_file(found.weights)["mask"][0, 0] == 0)


@pytest.mark.parametrize("cache", [True, False])
def test_sampled_latents(case, cache):
    gen, found = case
    io, settings = found.io, found.config["sampling"]
    close(torch.tensor(solver_times(settings["num_steps"])[:-1]), io["sample.times"], 1e-7)
    scales, z = gen.solve(
        io["sample.labels"],
        io["sample.init_noise"],
        steps=settings["num_steps"],
        guidance=settings["cfg"],
        guidance_from=settings["guidance"],
        cache=cache,
    )
    close(z, io["sample.z"], 2e-3)
    # The rows of the null class are scratch: the transformer is given the others for both, as `z` shows.
    close(torch.cat(scales, 1)[:1], io["sample.scale_latents"][:1], 2e-3)
    close(scales[-1][:1].unflatten(1, (16, 16)).permute(0, 3, 1, 2), io["sample.latent"], 2e-3)


def test_velocity_of_the_last_scale(case):
    gen, found = case
    io = found.io
    noise = io["sample.init_noise"][:, gen.starts[4] :]
    close(gen.velocity(noise, torch.ones(2), io["sample.z"][:, gen.starts[4] :], 4), io["sample.v.scale4.s0"])


def test_the_front_door(case):
    gen, found = case
    tokens = Tokens(found.io["tf.latents"].permute(0, 2, 3, 1).contiguous(), gen.spec, (256, 256))
    assert bool(gen.loss(tokens, found.io["tf.labels"]).isfinite())
    assert gen.sample(3, steps=2).data.shape == (1, 16, 16, 16)
