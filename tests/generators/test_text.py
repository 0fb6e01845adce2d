"""Text as a condition: the tower from folders and repositories, and every family that takes text."""

import functools
import json
import logging

import pytest
import torch

import zoo.generators as generators
import zoo.hub
from tests import hub_server
from tests.generators import text_tower
from zoo.generators.text import TextCondition, TextTower

WIDTH, LONGEST = text_tower.WIDTH, text_tower.LONGEST
TEXTS = ["a red apple", "two boats on the tree", ""]
FAMILIES = {
    "autoregressive": "autoregressive_line",
    "autoregressive_delay": "autoregressive_delay",
    "autoregressive_mixture": "autoregressive_mixture",
    "token_shuffle": "token_shuffle",
    "cvivit": "cvivit",
    "flexar": "flexar_line",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return text_tower.write_tower(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def tower(folder):
    return TextTower.load(folder)


@pytest.fixture(params=FAMILIES)
def by_text(request, all_small, tower):
    """A small generator that takes text, every parameter random, with its tower, tokens and options."""
    small = all_small[FAMILIES[request.param]]
    config = {**small.config, "text_width": WIDTH, "classes": 0}
    gen = generators.create(small.family, tokens=small.tokens(b=3), **config)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * (0.4 if parameter.ndim > 1 else 0.1))
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return gen.eval().use_text_tower(tower), small


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


# -- the tower ---------------------------------------------------------------------------------------------------------------------


def test_a_text_is_embedded_as_it_would_be_alone(tower):
    together = tower.encode(TEXTS)
    assert together.embeddings.shape == (3, 6, WIDTH)
    assert together.known.sum(1).tolist() == [4, 6, 1]
    assert not bool(together.embeddings[~together.known].any())
    for i, text in enumerate(TEXTS):
        alone = tower.encode([text])
        torch.testing.assert_close(alone.embeddings[0], together.embeddings[i][together.known[i]], rtol=0, atol=1e-5)


def test_the_tower_is_the_encoder_of_the_library(tower, folder):
    from transformers import AutoTokenizer, T5EncoderModel

    ids = AutoTokenizer.from_pretrained(folder)("a red apple", return_tensors="pt")["input_ids"]
    assert ids[0, -1] == 1  # the end of a text
    with torch.no_grad():
        needed = T5EncoderModel.from_pretrained(folder).eval()(ids).last_hidden_state
    torch.testing.assert_close(tower.encode(["a red apple"]).embeddings, needed)


def test_a_long_text_is_cut_with_a_warning(tower, caplog):
    with caplog.at_level(logging.WARNING):
        made = tower.encode(["a red apple", "a " * 30])
    assert made.known.sum(1).tolist() == [4, LONGEST]
    assert f"text 1 has 31 tokens; only the first {LONGEST} are used" in caplog.text
    assert tower.encode(["a red apple"], length=2).known.sum() == 2


def test_a_tower_from_a_repository(folder, tower, tmp_path, monkeypatch):
    """From the Hub: one file of weights or several, only what is needed, and no pickle."""
    several = text_tower.write_tower(tmp_path / "several", shards=True)
    with hub_server.HubServer() as server:
        here = functools.partial(zoo.hub.fetch, endpoint=server.url, cache_dir=tmp_path / "cache", token=False)
        monkeypatch.setattr("zoo.hub.fetch", here)
        for name, source in (("acme/one", folder), ("acme/several", several)):
            files = {path.name: path.read_bytes() for path in source.iterdir()}
            server.add_commit(name, {**files, "pytorch_model.bin": b"a pickle", "README.md": b"words"})
            made = TextTower.load(name)
            assert torch.equal(made.encode(TEXTS).embeddings, tower.encode(TEXTS).embeddings)
        assert not any("pytorch_model" in seen.path for seen in server.log)


def test_towers_that_are_refused(tower, tmp_path, folder):
    with pytest.raises(ValueError, match=r"no config\.json"):
        TextTower.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"model_type 'llama'\. Known: t5, umt5"):
        TextTower.load(tmp_path)
    with pytest.raises(ValueError, match="neither an existing folder nor a Hub repository"):
        TextTower.load("flan-t5")
    with pytest.raises(ValueError, match="a list of at least one text"):
        tower.encode("a red apple")
    with pytest.raises(ValueError, match="a list of at least one text"):
        tower.encode([])
    with pytest.raises(TypeError, match="texts holds 3"):
        tower.encode(["a", 3])

    class Silent:
        pad_token_id = None

    with pytest.raises(ValueError, match="no padding token"):
        TextTower(tower.model, Silent())


