"""SEED against tensors of the public implementation (see the READMEs in tests/parity/seed), its causality, and its refusals."""

import json
import logging
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import zoo
from zoo.image.seed import Seed, SeedConfig
from zoo.tokens import Tokens

CASES = ("released_head", "reverse_qformer")
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    scale, far = max(1.0, float(b.abs().max())), float((a - b).detach().abs().max())
    assert far <= tolerance * scale, f"largest difference {far} at scale {scale}"


@pytest.fixture(scope="module")
def loaded(parity):
    """Give each case's tokenizer and tensors, loaded once."""
    cases = {name: parity("seed", name) for name in CASES}
    return {name: (zoo.load(case.folder, family="seed"), case.io) for name, case in cases.items()}


def signal(io):
    """The fixture's picture, which CLIP's mean and spread were taken from, back in our range (its noise reaches beyond [-1, 1])."""
    return (io["image"] * STD + MEAN) * 2 - 1


def picture(io):
    return signal(io).clamp(-1, 1)


def tokens_of(tok, codes):
    side = tok.config.image_size
    return Tokens(codes[..., None], tok.spec, torch.tensor([[side, side]] * len(codes)))


# -- the public model's numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_encoder(loaded, name):
    tok, io = loaded[name]
    features = tok.vision_features(signal(io))
    close(features, io["vit_features"])
    close(tok.causal_embeddings(features), io["causal_embeddings"])
    close(tok.encode_vectors(signal(io)), io["pre_quant"])


@pytest.mark.parametrize("name", CASES)
def test_codes_and_their_vectors(loaded, name):
    tok, io = loaded[name]
    quantized = tok.quantizer(tok.encode_vectors(signal(io)))
    assert torch.equal(quantized.codes[..., 0], io["codes"])
    close(quantized.x, io["quantized"])
    close(quantized.loss[None], io["vq_loss"])
    assert torch.equal(tok._encode(signal(io), tokens=None, depth=None, generator=None)[..., 0], io["codes"])


@pytest.mark.parametrize("name", CASES)
def test_decode(loaded, name):
    tok, io = loaded[name]
    vectors = tok.quantizer.decode(io["codes"][..., None])
    close(tok.from_code(vectors), io["decoded_up"])
    close(tok.rebuild_embeddings(vectors), io["recon_embeddings"])
    close(tok.decode(tokens_of(tok, io["codes"])), io["generation_embedding"])


@pytest.mark.parametrize("name", CASES)
def test_losses(loaded, name):
    tok, io = loaded[name]
    target = torch.randn(2, tok.config.features, generator=torch.Generator().manual_seed(0))
    losses = tok.codebook_losses(signal(io), target)
    error = (io["generation_embedding"] - target).square().mean()
    close(losses.quantizer[None], io["vq_loss"])
    close(losses.reconstruction[None], io["recon_loss"])
    close(losses.generation, error)
    close(losses.total[None], 5 * io["vq_loss"] + 2 * io["recon_loss"] + 0.5 * error)


# -- causality ---------------------------------------------------------------------------------------------------------------


def with_negated_queries(tok, first):
    """A copy whose queries from `first` on have the other sign (a constant would be undone by the norm)."""
    other = Seed(tok.config).eval().requires_grad_(False)
    other.load_state_dict(tok.state_dict())
    other.queries[:, first:] *= -1
    return other


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("first", [1, 7, 31])
def test_codes_do_not_depend_on_later_queries(loaded, name, first):
    tok, io = loaded[name]
    other = with_negated_queries(tok, first)
    features = tok.vision_features(picture(io))
    before, after = tok.causal_embeddings(features), other.causal_embeddings(features)
    assert torch.equal(before[:, :first], after[:, :first])
    assert (before[:, first:] != after[:, first:]).any(-1).all()
    a, b = tok.encode(picture(io)).data, other.encode(picture(io)).data
    assert torch.equal(a[:, :first], b[:, :first])
    if first < 31:
        assert not torch.equal(a[:, first:], b[:, first:])


@pytest.mark.parametrize("name", CASES)
def test_without_the_mask_they_do(loaded, name):
    tok, io = loaded[name]
    free = Seed(replace(tok.config, causal=False)).eval().requires_grad_(False)
    free.load_state_dict(tok.state_dict())
    features = tok.vision_features(picture(io))
    before, after = free.causal_embeddings(features), with_negated_queries(free, 7).causal_embeddings(features)
    assert float((before[:, :7] - after[:, :7]).abs().max()) > 1e-2
    assert float((before - io["causal_embeddings"]).abs().max()) > 1e-2, "the mask changes the public numbers"


