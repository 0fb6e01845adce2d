"""TokenBridge against tensors of the public implementation (see the READMEs in tests/parity/tokenbridge)."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests.contract.small import built, cases
from zoo import registry
from zoo.checkpoint import write_folder
from zoo.image.tokenbridge import TokenBridge, TokenBridgeConfig, frequency_order
from zoo.publishing import folder_config
from zoo.quantizers.dimension_wise import calibrate
from zoo.registry import Weights
from zoo.tokens import Tokens

PARITY = Path(__file__).parents[1] / "parity" / "tokenbridge"
FOLDER = PARITY / "kl_vae"


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    scale = max(1.0, float(b.abs().max()))
    assert float((a - b).abs().max()) <= tolerance * scale, f"largest difference {float((a - b).abs().max())} at scale {scale}"


def last(x):
    """Channels last, as codes and latents are here."""
    return x.permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tok():
    return zoo.load(FOLDER, family="tokenbridge")


@pytest.fixture(scope="module")
def io():
    return load_file(FOLDER / "io.safetensors")


# -- the public numbers --------------------------------------------------------------------------------------------------------


def test_sizes_are_read_from_the_tensors(tok):
    config = tok.config
    assert (config.width, config.multipliers, config.blocks, config.latent_channels) == (32, (2, 1), 1, 16)
    assert (config.encoder_attention, config.decoder_attention, config.image_size) == ((1,), (), 16)
    assert config.scaling_factor == pytest.approx(0.93)
    assert (config.levels, config.centre, config.spread, config.reach) == ((64,), (0.0,), (pytest.approx(5 / 3),), 3.0)


def test_posterior(tok, io):
    close(tok.quant_conv(tok.encoder(io["image"])), io["moments"])
    mean, logvar = tok.posterior(io["image"])
    close(mean, io["mean"])
    close(logvar, io["logvar_clamped"])
    close((logvar / 2).exp(), io["std"])
    close(tok.encode_latents(io["image"]), last(io["latents_scaled"]))


def test_codes_of_the_stored_latents(tok, io):
    codes = tok.quantizer.encode(last(io["latents_scaled"]))
    assert torch.equal(codes, last(io["indices"]))
    close(tok.quantizer.decode(codes), last(io["dequantized"]), 1e-5)


def test_margins_are_those_of_the_nearest_two_values(tok, io):
    """The stored margins are distances to the second-best value minus those to the best, over the spread."""
    values, x = tok.quantizer.values[0], last(io["latents_scaled"])
    nearest = (x[..., None] - values).abs().topk(2, largest=False).values / tok.config.spread[0]
    close(nearest[..., 1] - nearest[..., 0], last(io["index_margin"]), 1e-5)


def test_codes_of_pictures_by_the_front_door(tok, io):
    sure = last(io["index_margin"]) > 1e-3
    assert sure.float().mean() > 0.9
    codes = tok.encode(io["image"]).data
    assert torch.equal(codes[sure], last(io["indices"])[sure])
    assert int((codes - last(io["indices"])).abs().max()) <= 1


def test_pictures(tok, io):
    tokens = Tokens(last(io["indices"]), tok.spec, torch.tensor([[16, 16]] * 2))
    close(tok.decode(tokens), io["reconstruction_from_tokens"])
    close(tok.decode_latents(last(io["mean"]) * tok.config.scaling_factor), io["reconstruction_from_mean"])


@pytest.mark.parametrize(("bits", "limit", "reach"), [(6, 5, 3), (4, 5, 3), (3, 3, 3), (5, 4, 2.5)])
def test_every_published_range(bits, limit, reach):
    units = load_file(PARITY / "ptq_scalar" / "io.safetensors")
    shapes = {key: tuple(value.shape) for key, value in load_file(FOLDER / "weights.safetensors").items()}
    values = {"quant_bits": bits, "quant_min": -float(limit), "quant_max": float(limit), "std_range": float(reach)}
    quantizer = TokenBridge(TokenBridge.from_public(values, shapes)).quantizer
    name = f"b{bits}_r{limit}_s{reach}."
    codes = quantizer.encode(last(units["latents"]))
    assert torch.equal(codes, last(units[name + "indices"]))
    close(quantizer.decode(codes), last(units[name + "dequantized"]), 2e-6)


# -- sampling, rates, sizes ----------------------------------------------------------------------------------------------------


def test_samples_have_the_posterior_deviation(tok, io, monkeypatch):
    """4,000 draws of each latent: means within five standard errors, whose mean square is 1; deviations to a hundredth."""
    x = io["image"][:1]
    mean, std = (last(io[key])[0] * tok.config.scaling_factor for key in ("mean", "std"))
    generator = torch.Generator().manual_seed(0)
    means, logvar = tok.posterior(x)
    monkeypatch.setattr(tok, "posterior", lambda _: (means.expand(4000, -1, -1, -1), logvar.expand(4000, -1, -1, -1)))
    draws = tok.encode_latents(x, generator)
    error = (draws.mean(0) - mean) / std * 4000**0.5
    assert float(error.abs().max()) < 5
    assert float(error.square().mean()) == pytest.approx(1, abs=0.2)
    assert float((draws.std(0) / std).mean()) == pytest.approx(1, abs=0.01)


def test_seeded_samples(tok, io):
    first, again, other = (tok.encode(io["image"], sample=True, seed=seed).data for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    alone = tok.encode(io["image"][1:], sample=True, seed=1).data
    assert torch.equal(alone[0], first[1])


def test_rate_is_the_channels_bits(tok, io):
    tokens = tok.encode(io["image"])
    assert tokens.data.shape == (2, 8, 8, 16)
    assert tok.info.bits_per_pixel == pytest.approx(8 * 8 * 16 * 6 / 16**2)
    with pytest.raises(ValueError, match=r"depth=3, but this tokenizer has no residual levels"):
        tok.encode(io["image"], depth=3)


def test_any_size_comes_back(tok, io):
    x = io["image"][:, :, :11, :6]
    tokens = tok.encode(x)
    assert tokens.positions == (6, 3)
    assert tok.decode(tokens).shape == x.shape


def test_half_precision_weights_keep_the_quantizer_exact(io):
    half = zoo.load(FOLDER, family="tokenbridge", dtype=torch.bfloat16)
    assert torch.equal(half.quantizer.encode(last(io["latents_scaled"])), last(io["indices"]))
    picture = half.decode(half.encode(io["image"]))
    assert picture.dtype == torch.bfloat16
    assert torch.isfinite(picture).all()


def test_bits_for_each_channel(tok, io):
    """Measured centres and spreads, and other levels for each channel, round to the nearest of the channel's values."""
    latents = last(io["latents_scaled"])
    centre, spread = calibrate(latents)
    levels = tuple(2 ** (1 + i % 5) for i in range(16))
    config = replace(tok.config, levels=levels, centre=centre, spread=spread)
    own = TokenBridge(config)
    own.load_state_dict(tok.state_dict())
    assert own.info.vocabulary == levels
    assert own.info.bits_per_pixel == pytest.approx(64 * sum(1 + i % 5 for i in range(16)) / 256)
    tokens = own.encode(io["image"])
    values = own.quantizer.values.nan_to_num(nan=1e9)
    expected = (own.encode_latents(io["image"])[..., None] - values).abs().argmin(-1)
    assert torch.equal(tokens.data, expected)
    assert own.decode(tokens).shape == io["image"].shape


