"""WavTokenizer in parts: encoder and spectrum decoder against public classes, the blocks between them against their formulas."""

import argparse
import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zoo
from zoo.audio.wavtokenizer import WavTokenizer, WavTokenizerConfig
from zoo.checkpoint import load_strict, read_tensors

FOLDER = Path(__file__).parents[1] / "parity" / "wavtokenizer" / "parts"


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    difference = float((a - b).detach().abs().max())
    assert difference <= tolerance * float(b.abs().max()), f"largest difference {difference}"


def public_names_of_mixing(width=16):
    """The blocks that the fixture has not, with random weights under the public names."""
    draws = torch.Generator().manual_seed(3)
    out = {}
    for i in (0, 1, 3, 4):
        for layer in ("norm1", "norm2", "conv1", "conv2"):
            shape = (width, width, 3) if layer.startswith("conv") else (width,)
            out[f"{i}.{layer}.weight"] = torch.randn(shape, generator=draws) * 0.3
            out[f"{i}.{layer}.bias"] = torch.randn(width, generator=draws) * 0.3
    for layer in ("norm", "q", "k", "v", "proj_out"):
        out[f"2.{layer}.weight"] = torch.randn((width,) if layer == "norm" else (width, width, 1), generator=draws) * 0.5
        out[f"2.{layer}.bias"] = torch.randn(width, generator=draws) * 0.3
    out |= {"5.weight": torch.randn(width, generator=draws), "5.bias": torch.randn(width, generator=draws)}
    return {f"backbone.pos_net.{key}": value for key, value in out.items()}


@pytest.fixture(scope="module")
def io():
    return load_file(FOLDER / "io.safetensors")


@pytest.fixture(scope="module", params=(0, 3))
def tok(request):
    made = WavTokenizerConfig(
        strides=(6, 4), channels=12, codebook_size=64, decoder_width=16, mlp_width=24, blocks=3, norm_groups=4,
        condition=request.param,
    )  # fmt: skip
    tensors = load_file(FOLDER / "weights.safetensors") | public_names_of_mixing()
    tensors["multiperioddisc.0.weight"] = torch.zeros(3)  # training's, which a checkpoint also holds
    tensors["feature_extractor.encodec.decoder.model.0.conv.conv.bias"] = torch.zeros(3)
    tok = WavTokenizer(made).eval().requires_grad_(False)
    load_strict(tok, WavTokenizer.rename_public(tensors, made), name="wavtokenizer")
    return tok


def test_encoder_and_codes_of_the_public_classes(tok, io):
    close(tok.encode_vectors(io["audio"]).transpose(1, 2), io["z"])
    tokens = tok.encode(io["audio"])
    assert torch.equal(tokens.data, io["codes"].permute(1, 2, 0))
    close(tok.quantizer.decode(tokens.data).transpose(1, 2), io["vectors"])


def test_spectrum_decoder_of_the_public_class(tok, io):
    plain = copy.deepcopy(tok.decoder)
    plain.mixing = nn.Identity()
    close(plain(io["vectors"]), io[f"sound_{tok.config.condition}"])


def norm(x, weight, bias, groups):
    """Group norm by its formula, item by item."""
    parts = x.reshape(groups, -1)
    parts = (parts - parts.mean(1, keepdim=True)) / torch.sqrt(parts.var(1, correction=0, keepdim=True) + 1e-6)
    return parts.reshape(x.shape) * weight[:, None] + bias[:, None]


def conv(x, weight, bias):
    """A convolution of odd kernel as a sum of shifted products."""
    reach, t = weight.shape[2] // 2, x.shape[1]
    padded = torch.cat([x.new_zeros(len(x), reach), x, x.new_zeros(len(x), reach)], 1)
    return sum(weight[:, :, k] @ padded[:, k : k + t] for k in range(weight.shape[2])) + bias[:, None]


def test_the_blocks_before_it_by_their_formulas(tok):
    weights = {key.removeprefix("backbone.pos_net."): value.double() for key, value in public_names_of_mixing().items()}

    def layer(x, name, function, *more):
        return function(x, weights[f"{name}.weight"], weights[f"{name}.bias"], *more)

    def swish(x):
        return x / (1 + torch.exp(-x))

    x = torch.randn(16, 9, generator=torch.Generator().manual_seed(1)).double()
    y = x
    for i in (0, 1, 2, 3, 4):
        if i == 2:
            h = layer(y, "2.norm", norm, 4)
            q, k, v = (layer(h, f"2.{name}", conv) for name in "qkv")
            shares = torch.softmax(q.t() @ k / math.sqrt(16), 1)
            y = y + layer(v @ shares.t(), "2.proj_out", conv)
            continue
        h = layer(swish(layer(y, f"{i}.norm1", norm, 4)), f"{i}.conv1", conv)
        y = y + layer(swish(layer(h, f"{i}.norm2", norm, 4)), f"{i}.conv2", conv)
    y = layer(y, "5", norm, 4)
    close(tok.decoder.mixing(x.float()[None])[0], y.float(), 1e-5)


