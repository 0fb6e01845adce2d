"""FlexAR against tensors of the public implementation (tests/parity/flexar/*/README.md), its text, and how its files are read."""

import functools
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import zoo
import zoo.generators as generators
import zoo.hub
from tests import hub_server
from zoo.generators.text import TextCondition, TextTower
from zoo.tokens import Tokens

TEXTS = ["a red apple on the tree", "two boats"]


def close(a, b, tolerance=1e-4):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.fixture
def text(parity):
    return parity("flexar", "text")


@pytest.fixture
def by_text(text):
    gen = generators.load(text.folder, family="flexar")
    return gen.use_text_tower(TextTower.load(text.folder / "tower"))


@pytest.fixture
def classes(parity):
    return parity("flexar", "class_grid")


@pytest.fixture
def by_class(classes):
    return generators.load(classes.folder, family="flexar")


def copy_of(case, folder, change=None):
    """The public folder with a changed config.yaml."""
    folder.mkdir()
    config = yaml.safe_load((case.folder / "config.yaml").read_text())
    if change is not None:
        change(config["model"]["meta_model"]["models"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "model.safetensors").write_bytes((case.folder / "model.safetensors").read_bytes())
    return folder


# -- the public implementation -----------------------------------------------------------------------------------------------


def test_the_text_tower_gives_the_public_embeddings(by_text, text):
    io, made = text.io, by_text.encode_text(TEXTS)
    longest = made.embeddings.shape[1]
    assert torch.equal(made.known, io["text_mask"][:, :longest])
    assert not bool(io["text_mask"][:, longest:].any())
    close(made.embeddings[made.known], io["text_embeddings"][io["text_mask"]], 1e-5)
    close(by_text.no_text(1).embeddings, io["null_embeddings"], 1e-5)
    close(by_text.text_projection(made.embeddings)[made.known], io["text_projected"][io["text_mask"]], 1e-5)


def test_scores_with_text(by_text, text):
    io = text.io
    steps, seen = io["ids"][..., None], TextCondition(io["text_embeddings"], io["text_mask"])
    close(by_text.predict(steps, seen)[0], io["logits"])
    close(by_text.predict(steps, by_text.encode_text(TEXTS))[0], io["logits"])
    close(by_text.predict(steps, by_text.no_text(2))[0], io["logits_null"])


def test_scores_with_a_class(by_class, classes):
    io = classes.io
    steps = io["ids"][..., None]
    close(by_class.predict(steps, io["labels"])[0], io["logits"])
    close(by_class.predict(steps, torch.full((2,), by_class.null))[0], io["logits_null"])


@pytest.mark.parametrize("cache", [True, False])
def test_the_likeliest_codes_under_guidance(by_text, text, by_class, classes, cache):
    made = by_text.sample(TEXTS, guidance=2.0, temperature=0.0, cache=cache)
    assert torch.equal(made.data[..., 0], text.io["greedy_cfg2"])
    made = by_class.sample(classes.io["labels"], guidance=2.0, temperature=0.0, cache=cache)
    assert torch.equal(made.data.flatten(1), classes.io["greedy_cfg2"])


def test_the_released_loop_guides_by_class_0(by_class, classes):
    """After its first code; the fixture holds both, and what we do is not that."""
    io = classes.io
    codes = io["greedy_cfg2_released"][..., None]
    conditional = by_class.predict(codes, io["labels"])[0]
    zero, null = (by_class.predict(codes, torch.full((2,), label))[0] for label in (0, by_class.null))
    guided = torch.cat([null[:, :1], zero[:, 1:]], 1)
    assert torch.equal((guided + 2 * (conditional - guided)).argmax(-1), io["greedy_cfg2_released"])
    assert not torch.equal(io["greedy_cfg2_released"], io["greedy_cfg2"])


def test_what_the_files_say(by_text, by_class):
    config = by_text.config
    assert (config.tokenizer, config.positions, config.ordered, config.vocabulary) == ("flextok_d18_d28_dfn", (9,), True, (40,))
    assert (config.text_width, config.text_encoder, config.text_length) == (6, "google/flan-t5-xl", 8)
    assert (config.classes, config.label_dropout, config.heads, config.norm, config.eps) == (0, 0.1, 4, "rms", 1e-5)
    config = by_class.config
    assert (config.tokenizer, config.positions, config.ordered, config.classes) == ("flextok_grid", (3, 3), False, 5)
    assert (config.norm, config.norm_bias, config.eps, config.qk_norm, config.qk_eps) == ("layer", True, 1e-3, "rms", 1e-6)
    assert (config.scale, config.bias, config.score_norm, config.score_bias, config.final_norm) == (0.3, True, True, True, False)


# -- sampling --------------------------------------------------------------------------------------------------------------------


def test_same_codes_with_and_without_cache_at_any_length(by_text):
    whole = by_text.sample(TEXTS, seed=3, guidance=3.0)
    assert torch.equal(by_text.sample(TEXTS, seed=3, guidance=3.0, cache=False).data, whole.data)
    for k in (1, 4, 9):
        short = by_text.sample(TEXTS, seed=3, guidance=3.0, tokens=k)
        assert torch.equal(short.data, whole.data[:, :k])
        assert short.spec.ordered
    assert not torch.equal(by_text.sample(TEXTS[::-1], seed=3, guidance=3.0).data, whole.data)


def test_a_text_does_not_depend_on_its_neighbours(by_text):
    together = by_text.sample(TEXTS, seed=[4, 5], guidance=2.0)
    for i, (text, seed) in enumerate(zip(TEXTS, (4, 5), strict=True)):
        assert torch.equal(by_text.sample(text, seed=[seed], guidance=2.0).data, together[i].data)


def test_the_text_is_read_once(by_text):
    """Keys of the text are made once for all steps, and the null text once for all calls."""
    reads, encoded = [], []
    for block in by_text.trunk.layers:
        block.cross.wk.register_forward_hook(lambda *_: reads.append(1))
    by_text._tower.model.register_forward_hook(lambda *_: encoded.append(1))
    by_text.sample(TEXTS, guidance=2.0)
    assert (len(reads), len(encoded)) == (by_text.config.depth_blocks, 2)
    by_text.sample(TEXTS, guidance=2.0)
    assert len(encoded) == 3


def test_embeddings_without_a_tower(text, by_text):
    gen, words = generators.load(text.folder, family="flexar"), by_text.encode_text(TEXTS)
    gen.use_empty_text(text.io["null_embeddings"])
    same = gen.sample(words, seed=2, guidance=2.0)
    assert torch.equal(same.data, by_text.sample(TEXTS, seed=2, guidance=2.0).data)
    assert torch.equal(gen.sample(words.embeddings, seed=2, guidance=2.0).data, same.data)
    silent = torch.zeros_like(words.embeddings)
    assert torch.equal(gen.sample(silent, seed=2).data, gen.sample(n=2, seed=2).data)
    with pytest.raises(ValueError, match=r"one real row"):
        gen.use_empty_text(torch.zeros(1, 1, 6))


def test_loss_with_text(by_text, text):
    gen, io = by_text, text.io
    tokens = Tokens(io["ids"][..., None], gen.spec, (256, 256))
    needed = torch.nn.functional.cross_entropy(io["logits"].flatten(0, 1), io["ids"].flatten())
    close(gen.loss(tokens, TEXTS), needed)
    needed = torch.nn.functional.cross_entropy(io["logits_null"].flatten(0, 1), io["ids"].flatten())
    close(gen.loss(tokens, None), needed)
    close(gen.loss(tokens, ""), needed)
    each = torch.nn.functional.cross_entropy(io["logits"].transpose(1, 2), io["ids"], reduction="none").sum(1)
    close(gen.nats(tokens, TEXTS), each, 1e-3)


@pytest.mark.slow
def test_the_cache_pays(made_codes):
    """At least three times at 128 codes with 40 words of text, and the codes are equal."""
    tokens = made_codes((128,), (512,), ordered=True)
    sizes = dict(width=192, depth_blocks=4, heads=3, text_width=32, text_hidden=32, classes=0)
    gen = generators.create("flexar", tokens=tokens, **sizes).eval()
    for parameter in gen.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    gen.use_empty_text(torch.ones(1, 1, 32))
    words, seconds, made = torch.ones(2, 40, 32), {True: [], False: []}, {}
    for cache in (True, False, True, False):
        start = time.perf_counter()
        made[cache] = gen.sample(words, seed=1, guidance=3.0, cache=cache).data
        seconds[cache].append(time.perf_counter() - start)
    assert torch.equal(made[True], made[False])
    assert min(seconds[False]) >= 3 * min(seconds[True])


# -- files -----------------------------------------------------------------------------------------------------------------------


def test_our_own_folder(by_text, tmp_path):
    generators.save(by_text, tmp_path / "ours")
    again = generators.load(tmp_path / "ours")
    assert again.config == by_text.config
    again.use_text_tower(by_text._tower)
    assert torch.equal(again.sample(TEXTS, seed=1).data, by_text.sample(TEXTS, seed=1).data)


def test_the_tokenizers_and_towers_tensors_are_left_out(text, tmp_path):
    folder = copy_of(text, tmp_path / "more")
    tensors = load_file(folder / "model.safetensors")
    extra = {"models.image_tokenizer.flextok_model.x": torch.ones(1), "models.text_encoder.t5_embedder.model.y": torch.ones(1)}
    save_file({**tensors, **extra}, folder / "model.safetensors")
    generators.load(folder, family="flexar")


def test_separate_projections(classes, by_class, tmp_path):
    """The library's other attention keeps queries, keys and values apart; it knows no scale."""
    def change(parts):
        attention = parts["ar_image_model"]["trunk"]["attn_target"]
        attention["_target_"] = "l3m.model.layers.attention.GenericAttention"
        del attention["qk_scale"]

    folder = copy_of(classes, tmp_path / "apart", change)
    tensors = {}
    for key, value in load_file(folder / "model.safetensors").items():
        if ".attn.qkv." in key:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                tensors[key.replace("qkv", f"{name}_proj")] = part.clone()
        else:
            tensors[key] = value
    save_file(tensors, folder / "model.safetensors")
    gen = generators.load(folder, family="flexar")
    assert all(torch.equal(a, b) for a, b in zip(gen.state_dict().values(), by_class.state_dict().values(), strict=True))
    assert gen.config.scale is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda parts: parts["ar_image_model"]["trunk"].update(_target_="os.system"), "trunk in config.yaml is system"),
        (lambda parts: parts["ar_image_model"]["head"].update(_target_="x.MLP"), "knows: LinearClassifier"),
        (lambda parts: parts["ar_image_model"]["trunk"]["ffn_target"].update(_target_="x.GeGELU"), "SwiGLUFFN"),
        (lambda parts: parts["ar_image_model"]["trunk"]["self_attn_target"].update(is_causal=False), "is_causal=False"),
        (lambda parts: parts["ar_image_model"]["trunk"]["self_attn_target"].update(rope_pos_embed=3), "rope_pos_embed=3"),
        (lambda parts: parts["ar_image_model"]["trunk"]["cross_attn_target"].update(num_heads=2), "num_heads"),
        (lambda parts: parts["ar_image_model"]["trunk"]["norm_layer"].update(_target_="x.BatchNorm"), "RMSNorm, LayerNormFP32"),
        (lambda parts: parts["text_encoder"]["mlp"]["act_layer"].update(_target_="torch.nn.SiLU"), "GELU"),
        (lambda parts: parts.pop("ar_image_model"), "not of the family flexar"),
    ],
)
def test_a_strange_configuration_is_refused(text, tmp_path, change, says):
    with pytest.raises(ValueError, match=says):
        generators.load(copy_of(text, tmp_path / "strange", change), family="flexar")


