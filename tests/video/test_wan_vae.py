"""Wan's autoencoders against tensors of the public implementation (see the READMEs in tests/parity/wan_vae)."""

import pytest
import torch

import zoo
from tests.video.checks import close, first, last
from zoo.tokens import Tokens
from zoo.video.wan_vae import WanVAE, WanVAEConfig

CASES = ("wan21", "wan22")
CLIPS = [(case, clip) for case in CASES for clip in ("image", "video")]


@pytest.fixture(scope="module")
def public(parity):
    cases = {name: parity("wan_vae", name) for name in CASES}
    return {name: (case.io, zoo.load(case.folder, family="wan_vae")) for name, case in cases.items()}


@pytest.mark.parametrize(("name", "clip"), CLIPS)
def test_the_public_numbers(public, name, clip):
    io, tok = public[name]
    x = io[f"{clip}/input"]
    moments = tok.moments(x)
    close(first(moments), io[f"{clip}/moments"])
    close(first(moments.chunk(2, -1)[0]), io[f"{clip}/mode"])
    mean, logvar = moments.chunk(2, -1)
    close(first(mean + (logvar.clamp(-30, 20) / 2).exp() * last(io[f"{clip}/noise"])), io[f"{clip}/sample"])
    tokens = tok.encode(x)
    close(first(tokens.data), io[f"{clip}/mode_normalized"])
    close(tok.decode(tokens), io[f"{clip}/reconstruction"])
    close(tok.decode_raw(last(io[f"{clip}/sample"])), io[f"{clip}/reconstruction_of_sample"])


@pytest.mark.parametrize("name", CASES)
def test_a_sample_is_normalised_too(public, name):
    io, tok = public[name]
    x = io["video/input"]
    mean, logvar = tok.moments(x).chunk(2, -1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    wanted = (mean + (logvar.clamp(-30, 20) / 2).exp() * noise - tok.latents_mean) / tok.latents_std
    close(tok.encode(x, sample=True, seed=3).data, wanted, 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_stream_is_the_whole_to_the_bit(public, name):
    io, tok = public[name]
    x = io["video/input"][:, :, :8]
    whole = tok.encode(x)
    y = tok.decode(whole)
    assert y.shape == x.shape
    for sizes in ([8], [1] * 8, [2, 5, 1]):
        parts = list(tok.stream().encode_all(x.split(sizes, 2)))
        joined = Tokens.join(parts)
        assert torch.equal(joined.data, whole.data)
        assert torch.equal(joined.extent, whole.extent)
        assert torch.equal(torch.cat(list(tok.stream().decode_all(parts)), 2), y)


@pytest.mark.parametrize("name", CASES)
def test_the_whole_clip_is_what_diffusers_gives(public, name):
    io, tok = public[name]
    x = io["video/input"]
    with torch.inference_mode():
        assert torch.equal(tok.moments(x), last(tok.vae.encode(x).latent_dist.parameters))
        z = last(io["video/mode"])
        assert torch.equal(tok.decode_raw(z), tok.vae.decode(first(z)).sample)


def test_two_streams_do_not_touch_each_other(public):
    io, tok = public["wan21"]
    x = io["video/input"]
    a, b = tok.stream(), tok.stream()
    parts = ([], [])
    for start in range(0, 9, 3):
        for stream, clip, part in ((a, x, parts[0]), (b, x.flip(2), parts[1])):
            tokens = stream.encode(clip[:, :, start : start + 3], last=start == 6)
            if tokens is not None:
                part.append(tokens)
    assert torch.equal(Tokens.join(parts[0]).data, tok.encode(x).data)
    assert torch.equal(Tokens.join(parts[1]).data, tok.encode(x.flip(2)).data)


def test_the_statistics_of_the_catalog_are_those_of_diffusers():
    from inspect import signature

    from diffusers import AutoencoderKLWan

    defaults = signature(AutoencoderKLWan.__init__).parameters
    assert WanVAEConfig().latents_mean == tuple(defaults["latents_mean"].default)
    assert WanVAEConfig().latents_std == tuple(defaults["latents_std"].default)
    assert len(zoo.info("wan22_vae").config["latents_mean"]) == 48


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"_class_name": "AutoencoderKL"}, "class 'AutoencoderKL'"),
        ({"attn_scales": [1.0]}, "attn_scales"),
        ({"z_dim": 8}, "z_dim=8"),
        ({"temperal_downsample": [True, True, True]}, "time_down"),
    ],
)
def test_a_configuration_that_is_not_known(parity, values, words):
    with pytest.raises(ValueError, match=words):
        WanVAE.from_public({**parity("wan_vae", "wan21").config, **values}, {})
