"""FlexTok: its short cuts against a dense form written here, its sampler against a loop, and what it reads of public files."""

import copy
import json
import logging
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import zoo
from zoo.image.flextok import FlexTok, FlexTokConfig
from zoo.layers.flow import ProjectedGuidance, euler, start_noise

PUBLIC = Path(__file__).parents[1] / "parity" / "flextok" / "d2_d3_small_heads"
N, GRID = 12, 4
SMALL = dict(
    latent_channels=4, vae=False, grid=GRID, registers=N, encoder_width=32, encoder_depth=2, encoder_head=16, decoder_width=40,
    decoder_depth=2, decoder_head=20, time_features=16, steps=3,
)  # fmt: skip


def small(**more):
    torch.manual_seed(0)
    tok = zoo.create("flextok", info_name="small", **{**SMALL, **more}).eval().requires_grad_(False)
    for name, value in tok.named_parameters():
        if not value.any():  # what training starts at zero would hide most of the network
            nn.init.normal_(value, std=0.3 if name.endswith("weight") else 0.1)
    return tok


@pytest.fixture(scope="module")
def tok():
    return small()


def signals(b, h=2 * GRID, w=2 * GRID, seed=0):
    return torch.randn(b, 4, h, w, generator=torch.Generator().manual_seed(seed))


def some_codes(b, k=N, seed=1):
    return torch.randint(64000, (b, k, 1), generator=torch.Generator().manual_seed(seed))


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))


# -- the decoder against its dense form --------------------------------------------------------------------------------------------