def test_folders_without_a_usable_configuration(text, tmp_path):
    folder = copy_of(text, tmp_path / "bare")
    (folder / "config.yaml").write_text("model: [")
    with pytest.raises(ValueError, match="is not YAML"):
        generators.load(folder, family="flexar")
    (folder / "config.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="holds a list"):
        generators.load(folder, family="flexar")
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"neither config\.yaml nor config\.json"):
        generators.load(folder, family="flexar")


# -- entries ---------------------------------------------------------------------------------------------------------------------


def test_sizes_are_those_published():
    """16 x depth x width^2 with attention to text, 12 without; tables, norms and the text's layers are counted apart."""
    for name, millions in (
        ("flexar_113m_t2i", 113),
        ("flexar_382m_t2i", 382),
        ("flexar_1b_t2i", 1174),  # 1152 but for the gated layer, rounded up to a multiple of 256
        ("flexar_3b_t2i", 3058),
        ("gridar_3b_t2i", 3058),
        ("flexar_1b_c2i", 1327),
    ):
        with torch.device("meta"):
            gen = generators.create(name)
        assert sum(p.numel() for p in gen.trunk.parameters() if p.ndim > 1) / 1e6 == pytest.approx(millions, abs=0.5)
        config = gen.config
        rest = 2 * 64000 * config.width + (256 + 1) * config.width + config.classes * config.width
        rest += 0 if config.text_width is None else 2048 * 2048 + 2048 * config.width
        norms = ((2 if config.text_width is None else 3) * config.depth_blocks + 1) * config.width
        matrices = sum(p.numel() for p in gen.trunk.parameters() if p.ndim > 1)
        assert sum(p.numel() for p in gen.parameters()) == matrices + rest + norms