# -- the contract ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_items_are_independent_and_small_ones_are_padded(loaded, name):
    tok, io = loaded[name]
    side = tok.config.image_size
    items = [picture(io)[0], picture(io)[1, :, : side - 3, : side // 2 + 1]]
    tokens = tok.encode(items)
    assert tokens.data.shape == (2, 32, 1)
    assert tokens.extent.tolist() == [[side, side], [side - 3, side // 2 + 1]]
    y = tok.decode(tokens)
    assert y.shape == (2, tok.config.features)
    for i, item in enumerate(items):
        alone = tok.encode(item[None])
        assert torch.equal(alone.data[0], tokens.data[i])
        close(tok.decode(alone)[0], y[i])
    edge = items[1][:, :, -1:].expand(-1, -1, side - items[1].shape[2])
    wide = torch.cat([items[1], edge], 2)
    full = torch.cat([wide, wide[:, -1:].expand(-1, 3, -1)], 1)
    assert torch.equal(tok.encode(full[None]).data[0], tokens.data[1])


@pytest.mark.parametrize("name", CASES)
def test_forward_gives_the_embedding(loaded, name):
    tok, io = loaded[name]
    close(tok(picture(io)), tok.decode_vectors(tok.quantizer(tok.encode_vectors(picture(io))).x))


@pytest.mark.parametrize("name", CASES)
def test_half_precision(parity, name):
    case = parity("seed", name)
    tok = zoo.load(case.folder, family="seed", dtype=torch.bfloat16)
    y = tok.decode(tokens_of(tok, case.io["codes"]))
    assert y.dtype == torch.bfloat16
    assert float(F.cosine_similarity(y.float(), case.io["generation_embedding"]).min()) > 0.99
    same = (tok.encode(picture(case.io)).data == zoo.load(case.folder, family="seed").encode(picture(case.io)).data).float()
    assert float(same.mean()) > 0.6


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_second_stage(loaded, name):
    trained, io = loaded[name]
    torch.manual_seed(0)
    tok = Seed(trained.config)
    tok.codebook_losses(picture(io), torch.ones(2, tok.config.features)).total.backward()
    frozen = re.compile(r"(vision|vision_norm|queries|qformer)\b")
    # A key's bias shifts all logits of a query alike, and the one reverse query can only look at itself: no gradient there.
    idle = re.compile(r"reverse_qformer\.blocks\.\d+\.(\w+\.key\.bias|attention\.(query|key)\.)")
    for key, parameter in tok.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        if not idle.match(key):
            assert reached != bool(frozen.match(key)), key


def test_gradients_reach_the_queries(loaded):
    trained, io = loaded["released_head"]
    tok = Seed(trained.config)
    tok.quantizer(tok.encode_vectors(picture(io))).x.square().sum().backward()
    assert bool((tok.queries.grad.abs().sum(-1) > 0).all())
    assert float(tok.vision.cls_token.grad.abs().sum()) > 0


# -- refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ({"tokens": 3}, "fixed layout"),
        ({"depth": 1}, "no residual levels"),
        ({"quality": 20.0}, "quality needs an ordered tokenizer"),
        ({"bits_per_pixel": 0.1}, "one rate only"),
        ({"sample": True}, "nothing to sample"),
    ],
)
def test_rates_it_does_not_have(loaded, rate, message):
    tok, io = loaded["released_head"]
    with pytest.raises(ValueError, match=rf"released_head\.encode: .*{message}"):
        tok.encode(picture(io), **rate)


def test_wrong_tokens_are_refused(loaded):
    tok, io = loaded["released_head"]
    tokens = tok.encode(picture(io))
    with pytest.raises(ValueError, match=r"7 positions\. Allowed: 32 for an item"):
        tok.decode(replace(tokens, data=tokens.data[:, :7]))
    with pytest.raises(ValueError, match=r"code 64 at depth 0 is outside 0\.\.63"):
        tok.decode(replace(tokens, data=tokens.data.clone().fill_(64)))
    with pytest.raises(ValueError, match=r"no option 'steps'\. It takes none"):
        tok.decode(tokens, steps=20)
    with pytest.raises(ValueError, match="tokens of 'released_head'"):
        loaded["reverse_qformer"][0].decode(tokens)


def test_wrong_pictures_are_refused(loaded):
    tok, io = loaded["released_head"]
    with pytest.raises(ValueError, match=r"x reaches from .* Allowed: \[-1, 1\]"):
        tok.encode(signal(io))
    with pytest.raises(ValueError, match="Allowed: up to 42; resize with preprocess"):
        tok.encode(torch.zeros(1, 3, 8, 43))


def test_an_embedding_is_no_picture(loaded):
    tok, io = loaded["released_head"]
    with pytest.raises(ValueError, match=r"released_head\.postprocess: decode\(\) gives embeddings"):
        tok.postprocess(tok(picture(io)))


def test_a_target_of_another_shape_is_refused(loaded):
    tok, io = loaded["released_head"]
    with pytest.raises(ValueError, match=r"codebook_losses: target has shape \(2, 23\)\. Needed: \(2, 24\)"):
        tok.codebook_losses(picture(io), torch.zeros(2, 23))


# -- configurations and files --------------------------------------------------------------------------------------------------


def test_defaults_are_the_public_sizes():
    assert Seed.from_public({"img_size": 224}, {}) == SeedConfig()
    assert int(SeedConfig().vision_width * SeedConfig().vision_mlp_ratio) == 6144


@pytest.mark.parametrize(("queries", "causal"), [(32, True), (31, False), (64, False)])
def test_public_models_are_causal_at_32_queries_only(queries, causal):
    assert Seed.from_public({"num_query_token": queries}, {}).causal is causal


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.json holds none of img_size"),
        ({"img_size": 224, "vit": [1]}, "vit in config.json is a list"),
        ({"img_size": 224, "recon_s": False}, r"recon_s=False in config.json\. Known: True"),
        ({"img_size": 224, "bert": {"hidden_act": "relu"}}, r"bert\.hidden_act='relu'"),
        ({"img_size": "large"}, "image_size='large'. Needed: int"),
    ],
)
def test_wrong_public_configurations_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Seed.from_public(config, {})


