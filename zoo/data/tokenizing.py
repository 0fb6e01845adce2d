"""A whole data set to token shards: each shard is whole or not there, and a run that was killed continues to the same files.

The items are cut into stretches of a fixed number; a stretch gives one shard, whatever happened to its neighbours, so what a shard
holds depends on the plan alone (`zoo.data.plan`), not on how many processes worked or how often they were stopped.

    items -> threads: read, decode -> groups of one size -> network -> items in their order -> shard
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.inputs import Item, Listing, ending_of, list_items, read_item
from zoo.data.plan import Protocol, ShardPlace, check_rate, claimed, make_plan, write_durably, write_index
from zoo.data.token_shards import TokenSample, writer_of
from zoo.hub import sha256_of
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["KINDS", "Progress", "ShardWork", "Summary", "summary_of", "survey", "tokenize"]

KINDS = {"image": ("image",), "audio": ("audio",), "video": ("video", "image")}
"""Kinds of files that a tokenizer of a modality takes."""

_GROUPS = 4  # batches of signals that wait for others of their size


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where this process stands: items done (of earlier runs too), errors among them, all there are; `fresh` are of this run."""

    done: int
    errors: int
    total: int
    fresh: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is in the folder: for every process together where `complete`, else what this process did.

    Attributes:
        complete: every shard is there and the index is written.
        items: that went in.
        tokenized: that have tokens.
        errors: that do not; `items` is the sum of both.
        shards: files.
        passed_over: files of the input whose names end in nothing that this tokenizer takes.
        fresh: items of this run and process.
        seconds: that they took.
    """

    complete: bool
    items: int
    tokenized: int
    errors: int
    shards: int
    passed_over: int
    fresh: int
    seconds: float


def tokenize(
    tokenizer: Tokenizer,
    source: str | Path,
    out: str | Path,
    protocol: Protocol | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
    readers: int = 2,
    verify: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> Summary:
    """Tokenize every item of a data set into `out`; called again, it goes on where it was stopped.

    Args:
        tokenizer: with its weights, in evaluation mode.
        source: a folder, a tar shard, a Parquet file or a file (`zoo.data.inputs.list_items`).
        out: folder of the shards; made where it does not exist.
        protocol: how items become tokens.
        rank, world_size: this process and how many there are; shards are dealt out in turn, and the files do not depend on it.
        readers: threads that read and decode files while the network works.
        verify: compare the checksums of shards that are there already, and make damaged ones anew.
        report: called after every batch.

    Returns:
        What was done. An item that cannot be read or encoded is listed in `errors.jsonl` and stops nothing.

    Raises:
        FileNotFoundError: no such input.
        ValueError: nothing to take, an output folder with another plan, a rate or a size that the tokenizer does not have, or a
            process of this rank that works in the folder already.
    """
    name, protocol, out = f"tokenize with {tokenizer.info.name}", protocol or Protocol(), Path(out)
    if not 0 <= rank < world_size:
        raise ValueError(f"{name}: rank={rank} of world_size={world_size}. Allowed: 0..world_size - 1.")
    listing, plan = survey(tokenizer, source, out, protocol, readers=readers)
    items = listing.items
    with claimed(out, plan, rank=rank, world_size=world_size):
        work = ShardWork(tokenizer, out, protocol, rank=rank, readers=readers, report=report)
        own = range(rank, protocol.count(items), world_size)
        mine = work.write({number: protocol.stretch(items, number) for number in own}, verify=verify)
        found = [ShardPlace(out, number, protocol.shards).facts() for number in range(protocol.count(items))]
        parts = [part for part in found if part is not None]
        complete = len(parts) == len(found)
        if complete:
            write_index(out, plan, parts, rank=rank)
    if complete:
        return summary_of(plan, parts, fresh=work.fresh, seconds=work.seconds)
    return summary_of(plan, mine, total=work.total, fresh=work.fresh, seconds=work.seconds)


def survey(
    tokenizer: Tokenizer,
    source: str | Path,
    out: Path,
    protocol: Protocol,
    *,
    readers: int,
    device: str | None = None,
    threads: int | None = None,
) -> tuple[Listing, dict[str, Any]]:
    """Refuse what can be refused before any work; list the items, and make the plan.

    Args:
        tokenizer, source, out, protocol, readers: as for `tokenize`.
        device, threads: of the processes that will do the work; None takes those of this one (`make_plan`).

    Raises:
        FileNotFoundError, ValueError: as `tokenize`.
    """
    name = f"tokenize with {tokenizer.info.name}"
    if readers < 1:
        raise ValueError(f"{name}: readers={readers}. Allowed: 1 or more.")
    if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{name}: OUT {out} lies in the input {source}, and would become part of it. Choose a place outside.")
    check_rate(tokenizer, protocol)
    listing = list_items(source, kinds=KINDS[tokenizer.info.modality], column=protocol.column)
    return listing, make_plan(tokenizer, listing, protocol, device=device, threads=threads)


def summary_of(
    plan: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], *, total: int | None = None, fresh: int, seconds: float
) -> Summary:
    """Add up what shards say of themselves, and see that no item is missing.

    Args:
        plan: of the folder.
        parts: what the shards say.
        total: items that these shards stand for; None where they are all shards of the folder.
        fresh, seconds: of this run.

    Raises:
        RuntimeError: the counts do not add up, which no input can cause.
    """
    items = plan["inputs"]["items"] if total is None else total
    tokenized, errors = sum(part["items"] for part in parts), sum(len(part["errors"]) for part in parts)
    if items != tokenized + errors:
        name = f"tokenize with {plan['tokenizer']}"
        raise RuntimeError(f"{name}: {items} items went in, but {tokenized} tokenized and {errors} errors came out.")
    return Summary(
        complete=total is None,
        items=items,
        tokenized=tokenized,
        errors=errors,
        shards=len(parts),
        passed_over=plan["inputs"]["passed_over"],
        fresh=fresh,
        seconds=seconds,
    )


@dataclass
class _Read:
    """An item after reading: its signal `(c, *sides)` and what goes along, or why there is none."""

    signal: Tensor | None = None
    sha256: str = ""
    others: Mapping[str, bytes] | None = None
    error: str = ""


class ShardWork:
    """The shards of one process, and its progress.

    Args:
        tokenizer: with its weights.
        out: folder of the shards.
        protocol: how items become tokens.
        rank: of this process, or `worker_rank()`: part of the names of unfinished files.
        readers: threads.
        report: called after every batch.

    Attributes:
        total: items of the shards of this process.
        fresh: of them, those of this run.
        seconds: that these took.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        out: Path,
        protocol: Protocol,
        *,
        rank: int,
        readers: int,
        report: Callable[[Progress], None] | None = None,
    ) -> None:
        self.tokenizer, self.out, self.protocol = tokenizer, out, protocol
        self.rank, self.readers, self._report = rank, readers, report
        self.total, self.fresh, self.seconds, self._before, self._errors = 0, 0, 0.0, 0, 0

    @torch.inference_mode()
    def write(self, stretches: Mapping[int, Sequence[Item]], *, verify: bool = False) -> list[dict[str, Any]]:
        """Write those of these shards that are not there, and give what each says of itself.

        Args:
            stretches: numbers of the shards, and the items of each.
            verify: compare the checksums of those that are there.
        """
        places = [ShardPlace(self.out, number, self.protocol.shards) for number in stretches]
        facts = {place.number: place.facts(verify=verify) for place in places}
        self.total += sum(len(stretch) for stretch in stretches.values())
        self._before += sum(len(stretch) for number, stretch in stretches.items() if facts[number] is not None)
        self._errors += sum(len(found["errors"]) for found in facts.values() if found is not None)
        missing = [place for place in places if facts[place.number] is None]
        self._tell()
        start = time.monotonic()
        with closing(self._read_ahead(chain.from_iterable(stretches[place.number] for place in missing))) as reads:
            for place in missing:
                facts[place.number] = self._shard(place, stretches[place.number], reads)
        self.seconds += time.monotonic() - start
        return [found for found in facts.values() if found is not None]

    def _shard(self, place: ShardPlace, items: Sequence[Item], reads: Iterator[_Read]) -> dict[str, Any]:
        """Write one shard and, after it, the file that says it is whole."""
        first, errors = place.number * self.protocol.shard_items, []
        temporary = self.out / f".{place.data.stem}.rank{self.rank}.part{place.data.suffix}"
        with writer_of(temporary, self.protocol.shards, self.tokenizer.spec) as writer:
            for position, (item, read, tokens) in enumerate(self._encoded(items, reads)):
                number = first + position
                if tokens is None:
                    errors.append({"number": number, "item": item.name, "error": read.error})
                    continue
                extent = tokens.extent[0].tolist()
                record = {"number": number, "item": item.name, "source_sha256": read.sha256, "extent": extent}
                writer.add(TokenSample(key=f"{number:09d}", tokens=tokens, record=record, others=read.others or {}))
        facts = {"file": place.data.name, "sha256": sha256_of(temporary), "bytes": temporary.stat().st_size}
        facts |= {"items": len(items) - len(errors), "errors": errors}
        write_durably(temporary, place, facts, rank=self.rank)
        return facts

    # -- the network ---------------------------------------------------------------------------------------------------------------

    def _encoded(self, items: Sequence[Item], reads: Iterator[_Read]) -> Iterator[tuple[Item, _Read, Tokens | None]]:
        """Encode in groups of one size, and give the items in their order, each as soon as it and all before it are done."""
        size, waiting = self.protocol.batch_size, dict[tuple[int, ...], list[int]]()
        held: dict[int, _Read] = {}
        done: dict[int, Tokens | None] = {}
        next_out = 0
        for position in range(len(items)):
            held[position] = read = next(reads)
            if read.signal is None:
                done[position] = None
                self._count(1, 1)
            else:
                waiting.setdefault(tuple(read.signal.shape), []).append(position)
            full = [shape for shape, rows in waiting.items() if len(rows) == size]
            if not full and sum(map(len, waiting.values())) >= _GROUPS * size:
                full = [max(waiting, key=lambda shape: len(waiting[shape]))]
            if position == len(items) - 1:
                full = list(waiting)
            for shape in full:
                done |= self._encode(held, waiting.pop(shape), items)
            while next_out in done:
                yield items[next_out], held.pop(next_out), done.pop(next_out)
                next_out += 1

    def _encode(self, held: dict[int, _Read], rows: list[int], items: Sequence[Item]) -> dict[int, Tokens | None]:
        """Tokens of each item; where a group is refused, its items are tried one by one, so that the fault finds its own."""
        signals = [held[row].signal for row in rows]
        try:
            out: list[Tokens | None] = list(self._tokens(signals))
        except torch.AcceleratorError:  # the device is broken, and would make an error of every item
            raise
        except (ValueError, RuntimeError):
            out = [self._alone(held[row], items[row]) for row in rows]
        for row in rows:
            held[row].signal = None
        self._count(len(rows), sum(tokens is None for tokens in out))
        return dict(zip(rows, out, strict=True))

    def _alone(self, read: _Read, item: Item) -> Tokens | None:
        try:
            return self._tokens([read.signal])[0]
        except torch.AcceleratorError:
            raise
        except (ValueError, RuntimeError) as error:
            read.error = f"encode: {error}".replace(str(item.path), item.name)
            return None

    def _tokens(self, signals: list[Any]) -> list[Tokens]:
        batch = torch.stack(signals).to(self.tokenizer.device, self.tokenizer.dtype)
        tokens = self.tokenizer.encode(batch, **self.protocol.rate).to("cpu")
        tokens.check_codes()
        return list(tokens)

    # -- the readers ---------------------------------------------------------------------------------------------------------------

    def _read_ahead(self, items: Iterator[Item]) -> Iterator[_Read]:
        """Read in threads, two batches ahead of the network and beyond the end of a shard; in order."""
        ahead: deque[Future[_Read]] = deque()
        pool = ThreadPoolExecutor(self.readers)
        try:
            for item in items:
                ahead.append(pool.submit(self._read, item))
                if len(ahead) > 2 * self.protocol.batch_size + self.readers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, item: Item) -> _Read:
        """Read and decode one item; what is wrong with it becomes its error."""
        try:
            content, ending, others = read_item(item)
        except (ValueError, OSError) as error:
            return _Read(error=str(error).replace(str(item.path), item.name))
        digest = hashlib.sha256(content).hexdigest()
        if item.offset is None and item.column is None:
            return self._decoded(item, item.path, digest, others)
        # The readers of media want a file.
        ending = ending_of(self.tokenizer.info.modality, ending)
        temporary = self.out / f".item.rank{self.rank}.part.{hashlib.sha256(item.name.encode()).hexdigest()[:16]}{ending}"
        temporary.write_bytes(content)
        try:
            return self._decoded(item, temporary, digest, others)
        finally:
            temporary.unlink()

    @torch.inference_mode()
    def _decoded(self, item: Item, path: Path, digest: str, others: Mapping[str, bytes]) -> _Read:
        info, protocol = self.tokenizer.info, self.protocol
        size = info.native_size if protocol.size is None else protocol.size
        try:
            if info.modality == "audio":
                from zoo.media.audio import read_sounds

                rate = int(info.sample_rate or 0)
                signal = read_sounds(path, sample_rate=None, target_rate=rate, channels=self.tokenizer.in_channels)[0]
            elif info.modality == "video":
                from zoo.media.video import read_videos

                signal = read_videos(path, size=size, crop=protocol.crop)[0]
            else:
                from zoo.media.image import read_images

                signal = read_images(path, size=size, crop=protocol.crop)[0]
        except (ValueError, OSError) as error:
            return _Read(error=str(error).replace(str(path), item.name))
        return _Read(signal=signal, sha256=digest, others=others)

    # -- progress ------------------------------------------------------------------------------------------------------------------

    def _count(self, items: int, errors: int) -> None:
        self.fresh += items
        self._errors += errors
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            done = self._before + self.fresh
            self._report(Progress(done=done, errors=self._errors, total=self.total, fresh=self.fresh))
