"""The clip recipe: stills and clips through the same weights, every family, what the losses see, and what it refuses."""

from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as lightning
import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import recipes.train
import zoo
from recipes.modules.adversarial import Adversary
from recipes.modules.clips import ClipRecipe, frames_of

TOY = {
    "vidtok_fsq_causal_488_4096": dict(width=8, multipliers=(1, 1, 1, 2), blocks=1, image_size=16),
    "vidtok_kl_causal_488_4chn": dict(width=8, multipliers=(1, 1, 1, 2), blocks=1, image_size=16),
    "cosmos_dv4x8x8": dict(width=8, multipliers=(1, 2, 2), decoder_multipliers=(1, 2), blocks=1, z_channels=4, image_size=16),
    "cvivit_webvid10m": dict(
        width=16, codebook_size=16, codebook_channels=4, image_size=(16, 16), patch=4, spatial_depth=1, temporal_depth=1, heads=2,
        head=8,
    ),
}  # fmt: skip


CONFIGS = Path(recipes.train.__file__).parent / "configs"
NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml") if "ClipRecipe" in path.read_text())
FAMILIES = {zoo.info(name).family: toy for name, toy in TOY.items()}


class Batch(NamedTuple):
    clips: Tensor
    stills: Tensor


def batches(count):
    draws = torch.Generator().manual_seed(3)

    def smooth(b):
        return F.interpolate(torch.rand(b, 3, 4, 4, generator=draws) * 2 - 1, (16, 16), mode="bilinear")

    made = []
    for _ in range(count):
        start = smooth(2)
        made.append(Batch(torch.stack([start.roll(t, dims=-1) for t in range(5)], 2), smooth(3)))
    return made


def recipe(name, **options):
    torch.manual_seed(0)
    options = {"overrides": TOY[name], "feature_weight": 0.0, "weight_decay": 0.0, "warmup_steps": 1, **options}
    return ClipRecipe(name, **options)


def fit(module, steps, data=None):
    losses = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    loader = DataLoader(dataset=data or batches(steps), batch_size=None, num_workers=0)
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Watch()],
    )  # fmt: skip
    trainer.fit(module, loader)
    return losses


@pytest.mark.parametrize("name", TOY)
def test_every_family_learns_from_clips_and_stills(name):
    data = batches(1) * 24
    module = recipe(name, learning_rate=3e-3)
    losses = fit(module, 24, data)
    assert losses[-1]["train/clips/pixel"] < 0.9 * losses[0]["train/clips/pixel"]
    assert losses[-1]["train/stills/pixel"] < losses[3]["train/stills/pixel"]


def test_stills_come_every_so_many_steps():
    losses = fit(recipe("cvivit_webvid10m", stills_every=3), 4)
    assert ["train/stills/loss" in step for step in losses] == [False, False, True, True]
    losses = fit(recipe("cvivit_webvid10m", stills_every=None), 4)
    assert not any("train/stills/loss" in step for step in losses)


def test_the_discriminator_sees_single_frames():
    module = recipe("cvivit_webvid10m", adversary=Adversary(width=8, layers=1, norm="group", start=1))
    seen = []
    module.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    losses = fit(module, 4)
    assert "train/clips/adversarial" not in losses[0]
    assert {"train/clips/adversarial", "train/stills/discriminator"} <= set(losses[3])
    assert set(seen) == {(10, 3, 16, 16), (3, 3, 16, 16)}


def test_networks_of_the_loss_see_some_frames_and_pixels_all():
    module = recipe("cvivit_webvid10m", frames_shown=2, adversary=Adversary(width=8, layers=1, norm="group", start=1))
    seen, chosen = [], []
    module.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    draw = module._draw_frames
    module._draw_frames = lambda x, step: chosen.append(draw(x, step)) or chosen[-1]
    fit(module, 4)
    assert set(seen) == {(4, 3, 16, 16), (3, 3, 16, 16)}
    clips, stills = chosen[:3], chosen[3]
    assert stills is None
    for numbers in clips:  # two of the five frames of the first clip, then two of the second
        assert numbers.shape == (4,)
        assert len(numbers.unique()) == 4
        assert (numbers // 5).tolist() == [0, 0, 1, 1]
    assert len({tuple(numbers.tolist()) for numbers in clips}) > 1

    module.adversary = Adversary(width=8, layers=1, norm="group", adaptive=False)
    x = batches(1)[0].clips
    module._shown = torch.tensor([1, 7])
    y = (x + 0.1).requires_grad_()
    pull, _ = module.pull(x, y, 0)
    extra = (pull - 1 / x.numel()).transpose(1, 2).flatten(0, 1).abs().amax((1, 2, 3))  # beside the pull of the pixels
    assert (extra > 1e-6).nonzero().flatten().tolist() == [1, 7]


def test_the_pull_is_that_of_the_frames_in_their_places():
    module = recipe("cvivit_webvid10m")
    x = batches(1)[0].clips
    y = (x + 0.1 * torch.arange(5).view(1, 1, 5, 1, 1)).requires_grad_()
    pull, values = module.pull(x, y, 0)
    (expected,) = torch.autograd.grad((y - x).abs().mean(), y)
    assert pull.shape == x.shape
    torch.testing.assert_close(pull, expected)
    torch.testing.assert_close(values["pixel"], (y - x).abs().mean().detach())
    torch.testing.assert_close(frames_of(x)[1], x[0, :, 1])


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_steps_at_toy_size_and_resumes(name, tmp_path):
    """The YAML as it is, but for widths, data and length; its own tokenizer comes out, and a second start goes on."""
    config = yaml.safe_load((CONFIGS / name).read_text())
    config["trainer"] |= {"default_root_dir": str(tmp_path), "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    config["trainer"] |= {"max_steps": 4, "val_check_interval": 1}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path)
    config["trainer"]["callbacks"][0]["init_args"] |= {"dirpath": str(tmp_path / "checkpoints"), "every_n_train_steps": 2}
    model = config["model"]["init_args"]
    toy = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in FAMILIES[zoo.info(model["tokenizer"]).family].items()
    }
    model["overrides"] = toy
    model["adversary"] |= {"start": 1, "width": 8, "layers": 1, "norm": "group"}
    stills = {"stills": "samples"} if "stills" in config["data"]["init_args"] else {}
    config["data"]["init_args"] = {"train": "samples", "val": "samples", "frames": 5, "size": 16, "batch_size": 1, **stills}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    assert recipes.train.main([str(path), "--trainer.max_steps", "2"]) == 0
    assert recipes.train.main([str(path)]) == 0
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert state["global_step"] == 4
    tok = zoo.load(tmp_path / "tokenizer")
    assert tok.family == zoo.info(model["tokenizer"]).family
    assert tok.decode(tok.encode(torch.zeros(1, 3, 5, 16, 16))).shape == (1, 3, 5, 16, 16)


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"rvq_nano is of the family 'rqvae'. Allowed: cosmos, cvivit, vidtok"):
        ClipRecipe("rvq_nano")
    with pytest.raises(ValueError, match="stills_every=1"):
        ClipRecipe("cvivit_webvid10m", overrides=TOY["cvivit_webvid10m"], stills_every=1)
    with pytest.raises(ValueError, match="frames_shown=0"):
        ClipRecipe("cvivit_webvid10m", overrides=TOY["cvivit_webvid10m"], frames_shown=0)
    bare = [Batch(batch.clips, batch.stills[:0]) for batch in batches(4)]
    with pytest.raises(ValueError, match="stills_every=4, but the batch holds no still pictures"):
        fit(recipe("cvivit_webvid10m"), 4, bare)
