"""The adversarial base: one counter, the adaptive weight, whose parameters move when, and what it refuses."""

from types import SimpleNamespace

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.nn import functional as F
from torch.utils.data import DataLoader

from recipes.data.images import ImageBatch
from recipes.modules.adversarial import Adversary
from recipes.modules.autoencoder import AutoencoderRecipe
from recipes.modules.discriminators import PatchDiscriminator, generator_loss, hinge_loss, lecam_penalty

TOY = dict(
    codebook_sizes=[16, 16, 16, 16], latent_channels=8, z_channels=8, attention_sides=[8], width=8, multipliers=[1, 2, 2], blocks=1,
    norm_groups=4, image_size=32,
)  # fmt: skip


def recipe(**options):
    torch.manual_seed(0)
    adversary = options.pop("adversary", Adversary(width=8, layers=1, norm="group"))
    options = {"overrides": TOY, "feature_weight": 0.0, "weight_decay": 0.0, "warmup_steps": 1, **options}
    return AutoencoderRecipe("rvq_nano", adversary=adversary, **options)


def batches(count):
    draws = torch.Generator().manual_seed(5)
    pictures = [F.interpolate(torch.rand(4, 3, 4, 4, generator=draws) * 2 - 1, (32, 32), mode="bilinear") for _ in range(count)]
    return [ImageBatch(x, torch.zeros(4), torch.arange(4)) for x in pictures]


def fit(module, steps, *, callbacks=(), **options):
    loader = DataLoader(dataset=batches(steps + 3), batch_size=None, num_workers=0)
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, loader)
    return trainer


class Watch(lightning.Callback):
    """Which parts moved in each batch, and what the counter said."""

    def __init__(self):
        self.moved, self.counter, self.rates = [], [], []

    def _snapshot(self, module):
        return {
            part: torch.cat([p.detach().flatten() for p in getattr(module, part).parameters()])
            for part in ("tokenizer", "discriminator")
        }

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before = self._snapshot(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now = self._snapshot(module)
        self.moved.append({part for part, value in now.items() if not torch.equal(value, self.before[part])})
        self.counter.append(trainer.global_step)
        self.rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])


def test_one_counter_owns_the_run():
    """max_steps counts generator steps; the discriminator joins at its step and is never counted; averages follow each step."""
    watch, average = Watch(), EMAWeightAveraging(decay=0.5)
    module = recipe(adversary=Adversary(start=3, width=8, layers=1, learning_rate=1e-4), learning_rate=1e-3, final_rate=0.5)
    trainer = fit(module, 6, callbacks=[watch, average])
    assert watch.counter == [1, 2, 3, 4, 5, 6]
    assert trainer.global_step == 6
    assert watch.moved == [{"tokenizer"}] * 3 + [{"tokenizer", "discriminator"}] * 3
    assert int(average._average_model.n_averaged) == 6
    assert module.tokenizer.quantizer.layers[0].clock.value in range(3, 7)
    expected = [0.5 + 0.25 * (1 + torch.cos(torch.tensor(torch.pi * max(0, step - 1) / 5)).item()) for step in range(6)]
    assert [rate[0] / 1e-3 for rate in watch.rates] == pytest.approx(expected, rel=1e-5)
    assert [rate[1] / 1e-4 for rate in watch.rates[3:]] == pytest.approx(expected[3:], rel=1e-5)


def test_gradient_of_the_generator_is_that_of_the_written_loss():
    """Weighing gradients at the picture equals one backward through pixel + weight * adversarial + quantizer."""
    module = recipe(adversary=Adversary(weight=0.3, width=8, layers=1, norm="group"))
    module.on_train_start = lambda: None
    x, got = batches(1)[0].images, {}
    module.move_generator = lambda loss, step: loss.backward()
    module.eval()
    module.generator_step(x, 0)
    got = {name: p.grad.clone() for name, p in module.tokenizer.named_parameters() if p.grad is not None}
    module.zero_grad()
    out = module.reconstruct(x, module.draws(step=0))
    error, adversarial = (out.images - x).abs().mean(), -module.discriminator(out.images).mean()
    last = module.tokenizer.decoder.last_layer
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, adversarial)]
    (error + 0.3 * (norms[0] / (norms[1] + 1e-4)).detach() * adversarial + out.loss).backward()
    wanted = {name: p.grad for name, p in module.tokenizer.named_parameters() if p.grad is not None}
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-7, msg=name)
    assert all(p.grad is None for p in module.discriminator.parameters()), "the generator's step gave the discriminator a gradient"