def test_conditions_that_are_refused():
    good = torch.ones(2, 3, WIDTH)
    for embeddings, mask, says in (
        (good.long(), None, "torch.int64"),
        (good[0], None, "shape"),
        (good[:, :0], None, "m at least 1"),
        (good * torch.inf, None, "not finite"),
        (good, torch.ones(2, 3), "Needed: bool"),
        (good, torch.ones(2, 2, dtype=torch.bool), "Needed: bool"),
        ("a red apple", None, "is a str"),
    ):
        with pytest.raises(ValueError, match=says):
            TextCondition(embeddings, mask)


# -- generators --------------------------------------------------------------------------------------------------------------------


def test_text_tells_in_the_loss_and_in_samples(by_text):
    gen, small = by_text
    tokens = small.tokens(b=3)
    loss = gen.loss(tokens, TEXTS)
    assert bool(loss.isfinite())
    assert not torch.equal(loss, gen.loss(tokens, TEXTS[::-1]))
    assert not torch.equal(loss, gen.loss(tokens))
    torch.testing.assert_close(gen.loss(tokens, gen.encode_text(TEXTS)), loss)
    torch.testing.assert_close(gen.loss(tokens, "two boats"), gen.loss(tokens, ["two boats"] * 3))
    made = [gen.sample("two boats", n=3, seed=1, guidance=g, **small.options).data for g in (1.0, 4.0)]
    assert not torch.equal(*made)
    gen.sample(TEXTS, **small.options).check_codes()
    assert len(gen.sample("a red apple", **small.options)) == 1


def test_items_are_apart(by_text):
    gen, small = by_text
    together = gen.sample(TEXTS, seed=[1, 2, 3], guidance=1.5, **small.options)
    for i, text in enumerate(TEXTS):
        alone = gen.sample(text, seed=[i + 1], guidance=1.5, **small.options)
        assert torch.equal(alone.data[0], together.data[i])


def test_padding_is_not_seen(by_text):
    gen, small = by_text
    tokens, words = small.tokens(b=3), gen.encode_text(TEXTS)
    noise = torch.randn(3, 4, WIDTH, generator=draws())
    padded = TextCondition(torch.cat([words.embeddings, noise], 1), torch.nn.functional.pad(words.known, (0, 4)))
    torch.testing.assert_close(gen.loss(tokens, padded), gen.loss(tokens, words), rtol=0, atol=1e-5)


def test_an_item_without_words_has_no_condition(by_text):
    gen, small = by_text
    tokens = small.tokens(b=3)
    torch.testing.assert_close(gen.loss(tokens, torch.zeros(3, 4, WIDTH)), gen.loss(tokens))
    torch.testing.assert_close(gen.loss(tokens, torch.zeros(1, 4, WIDTH)), gen.loss(tokens))


