"""HunyuanVideo's autoencoder against diffusers' class on random weights: no tensors of the public weights are at hand."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

import zoo
from tests.video import checks
from tests.video.checks import check_streams, close, first
from zoo.checkpoint import write_folder
from zoo.video.hunyuan_video_vae import HunyuanVideoVAE, HunyuanVideoVAEConfig

PUBLIC = dict(
    latent_channels=4, block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.7,
    down_block_types=("HunyuanVideoDownBlock3D",) * 3, up_block_types=("HunyuanVideoUpBlock3D",) * 3,
    spatial_compression_ratio=4,
)  # fmt: skip


def clip(frames, sides=(8, 8), seed=0):
    return checks.clip(frames, sides, seed)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """diffusers' class, and ours loaded from the folder that it would publish."""
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(**PUBLIC).eval().requires_grad_(False)
    config = {"_class_name": "AutoencoderKLHunyuanVideo", **PUBLIC}
    folder = write_folder(tmp_path_factory.mktemp("public") / "vae", config=config, tensors=vae.state_dict())
    return vae, zoo.load(folder, family="hunyuan_video_vae")


def windowed(window, stride):
    """diffusers' class and ours with other windows, on the same weights."""
    torch.manual_seed(0)
    found = HunyuanVideoVAE.from_public({"_class_name": "AutoencoderKLHunyuanVideo", **PUBLIC}, {})
    tok = HunyuanVideoVAE(replace(found, window=window, window_stride=stride)).eval().requires_grad_(False)
    vae = AutoencoderKLHunyuanVideo(**PUBLIC).eval().requires_grad_(False)
    vae.load_state_dict(tok.vae.state_dict())
    vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames = window, stride
    return vae, tok


@pytest.mark.parametrize("frames", [1, 5, 13, 17, 21, 25, 41])
def test_the_class_gives_the_same_numbers(public, frames):
    vae, tok = public
    x = clip(frames)
    wanted = vae.encode(x).latent_dist
    close(first(tok.moments(x)), wanted.parameters)
    tokens = tok.encode(x)
    close(first(tokens.data), wanted.mode() * 0.7)
    close(tok.decode(tokens), vae.decode(wanted.mode()).sample)


@pytest.mark.parametrize("frames", [13, 17, 21, 33])
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (16, 8), (8, 8)])
def test_other_windows(window, stride, frames):
    vae, tok = windowed(window, stride)
    x = clip(frames)
    wanted = vae.encode(x).latent_dist
    close(first(tok.moments(x)), wanted.parameters)
    close(first(tok.encode(x).data), wanted.mode() * 0.7)
    close(tok.decode_raw(wanted.mode().permute(0, 2, 3, 4, 1)), vae.decode(wanted.mode()).sample)


def test_the_lengths_of_the_windows_are_part_of_the_function(public):
    """In one call the statistics of the norms are those of the whole clip, and the numbers are others."""
    vae, tok = public
    x = clip(29)
    tokens, y = tok.encode(x), tok.decode(tok.encode(x))
    close(vae.quant_conv(vae.encoder(x[:, :, :17])), first(tok.moments(x))[:, :, :5])
    whole = vae.quant_conv(vae.encoder(x)).chunk(2, 1)[0] * 0.7
    assert float((whole - first(tokens.data)).abs().max()) > 0.01
    whole = vae.decoder(vae.post_quant_conv(first(tokens.data) / 0.7))
    assert float((whole - y).abs().max()) > 0.01


def test_a_sample(public):
    _, tok = public
    x = clip(5)
    mean, logvar = tok.moments(x).chunk(2, -1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    close(tok.encode(x, sample=True, seed=3).data, (mean + (logvar.clamp(-30, 20) / 2).exp() * noise) * 0.7, 1e-6)


@pytest.mark.parametrize("frames", [1, 2, 16, 17, 18, 30])
def test_any_number_of_frames_and_the_stream_to_the_bit(public, frames):
    _, tok = public
    x = clip(frames, (8, 9))
    whole = check_streams(tok, x)
    assert whole.positions == (1 + -(-(frames - 1) // 4), 2, 3)


def test_what_is_missing_at_the_end_is_the_last_frame_again(public):
    _, tok = public
    x = clip(18)
    filled = torch.cat([x, x[:, :, -1:].expand(-1, -1, 3, -1, -1)], 2)
    assert torch.equal(tok.encode(x).data, tok.encode(filled).data)


def test_a_frame_depends_on_sixteen_later_ones_and_no_more(public):
    _, tok = public
    assert (tok.info.causal, tok.info.lookahead_frames) == (False, 16)
    x = clip(41)
    tokens = tok.encode(x)
    y = tok.decode(tokens)
    # Positions 5 to 7 come from the second window, frames 12 to 28; frames 17 to 24 need positions up to 7, 25 to 28 up to 10.
    for changed, same in ((17, 5), (16, 0), (29, 8), (28, 5)):
        other = x.clone()
        other[:, :, changed:] = clip(41, seed=9)[:, :, changed:]
        data = tok.encode(other).data
        assert torch.equal(data[:, :same], tokens.data[:, :same])
        assert not torch.equal(data[:, same : same + 1], tokens.data[:, same : same + 1])
    for changed, same in ((5, 14), (4, 0), (8, 26), (7, 14)):  # the first frame of a blend is the earlier window's alone
        data = tokens.data.clone()
        data[:, changed:] += 1
        other = tok.decode(replace(tokens, data=data))
        assert torch.equal(other[:, :, :same], y[:, :, :same])
        assert not torch.equal(other[:, :, same : same + 1], y[:, :, same : same + 1])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"_class_name": "AutoencoderKL"}, "class 'AutoencoderKL'"),
        ({"up_block_types": ["Other"]}, "up_block_types holds Other"),
        ({"temporal_compression_ratio": 8}, "temporal_compression_ratio=8"),
        ({"spatial_compression_ratio": 16}, "spatial_compression_ratio=16"),
        ({"norm_num_groups": 5}, "block_channels"),
    ],
)
def test_a_configuration_that_is_not_known(values, words):
    with pytest.raises(ValueError, match=words):
        HunyuanVideoVAE.from_public({"_class_name": "AutoencoderKLHunyuanVideo", **PUBLIC, **values}, {})


@pytest.mark.parametrize(("values", "words"), [({"window": 6}, "window"), ({"window_stride": 4}, "window_stride")])
def test_windows_that_cannot_be(values, words):
    with pytest.raises(ValueError, match=words):
        HunyuanVideoVAEConfig(**values)