def normalised(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def attention(module, x):
    """Softmax attention over all positions, one head after another."""
    q, k, v = module.qkv(x).chunk(3, -1)
    out = []
    for q_, k_, v_ in zip(*(part.split(module.head, -1) for part in (q, k, v)), strict=True):
        scores = normalised(q_) @ normalised(k_).transpose(1, 2) * (8 / module.head)
        out.append(scores.softmax(-1) @ v_)
    return module.out(torch.cat(out, -1))


def gated(module, x):
    gate, up = module.gate_up(x).chunk(2, -1)
    return module.down(gate * gate.sigmoid() * up)


def dense_velocity(decoder, x, t, values, keep, null):
    """One item, every register at its place: kept ones carry their value, the others the mask or the null token."""
    width, side = decoder.config.decoder_width, decoder.config.patch
    c, height, breadth = x.shape
    registers = []
    for i in range(decoder.config.registers):
        if null:
            registers.append(decoder.null_token)
        elif i >= keep:
            registers.append(decoder.mask_token)
        else:
            registers.append(decoder.project(values[i]) + decoder.register_positions[i])
    patches = []
    for row in range(height // side):
        for column in range(breadth // side):
            patch = x[:, row * side : (row + 1) * side, column * side : (column + 1) * side].permute(1, 2, 0).reshape(-1)
            patches.append(decoder.patch(patch) + decoder.positions[0, :, row, column])
    sequence = torch.stack([*patches, *registers])[None]
    n = len(patches)
    is_patch = (torch.arange(sequence.shape[1]) < n)[:, None]
    silu = nn.functional.silu(decoder.embed_time(t.view(1)))
    for block in decoder.blocks:
        pieces = [torch.where(is_patch, *(half[i] for half in block.modulation(silu).view(2, 6, width))) for i in range(6)]
        gate_a, gate_m, shift_a, scale_a, shift_m, scale_m = pieces
        sequence = sequence + gate_a * attention(block.attention, normalised(sequence) * (1 + scale_a) + shift_a)
        sequence = sequence + gate_m * gated(block.mlp, normalised(sequence) * (1 + scale_m) + shift_m)
    shift, scale = decoder.head_modulation(silu).view(2, width)
    out = decoder.head(normalised(sequence[0, :n]) * (1 + scale) + shift)
    y = torch.empty_like(x)
    for i, patch in enumerate(out):
        row, column = divmod(i, breadth // side)
        square = patch.view(side, side, c).permute(2, 0, 1)
        y[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = square
    return y


def dense(tok, x, t, codes, keep, null):
    values = tok.quantizer.decode(codes)
    rows = zip(x, t, values, keep.tolist(), null.tolist(), strict=True)
    return torch.stack([dense_velocity(tok.decoder, *row) for row in rows])


@pytest.mark.parametrize("k", [1, 2, 7, N - 1, N])
def test_one_token_stands_for_all_masked_ones(tok, k):
    x, codes, t = signals(2), some_codes(2), torch.tensor([0.2, 0.9])
    keep, null = torch.full((2,), k), torch.zeros(2, dtype=torch.bool)
    wanted = dense(tok, x, t, codes, keep, null)
    close(tok.velocity(x, t, codes[:, :k]), wanted)
    close(tok.velocity(x, t, codes, keep=keep), wanted)


def test_mixed_lengths_in_one_batch(tok):
    x, codes, t = signals(5), some_codes(5), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    keep, null = torch.tensor([1, N, 5, 3, N - 1]), torch.tensor([False, False, False, True, True])
    close(tok.velocity(x, t, codes, keep=keep, null=null), dense(tok, x, t, codes, keep, null))


def test_no_condition_at_all(tok):
    x, codes, t = signals(2), some_codes(2), torch.tensor([0.3, 0.6])
    keep, null = torch.full((2,), 4), torch.ones(2, dtype=torch.bool)
    wanted = dense(tok, x, t, codes, keep, null)
    close(tok.velocity(x, t, codes, keep=keep, null=null), wanted)
    close(tok.decoder(x, *tok.decoder.null_condition(2), tok.decoder.modulate_items(t)), wanted)


def test_smaller_and_oblong_pictures_use_the_corner_of_the_table(tok):
    x, codes, t = signals(1, 4, 6), some_codes(1), torch.tensor([0.4])
    wanted = dense(tok, x, t, codes, torch.tensor([3]), torch.tensor([False]))
    close(tok.velocity(x, t, codes[:, :3]), wanted)


def test_one_noise_level_for_all_or_one_for_each(tok):
    t = torch.tensor([0.1, 0.8])
    alone, each = tok.decoder.modulate(t), tok.decoder.modulate_items(t)
    for i in range(2):
        for a, b in zip(alone[i], each, strict=True):
            close(a, b[i : i + 1], 1e-6)


def test_a_tap_changes_nothing(tok):
    x, codes = signals(2), some_codes(2, 3)
    registers, bias = tok.decoder.condition(tok.quantizer.decode(codes), torch.tensor([3, 3]))
    modulation = tok.decoder.modulate_items(torch.tensor([0.1, 0.8]))
    plain = tok.decoder(x, registers, bias, modulation)
    tapped, features = tok.decoder(x, registers, bias, modulation, tap=1)
    assert torch.equal(plain, tapped)
    assert features.shape == (2, GRID, GRID, 40)


# -- the encoder -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, N])
def test_the_encoder_against_its_dense_form(tok, k):
    """Patches see patches; register j sees all patches and the registers up to itself."""
    encoder, x = tok.encoder, signals(2)
    sequence = torch.cat([encoder.embed(x).flatten(1, 2), encoder.registers.expand(2, -1, -1)], 1)
    n = GRID * GRID
    seen = torch.ones(n + N, n + N, dtype=torch.bool).tril() | (torch.arange(n + N) < n)
    for block in encoder.blocks:
        q, k_, v = block.attention.qkv(normalised(sequence)).chunk(3, -1)
        out = []
        for q_, kk, vv in zip(*(part.split(16, -1) for part in (q, k_, v)), strict=True):
            scores = normalised(q_) @ normalised(kk).transpose(1, 2) * (8 / 16)
            out.append(scores.masked_fill(~seen, -math.inf).softmax(-1) @ vv)
        sequence = sequence + block.attention.out(torch.cat(out, -1))
        sequence = sequence + gated(block.mlp, normalised(sequence))
    wanted = encoder.head(normalised(sequence[:, n:]))
    close(encoder(x, k), wanted[:, :k])


def test_later_registers_change_no_earlier_code(tok):
    x = signals(2)
    whole = tok.encode(x)
    for k in (1, 4, N):
        assert torch.equal(tok.encode(x, tokens=k).data, whole.data[:, :k])


# -- the sampler -------------------------------------------------------------------------------------------------------------------


def tokens_of(tok, b=2, k=N):
    return tok.encode(signals(b), tokens=k)


def by_hand(tok, tokens, noise, scales, guide):
    """Euler steps with a call for each branch."""
    x, steps = noise, len(scales)
    nothing = torch.ones(len(tokens), dtype=torch.bool)
    for i, scale in enumerate(scales):
        t = torch.full((len(tokens),), 1 - i / steps)
        v = tok.velocity(x, t, tokens.data, keep=tokens.counts)
        if scale != 1:
            v = guide(v, tok.velocity(x, t, tokens.data, null=nothing), scale)
        x = x - v / steps
    return x


NOISE = start_noise(2, (4, 8, 8), seed=[3, 4])


@pytest.mark.parametrize("k", [1, 5, N])
@pytest.mark.parametrize("scale", [1.0, 0.0, 3.0])
def test_plain_guidance_equals_two_calls(tok, k, scale):
    tokens = tokens_of(tok, k=k)
    found = tok.decode(tokens, guidance=scale, guidance_mode="plain", noise=NOISE)
    close(found, by_hand(tok, tokens, NOISE, [scale] * 3, lambda c, u, s: u + s * (c - u)))


@pytest.mark.parametrize("k", [2, N])
def test_projected_guidance_equals_two_calls(tok, k):
    tokens = tokens_of(tok, k=k)
    found = tok.decode(tokens, guidance=4.0, noise=NOISE)
    close(found, by_hand(tok, tokens, NOISE, [4.0] * 3, ProjectedGuidance()))


def test_guided_and_unguided_in_one_batch_or_two(tok, monkeypatch):
    for tokens in (tokens_of(tok, k=3), tok.encode(signals(2), tokens=[2, N])):
        together = tok.decode(tokens, guidance=4.0, noise=NOISE)
        with monkeypatch.context() as patch:
            patch.setattr(FlexTok, "_with_null", lambda *args: None)
            apart = tok.decode(tokens, guidance=4.0, noise=NOISE)
        close(together, apart)


def test_guidance_can_follow_the_noise_level(tok):
    tokens, seen = tokens_of(tok, k=3), []

    def late(t):
        seen.append(t)
        return 3.0 if t < 0.5 else 1

    found = tok.decode(tokens, guidance=late, guidance_mode="plain", noise=NOISE, steps=4)
    assert seen == [1.0, 0.75, 0.5, 0.25]
    close(found, by_hand(tok, tokens, NOISE, [1, 1, 1, 3.0], lambda c, u, s: u + s * (c - u)))
    assert torch.equal(tok.decode(tokens, guidance=lambda t: 3.0, noise=NOISE), tok.decode(tokens, guidance=3.0, noise=NOISE))


def test_momentum_ends_with_the_run(tok):
    tokens = tokens_of(tok, k=3)
    first = tok.decode(tokens, guidance=5.0, noise=NOISE)
    assert torch.equal(tok.decode(tokens, guidance=5.0, noise=NOISE), first)


def test_defaults_are_those_of_the_configuration():
    tok = small(steps=2, guidance=3.0)
    tokens = tokens_of(tok, k=3)
    assert torch.equal(tok.decode(tokens), tok.decode(tokens, steps=2, guidance=3.0, guidance_mode="projected", seed=0))
    assert not torch.equal(tok.decode(tokens), tok.decode(tokens, steps=3))
    assert not torch.equal(tok.decode(tokens), tok.decode(tokens, guidance=1.0))


def test_temperature_scales_what_is_drawn_and_nothing_else():
    tok = small(steps=2, temperature=0.5)
    tokens = tokens_of(tok, k=3)
    drawn = start_noise(len(tokens), NOISE.shape[1:], seed=3)
    assert torch.equal(tok.decode(tokens, seed=3), tok.decode(tokens, noise=0.5 * drawn))
    assert torch.equal(tok.decode(tokens, seed=3, temperature=1.0), tok.decode(tokens, noise=drawn))
    assert torch.equal(tok.decode(tokens, noise=drawn, temperature=0.1), tok.decode(tokens, noise=drawn))
    with pytest.raises(ValueError, match=r"temperature=-1.* 0 or more"):
        small(temperature=-1)


def test_projected_guidance_by_hand():
    draws = torch.Generator().manual_seed(0)
    c, u = (torch.randn(2, 3, 4, 4, generator=draws) for _ in range(2))
    out = ProjectedGuidance(momentum=0.0, norm_limit=1.0)(c, u, 6.0)
    for i in range(2):
        push = out[i] - c[i]
        assert abs(float((push * c[i]).sum())) < 1e-4, "nothing along the conditional velocity"
        assert float(push.norm()) <= 5.0 + 1e-4, "no longer than scale - 1 times the limit"
    assert torch.equal(ProjectedGuidance()(c, u, 1.0), c)
    whole = ProjectedGuidance(momentum=0.0, norm_limit=None, parallel=1.0)(c, u, 3.0)
    close(whole, u + 3 * (c - u))
    close(ProjectedGuidance(momentum=0.0)(c, c, 3.0), c)


def test_euler_integrates_a_constant_exactly():
    x = torch.tensor([1.0, 2.0])
    assert torch.equal(euler(lambda x, i: torch.tensor([4.0, -8.0]), x, 4), torch.tensor([-3.0, 10.0]))


# -- noise -------------------------------------------------------------------------------------------------------------------------


def test_seeds(tok):
    tokens = tok.encode(signals(1).expand(3, -1, -1, -1), tokens=3)
    same = tok.decode(tokens, seed=5)
    close(same[0], same[1], 1e-6)
    own = tok.decode(tokens, seed=[5, 6, 5])
    close(own[0], same[0], 1e-6)
    close(own[0], own[2], 1e-6)
    assert float((own[0] - own[1]).abs().max()) > 1e-2
    assert torch.equal(tok.decode(tokens, seed=(5, 6, 5)), own)
    assert torch.equal(tok.decode(tokens, noise=start_noise(3, (4, 8, 8), seed=[5, 6, 5])), own)
    assert torch.equal(tok.decode(tokens), tok.decode(tokens, seed=0))


def test_a_generator_draws_one_item_after_another(tok):
    tokens = tokens_of(tok, k=3)
    draws = torch.Generator().manual_seed(9)
    noise = torch.stack([torch.randn(4, 8, 8, generator=draws) for _ in range(2)])
    found = tok.decode(tokens, generator=torch.Generator().manual_seed(9))
    assert torch.equal(found, tok.decode(tokens, noise=noise))


def test_decoding_leaves_the_global_generator_alone(tok):
    before = torch.get_rng_state()
    tok.decode(tokens_of(tok, k=3))
    assert torch.equal(torch.get_rng_state(), before)


REFUSED = {
    "steps 0": (dict(steps=0), r"steps=0. Allowed: 1 or more"),
    "steps -1": (dict(steps=-1), r"steps=-1. Allowed: 1 or more"),
    "steps 2.5": (dict(steps=2.5), r"steps=2\.5. Allowed"),
    "steps text": (dict(steps="20"), r"steps='20'. Allowed"),
    "steps bool": (dict(steps=True), r"steps=True. Allowed"),
    "mode": (dict(guidance_mode="cfg"), r"guidance_mode='cfg'. Allowed: projected, plain"),
    "temperature": (dict(temperature=-0.1), r"temperature=-0\.1. Allowed: a finite number, 0 or more"),
    "temperature NaN": (dict(temperature=math.nan), r"temperature=nan. Allowed"),
    "temperature text": (dict(temperature="1"), r"temperature='1'. Allowed"),
    "guidance text": (dict(guidance="7.5"), r"guidance='7\.5'.*finite number"),
    "guidance NaN": (dict(guidance=math.nan), r"guidance=nan.*finite number"),
    "guidance function": (dict(guidance=lambda t: None), r"guidance=.*finite number, or a function of t"),
    "noise size": (dict(noise=torch.zeros(2, 4, 8, 4)), r"noise has shape \(2, 4, 8, 4\). Needed: a tensor \(2, 4, 8, 8\)"),
    "noise batch": (dict(noise=torch.zeros(1, 4, 8, 8)), r"noise has shape \(1, 4, 8, 8\). Needed: a tensor \(2, 4, 8, 8\)"),
    "noise array": (dict(noise=NOISE.numpy()), r"noise is a ndarray. Needed: a tensor"),
    "seed float": (dict(seed=1.5), r"seed=1\.5.*one int for all"),
    "seed text": (dict(seed="1"), r"seed='1'.*one int for all"),
    "seeds": (dict(seed=[1, 2, 3]), r"seed holds 3 values for 2 items"),
    "seeds tuple": (dict(seed=(1, 2, 3)), r"seed=\(1, 2, 3\) for 2 items"),
    "seed floats": (dict(seed=[1.5, 2]), r"seed=\[1\.5, 2\].*one int for all"),
    "option": (dict(step=3), r"no option 'step'. Allowed: steps, guidance, guidance_mode, temperature, seed"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_decode_refuses(tok, case):
    options, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        tok.decode(tokens_of(tok, k=3), **options)


def test_latents_as_signal_have_no_range_but_a_size(tok):
    tok.encode(signals(1) * 9)
    with pytest.raises(ValueError, match=r"small\.encode: x has 3 channels.*Needed: 4, as \(b, 4, h, w\)"):
        tok.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"small\.encode: x has sides \(8, 9\).*up to 8"):
        tok.encode(signals(1, 8, 9))
    with pytest.raises(ValueError, match=r"small\.encode: sample=True"):
        tok.encode(signals(1), sample=True)


# -- configuration -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"registers": 0}, "registers=0. Allowed: at least 1"),
        ({"steps": 0}, "steps=0. Allowed: at least 1"),
        ({"encoder_head": 0}, "encoder_head=0. Allowed: at least 1"),
        ({"encoder_width": 40}, "encoder_width=40. Allowed: a multiple of encoder_head"),
        ({"decoder_width": 42}, "decoder_width=42. Allowed"),
        ({"decoder_width": 50, "decoder_head": 10}, "decoder_width=50. Allowed: .*multiples of 4"),
        ({"time_features": 15}, "time_features=15. Allowed: an even number"),
        ({"null_dropout": 1.0}, "null_dropout=1.0. Allowed: 0 to below 1"),
        ({"vae_scaling": 0.0}, "vae_scaling=0.0. Allowed: a positive number"),
        ({"vae_channels": []}, r"vae_channels=\(\). Allowed"),
        ({"levels": []}, r"levels=\(\). Allowed"),
        ({"levels": [8, 2]}, r"FSQ: levels=\(8, 2\)"),
        ({"alignment_block": -1}, "alignment_block=-1. Allowed"),
        ({"keep_sampling": "none"}, "keep_sampling='none'. Allowed: uniform, pow2, uniform_pow2, all"),
        ({"noise_schedule": "cosine"}, "noise_schedule='cosine'. Allowed: mode, logit_normal, stratified"),
        ({"registers": "12"}, "registers='12'. Needed: int"),
    ],
)
def test_configurations_that_are_refused(values, words):
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        small(**values)


def test_a_configuration_goes_to_json_and_back():
    config = FlexTokConfig(registers=7, levels=(8, 5))
    assert FlexTokConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# -- the public release ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def public():
    return json.loads((PUBLIC / "config.json").read_text())


def translated(config):
    return FlexTok.from_public(config, {})


def at(config, path):
    *parents, last = path.split(".")
    for part in parents:
        config = config[part]
    return config, last


@pytest.mark.parametrize(
    "path",
    [
        "_target_",
        "vae._target_",
        "regularizer._target_",
        "flow_matching_noise_module._target_",
        "pipeline._target_",
        "encoder._target_",
        "decoder._target_",
        "encoder.module_dict.enc_patch_emb._target_",
        "encoder.module_dict.enc_channels_to_last.per_sample_op._target_",
        "decoder.module_dict.dec_transformer._target_",
        "decoder.module_dict.dec_channels_to_first.per_sample_op._target_",
    ],
)
@pytest.mark.parametrize("target", ["os.system", "flextok.model.trunks.transformers.OtherTransformer", ["os.system"], 3])
def test_class_paths_are_looked_up_and_never_imported(public, path, target):
    node, key = at(public, path)
    assert key in node, "the fixture names a class here"
    node[key] = target
    with pytest.raises(ValueError, match=r"flextok: .*(os\.system|OtherTransformer|3)"):
        translated(public)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("encoder.module_dict.enc_register_module.ordering_mode", "random", r"ordering_mode='random'.*nested"),
        ("encoder.module_dict.enc_seq_packer.mask_mode", "full", r"enc_seq_packer\.mask_mode='full'.*causal_last"),
        ("decoder.module_dict.dec_seq_packer.mask_mode", "causal_last", r"dec_seq_packer\.mask_mode='causal_last'.*full"),
        ("encoder.module_dict.enc_posemb_module.posemb_type", "learnable_sum", r"posemb_type='learnable_sum'.*sincos"),
        ("encoder.module_dict.enc_patch_emb.flatten_patches", True, r"flatten_patches=True"),
        ("encoder.module_dict.enc_patch_emb.patch_sizes", [2, 4], r"patch_sizes=\[2, 4\].*square"),
        ("encoder.module_dict.enc_patch_emb.patch_sizes", 2, r"patch_sizes=2.*square"),
        ("encoder.module_dict.enc_patch_emb.patch_sizes", [4, 4], r"different patch_sizes"),
        ("encoder.module_dict.enc_posemb_module.max_sizes", [4, 8], r"max_sizes=\[4, 8\].*square"),
        ("encoder.module_dict.enc_transformer.mlp_ratio", 2, r"mlp_ratio=2.*knows"),
        ("encoder.module_dict.enc_transformer.depth", "2", r"encoder_depth='2'. Needed: int"),
        ("encoder.module_dict.enc_to_latents.use_mup_readout", True, r"use_mup_readout=True"),
        ("decoder.module_dict.dec_transformer.adaLN_expansion", 1, r"adaLN_expansion=1"),
        ("decoder.module_dict.dec_transformer.intermediate_layers", 1, r"intermediate_layers a list"),
        ("decoder.module_dict.dec_nested_dropout.size_sampling_mode", "odd", r"keep_sampling='odd'. Allowed"),
        ("vae.autoencoder_kl_overrides", [8], r"autoencoder_kl_overrides must be an object"),
        ("regularizer.levels", [8, "8"], r"levels=\[8, '8'\]. Needed"),
        ("regularizer", "fsq", r"regularizer in config\.json is a str"),
        ("encoder", [], r"no encoder\.module_dict"),
        ("decoder.module_dict", None, r"no decoder\.module_dict"),
        ("encoder.module_dict.enc_unpacker", 3, r"encoder\.enc_unpacker is of class None"),
    ],
)
def test_values_that_are_not_covered_are_refused(public, path, value, words):
    node, key = at(public, path)
    node[key] = value
    with pytest.raises(ValueError, match=words):
        translated(public)


@pytest.mark.parametrize(
    "path",
    [
        "encoder.module_dict.enc_transformer.dim",
        "encoder.module_dict.enc_transformer.depth",
        "encoder.module_dict.enc_patch_emb.channels_in",
        "encoder.module_dict.enc_patch_emb.patch_sizes",
        "encoder.module_dict.enc_posemb_module.max_sizes",
        "encoder.module_dict.enc_register_module.n_max",
        "decoder.module_dict.dec_transformer.dim",
        "decoder.module_dict.dec_noise_patch_emb.patch_sizes",
    ],
)
def test_values_that_are_missing_are_named(public, path):
    node, key = at(public, path)
    del node[key]
    with pytest.raises(ValueError, match=rf"flextok: {path.replace('module_dict.', '')} is missing"):
        translated(public)


def test_the_order_of_modules_is_their_order_of_execution(public):
    for part in ("encoder", "decoder"):
        config = copy.deepcopy(public)
        modules = config[part]["module_dict"]
        config[part]["module_dict"] = dict(reversed(modules.items()))
        with pytest.raises(ValueError, match=rf"flextok: {part} has the modules .*in this order"):
            translated(config)
        left_out = dict(list(modules.items())[1:])
        config[part]["module_dict"] = left_out
        with pytest.raises(ValueError, match=rf"flextok: {part} has the modules .*in this order"):
            translated(config)


def test_the_tap_of_the_alignment_loss_may_be_absent(public):
    wanted = translated(public)
    del public["decoder"]["module_dict"]["dec_repa_unpacker"]
    assert translated(public) == wanted


def test_unknown_keys_are_reported(public, caplog):
    public["colour"] = 1
    public["regularizer"]["shade"] = 2
    public["encoder"]["module_dict"]["enc_patch_emb"]["tone"] = 3
    with caplog.at_level(logging.WARNING, logger="zoo"):
        config = translated(public)
    (record,) = caplog.records
    assert record.getMessage().endswith("not used: colour, regularizer.shade, encoder.enc_patch_emb.tone")
    assert config.decoder_depth == 3


def test_a_known_file_gives_no_warning(public, caplog):
    with caplog.at_level(logging.WARNING, logger="zoo"):
        translated(public)
    assert not caplog.records


@pytest.mark.parametrize(
    "key",
    [
        "encoder.module_dict.enc_transformer.blocks.0.attn.wq.weight",
        "encoder.module_dict.enc_transformer.blocks.1.attn.wv.weight",
        "decoder.module_dict.dec_transformer.blocks.2.mlp.fc3.weight",
        "decoder.module_dict.dec_registers_posemb_module.posembs",
        "encoder.module_dict.enc_register_module.registers",
    ],
)
@pytest.mark.parametrize("change", ["missing", "flat", "narrow"])
def test_weights_that_do_not_fit_give_one_error(public, tmp_path, key, change):
    from safetensors.torch import save_file

    tensors = load_file(PUBLIC / "weights.safetensors")
    value = tensors.pop(key)
    if change != "missing":
        tensors[key] = value.flatten()[:7].clone() if change == "flat" else value[..., :-1].contiguous()
    (tmp_path / "config.json").write_text(json.dumps(public))
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"the weights do not fit the model, which was left as it was") as caught:
        zoo.load(tmp_path, family="flextok")
    assert "missing" in str(caught.value) or "of another shape" in str(caught.value)
