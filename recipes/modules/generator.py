"""Train a generator of the zoo on the tokens of a frozen tokenizer: one recipe for all families, each with its own loss.

The objective (cross entropy, masked codes, flow matching, ...) is the family's `loss`; classes are left out there for the share
`label_dropout` of the items, so that sampling can be guided (classifier-free guidance, arXiv 2207.12598).
"""

import math
from typing import Any

import torch
from torch import Tensor

import zoo
from recipes.modules.base import Recipe, training_attention
from zoo import generators
from zoo.generators.sequence import SequenceGenerator

__all__ = ["GeneratorRecipe"]


class GeneratorRecipe(Recipe):
    """Train on batches with `tokens` and `labels (b,)`, as `recipes.data.tokens` gives them.

    The generator is built for the tokens that the tokenizer makes: their number, vocabulary and codebooks are read off it. The
    tokenizer itself is no part of the recipe.

    Args:
        generator: catalog name of what is trained, or a family.
        tokenizer: catalog name, folder or repository of the frozen tokenizer, or the tokenizer; None takes the one that the entry
            names.
        depth: so many levels of a residual tokenizer; None takes all.
        overrides: fields of the generator's configuration to change.
        init: catalog name, folder or repository of a generator whose weights to start from (fine-tuning).
        options: of `Recipe`.

    Raises:
        ValueError: an unknown generator, or no tokenizer for it.
    """

    def __init__(
        self,
        generator: str,
        *,
        tokenizer: Any = None,
        depth: int | None = None,
        overrides: dict[str, Any] | None = None,
        init: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if tokenizer is None:
            known = {entry.name: entry.tokenizer for entry in generators.find()}
            tokenizer = known.get(generator)
            if tokenizer is None:
                raise ValueError(f"GeneratorRecipe: {generator} names no tokenizer. Give tokenizer=.")
        tokenizer = zoo.load(tokenizer) if not isinstance(tokenizer, torch.nn.Module) else tokenizer
        self.generator = generators.create_for(generator, tokenizer, depth=depth, **(overrides or {}))
        if init is not None:
            self.generator.load_state_dict(generators.load(init).state_dict())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with training_attention(self.device):
            loss = self.generator.loss(batch.tokens, self._classes(batch), generator=self.draws())
        self.log_scores("train", {"loss": loss}, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss with the class and without it, at fixed draws; bits of a picture where the generator has a likelihood."""
        gen, classes = self.generator, self._classes(batch)
        values = {"loss": gen.loss(batch.tokens, classes, generator=self.draws(stage="val", step=batch_idx))}
        if classes is not None:
            values["loss_without_class"] = gen.loss(batch.tokens, generator=self.draws(stage="val", step=batch_idx))
        if isinstance(gen, SequenceGenerator):
            values["bits_per_picture"] = gen.nats(batch.tokens, classes).mean() / math.log(2)
        self.log_scores("val", values, batch_size=len(batch.labels))

    def _classes(self, batch: Any) -> Tensor | None:
        return batch.labels if self.generator.config.classes else None
