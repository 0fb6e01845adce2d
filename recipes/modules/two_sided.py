"""A recipe of two sides, generator and discriminator, each with an optimizer of its own, that one counter owns.

`global_step` counts steps of the generator, and the discriminator moves without being counted (an optimizer that Lightning wraps
would count twice a batch). So `max_steps`, schedules, checkpoints, averaged weights and draws all speak of generator steps.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recipes.modules.base import TokenizerRecipe

__all__ = ["TwoSidedRecipe"]


class TwoSidedRecipe(TokenizerRecipe):
    """Base of the recipes with a discriminator, or without one where `self.discriminator` stays None.

    A recipe sets `self.discriminator` and `self.adversary`, whose `start` is the step at which the discriminator joins and whose
    `learning_rate` is its own rate (None takes the generator's).

    Works on one device and with `--trainer.strategy ddp_find_unused_parameters_true`, in float32 and bfloat16 (mixed or whole).
    `Trainer(gradient_clip_val=...)` is refused by Lightning here: set `gradient_clip` of the recipe.

    Args:
        tokenizer: catalog name.
        gradient_clip: largest norm of the gradient of either side; None does not clip.
        options: of `TokenizerRecipe`.
    """

    def __init__(self, tokenizer: str, *, gradient_clip: float | None = 1.0, **options: Any) -> None:
        super().__init__(tokenizer, **options)
        self.automatic_optimization = False
        self.gradient_clip = gradient_clip
        self.discriminator: nn.Module | None = None
        self.adversary: Any = None

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters of the generator's optimizer."""
        return [(name, p) for name, p in super().trained_parameters() if not name.startswith("discriminator.")]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The generator's optimizer, then the discriminator's; their rates are set from the step, as each moves."""
        optimizers = [self.adamw(self.trained_parameters(), learning_rate=self.learning_rate)]
        if self.discriminator is not None:
            optimizers.append(self.adamw(list(self.discriminator.named_parameters()), learning_rate=self._discriminator_rate))
        return optimizers

    def on_train_start(self) -> None:
        precision = str(self.trainer.precision)
        if precision.startswith("16"):
            raise ValueError(
                f"{type(self).__name__}: precision={precision!r} scales losses, which the weighing of gradients here does not "
                "know. Allowed: bf16-mixed, bf16-true, 32-true."
            )
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel) and not model.find_unused_parameters:
            raise ValueError(
                f"{type(self).__name__}: each side leaves the other's parameters unused, and this DDP does not look for such. "
                "Use --trainer.strategy ddp_find_unused_parameters_true."
            )

    @property
    def _discriminator_rate(self) -> float:
        own = None if self.adversary is None else self.adversary.learning_rate
        return self.learning_rate if own is None else own

    def playing(self, step: int) -> bool:
        """Whether the discriminator takes part at this generator step."""
        return self.discriminator is not None and step >= self.adversary.start

    def move_generator(self, loss: Tensor, step: int) -> None:
        """Backward and one counted step of the generator's optimizer, at the rate that belongs to `step`."""
        optimizer = self._optimizer(0)
        self._prepare(optimizer, self.learning_rate * self.rate_factor(step))
        self.manual_backward(loss)
        self._clip(optimizer, self.gradient_clip)
        optimizer.step()

    def move_discriminator(self, loss: Tensor, step: int, *, clip: float | None = None) -> None:
        """Backward and one step of the discriminator's optimizer, which nobody counts; `clip` None takes the generator's."""
        optimizer = self._optimizer(1)
        self._prepare(optimizer, self._discriminator_rate * self.rate_factor(step))
        self.manual_backward(loss)
        self._clip(optimizer, self.gradient_clip if clip is None else clip)
        self.trainer.strategy.optimizer_step(optimizer.optimizer, closure=lambda: loss)

    def _optimizer(self, index: int) -> Any:
        """Lightning's wrapper of an optimizer; its `step` is counted, that of the optimizer inside is not."""
        found = self.optimizers()
        return found[index] if isinstance(found, list) else found

    def _prepare(self, optimizer: Any, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)

    def _clip(self, optimizer: Any, clip: float | None) -> None:
        if clip is not None:
            self.clip_gradients(optimizer, gradient_clip_val=clip, gradient_clip_algorithm="norm")
