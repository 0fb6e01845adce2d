"""Every entry: its size on the meta device, its tokenizer, its listing, and the way its public file is read."""

import math
import re

import pytest
import torch

import zoo
import zoo.generators as generators
from zoo import samples
from zoo.generators.loading import family_class
from zoo.registry import UnknownNameError

NAMES = generators.list_models()
PUBLISHED = {  # millions, as counted from the public code or printed beside the weights
    "xar_b_in1k": 172.6,
    "xar_l_in1k": 608.4,
    "xar_h_in1k": 1186,
    "flowar_s_in1k": 171.7,
    "flowar_l_in1k": 586.9,
    "flowar_h_in1k": 1913,
    "tokenbridge_l_in1k": 486,
    "tokenbridge_h_in1k": 910,
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module", params=NAMES)
def built(request):
    with torch.device("meta"):
        return generators.create(request.param)


def test_sizes_on_the_meta_device(built):
    assert all(parameter.is_meta for parameter in built.parameters())
    assert count(built) == built.info.parameters
    if built.info.name in PUBLISHED:
        assert built.info.parameters / 1e6 == pytest.approx(PUBLISHED[built.info.name], rel=2e-3)


def test_flextok_sizes_are_those_of_the_paper():
    """12 x depth x width^2 in the blocks: 49M, 85M, 201M, 393M, 679M and 1.33B."""
    millions = {10: 49, 12: 85, 16: 201, 20: 393, 24: 679, 30: 1327}
    for depth, needed in millions.items():
        with torch.device("meta"):
            gen = generators.create(f"autoregressive_d{depth}_flextok")
        assert sum(p.numel() for p in gen.trunk.parameters() if p.ndim > 1) / 1e6 == pytest.approx(needed, abs=0.6)


def test_tokens_are_those_of_the_tokenizer(built):
    """Vocabulary, channels and positions are what the tokenizer's entry says."""
    if built.info.tokenizer == "mar_kl16":  # MAR's autoencoder as it stands, without TokenBridge's rounding
        info = zoo.info("tokenbridge_kl16")
        assert built.config.channels == info.depth
    elif built.info.tokenizer == "flextok_grid":  # its weights and name were not published when this was written; same codes
        info = zoo.info("flextok_d18_d28_dfn")
        assert built.spec.vocabulary == info.vocabulary
        assert not built.spec.ordered
    else:
        info = zoo.info(built.info.tokenizer)
        assert built.spec.vocabulary == info.vocabulary
        assert built.spec.ordered == info.ordered
        assert built.spec.residual == info.residual
    assert built.config.count == info.tokens
    assert built.config.extent == info.native_size


def test_entries_say_where_they_come_from():
    for entry in generators.find():
        assert entry.summary.endswith(".")
        assert "arXiv" in entry.paper
        if entry.weights is None:
            continue
        if entry.weights.repo is None:  # ours, in the package
            assert None not in (entry.weights.sha256, entry.trained_on, entry.license_weights)
        else:
            assert entry.weights.layout == "public"
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{7}", entry.source)
            assert entry.license_weights or entry.notice


def test_listing():
    assert generators.list_models("xar*_in1k") == ["xar_b_in1k", "xar_h_in1k", "xar_l_in1k"]
    assert {entry.family for entry in generators.find(tokenizer="tokenbridge_kl16")} == {"tokenbridge"}
    with pytest.raises(UnknownNameError, match="Closest: xar_b_in1k"):
        generators.info("xar_b")
    with pytest.raises(ValueError, match="no field 'size'"):
        generators.find(size=3)
    with pytest.raises(ValueError, match="no published weights"):
        generators.load("autoregressive_d12_flextok")
    with pytest.raises(ValueError, match="of the family 'xar'"):
        generators.load("xar_b_in1k", family="elm")


CASES = [
    ("xar", "xar", "base_like", None),
    ("flowar", "flowar", "large_like", None),
    ("elm", "elm", "ar_2x5", None),
    ("elm", "elm", "mlm_1x6", None),
    ("tokenbridge", "tokenbridge", "ar_dim_head", "model_ema"),
]


@pytest.mark.parametrize(("family", "folder", "name", "key"), CASES)
def test_a_public_pickle_loads_by_name(family, folder, name, key, parity, tmp_path, monkeypatch):
    """The way from an entry to weights, with the file of the fixture in the place and form of the public one."""
    from safetensors.torch import load_file

    case = parity(folder, name)
    tensors = load_file(case.weights)
    cls = family_class(family)
    config = cls.from_public(case.config, {k: tuple(v.shape) for k, v in tensors.items()})
    if key == "model_ema":  # the average holds parameters only
        tensors = {k: v for k, v in tensors.items() if k not in ("channel_mask", "reconstruction_values", "boundaries")}
    path = tmp_path / "file.pth"
    torch.save({key: tensors, "epoch": 3} if key else tensors, path)
    shipped = next(entry for entry in generators.find(family=family) if entry.weights and entry.weights.key == key)
    entry = type(shipped)(name="small", family=family, summary="", config=config.to_dict(), weights=shipped.weights)
    monkeypatch.setattr("zoo.hub.fetch", lambda *args, **kwargs: path)
    monkeypatch.setattr("zoo.generators.registry._shipped", lambda: {"small": entry})
    loaded = generators.load("small")
    direct = generators.load(case.folder, family=family)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), direct.state_dict().values(), strict=True))


