"""The codec recipe: each YAML at toy size, resuming after a kill, which side moves when, the written loss, the libraries' codes."""

import csv
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as lightning
import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch.utils.data import DataLoader

import recipes.train
import zoo
from recipes.data.sounds import SoundBatch
from recipes.modules.audio_codec import AudioCodecRecipe, SoundAdversary
from recipes.modules.hearing_losses import LoudnessLoss, StructureLoss
from tests.recipes.killed import train_until_killed
from zoo.layers.pieces import run

CONFIGS = Path(recipes.train.__file__).parent / "configs"
NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml") if "AudioCodecRecipe" in path.read_text())
RATE = 2000
PATCH = dict(sample_rate=RATE, strides=[4, 5], widths=[8, 12], latent_channels=4, codebook_size=16)
TOY = {
    "audio_rvq_nano": dict(PATCH, num_codebooks=4),
    "audio_fsq_nano": dict(PATCH, num_codebooks=1, codebook_size=60, levels=[5, 4, 3]),
    "encodec_24khz": dict(
        sample_rate=RATE, width=4, strides=[5, 4], latent_channels=8, num_codebooks=4, codebook_size=16, lstm_layers=1
    ),
    **{
        f"dac_{rate}": dict(
            sample_rate=RATE, encoder_channels=4, strides=[2, 5], latent_channels=8, decoder_channels=16, num_codebooks=4,
            codebook_size=16, codebook_channels=4,
        )
        for rate in ("16khz", "24khz", "44khz_8kbps")
    },
}  # fmt: skip
SMALL_GAME = dict(spectrum_windows=[64], spectrum_width=4, periods=[2, 3], period_widths=[4, 4])


