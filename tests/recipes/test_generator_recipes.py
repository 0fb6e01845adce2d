"""The recipes of generators: each parses, builds for whatever its tokenizer makes, learns a tiny set, and resumes exactly."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import recipes.train
import zoo
from recipes.modules.generator import GeneratorRecipe
from recipes.train import export_tokenizer
from tests.recipes.killed import train_until_killed
from zoo import generators

CONFIGS = Path(recipes.train.__file__).parent / "configs"
RECIPE = "recipes.modules.generator.GeneratorRecipe"
NAMES = sorted(path.stem for path in CONFIGS.rglob("*_nano.yaml") if RECIPE in path.read_text())
CLASSES = 3
TOY = {
    "autoregressive": dict(width=16, depth_blocks=1, heads=2, hidden_multiple=8),
    "token_shuffle": dict(width=16, depth_blocks=1, heads=2, hidden_multiple=8),
    "resgen": dict(width=16, depth_blocks=1, heads=2, components=4, rank=2),
    "tokenbridge": dict(width=16, heads=2, encoder_depth=1, decoder_depth=1, head_width=16, head_depth=1, head_heads=2),
    "flowar": dict(width=16, heads=2, encoder_depth=1, decoder_depth=1, flow_width=16, flow_depth=1, flow_head=8),
    "xar": dict(width=16, heads=2, encoder_depth=1, decoder_depth=1),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve plain pictures in folders of three classes, each class of a colour of its own."""
    folder = tmp_path_factory.mktemp("classes")
    draws = np.random.default_rng(0)
    for i in range(12):
        base = np.zeros((4, 4, 3)) + np.eye(3)[i % CLASSES] * 180
        pixels = np.clip(base + draws.integers(0, 60, (4, 4, 3)), 0, 255).astype(np.uint8)
        place = folder / f"class{i % CLASSES}"
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(place / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory):
    """Name of a tokenizer, or a folder with random weights where it has none to ship."""
    folder = tmp_path_factory.mktemp("tokenizers")

    def give(name):
        if zoo.info(name).weights is not None:
            return name
        if not (folder / name).is_dir():
            torch.manual_seed(0)
            export_tokenizer(zoo.create(name), folder / name)
        return str(folder / name)

    return give


