"""BigCodec against tensors of the public networks (tests/parity/bigcodec)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.audio.bigcodec import BigCodec, BigCodecConfig, low_pass
from zoo.checkpoint import load_strict, read_tensors

FOLDER = Path(__file__).parents[1] / "parity" / "bigcodec" / "small"


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    difference = float((a - b).detach().abs().max())
    assert difference <= tolerance * max(1.0, float(b.abs().max())), f"largest difference {difference}"


@pytest.fixture(scope="module")
def tok():
    return zoo.load(FOLDER, family="bigcodec")


@pytest.fixture(scope="module")
def io():
    return load_file(FOLDER / "io.safetensors")


def test_every_tensor_of_the_public_networks(tok, io):
    close(tok.encode_vectors(io["audio"]).transpose(1, 2), io["z"])
    tokens = tok.encode(io["audio"])
    assert torch.equal(tokens.data, io["codes"].permute(1, 2, 0))
    close(tok.quantizer.decode(tokens.data).transpose(1, 2), io["embedded"])
    trained = tok.quantizer(io["z"].transpose(1, 2))
    assert torch.equal(trained.codes, tokens.data)
    close(trained.x.transpose(1, 2), io["quantized"])
    close(tok.decode(tokens), io["decoded"])
    assert float(io["decoded"].abs().max()) < 0.999, "the fixture does not hide behind the hyperbolic tangent"


def test_the_low_pass_is_that_of_the_file():
    stored = [value for key, value in load_file(FOLDER / "weights.safetensors").items() if key.endswith("filter")]
    assert len(stored) > 20
    for value in stored:
        close(low_pass(), value, 1e-7)


def test_the_released_pickle_with_two_networks_loads(tok, tmp_path):
    weights = load_file(FOLDER / "weights.safetensors")
    older = {
        key.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): value
        for key, value in weights.items()
    }
    nets = {
        "CodecEnc": {key.removeprefix("encoder."): value for key, value in older.items() if key.startswith("encoder.")},
        "generator": {key.removeprefix("decoder."): value for key, value in older.items() if key.startswith("decoder.")},
    }
    torch.save({**nets, "step": 3}, tmp_path / "bigcodec.pt")
    tensors = read_tensors(tmp_path / "bigcodec.pt", allow_pickle=True, key="CodecEnc+generator")
    again = BigCodec(tok.config)
    load_strict(again, BigCodec.rename_public(tensors, tok.config), name="bigcodec")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in tok.state_dict().items())
    with pytest.raises(ValueError, match=r"has no 'decoder'"):
        read_tensors(tmp_path / "bigcodec.pt", allow_pickle=True, key="CodecEnc+decoder")


def test_the_defaults_are_the_public_model():
    public = {
        "ngf": 48, "use_rnn": True, "rnn_bidirectional": False, "rnn_num_layers": 2, "up_ratios": [2, 2, 2, 5, 5],
        "dilations": [1, 3, 9], "out_channels": 1024, "codebook_size": 8192, "vq_num_quantizers": 1, "codebook_dim": 8,
    }  # fmt: skip
    assert BigCodec.from_public(public, {}) == BigCodecConfig()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"colour": 1}, "unknown keys colour"), ({"vq_num_quantizers": 2}, "vq_num_quantizers=2"), ({"up_ratios": []}, "strides")],
)
def test_a_foreign_configuration_is_refused(change, words):
    config = json.loads((FOLDER / "config.json").read_text())
    with pytest.raises(ValueError, match=words):
        BigCodec.from_public({**config, **change}, {})


def test_any_length_and_unequal_items(tok):
    items = [torch.rand(1, n, generator=torch.Generator().manual_seed(n)) - 0.5 for n in (1, 19, 20, 21, 100)]
    together = tok.encode(items)
    y = tok.decode(together)
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        assert alone.positions == (-(-item.shape[1] // 20),)
        assert torch.equal(together[i].data, alone.data)
        close(y[i : i + 1, :, : item.shape[1]], tok.decode(alone), 1e-5)
