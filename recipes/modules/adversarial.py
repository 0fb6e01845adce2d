"""Base of the recipes that train with a discriminator: reconstruction, feature distance, adversarial loss, two optimizers.

The way of VQGAN (arXiv 2012.09841, section 3.2): a patch discriminator with hinge loss that joins at a step, and a weight of its
pull that follows the ratio of both gradients at the decoder's last layer. The feature distance runs on EfficientNet-Lite0, never
on the scorer's network; published recipes use LPIPS in its place.

Each network is passed backward once for each side: gradients are taken at the picture, weighed there, and
sent through the decoder together.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from recipes.modules.counting import CountsCodes
from recipes.modules.discriminators import GeneratorLoss, Norm, PatchDiscriminator, generator_loss, hinge_loss, lecam_penalty
from recipes.modules.two_sided import TwoSidedRecipe
from zoo.layers.features import feature_distance, load_features
from zoo.quantizers.distributed import all_reduce_sum, world_size

__all__ = ["AdversarialRecipe", "Adversary", "Reconstruction"]

_RATIO_FLOOR = 1e-4  # of the adversarial gradient in the adaptive weight, as published


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """The discriminator and its share in the loss.

    Attributes:
        weight: of the generator's adversarial loss.
        start: generator step at which it joins.
        adaptive: multiply the weight by the ratio of the gradient norms of everything else and of the adversarial loss at the
            decoder's last layer, so that `weight` is a share.
        adaptive_max: limit of that ratio.
        width, layers, norm: of `PatchDiscriminator`.
        learning_rate: of the discriminator; None takes the generator's.
        generator_loss: "hinge" or "non_saturating".
        lecam_weight: of the LeCam penalty in the discriminator's loss.
        lecam_decay: of its running averages.
    """

    weight: float = 0.1
    start: int = 0
    adaptive: bool = True
    adaptive_max: float = 1e4
    width: int = 64
    layers: int = 3
    norm: Norm = "batch"
    learning_rate: float | None = None
    generator_loss: GeneratorLoss = "hinge"
    lecam_weight: float = 0.0
    lecam_decay: float = 0.999

    def __post_init__(self) -> None:
        for name in ("start", "weight", "lecam_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"Adversary: {name}={getattr(self, name)}. Allowed: 0 or more.")
        if self.generator_loss not in ("hinge", "non_saturating"):
            raise ValueError(f"Adversary: generator_loss={self.generator_loss!r}. Allowed: 'hinge', 'non_saturating'.")
        if not 0 <= self.lecam_decay < 1:
            raise ValueError(f"Adversary: lecam_decay={self.lecam_decay}. Allowed: 0 to below 1.")


class Reconstruction(NamedTuple):
    """What a recipe hands to the adversarial step.

    Attributes:
        images: `(b, 3, h, w)`, about [-1, 1], with gradient to the generator.
        loss: what the generator minimises beside the losses of the picture, `()`.
        values: for the log.
    """

    images: Tensor
    loss: Tensor
    values: dict[str, Tensor]


class AdversarialRecipe(CountsCodes, TwoSidedRecipe):
    """Train a tokenizer on pictures: `pixel + feature + adversarial` and what `reconstruct` adds.

    Works on one device and with `--trainer.strategy ddp_find_unused_parameters_true`, in float32 and bfloat16 (mixed or whole).
    `Trainer(gradient_clip_val=...)` is refused by Lightning here: set `gradient_clip` of the recipe.

    Args:
        tokenizer: catalog name.
        adversary: the discriminator's settings; None trains without one.
        pixel_loss: "l1", mean absolute error, or "l2", mean squared error.
        pixel_weight: of that loss.
        feature_weight: of the feature distance; 0 leaves its network out.
        gradient_clip: largest norm of the gradient of either side; None does not clip.
        options: of `TokenizerRecipe`.

    Raises:
        ValueError: an unknown pixel loss, or (when training starts) a precision or strategy that does not fit.
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        adversary: Adversary | None = None,
        pixel_loss: Literal["l1", "l2"] = "l1",
        pixel_weight: float = 1.0,
        feature_weight: float = 0.1,
        gradient_clip: float | None = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, gradient_clip=gradient_clip, **options)
        if pixel_loss not in ("l1", "l2"):
            raise ValueError(f"{type(self).__name__}: pixel_loss={pixel_loss!r}. Allowed: 'l1', 'l2'.")
        self.adversary = adversary
        self.pixel_loss, self.pixel_weight, self.feature_weight = pixel_loss, pixel_weight, feature_weight
        if adversary is not None and adversary.weight:
            self.discriminator = PatchDiscriminator(width=adversary.width, layers=adversary.layers, norm=adversary.norm)
            self.register_buffer("real_average", torch.zeros(()))
            self.register_buffer("fake_average", torch.zeros(()))

    # -- what a recipe provides ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def reconstruct(self, x: Tensor, draws: torch.Generator) -> Reconstruction:
        """Encode, quantize and decode pictures `(b, 3, h, w)` in [-1, 1] with gradient; all chance comes from `draws`."""

    @abstractmethod
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last layer, where the adaptive weight is measured."""

    def shown(self, x: Tensor) -> Tensor:
        """Which of the pictures `(b, 3, h, w)` of this step the networks of the loss look at; here all."""
        return x

    # -- one step --------------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        step = self.global_step
        values, fake = self.generator_step(batch.images, step)
        if self.playing(step):
            values |= self.discriminator_step(batch.images, fake, step)
        self.log_scores("train", values, batch_size=len(batch.images))

    def generator_step(self, x: Tensor, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Move the generator once; gives the values to log and the reconstruction without gradient."""
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        out = self.reconstruct(x, self.draws(step=step))
        pull, values = self.pull(x, out.images, step)
        self.move_generator((out.images.float() * pull).sum() + out.loss, step)
        values["loss"] = values["loss"] + out.loss.detach()
        return values | out.values, out.images.detach()

    def pull(self, x: Tensor, y: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the gradient of all losses of the picture at `y (b, 3, h, w)`, same shape, float32, and what to log."""
        leaf = y.detach().float().requires_grad_()
        error = (leaf - x).abs().mean() if self.pixel_loss == "l1" else (leaf - x).square().mean()
        values, loss = {"pixel": error}, self.pixel_weight * error
        if self.feature_weight:
            network = load_features("efficientnet_lite0").to(self.device)
            values["feature_distance"] = feature_distance(network, self.shown(x), self.shown(leaf)).mean()
            loss = loss + self.feature_weight * values["feature_distance"]
        (pull,) = torch.autograd.grad(loss, leaf)
        if self.playing(step):
            adversarial = generator_loss(self.discriminator(self.shown(leaf)), self.adversary.generator_loss)
            (push,) = torch.autograd.grad(adversarial, leaf)
            weight = self.adversary.weight * (self._ratio(y, pull, push) if self.adversary.adaptive else 1.0)
            pull, loss = pull + weight * push, loss + weight * adversarial
            values |= {"adversarial": adversarial, "adversarial_weight": torch.as_tensor(weight)}
        return pull, {name: value.detach() for name, value in (values | {"loss": loss}).items()}

    def _ratio(self, y: Tensor, pull: Tensor, push: Tensor) -> Tensor:
        """Norm of `pull` over that of `push`, both carried to the last layer; the mean over all ranks."""
        norms = [
            torch.autograd.grad(y, self.last_layer(), gradient.to(y.dtype), retain_graph=True)[0].float().norm()
            for gradient in (pull, push)
        ]
        ratio = (norms[0] / (norms[1] + _RATIO_FLOOR)).clamp(0, self.adversary.adaptive_max)
        return all_reduce_sum(ratio) / world_size()

    def discriminator_step(self, real: Tensor, fake: Tensor, step: int) -> dict[str, Tensor]:
        """Move the discriminator once, which nobody counts; gives the values to log."""
        self.discriminator.requires_grad_(True)
        scores, fakes = self.discriminator(self.shown(real)), self.discriminator(self.shown(fake).float())
        loss = hinge_loss(scores, fakes)
        values = {"discriminator": loss, "score_real": scores.float().mean(), "score_fake": fakes.float().mean()}
        if self.adversary.lecam_weight:
            for average, score in ((self.real_average, values["score_real"]), (self.fake_average, values["score_fake"])):
                average.lerp_(all_reduce_sum(score.detach()) / world_size(), 1 - self.adversary.lecam_decay)
            loss = loss + self.adversary.lecam_weight * lecam_penalty(scores, fakes, self.real_average, self.fake_average)
        self.move_discriminator(loss, step)
        return {name: value.detach() for name, value in values.items()}
