"""A training order that can be continued in the middle of an epoch, on any number of processes.

The order of epoch e is one permutation, a function of (seed, e). Rank r of w takes every w-th picture from it, all
ranks the same number of whole batches; what is left over at the end of the permutation is dropped (another rest in
every epoch).

How this meets the restart of Lightning 2.6.6 (read in its fit loop and training epoch loop): a restored fit loop makes
a new iterator of the training loader at once, before any hook, and goes on counting batches from where the checkpoint
was written, so the epoch ends after `len(loader) - done` more batches. It never skips batches itself. Its own epoch
number is one too high after a run that `max_steps` ended inside an epoch. Hence the sampler asks, when an iterator is
made, how many batches the trainer has processed in its life (a number that is in the checkpoint) and starts there.
Batches that workers have fetched ahead do not count, and it does not matter how many iterators were made and thrown
away.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

__all__ = ["EpochSampler", "EvaluationSampler", "Position", "ResumableLoader", "even_batch_size", "seeded"]


class Position(NamedTuple):
    """Where training stands: so many whole epochs and, in the present one, so many batches are done."""

    epoch: int
    batch: int


def seeded(*parts: int | str) -> torch.Generator:
    """Return a CPU generator whose stream is a function of the parts alone; different parts give unrelated streams."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class EpochSampler(DistributedSampler):
    """Yield (epoch, index) pairs of this rank's stripe, from the current position to the end of the epoch.

    It is a DistributedSampler by type, so Lightning leaves it in place whatever `use_distributed_sampler` says.

    Args:
        count: number of pictures.
        batch_size: pictures per rank and step.
        seed: the permutation is a function of it and of the epoch.
        rank, world_size: this process and the number of processes.
        processed: returns the number of batches that training has processed so far; None outside a trainer, where the
            position is set by `set_epoch` alone.
        steps: stop every epoch after so many steps; None means all.
        start: where training stands at the time of construction.

    Raises:
        ValueError: fewer pictures than one batch on every rank.
    """

    def __init__(
        self,
        *,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        processed: Callable[[], int] | None = None,
        steps: int | None = None,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(range(count), num_replicas=world_size, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self.count = count
        self.batch_size = batch_size
        self.full_steps = count // (batch_size * world_size)
        if self.full_steps < 1:
            raise ValueError(
                f"EpochSampler: {count} pictures are fewer than batch_size={batch_size} times world_size={world_size}. "
                "Use a smaller batch_size, fewer processes or more pictures."
            )
        self.steps = self.full_steps if steps is None else max(1, min(steps, self.full_steps))
        self._processed = processed
        self._before = processed() if processed else 0
        self._start = Position(*start)

    def __len__(self) -> int:
        return self.full_steps * self.batch_size

    def position(self) -> Position:
        """Return where training stands now."""
        if self._processed is None:
            return self._start
        done = self._start.epoch * self.steps + self._start.batch + self._processed() - self._before
        return Position(*divmod(done, self.steps))

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch. Inside a trainer this does nothing: the count of processed batches decides."""
        if self._processed is None:
            self._start = Position(epoch, 0)

    def order(self, epoch: int) -> list[int]:
        """Return the indices that this rank sees in an epoch, in order."""
        shuffled = torch.randperm(self.count, generator=seeded("order", self.seed, epoch))
        return shuffled[self.rank :: self.num_replicas][: len(self)].tolist()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, batch = self.position()  # now, not when the first item is asked for
        return ((epoch, index) for index in self.order(epoch)[batch * self.batch_size :])


class EvaluationSampler(DistributedSampler):
    """Yield this rank's stripe in order; every picture on exactly one rank, none twice."""

    def __init__(self, *, count: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(count), num_replicas=world_size, rank=rank, shuffle=False, drop_last=False)
        if count < world_size:
            raise ValueError(
                f"EvaluationSampler: {count} pictures are fewer than world_size={world_size}: a process gets none. "
                "Use more pictures or fewer processes."
            )
        self._indices = range(rank, count, world_size)

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)


def even_batch_size(count: int, batch_size: int, world_size: int) -> int:
    """Return the batch size nearest to the wanted one that gives every rank the same number of evaluation steps.

    Stripes differ by one picture where world_size does not divide count; the steps then differ only if the shorter
    stripe is a multiple of the batch size.
    """
    shorter, rest = divmod(count, world_size)
    if not rest or shorter % batch_size:
        return batch_size
    even = (size for size in range(1, shorter + 2) if shorter % size)
    return min(even, key=lambda size: (abs(size - batch_size), size))


class ResumableLoader(DataLoader):
    """A DataLoader that tells Lightning it can be resumed. The datamodule keeps the position, so the state is empty."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