def test_unknown_keys_are_reported(caplog):
    with caplog.at_level(logging.WARNING):
        Seed.from_public({"img_size": 224, "_remark": 1, "vit": {"rope": True}, "new": 1}, {})
    assert re.search(r"not known and not used: (vit\.rope, new|new, vit\.rope)$", caplog.messages[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels=0. Allowed: at least 1"),
        ({"image_size": 225}, "image_size=225. Allowed: a multiple of patch"),
        ({"vision_width": 1400}, "vision_width=1400. Allowed: a multiple of vision_heads"),
        ({"heads": 7}, "width=768. Allowed: a multiple of heads"),
        ({"block_heads": 7}, "width=768. Allowed: a multiple of block_heads"),
        ({"vision_mlp_ratio": 0.0}, "vision_mlp_ratio=0.0"),
        ({"commitment_weight": -1.0}, "commitment_weight=-1.0"),
        ({"codebook_weight": -1.0}, "codebook_weight=-1.0"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SeedConfig.from_dict({**SeedConfig().to_dict(), **changes})


def folder_with(path, case, change):
    tensors = load_file(case.weights)
    change(tensors)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(case.config))
    return path


def test_the_text_side_and_an_idle_head_are_left_out(parity, tmp_path, loaded):
    case = parity("seed", "reverse_qformer")

    def add(tensors):
        layer = "Qformer.bert.encoder.layer.0"
        for key in ("word_embeddings.weight", "position_embeddings.weight"):
            tensors[f"Qformer.bert.embeddings.{key}"] = torch.ones(3, 36)
        for key in ("intermediate.dense.weight", "output.dense.weight", "output.LayerNorm.bias"):
            tensors[f"{layer}.{key}"] = torch.ones(3)
        for key in ("Qformer.cls.predictions.bias", "vision_proj.weight", "text_proj.bias", "itm_head.bias", "temp"):
            tensors[key] = torch.ones(3)
        tensors["image_down.0.weight"] = torch.ones(256, 36)

    tok = zoo.load(folder_with(tmp_path, case, add), family="seed")
    plain, io = loaded["reverse_qformer"]
    assert tok.state_dict().keys() == plain.state_dict().keys()
    close(tok.decode(tokens_of(tok, io["codes"])), io["generation_embedding"])


@pytest.mark.parametrize(("name", "found"), [("released_head", "linear layers"), ("reverse_qformer", "a reverse Q-Former")])
def test_the_other_head_is_named(parity, tmp_path, name, found):
    case = parity("seed", name)
    folder = folder_with(tmp_path, case, lambda tensors: None)
    (folder / "config.json").write_text(json.dumps({**case.config, "use_qformer_image": name == "released_head"}))
    with pytest.raises(ValueError, match=f"the head of this file is {found}.*use_qformer_image"):
        zoo.load(folder, family="seed")


def test_a_file_with_a_missing_or_foreign_tensor_never_half_loads(parity, tmp_path):
    def change(tensors):
        del tensors["Qformer.bert.encoder.layer.1.output_query.LayerNorm.bias"]
        tensors["foreign.weight"] = torch.ones(1)

    with pytest.raises(ValueError, match=r"(?s)qformer\.blocks\.1\.norm\.bias.*foreign\.weight"):
        zoo.load(folder_with(tmp_path, parity("seed", "released_head"), change), family="seed")