def test_training_reaches_every_parameter_and_leaves_text_out(by_text):
    gen, small = by_text
    gen.train()
    sum(gen.loss(small.tokens(b=3), TEXTS, generator=draws(seed)) for seed in range(8)).backward()
    assert [name for name, p in gen.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []
    for module in gen.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    object.__setattr__(gen.config, "label_dropout", 0.999999)
    tokens = small.tokens(b=3)
    assert torch.equal(gen.loss(tokens, TEXTS, generator=draws(3)), gen.loss(tokens, TEXTS[::-1], generator=draws(3)))


def test_a_text_learned_by_heart(all_small, tower):
    """Trained on two items with a text each, the likeliest codes of a text are those of its item."""
    small = all_small["autoregressive_line"]
    torch.manual_seed(0)
    tokens, sizes = small.tokens(b=2), {"width": 32, "dropout": 0.0, "label_dropout": 0.0}
    gen = generators.create("autoregressive", tokens=tokens, **{**small.config, **sizes, "text_width": WIDTH, "classes": 0})
    gen.use_text_tower(tower).train()
    words = gen.encode_text(["a red apple", "two boats"])
    optimizer = torch.optim.AdamW(gen.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(80):
        loss = gen.loss(tokens, words, generator=draws(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made = gen.eval().sample(["two boats", "a red apple"], temperature=0.0)
    assert torch.equal(made.data, tokens.data.flip(0))


def test_cache_and_type(by_text):
    gen, small = by_text
    if small.family != "cvivit":
        same = [gen.sample(TEXTS, seed=2, guidance=2.0, cache=cache, **small.options).data for cache in (True, False)]
        assert torch.equal(*same)
    gen.to(torch.bfloat16).sample(TEXTS, guidance=2.0, **small.options).check_codes()


def test_save_and_load(by_text, tower, tmp_path):
    """The tower is no part of what is saved; a configuration may name it."""
    gen, small = by_text
    again = generators.load(generators.save(gen, tmp_path / "folder"))
    with pytest.raises(ValueError, match="no tower is known"):
        again.sample("a red apple")
    again.use_text_tower(tower)
    assert torch.equal(again.sample(TEXTS, seed=1, **small.options).data, gen.sample(TEXTS, seed=1, **small.options).data)


def test_the_tower_that_a_configuration_names_is_loaded_with_the_first_text(all_small, folder, monkeypatch):
    small, loads = all_small["flexar_line"], []
    plain = TextTower.load
    monkeypatch.setattr(TextTower, "load", lambda *args, **options: loads.append(args) or plain(*args, **options))
    config = {**small.config, "text_width": WIDTH, "classes": 0, "text_encoder": str(folder), "text_length": 3}
    gen = generators.create("flexar", tokens=small.tokens(), **config).eval()
    assert loads == []
    gen.sample("a red apple under the tree")
    gen.sample("two boats", guidance=2.0)
    assert len(loads) == 1
    assert gen.encode_text("a red apple under the tree").known.sum() == 3


def test_refusals(by_text, all_small, tower):
    gen, small = by_text
    name = gen.info.name
    for condition, says in (
        (3, f"{name}.sample: condition is a int. Needed: text"),
        ([1, 2], "condition is a list"),
        (["a", 2], "condition is a list"),
        (torch.tensor([1, 2]), "int64 tensor"),
        (torch.ones(1, 2, WIDTH + 1), rf"Needed: \(1 or 1, words, {WIDTH}\)"),
        (torch.ones(2, WIDTH), "has shape"),
        (torch.ones(1, 2, WIDTH) * torch.nan, "not finite"),
        (TextCondition(torch.ones(1, 2, WIDTH + 1)), "embeddings of shape"),
    ):
        n = 1 if not isinstance(condition, list) else None
        with pytest.raises(ValueError, match=says):
            gen.sample(condition, n=n)
    with pytest.raises(ValueError, match=r"holds 2 texts\. Needed: one text, or one for each of 3"):
        gen.loss(small.tokens(b=3), ["a", "two"])
    classes = all_small["autoregressive_line"].build()
    with pytest.raises(ValueError, match="one class, or one for each of 1"):
        classes.sample("a red apple")
    with pytest.raises(ValueError, match="one class, or one for each of 2"):
        classes.sample(["a red apple", "two boats"])
    with pytest.raises(ValueError, match=r"takes no text. Its condition is a class of 0\.\.4"):
        classes.use_text_tower(tower)
    with pytest.raises(ValueError, match="takes no text"):
        classes.encode_text("a red apple")


def test_configurations_that_are_refused(all_small, tower, tmp_path):
    small = all_small["autoregressive_line"]
    for changes, says in (
        ({"text_width": WIDTH}, "0 with text_width"),
        ({"text_width": 0, "classes": 0}, "text_width"),
        ({"text_encoder": "google/flan-t5-xl"}, "None without text_width"),
        ({"text_length": 0}, "text_length"),
    ):
        with pytest.raises(ValueError, match=says):
            generators.create("autoregressive", tokens=small.tokens(), **{"classes": 5, **small.config, **changes})
    gen = generators.create("autoregressive", tokens=small.tokens(), **{**small.config, "text_width": WIDTH + 1, "classes": 0})
    with pytest.raises(ValueError, match=f"embeddings of {WIDTH}. Needed: {WIDTH + 1}"):
        gen.use_text_tower(tower)
    with pytest.raises(ValueError, match="unknown key 'text_width'"):
        generators.create("xar", tokens=all_small["xar_cell"].tokens(), text_width=WIDTH)
