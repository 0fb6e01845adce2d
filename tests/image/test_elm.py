"""The binary autoencoder of ELM against tensors of the public implementation (see tests/parity/elm/bae_20bits/README.md)."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.image.elm import BAE, BAEConfig, BinaryQuantizer
from zoo.tokens import Tokens


def close(a, b, tolerance=1e-4):
    a, b = a.detach(), b.detach()
    scale = max(1.0, float(b.abs().max()))
    assert float((a - b).abs().max()) <= tolerance * scale, f"largest difference {float((a - b).abs().max())} at scale {scale}"


@pytest.fixture(scope="module")
def case(parity):
    return parity("elm", "bae_20bits")


@pytest.fixture(scope="module")
def tok(case):
    return zoo.load(case.folder, family="elm")


@pytest.fixture(scope="module")
def x(case):
    """The picture in our range; the release takes [0, 1]."""
    return case.io["image"] * 2 - 1


def test_steps(case, tok, x):
    io = case.io
    latents = tok.encode_latents(x)
    close(latents, io["encoder_out"])
    close(tok.quantizer.probabilities(latents.movedim(1, -1)).movedim(-1, 1), io["probabilities"])
    quantized = tok.quantizer(latents.movedim(1, -1))
    close(quantized.x.movedim(-1, 1), io["quantized"])
    bits = tok.quantizer.order.codes_to_bits(quantized.codes)
    assert torch.equal(bits.movedim(-1, 1), io["binary"].long())
    close(tok.decode_latents(io["quantized"]), io["reconstruction"] * 2 - 1)


def test_codes_and_pictures_by_the_front_door(case, tok, x):
    tokens = tok.encode(x)
    assert tokens.data.shape == (2, 8, 8, 2)
    assert torch.equal(tokens.data.flatten(1, 2), case.io["sub_code_indices"])
    close(tok.quantizer.decode(tokens.data).movedim(-1, 1), case.io["quantized"])
    close(tok.decode(tokens), case.io["reconstruction"] * 2 - 1)


def test_loss_and_straight_through_gradient(case, tok):
    io = case.io
    quantizer = BinaryQuantizer(dim=32, bits=20, splits=(10, 10), confidence_weight=3.0)
    quantizer.load_state_dict(tok.quantizer.state_dict())
    features = io["encoder_out"].clone().requires_grad_(True)
    result = quantizer(features.movedim(1, -1))
    close(result.stats["confidence"], io["codebook_loss"])
    close(result.loss, 3 * io["codebook_loss"][0])
    (gradient,) = torch.autograd.grad((result.x.movedim(-1, 1) * io["st_weight"]).sum(), features)
    close(gradient, io["st_grad_encoder_out"])


def test_no_loss_by_default(case, tok):
    assert tok.quantizer(case.io["encoder_out"].movedim(1, -1)).loss == 0


# -- drawn bits --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawing(case, tok):
    """The same weights as of a model that was trained with drawn bits."""
    own = BAE(replace(tok.config, deterministic=False)).eval().requires_grad_(False)
    own.load_state_dict(tok.state_dict())
    return own


def test_drawn_bits_follow_their_probabilities(case, tok):
    features = case.io["encoder_out"].movedim(1, -1)
    generator = torch.Generator().manual_seed(0)
    draws = 200
    mean = torch.zeros(2, 8, 8, 20)
    for _ in range(draws):
        mean += tok.quantizer.order.codes_to_bits(tok.quantizer(features, generator=generator).codes) / draws
    expected = case.io["probabilities"].movedim(1, -1)
    distance = (mean - expected) / (expected * (1 - expected) / draws).sqrt()
    assert float(distance.abs().max()) < 6
    assert float(distance.square().mean()) == pytest.approx(1, abs=0.1)


def test_sampling_by_the_front_door(drawing, tok, x):
    mode, first, again, other = (drawing.encode(x, **how) for how in ({}, *({"sample": True, "seed": s} for s in (1, 1, 2))))
    assert torch.equal(mode.data, tok.encode(x).data)
    assert torch.equal(first.data, again.data)
    assert not torch.equal(first.data, mode.data)
    assert not torch.equal(first.data, other.data)
    assert torch.equal(drawing.encode(x[1:], sample=True, seed=1).data, first.data[1:])


def test_deterministic_weights_have_nothing_to_sample(tok, x):
    assert not tok.info.stochastic_encode
    with pytest.raises(ValueError, match="nothing to sample"):
        tok.encode(x, sample=True)


# -- sub-codes ---------------------------------------------------------------------------------------------------------------------


def test_sub_codes_are_exact_both_ways(tok):
    whole = torch.randint(2**20, (50, 1), generator=torch.Generator().manual_seed(0))
    pairs = torch.cat([whole >> 10, whole & 1023], 1)
    assert torch.equal(tok.join_codes(whole, (20,)), pairs)
    assert torch.equal(tok.split_codes(pairs, (20,)), whole)
    fours = tok.split_codes(pairs, (5, 5, 5, 5))
    assert torch.equal(fours, torch.cat([whole >> shift & 31 for shift in (15, 10, 5, 0)], 1))
    assert torch.equal(tok.join_codes(fours, (5, 5, 5, 5)), pairs)
    with pytest.raises(ValueError, match="add up to bits=20"):
        tok.split_codes(pairs, (10, 11))
    with pytest.raises(ValueError, match="codes"):
        tok.split_codes(pairs + 1024, (20,))


def test_a_tokenizer_with_one_code_for_each_position(case, tok, x):
    one = BAE(replace(tok.config, splits=None)).eval().requires_grad_(False)
    one.load_state_dict(tok.state_dict())
    assert (one.info.depth, one.info.vocabulary) == (1, (2**20,))
    tokens = one.encode(x)
    pair = case.io["sub_code_indices"]
    assert torch.equal(tokens.data.flatten(1), pair[..., 0] * 1024 + pair[..., 1])
    close(one.decode(tokens), case.io["reconstruction"] * 2 - 1)


# -- the release's files -----------------------------------------------------------------------------------------------------------


def test_configuration_of_the_release(case):
    wanted = BAEConfig(
        bits=20,
        splits=(10, 10),
        latent_channels=32,
        width=32,
        multipliers=(1, 1),
        blocks=1,
        decoder_blocks=1,
        attention_sides=(8,),
        deterministic=True,
        image_size=16,
    )
    assert BAE.from_public(case.config, {}) == wanted
    assert wanted.attention_levels == (1,)
    assert BAE.from_public({"hparams": case.config["hparams"]}, {}) == replace(wanted, splits=None)
    wide = {"hparams": {**case.config["hparams"], "gen_mul": 2.5, "norm_first": False}}
    assert BAE.from_public(wide, {}) == replace(wanted, splits=None, decoder_blocks=2, input_norm=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_tanh": True}, "use_tanh=True.*knows: False"),
        ({"quantizer": "nearest"}, "quantizer='nearest'.*knows: 'binary'"),
        ({"n_channels": 1}, "n_channels=1"),
        ({"codebook_size": 24}, "splits=.*add up to bits=24"),
        ({"emb_dim": 33}, "latent_channels=33. Allowed: a multiple of norm_groups"),
    ],
)
def test_other_configurations_are_refused(case, change, message):
    with pytest.raises(ValueError, match=message):
        BAE.from_public({**case.config, "hparams": {**case.config["hparams"], **change}}, {})


def test_a_foreign_configuration_is_refused():
    with pytest.raises(ValueError, match="no 'hparams'"):
        BAE.from_public({"model": {}}, {})
    with pytest.raises(ValueError, match="'hparams' has no nf, res_blocks"):
        BAE.from_public({"hparams": {"emb_dim": 3}}, {})


def test_parts_that_are_never_used_are_left_out(case, tok):
    public = load_file(case.weights)
    renamed = BAE.rename_public(public, tok.config)
    unused = [key for key in public if ".logsigma." in key or ".conv_out." in key]
    assert len(renamed) == len(public) - len(unused)
    more = {"disc.main.0.weight": torch.ones(2), "perceptual.lin0.weight": torch.ones(2)}
    assert BAE.rename_public({**public, **more}, tok.config).keys() == renamed.keys()
    bare = {key.removeprefix("ae."): value for key, value in public.items()}
    assert BAE.rename_public(bare, tok.config).keys() == renamed.keys()


def test_a_block_that_changes_its_width_keeps_its_shortcut():
    """The flat lists of a wider model, built name by name from the facts about the release, fill ours completely."""
    config = BAEConfig(width=32, multipliers=(1, 2), blocks=2, decoder_blocks=2, latent_channels=32, attention_sides=(128,))
    tok = BAE(config)

    def res(a, b):
        return {
            **{"norm1.weight": (a,), "norm1.bias": (a,), "norm2.weight": (b,), "norm2.bias": (b,), "conv1.bias": (b,)},
            **{"conv1.weight": (b, a, 3, 3), "conv2.weight": (b, b, 3, 3), "conv2.bias": (b,)},
            **{"conv_out.weight": (b, a, 1, 1), "conv_out.bias": (b,)},
        }

    def conv(a, b, name=""):
        return {f"{name}weight": (b, a, 3, 3), f"{name}bias": (b,)}

    def attention(c):
        parts = {f"{p}.weight": (c, c, 1, 1) for p in ("q", "k", "v", "proj_out")}
        return {**parts, **{f"{p}.bias": (c,) for p in ("q", "k", "v", "proj_out", "norm")}, "norm.weight": (c,)}

    norm = {"weight": (64,), "bias": (64,)}
    middle = [res(64, 64), attention(64), res(64, 64)]
    encoder = [conv(3, 32), res(32, 32), res(32, 32), conv(32, 32, "conv."), res(32, 64), attention(64), res(64, 64)]
    encoder += [attention(64), *middle, norm, conv(64, 32)]
    generator = [{"weight": (32,), "bias": (32,)}, conv(32, 64), *middle, res(64, 64), attention(64), res(64, 64), attention(64)]
    generator += [conv(64, 64, "conv."), res(64, 32), res(32, 32), {"weight": (32,), "bias": (32,)}, conv(32, 3)]
    public = {"ae.quantize.proj.0.weight": (20, 32, 1, 1), "ae.quantize.proj.0.bias": (20,), "ae.quantize.embed.weight": (20, 32)}
    for network, blocks in (("encoder", encoder), ("generator", generator)):
        for i, block in enumerate(blocks):
            public |= {f"ae.{network}.blocks.{i}.{part}": shape for part, shape in block.items()}
    renamed = BAE.rename_public({key: torch.zeros(shape) for key, shape in public.items()}, config)
    assert {key: value.shape for key, value in renamed.items()} == {k: v.shape for k, v in tok.state_dict().items()}
    assert "encoder.down.1.block.0.nin_shortcut.weight" in renamed
    assert "decoder.up.0.block.0.nin_shortcut.weight" in renamed


def test_a_strange_tensor_is_reported(case, tmp_path):
    tensors = load_file(case.weights)
    tensors["ae.encoder.blocks.10.weight"] = torch.ones(1)
    save_file(tensors, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    with pytest.raises(ValueError, match=r"1 unexpected: encoder\.blocks\.10\.weight"):
        zoo.load(tmp_path, family="elm")


def test_the_public_pickle_is_read(case, tmp_path):
    """The release is a `.th` file, a pickled dictionary of tensors."""
    from zoo.checkpoint import read_tensors

    torch.save(load_file(case.weights), tmp_path / "binaryae_ema.th")
    with pytest.raises(ValueError, match=r"is a pickle \(\.th\)"):
        read_tensors(tmp_path / "binaryae_ema.th")
    assert read_tensors(tmp_path / "binaryae_ema.th", allow_pickle=True).keys() == load_file(case.weights).keys()


# -- sizes, types, training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    config = BAEConfig(
        bits=7,
        splits=(3, 4),
        latent_channels=16,
        width=16,
        multipliers=(1, 2),
        blocks=1,
        decoder_blocks=1,
        attention_sides=(8,),
        norm_groups=8,
        image_size=16,
    )
    return BAE(config).eval().requires_grad_(False)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (5, 9), (16, 3)])
def test_any_size_comes_back(small, h, w):
    x = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = small.encode(x)
    y = small.decode(tokens)
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    close(small.decode(tokens[1:]), y[1:], 1e-5)


def test_bfloat16_weights(case):
    tok = zoo.load(case.folder, family="elm", dtype=torch.bfloat16)
    codes = case.io["sub_code_indices"].view(2, 8, 8, 2)
    bits = tok.quantizer.order.codes_to_bits(tok.encode(case.io["image"] * 2 - 1).data)
    assert (bits == tok.quantizer.order.codes_to_bits(codes)).float().mean() > 0.95
    y = tok.decode(Tokens(codes, tok.spec, torch.full((2, 2), 16)))
    assert y.dtype == torch.bfloat16
    assert float((y.float() - (case.io["reconstruction"] * 2 - 1)).abs().mean()) < 0.1


def test_training_step_reaches_every_parameter(small):
    tok = BAE(replace(small.config, confidence_weight=0.1)).train()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    quantized = tok.quantizer(tok.encode_latents(x).movedim(1, -1), generator=torch.Generator().manual_seed(0))
    ((tok.decode_latents(quantized.x.movedim(-1, 1)) - x).abs().mean() + quantized.loss).backward()
    for name, parameter in tok.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 0}, r"bits=0. Allowed: 1\.\.62"),
        ({"splits": (10, 9)}, "splits=.*add up to bits=20"),
        ({"splits": ()}, "splits="),
        ({"width": 100}, "width=100"),
        ({"latent_channels": 33}, "latent_channels=33"),
        ({"multipliers": ()}, "multipliers=.*at least one"),
        ({"decoder_blocks": 0}, "decoder_blocks=0"),
        ({"confidence_weight": -1.0}, "confidence_weight=-1.0"),
    ],
)
def test_sizes_that_are_not_allowed(change, message):
    with pytest.raises(ValueError, match=message):
        BAEConfig(**change)
