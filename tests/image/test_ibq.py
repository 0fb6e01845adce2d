"""IBQ against tensors of the public implementation (see the READMEs in tests/parity/ibq)."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.checkpoint import load_strict
from zoo.image.ibq import IBQ, IBQConfig
from zoo.tokens import Tokens

CASES = ("image", "image_ema")


def close(a, b, tolerance=1e-4):
    a, b = a.detach(), b.detach()
    scale = max(1.0, float(b.abs().max()))
    assert float((a - b).abs().max()) <= tolerance * scale, f"largest difference {float((a - b).abs().max())} at scale {scale}"


def check(tok, io, prefix=""):
    """Inner steps, codes by the front door, picture."""
    latents = tok.encode_latents(io["image"])
    close(latents, io[prefix + "z"])
    tokens = tok.encode(io["image"])
    assert tokens.data.shape == (2, 8, 8, 1)
    assert torch.equal(tokens.data.flatten(), io[prefix + "indices_flat"])
    close(tok.quantizer.decode(tokens.data).movedim(-1, 1), io[prefix + "quantized"])
    close(tok.decode_latents(io[prefix + "quantized"]), io[prefix + "reconstruction"])
    close(tok.decode(tokens), io[prefix + "reconstruction"])


def raw(case):
    """The tokenizer with the weights themselves, not their average."""
    tok = IBQ(IBQ.from_public(case.config, {})).eval().requires_grad_(False)
    weights = {key: value for key, value in load_file(case.weights).items() if not key.startswith("model_ema.")}
    load_strict(tok, IBQ.rename_public(weights, tok.config), name="raw")
    return tok


def test_averaged_weights_are_the_ones_that_are_read(parity):
    case = parity("ibq", "image_ema")
    check(zoo.load(case.folder, family="ibq"), case.io, "ema.")


def test_weights_without_average(parity):
    case = parity("ibq", "image")
    check(zoo.load(case.folder, family="ibq"), case.io)


def test_raw_weights_of_a_checkpoint_with_average(parity):
    case = parity("ibq", "image_ema")
    check(raw(case), case.io)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients(parity, name):
    case = parity("ibq", name)
    io, quantizer = case.io, raw(case).quantizer.requires_grad_(True)
    assert (quantizer.commitment_weight, quantizer.temperature) == (0.25, 0.01)
    z = io["z"].clone().requires_grad_(True)
    quantizer.entropy_weight = 1.0
    result = quantizer(z.movedim(1, -1))
    quantizer.entropy_weight = 0.0
    plain = quantizer(z.movedim(1, -1)).loss
    close(result.x.movedim(-1, 1), io["quantized"])
    close(plain, io["quant_loss"][0])
    close(result.loss - plain, io["entropy_loss"][0])
    close(result.stats["sample_entropy"], io["sample_entropy"])
    close(result.stats["batch_entropy"], io["avg_entropy"])
    straight = (result.x.movedim(-1, 1) * io["st_weight"]).sum()
    for value, part in ((straight, "st"), (plain, "quant_loss"), (result.loss - plain, "entropy_loss")):
        of_z, of_codebook = torch.autograd.grad(value, (z, quantizer.codebook), retain_graph=True)
        close(of_z, io[f"{part}_grad_z"])
        close(of_codebook, io[f"{part}_grad_embedding"])


def test_configuration_of_the_release(parity):
    config = parity("ibq", "image").config
    wanted = IBQConfig(
        codebook_size=64,
        latent_channels=16,
        z_channels=24,
        width=32,
        multipliers=(1, 1),
        blocks=1,
        attention_sides=(8,),
        image_size=16,
    )
    assert IBQ.from_public(config, {}) == wanted
    assert wanted.attention_levels == (1,)
    under_model = {"model": {key: config[key] for key in ("class_path", "init_args")}}
    assert IBQ.from_public(under_model, {}) == wanted
    without = {**config, "init_args": {**config["init_args"], "use_entropy_loss": False, "beta": 0.5}}
    assert IBQ.from_public(without, {}) == replace(wanted, entropy_weight=0.0, commitment_weight=0.5)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("", {"class_path": "src.Open_MAGVIT2.models.lfqgan.VQModel"}, "class 'VQModel'"),
        ("", {"init_args": []}, "no 'init_args' with a 'ddconfig'"),
        ("init_args", {"ddconfig": {"z_channels": 10}}, "no ch, ch_mult, num_res_blocks, resolution"),
        ("init_args", {"l2_normalize": True}, "l2_normalize=True.*knows: False"),
        ("init_args", {"n_embed": 0}, "codebook_size=0"),
        ("ddconfig", {"double_z": True}, "double_z=True"),
        ("ddconfig", {"in_channels": 1}, "in_channels=1"),
    ],
)
def test_other_configurations_are_refused(parity, place, change, message):
    config = json.loads(json.dumps(parity("ibq", "image").config))
    {"": config, "init_args": config["init_args"], "ddconfig": config["init_args"]["ddconfig"]}[place].update(change)
    with pytest.raises(ValueError, match=message):
        IBQ.from_public(config, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 0}, "codebook_size=0"),
        ({"width": 100}, "width=100. Allowed: a multiple of norm_groups"),
        ({"multipliers": ()}, "multipliers=.*at least one"),
        ({"multipliers": (1, 0)}, "multipliers="),
        ({"blocks": 0}, "blocks=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"entropy_weight": -1.0}, "entropy_weight=-1.0"),
    ],
)
def test_sizes_that_are_not_allowed(change, message):
    with pytest.raises(ValueError, match=message):
        IBQConfig(**change)


def test_a_codebook_without_average_is_refused(parity, tmp_path):
    case = parity("ibq", "image_ema")
    tensors = load_file(case.weights)
    del tensors["model_ema.quantizeembeddingweight"]
    save_file(tensors, tmp_path / "weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(case.config))
    with pytest.raises(ValueError, match=r"1 weights have none \(quantize\.embedding\.weight\)"):
        zoo.load(tmp_path, family="ibq")


@pytest.fixture(scope="module")
def small():
    config = IBQConfig(
        codebook_size=50,
        latent_channels=6,
        z_channels=8,
        width=16,
        multipliers=(1, 2),
        blocks=1,
        attention_sides=(8,),
        norm_groups=8,
        image_size=16,
    )
    return IBQ(config).eval().requires_grad_(False)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (5, 9), (16, 3)])
def test_any_size_comes_back(small, h, w):
    x = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = small.encode(x)
    y = small.decode(tokens)
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    close(small.decode(tokens[1:]), y[1:], 1e-5)


def test_bfloat16_weights(parity):
    """The search runs in float32; the picture is near the float32 one."""
    case = parity("ibq", "image")
    tok = zoo.load(case.folder, family="ibq", dtype=torch.bfloat16)
    assert (tok.encode(case.io["image"]).data.flatten() == case.io["indices_flat"]).float().mean() > 0.8
    y = tok.decode(Tokens(case.io["indices_flat"].view(2, 8, 8, 1), tok.spec, torch.full((2, 2), 16)))
    assert y.dtype == torch.bfloat16
    assert float((y.float() - case.io["reconstruction"]).abs().mean()) < 0.05


def test_training_step_reaches_every_parameter(small):
    tok = IBQ(small.config).train()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    quantized = tok.quantizer(tok.encode_latents(x).movedim(1, -1))
    ((tok.decode_latents(quantized.x.movedim(-1, 1)) - x).abs().mean() + quantized.loss).backward()
    for name, parameter in tok.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert (tok.quantizer.codebook.grad.abs().sum(1) > 0).all(), "every code learns, chosen or not"
