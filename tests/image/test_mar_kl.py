"""KL-16 against tensors of the public implementation (tests/parity/tokenbridge/kl_vae), and against TokenBridge's reading of it."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo import hub, registry
from zoo.image.mar_kl import MarKL, MarKLConfig
from zoo.registry import Weights

FOLDER = Path(__file__).parents[1] / "parity" / "tokenbridge" / "kl_vae"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tok():
    return zoo.load(FOLDER, family="mar_kl")


@pytest.fixture(scope="module")
def io():
    return load_file(FOLDER / "io.safetensors")


def last(x):
    return x.permute(0, 2, 3, 1)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * max(1.0, float(b.abs().max())))


def test_latents_are_the_scaled_mean(tok, io):
    tokens = tok.encode(io["image"])
    assert not tokens.discrete
    close(tokens.data, last(io["mean"]) * 0.2325 * 4)
    assert tok.config.scaling_factor == pytest.approx(0.2325 * 4), "the fixture's scale"


def test_posterior_and_samples(tok, io):
    mean, logvar = tok.posterior(io["image"])
    close(mean, io["mean"])
    close(logvar, io["logvar_clamped"])
    drawn = tok.encode(io["image"][:1], sample=True, seed=5).data
    noise = torch.randn(mean[:1].shape, generator=torch.Generator().manual_seed(5))
    close(drawn, last((io["mean"][:1] + io["std"][:1] * noise) * tok.config.scaling_factor))


def test_pictures_of_the_mean(tok, io):
    close(tok(io["image"]), io["reconstruction_from_mean"])


def test_any_size_comes_back(tok, io):
    x = io["image"][:, :, :11, :6]
    assert tok.encode(x).positions == (6, 3)
    assert tok(x).shape == x.shape


def test_tokenbridge_rounds_these_latents(tok, io):
    bridge = zoo.load(FOLDER, family="tokenbridge")
    sure = last(io["index_margin"]) > 1e-3
    assert torch.equal(bridge.quantizer.encode(tok.encode(io["image"]).data)[sure], bridge.encode(io["image"]).data[sure])
    assert {key: value.shape for key, value in tok.state_dict().items()} == {
        key: value.shape for key, value in bridge.state_dict().items()
    }


def test_the_released_pickle_is_read_by_its_entry(tok, io, monkeypatch, tmp_path):
    state = load_file(FOLDER / "weights.safetensors")
    torch.save({"model": {**state, "loss.logvar": torch.zeros(())}, "epoch": 1}, tmp_path / "kl16.ckpt")
    monkeypatch.setattr(registry, "_EXTRA", {})
    monkeypatch.setattr(hub, "fetch", lambda repo, file, **options: tmp_path / file)
    entry = zoo.info("mar_kl16")
    assert (entry.weights.file, entry.weights.key, entry.weights.config_file) == ("vae/kl16.ckpt", "model", None)
    weights = Weights(repo="a/b", file="kl16.ckpt", layout="public", config_file=None, pickle=True, key="model")
    zoo.register(replace(tok.info, name="small_mar_kl", weights=weights))
    released = zoo.load("small_mar_kl")
    found = released.encode(io["image"])
    close(found.data / released.config.scaling_factor, last(io["mean"]))
    close(released.decode(found), io["reconstruction_from_mean"])


def test_full_size_tensors_are_told_by_their_shapes():
    with torch.device("meta"):
        state = zoo.create("mar_kl16").state_dict()
    assert MarKL.from_public({}, {key: tuple(value.shape) for key, value in state.items()}) == MarKLConfig()
    assert MarKLConfig.from_dict(zoo.info("mar_kl16").config) == MarKLConfig()


def test_what_is_not_covered_is_named(caplog):
    config = json.loads((FOLDER / "config.json").read_text())
    shapes = {key: tuple(value.shape) for key, value in load_file(FOLDER / "weights.safetensors").items()}
    with pytest.raises(ValueError, match=r"mar_kl: use_variational=False"):
        MarKL.from_public({**config, "use_variational": False}, shapes)
    with pytest.raises(ValueError, match=r"mar_kl: the weights have no encoder\.conv_in\.weight, post_quant_conv\.weight"):
        MarKL.from_public({}, {"quant_conv.weight": (32, 32, 1, 1)})
    for key in ("width", "scaling_factor", "image_size", "encoder_attention"):
        with pytest.raises(ValueError, match=rf"MarKLConfig: {key}="):
            MarKLConfig(**{key: {"width": 100, "scaling_factor": 0.0, "image_size": 100, "encoder_attention": (5,)}[key]})
    with caplog.at_level(logging.WARNING, logger="zoo"):
        MarKL.from_public({**config, "colour": 1}, shapes)
    assert "not used: " in caplog.text
    assert "colour" in caplog.text
