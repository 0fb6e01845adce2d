"""What every recipe shares: AdamW with warm-up and decay, randomness keyed to the step; and what those of a tokenizer share."""

import hashlib
import math
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import zoo
from recipes.sharding import shard

__all__ = ["Recipe", "TokenizerRecipe", "training_attention", "warmup_cosine"]


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Give the factor of the learning rate: linear from 0 over `warmup` steps, then a cosine down to `floor` at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def training_attention(device: torch.device) -> Any:
    """Attention by plain matrix products on a CPU, whose fused backward is slow on short sequences.

    A step of flextok_nano at batch 32 took 0.223 s instead of 0.337 s of one core's time.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class Recipe(LightningModule):
    """Base of all recipes: the optimizer, its schedule, and where chance comes from.

    Args:
        learning_rate: at the top of the warm-up.
        betas: of AdamW.
        weight_decay: on matrices; vectors (norms, biases, tokens) have none.
        warmup_steps: linear warm-up.
        final_rate: share of the learning rate at `trainer.max_steps`.
        seed: of everything that is drawn in training, together with rank and step, so that a resumed run draws the same.
    """

    def __init__(
        self,
        *,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        warmup_steps: int = 100,
        final_rate: float = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.betas = tuple(betas)
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.final_rate = final_rate
        self.seed = seed
        self._sharded = False

    def configure_model(self) -> None:
        """Shard the model where the strategy asks for it (ModelParallelStrategy)."""
        if self._device_mesh is not None and not self._sharded:
            shard(self, self._device_mesh["data_parallel"])
            self._sharded = True

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Named parameters the optimizer moves."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    def adamw(self, named: list[tuple[str, nn.Parameter]], *, learning_rate: float) -> torch.optim.AdamW:
        """Build the optimizer of some parameters: decay on matrices, none on vectors."""
        matrices = [p for _, p in named if p.ndim >= 2]
        vectors = [p for _, p in named if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=self.betas)

    def rate_factor(self, step: int) -> float:
        """Give the factor of the learning rate at a step: warm-up, then a cosine to the end of the run."""
        total = int(self.trainer.estimated_stepping_batches)
        return warmup_cosine(step, warmup=self.warmup_steps, total=total, floor=self.final_rate)

    def configure_optimizers(self) -> Any:
        optimizer = self.adamw(self.trained_parameters(), learning_rate=self.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def draws(self, *, stage: str = "train", step: int | None = None) -> torch.Generator:
        """Give the generator of this step: a function of seed, stage, rank and step, so that a resumed run draws the same."""
        key = f"{self.seed}/{stage}/{self.global_rank}/{self.global_step if step is None else step}"
        number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        return torch.Generator(device=self.device).manual_seed(number)

    def log_scores(self, stage: str, values: dict[str, Tensor], *, batch_size: int) -> None:
        """Log under `stage/name`; validation means are over items and processes."""
        self.log_dict(
            {f"{stage}/{name}": value for name, value in values.items()},
            batch_size=batch_size,
            on_step=stage == "train",
            on_epoch=stage != "train",
            sync_dist=stage != "train",
        )


class TokenizerRecipe(Recipe):
    """Base of the recipes that train a tokenizer: builds `self.tokenizer`.

    Args:
        tokenizer: catalog name of what is trained.
        overrides: fields of its configuration to change.
        init: catalog name, folder or Hub repository whose weights to start from (fine-tuning).
        options: of `Recipe`.
    """

    def __init__(
        self,
        tokenizer: str,
        *,
        overrides: dict[str, Any] | None = None,
        init: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.tokenizer = zoo.create(tokenizer, info_name=tokenizer, **(overrides or {}))
        if init is not None:
            self.tokenizer.load_state_dict(self.adapt(zoo.load(init).state_dict()))

    def adapt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the tensors of `init` the shapes of the tokenizer that starts from them; here they are equal already."""
        return tensors