def speech(count, seconds, seed=0):
    """Voiced noise: harmonics of a gliding tone, louder and softer, `(count, 1, s)`."""
    draws = torch.Generator().manual_seed(seed)
    t = torch.arange(int(seconds * RATE)) / RATE
    pitch = 80 + 60 * torch.rand(count, 1, generator=draws) * (1 + 0.3 * torch.sin(2 * torch.pi * 2 * t))
    phase = 2 * torch.pi * torch.cumsum(pitch / RATE, 1)
    tones = sum(torch.sin(k * phase) / k for k in range(1, 6))
    return (0.15 * tones * (0.6 + 0.4 * torch.sin(2 * torch.pi * 3 * t)))[:, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    for i, x in enumerate(speech(12, 0.9)):
        soundfile.write(folder / f"{i:02d}.wav", x[0].numpy(), RATE)
    return folder


# -- the YAML files ----------------------------------------------------------------------------------------------------------------


def toy_recipe(name, folder, out):
    """Write a recipe at toy size into `out`."""
    config = yaml.safe_load((CONFIGS / name).read_text())
    config["trainer"] |= {"default_root_dir": str(out), "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(out)
    config["trainer"]["callbacks"][0]["init_args"] |= {"dirpath": str(out / "checkpoints"), "every_n_train_steps": 2}
    model = config["model"]["init_args"]
    game = model.get("adversary") or {}
    model["overrides"] = TOY[model["tokenizer"]]
    model["mel"] = (model.get("mel") or {}) | {"windows": [32, 128], "bands": [4, 8]}
    model["quantizer_start"] = min(1, model.get("quantizer_start", 0))
    if model.get("depths"):
        model["depths"] = [1, 2, 4]
    for kind, small in (("spectrum_windows", [64]), ("periods", [2]), ("band_windows", [64])):
        if game.get(kind):
            game[kind] = small
    if game:
        game |= {"samples": 500 if game.get("samples") else None, "start": min(1, game.get("start", 0)), "lead": 0}
        game |= {"period_widths": [4, 4], "spectrum_width": 4, "band_width": 4}
    config["data"]["init_args"] |= dict(
        train=str(folder), val=str(folder), sample_rate=RATE, seconds=0.4, seconds_val=0.5, batch_size=4, num_workers=0, limit_val=4
    )
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def train(path, out, *overrides):
    """Run a recipe in this process; gives the logged rows of training and of validation."""
    assert recipes.train.main([str(path), *overrides]) == 0
    with open(out / "log" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return [[row for row in rows if row.get(key)] for key in ("train/loss", "val/mel_distance")]


def test_every_codec_recipe_is_found():
    assert [Path(name).stem for name in NAMES] == sorted(TOY)


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_at_toy_width(name, folder, tmp_path):
    path = toy_recipe(name, folder, tmp_path)
    rows, validations = train(path, tmp_path, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    assert [int(row["step"]) for row in rows] == [0, 1]
    assert all(np.isfinite(float(row["train/loss"])) for row in rows)
    config = yaml.safe_load((CONFIGS / name).read_text())["model"]["init_args"]
    joined = {part: bool(rows[1].get(f"train/{part}")) for part in ("discriminator", "loudness", "structure")}
    parts = ("adversary", "loudness_weight", "structure_weight")
    assert list(joined.values()) == [bool(config.get(part)) for part in parts], joined
    logged = {key for key, value in validations[-1].items() if value}
    assert {"val/mel_distance", "val/si_sdr_db", "val/perplexity"} <= logged
    tok = zoo.load(tmp_path / "tokenizer")
    if tok.info.residual:
        assert {"val/si_sdr_db_d2", "val/used_fraction_4", "val/perplexity_1"} <= logged
    x = speech(2, 0.4)[..., :777]
    assert tok.decode(tok.encode(x)).shape == x.shape


@pytest.mark.parametrize("name", ["audio_rvq_nano.yaml", "encodec_24khz.yaml"])
def test_resume_after_kill_is_exact(name, folder, tmp_path):
    """Killed in mid-epoch, started again: the losses after the checkpoint, balance included, equal an uninterrupted run's."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for out in (whole, broken):
        out.mkdir()
    steps = ["--trainer.max_steps", "8"]
    expected = {int(r["step"]): r for r in train(toy_recipe(name, folder, whole), whole, *steps)[0]}
    path = toy_recipe(name, folder, broken)
    train_until_killed(str(path), *steps)
    got = {int(r["step"]): r for r in train(path, broken, *steps)[0]}
    for step in (4, 5, 6, 7):
        for key in ("train/loss", "train/discriminator", "train/gradient_mel", "train/quantizer"):
            assert got[step][key] == expected[step][key], (step, key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audio_rvq_nano.yaml", "dac_16khz.yaml"])
def test_two_processes_train_together(name, folder, tmp_path):
    """DDP on two gloo processes: a tokenizer comes out, and both processes balanced alike (their weights stayed equal)."""
    path = toy_recipe(name, folder, tmp_path)
    flags = ["--trainer.max_steps", "3", "--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_true"]
    command = [str(Path(sys.executable).with_name("zoo")), "train", str(path), *flags, "--trainer.val_check_interval", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    tok = zoo.load(tmp_path / "tokenizer")
    assert bool(tok.decode(tok.encode(speech(1, 0.4))).isfinite().all())


# -- the recipe itself -------------------------------------------------------------------------------------------------------------


def recipe(name="audio_rvq_nano", **options):
    torch.manual_seed(0)
    options = dict(
        adversary=SoundAdversary(**SMALL_GAME), overrides=TOY[name], weight_decay=0.0, warmup_steps=1, learning_rate=2e-3
    ) | options  # fmt: skip
    return AudioCodecRecipe(name, **options)


def batches(count, size=4):
    return [SoundBatch(speech(size, 0.4, seed), torch.full((size,), 800), torch.arange(size)) for seed in range(count)]


def fit(module, steps, *, callbacks=(), data=None, **options):
    loader = DataLoader(dataset=data or batches(steps), batch_size=None, num_workers=0)
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, loader)
    return trainer


class Watch(lightning.Callback):
    """Which parts moved in each batch, and at what rate."""

    def __init__(self):
        self.moved, self.rates = [], []

    def _snapshot(self, module):
        parts = {"tokenizer": module.tokenizer, "discriminator": module.discriminator}
        return {name: torch.cat([p.detach().flatten() for p in part.parameters()]) for name, part in parts.items()}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before = self._snapshot(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now = self._snapshot(module)
        self.moved.append({part for part, value in now.items() if not torch.equal(value, self.before[part])})
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_each_optimizer_moves_its_side_at_its_steps():
    watch = Watch()
    module = recipe(adversary=SoundAdversary(**SMALL_GAME, start=2, every=2), rate_decay=0.5)
    trainer = fit(module, 5, callbacks=[watch])
    both = {"tokenizer", "discriminator"}
    assert watch.moved == [{"tokenizer"}, {"tokenizer"}, both, {"tokenizer"}, both]
    assert trainer.global_step == 5
    assert watch.rates == pytest.approx([2e-3 * 0.5**step for step in range(5)])


def test_discriminators_learn_before_they_are_heard():
    module, logged = recipe(adversary=SoundAdversary(**SMALL_GAME, start=1, lead=2)), []
    module.log_scores = lambda stage, values, batch_size: logged.append(set(values))
    fit(module, 5)
    assert ["discriminator" in names for names in logged] == [False, True, True, True, True]
    assert ["adversarial" in names for names in logged] == [False, False, False, True, True]


def test_bfloat16_trains():
    module, losses = recipe(), []
    module.log_scores = lambda stage, values, batch_size: losses.append(float(values["loss"]))
    fit(module, 3, precision="bf16-mixed")
    assert np.isfinite(losses).all()
    assert all(p.dtype == torch.float32 for p in module.parameters())


def test_without_balance_the_gradient_is_that_of_the_written_loss():
    """Gradients at the sound, weighed and sent through the codec, equal one backward of the weighted sum."""
    game = SoundAdversary(**SMALL_GAME, weight=0.7, feature_weight=0.3, samples=500)
    module = recipe(adversary=game, balance=None, waveform_weight=2.0, mel_weight=1.5, quantizer_weight=0.5, depth_dropout=0.0)
    module.eval()
    module.move_generator = lambda loss, step: loss.backward()
    x = batches(1)[0].sounds
    values, fake = module.generator_step(x, 3)
    got = {name: p.grad.clone() for name, p in module.tokenizer.named_parameters() if p.grad is not None}
    module.zero_grad()
    passed = module.way(module.tokenizer, x, depth=None, draws=None)
    part, judged = module._judged_part(x, 3), module._judged_part(passed.sounds, 3)
    assert part.shape == judged.shape == (4, 1, 500)
    terms = module.judged(part, judged)
    loss = 2.0 * (x - passed.sounds).abs().mean() + 1.5 * module.mel(x, passed.sounds) + 0.5 * passed.quantized.loss
    loss = loss + 0.7 * terms["adversarial"] + 0.3 * terms["features"]
    assert float(values["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    loss.backward()
    for name, p in module.tokenizer.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert all(p.grad is None for p in module.discriminator.parameters())
    torch.testing.assert_close(fake, passed.sounds.detach())


def test_with_balance_each_loss_has_its_share():
    module = recipe(balance=1.0, waveform_weight=1.0, mel_weight=3.0, adversary=None)
    x = batches(1)[0].sounds
    y = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    pull, values = module.pull(x, y, 0)
    leaf = y.clone().requires_grad_()
    parts = [torch.autograd.grad(loss, leaf)[0] for loss in ((leaf - x).abs().mean(), module.mel(x, leaf))]
    norms = [part.flatten(1).norm(dim=1).mean() for part in parts]
    torch.testing.assert_close(pull, 0.25 * parts[0] / norms[0] + 0.75 * parts[1] / norms[1], rtol=1e-4, atol=1e-7)
    assert float(values["gradient_mel"]) == pytest.approx(float(norms[1]), rel=1e-4)


def test_what_a_listener_hears_has_its_share():
    module = recipe(balance=1.0, waveform_weight=0.0, mel_weight=1.0, loudness_weight=2.0, structure_weight=1.0, adversary=None)
    x = batches(1)[0].sounds
    y = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    pull, values = module.pull(x, y, 0)
    leaf = y.clone().requires_grad_()
    losses = (module.mel, LoudnessLoss(sample_rate=RATE), StructureLoss(sample_rate=RATE))
    parts = [torch.autograd.grad(loss(x, leaf), leaf)[0] for loss in losses]
    parts = [part / part.flatten(1).norm(dim=1).mean() for part in parts]
    torch.testing.assert_close(pull, 0.25 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2], rtol=1e-4, atol=1e-7)
    assert float(values["structure"]) == pytest.approx(float(losses[2](x, y)), rel=1e-5)
    assert not recipe().heard, "none without a weight"


def test_one_clip_is_learnt_by_heart():
    module, losses = recipe(adversary=None, learning_rate=5e-3, quantizer_start=30, gradient_clip=None), []
    module.log_scores = lambda stage, values, batch_size: losses.append(float(values["mel"]))
    clip = batches(1, size=1)[0]
    fit(module, 160, data=[clip] * 160)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])
    module.eval()
    passed = module.way(module.tokenizer, clip.sounds, depth=None, draws=None)
    assert module.mel(clip.sounds, passed.sounds).item() < 0.6 * np.mean(losses[:10])


def test_depths_are_drawn_alike_everywhere_and_dropout_by_item():
    module = recipe(depths=[1, 2, 4])
    drawn = [module._depth(step) for step in range(40)]
    assert set(drawn) == {1, 2, 4}
    assert drawn == [recipe(depths=[1, 2, 4])._depth(step) for step in range(40)]
    module = recipe(depth_dropout=0.9).train()
    codes = module.way(module.tokenizer, speech(24, 0.4), depth=None, draws=None).quantized.codes
    depths = (codes >= 0).sum(-1)
    assert (depths.amin(1) == depths.amax(1)).all(), "a sound has one depth"
    assert len(depths[:, 0].unique()) > 1


# -- transformers' classes ---------------------------------------------------------------------------------------------------------


def test_the_way_through_dac_gives_the_librarys_numbers():
    module = recipe("dac_16khz").eval()
    tok, x = module.tokenizer, speech(2, 0.4)
    passed = module.way(tok, x, depth=None, draws=None)
    vectors, codes, _, commitment, codebook = tok.model.quantizer(run(tok.encoder_chain(), x, piece=x.shape[2]))
    assert torch.equal(passed.quantized.codes, codes.transpose(1, 2))
    torch.testing.assert_close(passed.quantized.x, vectors.transpose(1, 2), atol=1e-5, rtol=1e-4)
    assert float(passed.quantized.loss) == pytest.approx(float((0.25 * commitment + codebook).mean()), rel=1e-4)
    ahead = (tok.config.lookahead + 1) * tok.config.hop  # decode fills the samples that odd strides lack at the end
    torch.testing.assert_close(passed.sounds[..., :-ahead], tok.decode(tok.encode(x))[..., :-ahead], atol=1e-5, rtol=1e-4)


def test_cut_items_of_dac_leave_deeper_levels_alone():
    module = recipe("dac_16khz", depth_dropout=1.0).train()
    passed = module.way(module.tokenizer, speech(24, 0.4), depth=None, draws=torch.Generator().manual_seed(0))
    depths = (passed.quantized.codes >= 0).sum(-1)[:, 0]
    assert set(depths.tolist()) == {1, 2, 3, 4}
    item = int((depths == 2).nonzero()[0])
    tok = module.tokenizer
    wanted = tok.lookup(passed.quantized.codes[item : item + 1, :, :2].transpose(1, 2))
    torch.testing.assert_close(passed.quantized.x[item], wanted[0].T, atol=1e-5, rtol=1e-4)


def test_encodecs_codebooks_follow_the_ones_that_learn():
    module = recipe("encodec_24khz")
    fit(module, 3)
    module.eval()
    x = speech(2, 0.4)
    passed = module.way(module.tokenizer, x, depth=None, draws=None)
    tokens = module.tokenizer.encode(x)
    assert torch.equal(tokens.data, passed.quantized.codes)
    assert len(tokens.data.unique()) > 4
    torch.testing.assert_close(module.tokenizer.decode(tokens), passed.sounds, atol=1e-5, rtol=1e-4)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"snac_24khz is of the family 'snac'. Allowed: dac, encodec, patch_codec"):
        AudioCodecRecipe("snac_24khz", overrides=dict(encoder_width=4, decoder_width=16))
    with pytest.raises(ValueError, match=r"depth_dropout=0\.5, but audio_fsq_nano has no residual levels"):
        recipe("audio_fsq_nano", depth_dropout=0.5)
    with pytest.raises(ValueError, match=r"depths=\[5\]"):
        recipe(depths=[5])
    with pytest.raises(ValueError, match=r"one of the two"):
        recipe(depths=[1], depth_dropout=0.5)
    with pytest.raises(ValueError, match="every=0"):
        SoundAdversary(every=0)
    with pytest.raises(ValueError, match="loss='wasserstein'"):
        SoundAdversary(loss="wasserstein")
    with pytest.raises(ValueError, match=r"sounds of 7 samples\. Needed: at least a hop, 20"):
        recipe()._whole_hops(torch.zeros(1, 1, 7))
    module = recipe()
    module._trainer = SimpleNamespace(precision="16-mixed")
    with pytest.raises(ValueError, match=r"precision='16-mixed'.*bf16-mixed"):
        module.on_train_start()
