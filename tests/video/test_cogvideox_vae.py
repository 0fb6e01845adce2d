"""CogVideoX's autoencoder against tensors of the public implementation (see the README in tests/parity/cogvideox_vae)."""

from dataclasses import replace

import pytest
import torch

import zoo
from tests.video.checks import check_streams, close, first, last
from zoo.layers.causal_conv import Memory
from zoo.video.cogvideox_vae import CogVideoXVAE, _Running


@pytest.fixture(scope="module")
def public(parity):
    case = parity("cogvideox_vae", "small")
    return case.io, zoo.load(case.folder, family="cogvideox_vae")


@pytest.mark.parametrize("clip", ["image", "video9", "video17"])
def test_the_public_numbers(public, clip):
    io, tok = public
    x = io[f"{clip}/input"]
    moments = tok.moments(x)
    close(first(moments), io[f"{clip}/moments"])
    tokens = tok.encode(x)
    close(first(tokens.data), io[f"{clip}/moments"].chunk(2, 1)[0] * 0.7)
    close(tok.decode(tokens), io[f"{clip}/reconstruction"])


def test_a_sample(public):
    io, tok = public
    mean, logvar = tok.moments(io["video17/input"]).chunk(2, -1)
    close(first(mean + (logvar.clamp(-30, 20) / 2).exp() * last(io["video17/noise"])), io["video17/sample"])


def test_the_lengths_of_the_steps_are_part_of_the_function(public):
    """In one step the statistics of the norms are those of the whole clip, and the numbers are others."""
    io, tok = public
    x = io["video17/input"]
    whole = _Running(tok.vae.encoder)(last(x), Memory())
    close(first(whole), io["video17/moments_whole"])
    assert float((first(whole) - io["video17/moments"]).abs().max()) > 0.1
    z = last(io["video17/moments"].chunk(2, 1)[0])
    y = _Running(tok.vae.decoder)(z, Memory())
    close(first(y), io["video17/reconstruction_whole"])
    assert float((first(y) - io["video17/reconstruction"]).abs().max()) > 0.1


@pytest.mark.parametrize("frames", [1, 2, 8, 9, 10, 15])
def test_any_number_of_frames_and_the_stream_to_the_bit(public, frames):
    io, tok = public
    x = io["video17/input"][:, :, :frames]
    whole = check_streams(tok, x)
    assert whole.positions[0] == (1 if frames == 1 else 1 + 2 * -(-(frames - 1) // 8))


def test_a_frame_depends_on_eight_later_ones_and_no_more(public):
    io, tok = public
    assert (tok.info.causal, tok.info.lookahead_frames) == (False, 8)
    tokens = tok.encode(io["video17/input"])
    y = tok.decode(tokens)
    for changed, same in ((3, 9), (1, 0)):
        data = tokens.data.clone()
        data[:, changed:] += 1
        other = tok.decode(replace(tokens, data=data))
        assert torch.equal(other[:, :, :same], y[:, :, :same])
        assert not torch.equal(other[:, :, same : same + 1], y[:, :, same : same + 1])
    x = io["video17/input"].clone()
    x[:, :, 9:] = 0
    assert torch.equal(tok.encode(x).data[:, :3], tokens.data[:, :3])
    x[:, :, 8:] = 0
    assert not torch.equal(tok.encode(x).data[:, :1], tokens.data[:, :1])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"_class_name": "AutoencoderKL"}, "class 'AutoencoderKL'"),
        ({"up_block_types": ["Other"]}, "up_block_types holds Other"),
        ({"invert_scale_latents": True}, "invert_scale_latents=True"),
        ({"norm_num_groups": 5}, "block_channels"),
    ],
)
def test_a_configuration_that_is_not_known(parity, values, words):
    with pytest.raises(ValueError, match=words):
        CogVideoXVAE.from_public({**parity("cogvideox_vae", "small").config, **values}, {})
