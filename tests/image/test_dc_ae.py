"""DC-AE against diffusers' class called directly, on tiny random networks; and the catalog against the published configurations."""

import json
import logging

import pytest
import torch
from diffusers import AutoencoderDC

import zoo
from zoo.image.dc_ae import DCAE, DCAEConfig

# Two shapes of network, in diffusers' words: that of the ImageNet releases and that of the text-to-image release.
IN1K = dict(
    latent_channels=8,
    attention_head_dim=8,
    encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    encoder_block_out_channels=(8, 16, 32),
    decoder_block_out_channels=(8, 16, 32),
    encoder_layers_per_block=(0, 2, 1),
    decoder_layers_per_block=(0, 1, 2),
    encoder_qkv_multiscales=((), (), ()),
    decoder_qkv_multiscales=((), (), ()),
    decoder_norm_types=("batch_norm", "batch_norm", "rms_norm"),
    decoder_act_fns=("relu", "relu", "silu"),
    scaling_factor=0.3189,
)
SANA = dict(
    latent_channels=4,
    attention_head_dim=8,
    encoder_block_types=("ResBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "EfficientViTBlock"),
    encoder_block_out_channels=(8, 16),
    decoder_block_out_channels=(8, 16),
    encoder_layers_per_block=(2, 1),
    decoder_layers_per_block=(1, 1),
    encoder_qkv_multiscales=((), (5,)),
    decoder_qkv_multiscales=((), (5,)),
    downsample_block_type="Conv",
    upsample_block_type="interpolate",
    decoder_norm_types="rms_norm",
    decoder_act_fns="silu",
    scaling_factor=0.41407,
)
BARE = {**SANA, "encoder_out_shortcut": False, "decoder_in_shortcut": False, "decoder_conv_act_fn": "silu", "latent_channels": 3}
CASES = {"in1k": IN1K, "sana": SANA, "bare": BARE}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A tokenizer read from diffusers' folder, and the network that wrote it."""
    public = AutoencoderDC(**CASES[request.param])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in public.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif value.is_floating_point():
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
    folder = tmp_path_factory.mktemp(request.param)
    public.save_pretrained(folder)
    return zoo.load(folder, family="dc_ae"), public.eval().requires_grad_(False)


def picture(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_latents_are_those_of_diffusers_times_the_scale(case):
    tok, public = case
    x = picture(2, 3, 32, 48)
    expected = public.encode(x).latent * public.config.scaling_factor
    tokens = tok.encode(x)
    assert not tokens.discrete
    assert tokens.data.shape[1:3] == (32 // public.spatial_compression_ratio, 48 // public.spatial_compression_ratio)
    torch.testing.assert_close(tokens.data, expected.permute(0, 2, 3, 1))
    assert float(expected.std()) > 1e-2


def test_pictures_are_those_of_diffusers(case):
    tok, public = case
    x = picture(2, 3, 32, 48)
    torch.testing.assert_close(tok(x), public.decode(public.encode(x).latent).sample)


def test_any_size_comes_back_and_equals_the_padded_picture(case):
    tok, public = case
    for h, w in ((1, 1), (13, 30), (33, 9)):
        x = picture(1, 3, h, w, seed=h)
        multiple = public.spatial_compression_ratio
        padded = torch.nn.functional.pad(x, (0, -w % multiple, 0, -h % multiple), mode="replicate")
        expected = public.decode(public.encode(padded).latent).sample[..., :h, :w]
        torch.testing.assert_close(tok(x), expected)


def test_a_batch_of_unequal_items_equals_each_alone(case):
    tok, _ = case
    items = [picture(3, 16, 24, seed=2), picture(3, 9, 11, seed=3), picture(3, 16, 24, seed=4)]
    together = tok.decode(tok.encode(items))
    for item, y in zip(items, together, strict=True):
        torch.testing.assert_close(y[:, : item.shape[1], : item.shape[2]], tok(item[None])[0], rtol=1e-4, atol=1e-5)


def test_the_public_folder_and_the_flat_configuration_say_the_same(case):
    tok, public = case
    assert DCAEConfig.from_dict(json.loads(json.dumps(tok.config.to_dict()))) == tok.config
    ours = DCAE(tok.config).autoencoder.config
    for key in CASES["in1k"].keys() | CASES["sana"].keys() | CASES["bare"].keys():
        a, b = ours[key], public.config[key]
        if isinstance(b, str) and not isinstance(a, str):
            b = (b,) * len(a)
        if isinstance(a, str):
            a, b = a.lower(), b.lower()
        assert a == b, key


def test_there_is_nothing_to_sample(case):
    tok, _ = case
    with pytest.raises(ValueError, match=r"encode: sample=True, but this encoder has nothing to sample"):
        tok.encode(picture(1, 3, 8, 8), sample=True)


def test_gradients_reach_every_parameter(case):
    tok = DCAE(case[0].config)
    tok.load_state_dict(case[0].state_dict())
    tok(picture(2, 3, 32, 32)).square().mean().backward()
    missing = [name for name, value in tok.named_parameters() if value.grad is None or not bool(value.grad.abs().sum() > 0)]
    assert missing == []


# -- refusals --------------------------------------------------------------------------------------------------------------------


def public_config(**changes):
    return {"_class_name": "AutoencoderDC", **{k: v for k, v in {**IN1K, **changes}.items() if v is not None}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, r"config\.json is of class 'AutoencoderKL'\. Needed: 'AutoencoderDC'"),
        ({"latent_channels": None, "decoder_block_types": None}, r"config\.json has no latent_channels, decoder_block_types"),
        ({"in_channels": 1}, r"in_channels=1 in config\.json\. This implementation knows: 3"),
        ({"decoder_block_out_channels": (8, 16, 16)}, r"encoder_block_out_channels=.* and decoder_block_out_channels=.*the same"),
        (
            {f"{side}_block_types": ("EfficientViTBlock", "ResBlock", "ResBlock") for side in ("encoder", "decoder")},
            r"block types .* Known: ResBlock, then EfficientViTBlock",
        ),
        ({f"{side}_qkv_multiscales": ((), (), (3, 5)) for side in ("encoder", "decoder")}, r"at most one kernel"),
        ({"downsample_block_type": "pool"}, r"downsample_block_type='pool'.*Known: pixel_unshuffle, conv"),
        ({"upsample_block_type": "pool"}, r"upsample_block_type='pool'.*Known: pixel_shuffle, interpolate"),
        ({"decoder_norm_types": "layer_norm"}, r"DCAEConfig: decoder_norms="),
        ({"decoder_layers_per_block": (0, 1)}, r"DCAEConfig: decoder_layers=.*3 values"),
    ],
)
def test_a_public_configuration_that_is_not_covered_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DCAE.from_public(public_config(**changes), {})


def test_an_unused_key_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        DCAE.from_public(public_config(new_option=3), {})
    assert "dc_ae: keys of config.json that are not used: new_option" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 0}, r"latent_channels=0\. Allowed: at least 1"),
        ({"latent_channels": 48}, r"latent_channels=48\. Allowed: a divisor of 1024"),
        ({"scaling_factor": 0.0}, r"scaling_factor=0\.0\. Allowed: a positive number"),
        ({"block_channels": (128,)}, r"block_channels=\(128,\)\. Allowed: at least two widths"),
        ({"block_channels": (128, 256, 512, 512, 1024, 8192)}, r"block_channels=.*divisor of four times the one before"),
        ({"encoder_layers": (0, 4, 0, 2, 2, 2)}, r"encoder_layers=.*at least 1 at the others"),
        ({"conv_resolutions": 7}, r"conv_resolutions=7\. Allowed: 0\.\.6"),
        ({"attention_kernels": (0, 0, 0, 4, 4, 4)}, r"attention_kernels=.*0 or odd numbers"),
        ({"head_width": 48}, r"head_width=48\. Allowed: a divisor of"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"DCAEConfig: {message}"):
        DCAEConfig(**changes)


