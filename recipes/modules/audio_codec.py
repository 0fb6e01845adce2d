"""Train an audio codec: mel bands, the waveform, what a listener hears, discriminators, each with its share of the gradient.

Serves `patch_codec` (the nano codecs), `encodec` and `dac`. Papers: Défossez et al., "High Fidelity Neural Audio Compression",
arXiv 2210.13438 (balanced gradients, spectrum discriminators); Kumar et al., "High-Fidelity Audio Compression with Improved
RVQGAN", arXiv 2306.06546 (weighted sum, periods and bands).

Gradients are taken at the sound, weighed there, and sent through the codec together, so that its backward pass is made once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recipes.modules.balancer import LossBalancer
from recipes.modules.codec_ways import way_of
from recipes.modules.counting import CountsCodes
from recipes.modules.hearing_losses import LoudnessLoss, StructureLoss
from recipes.modules.sound_discriminators import (
    GameLoss,
    Judged,
    SoundDiscriminators,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from recipes.modules.sound_losses import MelLoss, si_sdr_db
from recipes.modules.two_sided import TwoSidedRecipe
from zoo.quantizers.learning import seeded_generator
from zoo.transforms.nested_dropout import powers_of_two

__all__ = ["AudioCodecRecipe", "MelScales", "SoundAdversary"]


@dataclass(frozen=True, kw_only=True)
class SoundAdversary:
    """The discriminators and their share in the loss.

    Attributes:
        weight: of the generator's adversarial loss.
        feature_weight: of the distance of the discriminators' features.
        relative_features: divide each layer's distance by its mean size and average (EnCodec), or sum (DAC).
        start: generator step at which they begin to learn.
        lead: steps that they learn before the codec hears of them: a new network's gradient is noise, which a balance amplifies.
        every: they move at each so many generator steps.
        samples: of each sound that they judge, from a drawn place on; None judges all.
        loss: "hinge" or "least_squares".
        learning_rate: of the discriminators; None takes the generator's.
        gradient_clip: of the discriminators; None takes the generator's.
        spectrum_windows, spectrum_overlap, spectrum_width: of `SoundDiscriminators`, as are those that follow.
    """

    weight: float = 1.0
    feature_weight: float = 1.0
    relative_features: bool = True
    start: int = 0
    lead: int = 0
    every: int = 1
    samples: int | None = None
    loss: GameLoss = "hinge"
    learning_rate: float | None = None
    gradient_clip: float | None = None
    spectrum_windows: Sequence[int] = ()
    spectrum_overlap: int = 4
    spectrum_width: int = 32
    periods: Sequence[int] = ()
    period_widths: Sequence[int] = (32, 128, 512, 1024, 1024)
    band_windows: Sequence[int] = ()
    band_width: int = 32

    def __post_init__(self) -> None:
        for name, low in (("weight", 0), ("feature_weight", 0), ("start", 0), ("lead", 0), ("every", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"SoundAdversary: {name}={getattr(self, name)}. Allowed: {low} or more.")
        if self.loss not in ("hinge", "least_squares"):
            raise ValueError(f"SoundAdversary: loss={self.loss!r}. Allowed: 'hinge', 'least_squares'.")


@dataclass(frozen=True, kw_only=True)
class MelScales:
    """Scales of the mel loss; see `MelLoss`."""

    windows: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048)
    bands: Sequence[int] = (5, 10, 20, 40, 80, 160, 320)
    linear_weight: float = 0.0
    log_weight: float = 1.0
    squared_log: bool = False
    normalized: bool = False


class AudioCodecRecipe(CountsCodes, TwoSidedRecipe):
    """Train on batches with `sounds (b, c, s)` in [-1, 1] of whole hops.

    Args:
        tokenizer: catalog name of one of the families above.
        adversary: the discriminators' settings; None trains without them.
        balance: norm of the whole gradient at the sound for `LossBalancer`; None adds the weighted losses up as they are.
        balance_decay: of its running means.
        waveform_weight: of the mean absolute difference of the samples.
        mel_weight: of the mel distance.
        mel: its scales.
        loudness_weight: of the difference of loudness after PESQ (`LoudnessLoss`).
        structure_weight: of the structure of band levels after ViSQOL (`StructureLoss`).
        quantizer_weight: of the quantizer's own loss.
        quantizer_start: generator step from which latents are quantized, so that codebooks start on latents of some meaning.
        depth_dropout: share of the items (EnCodec: of the batches) that are cut to fewer residual levels, evenly drawn.
        depths: numbers of residual levels of which each batch draws one, the same in all processes; empty for none.
        rate_decay: the learning rate is multiplied by it at each step, in place of the cosine; None for the cosine.
        gradient_clip: largest norm of the generator's gradient; None does not clip.
        options: of `TokenizerRecipe`.

    Raises:
        ValueError: a family that this recipe does not train, dropout without residual levels, depths out of range, or (when
            training starts) a precision, strategy or sound that does not fit.
    """

    usage_per_level = True

    def __init__(
        self,
        tokenizer: str,
        *,
        adversary: SoundAdversary | None = None,
        balance: float | None = 1.0,
        balance_decay: float = 0.999,
        waveform_weight: float = 0.1,
        mel_weight: float = 1.0,
        mel: MelScales | None = None,
        loudness_weight: float = 0.0,
        structure_weight: float = 0.0,
        quantizer_weight: float = 1.0,
        quantizer_start: int = 0,
        depth_dropout: float = 0.0,
        depths: Sequence[int] = (),
        rate_decay: float | None = None,
        gradient_clip: float | None = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, gradient_clip=gradient_clip, **options)
        self.way = way_of(self.tokenizer, dropout=depth_dropout, seed=self.seed)
        info = self.tokenizer.info
        if any(not 1 <= depth <= info.depth for depth in depths) or (depths and depth_dropout):
            raise ValueError(
                f"AudioCodecRecipe: depths={list(depths)}, depth_dropout={depth_dropout}. Allowed: one of the two; depths of "
                f"1..{info.depth}."
            )
        self.depths, self.rate_decay = tuple(depths), rate_decay
        self.quantizer_weight, self.quantizer_start = quantizer_weight, quantizer_start
        self.weights = {"waveform": waveform_weight, "mel": mel_weight}
        scales = mel or MelScales()
        self.mel = MelLoss(
            sample_rate=info.sample_rate,
            windows=scales.windows,
            bands=scales.bands,
            linear_weight=scales.linear_weight,
            log_weight=scales.log_weight,
            squared_log=scales.squared_log,
            normalized=scales.normalized,
        )
        self.mel_distance = MelLoss(sample_rate=info.sample_rate)
        self.heard = nn.ModuleDict()
        if loudness_weight:
            self.weights["loudness"], self.heard["loudness"] = loudness_weight, LoudnessLoss(sample_rate=info.sample_rate)
        if structure_weight:
            self.weights["structure"], self.heard["structure"] = structure_weight, StructureLoss(sample_rate=info.sample_rate)
        self.adversary = adversary
        self.lead = 0 if adversary is None else adversary.lead
        if adversary is not None:
            self.weights |= {"adversarial": adversary.weight, "features": adversary.feature_weight}
            self.discriminator = SoundDiscriminators(
                spectrum_windows=adversary.spectrum_windows,
                spectrum_overlap=adversary.spectrum_overlap,
                spectrum_width=adversary.spectrum_width,
                periods=adversary.periods,
                period_widths=adversary.period_widths,
                band_windows=adversary.band_windows,
                band_width=adversary.band_width,
                channels=info.audio_channels,
            )
        self.balancer = None if balance is None else LossBalancer(self.weights, norm=balance, decay=balance_decay)

    # -- one step --------------------------------------------------------------------------------------------------------------

    def rate_factor(self, step: int) -> float:
        """Give the factor of the learning rate at a step."""
        if self.rate_decay is None:
            return super().rate_factor(step)
        return min(1.0, (step + 1) / max(1, self.warmup_steps)) * self.rate_decay**step

    def training_step(self, batch: Any, batch_idx: int) -> None:
        step, x = self.global_step, self._whole_hops(batch.sounds)
        values, fake = self.generator_step(x, step)
        if self.playing(step) and step % self.adversary.every == 0:
            values |= self.discriminator_step(self._judged_part(x, step), self._judged_part(fake, step), step)
        self.log_scores("train", values, batch_size=len(x))

    def _whole_hops(self, x: Tensor) -> Tensor:
        """Cut what is beyond the last whole hop."""
        hop = self.tokenizer.info.downsample[0]
        if x.shape[2] < hop:
            raise ValueError(f"AudioCodecRecipe: sounds of {x.shape[2]} samples. Needed: at least a hop, {hop}; raise `seconds`.")
        return x[..., : x.shape[2] // hop * hop]

    def _judged_part(self, x: Tensor, step: int) -> Tensor:
        """What the discriminators see of sounds `(b, c, s)` at a step."""
        size = self.adversary.samples
        if size is None or size >= x.shape[2]:
            return x
        draws = self.draws(stage="judged", step=step)
        start = int(torch.randint(x.shape[2] - size + 1, (), generator=draws, device=draws.device))
        return x[..., start : start + size]

    def _depth(self, step: int) -> int | None:
        """Levels of this step's batch where they are drawn from a list, equal in all processes."""
        if not self.depths:
            return None
        return self.depths[int(torch.randint(len(self.depths), (), generator=seeded_generator(self.seed, 7, step)))]

    def generator_step(self, x: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Move the codec once; gives the values to log and the codec's sound without gradient."""
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        quantize = step >= self.quantizer_start
        passed = self.way(self.tokenizer, x, depth=self._depth(step), draws=self.draws(step=step), quantize=quantize)
        quantized = passed.quantized
        pull, values = self.pull(x, passed.sounds, step)
        loss = self.quantizer_weight * quantized.loss
        self.move_generator((passed.sounds.float() * pull).sum() + loss, step)
        self.way.sync(self.tokenizer)
        values["loss"] = values["loss"] + loss.detach()
        values["quantizer"] = quantized.loss.detach()
        stats = quantized.stats
        return values | {name: stats[name].mean() for name in _LOGGED if name in stats}, passed.sounds.detach()

    def pull(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the gradient of all losses of the sound at `y (b, c, s)`, same shape, float32, and what to log."""
        leaf = y.detach().float().requires_grad_()
        losses = {"waveform": (leaf - x).abs().mean(), "mel": self.mel(x, leaf)}
        losses |= {name: loss(x, leaf) for name, loss in self.heard.items()}
        if self.playing(step - self.lead):
            losses |= self.judged(self._judged_part(x, step), self._judged_part(leaf, step))
        losses = {name: loss for name, loss in losses.items() if self.weights[name]}
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        values = {name: loss.detach() for name, loss in losses.items()} | {"loss": total.detach()}
        if self.balancer is None:
            return torch.autograd.grad(total, leaf)[0], values
        gradients = {name: torch.autograd.grad(loss, leaf, retain_graph=True)[0] for name, loss in losses.items()}
        pull, norms = self.balancer(gradients)
        return pull, values | {f"gradient_{name}": norm for name, norm in norms.items()}

    def judged(self, x: Tensor, leaf: Tensor) -> dict[str, Tensor]:
        """Adversarial loss and distance of features."""
        fake = self.discriminator(leaf)
        losses = {"adversarial": generator_loss(fake, self.adversary.loss)}
        if self.adversary.feature_weight:
            with torch.no_grad():
                real = self.discriminator(x)
            losses["features"] = feature_loss(real, fake, relative=self.adversary.relative_features)
        return losses

    def discriminator_step(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        """Move the discriminators once, which nobody counts; gives the values to log."""
        self.discriminator.requires_grad_(True)
        both = self.discriminator(torch.cat([real, fake.float()]))
        parts = [[_part(judged, i, len(real)) for judged in both] for i in range(2)]
        loss = discriminator_loss(parts[0], parts[1], self.adversary.loss)
        self.move_discriminator(loss, step, clip=self.adversary.gradient_clip)
        scores = [torch.stack([judged.scores.detach().float().mean() for judged in part]).mean() for part in parts]
        return {"discriminator": loss.detach(), "score_real": scores[0], "score_fake": scores[1]}

    # -- validation ------------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Mel distance and SI-SDR of all levels (and of each power of two of levels), and which codes are used at all."""
        tok, info = self.tokenizer, self.tokenizer.info
        hop = info.downsample[0]
        depths = powers_of_two(info.depth) if info.residual else [info.depth]
        for sound, length in zip(batch.sounds, batch.lengths.tolist(), strict=True):
            x = sound[None, :, : max(hop, length // hop * hop)]
            values = {}
            for depth in depths:
                passed = self.way(tok, x, depth=depth if info.residual else None, draws=None)
                scores = {"mel_distance": self.mel_distance(x, passed.sounds), "si_sdr_db": si_sdr_db(x, passed.sounds).mean()}
                values |= {name if depth == info.depth else f"{name}_d{depth}": score for name, score in scores.items()}
            self.count_codes(passed.quantized.codes)
            self.log_scores("val", values, batch_size=1)


def _part(judged: Judged, which: int, size: int) -> Judged:
    """The first or the second half of what was judged together."""
    return Judged(judged.scores[which * size : (which + 1) * size], [])


_LOGGED = ("used_fraction", "perplexity", "revived_codes", "commitment")
