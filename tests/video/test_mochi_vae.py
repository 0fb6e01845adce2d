"""Mochi's autoencoder against diffusers' class on random weights: no tensors of the public weights are at hand."""

from inspect import signature

import pytest
import torch
from diffusers import AutoencoderKLMochi

import zoo
from tests.video import checks
from tests.video.checks import check_streams, close, first
from zoo.checkpoint import write_folder
from zoo.video import mochi_vae
from zoo.video.mochi_vae import MochiVAE, MochiVAEConfig

PUBLIC = dict(
    encoder_block_out_channels=(32, 32, 64, 64), decoder_block_out_channels=(32, 32, 64, 64), layers_per_block=(1, 1, 1, 2, 1),
    latent_channels=4, latents_mean=(0.5, -0.2, 0.1, 0.0), latents_std=(1.5, 1.0, 0.7, 2.0), scaling_factor=0.7,
)  # fmt: skip


def clip(frames, sides=(16, 16), seed=0):
    return checks.clip(frames, sides, seed)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """diffusers' class, and ours loaded from the folder that it would publish."""
    torch.manual_seed(0)
    vae = AutoencoderKLMochi(**PUBLIC).eval().requires_grad_(False)
    config = {"_class_name": "AutoencoderKLMochi", **PUBLIC}
    folder = write_folder(tmp_path_factory.mktemp("public") / "vae", config=config, tensors=vae.state_dict())
    return vae, zoo.load(folder, family="mochi_vae")


@pytest.mark.parametrize("frames", [1, 7, 19])
def test_the_class_gives_the_same_numbers(public, frames):
    vae, tok = public
    x = clip(frames)
    wanted = vae.encode(x).latent_dist
    close(first(tok.moments(x)), wanted.parameters)
    tokens = tok.encode(x)
    mean, std = (torch.tensor(PUBLIC[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    close(first(tokens.data), (wanted.mode() - mean) * 0.7 / std)
    close(tok.decode(tokens), vae.decode(wanted.mode()).sample)


def test_attention_in_pieces_is_the_same(public, monkeypatch):
    _, tok = public
    x = clip(7)
    whole = tok.encode(x)
    monkeypatch.setattr(mochi_vae, "_PLACES", 5)
    close(tok.encode(x).data, whole.data, 1e-5)


def test_a_sample(public):
    _, tok = public
    x = clip(7)
    mean, logvar = tok.moments(x).chunk(2, -1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    wanted = (mean + (logvar.clamp(-30, 20) / 2).exp() * noise - torch.tensor(PUBLIC["latents_mean"])) * 0.7
    close(tok.encode(x, sample=True, seed=3).data, wanted / torch.tensor(PUBLIC["latents_std"]), 1e-5)


@pytest.mark.parametrize("frames", [1, 6, 8, 14])
def test_any_number_of_frames_and_the_stream_to_the_bit(public, frames):
    _, tok = public
    x = clip(frames, (8, 9))
    whole = check_streams(tok, x)
    assert whole.positions == (1 + -(-(frames - 1) // 6), 1, 2)


def test_nothing_before_depends_on_what_comes_later(public):
    _, tok = public
    assert (tok.info.causal, tok.info.lookahead_frames) == (True, 0)
    x = clip(19)
    z, y = tok.encode(x).data, tok.decode(tok.encode(x))
    other = tok.encode(torch.cat([x[:, :, :7], clip(12, seed=9)], 2))
    assert torch.equal(other.data[:, :2], z[:, :2])
    assert not torch.equal(other.data[:, 2:3], z[:, 2:3])
    changed = tok.decode(other)
    assert torch.equal(changed[:, :, :7], y[:, :, :7])
    assert not torch.equal(changed[:, :, 7:8], y[:, :, 7:8])


def test_memory_of_the_decoder_is_constant_and_that_of_the_encoder_is_keys_and_values(public):
    _, tok = public
    encoder, decoder = tok.encoder_steps(), tok.decoder_steps()
    sizes = []
    for step in range(4):
        z = encoder.push(clip(6 if step else 1).permute(0, 2, 3, 4, 1), last=False)
        decoder.push(z.chunk(2, -1)[0], last=False)
        sizes.append((encoder.memory.size(), decoder.memory.size()))
    assert sizes[1][1] == sizes[2][1] == sizes[3][1] > 0
    # Two vectors of 4 bytes a channel: level 1 has 6 frames of 8 x 8 places, level 2 has 3 of 4 x 4, level 3 one of 2 x 2.
    grown = 2 * 4 * (32 * 6 * 64 + 64 * 3 * 16 + (2 + 1) * 64 * 4)
    assert sizes[2][0] - sizes[1][0] == sizes[3][0] - sizes[2][0] == grown


def test_the_statistics_are_those_of_diffusers():
    defaults = signature(AutoencoderKLMochi.__init__).parameters
    assert MochiVAEConfig().latents_mean == tuple(defaults["latents_mean"].default)
    assert MochiVAEConfig().latents_std == tuple(defaults["latents_std"].default)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"_class_name": "AutoencoderKL"}, "class 'AutoencoderKL'"),
        ({"in_channels": 3}, "in_channels=3"),
        ({"latent_channels": 8}, "latent_channels=8"),
        ({"encoder_block_out_channels": [32, 32, 48, 64]}, "encoder_channels"),
        ({"layers_per_block": [1, 1]}, "blocks"),
        ({"spatial_expansions": [3, 2, 2]}, "space_down"),
    ],
)
def test_a_configuration_that_is_not_known(values, words):
    with pytest.raises(ValueError, match=words):
        MochiVAE.from_public({"_class_name": "AutoencoderKLMochi", **PUBLIC, **values}, {})
