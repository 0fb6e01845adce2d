"""Entries of the well-known KL autoencoders against their published configurations and diffusers' class."""

import pytest
import torch
from diffusers import AutoencoderKL as Public

import zoo
from zoo.image.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def test_shift_and_scale_of_a_release_without_1x1_convolutions(tmp_path):
    shift, scale = 0.1159, 0.3611
    public = Public(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        norm_num_groups=4,
        latent_channels=6,
        sample_size=32,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    public.eval().requires_grad_(False).save_pretrained(tmp_path)
    tok = zoo.load(tmp_path, family="autoencoder_kl")
    x = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mode = public.encode(x).latent_dist.mode()
    torch.testing.assert_close(tok.encode(x).data, ((mode - shift) * scale).permute(0, 2, 3, 1))
    torch.testing.assert_close(tok(x), public.decode(mode).sample, rtol=1e-4, atol=1e-5)


# -- the catalog -----------------------------------------------------------------------------------------------------------------

# What the published config.json files say: (latent channels, scale, shift, 1x1 convolutions, native side).
PUBLISHED = {
    "sd_vae_ft_mse": (4, 0.18215, None, None, 256),
    "sdxl_vae": (4, 0.13025, None, None, 1024),
    "sd3_vae": (16, 1.5305, 0.0609, False, 1024),
    "flux1_vae": (16, 0.3611, 0.1159, False, 1024),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_entry_has_the_published_configuration_and_the_tensors_of_diffusers(name):
    channels, scale, shift, convolutions, side = PUBLISHED[name]
    values = dict(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        latent_channels=channels,
        norm_num_groups=32,
        sample_size=side,
        scaling_factor=scale,
    )
    if convolutions is not None:
        values |= {"shift_factor": shift, "use_quant_conv": convolutions, "use_post_quant_conv": convolutions, "force_upcast": True}
    found = AutoencoderKL.from_public({"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, **values}, {})
    assert found == AutoencoderKLConfig.from_dict(zoo.info(name).config)
    with torch.device("meta"):
        public = {f"autoencoder.vae.{key}": value.shape for key, value in Public(**values).state_dict().items()}
        ours = {key: value.shape for key, value in zoo.create(name).state_dict().items()}
    assert ours == public
    # The 1x1 convolutions act on 2c and c channels.
    assert any("quant_conv" in key for key in ours) == (convolutions is not False)


def test_the_release_without_a_scale_in_its_file_has_the_scale_of_latent_diffusion():
    values = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [128, 256, 512, 512]}
    found = AutoencoderKL.from_public({**values, "layers_per_block": 2, "sample_size": 256}, {})
    assert found == AutoencoderKLConfig.from_dict(zoo.info("sd_vae_ft_mse").config)