# -- the catalog -----------------------------------------------------------------------------------------------------------------


def published(widths, latent_channels, scaling_factor):
    """Configuration of the ImageNet releases: all attention stages alike."""
    attention = len(widths) - 3
    values = {"latent_channels": latent_channels, "scaling_factor": scaling_factor, "attention_head_dim": 32, "in_channels": 3}
    for side, layers in (("encoder", [0, 4, 8]), ("decoder", [0, 5, 10])):
        values[f"{side}_block_types"] = ["ResBlock"] * 3 + ["EfficientViTBlock"] * attention
        values[f"{side}_block_out_channels"] = widths
        values[f"{side}_layers_per_block"] = layers + [2] * attention
        values[f"{side}_qkv_multiscales"] = [[]] * len(widths)
    values |= {"downsample_block_type": "pixel_unshuffle", "upsample_block_type": "pixel_shuffle"}
    values["decoder_norm_types"] = ["batch_norm"] * 3 + ["rms_norm"] * attention
    values["decoder_act_fns"] = ["relu"] * 3 + ["silu"] * attention
    return values


PUBLISHED = {
    "dc_ae_f32c32_in1k": published([128, 256, 512, 512, 1024, 1024], 32, 0.3189),
    "dc_ae_f64c128_in1k": published([128, 256, 512, 512, 1024, 1024, 2048], 128, 0.2889),
    "dc_ae_f32c32_sana": {
        "latent_channels": 32,
        "scaling_factor": 0.41407,
        "attention_head_dim": 32,
        **{f"{side}_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3 for side in ("encoder", "decoder")},
        **{f"{side}_block_out_channels": [128, 256, 512, 512, 1024, 1024] for side in ("encoder", "decoder")},
        **{f"{side}_qkv_multiscales": [[], [], [], [5], [5], [5]] for side in ("encoder", "decoder")},
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
    },
}


def test_every_entry_is_compared():
    assert {entry.name for entry in zoo.find(family="dc_ae")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_has_the_published_configuration(name):
    assert DCAE.from_public(PUBLISHED[name], {}) == DCAEConfig.from_dict(zoo.info(name).config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_has_the_tensors_of_diffusers(name):
    values = {key: tuple(map(tuple, v)) if "multiscales" in key else v for key, v in PUBLISHED[name].items()}
    with torch.device("meta"):
        public = {f"autoencoder.{key}": value.shape for key, value in AutoencoderDC(**values).state_dict().items()}
        ours = {key: value.shape for key, value in zoo.create(name).state_dict().items()}
    assert ours == public
