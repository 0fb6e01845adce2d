"""The papers' recipes of generators: what they say is what was published, their sizes are counted, and they step at toy width."""

from pathlib import Path

import pytest
import torch
import yaml

import recipes.train
import zoo
from recipes.train import export_tokenizer
from tests.recipes.test_generator_recipes import RECIPE, TOY, losses, pictures  # noqa: F401 - a fixture
from zoo import generators

CONFIGS = Path(recipes.train.__file__).parent / "configs"
PICTURES = 1_281_167  # of ImageNet-1k
NANO = {
    "mar_kl16": "kl_vae_nano",
    "tokenbridge_kl16": "tokenbridge_nano",
    "elm_bae_20bit": "bae_nano",
    "flextok_d18_d28_in1k": "flextok_nano",
}
TOYS = {**TOY, "elm": dict(width=16, depth_blocks=1, heads=2, hidden_multiple=8)}
# Batch, epochs, epochs of warm-up, rate, betas, decay, clipping, millions of numbers (for the last only those of its blocks).
PUBLISHED = {
    "xar_b_in1k": (2048, 800, 100, 4e-4, (0.9, 0.96), 0.02, 1.0, 172.6),
    "flowar_s_in1k": (2048, 400, 100, 4e-4, (0.9, 0.95), 0.02, 3.0, 171.7),
    "tokenbridge_l_in1k": (2048, 400, 100, 4e-4, (0.9, 0.95), 0.02, 3.0, 486.9),
    "elm_l_2x10_in1k": (256, 400, 0, 1e-4, (0.9, 0.95), 0.05, 1.0, 315.6),
    "autoregressive_d12_flextok": (1024, 300, 30, 1.2e-3, (0.9, 0.95), 0.05, 1.0, 85.0),
}


def read(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def test_the_list_is_whole():
    names = {path.stem for path in CONFIGS.rglob("*.yaml") if RECIPE in path.read_text()}
    assert {name for name in names if not name.endswith("_nano")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_those_published(name):
    batch, epochs, warm, rate, betas, decay, clip, millions = PUBLISHED[name]
    config, text = read(name), (CONFIGS / f"{name}.yaml").read_text()
    options, trainer = config["model"]["init_args"], config["trainer"]
    for word in ("# Run:", "# Override:", "# Cost:", "# Source:", "# Data:", f"{batch:,}"):
        assert word in text
    assert trainer["max_steps"] == pytest.approx(epochs * PICTURES / batch, rel=2e-3)
    assert options["warmup_steps"] == pytest.approx(max(1, warm * PICTURES / batch), rel=2e-3)
    assert (options["learning_rate"], tuple(options["betas"]), options["weight_decay"]) == (rate, betas, decay)
    assert trainer["gradient_clip_val"] == clip
    assert options["generator"] == name
    assert config["data"]["init_args"]["tokenizer"] == generators.info(name).tokenizer
    with torch.device("meta"):
        gen = generators.create(name)
    blocks = name.endswith("_flextok")
    counted = [p for p in gen.trunk.parameters() if p.ndim > 1] if blocks else list(gen.parameters())
    assert sum(p.numel() for p in counted) / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory):
    """A nano tokenizer of the same kind, with random weights where none ship."""

    def give(name):
        nano = NANO[name]
        if zoo.info(nano).weights is not None:
            return nano
        torch.manual_seed(0)
        return str(export_tokenizer(zoo.create(nano), tmp_path_factory.mktemp("tokenizer") / nano))

    return give


@pytest.mark.parametrize("name", PUBLISHED)
def test_two_steps_at_toy_width(name, pictures, tmp_path, small_tokenizer):  # noqa: F811 - the fixture
    config, entry = read(name), generators.info(name)
    tokenizer = small_tokenizer(entry.tokenizer)
    config["trainer"] |= {"default_root_dir": str(tmp_path), "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    config["trainer"] |= {"max_steps": 2, "precision": "32-true", "val_check_interval": 1}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path)
    config["trainer"]["callbacks"][0]["init_args"] |= {"dirpath": str(tmp_path / "checkpoints")}
    overrides = {**TOYS[entry.family], "classes": 3, **({"side": 4} if entry.family == "xar" else {})}
    config["model"]["init_args"] |= {"overrides": overrides, "tokenizer": tokenizer}
    paths = {"train": str(pictures), "val": str(pictures), "tokenizer": tokenizer, "cache": str(tmp_path / "cache")}
    config["data"]["init_args"] |= {**paths, "views": 1, "batch_size": 4}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    assert recipes.train.main([str(path), "--trainer.check_val_every_n_epoch", "1"]) == 0
    assert len(losses(tmp_path)) == 2
    assert generators.load(tmp_path / "generator").info.name == name
