"""SpeechTokenizer against tensors of the public class (tests/parity/speech_tokenizer)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.audio.speech_tokenizer import SpeechTokenizer, SpeechTokenizerConfig
from zoo.tokens import Tokens

PARITY = Path(__file__).parents[1] / "parity" / "speech_tokenizer"


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    difference = float((a - b).detach().abs().max())
    assert difference <= tolerance * max(1.0, float(b.abs().max())), f"largest difference {difference}"


@pytest.fixture(scope="module", params=("elu", "snake_two_units"))
def case(request):
    folder = PARITY / request.param
    return zoo.load(folder, family="speech_tokenizer"), load_file(folder / "io.safetensors")


@pytest.mark.parametrize("length", ["even", "odd"])
def test_every_tensor_of_the_public_class(case, length):
    tok, io = case
    audio, codes = io[f"{length}_audio"], io[f"{length}_codes"].permute(1, 2, 0)
    close(tok.encode_vectors(audio).transpose(1, 2), io[f"{length}_z"])
    tokens = tok.encode(audio)
    assert torch.equal(tokens.data, codes)
    assert torch.equal(tok.encode(audio, depth=2).data, io[f"{length}_codes_1_to_2"].permute(1, 2, 0))
    close(tok.decode_vectors(tok.quantizer.decode(codes)), io[f"{length}_decoded"])
    close(tok.decode_vectors(tok.quantizer.decode(codes[..., :2])), io[f"{length}_decoded_2"])
    close(tok.semantic_features(audio), io[f"{length}_semantic"])
    y = tok.decode(tokens)
    assert y.shape == audio.shape
    close(y, io[f"{length}_decoded"][..., : audio.shape[2]])


def test_the_widths_of_the_released_model_are_the_defaults():
    public = {
        "n_filters": 64, "strides": [8, 5, 4, 2], "dimension": 1024, "semantic_dimension": 768, "bidirectional": True,
        "dilation_base": 2, "residual_kernel_size": 3, "n_residual_layers": 1, "lstm_layers": 2, "activation": "ELU",
        "codebook_size": 1024, "n_q": 8, "sample_rate": 16000, "num_mels": 80, "batch_size": 6,
    }  # fmt: skip
    assert SpeechTokenizer.from_public(public, {}) == SpeechTokenizerConfig()


def test_what_is_no_configuration_of_this_family_is_refused():
    config = json.loads((PARITY / "elu" / "config.json").read_text())
    del config["strides"]
    with pytest.raises(ValueError, match=r"config\.json lacks strides"):
        SpeechTokenizer.from_public(config, {})
    with pytest.raises(ValueError, match="activation='relu'"):
        SpeechTokenizer.from_public({**config, "strides": [2], "activation": "ReLU"}, {})


def test_any_length_and_unequal_items(case):
    tok, _ = case
    items = [torch.rand(1, n, generator=torch.Generator().manual_seed(n)) - 0.5 for n in (1, 5, 23, 24, 25, 100)]
    together = tok.encode(items)
    y = tok.decode(together)
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        assert alone.positions == (-(-item.shape[1] // tok.config.hop),)
        assert torch.equal(together[i].data, alone.data)
        close(y[i : i + 1, :, : item.shape[1]], tok.decode(alone), 1e-5)


def test_the_first_code_is_taught_through_the_codebook(case):
    tok, io = case
    x = io["even_audio"].clone().requires_grad_()
    tok.semantic_features(x).square().mean().backward()
    assert float(x.grad.abs().max()) > 0


def test_no_stream(case):
    tok, io = case
    with pytest.raises(ValueError, match="needs the whole signal"):
        tok.stream()
    tokens = tok.encode(io["even_audio"])
    with pytest.raises(ValueError, match="positions"):
        tok.decode(Tokens(tokens.data, tokens.spec, [[24]] * 2))
