"""A folder of token shards: the plan that its files depend on, the claim of a process, what each shard says of itself, the index.

    OUT/plan.json           tokenizer, hash of its weights, protocol, hash of the list of inputs; written first
    OUT/shard-000000.tar    samples of tokens (or .parquet)
    OUT/shard-000000.json   checksum, counts and errors of that shard; written after it, and says that it is whole
    OUT/errors.jsonl        the items that could not be read or encoded; written when every shard is there
    OUT/index.json          plan, counts and shards; written last, and says that the folder is complete

Every file is written under a hidden name and takes its place when it is whole and on the disk.
"""

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, get_args

import torch

from zoo.checkpoint import tensors_sha256
from zoo.data.inputs import Item, Listing
from zoo.data.token_shards import ENDINGS, ShardFormat
from zoo.hub import sha256_of
from zoo.tokenizer import Tokenizer

__all__ = [
    "ERRORS",
    "FORMAT",
    "INDEX",
    "Protocol",
    "ShardPlace",
    "check_rate",
    "claimed",
    "joined",
    "led",
    "make_plan",
    "worker_rank",
    "write_durably",
    "write_index",
]

FORMAT = "zoo-token-shards-1"
"""Said in the plan and the index of a folder of token shards."""
INDEX = "index.json"
"""Name of the file that describes a complete folder."""
ERRORS = "errors.jsonl"
"""Name of the file that lists the items without tokens."""

