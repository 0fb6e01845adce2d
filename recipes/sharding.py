"""Training a model whose state does not fit one device: FSDP2 through Lightning's ModelParallelStrategy.

`zoo train CONFIG --trainer.strategy lightning.pytorch.strategies.ModelParallelStrategy` calls `configure_model` of the recipe,
which calls `shard`. Lightning's own EMA callback copies the model and so refuses shards; `ShardedEMA` takes its place in the YAML.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["ShardedEMA", "full", "shard"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_STEPS = ("training_step", "validation_step")


def shard(recipe: LightningModule, mesh: DeviceMesh, *, least: int = 1_000_000) -> None:
    """Shard a recipe in place: each large layer apart, the rest together, gathered for the length of a step.

    Layers and not blocks, because a family may call parts of a block by themselves (FlexTok's modulations all come first).

    Args:
        recipe: its steps see plain tensors.
        mesh: of the data-parallel processes.
        least: numbers in a layer that is gathered apart, only while it computes.
    """
    for layer in recipe.modules():
        if isinstance(layer, _LAYERS) and layer.weight.requires_grad and layer.weight.numel() >= least:
            fully_shard(layer, mesh=mesh)
    fully_shard(recipe, mesh=mesh)
    for step in _STEPS:
        register_fsdp_forward_method(recipe, step)


def full(value: Tensor) -> Tensor:
    """Gather a sharded tensor; every process must call it. A plain tensor comes back as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _reshard(module: nn.Module) -> None:
    """Let go of what a forward pass has gathered, so that parameters are shards again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


class ShardedEMA(Callback):
    """Exponential moving average of the trained parameters, each process keeping its own shard.

    Validation runs on the average, and so does the export at the end. A checkpoint holds the gathered average.

    Args:
        decay: share of the old average that a step keeps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ShardedEMA: decay={decay}. Allowed: 0 to below 1.")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._loaded: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._average = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
        for name, value in self._loaded.items():
            own = self._average[name]
            value = value.to(own.device, own.dtype)
            own.copy_(distribute_tensor(value, own.device_mesh, own.placements) if isinstance(own, DTensor) else value)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        _reshard(pl_module)
        for name, p in pl_module.named_parameters():
            if name in self._average:
                self._average[name].lerp_(p, 1 - self.decay)

    @torch.no_grad()
    def _swap(self, pl_module: LightningModule) -> None:
        """Put the average into the model, or the held weights back."""
        _reshard(pl_module)
        values = self._held or self._average
        held = {name: p.detach().clone() for name, p in pl_module.named_parameters() if name in values}
        for name, p in pl_module.named_parameters():
            if name in values:
                p.copy_(values[name])
        self._held = {} if self._held else held

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._average:
            self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._held:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in the model, for the export."""
        self._swap(pl_module)
        self._held = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: full(value).cpu() for name, value in self._average.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loaded = dict(state)
