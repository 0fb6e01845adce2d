"""X-Codec and the Higgs tokenizer: the library's codes and sound, public files, any length, depths, pieces and what is refused."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel, XcodecConfig, XcodecModel

import zoo
from zoo.audio.xcodec import XCodec

SPEECH = dict(
    hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=[8] * 7, num_conv_pos_embeddings=4,
    num_conv_pos_embedding_groups=2,
)  # fmt: skip
SHAPE = dict(encoder_hidden_size=4, decoder_hidden_size=32, hidden_size=6)
RATES = ("downsampling_ratios", "upsampling_ratios")
NORMS = {
    "old": ("weight_g", "weight_v"),
    "new": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
}
KINDS = ("hubert", "wavlm", "higgs")


def library_config(kind):
    """Small, with the public strides, kernels and sample rates."""
    higgs = kind == "higgs"
    strides = [8, 5, 4, 2, 3] if higgs else [8, 5, 4, 2]
    speech = dict(SPEECH, model_type="wavlm", num_buckets=8, max_bucket_distance=20) if kind == "wavlm" else dict(SPEECH)
    parts = dict(
        acoustic_model_config=dict(SHAPE, model_type="dac", **dict.fromkeys(RATES, strides)),
        semantic_model_config=dict(speech, model_type=speech.get("model_type", "hubert")),
        codebook_size=16,
        target_bandwidths=[0.1, 0.4] if higgs else [0.2, 0.8],  # up to 4 levels of 4 bits
    )
    return HiggsAudioV2TokenizerConfig(**parts, codebook_dim=4) if higgs else XcodecConfig(**parts)


def library(kind, seed=0):
    """The library's class with weights that are not those of its start: there all codebooks are zero and all gains one."""
    config = library_config(kind)
    torch.manual_seed(seed)
    model = (HiggsAudioV2TokenizerModel if kind == "higgs" else XcodecModel)(config).eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(seed)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("codebook.embed"):
            value.normal_(std=0.7, generator=draws)
        elif name.endswith("alpha"):
            value.uniform_(0.5, 2, generator=draws)
        elif name.startswith(("acoustic_", "fc", "quantizer.")) and name.endswith("weight"):
            gain = 0.5 if name.startswith("acoustic_") else 1.0  # louder, its sines turn rounding into noise
            value.normal_(std=gain * value[0].numel() ** -0.5, generator=draws)
        elif name.endswith("bias"):
            value.normal_(std=0.1, generator=draws)
    return model