_PLAN = "plan.json"
_WORKERS = 1 << 40  # ranks are below it, `worker_rank()` is not
_LOOK_AGAIN = 0.1  # seconds


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How items become tokens, and tokens shards: all that the files depend on beside the weights and the inputs.

    Attributes:
        size: sides `(h, w)` of pictures and clips, or one number; None takes the native size.
        crop: cut the centre to the size; False keeps the aspect ratio.
        tokens: keep the first so many positions of an ordered tokenizer.
        depth: keep the first so many levels of a residual one.
        tile: encode larger pictures in tiles of so many pixels.
        column: of Parquet inputs, where the signal is; None finds it.
        batch_size: items of one size encoded together.
        shard_items: input items that one shard stands for.
        shards: format of the output, "webdataset" (tar) or "parquet".
    """

    size: int | tuple[int, int] | None = None
    crop: bool = True
    tokens: int | None = None
    depth: int | None = None
    tile: int | None = None
    column: str | None = None
    batch_size: int = 8
    shard_items: int = 1000
    shards: ShardFormat = "webdataset"

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"tokenize: {name}={getattr(self, name)}. Allowed: at least 1.")
        if self.shards not in get_args(ShardFormat):
            raise ValueError(f"tokenize: shards={self.shards!r}. Allowed: {', '.join(get_args(ShardFormat))}.")

    @property
    def rate(self) -> dict[str, int]:
        """The arguments of `encode`."""
        given = {"tokens": self.tokens, "depth": self.depth, "tile": self.tile}
        return {name: value for name, value in given.items() if value is not None}

    def count(self, items: Sequence[Item]) -> int:
        """Shards that so many items make."""
        return -(-len(items) // self.shard_items)

    def stretch(self, items: Sequence[Item], number: int) -> Sequence[Item]:
        """The items of one shard."""
        return items[number * self.shard_items : (number + 1) * self.shard_items]


@dataclass(frozen=True)
class ShardPlace:
    """Where one shard and what it says of itself lie."""

    out: Path
    number: int
    shards: ShardFormat

    @property
    def data(self) -> Path:
        return self.out / f"shard-{self.number:06d}{ENDINGS[self.shards]}"

    @property
    def facts_path(self) -> Path:
        return self.out / f"shard-{self.number:06d}.json"

    def facts(self, *, verify: bool = False) -> dict[str, Any] | None:
        """What a whole shard says of itself; None where it has still to be made, or made again.

        Args:
            verify: also compare the checksum, not only the size.
        """
        if not self.facts_path.is_file() or not self.data.is_file():
            return None
        facts = json.loads(self.facts_path.read_text(encoding="utf-8"))
        if self.data.stat().st_size != facts["bytes"] or (verify and sha256_of(self.data) != facts["sha256"]):
            return None
        return facts


def check_rate(tokenizer: Tokenizer, protocol: Protocol) -> None:
    """Refuse, before any work, what would make an error of every item.

    Raises:
        ValueError: a rate, size or tile that the tokenizer does not have.
    """
    name = f"tokenize with {tokenizer.info.name}"
    tokenizer._check_keep(protocol.tokens, 1)
    if protocol.depth is not None:
        tokenizer._check_depth(protocol.depth)
    tokenizer._tiling(protocol.tile, "encode")
    if tokenizer.info.modality == "audio":
        if protocol.size is not None or not protocol.crop:
            raise ValueError(f"{name}: sound has no size to change. Leave size and crop out.")
        if tokenizer.info.sample_rate is None:
            raise ValueError(f"{name}: its entry states no sample rate, so files cannot be read for it. Use encode() in Python.")


def make_plan(
    tokenizer: Tokenizer, listing: Listing, protocol: Protocol, *, device: str | None = None, threads: int | None = None
) -> dict[str, Any]:
    """All that the files depend on, as JSON values.

    The number of threads is one of them: a processor adds in another order with another number, and where a feature lies between
    two codes the last bit decides (`rvq_nano`, 658 pictures, one thread and two: 7 of 673,792 codes differ).

    Args:
        tokenizer, listing, protocol: of the work.
        device: kind of the devices that will do it; None takes that of the tokenizer.
        threads: of each process that will do it on a processor; None takes those that torch has here.
    """
    device = device or tokenizer.device.type
    info = tokenizer.info
    facts = {**asdict(protocol), "size": info.native_size if protocol.size is None else protocol.size}
    facts |= {"sample_rate": info.sample_rate, "dtype": str(tokenizer.dtype).removeprefix("torch.")}
    facts |= {"device": device, "torch": torch.__version__}
    facts["threads"] = (threads or torch.get_num_threads()) if device == "cpu" else None
    plan = {
        "format": FORMAT,
        "tokenizer": info.name,
        "weights_sha256": tensors_sha256(tokenizer),
        "spec": json.loads(tokenizer.spec.to_json()),
        "protocol": facts,
        "inputs": {"items": len(listing.items), "sha256": listing.sha256, "passed_over": listing.passed_over},
    }
    return json.loads(json.dumps(plan))


@contextmanager
def claimed(out: Path, plan: dict[str, Any], *, rank: int, world_size: int) -> Iterator[None]:
    """Hold the folder for this rank; write the plan, or refuse a folder that has another one.

    Raises:
        ValueError: other files are there, another plan, or another process of this rank or workers of an engine at work.
    """
    name = _begun(out, plan, rank)
    # The lock goes with the process, however it ends. Closing any handle of the file would drop it: it is opened once.
    with (out / _PLAN).open("r+", encoding="utf-8") as file:
        if not _locked(file, rank, 1):
            raise ValueError(f"{name}: another process of rank {rank} works in {out}. Wait for its end, or stop it.")
        if not _locked(file, _WORKERS, 0, shared=True):
            raise ValueError(f"{name}: workers of another engine work in {out}. Wait for their end, or stop them.")
        _same_plan(json.load(file), plan, out, name)
        for leftover in _leftovers(out):
            owner = leftover.name.partition(".rank")[2].partition(".")[0]
            if owner.isdigit() and int(owner) % world_size == rank:
                leftover.unlink()
        yield


@contextmanager
def led(out: Path, plan: dict[str, Any], *, patience: float) -> Iterator[None]:
    """Hold the folder for the one process that hands out work to others (`joined`), and for no rank; else as `claimed`.

    Args:
        out, plan: as for `claimed`.
        patience: seconds that the processes of an earlier run may take to end, as an engine ends them some time after its head.

    Raises:
        ValueError: as `claimed`; processes that are still at work after so long.
    """
    name = _begun(out, plan, 0)
    with (out / _PLAN).open("r+", encoding="utf-8") as file:
        _wait(file, 0, _WORKERS, patience, name, out)
        _wait_for_workers(file, patience, name, out)
        _same_plan(json.load(file), plan, out, name)
        for leftover in _leftovers(out):
            leftover.unlink()
        yield
        _wait_for_workers(file, patience, name, out)
        for leftover in _leftovers(out):  # of workers that were killed, and whose shards others made
            leftover.unlink()


@contextmanager
def joined(out: Path, plan: dict[str, Any], *, rank: int) -> Iterator[None]:
    """Take part, as a worker, in the work of the process that leads this folder (`led`).

    Args:
        out: the folder as this machine sees it.
        plan: as this process makes it.
        rank: `worker_rank()`.

    Raises:
        ValueError: no plan is there, or another one.
    """
    name, path = f"tokenize with {plan['tokenizer']}", out / _PLAN
    if not path.is_file():
        raise ValueError(f"{name}: there is no {path}. All machines must see the same folder: give a shared one.")
    with path.open("r+", encoding="utf-8") as file:
        if not _locked(file, rank, 1):
            raise ValueError(f"{name}: another process of rank {rank} works in {out}. Wait for its end, or stop it.")
        _same_plan(json.load(file), plan, out, name)
        yield


def worker_rank() -> int:
    """A number that no rank and no other worker has: part of the names of unfinished files, and the place of a lock."""
    return _WORKERS + uuid.uuid4().int % _WORKERS


def _begun(out: Path, plan: dict[str, Any], rank: int) -> str:
    """Write the plan where there is none; give the name for errors."""
    out.mkdir(parents=True, exist_ok=True)
    path, name = out / _PLAN, f"tokenize with {plan['tokenizer']}"
    if not path.exists():
        strangers = [p.name for p in out.iterdir() if not p.name.startswith(".")]
        if strangers and not path.exists():  # the second look: another process may have written it in between
            raise ValueError(f"{name}: OUT {out} holds other files, such as {min(strangers)}. Give a new or an empty folder.")
        temporary = _hidden(path, rank)
        temporary.write_text(_pretty(plan), encoding="utf-8")
        _to_disk(temporary)
        with suppress(FileExistsError):  # unlike a rename, a link never takes the place of the plan of a process that was faster
            os.link(temporary, path)
        temporary.unlink()
    return name


def _locked(file: IO[str], start: int, count: int, *, shared: bool = False) -> bool:
    """Lock bytes of the plan, which need not exist; `count` of 0 reaches without end. False where another process has one."""
    try:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, count, start)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _wait(file: IO[str], start: int, count: int, patience: float, name: str, out: Path) -> None:
    end = time.monotonic() + patience
    while not _locked(file, start, count):
        if time.monotonic() >= end:
            raise ValueError(f"{name}: other processes work in {out}. Wait for their end, or stop them.")
        time.sleep(_LOOK_AGAIN)


def _wait_for_workers(file: IO[str], patience: float, name: str, out: Path) -> None:
    _wait(file, _WORKERS, 0, patience, name, out)
    fcntl.lockf(file, fcntl.LOCK_UN, 0, _WORKERS)


def _leftovers(out: Path) -> list[Path]:
    """Unfinished files of processes that were killed."""
    return list(out.glob(".*.rank*.part*"))


def _same_plan(found: dict[str, Any], plan: dict[str, Any], out: Path, name: str) -> None:
    differ = []
    for key, value in plan.items():
        old = found.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            differ += [f"{key}.{k} was {old.get(k)} and is {value[k]}" for k in value if old.get(k) != value[k]]
        elif old != value:
            differ.append(f"{key} was {old} and is {value}")
    if differ:
        raise ValueError(f"{name}: {out} was begun with another plan: {'; '.join(differ)}. Set it as it was, or use a new folder.")


def write_index(out: Path, plan: dict[str, Any], parts: Sequence[dict[str, Any]], *, rank: int) -> None:
    """Write the errors and then the index: a folder with an index is complete. Several processes may write the same."""
    lines = [json.dumps(error, sort_keys=True) + "\n" for part in parts for error in part["errors"]]
    shards = [{**part, "errors": len(part["errors"])} for part in parts]
    counts = {"items": plan["inputs"]["items"], "tokenized": sum(shard["items"] for shard in shards), "errors": len(lines)}
    _write(out / ERRORS, "".join(lines), rank)
    _write(out / INDEX, _pretty({**plan, "counts": counts, "shards": shards}), rank)


def write_durably(data: Path, place: ShardPlace, facts: dict[str, Any], *, rank: int) -> None:
    """Put a finished shard in its place, and after it what it says of itself."""
    said = _hidden(place.facts_path, rank)
    said.write_text(_pretty(facts), encoding="utf-8")
    for path in (data, said):
        _to_disk(path)
    os.replace(data, place.data)
    os.replace(said, place.facts_path)
    _to_disk(place.out)  # for both: one without the other, after a loss of power, counts as not there


def _hidden(target: Path, rank: int) -> Path:
    return target.with_name(f".{target.name}.rank{rank}.part")


def _write(target: Path, text: str, rank: int) -> None:
    temporary = _hidden(target, rank)
    temporary.write_text(text, encoding="utf-8")
    _rename(temporary, target)


def _rename(temporary: Path, target: Path) -> None:
    """After a loss of power the target is whole or not there."""
    _to_disk(temporary)
    os.replace(temporary, target)
    _to_disk(target.parent)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
