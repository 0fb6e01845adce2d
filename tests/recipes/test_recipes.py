"""Every recipe parses, builds and steps; the nano recipes start where they should and resume exactly."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import recipes.train
import zoo
from recipes.data.latents import LatentBatch
from recipes.modules.flextok import FlexTokRecipe
from recipes.train import export_tokenizer
from tests.recipes.killed import train_until_killed
from zoo.layers.flow import draw_noise_levels
from zoo.layers.maskgit_vqgan import MaskGITDecoder, MaskGITEncoder
from zoo.transforms.nested_dropout import draw_keep

CONFIGS = Path(recipes.train.__file__).parent / "configs"
# Recipes of generators are tested in test_generator_recipes.py.
TOKENIZERS = [path for path in CONFIGS.rglob("*.yaml") if "GeneratorRecipe" not in path.read_text()]
NAMES = sorted(path.relative_to(CONFIGS).as_posix() for path in TOKENIZERS)
ELSEWHERE = ("AudioCodecRecipe", "ClipRecipe")  # stepped in test_audio_recipe.py and test_clip_recipe.py
PICTURES = [name for name in NAMES if not any(recipe in (CONFIGS / name).read_text() for recipe in ELSEWHERE)]
CNN = dict(width=8, multipliers=[1, 2, 2], blocks=1, norm_groups=4, image_size=32)
TOY = {
    "flextok": dict(
        vae_channels=[8, 8, 8, 8], vae_layers=1, vae_groups=4, grid=2, registers=8, encoder_width=32, encoder_depth=1,
        encoder_head=16, decoder_width=32, decoder_depth=2, decoder_head=16,
    ),
    "autoencoder_kl": dict(block_channels=[8, 8, 8, 8], layers_per_block=1, norm_groups=4),
    "rqvae": dict(CNN, codebook_sizes=[16, 16, 16, 16], latent_channels=8, z_channels=8, attention_sides=[8]),
    "ibq": dict(CNN, codebook_size=16, latent_channels=8, z_channels=8, attention_sides=[8]),
    "open_magvit2": dict(CNN, bits=6),
    "tokenbridge": dict(CNN, latent_channels=4, encoder_attention=[2]),
    "titok": dict(
        image_size=32, patch=4, latent_tokens=6, channels=4, codebook_size=16, encoder_width=16, encoder_depth=1, encoder_heads=2,
        decoder_width=16, decoder_depth=1, decoder_heads=2, proxy_codes=16, proxy_channels=8, pixel_width=32,
        pixel_multipliers=[1, 1, 1], pixel_blocks=1,
    ),
    "seed": dict(
        image_size=32, patch=8, vision_width=16, vision_depth=1, vision_heads=2, queries=4, width=24, depth=2, heads=2,
        mlp_width=32, channels=4, codebook_size=16, block_depth=1, block_heads=2, features=1280,
    ),
    "dc_ae": dict(
        latent_channels=4, block_channels=[8, 16, 16], conv_resolutions=2, head_width=8, image_size=32, encoder_layers=[1, 1, 1],
        decoder_layers=[1, 1, 1], attention_kernels=[0, 0, 5], decoder_norms=["rms_norm"] * 3, decoder_activations=["silu"] * 3,
    ),
    "elm": dict(CNN, bits=6, splits=[3, 3], latent_channels=8, decoder_blocks=1, attention_sides=[8]),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve smooth colour pictures, their latents' front end being whatever the recipe says."""
    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    for i in range(12):
        small = Image.fromarray(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return folder


def test_every_recipe_is_found():
    assert len(PICTURES) == 37, "a recipe came or went: set the count, and see that it is stepped below"


@pytest.mark.parametrize("name", NAMES)
def test_header_and_size(name):
    text = (CONFIGS / name).read_text()
    for word in ("# Run:", "# Override:", "# Data:"):
        assert word in text
    tokenizer = yaml.safe_load(text)["model"]["init_args"]["tokenizer"]
    named = {"flextok_nano_32": "flextok_nano"}.get(Path(name).stem, Path(name).stem)  # what the other one starts from
    assert named == tokenizer, "a recipe is named after what it trains"
    with torch.device("meta"):
        tok = zoo.create(tokenizer)
    assert sum(value.numel() for value in tok.state_dict().values()) == zoo.info(tokenizer).parameters


def toy_proxy(folder, in_zoo):
    """A tokenizer whose codes TiTok's first stage names: a folder of the zoo, or a file of the public layout."""
    torch.manual_seed(0)
    if in_zoo:
        return export_tokenizer(zoo.create("rvq_nano", info_name="rvq_nano", **TOY["rqvae"]), folder / "proxy")
    sizes = dict(channels=8, width=32, multipliers=(1, 1, 1), blocks=1)
    parts = {"encoder": MaskGITEncoder(**sizes), "decoder": MaskGITDecoder(**sizes), "quantize.embedding": nn.Embedding(16, 8)}
    tensors = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    path = folder / "maskgit.safetensors"
    save_file(tensors, path)
    return path


def toy_recipe(name, pictures, folder):
    """Write a recipe at toy size on ImageDataModule into `folder`."""
    config = yaml.safe_load((CONFIGS / name).read_text())
    tokenizer = config["model"]["init_args"]["tokenizer"]
    toy = TOY[zoo.info(tokenizer).family]
    config["trainer"] |= {"default_root_dir": str(folder), "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(folder)
    config["trainer"]["callbacks"][0]["init_args"]["dirpath"] = str(folder / "checkpoints")
    config["model"]["init_args"] |= {"overrides": dict(toy)}
    if config["model"]["init_args"].get("adversary"):
        config["model"]["init_args"]["adversary"] |= {"start": 1, "width": 8, "layers": 1}
    if config["model"]["init_args"].get("proxy"):
        in_zoo = config["model"]["init_args"]["proxy"] in zoo.list_models()
        config["model"]["init_args"] |= {"pixel_start": 1, "proxy": str(toy_proxy(folder, in_zoo))}
    if config["model"]["init_args"].get("codebook_start"):
        config["model"]["init_args"]["codebook_start"] = 1
    if str(config["model"]["init_args"].get("target")).startswith("timm:"):
        config["model"]["init_args"] |= {"target": "efficientnet_lite0", "init": None}
    if config["model"]["init_args"].get("init"):
        config["model"]["init_args"]["init"] = None
    if "vae" in config["model"]["init_args"]:
        config["model"]["init_args"]["vae"] = None
    if "alignment_network" in config["model"]["init_args"]:
        config["model"]["init_args"] |= {"alignment_network": "efficientnet_lite0", "alignment_channels": 112}
    config["data"] = {
        "class_path": "recipes.data.images.ImageDataModule",
        "init_args": {"train": str(pictures), "val": str(pictures), "size": 32, "batch_size": 4},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(name, pictures, folder, *overrides):
    """Run a recipe at toy size in this process; gives the logged rows."""
    path = toy_recipe(name, pictures, folder)
    assert recipes.train.main([str(path), *overrides]) == 0
    with open(folder / "log" / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row.get("train/loss")]


@pytest.mark.parametrize("name", PICTURES)
def test_two_steps_at_toy_width(name, pictures, tmp_path):
    rows = run(name, pictures, tmp_path, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    assert [int(row["step"]) for row in rows] == [0, 1]
    assert all(np.isfinite(float(row["train/loss"])) for row in rows)
    tok = zoo.load(tmp_path / "tokenizer")
    x = torch.zeros(1, 3, 32, 32)
    assert tok.decode(tok.encode(x)).shape == ((1, tok.config.features) if tok.family == "seed" else x.shape)


def test_first_flow_loss_is_what_the_zero_heads_leave(monkeypatch):
    """The heads start at zero, so the first loss is the mean square of noise - latents, with the noise of seed, rank and step."""
    recipe = FlexTokRecipe("flextok_nano", overrides=TOY["flextok"], seed=3)
    monkeypatch.setattr(FlexTokRecipe, "global_rank", 0)
    monkeypatch.setattr(FlexTokRecipe, "global_step", 7)
    logged = {}
    recipe.log_scores = lambda stage, values, batch_size: logged.update(values)
    latents = torch.randn(4, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    loss = recipe.training_step(LatentBatch(latents, torch.zeros(4, 3, 32, 32), torch.zeros(4), torch.arange(4)), 0)
    config, draws = recipe.tokenizer.config, recipe.draws()
    draw_keep(4, config.registers, sampling=config.keep_sampling, generator=draws)
    torch.rand(4, generator=draws)
    draw_noise_levels(4, schedule=config.noise_schedule, mode_scale=config.mode_scale, generator=draws)
    noise = torch.randn(latents.shape, generator=draws)
    assert float(loss.detach()) == pytest.approx(float((noise - latents).square().mean()), rel=1e-5)
    assert float(logged["flow"].detach()) == pytest.approx(float(loss.detach()))


def test_a_longer_flextok_starts_from_a_shorter_one(tmp_path):
    """The registers that were there keep their codes; the new ones are near copies, and no two alike."""
    short = FlexTokRecipe("flextok_nano", overrides=TOY["flextok"])
    torch.nn.init.normal_(short.tokenizer.encoder.registers)
    export_tokenizer(short.tokenizer, tmp_path / "short")
    recipe = FlexTokRecipe("flextok_nano", overrides=TOY["flextok"] | {"registers": 12}, init=str(tmp_path / "short"))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes, before = (r.tokenizer.eval().encode(x).data for r in (recipe, short))
    assert codes.shape[1] == 12
    assert torch.equal(codes[:, :8], before)
    registers = recipe.tokenizer.encoder.registers.detach()
    assert (torch.cdist(registers[8:], registers).argmin(1) == torch.arange(8, 12)).all()
    apart = torch.cdist(registers[8:], registers[:8])
    assert (apart.argmin(1) == torch.arange(4)).all()
    assert (apart.min(1).values > 0).all()


@pytest.mark.parametrize("name", ["flextok_nano", "rvq_nano", "titok_nano"])
def test_resume_after_kill_is_exact(name, pictures, tmp_path):
    """Killed with SIGKILL in mid-epoch, started again: the losses after the checkpoint equal an uninterrupted run's."""
    steps = ["--trainer.max_steps", "8"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    config = CONFIGS / f"{name}.yaml"
    text = config.read_text().replace("every_n_train_steps: 250", "every_n_train_steps: 2")
    every_two = tmp_path / f"{name}.yaml"
    every_two.write_text(text)
    expected = {int(r["step"]): r["train/loss"] for r in run(every_two, pictures, whole, *steps)}
    path = toy_recipe(every_two, pictures, broken)
    train_until_killed(str(path), *steps, fresh=name == "flextok_nano")
    rows = run(every_two, pictures, broken, *steps)
    got = {int(r["step"]): r["train/loss"] for r in rows}
    assert set(got) >= {4, 5, 6, 7}
    assert {s: got[s] for s in (4, 5, 6, 7)} == {s: expected[s] for s in (4, 5, 6, 7)}


GAMES, UNUSED = ("rvq_nano", "titok_nano", "seed_nano"), "ddp_find_unused_parameters_true"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), [("flextok_nano", "ddp"), *((name, UNUSED) for name in GAMES)])
def test_two_processes_train_together(name, strategy, pictures, tmp_path):
    """DDP on two gloo processes by Lightning's own flags: a tokenizer comes out."""
    path = toy_recipe(f"{name}.yaml", pictures, tmp_path)
    flags = ["--trainer.max_steps", "2", "--trainer.devices", "2", "--trainer.strategy", strategy]
    flags += ["--trainer.val_check_interval", "1"]
    command = [str(Path(sys.executable).with_name("zoo")), "train", str(path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    tok = zoo.load(tmp_path / "tokenizer")
    y = tok.decode(tok.encode(torch.zeros(1, 3, 32, 32)))
    assert y.shape == ((1, tok.config.features) if tok.info.family == "seed" else (1, 3, 32, 32))
    assert bool(y.isfinite().all())