# -- the public format ---------------------------------------------------------------------------------------------------------


def test_the_released_pickle_is_read_by_its_entry(tok, io, monkeypatch, tmp_path):
    from zoo import hub

    state = load_file(FOLDER / "weights.safetensors")
    torch.save({"model": {**state, "loss.logvar": torch.zeros(())}, "epoch": 1}, tmp_path / "kl16.ckpt")
    monkeypatch.setattr(registry, "_EXTRA", {})
    monkeypatch.setattr(hub, "fetch", lambda repo, file, **options: tmp_path / file)
    public = zoo.info("tokenbridge_kl16").weights
    assert (public.file, public.key, public.pickle, public.config_file) == ("vae/kl16.ckpt", "model", True, None)
    weights = Weights(repo="a/b", file="kl16.ckpt", layout="public", config_file=None, pickle=True, key="model")
    zoo.register(replace(tok.info, name="small_release", weights=weights))
    released = zoo.load("small_release")
    sure = last(io["index_margin"]) > 1e-3
    assert torch.equal(released.encode(io["image"]).data[sure], last(io["indices"])[sure])


def test_full_size_tensors_are_told_by_their_shapes():
    with torch.device("meta"):
        state = zoo.create("tokenbridge_kl16").state_dict()
    assert TokenBridge.from_public({}, {key: tuple(value.shape) for key, value in state.items()}) == TokenBridgeConfig()


