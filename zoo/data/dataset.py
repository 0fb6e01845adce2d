"""Read a folder of token shards: streamed, shuffled by a seed, divided among ranks and workers, resumed inside an epoch.

The order of an epoch is one list that seed and epoch decide: the shards in a drawn order, and in each its items in a drawn order.
Each rank takes a stretch of equal length, each worker of a rank a stretch of that, so a process reads few shards, and no rank waits
for another at the end.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from zoo.data.plan import FORMAT, INDEX
from zoo.data.token_shards import TokenSample, open_shard
from zoo.hub import sha256_of
from zoo.tokens import Tokens, TokenSpec

__all__ = ["TokenDataset"]

_SHOWN = 10  # damaged shards that an error lists
_SAME = ("index_sha256", "seed", "shuffle", "world_size")


class TokenDataset(IterableDataset[TokenSample]):
    """Items of a folder that `zoo tokenize` made.

    For batches of tokens: `DataLoader(dataset, batch_size=8, num_workers=2, collate_fn=dataset.collate)`. Call `set_epoch` before
    each epoch after the first, as for a distributed sampler.

    Args:
        folder: with an `index.json`.
        shuffle: draw another order in every epoch.
        seed: of the orders; the same on every rank.
        rank, world_size: of this process; None takes those of torch.distributed where it runs, else of the environment of torchrun.
        verify: compare the checksums first.

    Attributes:
        spec: what the numbers mean.
        index: all that the folder says of itself: tokenizer, weights_sha256, protocol, counts, shards.

    Raises:
        FileNotFoundError: no complete folder there.
        ValueError: another format, fewer items than ranks, a rank that is none, or (`verify`) a damaged shard.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        verify: bool = False,
    ) -> None:
        self.folder, self.shuffle, self.seed = Path(folder), shuffle, seed
        path = self.folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(
                f"TokenDataset: {self.folder} has no {INDEX}. `zoo tokenize` writes it when all shards are there."
            )
        text = path.read_text(encoding="utf-8")
        self.index: dict[str, Any] = json.loads(text)
        if self.index.get("format") != FORMAT:
            raise ValueError(f"TokenDataset: {path} has format {self.index.get('format')!r}. Needed: {FORMAT!r}.")
        self.spec = TokenSpec.from_json(json.dumps(self.index["spec"]))
        self._index_sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._files = [self.folder / shard["file"] for shard in self.index["shards"]]
        self._counts = [int(shard["items"]) for shard in self.index["shards"]]
        here = _place()
        self.rank, self.world_size = here[0] if rank is None else rank, here[1] if world_size is None else world_size
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"TokenDataset: rank={self.rank} of world_size={self.world_size}. Allowed: 0..world_size - 1.")
        if sum(self._counts) < self.world_size:
            raise ValueError(f"TokenDataset: {self.folder} has {sum(self._counts)} items for {self.world_size} ranks. Use fewer.")
        self.epoch, self._yielded = 0, 0
        self._resume: dict[str, int] = {}
        if verify:
            self.verify()

    def __len__(self) -> int:
        """Items of an epoch on this rank; the same on every rank (of all items, fewer than `world_size` are left out)."""
        return sum(self._counts) // self.world_size

    def __iter__(self) -> Iterator[TokenSample]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        start, stop, skip = self._stretch(worker, workers)
        self._resume, self._yielded = {}, skip
        for file, place in self._places(start + skip, stop):
            self._yielded += 1
            yield open_shard(file, self.spec)[place]

    @staticmethod
    def collate(samples: Sequence[TokenSample]) -> Tokens:
        """Join samples to a batch of tokens; smaller items are padded and `lengths` remembers."""
        return Tokens.cat([sample.tokens for sample in samples])

    # -- position ------------------------------------------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch, whose order is its own where `shuffle` is on."""
        self.epoch, self._yielded, self._resume = epoch, 0, {}

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration of this process stands; in a worker, that of the worker (as torchdata's StatefulDataLoader asks)."""
        info = get_worker_info()
        return {**self._order(), "items": self._yielded, "workers": info.num_workers if info else 1}

    def state_after(self, batches: int, *, batch_size: int, num_workers: int = 0) -> dict[str, Any]:
        """Where a plain DataLoader stands after so many batches of the present epoch.

        Args:
            batches: that training has finished with since the epoch began, earlier runs counted.
            batch_size, num_workers: of the loader; after `load_state_dict` it must have the same.

        Raises:
            ValueError: a number out of range.
        """
        if batches < 0 or batch_size < 1 or num_workers < 0:
            given = f"batches={batches}, batch_size={batch_size}, num_workers={num_workers}"
            raise ValueError(f"TokenDataset.state_after: {given}. Allowed: at least 0, 1 and 0.")
        return {**self._order(), "batches": batches, "batch_size": batch_size, "workers": max(1, num_workers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` or `state_after` stood: the rest of the epoch comes in exactly its order.

        Raises:
            ValueError: the state of another folder, order or number of ranks.
        """
        own = self._order()
        differ = [f"{key} was {state.get(key)} and is {own[key]}" for key in _SAME if state.get(key) != own[key]]
        if differ:
            raise ValueError(f"TokenDataset.load_state_dict: {'; '.join(differ)}. Make the data set as it was.")
        self.epoch = int(state["epoch"])
        self._resume = {key: int(state[key]) for key in ("items", "batches", "batch_size", "workers") if key in state}
        self._yielded = self._resume.get("items", 0)

    def verify(self) -> None:
        """Compare size and checksum of every shard.

        Raises:
            ValueError: with the shards that are damaged or not there.
        """
        damaged = []
        for file, shard in zip(self._files, self.index["shards"], strict=True):
            if not file.is_file() or file.stat().st_size != shard["bytes"] or sha256_of(file) != shard["sha256"]:
                damaged.append(file.name)
        if damaged:
            advice = "Run `zoo tokenize` again with the same words and --verify: it makes them anew"
            shown = ", ".join(damaged[:_SHOWN])
            raise ValueError(f"TokenDataset.verify: {len(damaged)} of {len(self._files)} shards are damaged: {shown}. {advice}.")

    def _order(self) -> dict[str, Any]:
        """All that the order of this rank depends on."""
        facts = {"index_sha256": self._index_sha256, "seed": self.seed, "shuffle": self.shuffle, "world_size": self.world_size}
        return {**facts, "epoch": self.epoch}

    def _stretch(self, worker: int, workers: int) -> tuple[int, int, int]:
        """Begin and end of a worker's part of the order, and how much of it an earlier run has taken."""
        resume = self._resume
        if resume and resume["workers"] != workers:
            raise ValueError(f"TokenDataset: the state is of {resume['workers']} workers, the loader has {workers}. Use as many.")
        batches = resume.get("batches", 0)
        worker = (worker + batches) % workers  # a loader asks worker 0 first, the turn is that of another
        whole, more = divmod(len(self), workers)
        start = self.rank * len(self) + worker * whole + min(worker, more)
        count = whole + (worker < more)
        taken = resume.get("items", 0) + -(-(batches - worker) // workers) * resume.get("batch_size", 0)
        return start, start + count, min(max(0, taken), count)

    def _places(self, start: int, stop: int) -> Iterator[tuple[Path, int]]:
        """Shard and place in it, for a stretch of the order of the epoch."""
        shards = range(len(self._files))
        position = 0
        for shard in self._drawn(len(shards), "shards"):
            count = self._counts[shard]
            if position < stop and position + count > start:
                chosen = self._drawn(count, str(shard))[max(0, start - position) : stop - position]
                for place in chosen:
                    yield self._files[shard], place
            position += count

    def _drawn(self, count: int, what: str) -> Sequence[int]:
        if not self.shuffle:
            return range(count)
        digest = hashlib.sha256(f"{self.seed} {self.epoch} {what}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return torch.randperm(count, generator=generator).tolist()


def _place() -> tuple[int, int]:
    """Rank and world size of this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
