"""The KL autoencoder against diffusers' own class, and what it reads of diffusers' folders."""

import json
import logging

import pytest
import torch
from diffusers import AutoencoderKL as Reference
from safetensors.torch import load_file, save_file

import zoo
from zoo.image.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from zoo.layers.kl_vae import current_attention_name

SIZES = dict(
    block_out_channels=(8, 16, 16),
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
    sample_size=32,
    scaling_factor=0.5,
)


def reference(**more):
    torch.manual_seed(0)
    return Reference(**{**SIZES, **more}).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("diffusers") / "vae"
    reference(shift_factor=0.3).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tok(folder):
    return zoo.load(folder, family="autoencoder_kl")


def pictures(b, h, w, seed=0):
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_a_folder_of_diffusers_gives_its_numbers(tok):
    other, x = reference(shift_factor=0.3), pictures(2, 16, 24)
    tokens = tok.encode(x)
    wanted = (other.encode(x).latent_dist.mean - 0.3) * 0.5
    assert tokens.positions == (4, 6)
    torch.testing.assert_close(tokens.data, wanted.permute(0, 2, 3, 1), rtol=0, atol=1e-6)
    torch.testing.assert_close(tok.decode(tokens), other.decode(wanted / 0.5 + 0.3).sample, rtol=0, atol=1e-5)


def test_what_the_folder_says_of_itself(tok):
    assert tok.info.channels == 4
    assert tok.info.downsample == (1, 4, 4)
    assert tok.info.native_size == (32, 32)
    assert tok.info.tokens == 64
    assert not tok.info.discrete
    assert tok.config.shift_factor == 0.3


def test_a_sample_is_the_mean_and_noise_of_its_deviation(tok):
    x = pictures(2, 16, 16)
    posterior = tok.autoencoder.posterior(x)
    drawn = tok.encode(x, sample=True, seed=7).data
    for i in range(2):
        noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(7))
        wanted = (posterior.mean[i] + posterior.std[i] * noise[0] - 0.3) * 0.5
        torch.testing.assert_close(drawn[i], wanted.permute(1, 2, 0), rtol=0, atol=1e-5)


def test_scale_and_shift_are_undone_by_decode():
    x = pictures(1, 16, 16)
    torch.manual_seed(0)
    plain = zoo.create("autoencoder_kl", **TINY).eval()
    scaled = AutoencoderKL(AutoencoderKLConfig(**TINY, scaling_factor=3.0, shift_factor=-2.0)).eval()
    scaled.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(scaled(x), plain(x), rtol=0, atol=1e-5)
        latents = plain.encode(x).data / 0.18215
        torch.testing.assert_close(scaled.encode(x).data, (latents + 2.0) * 3.0, rtol=0, atol=1e-4)


TINY = dict(latent_channels=4, block_channels=(8, 8, 8), layers_per_block=1, norm_groups=4, image_size=32)


def test_without_the_convolutions_around_the_latents(tmp_path):
    reference(use_quant_conv=False, use_post_quant_conv=False).save_pretrained(tmp_path / "x")
    tok = zoo.load(tmp_path / "x", family="autoencoder_kl")
    assert not any("quant_conv" in key for key in tok.state_dict())


def test_names_of_old_attention_are_read(folder, tmp_path):
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    old = {}
    for key, value in tensors.items():
        for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f".attentions.0.{new}.", f".attentions.0.{name}.")
        old[key] = value
    assert old.keys() != tensors.keys()
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(old, tmp_path / "model.safetensors")
    x = pictures(1, 16, 16)
    found = zoo.load(tmp_path, family="autoencoder_kl").encode(x)
    assert torch.equal(found.data, zoo.load(folder, family="autoencoder_kl").encode(x).data)
    assert all(current_attention_name(key) == key for key in tensors), "current names pass unchanged"


def test_a_side_that_is_no_multiple_counts_its_padded_grid():
    layout = AutoencoderKL.layout_of(AutoencoderKLConfig(**{**TINY, "image_size": 30}))
    assert layout["tokens"] == 64
    tok = zoo.create("autoencoder_kl", **{**TINY, "image_size": 30})
    assert tok.encode(pictures(1, 30, 30)).positions == (8, 8)


# -- diffusers' configuration ------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(folder):
    return json.loads((folder / "config.json").read_text())


def translated(config):
    return AutoencoderKL.from_public(config, {})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("_class_name", "AutoencoderKLWan", r"of class 'AutoencoderKLWan'. Needed: 'AutoencoderKL'"),
        ("_class_name", "os.system", r"of class 'os\.system'"),
        ("down_block_types", ["AttnDownEncoderBlock2D"], r"down_block_types holds AttnDownEncoderBlock2D"),
        ("up_block_types", ["UpDecoderBlock2D", "X"], r"up_block_types holds X"),
        ("act_fn", "gelu", r"act_fn='gelu' in config\.json. This implementation knows: 'silu'"),
        ("in_channels", 4, r"in_channels=4"),
        ("out_channels", 1, r"out_channels=1"),
        ("latents_mean", [0.1] * 4, r"latents_mean=\[0\.1"),
        ("latents_std", [0.1] * 4, r"latents_std=\[0\.1"),
        ("mid_block_add_attention", False, r"mid_block_add_attention=False"),
        ("use_post_quant_conv", False, r"use_quant_conv and use_post_quant_conv differ"),
        ("latent_channels", "4", r"latent_channels='4'. Needed: int"),
        ("block_out_channels", 8, r"block_channels=8. Needed: tuple\[int, \.\.\.\]"),
        ("scaling_factor", "big", r"scaling_factor='big'. Needed: float"),
        ("scaling_factor", 0, r"scaling_factor=0. Allowed: a positive number"),
        ("norm_num_groups", 5, r"block_channels=.*multiples of norm_groups"),
    ],
)
def test_values_that_are_not_covered_are_refused(config, key, value, words):
    with pytest.raises(ValueError, match=words):
        translated({**config, key: value})


@pytest.mark.parametrize("key", ["latent_channels", "block_out_channels", "layers_per_block"])
def test_values_that_are_missing_are_named(config, key):
    del config[key]
    with pytest.raises(ValueError, match=rf"autoencoder_kl: config\.json has no {key}\."):
        translated(config)


def test_unknown_keys_are_reported_and_known_ones_are_not(config, caplog):
    with caplog.at_level(logging.WARNING, logger="zoo"):
        wanted = translated(config)
        assert not caplog.records
        assert translated({**config, "tiles": 3, "colour": 1}) == wanted
    (record,) = caplog.records
    assert record.getMessage().endswith("not used: colour, tiles")


def test_weights_that_lack_a_tensor_give_one_error(folder, tmp_path):
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    gone = "decoder.conv_out.weight"
    del tensors[gone]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"do not fit the model.*\n.*1 missing: autoencoder\.vae\.{gone}\n"):
        zoo.load(tmp_path, family="autoencoder_kl")