def test_a_missing_tensor_is_named(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "odd")
    path = tmp_path / "odd" / "weights.safetensors"
    state = load_file(path)
    del state["decoder.mid.attn_1.q.weight"]
    state["decoder.extra"] = torch.zeros(1)
    save_file(state, path)
    with pytest.raises(ValueError, match=r"(?s)1 missing: decoder\.mid\.attn_1\.q\.weight.*1 unexpected: decoder\.extra"):
        zoo.load(tmp_path / "odd", family="tokenbridge")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_variational": False}, r"use_variational=False"),
        ({"quant_min": 5.0}, r"quant_min=5\.0, quant_max=5\.0"),
        ({"std_range": 0}, r"std_range=0"),
        ({"quant_bits": 11}, r"levels=\(2048,\).*1\.\.1024"),
        ({"latent_scale": 0.0}, r"scaling_factor=0\.0"),
    ],
)
def test_what_is_not_covered_is_named(values, message):
    config = json.loads((FOLDER / "config.json").read_text())
    shapes = {key: tuple(value.shape) for key, value in load_file(FOLDER / "weights.safetensors").items()}
    with pytest.raises(ValueError, match=message):
        TokenBridge.from_public({**config, **values}, shapes)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"no encoder\.conv_in\.weight, post_quant_conv\.weight"):
        TokenBridge.from_public({}, {"quant_conv.weight": (32, 32, 1, 1)})
    shapes = dict.fromkeys(["encoder.conv_in.weight", "post_quant_conv.weight", "quant_conv.weight"], (16, 16, 1, 1))
    with pytest.raises(ValueError, match=r"quant_conv has 16 channels for 16 latents\. Needed: 32"):
        TokenBridge.from_public({}, shapes)


@pytest.mark.parametrize(
    "values",
    [{"levels": (64, 64)}, {"spread": (0.0,)}, {"width": 100}, {"encoder_attention": (5,)}, {"image_size": 100}, {"reach": 0.0}],
)
def test_sizes_that_make_no_sense_are_refused(values):
    (key,) = values
    with pytest.raises(ValueError, match=rf"TokenBridgeConfig: {key}="):
        TokenBridgeConfig(**values)


# -- on another autoencoder ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae():
    return zoo.load("kl_vae_nano")


@pytest.fixture(scope="module")
def pictures(vae):
    from zoo.samples import images

    return vae.preprocess(images()[:6], size=64)


def psnr(a, b):
    return float(-10 * ((a - b).square().mean() / 4).log10())


def test_more_bits_on_an_autoencoder_of_the_zoo(vae, pictures):
    """Rounding to 6 bits costs next to nothing, and every bit fewer costs more (the paper's finding, Table 1)."""
    latents = vae.encode(pictures).data
    continuous = vae.decode(vae.encode(pictures))
    last_error = 0.0
    for bits in (6, 4, 3, 2):
        own = TokenBridge.on(vae, bins=2**bits)
        tokens = own.encode(pictures)
        assert tokens.bits_per_pixel().tolist() == pytest.approx([bits * 16 / 64] * len(pictures))
        error = float((own.quantizer.decode(tokens.data) - latents).square().mean())
        assert error > last_error
        last_error = error
        if bits == 6:
            assert psnr(own.decode(tokens), continuous) > 40
            assert psnr(own.decode(tokens), pictures) > psnr(continuous, pictures) - 0.1
    with torch.no_grad():
        assert torch.allclose(own.encode_latents(pictures), latents, atol=1e-5)


def test_measured_channels_have_less_error_on_other_pictures(vae, pictures):
    measured_on, others = vae.encode(pictures[::2]).data, vae.encode(pictures[1::2]).data
    errors = []
    for latents in (None, measured_on):
        own = TokenBridge.on(vae, latents=latents)
        errors.append(float((own.quantizer.decode(own.encode(pictures[1::2]).data) - others).square().mean()))
    assert errors[1] < 0.8 * errors[0], errors


