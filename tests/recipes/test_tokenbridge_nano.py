"""tokenbridge_nano is kl_vae_nano with codes: when that one is trained anew, its entry has to follow."""

import pytest
import torch

import zoo
from zoo.image.tokenbridge import TokenBridge
from zoo.samples import folder
from zoo.transforms.quality import psnr_db


def test_entry_is_what_the_bridge_makes_of_kl_vae_nano():
    vae, tok = zoo.load("kl_vae_nano"), zoo.load("tokenbridge_nano")
    made = TokenBridge.on(vae, bins=64)
    assert tok.config == made.config, "copy the configuration of TokenBridge.on(kl_vae_nano, bins=64) into the entry"
    assert zoo.info("tokenbridge_nano").weights == zoo.info("kl_vae_nano").weights
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(tok.encode(x).data, made.encode(x).data)


def test_rounding_costs_little_on_photographs():
    """At 64 values a channel the pictures are on par with those of the unrounded latents."""
    vae, tok = zoo.load("kl_vae_nano"), zoo.load("tokenbridge_nano")
    pictures = sorted((folder() / "images").glob("*"))[:6]
    x = torch.cat([vae.preprocess(path) for path in pictures])
    plain, rounded = (psnr_db(x, model(x)).mean().item() for model in (vae, tok))
    assert rounded == pytest.approx(plain, abs=0.3)