def folder(model, path, *, norm="folded"):
    """A folder as on the Hub, with the acoustic weights in one of three layouts."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    tensors["semantic_model.masked_spec_embed"] = torch.zeros(8)
    for name in [name for name in tensors if name.startswith("acoustic_") and name.endswith(("conv1.weight", "conv2.weight"))]:
        if norm != "folded":
            stem, v = name.removesuffix("weight"), tensors.pop(name) * 3
            gain, direction = NORMS[norm]
            tensors[stem + gain] = (v / 3).flatten(1).norm(dim=1).view(-1, 1, 1)
            tensors[stem + direction] = v
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(model.config.to_dict()))
    return path


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    model = library(request.param)
    return model, zoo.load(folder(model, tmp_path_factory.mktemp("xcodec") / "public"), family="xcodec")


def sound(length, b=1, seed=0):
    return torch.randn(b, 1, length, generator=torch.Generator().manual_seed(seed)).mul(0.2).clamp(-1, 1)


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())))


# -- the library's numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7])
def test_codes_and_sound_are_the_library_s(both, count):
    model, tok = both
    x = sound(count * tok.config.hop, b=2, seed=count)
    features = model._extract_semantic_features(x)
    close(tok.semantic_features(x), features)
    assert features.shape[1] == count
    theirs = model.encode(x).audio_codes
    tokens = tok.encode(x)
    assert tokens.data.shape == (2, count, 4)
    assert torch.equal(tokens.data.transpose(1, 2), theirs)
    assert count < 7 or len(tokens.data.unique()) > 8, "the codes of this input differ"
    close(tok.decode(tokens), model.decode(theirs).audio_values)


def test_depths_are_the_library_s_bandwidths(both):
    model, tok = both
    x = sound(5 * tok.config.hop)
    few = model.encode(x, bandwidth=model.config.target_bandwidths[0]).audio_codes
    assert few.shape[1] == 1
    assert torch.equal(tok.encode(x, depth=1).data.transpose(1, 2), few)
    close(tok.decode(tok.encode(x, depth=1)), model.decode(few).audio_values)
    whole = tok.encode(x)
    for depth in (1, 2, 3):
        assert torch.equal(tok.encode(x, depth=depth).data, whole.depth(depth).data)
    rate = tok.config.sample_rate / tok.config.hop * 4
    assert tok.encode(x, bits_per_second=2.5 * rate).data.shape[2] == 2
    with pytest.raises(ValueError, match="at least"):
        tok.encode(x, bits_per_second=0.5 * rate)


@pytest.mark.parametrize("norm", ["old", "new"])
def test_every_layout_of_weight_norm_is_read(norm, tmp_path):
    model = library("hubert")
    tok = zoo.load(folder(model, tmp_path / "public", norm=norm), family="xcodec")
    close(tok.model.acoustic_encoder.conv1.weight, model.acoustic_encoder.conv1.weight)
    close(tok.model.acoustic_decoder.block[0].res_unit1.conv1.weight, model.acoustic_decoder.block[0].res_unit1.conv1.weight)


def test_every_tensor_of_the_file_is_used(tmp_path):
    model = library("higgs")
    path = folder(model, tmp_path / "public")
    tok = zoo.load(path, family="xcodec")
    for name, value in model.state_dict().items():
        assert torch.equal(tok.model.state_dict()[name], value), name
    tensors = dict(model.state_dict())
    del tensors["fc2.weight"]
    save_file({name: value.clone() for name, value in tensors.items()}, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: model\.fc2\.weight"):
        zoo.load(path, family="xcodec")


# -- any length --------------------------------------------------------------------------------------------------------------------


def test_every_length_comes_back_and_items_do_not_meet(both):
    model, tok = both
    hop = tok.config.hop
    items = [sound(length, seed=length)[0] for length in (1, hop - 1, hop, hop + 1, 3 * hop - 7)]
    tokens = tok.encode(items)
    y = tok.decode(tokens)
    for i, item in enumerate(items):
        length = item.shape[1]
        alone = tok.encode(item[None])
        n = -(-length // hop)
        assert alone.data.shape[1] == n
        assert torch.equal(tokens.data[i, :n], alone.data[0])
        part = tok.decode(alone)
        assert part.shape == (1, 1, length)
        close(y[i : i + 1, :, :length], part)
        assert not y[i, :, length:].any()
        padded = F.pad(item[None], (0, n * hop - length))  # what the library's feature extractor does
        assert torch.equal(alone.data.transpose(1, 2), model.encode(padded).audio_codes)


def test_any_sample_rate_comes_in(both):
    tok = both[1]
    x = tok.preprocess(sound(4410)[0, 0].numpy(), sample_rate=44_100)
    assert x.shape == (1, 1, tok.config.sample_rate // 10)
    assert tok.decode(tok.encode(x)).shape == x.shape


def test_pieces_are_the_whole(both, monkeypatch):
    model, tok = both
    x = sound(40 * tok.config.hop)
    codes = model.encode(x).audio_codes
    whole = model.decode(codes).audio_values
    monkeypatch.setattr("zoo.audio.xcodec._PIECE", 3)
    tokens = tok.encode(x)
    assert torch.equal(tokens.data.transpose(1, 2), codes)
    close(tok.decode(tokens), whole)


def test_codes_see_the_whole_signal():
    """Why encoding is not cut and there is no stream: the last sample changes what the first features are."""
    tok = zoo.create("xcodec", **_tiny()).eval().requires_grad_(False)
    x = sound(50 * tok.config.hop)
    other = x.clone()
    other[..., -1] = 1
    first = (tok.semantic_features(x) - tok.semantic_features(other))[:, 0].abs().max()
    assert float(first) > 1e-5
    with pytest.raises(ValueError, match="needs the whole signal"):
        tok.stream()


def _tiny():
    return dict(
        sample_rate=60, semantic_sample_rate=60, semantic_padding=3, strides=(3, 2), decoder_strides=(3, 2), encoder_channels=4,
        decoder_channels=16, latent_channels=6, num_codebooks=3, codebook_size=16, width=8, layers=2, heads=2, mlp_width=16,
        conv_channels=(8, 8), conv_kernels=(4, 2), conv_strides=(3, 2), position_kernel=4, position_groups=2,
    )  # fmt: skip


def test_training_draws_nothing(both):
    """No dropout and no masking in the speech model, so that codes are the same in training mode."""
    tok = both[1]
    x = sound(3 * tok.config.hop)
    tok.train()
    try:
        a, b = tok.encode_vectors(x), tok.encode_vectors(x)
    finally:
        tok.eval()
    assert torch.equal(a, b)
    assert torch.equal(a, tok.encode_vectors(x))


# -- what is refused ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(model_type="dac"), r"model_type='dac' in config\.json\. Allowed: xcodec, higgs"),
        (dict(acoustic_model_config=dict(model_type="encodec")), "acoustic_model_config.model_type='encodec'"),
        (dict(semantic_model_config=dict(model_type="wav2vec2")), "semantic_model_config.model_type='wav2vec2'"),
        (dict(strides=[2, 1]), r"strides=\[2, 1\]"),
        (dict(codebook_dim=5), r"codebook_dim=5 in config\.json\. This implementation knows: 14"),
        (dict(semantic_model_config=dict(SPEECH, model_type="hubert", do_stable_layer_norm=True)), "do_stable_layer_norm=True"),
        (dict(semantic_model_config=dict(SPEECH, model_type="hubert", conv_bias=True)), "conv_bias=True"),
    ],
)
def test_what_from_public_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        XCodec.from_public({**library_config("hubert").to_dict(), **change}, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(semantic_padding=0), "conv_strides=.* give one semantic feature"),
        (dict(conv_strides=(5, 2), conv_kernels=(5, 2)), "conv_strides=.* give one semantic feature"),
        (dict(decoder_strides=(3, 3)), "decoder_strides=.*of the product 6"),
        (dict(decoder_channels=6), "decoder_channels=6.*a multiple of 4"),
        (dict(semantic_model="wav2vec2"), "semantic_model='wav2vec2'"),
        (dict(codebook_channels=0), "codebook_channels=0"),
        (dict(heads=3), "width=8.*a multiple of heads=3"),
        (dict(unit_kernel=2), "unit_kernel=2.*an odd number"),
        (dict(num_codebooks=0), "num_codebooks=0"),
    ],
)
def test_what_the_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        XCodec.Config.from_dict({**XCodec.Config(**_tiny()).to_dict(), **change})


def test_bad_sound_and_codes_are_refused(both):
    tok = both[1]
    with pytest.raises(ValueError, match="NaN"):
        tok.encode(torch.full((1, 1, 10), float("nan")))
    with pytest.raises(ValueError, match="2 channels"):
        tok.encode(torch.zeros(1, 2, 10))
    tokens = tok.encode(torch.zeros(1, 1, 3))
    assert bool(tok.decode(tokens).isfinite().all()), "silence is no error"
    tokens.data[0, 0, 0] = 16
    with pytest.raises(ValueError, match="16"):
        tok.decode(tokens)


def test_fresh_codebooks_differ():
    tok = zoo.create("xcodec", **_tiny())
    for layer in tok.model.quantizer.quantizers:
        assert len(layer.codebook.embed.unique(dim=0)) == 16
    assert isinstance(tok.model.acoustic_decoder.tanh, nn.Identity)
