"""What every training datamodule of the recipes shares: stripes, loaders and the position in the checkpoint."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from recipes.data.sampler import EpochSampler, EvaluationSampler, Position, ResumableLoader, even_batch_size

__all__ = ["ResumableDataModule"]

_logger = logging.getLogger(__name__)


class ResumableDataModule(LightningDataModule):
    """A datamodule whose training batches continue exactly after a checkpoint, also inside an epoch.

    The position goes into the checkpoint through `state_dict`. It counts batches that training has finished with, never
    batches that workers have merely fetched. A checkpoint written between two batches of one gradient accumulation
    loses the gradients gathered so far; ModelCheckpoint with `every_n_train_steps` writes after optimizer steps only.

    Args:
        batch_size: items per process and step.
        num_workers: loader processes.
        seed: of the order.

    Raises:
        ValueError: batch_size below 1 or num_workers below 0.
    """

    def __init__(self, *, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"{type(self).__name__}: batch_size={batch_size}. Use 1 or more.")
        if num_workers < 0:
            raise ValueError(f"{type(self).__name__}: num_workers={num_workers}. Use 0 (no loader process) or more.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self._sampler: EpochSampler | None = None
        self._sampler_trainer: Trainer | None = None
        self._restored: dict[str, int] = {}

    def training_loader(self, dataset: Dataset | None, collate: Callable[[list[Any]], Any]) -> DataLoader:
        """Return a loader whose dataset is asked for (epoch, index) pairs, from the restored position on.

        Raises:
            RuntimeError: `setup` was not called.
            ValueError: the checkpoint lies inside an epoch and was written with another order; see `load_state_dict`.
        """
        if dataset is None:
            raise RuntimeError(f"{type(self).__name__}: there is no training set yet. Call setup('fit') first.")
        rank, world_size = self._place()
        count = len(dataset)
        in_trainer = self.trainer is not None
        start = self._start(count, world_size)
        self._sampler = EpochSampler(
            count=count,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            processed=self._processed if in_trainer else None,
            steps=self._step_limit(count // (self.batch_size * world_size)) if in_trainer else None,
            start=start,
        )
        self._sampler_trainer = self.trainer
        self._restored = {}
        return self._loader(dataset, collate, sampler=self._sampler, batch_size=self.batch_size, drop_last=True)

    def evaluation_loader(self, dataset: Dataset | None, collate: Callable[[list[Any]], Any]) -> DataLoader | list:
        """Return a loader whose dataset is asked for every index once, over all processes; no dataset, no loader.

        With several processes the batch size may differ from the wanted one by a little, so that all take the same
        number of steps without showing any item twice.
        """
        if dataset is None:
            return []
        rank, world_size = self._place()
        count = len(dataset)
        sampler = EvaluationSampler(count=count, rank=rank, world_size=world_size)
        batch_size = even_batch_size(count, self.batch_size, world_size)
        return self._loader(dataset, collate, sampler=sampler, batch_size=batch_size, drop_last=False)

    def state_dict(self) -> dict[str, int]:
        """Return the position of training and what the order depends on; empty before training."""
        if self._sampler is None:
            return {}
        epoch, batch = self._sampler.position()
        return {"epoch": epoch, "batch": batch, **self._order(self._sampler.count, self._sampler.num_replicas)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take the position of a checkpoint; the next training loader starts there.

        Inside an epoch this needs the same count of pictures, batch size, number of processes and seed as before: the
        loader raises ValueError if they differ. Between two epochs they may change.
        """
        self._restored = dict(state_dict)
        self._sampler = None

    def _order(self, count: int, world_size: int) -> dict[str, int]:
        return {"count": count, "batch_size": self.batch_size, "world_size": world_size, "seed": self.seed}

    def _start(self, count: int, world_size: int) -> Position:
        if not self._restored:
            if self._sampler is not None and self._sampler_trainer is self.trainer:
                return self._sampler.position()  # Lightning asked for the loader again
            if self.trainer is not None and self._processed():
                _logger.warning(
                    "%s: the checkpoint holds no position of this datamodule; the pictures begin with epoch 0.",
                    type(self).__name__,
                )
            return Position(0, 0)
        position = Position(self._restored["epoch"], self._restored["batch"])
        now = self._order(count, world_size)
        differ = [name for name in now if now[name] != self._restored[name]]
        if position.batch and differ:
            found = ", ".join(f"{name} was {self._restored[name]} and is {now[name]}" for name in differ)
            raise ValueError(
                f"{type(self).__name__}: the checkpoint lies inside epoch {position.epoch}, after batch "
                f"{position.batch} of it, and its order cannot be continued: {found}. Set them as they were, or resume "
                "from a checkpoint written at the end of an epoch."
            )
        return position

    def _place(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _processed(self) -> int:
        """Batches this training has finished in its life, restarts included; Lightning keeps it in the checkpoint."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def _step_limit(self, steps: int) -> int:
        limit = self.trainer.limit_train_batches
        return int(steps * limit) if isinstance(limit, float) else min(steps, limit)

    def _loader(self, dataset: Dataset, collate: Callable[[list[Any]], Any], **arguments: Any) -> DataLoader:
        return ResumableLoader(
            dataset=dataset,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **arguments,
        )
