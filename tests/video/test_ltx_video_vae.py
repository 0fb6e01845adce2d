"""LTX-Video's autoencoders against diffusers' class on random weights: no tensors of the public weights are at hand."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo

import zoo
from tests.video import checks
from tests.video.checks import check_streams, close, first
from zoo.checkpoint import write_folder
from zoo.video.ltx_video_vae import LTXVideoVAE, LTXVideoVAEConfig

OLD = dict(
    latent_channels=4, block_out_channels=(8, 8, 12, 12), layers_per_block=(1,) * 5, decoder_block_out_channels=(8, 8, 12, 12),
    decoder_layers_per_block=(1, 2, 1, 1, 1), patch_size=2, scaling_factor=0.7,
)  # fmt: skip
NEW = dict(
    latent_channels=4, block_out_channels=(8, 8, 16, 16, 16), layers_per_block=(1, 2, 1, 1, 1),
    down_block_types=("LTXVideo095DownBlock3D",) * 4, spatio_temporal_scaling=(True,) * 4,
    downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    decoder_block_out_channels=(8, 16, 32), decoder_layers_per_block=(1,) * 4, decoder_spatio_temporal_scaling=(True,) * 3,
    decoder_inject_noise=(False,) * 4, upsample_residual=(True,) * 3, upsample_factor=(2,) * 3, timestep_conditioning=True,
    patch_size=2, spatial_compression_ratio=16, temporal_compression_ratio=8,
)  # fmt: skip
PUBLIC = {"0.9.0": OLD, "causal": {**OLD, "decoder_causal": True}, "0.9.5": NEW}


def clip(frames, sides=(16, 32), seed=0):
    return checks.clip(frames, sides, seed)


@pytest.fixture(scope="module", params=PUBLIC)
def public(request, tmp_path_factory):
    """diffusers' class with statistics of its latents, and ours loaded from the folder that it would publish."""
    torch.manual_seed(0)
    values = PUBLIC[request.param]
    vae = AutoencoderKLLTXVideo(**values).eval().requires_grad_(False)
    vae.latents_mean.normal_()
    vae.latents_std.uniform_(0.5, 2)
    config = {"_class_name": "AutoencoderKLLTXVideo", **values}
    folder = write_folder(tmp_path_factory.mktemp("public") / "vae", config=config, tensors=vae.state_dict())
    return vae, zoo.load(folder, family="ltx_video_vae")


def decoded(vae, z):
    return vae.decode(z, torch.zeros(len(z)) if vae.config.timestep_conditioning else None).sample


@pytest.mark.parametrize("frames", [1, 9, 33])
def test_the_class_gives_the_same_numbers(public, frames):
    vae, tok = public
    x = clip(frames)
    wanted = vae.encode(x).latent_dist
    close(first(tok.moments(x)), wanted.parameters)
    tokens = tok.encode(x)
    mean, std = (value.view(1, -1, 1, 1, 1) for value in (vae.latents_mean, vae.latents_std))
    close(first(tokens.data), (wanted.mode() - mean) * vae.config.scaling_factor / std)
    close(tok.decode(tokens), decoded(vae, wanted.mode()))


def test_a_decoder_that_is_told_another_timestep():
    torch.manual_seed(0)
    config = replace(LTXVideoVAE.from_public({"_class_name": "AutoencoderKLLTXVideo", **NEW}, {}), decode_timestep=0.05)
    tok = LTXVideoVAE(config).eval().requires_grad_(False)
    z = torch.randn(1, 3, 1, 2, 4)
    close(tok.decode_raw(z), tok.vae.decode(first(z), torch.full((1,), 0.05)).sample)
    assert float((tok.decode_raw(z) - tok.vae.decode(first(z), torch.zeros(1)).sample).abs().max()) > 1e-3


def test_a_sample(public):
    _, tok = public
    x = clip(9)
    mean, logvar = tok.moments(x).chunk(2, -1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    wanted = (mean + (logvar.clamp(-30, 20) / 2).exp() * noise - tok.vae.latents_mean) / tok.vae.latents_std
    close(tok.encode(x, sample=True, seed=3).data, wanted * tok.config.scaling_factor, 1e-6)


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 10, 19])
def test_any_number_of_frames_and_the_stream_to_the_bit(public, frames):
    _, tok = public
    x = clip(frames, (16, 17))
    whole = check_streams(tok, x)
    assert whole.positions == (1 + -(-(frames - 1) // 8), 1, 2)


def test_the_encoder_is_causal_and_the_decoder_looks_as_far_as_it_says(public):
    _, tok = public
    ahead = tok.info.lookahead_frames
    assert tok.info.causal == (ahead == 0) == tok.config.decoder_causal
    x = clip(33)
    tokens = tok.encode(x)
    other = torch.cat([x[:, :, :17], clip(16, seed=9)], 2)
    data = tok.encode(other).data
    assert torch.equal(data[:, :3], tokens.data[:, :3])
    assert not torch.equal(data[:, 3:4], tokens.data[:, 3:4])
    positions = 2 + -(-ahead // 8)
    z = torch.randn(1, positions + 1, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    y = tok.decode_raw(z)
    changed = tok.decode_raw(torch.cat([z[:, :positions], -z[:, positions:]], 1))
    final = tok._span(positions) - ahead
    assert final > 0
    assert torch.equal(changed[:, :, :final], y[:, :, :final])
    assert not torch.equal(changed[:, :, final : final + 1], y[:, :, final : final + 1])


def test_memory_is_two_frames_for_each_convolution():
    tok = LTXVideoVAE(LTXVideoVAE.from_public({"_class_name": "AutoencoderKLLTXVideo", **NEW}, {})).eval().requires_grad_(False)
    sizes = []
    steps = tok.decoder_steps()
    for _ in range(14):
        steps.push(torch.randn(1, 1, 1, 2, 4), last=False)
        sizes.append(steps.memory.size())
    assert len(set(sizes[10:])) == 1
    assert sizes[10] > 0


def test_what_the_decoder_holds_back_comes_in_parts_no_larger_than_a_step(public):
    _, tok = public
    z = torch.randn(1, 7, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    stream = tok.stream()
    tokens = replace(tok.encode(clip(49, (16, 32))), data=z)
    counts = [y.shape[2] for y in stream.decode_all([tokens])]
    assert sum(counts) == 49
    assert max(counts) <= 8


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"_class_name": "AutoencoderKL"}, "class 'AutoencoderKL'"),
        ({"decoder_inject_noise": [False, True, True, True]}, "decoder_inject_noise"),
        ({"encoder_causal": False}, "encoder_causal=False"),
        ({"patch_size_t": 2}, "patch_size_t=2"),
        ({"down_block_types": ["LTXVideoDownBlock3D"] * 4}, "down_block_types holds LTXVideoDownBlock3D"),
        ({"decoder_spatio_temporal_scaling": [True, True, False]}, "up"),
        ({"downsample_type": ["conv", "temporal", "spatiotemporal", "spatiotemporal"]}, "down"),
        ({"decoder_block_out_channels": [8, 16, 16]}, "decoder_channels"),
    ],
)
def test_a_configuration_that_is_not_known(values, words):
    with pytest.raises(ValueError, match=words):
        LTXVideoVAE.from_public({"_class_name": "AutoencoderKLLTXVideo", **NEW, **values}, {})


def test_the_lookahead_of_the_public_decoders():
    assert LTXVideoVAEConfig().lookahead == zoo.info("ltx_video_090_vae").lookahead_frames == 191
    assert LTXVideoVAEConfig(decoder_causal=True).lookahead == 0
