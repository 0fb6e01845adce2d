"""X-Codec2 and NeuCodec: the library's spectrum, codes and sound, public files, any length, and what is refused."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchaudio.compliance.kaldi import fbank
from torchaudio.functional import resample
from transformers import (
    NeuCodecConfig,
    NeuCodecFeatureExtractor,
    NeuCodecModel,
    Xcodec2Config,
    Xcodec2FeatureExtractor,
    Xcodec2Model,
)

import zoo
from zoo.audio.xcodec2 import XCodec2, log_bands

SPEECH = dict(model_type="wav2vec2-bert", hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
SIZES = dict(
    hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    encoder_hidden_size=4, downsampling_ratios=[16, 20], semantic_model_config=SPEECH, quantization_dim=80,
)  # fmt: skip
LIBRARY = {
    "xcodec2": (Xcodec2Model, Xcodec2Config, Xcodec2FeatureExtractor),
    "neucodec": (NeuCodecModel, NeuCodecConfig, NeuCodecFeatureExtractor),
}


def library(kind):
    """The library's class with weights large enough that codes differ."""
    torch.manual_seed(0)
    model = LIBRARY[kind][0](LIBRARY[kind][1](**SIZES)).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        if value.ndim > 1:
            value.normal_(std=value[0].numel() ** -0.5)
        elif name.endswith(("bias", "alpha", "beta")):
            value.normal_(std=0.1)
    return model


def folder(model, path):
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    assert "semantic_encoder.masked_spec_embed" in tensors, "what is left out is there"
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(model.config.to_dict()))
    return path


@pytest.fixture(scope="module", params=LIBRARY)
def both(request, tmp_path_factory):
    model = library(request.param)
    return request.param, model, zoo.load(folder(model, tmp_path_factory.mktemp("codec") / "public"), family="xcodec2")


def sound(length, b=1, seed=0):
    return torch.randn(b, 1, length, generator=torch.Generator().manual_seed(seed)).mul(0.2).clamp(-1, 1)


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


def their_inputs(kind, tok, x):
    """What the library's feature extractor makes of one signal at the encoder's rate."""
    low = x if tok.config.sample_rate == 16_000 else resample(x, tok.config.sample_rate, 16_000)
    return LIBRARY[kind][2]()(audio=low[0, 0].numpy(), sampling_rate=16_000, return_tensors="pt")


# -- the library's numbers ---------------------------------------------------------------------------------------------------------


def test_bands_are_kaldi_s():
    x = torch.stack([sound(3000, seed=seed)[0, 0] * 2**15 for seed in (0, 1)])
    x[1, 500:1500] = 0  # silence has a floor
    wanted = [fbank(row[None], num_mel_bins=80, sample_frequency=16_000.0, dither=0.0) for row in x]
    close(log_bands(x, 16_000), torch.stack(wanted))