def test_folders_that_say_too_little(parity, tmp_path):
    with pytest.raises(ValueError, match="Say which family reads it"):
        generators.load(parity("xar", "base_like").folder)
    with pytest.raises(ValueError, match="family='vae' is unknown"):
        generators.load(parity("xar", "base_like").folder, family="vae")
    with pytest.raises(ValueError, match="not of the family flowar"):
        generators.load(parity("elm", "ar_2x5").folder, family="flowar")
    with pytest.raises(ValueError, match="no folder"):
        generators.load(tmp_path / "nothing", family="xar")
    with pytest.raises(TypeError, match="source is a int"):
        generators.load(3)


def test_create_asks_for_what_is_missing():
    with pytest.raises(ValueError, match="Give tokens="):
        generators.create("autoregressive")
    with pytest.raises(ValueError, match="unknown key 'widht'"):
        generators.create("xar", widht=3)


def test_bind(made_codes):
    gen = generators.create("autoregressive", tokens=made_codes((16, 16), (64,) * 16), width=8, depth_blocks=1, heads=2)
    with torch.device("meta"):
        tok, other = zoo.create("tokenbridge_kl16"), zoo.create("elm_bae_20bit")
    assert gen.bind(tok).spec == tok.spec
    with pytest.raises(ValueError, match="vocabulary"):
        gen.bind(other)


def test_an_entry_follows_its_tokenizer():
    """Layout of the tokens that an entry leaves open is that of the tokenizer's entry."""
    info = zoo.info("flextok_nano")
    for name in ("flextok_ar_nano", "xar_nano"):
        assert "positions" not in generators.info(name).config
    assert generators.create("flextok_ar_nano").config.positions == (info.tokens,)
    gen = generators.create("xar_nano")
    assert gen.config.positions == (8, 8)
    assert gen.config.channels == zoo.info("kl_vae_nano").channels


def test_create_for_a_tokenizer():
    tok = zoo.create("flextok_nano", registers=16).eval()
    gen = generators.create_for("flextok_ar_nano", tok, width=24, heads=2, depth_blocks=1)
    assert gen.config.positions == (16,)
    assert gen.spec == tok.spec
    assert (gen.info.name, gen.info.config["width"]) == ("flextok_ar_nano", 24)
    with pytest.raises(ValueError, match="channels"):
        generators.create_for("xar", tok)
    with torch.device("meta"):
        sound = zoo.create("mimi_24khz")
    with pytest.raises(ValueError, match=r"create\(name, tokens=\.\.\.\)"):
        generators.create_for("autoregressive", sound)


def test_the_shipped_generator_knows_the_codes_of_real_pictures_and_which_class_is_dark():
    """A uniform guess takes log(64000) nats a code; the samples are none of the pictures it was trained on."""
    gen = generators.load("flextok_ar_nano")
    tok = zoo.load("flextok_nano")
    tokens = tok.encode(tok.preprocess(samples.images()))
    uniform = math.log(tok.info.codebook_size)
    assert float(gen.loss(tokens, None)) < 0.9 * uniform
    dark, light = (tok.decode(gen.sample(condition=label, n=4, seed=0).keep(8), seed=0).mean() for label in (7, 6))
    assert dark < light - 0.3