def toy_recipe(name, pictures, folder, tokenizer_of, *, every=2):
    """Write a recipe at toy size into `folder`."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    entry = generators.info(name)
    config["trainer"] |= {"default_root_dir": str(folder), "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(folder)
    config["trainer"]["callbacks"][0]["init_args"] |= {"dirpath": str(folder / "checkpoints"), "every_n_train_steps": every}
    tokenizer = tokenizer_of(entry.tokenizer)
    options = {"warmup_steps": 2, "learning_rate": 1e-2, "tokenizer": tokenizer}
    config["model"]["init_args"] |= {"overrides": {**TOY[entry.family], "classes": CLASSES, "dropout": 0.0}, **options}
    config["data"]["init_args"] |= {"train": str(pictures), "val": str(pictures), "tokenizer": tokenizer}
    config["data"]["init_args"] |= {"cache": str(folder.parent / "cache"), "views": 2, "batch_size": 4}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def losses(folder, column="train/loss"):
    with open(folder / "log" / "metrics.csv") as file:
        return {int(row["step"]): row[column] for row in csv.DictReader(file) if row.get(column)}


def test_every_recipe_trains_an_entry_on_its_tokenizer():
    assert len(NAMES) == 9
    for name in NAMES:
        text = (CONFIGS / f"{name}.yaml").read_text()
        for word in ("# Run:", "# Override:", "# Cost:", "# Data:"):
            assert word in text
        config = yaml.safe_load(text)
        assert config["model"]["init_args"]["generator"] == name
        assert config["data"]["init_args"]["tokenizer"] == generators.info(name).tokenizer
        assert config["trainer"]["default_root_dir"] == f"runs/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_set_is_learned(name, pictures, tmp_path, tokenizer_of):
    """The loss falls, validation runs, and the folder written at the end samples tokens that the tokenizer decodes."""
    folder = tmp_path / "run"
    folder.mkdir()
    path = toy_recipe(name, pictures, folder, tokenizer_of, every=30)
    steps = ["--trainer.max_steps", "30", "--trainer.val_check_interval", "3", "--trainer.check_val_every_n_epoch", "5"]
    assert recipes.train.main([str(path), *steps]) == 0
    found = [float(value) for _, value in sorted(losses(folder).items())]
    assert len(found) == 30
    assert np.mean(found[-5:]) < 0.97 * np.mean(found[:3])
    assert all(np.isfinite(float(value)) for value in losses(folder, "val/loss").values())
    assert losses(folder, "val/loss_without_class")
    gen, tok = generators.load(folder / "generator"), zoo.load(tokenizer_of(generators.info(name).tokenizer))
    assert gen.info.name == name
    options = {"steps": 2} if gen.family in ("flowar", "xar", "resgen", "tokenbridge") else {}
    out = gen.sample([0, 2], guidance=1.5, **options)
    assert tok.decode(out).shape == (2, 3, 64, 64)


def test_the_generator_is_built_for_what_the_tokenizer_makes():
    """A tokenizer with another number of tokens gives another generator, with nothing changed in the recipe."""
    toy = dict(
        vae_channels=[8, 8, 8, 8], vae_layers=1, vae_groups=4, encoder_width=32, encoder_depth=1, encoder_head=16, decoder_width=32,
        decoder_depth=2, decoder_head=16,
    )  # fmt: skip
    for registers in (8, 48):
        tok = zoo.create("flextok_nano", info_name="flextok_nano", registers=registers, **toy).eval()
        recipe = GeneratorRecipe("flextok_ar_nano", tokenizer=tok, overrides=TOY["autoregressive"])
        assert recipe.generator.config.positions == (registers,)
        assert recipe.generator.spec == tok.spec


def test_codebooks_and_values_come_from_the_tokenizer():
    torch.manual_seed(0)
    tok = zoo.create("rvq_nano", info_name="rvq_nano").eval()
    gen = GeneratorRecipe("resgen_nano", tokenizer=tok, overrides=TOY["resgen"]).generator
    assert all(torch.equal(book, tok.quantizer.layer(j).codebook) for j, book in enumerate(gen.books))
    shallow = GeneratorRecipe("resgen_nano", tokenizer=tok, depth=2, overrides=TOY["resgen"]).generator
    assert shallow.config.depth == 2
    with pytest.raises(ValueError, match="Needed: residual codebooks"):
        GeneratorRecipe("resgen", tokenizer="kl_vae_nano")
    bridge = zoo.create("tokenbridge_nano", centre=(0.5,), spread=(2.0,), reach=2.5).eval()
    config = GeneratorRecipe("tokenbridge_ar_nano", tokenizer=bridge, overrides=TOY["tokenbridge"]).generator.config
    assert (config.centre, config.spread, config.reach) == ((0.5,), (2.0,), 2.5)
    embedded = GeneratorRecipe("tokenbridge_ar_nano", tokenizer=tok, overrides={**TOY["tokenbridge"], "order": None})
    assert embedded.generator.config.embed_codes


def test_a_family_needs_a_tokenizer():
    with pytest.raises(ValueError, match="Give tokenizer="):
        GeneratorRecipe("autoregressive")


@pytest.mark.parametrize("name", ["flextok_ar_nano", "flowar_nano"])
def test_resume_after_kill_is_exact(name, pictures, tmp_path, tokenizer_of):
    """Killed with SIGKILL in mid-epoch, started again: losses after the checkpoint and the weights equal an uninterrupted run's."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    paths = {}
    for folder in (whole, broken):
        folder.mkdir()
        paths[folder] = toy_recipe(name, pictures, folder, tokenizer_of)
    steps = ["--trainer.max_steps", "8"]
    assert recipes.train.main([str(paths[whole]), *steps]) == 0
    expected = losses(whole)
    train_until_killed(str(paths[broken]), *steps)
    assert recipes.train.main([str(paths[broken]), *steps]) == 0
    got = losses(broken)
    assert {s: got[s] for s in (4, 5, 6, 7)} == {s: expected[s] for s in (4, 5, 6, 7)}
    a, b = (generators.load(folder / "generator").state_dict() for folder in (whole, broken))
    assert all(torch.equal(a[key], b[key]) for key in a)
