"""FlexTok against tensors of the public implementation (see the READMEs in tests/parity/flextok)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.layers.flow import ProjectedGuidance, mode_schedule, plain_guidance
from zoo.layers.patches import patchify, sincos_table, unpatchify
from zoo.tokens import Tokens
from zoo.transforms.nested_dropout import round_up_to_power_of_two

PARITY = Path(__file__).parents[1] / "parity" / "flextok"
CASES = ("d1_d2_head64_end2end_vae", "d2_d3_small_heads")


def close(a, b, tolerance=1e-4):
    scale = max(1.0, float(b.abs().max()))
    assert float((a - b).abs().max()) <= tolerance * scale, f"largest difference {float((a - b).abs().max())} at scale {scale}"


@pytest.fixture(scope="module", params=CASES)
def case(request):
    folder = PARITY / request.param
    tok = zoo.load(folder, family="flextok")
    return tok, load_file(folder / "io.safetensors"), json.loads((folder / "config.json").read_text())


def signal(io):
    return io.get("image", io.get("latents_in"))


def tokens_of(tok, io, k):
    codes = io["tokens"][..., None]
    x = signal(io)
    return Tokens(codes, tok.spec, torch.tensor([x.shape[2:]] * len(x))).keep(k)


def test_latents(case):
    tok, io, _ = case
    close(tok.encode_latents(signal(io)), io["vae_latents"])


def test_encoder_steps(case):
    tok, io, _ = case
    close(tok.encoder.embed(io["vae_latents"]), io["enc_patches_posemb"])
    n = io["tokens"].shape[1]
    pre = tok.encoder(io["vae_latents"], n)
    close(pre, io["pre_quant"])
    close(tok.quantizer.bound(pre), io["bounded"])
    quantized = tok.quantizer(io["pre_quant"])
    close(quantized.x, io["quant"])
    assert torch.equal(quantized.codes[..., 0], io["tokens"])


def test_first_encoder_block(case):
    tok, io, _ = case
    encoder = tok.encoder
    patches = encoder.embed(io["vae_latents"]).flatten(1, 2)
    registers = encoder.registers.expand(len(patches), -1, -1)
    n, count = patches.shape[1], registers.shape[1]
    mask = torch.ones(count, n + count, dtype=torch.bool).tril(n)
    close(encoder.blocks[0](torch.cat([patches, registers], 1), n, mask), io["enc_block0_out"])


def test_codes_by_the_front_door(case):
    tok, io, _ = case
    assert torch.equal(tok.encode(signal(io)).data[..., 0], io["tokens"])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_prefix_encoding_gives_the_same_codes(case, k):
    tok, io, _ = case
    assert torch.equal(tok.encode(signal(io), tokens=k).data[..., 0], io["tokens"][:, :k])


def test_time_embedding(case):
    tok, io, _ = case
    close(tok.decoder.embed_time(io["temb_t"]), io["temb"])


def test_velocity(case):
    tok, io, _ = case
    t = torch.full((len(io["tokens"]),), 0.6)
    codes = io["tokens"][..., None]
    names = [name for name in io if name.startswith("v_cond_t0.6_k")]
    assert len(names) >= 4
    for name in names:
        k = int(name.rpartition("_k")[2])
        close(tok.velocity(io["xt_t0.6"], t, codes[:, :k]), io[name])
    close(tok.velocity(io["xt_t0.6"], t, codes, keep=io["mixed_keep_k"]), io["v_cond_t0.6_mixed"])
    nothing = torch.ones(len(t), dtype=torch.bool)
    close(tok.velocity(io["xt_t0.6"], t, codes, null=nothing), io["v_uncond_t0.6"])


def test_alignment_tap_and_flow_loss(case):
    tok, io, _ = case
    n = io["tokens"].shape[1]
    keep = torch.full((len(io["tokens"]),), n)
    registers, bias = tok.decoder.condition(io["quant"], keep)
    modulation = tok.decoder.modulate_items(torch.full((len(keep),), 0.6))
    velocity, features = tok.decoder(io["xt_t0.6"], registers, bias, modulation, tap=tok.config.alignment_block)
    close(features, io[f"repa_feats_t0.6_k{n}"])
    target = io["noise"] - io["vae_latents"]
    close((velocity - target).square().mean((1, 2, 3)), io["rf_loss_per_sample_kall"])


def test_sampler(case):
    tok, io, _ = case
    steps = 3 if tok.vae is not None else 4
    options = {"noguid": {"guidance": 1.0}, "cfg3": {"guidance": 3.0, "guidance_mode": "plain"}, "apg7.5": {"guidance": 7.5}}
    names = [name for name in io if name.startswith("sample_k")]
    assert len(names) >= 12
    for name in names:
        k, mode = name.removeprefix("sample_k").split("_")
        tokens = tokens_of(tok, io, int(k))
        latents = tok.decode_latents(tokens, signal(io).shape[2:], steps=steps, noise=io["noise"], **options[mode])
        close(latents, io[name])
        image = f"image_k{k}_{mode}"
        if image in io:
            close(tok.decode(tokens, steps=steps, noise=io["noise"], **options[mode]), io[image])


def test_autoencoder_reconstruction():
    tok = zoo.load(PARITY / CASES[0], family="flextok")
    io = load_file(PARITY / CASES[0] / "io.safetensors")
    close(tok.vae.decode(io["vae_latents"]), io["vae_reconstruction"])


# -- small pieces ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def units():
    return load_file(PARITY / "units" / "io.safetensors")


def test_patches(units):
    out = patchify(units["patchify_in_bhwc"], 2)
    assert torch.equal(out, units["patchify_out"])
    assert torch.equal(unpatchify(out, 2), units["patchify_in_bhwc"])


def test_sincos_square(units):
    close(sincos_table(16, 4, 4), units["sincos_square"], 1e-6)


def test_guidance(units):
    guide = ProjectedGuidance()
    for i in range(3):
        cond, uncond = units[f"apg_cond_{i}"], units[f"apg_uncond_{i}"]
        close(guide(cond, uncond, 7.5), units[f"apg_out_{i}"], 1e-5)
        close(plain_guidance(cond, uncond, 3.0), units[f"cfg_out_{i}"], 1e-5)
    plain = ProjectedGuidance(momentum=0.0, norm_limit=None, parallel=0.5)
    close(plain(units["apg_cond_0"], units["apg_uncond_0"], 4.0), units["apg_nomomentum_eta0.5_r0"], 1e-5)


def test_noise_schedule(units):
    for scale in (0.25, 1.29):
        close(mode_schedule(units["sched_u"], scale), units[f"sched_mode{scale}"], 1e-6)


def test_uniform_pow2(units):
    draws = torch.arange(1, 257)
    assert torch.equal(round_up_to_power_of_two(draws, 256), units["uniform_pow2_map_256"])


@pytest.mark.parametrize("top", [1, 1000])
def test_time_features(units, top):
    with torch.device("meta"):
        decoder = zoo.create("flextok_nano", max_timestep=float(top)).decoder
    decoder.time = torch.nn.Sequential(torch.nn.Identity())
    decoder.time[0].weight = torch.zeros(1)
    close(decoder.embed_time(units["time_t"]), units[f"time_freq_emb_max{top}"], 1e-6)


def test_gated_mlp(units):
    from zoo.image.flextok import _MLP

    mlp = _MLP(12)
    mlp.load_state_dict(
        {
            "gate_up.weight": torch.cat([units["swiglu.fc1.weight"], units["swiglu.fc3.weight"]]),
            "down.weight": units["swiglu.fc2.weight"],
        }
    )
    close(mlp(units["swiglu_x"]), units["swiglu_out"], 1e-6)