@pytest.mark.parametrize(("name", "case"), [("flexar_113m_t2i", "text"), ("flexar_1b_c2i", "class_grid")])
def test_load_by_name(name, case, parity, monkeypatch, caplog):
    """From the entry to weights, with the fixture in the place of the repository: what its files say wins over the entry."""
    folder, asked = parity("flexar", case).folder, []

    def fetch(repo, filename, **options):
        asked.append((repo, filename))
        return folder / filename

    monkeypatch.setattr("zoo.hub.fetch", fetch)
    gen = generators.load(name)
    repo = generators.info(name).weights.repo
    assert set(asked) == {(repo, "model.safetensors"), (repo, "config.yaml")}
    assert gen.config == generators.load(folder, family="flexar").config
    assert gen.info.name == name
    assert gen.info.license_weights == "Apache-2.0"
    assert "width: 24 (catalog:" in caplog.text


def test_load_from_a_repository(text, by_text, tmp_path, monkeypatch):
    """Named by its repository: config.yaml and the weights come from one commit, over HTTP."""
    with hub_server.HubServer() as server:
        options = {"endpoint": server.url, "cache_dir": tmp_path / "cache", "token": False}
        for name in ("fetch", "fetch_folder"):
            monkeypatch.setattr(f"zoo.hub.{name}", functools.partial(getattr(zoo.hub, name), **options))
        files = ("config.yaml", "model.safetensors")
        server.add_commit("acme/flexar-nano", {file: (text.folder / file).read_bytes() for file in files})
        gen = generators.load("acme/flexar-nano", family="flexar")
    assert gen.config == by_text.config
    assert gen.info.name == "flexar_nano"


def test_the_codes_are_those_of_the_tokenizer():
    for name in ("flexar_3b_t2i", "flexar_1b_c2i"):
        with torch.device("meta"):
            gen, tok = generators.create(name), zoo.create(generators.info(name).tokenizer)
        assert gen.bind(tok).spec == tok.spec