def test_what_is_made_on_an_autoencoder_is_saved_and_loaded(vae, pictures, tmp_path):
    own = TokenBridge.on(vae, bins=16, latents=vae.encode(pictures).data, name="mine")
    config = {"family": "tokenbridge", "name": "mine", "config": own.config.to_dict()}
    write_folder(tmp_path / "own", config=config, tensors=own.state_dict())
    again = zoo.load(tmp_path / "own")
    tokens = own.encode(pictures)
    assert torch.equal(again.encode(pictures).data, tokens.data)
    assert torch.equal(again.decode(tokens), own.decode(tokens))
    assert own.info.license_weights == vae.info.license_weights
    assert own.info.parameters == sum(value.numel() for value in own.state_dict().values())


def test_what_is_no_autoencoder_is_refused(tok, vae):
    with pytest.raises(TypeError, match=r"vae is a TokenBridge\. Needed: a tokenizer of pictures that gives a grid of latents"):
        TokenBridge.on(tok)
    with pytest.raises(TypeError, match=r"vae is a TokenBridge\."):
        TokenBridge.on(TokenBridge.on(vae))
    for values, message in (
        ({"bins": 1}, r"bins=1\. Allowed: 2\.\.1024"),
        ({"limit": -1.0}, r"limit=-1\.0"),
        ({"latents": torch.zeros(3, 5)}, r"shape \(3, 5\)\. Needed: \(\.\.\., 16\)"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenBridge.on(vae, **values)


VAES = [entry.name for entry in zoo.find(modality="image", layout="2d", discrete=False)]


@pytest.mark.parametrize("name", [name for name in VAES if name in cases()])
def test_every_kind_of_autoencoder(name, tmp_path):
    """The codes are those of its rounded latents, the pictures those it decodes from them; saved and loaded; any size."""
    vae = built(name)
    x = torch.rand(2, 3, 21, 14, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = vae.encode(x)
    own = TokenBridge.on(vae, bins=9, latents=latents.data, name="own")
    tokens = own.encode(x)
    assert torch.equal(tokens.data, own.quantizer.encode(latents.data.float()))
    rounded = replace(latents, data=own.quantizer.decode(tokens.data))
    torch.testing.assert_close(own.decode(tokens), vae.decode(rounded), rtol=0, atol=1e-6)
    assert tokens.spec.vocabulary == (9,) * vae.info.channels
    assert own.info.bits_per_pixel == pytest.approx(16 * vae.info.channels * math.log2(9) / 16**2)
    assert own.info.stochastic_encode == vae.info.stochastic_encode
    write_folder(tmp_path / "own", config=folder_config(own), tensors=own.state_dict())
    again = zoo.load(tmp_path / "own")
    assert torch.equal(again.encode(x).data, tokens.data)
    assert torch.equal(again.decode(tokens), own.decode(tokens))


def test_every_autoencoder_of_the_catalog_is_of_these_kinds():
    of_kinds = {name for first, names in cases().items() if first in VAES for name in names}
    assert set(VAES) == of_kinds & set(VAES)
    assert {"sd_vae_ft_mse", "sdxl_vae", "sd3_vae", "flux1_vae", "dc_ae_f32c32_in1k", "dc_ae_f64c128_in1k"} <= set(VAES)


def test_what_is_wrapped_must_be_told_whole():
    with pytest.raises(ValueError, match=r"vae_family=''. Allowed: a family for network 'zoo'"):
        TokenBridgeConfig(network="zoo")
    with pytest.raises(ValueError, match=r"vae_config='\{\}'. Allowed: JSON text for network 'zoo', empty"):
        TokenBridgeConfig(vae_config="{}")
    own = TokenBridge.on(built("dc_ae_f32c32_in1k"))
    with pytest.raises(ValueError, match=r"dc_ae_f32c32_in1k_64bins\.posterior: .*Use encode_latents"):
        own.posterior(torch.zeros(1, 3, 16, 16))


def test_channels_of_large_structures_come_first():
    """Waves of known frequency: below a quarter of a cycle a position all energy is low, above it none; white noise has the share
    of the frequencies inside the circle."""
    place = torch.arange(32)
    wave = lambda cycles: torch.cos(2 * math.pi * cycles * place / 32).expand(64, 32, 32)  # noqa: E731
    noise = torch.randn(64, 32, 32, generator=torch.Generator().manual_seed(0))
    order, share = frequency_order(torch.stack([noise, wave(12), wave(3) + 7, wave(3) + wave(12)], -1))
    assert order == (2, 3, 0, 1)
    inside = sum(a * a + b * b <= 64 for a in range(-16, 16) for b in range(-16, 16)) / 32**2
    assert share == pytest.approx((inside, 0.0, 1.0, 0.5), abs=0.01)
