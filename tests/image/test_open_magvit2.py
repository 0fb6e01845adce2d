"""Open-MAGVIT2 against tensors of the public implementation (see the READMEs in tests/parity/open_magvit2)."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.checkpoint import load_strict
from zoo.image.open_magvit2 import OpenMAGVIT2, OpenMAGVIT2Config
from zoo.tokens import Tokens

CASES = ("image_ema", "image_shortcut")


def close(a, b, tolerance=1e-4):
    scale = max(1.0, float(b.abs().max()))
    assert float((a - b).abs().max()) <= tolerance * scale, f"largest difference {float((a - b).abs().max())} at scale {scale}"


def check(tok, io, prefix=""):
    """Every tensor of a case: inner steps, codes by the front door, picture."""
    features = tok.encoder(io["image"])
    close(features, io[prefix + "pre_quant"])
    quantized = tok.quantizer(features.movedim(1, -1))
    assert torch.equal(quantized.x.movedim(-1, 1), io[prefix + "quantized"])
    assert torch.equal(quantized.codes.flatten(), io[prefix + "indices_flat"])
    tokens = tok.encode(io["image"])
    assert tokens.data.shape == (2, 8, 8, 1)
    assert torch.equal(tokens.data.flatten(), io[prefix + "indices_flat"])
    close(tok.decoder(io[prefix + "quantized"]), io[prefix + "reconstruction"])
    close(tok.decode(tokens), io[prefix + "reconstruction"])


@pytest.fixture(scope="module")
def ema(parity):
    return zoo.load(parity("open_magvit2", "image_ema").folder, family="open_magvit2")


def test_averaged_weights_are_the_ones_that_are_read(parity, ema):
    check(ema, parity("open_magvit2", "image_ema").io, "ema.")


def test_weights_without_average(parity):
    case = parity("open_magvit2", "image_shortcut")
    check(zoo.load(case.folder, family="open_magvit2"), case.io)


def test_raw_weights_of_a_checkpoint_with_average(parity):
    case = parity("open_magvit2", "image_ema")
    tok = OpenMAGVIT2(OpenMAGVIT2.from_public(case.config, {})).eval().requires_grad_(False)
    raw = {key: value for key, value in load_file(case.weights).items() if not key.startswith("model_ema.")}
    load_strict(tok, OpenMAGVIT2.rename_public(raw, tok.config), name="raw")
    check(tok, case.io)


def test_configuration_of_the_release(parity, ema):
    wanted = OpenMAGVIT2Config(bits=10, width=32, multipliers=(1, 1), blocks=1, image_size=16)
    assert ema.config == wanted
    config = parity("open_magvit2", "image_ema").config
    under_model = {"model": {key: config[key] for key in ("class_path", "init_args")}}
    assert OpenMAGVIT2.from_public(under_model, {}) == wanted
    split = {**config, "init_args": {**config["init_args"], "token_factorization": True, "factorized_bits": [4, 6]}}
    assert OpenMAGVIT2.from_public(split, {}) == replace(wanted, splits=(4, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_path": "src.IBQ.models.ibqgan.IBQ"}, "class 'IBQ'"),
        ({"init_args": {}}, "no 'init_args' with a 'ddconfig'"),
        ({"init_args": {"ddconfig": {"z_channels": 10}}}, "'ddconfig' has no ch, ch_mult, num_res_blocks"),
        ({"n_embed": 512}, "n_embed=512.*knows: 1024"),
        ({"embed_dim": 9}, "embed_dim=9.*knows: 10"),
        ({"double_z": True}, "double_z=True"),
        ({"token_factorization": True}, "without factorized_bits"),
        ({"token_factorization": True, "factorized_bits": [4, 7]}, "splits=.*add up to bits=10"),
    ],
)
def test_other_configurations_are_refused(parity, change, message):
    config = json.loads(json.dumps(parity("open_magvit2", "image_ema").config))
    for key, value in change.items():
        place = config["init_args"]["ddconfig"] if key == "double_z" else config["init_args"]
        (config if key in config else place)[key] = value
    with pytest.raises(ValueError, match=message):
        OpenMAGVIT2.from_public(config, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 23}, r"bits=23. Allowed: 1\.\.22"),
        ({"bits": 0}, "bits=0"),
        ({"splits": (6, 6)}, "splits=.*add up to bits=18"),
        ({"splits": ()}, "splits="),
        ({"width": 100}, "width=100. Allowed: a multiple of norm_groups"),
        ({"multipliers": ()}, "multipliers=.*at least one"),
        ({"multipliers": (1, 0)}, "multipliers="),
        ({"blocks": 0}, "blocks=0"),
        ({"entropy_weight": -1.0}, "entropy_weight=-1.0"),
    ],
)
def test_sizes_that_are_not_allowed(change, message):
    with pytest.raises(ValueError, match=message):
        OpenMAGVIT2Config(**change)


# -- averages under renamed keys ---------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(parity, tmp_path):
    """Give `broken(change)`: load the fixture after `change` edited its tensors."""
    case = parity("open_magvit2", "image_ema")

    def load(change):
        tensors = load_file(case.weights)
        change(tensors)
        save_file(tensors, tmp_path / "weights.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(case.config))
        return zoo.load(tmp_path, family="open_magvit2")

    return load


def test_an_average_of_a_part_of_the_weights_is_refused(broken):
    with pytest.raises(ValueError, match=r"1 weights have none \(encoder\.conv_out\.bias\), 0 belong"):
        broken(lambda tensors: tensors.pop("model_ema.encoderconv_outbias"))


def test_an_average_of_nothing_is_refused(broken):
    with pytest.raises(ValueError, match=r"0 weights have none \(-\), 1 belong to no weight \(encoderextra\)"):
        broken(lambda tensors: tensors.update({"model_ema.encoderextra": torch.zeros(1)}))


def test_a_missing_weight_is_refused_without_half_loading(broken):
    def drop(tensors):
        del tensors["decoder.conv_out.bias"], tensors["model_ema.decoderconv_outbias"]

    with pytest.raises(ValueError, match=r"1 missing: decoder\.conv_out\.bias"):
        broken(drop)


def test_the_discriminator_is_left_out(broken, ema):
    tok = broken(
        lambda tensors: tensors.update(
            {"loss.discriminator.weight": torch.ones(2), "model_ema.lossdiscriminatorweight": torch.ones(2)}
        )
    )
    for key, value in ema.state_dict().items():
        assert torch.equal(tok.state_dict()[key], value)


# -- sub-codes ---------------------------------------------------------------------------------------------------------------------


def test_sub_codes_are_exact_both_ways(ema):
    codes = torch.arange(1024)[:, None]
    parts = ema.split_codes(codes, (4, 6))
    assert torch.equal(parts, torch.cat([codes % 16, codes // 16], 1))
    assert torch.equal(ema.join_codes(parts, (4, 6)), codes)
    bits = ema.split_codes(codes, (1,) * 10)
    assert torch.equal((bits * 2 ** torch.arange(10)).sum(1, keepdim=True), codes)
    with pytest.raises(ValueError, match="add up to bits=10"):
        ema.split_codes(codes, (4, 7))
    with pytest.raises(ValueError, match="codes"):
        ema.split_codes(codes + 1, (4, 6))
    with pytest.raises(ValueError, match="codes"):
        ema.join_codes(parts + 1, (4, 6))


def test_a_tokenizer_with_sub_codes_on_the_depth_axis(parity, ema):
    io = parity("open_magvit2", "image_ema").io
    split, plain = (OpenMAGVIT2(replace(ema.config, splits=parts)).eval().requires_grad_(False) for parts in ((4, 6), None))
    split.load_state_dict(ema.state_dict())
    assert (split.info.depth, split.info.vocabulary, split.info.codebook_size) == (2, (16, 64), 64)
    assert split.info.bits_per_pixel == ema.info.bits_per_pixel
    tokens, whole = split.encode(io["image"]), ema.encode(io["image"])
    assert torch.equal(tokens.data, ema.split_codes(whole.data, (4, 6)))
    assert torch.equal(tokens.bits(), whole.bits())
    close(split.decode(tokens), io["ema.reconstruction"])
    with pytest.raises(ValueError, match="vocabulary"):
        plain.decode(tokens)
    with pytest.raises(ValueError, match="outside"):
        split.decode(replace(tokens, data=torch.full_like(tokens.data, 16)))


# -- the contract's special points here --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    config = OpenMAGVIT2Config(bits=6, width=16, multipliers=(1, 2), blocks=1, norm_groups=8, image_size=16)
    return OpenMAGVIT2(config).eval().requires_grad_(False)


@pytest.mark.parametrize(("h", "w"), [(2, 2), (1, 1), (5, 9), (16, 3)])
def test_any_size_comes_back(small, h, w):
    x = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = small.encode(x)
    y = small.decode(tokens)
    assert y.shape == x.shape
    assert torch.isfinite(y).all(), "the spread of a single position must not be NaN"
    close(small.decode(tokens[1:]), y[1:], 1e-5)


def test_bfloat16_weights(parity, ema):
    """Signs that are far from zero stay; the picture is near the float32 one."""
    io = parity("open_magvit2", "image_ema").io
    tok = zoo.load(parity("open_magvit2", "image_ema").folder, family="open_magvit2", dtype=torch.bfloat16)
    tokens = tok.encode(io["image"])
    assert (tokens.data.flatten() == io["ema.indices_flat"]).float().mean() > 0.5
    y = tok.decode(Tokens(io["ema.indices_flat"].view(2, 8, 8, 1), tok.spec, torch.full((2, 2), 16)))
    assert y.dtype == torch.bfloat16
    assert float((y.float() - io["ema.reconstruction"]).abs().mean()) < 0.05


def test_training_step_reaches_every_parameter():
    tok = zoo.create("open_magvit2", bits=6, width=32, multipliers=(1, 2), blocks=1, norm_groups=8, image_size=16).train()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    quantized = tok.quantizer(tok.encoder(x).movedim(1, -1))
    loss = (tok.decoder(quantized.x.movedim(-1, 1)) - x).abs().mean() + quantized.loss
    loss.backward()
    for name, parameter in tok.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert tok.decoder.last_layer.grad.abs().sum() > 0


def test_export(ema):
    """Both halves can be exported as graphs."""
    x = torch.zeros(1, 3, 16, 16)
    features = torch.export.export(ema.encoder, (x,)).module()(x)
    close(features, ema.encoder(x), 1e-5)
    code = torch.sign(features)
    close(torch.export.export(ema.decoder, (code,)).module()(code), ema.decoder(code), 1e-5)