def test_adaptive_weight_is_clamped_and_can_be_off():
    x = batches(1)[0].images
    for adversary, wanted in (
        (Adversary(weight=0.5, adaptive=False, width=8, layers=1), 0.5),
        (Adversary(weight=0.5, adaptive_max=0.01, width=8, layers=1), 0.005),
    ):
        module = recipe(adversary=adversary)
        out = module.reconstruct(x, module.draws(step=0))
        _, values = module.pull(x, out.images, 0)
        assert float(values["adversarial_weight"]) == pytest.approx(wanted)


def test_losses_of_both_sides():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert float(hinge_loss(real, fake)) == pytest.approx(0.5 * (0.25 + 0.5))
    assert float(generator_loss(fake, "hinge")) == pytest.approx(1.5)
    softplus = (torch.log1p(torch.exp(torch.tensor(3.0))) + torch.log(torch.tensor(2.0))) / 2
    assert float(generator_loss(fake, "non_saturating")) == pytest.approx(float(softplus))
    penalty = lecam_penalty(real, fake, torch.tensor(1.0), torch.tensor(0.25))
    assert float(penalty) == pytest.approx((1.75**2 + 0.25**2) / 2 + (4.0**2 + 1.0) / 2)


def test_lecam_averages_follow_the_scores():
    module = recipe(adversary=Adversary(width=8, layers=1, norm="group", lecam_weight=0.1, lecam_decay=0.5))
    logged = []
    module.log_scores = lambda stage, values, batch_size: logged.append(values)
    fit(module, 2)
    wanted = 0.0
    for values in logged:
        wanted = 0.5 * wanted + 0.5 * float(values["score_real"])
    assert float(module.real_average) == pytest.approx(wanted, rel=1e-5)


def test_without_an_adversary_there_is_one_optimizer():
    module = recipe(adversary=None)
    trainer = fit(module, 2)
    assert len(trainer.optimizers) == 1
    assert module.discriminator is None


def test_the_loss_falls():
    module = recipe(learning_rate=3e-3, adversary=Adversary(start=1000, width=8, layers=1))
    losses = []
    module.log_scores = lambda stage, values, batch_size: losses.append(float(values["pixel"]))
    fit(module, 40)
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


def test_gradients_are_clipped():
    module = recipe(gradient_clip=1e-3, learning_rate=1.0)
    norms = []
    step = module.move_generator

    def watched(loss, number):
        step(loss, number)
        norms.append(torch.cat([p.grad.flatten() for p in module.tokenizer.parameters() if p.grad is not None]).norm())

    module.move_generator = watched
    fit(module, 1)
    assert float(norms[0]) <= 1.01e-3


def test_depth_dropout_cuts_some_pictures():
    module = recipe(depth_dropout=0.9).train()
    codes = module.way.through(module.tokenizer, torch.cat([b.images for b in batches(6)]), None).quantized.codes
    depths = (codes >= 0).sum(-1).flatten(1)
    assert (depths.amin(1) == depths.amax(1)).all(), "a picture has one depth"
    assert len(depths[:, 0].unique()) > 1


def test_settings_that_do_not_fit_are_refused():
    module = recipe()
    module._trainer = SimpleNamespace(precision="16-mixed")
    with pytest.raises(ValueError, match=r"precision='16-mixed'.*bf16-mixed"):
        module.on_train_start()
    with pytest.raises(ValueError, match=r"flextok_nano is of the family 'flextok'. Allowed: .*rqvae"):
        AutoencoderRecipe("flextok_nano")
    with pytest.raises(ValueError, match=r"depth_dropout=0\.5, but bae_nano has no residual levels"):
        AutoencoderRecipe("bae_nano", depth_dropout=0.5)
    with pytest.raises(ValueError, match=r"pixel_loss='l3'.*'l1', 'l2'"):
        recipe(pixel_loss="l3")
    with pytest.raises(ValueError, match="lecam_decay=1"):
        Adversary(lecam_decay=1)
    with pytest.raises(ValueError, match="norm='layer'"):
        PatchDiscriminator(norm="layer")
    with pytest.raises(ValueError, match="width=0"):
        PatchDiscriminator(width=0)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_published_discriminator_sees_patches_of_70(norm):
    """Three halving layers score a 32 x 32 grid less two borders at 256 px, and one logit sees 70 x 70 pixels."""
    network = PatchDiscriminator(norm=norm).eval()
    x = torch.zeros(1, 3, 256, 256, requires_grad=True)
    scores = network(x)
    assert scores.shape == (1, 1, 30, 30)
    scores[0, 0, 15, 15].backward()
    seen = x.grad.abs().sum((0, 1)).nonzero()
    if norm == "batch":  # a group norm mixes all positions
        assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]
