"""xAR against tensors of the public implementation (see the READMEs in tests/parity/xar)."""

import pytest
import torch

import zoo.generators as generators
from zoo.layers.transformer import group_mask
from zoo.tokens import Tokens

CASES = ("base_like", "asym_depth")


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=CASES)
def case(request, parity):
    found = parity("xar", request.param)
    return generators.load(found.folder, family="xar"), found


def sequence(noise):
    """`(entities, b, size, c)` to `(b, n, c)`."""
    return noise.transpose(0, 1).flatten(1, 2)


def test_constants_of_the_file(case):
    from safetensors.torch import load_file

    gen, found = case
    weights = load_file(found.weights)
    table = torch.stack([weights["encoder_blocks.0.attn.rope.freqs_cos"], weights["encoder_blocks.0.attn.rope.freqs_sin"]], -1)
    close(gen.table, table[:, ::2], 1e-5)
    assert torch.equal(group_mask(gen.sizes), weights["mask"][0, 0] == 0)


@pytest.mark.parametrize("prefix", ["tf", "tf_null"])
def test_velocity_and_loss(case, prefix):
    gen, found = case
    io = found.io
    x = gen.entity_order(io["tf.latents"].permute(0, 2, 3, 1))
    times, noise, labels = io["tf.time"].T, sequence(io["tf.noise"]), io[f"{prefix}.labels"]
    t = times.repeat_interleave(gen.sizes[0], 1)[..., None]
    noisy = (1 - t) * x + t * noise
    close(noisy, io["tf.noisy_sequence"], 1e-6)
    assert torch.equal((times.float() * 1000).floor().long().T, io["tf.time_int"])
    velocity, encoded = gen.velocity(noisy, times, labels)
    close(velocity, io[f"{prefix}.velocity"])
    if prefix == "tf":
        close(encoded, io["tf.encoder_out"])
    close(gen.flow_loss(x, times, noise, labels)[None], io[f"{prefix}.loss"])


@pytest.mark.parametrize("cache", [True, False])
def test_sampled_latents(case, cache):
    gen, found = case
    io, settings = found.io, found.config["sampling"]
    start, noise = io["sample.init_noise"].unbind(), io["sample.sde_noise"].transpose(1, 2).unbind()
    x = gen.solve(io["sample.labels"], start, noise, guidance=settings["cfg"], cache=cache)
    out = torch.empty_like(x)
    out[:, gen.order] = x
    close(out.unflatten(1, (16, 16)).permute(0, 3, 1, 2), io["sample.latent"], 1e-3)


def test_velocities_of_the_first_entities(case):
    gen, found = case
    io = found.io
    labels = io["sample.labels"]
    both = torch.cat([labels, torch.full_like(labels, gen.null)])
    start = io["sample.init_noise"][0].repeat(2, 1, 1)
    first, _ = gen.velocity(start, torch.ones(4, 1), both)
    close(first, io["sample.v.e0.s0"])
    times = torch.tensor([[0.0, 1.0]]).expand(4, 2)
    assert io["sample.t_in.e1.s0"].sort().values.tolist() == [0.0] * 4 + [1.0] * 4
    second, _ = gen.velocity(io["sample.x_in.e1.s0"], times, both)
    close(second[:, gen.sizes[0] :], io["sample.v.e1.s0"])


def test_solver_times_reach_the_network_as_published(case):
    _, found = case
    steps = found.config["sampling"]["num_steps"]
    times = torch.linspace(1, 0.04, steps, dtype=torch.float64).float()
    assert torch.equal((times * 1000).floor().long(), found.io["sample.time_int"])


def test_the_front_door(case):
    gen, found = case
    tokens = Tokens(found.io["tf.latents"].permute(0, 2, 3, 1).contiguous(), gen.spec, (256, 256))
    assert bool(gen.loss(tokens, found.io["tf.labels"]).isfinite())
    out = gen.sample(3, n=2, steps=2)
    assert out.data.shape == (2, 16, 16, 16)
    assert not out.discrete