def test_synthesis_inverts_an_analysis(tok):
    """Windows of a known sound, analysed by the library's transform, give the sound back away from its ends."""
    hop, window = tok.decoder.hop, tok.decoder.window
    sound = torch.randn(1, 20 * hop, generator=torch.Generator().manual_seed(2))
    edge = (window - hop) // 2
    padded = torch.nn.functional.pad(sound, (edge, edge))
    spectrum = torch.fft.rfft(padded.unfold(1, window, hop) * torch.hann_window(window))
    y = tok.decoder.synthesise(spectrum.abs(), spectrum.angle())
    assert y.shape == sound.shape
    close(y, sound, 1e-4)


def in_the_public_form(folder):
    """A configuration in the public form, a fresh tokenizer of it, and tensors with its decoder under their public names."""
    config = json.loads((FOLDER / "config.json").read_text())
    config["model"]["init_args"]["backbone"]["init_args"]["dim"] = 32  # the public model has 32 groups
    (folder / "config.json").write_text(json.dumps(config))
    fresh = WavTokenizer(WavTokenizer.from_public(config, {}))
    stored = load_file(FOLDER / "weights.safetensors")
    shapes = {key: value for key, value in fresh.state_dict().items() if key.startswith("decoder.")}
    back = {"decoder.conv_in.": "backbone.embed.", "decoder.mixing.": "backbone.pos_net.", "decoder.norm_in.": "backbone.norm."}
    back |= {"decoder.blocks.": "backbone.convnext.", "decoder.norm_out.": "backbone.final_layer_norm."}
    back |= {"decoder.to_spectrum.": "head.out."}
    names = {".conv.": ".dwconv.", ".up.": ".pwconv1.", ".down.": ".pwconv2.", ".out.": ".proj_out."}
    tensors = {key: value for key, value in stored.items() if key.startswith("feature_extractor.")}
    for key, value in shapes.items():
        start = next(start for start in back if key.startswith(start))
        rest = "." + key.removeprefix(start)
        for ours, public in names.items():
            rest = rest.replace(ours, public)
        rest = rest[1:] + ".weight" if rest.endswith((".scale", ".shift")) else rest[1:]
        tensors[back[start] + rest] = value.clone()
    return fresh, tensors, shapes


def test_a_folder_in_the_public_form_loads(io, tmp_path):
    _, tensors, shapes = in_the_public_form(tmp_path)
    save_file(tensors, tmp_path / "weights.safetensors")
    loaded = zoo.load(tmp_path, family="wavtokenizer")
    close(loaded.encode_vectors(io["audio"]).transpose(1, 2), io["z"])
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in shapes.items())


def test_a_checkpoint_with_what_training_left_in_it_loads(io, tmp_path):
    """The public files are checkpoints of Lightning: settings, optimizers and discriminators lie beside the tensors."""
    fresh, tensors, shapes = in_the_public_form(tmp_path)
    path = tmp_path / "wavtokenizer.ckpt"
    torch.save(
        {
            "state_dict": {**tensors, "multiperioddisc.discriminators.0.convs.0.bias": torch.zeros(3)},
            "hyper_parameters": {"sample_rate": 24000, "args": argparse.Namespace(resume=Path("last.ckpt"))},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
            "callbacks": {"ModelCheckpoint": {"dirpath": Path("checkpoints")}},
        },
        path,
    )
    read = read_tensors(path, allow_pickle=True)
    load_strict(fresh, WavTokenizer.rename_public(read, fresh.config), name="wavtokenizer")
    close(fresh.eval().encode_vectors(io["audio"]).transpose(1, 2), io["z"])
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in shapes.items())


def test_any_length_and_unequal_items(tok):
    items = [torch.rand(1, n, generator=torch.Generator().manual_seed(n)) - 0.5 for n in (1, 23, 24, 25, 100)]
    together = tok.encode(items)
    y = tok.decode(together)
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        assert alone.positions == (-(-item.shape[1] // 24),)
        assert torch.equal(together[i].data, alone.data)
        close(y[i : i + 1, :, : item.shape[1]], tok.decode(alone), 1e-5)


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("feature_extractor", "num_quantizers", 2, "num_quantizers=2"),
        ("head", "n_fft", 48, r"head\.n_fft=48"),
        ("head", "padding", "center", r"head\.padding='center'"),
    ],
)
def test_a_foreign_configuration_is_refused(part, key, value, words):
    config = json.loads((FOLDER / "config.json").read_text())
    config["model"]["init_args"][part]["init_args"][key] = value
    config["model"]["init_args"]["backbone"]["init_args"]["dim"] = 32
    with pytest.raises(ValueError, match=words):
        WavTokenizer.from_public(config, {})
    with pytest.raises(ValueError, match="lacks dowmsamples"):
        WavTokenizer.from_public({"sample_rate": 24000}, {})
