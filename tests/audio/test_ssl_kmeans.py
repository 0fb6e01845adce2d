"""K-means on self-supervised features, against the library's whole models and a plain search."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import HubertConfig, HubertModel, WavLMConfig, WavLMModel

import zoo
from zoo.audio.ssl_kmeans import SslKMeans, SslKMeansConfig
from zoo.checkpoint import write_folder
from zoo.publishing import folder_config

SIZES = dict(
    hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8), conv_kernel=(5, 4),
    conv_stride=(4, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=5, num_conv_pos_embedding_groups=2,
)  # fmt: skip
LARGE = dict(feat_extract_norm="layer", do_stable_layer_norm=True)
FORMS = {
    "hubert": (HubertModel, HubertConfig, {}, 3),
    "hubert large": (HubertModel, HubertConfig, LARGE, 2),
    "hubert large, last layer": (HubertModel, HubertConfig, LARGE, 4),
    "wavlm": (WavLMModel, WavLMConfig, dict(num_buckets=8, max_bucket_distance=20), 3),
    "wavlm large": (WavLMModel, WavLMConfig, dict(LARGE, num_buckets=8, max_bucket_distance=20), 1),
}


@pytest.fixture(scope="module", params=FORMS)
def case(request, tmp_path_factory):
    """A library model, and the tokenizer that reads its folder."""
    model_class, config_class, changes, layer = FORMS[request.param]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, **changes)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter += torch.randn(parameter.shape) * 0.1  # norms that do something
        assert name
    folder = tmp_path_factory.mktemp("public")
    config = {**model.config.to_dict(), "kmeans_layer": layer, "kmeans_codes": 16}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    return model, zoo.load(folder, family="ssl_kmeans"), layer


def sounds(count, samples=400, b=4):
    draws = torch.Generator().manual_seed(1)
    return [torch.randn(b, 1, samples, generator=draws).cumsum(2).mul(0.05).clamp(-1, 1) for _ in range(count)]


@pytest.fixture(scope="module")
def fitted(case):
    model, tok, layer = case
    tok.fit(sounds(6))
    return model, tok, layer


def features(model, tok, x, layer):
    signal = x[:, 0]
    if tok.config.normalise:
        signal = torch.stack([(row - row.mean()) / torch.sqrt(row.var(correction=0) + 1e-7) for row in signal])
    return model(signal, output_hidden_states=True).hidden_states[layer]


def test_features_are_those_of_the_whole_library_model(case):
    model, tok, layer = case
    x = sounds(1)[0]
    wanted = features(model, tok, x, layer)
    torch.testing.assert_close(tok.features(x), wanted, rtol=0, atol=1e-5)


def test_without_centroids_nothing_is_encoded(case):
    fresh = SslKMeans(case[1].config).eval()
    fresh.load_state_dict({**case[1].state_dict(), "quantizer.initialized": torch.tensor(False)})
    with pytest.raises(ValueError, match=r"encode: no centroids are there yet\. Find them with fit"):
        fresh.encode(sounds(1)[0])


def test_codes_are_the_nearest_centroids(fitted):
    model, tok, layer = fitted
    x = sounds(1)[0]
    tokens = tok.encode(x)
    wanted = torch.cdist(features(model, tok, x, layer).double(), tok.quantizer.codebook.double()).argmin(-1)
    assert torch.equal(tokens.data[..., 0], wanted)
    assert len(tokens.data.unique()) > 8
    assert torch.equal(tok.decode(tokens), tok.quantizer.codebook[wanted])


def test_the_positions_are_those_of_the_library(fitted):
    model, tok, _ = fitted
    assert tok.config.least == 17
    for samples in (1, 16, 17, 24, 25, 33, 400):
        x = sounds(1, samples, b=1)[0]
        expected = int(model._get_feat_extract_output_lengths(torch.tensor(max(samples, 17))))
        tokens = tok.encode(x)
        assert tokens.positions == (expected,)
        assert tok.decode(tokens).shape == (1, expected, tok.config.width)


def test_unequal_items_equal_one_by_one(fitted):
    _, tok, _ = fitted
    items = [x[0] for x in (*sounds(1, 100, b=1), *sounds(1, 33, b=1), *sounds(1, 5, b=1))]
    together = tok.encode(items)
    y = tok.decode(together)
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        n = alone.positions[0]
        assert torch.equal(together[i].data, alone.data)
        torch.testing.assert_close(y[i : i + 1, :n], tok.decode(alone))
        assert not y[i, n:].any()


def test_a_fitted_tokenizer_is_saved_and_loaded(fitted, tmp_path):
    _, tok, _ = fitted
    folder = write_folder(tmp_path / "folder", config=folder_config(tok), tensors=tok.state_dict())
    x = sounds(1)[0]
    assert torch.equal(zoo.load(folder).encode(x).data, tok.encode(x).data)


# -- fit ---------------------------------------------------------------------------------------------------------------------------


class Planted(SslKMeans):
    """Features are the samples themselves, so that the clusters are known."""

    def features(self, x):
        return x[:, 0, :, None].expand(-1, -1, self.config.width)


def planted():
    torch.manual_seed(0)
    config = SslKMeansConfig(
        layer=1, codebook_size=4, width=2, heads=1, mlp_width=4, conv_channels=(2,), conv_kernels=(1,), conv_strides=(1,),
        position_kernel=2, position_groups=1,
    )  # fmt: skip
    return Planted(config).eval().requires_grad_(False)


def clusters(count, seed=0):
    draws = torch.Generator().manual_seed(seed)
    centres = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    picks = torch.randint(0, 4, (count, 2, 1, 50), generator=draws)
    return list(centres[picks] + 0.02 * torch.randn(picks.shape, generator=draws))


def test_fit_finds_the_clusters():
    tok = planted()
    errors = tok.fit(clusters(20), seed=3)
    found = tok.quantizer.codebook[:, 0].sort().values
    torch.testing.assert_close(found, torch.tensor([-0.75, -0.25, 0.25, 0.75]), atol=0.01, rtol=0)
    assert len(errors) == 19, "the first batch starts the centroids"
    assert max(errors) < 4 * 2 * 0.02**2


def test_fit_is_the_mean_of_all_that_was_nearest():
    """Far clusters never change hands, so batches give what one mean over all gives."""
    tok, data = planted(), clusters(12)
    tok.fit(data, seed=3)
    everything = torch.cat([batch.flatten() for batch in data])
    for centroid in tok.quantizer.codebook[:, 0].tolist():
        members = everything[(everything - centroid).abs() < 0.2]
        assert centroid == pytest.approx(float(members.mean()), abs=1e-4)


def test_fit_depends_on_its_seed_only():
    a, b, c = planted(), planted(), planted()
    torch.manual_seed(1)
    a.fit(clusters(3), seed=5, start_iterations=0)
    before = torch.get_rng_state()
    b.fit(clusters(3), seed=5, start_iterations=0)
    c.fit(clusters(3), seed=6, start_iterations=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.quantizer.codebook, b.quantizer.codebook)
    assert not torch.equal(a.quantizer.codebook, c.quantizer.codebook)


def test_fit_refuses_too_little():
    with pytest.raises(ValueError, match=r"fit: the sounds have 3 features\. Needed: at least 4"):
        planted().fit([torch.zeros(1, 1, 3)])
    with pytest.raises(ValueError, match="NaN"):
        planted().fit([torch.full((1, 1, 9), float("nan"))])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "wav2vec2"}, "model_type='wav2vec2'"),
        ({"kmeans_layer": 5}, r"kmeans_layer=5 in config.json. Allowed: 1\.\.4"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ],
)
def test_a_foreign_configuration_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        SslKMeans.from_public({"model_type": "hubert", "num_hidden_layers": 4, **change}, {})


def test_features_are_no_sound(fitted):
    _, tok, _ = fitted
    with pytest.raises(ValueError, match="features, not sound"):
        tok.postprocess(tok.decode(tok.encode(sounds(1)[0])))