@pytest.mark.parametrize("length", [1, 100, 319, 321, 2000, 3333])
def test_codes_and_sound_are_the_library_s(both, length):
    """At any length for X-Codec2; for NeuCodec on what is filled up to whole positions, which the library cuts instead."""
    kind, model, tok = both
    x = sound(length, seed=length)
    filled = x if kind == "xcodec2" else F.pad(x, (0, -length % tok.config.hop))
    inputs = their_inputs(kind, tok, filled)
    theirs = model.encode(**inputs).audio_codes
    tokens = tok.encode(x)
    assert tokens.data.shape == (1, -(-length // tok.config.hop), 1)
    assert torch.equal(tokens.data.transpose(1, 2), theirs.long())
    assert length < 3000 or len(tokens.data.unique()) > 5, "the codes of this input differ"
    y = tok.decode(tokens)
    assert y.shape == x.shape
    close(y, model.decode(theirs).audio_values[..., :length])


def test_spectrum_is_what_the_feature_extractor_gives(both):
    kind, _, tok = both
    x = sound(7 * tok.config.hop - 5)
    inputs = their_inputs(kind, tok, F.pad(x, (0, 5)) if kind == "neucodec" else x)
    close(tok.spectrum(inputs["input_values"][:, 0]), inputs["input_features"])


def test_a_zero_more_gives_the_library_s_codes_of_whole_positions(both):
    kind, model, tok = both
    x = sound(5 * tok.config.hop)
    theirs = model.encode(**their_inputs(kind, tok, x)).audio_codes
    assert theirs.shape[2] == (6 if kind == "xcodec2" else 5)
    ours = tok.encode(F.pad(x, (0, 1)) if kind == "xcodec2" else x)
    assert torch.equal(ours.data.transpose(1, 2), theirs.long())
    assert tok.encode(x).data.shape[1] == 5


def test_every_tensor_of_the_file_is_used(tmp_path):
    model = library("neucodec")
    path = folder(model, tmp_path / "public")
    tok = zoo.load(path, family="xcodec2")
    kept = {name: value for name, value in model.state_dict().items() if not name.endswith("masked_spec_embed")}
    assert set(tok.state_dict()) == {f"model.{name}" for name in kept}
    for name, value in kept.items():
        assert torch.equal(tok.model.state_dict()[name], value), name
    tensors = {name: value.clone() for name, value in kept.items() if name != "fc_encoder.bias"}
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: model\.fc_encoder\.bias"):
        zoo.load(path, family="xcodec2")


# -- any length --------------------------------------------------------------------------------------------------------------------


def test_items_do_not_meet(both):
    tok = both[2]
    hop = tok.config.hop
    items = [sound(length, seed=length)[0] for length in (1, hop, hop + 1, 3 * hop - 7)]
    tokens = tok.encode(items)
    y = tok.decode(tokens)
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        n = alone.data.shape[1]
        assert torch.equal(tokens.data[i, :n], alone.data[0])
        close(y[i : i + 1, :, : item.shape[1]], tok.decode(alone))
        assert not y[i, :, item.shape[1] :].any()


def test_any_sample_rate_comes_in_and_its_own_goes_out(both):
    kind, _, tok = both
    x = tok.preprocess(np.sin(np.arange(4410) / 20), sample_rate=44_100)
    assert x.shape == (1, 1, 2400 if kind == "neucodec" else 1600)
    assert tok.decode(tok.encode(x)).shape == x.shape
    assert tok.info.sample_rate == (24_000 if kind == "neucodec" else 16_000)


def test_codes_and_sound_depend_on_the_whole_signal(both):
    """Why nothing is cut into pieces and there is no stream."""
    tok = both[2]
    x = sound(40 * tok.config.hop)
    other = x.clone()
    other[..., -2 * tok.config.hop :] *= 4
    assert float((tok.encode_vectors(x) - tok.encode_vectors(other))[:, 0].abs().max()) > 1e-4
    vectors = tok.lookup(tok.encode(x).data)
    changed = vectors.clone()
    changed[:, -1] += 1
    first = (tok.decode_vectors(vectors) - tok.decode_vectors(changed))[..., : tok.config.hop]
    assert float(first.abs().max()) > 1e-5
    with pytest.raises(ValueError, match="needs the whole signal"):
        tok.stream()


def test_silence_and_bad_input(both):
    tok = both[2]
    tokens = tok.encode(torch.zeros(1, 1, 3))
    assert bool(tok.decode(tokens).isfinite().all())
    with pytest.raises(ValueError, match="NaN"):
        tok.encode(torch.full((1, 1, 10), float("nan")))
    with pytest.raises(ValueError, match="no residual levels"):
        tok.encode(torch.zeros(1, 1, 10), depth=1)
    with pytest.raises(ValueError, match="one rate only"):
        tok.encode(torch.zeros(1, 1, 10), bits_per_second=400)
    tokens.data[0, 0, 0] = 65_536
    with pytest.raises(ValueError, match="65536"):
        tok.decode(tokens)


# -- what is refused ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="xcodec"), r"model_type='xcodec' in config\.json\. Allowed: xcodec2, neucodec"),
        (dict(semantic_model_config=dict(model_type="hubert")), "semantic_model_config.model_type='hubert'"),
        (dict(hidden_act="gelu"), "hidden_act='gelu'"),
        (dict(quantization_dim=81), "quantization_dim=81.*knows: 80"),
        (dict(num_key_value_heads=1), "num_key_value_heads=1"),
        (dict(semantic_model_config=dict(SPEECH, position_embeddings_type="rotary")), "position_embeddings_type='rotary'"),
    ],
)
def test_what_from_public_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        XCodec2.from_public({**Xcodec2Config(**SIZES).to_dict(), **change}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(strides=(2, 2)), "strides=.*of the product 320"),
        (dict(sample_rate=24_000), "sample_rate=24000.*encoder_sample_rate=16000 with padded_spectrum"),
        (dict(sample_rate=16_001, padded_spectrum=False), "sample_rate=16001.*a whole number"),
        (dict(width=32), "width=32.*a multiple of 32, not 32"),
        (dict(head=3), "head=3.*an even number"),
        (dict(semantic_heads=3), "semantic_width=1024.*a multiple of semantic_heads=3"),
        (dict(levels=(4, 1)), "levels=.*at least 2"),
    ],
)
def test_what_the_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        XCodec2.Config.from_dict(change)


def test_fresh_weights_give_different_codes():
    tok = zoo.create(
        "xcodec2", encoder_channels=4, strides=(16, 20), levels=(4, 4, 4), width=64, layers=1, heads=2, head=8, mlp_width=16,
        semantic_width=8, semantic_layers=1, semantic_heads=2, semantic_mlp_width=16, semantic_kernel=3,
    )  # fmt: skip
    assert len(tok.eval().encode(sound(20 * 320)).data.unique()) > 3
