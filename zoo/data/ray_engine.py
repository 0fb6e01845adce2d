"""Tokenize a data set on a cluster of Ray (extra `ray`): the files are those of `zoo.data.tokenize` of one plan, byte for byte.

A shard is the unit of work: one row of a Ray data set, with the items that it stands for, so that the input is listed once and no
worker holds the list. `map_batches` gives the rows one at a time to a pool of actors, each of which loads the tokenizer once and
writes the shard as a rank of the local engine would. Ray Data brings what a pool needs: it starts a lost actor anew and gives it
its shard again, takes actors as the cluster has room, and lets them go at the end, where shards are fewer than actors. The tokens
do not travel through Ray, only counts do: a shard must be whole or not there, and that is the promise of a rename on a shared disk.

    your process -> head (an actor without a processor): lists, plans, hands out rows, writes the index -> workers (actors)

Ray Data does not work through Ray Client (`ray://`), whose process is not of the cluster; the head is, whatever the address.
All machines must see the same folders: a worker looks whether it finds the inputs and the plan, makes the plan itself (weights,
versions, device) and refuses to work on another one.
"""

import json
import logging
import os
import pickle
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from zoo.data.inputs import Item, Listing
from zoo.data.plan import Protocol, ShardPlace, joined, led, make_plan, worker_rank, write_index
from zoo.data.tokenizing import Progress, ShardWork, Summary, summary_of, survey
from zoo.tokenizer import Tokenizer

__all__ = ["RayPool", "ShardWorker", "need_ray", "tokenize_by_ray"]

logger = logging.getLogger(__name__)

_LOOK_AGAIN = 1.0  # seconds between two looks at the progress
_STARTS = 4  # of one shard, and of the head: what kills every worker must not do so for ever
_PROBES = 16  # files whose size a worker compares before it begins


def need_ray() -> Any:
    """Give the package.

    Raises:
        ModuleNotFoundError: it is not installed; says which command brings it.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        advice = "Install it with what it needs: pip install 'tokenizer-zoo[ray]'"
        raise ModuleNotFoundError(f"tokenize by Ray: the package {error.name} is not installed. {advice}") from error
    return ray


@dataclass(frozen=True, kw_only=True)
class RayPool:
    """The workers, and what each takes of the cluster.

    Attributes:
        workers: how many; None takes as many as the cluster has room for.
        device: of each, "cpu", "cuda" or "mps"; Ray chooses which GPU.
        cpus: processors of each, and threads of its network, which are part of the plan; None takes one, and beside a GPU one for
            each reader.
        gpus: of each, also a part such as 0.5; None takes one where the device is "cuda".
        readers: threads of each that read and decode.
        patience: seconds that the workers of a run that was killed may take to end, before the folder is refused.
    """

    workers: int | None = None
    device: str = "cpu"
    cpus: float | None = None
    gpus: float | None = None
    readers: int = 2
    patience: float = 60.0

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda", "mps"):
            raise ValueError(f"tokenize by Ray: device={self.device!r}. Allowed: cpu, cuda, mps; Ray chooses which GPU.")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"tokenize by Ray: workers={self.workers}. Allowed: 1 or more.")
        if self.cpus is not None and not self.cpus > 0:
            raise ValueError(f"tokenize by Ray: cpus={self.cpus}. Allowed: more than 0.")
        if self.gpus is not None and not self.gpus >= 0:
            raise ValueError(f"tokenize by Ray: gpus={self.gpus}. Allowed: 0 or more.")
        if self.gpus and self.device != "cuda":
            raise ValueError(f"tokenize by Ray: gpus={self.gpus} for device={self.device!r}. Use device='cuda', or leave gpus out.")

    @property
    def needs(self) -> dict[str, float]:
        """What one worker takes, by Ray's names."""
        on_gpu = self.device == "cuda"
        cpus = self.cpus or (self.readers if on_gpu else 1)
        return {"CPU": float(cpus), "GPU": float(on_gpu if self.gpus is None else self.gpus)}

    @property
    def threads(self) -> int:
        """Threads of the network of one worker."""
        return max(1, int(self.needs["CPU"]))

    def room(self, nodes: Sequence[Mapping[str, Any]]) -> int:
        """Workers that fit on machines, as `ray.nodes()` lists them."""
        alive = [node["Resources"] for node in nodes if node["Alive"]]
        needs = {name: amount for name, amount in self.needs.items() if amount}
        return sum(min(int(has.get(name, 0) / amount + 1e-9) for name, amount in needs.items()) for has in alive)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the head needs to know; the paths are absolute."""

    load: Callable[..., Tokenizer]
    source: Path
    out: Path
    protocol: Protocol
    pool: RayPool
    workers: int
    verify: bool


def tokenize_by_ray(
    load: Callable[..., Tokenizer],
    source: str | Path,
    out: str | Path,
    protocol: Protocol | None = None,
    *,
    pool: RayPool | None = None,
    address: str | None = None,
    verify: bool = False,
    report: Callable[[Progress], None] | None = None,
) -> Summary:
    """Tokenize as `zoo.data.tokenize` does, with the workers of a cluster.

    Args:
        load: gives the tokenizer: called as `load(device="cuda")`, once in each worker. `functools.partial(zoo.load, NAME)` is one.
        source, out: as for `tokenize`; they must mean the same on every machine.
        protocol: how items become tokens.
        pool: the workers.
        address: of a running cluster, such as `ray://head:10001` or `auto`; None takes the cluster that this process is connected
            to, that of the environment variable RAY_ADDRESS, or else starts one on this machine for this run.
        verify: compare the checksums of shards that are there already, and make damaged ones anew.
        report: called about once a second.

    Returns:
        What is in the folder.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        FileNotFoundError, ValueError: as `tokenize`, also from a worker; or more workers than this machine has room for.
        ConnectionError: no cluster at the address.
        RuntimeError: workers that died again and again at one shard.
    """
    ray, pool = need_ray(), pool or RayPool()
    with _connected(address) as own:
        job = _Job(
            load=load,
            source=Path(source).expanduser().absolute(),
            out=Path(out).expanduser().absolute(),
            protocol=protocol or Protocol(),
            pool=pool,
            workers=_workers(pool, pool.room(ray.nodes()), own=own),
            verify=verify,
        )
        head = ray.remote(num_cpus=0, max_concurrency=2, max_restarts=_STARTS - 1, max_task_retries=-1)(_Head).remote()
        try:
            result = head.run.remote(job)
            while not ray.wait([result], timeout=_LOOK_AGAIN)[0]:
                _show(report, ray.get(head.progress.remote()))
            _show(report, ray.get(head.progress.remote()))
            return ray.get(result)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError | OSError | ImportError | RuntimeError):
                raise error.cause from error
            raise
        finally:
            ray.kill(head)  # and with it its workers, where it was interrupted


@contextmanager
def _connected(address: str | None) -> Iterator[bool]:
    """Be connected to a cluster; gives whether it is one that was started here, for this run."""
    import ray

    if address is None and ray.is_initialized():
        yield False
        return
    asked = address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if asked is None:
        ray.init("local", include_dashboard=False, **quiet)
    else:
        try:
            ray.init(asked, **quiet)
        except ConnectionError as error:
            advice = "Give the address of one; where it asks for a token, set RAY_AUTH_MODE=token"
            raise ConnectionError(f"tokenize by Ray: no cluster answers at {asked} ({error}). {advice}.") from error
    try:
        yield asked is None
    finally:
        ray.shutdown()


def _workers(pool: RayPool, room: int, *, own: bool) -> int:
    """How many workers to ask for; a cluster that is not ours may grow."""
    needs = " and ".join(f"{amount:g} {name}" for name, amount in pool.needs.items() if amount)
    wanted = max(1, room) if pool.workers is None else pool.workers
    if wanted > room:
        text = f"tokenize by Ray: {wanted} workers of {needs} each, but there is room for {room} only"
        if own:
            raise ValueError(f"{text} on this machine. Ask for fewer workers or less for each, or give the address of a cluster.")
        logger.warning("%s in the cluster: the others wait until it has.", text)
    return wanted


def _show(report: Callable[[Progress], None] | None, progress: Progress | None) -> None:
    if report is not None and progress is not None:
        report(progress)


# -- the head ----------------------------------------------------------------------------------------------------------------------


class _Head:
    """An actor of two threads: one runs the work, the other hears of it from the workers and tells it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._total: int | None = None
        self._before = self._done = self._fresh = self._errors = 0
        self._finished: set[int] = set()
        self._open: dict[int, tuple[int, int]] = {}  # shard: items done and errors among them
        self._starts: Counter[int] = Counter()

    def run(self, job: _Job) -> Summary:
        """Do the whole work."""
        tokenizer = job.load(device="cpu")
        kind = {"readers": job.pool.readers, "device": job.pool.device, "threads": job.pool.threads}
        listing, plan = survey(tokenizer, job.source, job.out, job.protocol, **kind)
        count = job.protocol.count(listing.items)
        with led(job.out, plan, patience=job.pool.patience):
            found = {number: ShardPlace(job.out, number, job.protocol.shards).facts() for number in range(count)}
            parts = {number: facts for number, facts in found.items() if facts is not None and not job.verify}
            with self._lock:
                self._total = len(listing.items)
                self._before = sum(facts["items"] + len(facts["errors"]) for facts in parts.values())
                self._errors = sum(len(facts["errors"]) for facts in parts.values())
            start = time.monotonic()
            missing = [number for number in range(count) if number not in parts]
            if missing:
                parts |= self._made(job, tokenizer, listing, plan, missing)
            seconds = time.monotonic() - start
            whole = [parts[number] for number in range(count)]
            write_index(job.out, plan, whole, rank=0)
        return summary_of(plan, whole, fresh=self._fresh, seconds=seconds)

    def _made(
        self, job: _Job, tokenizer: Tokenizer, listing: Listing, plan: Mapping[str, Any], missing: Sequence[int]
    ) -> dict[int, dict[str, Any]]:
        """Have the shards made, and give what each says of itself."""
        import ray
        from ray.data import ActorPoolStrategy, DataContext, from_items

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        rows = [{"number": n, "items": pickle.dumps(job.protocol.stretch(listing.items, n))} for n in missing]
        head = ray.get_runtime_context().current_actor
        worker = {
            "load": partial(job.load, device=job.pool.device),
            "out": job.out,
            "protocol": job.protocol,
            "plan": plan,
            "probes": _probes(listing),
            "readers": job.pool.readers,
            "threads": job.pool.threads,
            "verify": job.verify,
            "start": partial(_start, head),
            "tell": head.tell.remote,
        }
        made = from_items(rows, override_num_blocks=len(rows)).map_batches(
            ShardWorker,
            fn_constructor_kwargs=worker,
            batch_size=1,
            compute=ActorPoolStrategy(size=min(job.workers, len(rows)), max_tasks_in_flight_per_actor=1),
            num_cpus=job.pool.needs["CPU"],
            num_gpus=job.pool.needs["GPU"] or None,
        )
        facts: dict[int, dict[str, Any]] = {}
        for row in made.iter_rows():
            number = int(row["number"])
            if row["refusal"]:
                raise ValueError(row["refusal"])
            if not row["facts"]:
                names = ", ".join(item.name for item in job.protocol.stretch(listing.items, number)[:2])
                why = "Too little memory, or a file that crashes a decoder or the network; what other shards hold is kept"
                name = f"tokenize with {plan['tokenizer']}"
                raise RuntimeError(f"{name}: {_STARTS} workers died at shard {number} ({names}, ...). {why}.")
            facts[number] = json.loads(row["facts"])
            self._finish(number, facts[number], int(row["fresh"]))
        return facts

    # -- progress --------------------------------------------------------------------------------------------------------------

    def _finish(self, number: int, facts: Mapping[str, Any], fresh: int) -> None:
        with self._lock:
            self._finished.add(number)
            self._open.pop(number, None)
            self._done += facts["items"] + len(facts["errors"])
            self._errors += len(facts["errors"])
            self._fresh += fresh

    def start(self, number: int) -> int:
        """Hear that a worker begins a shard, and say how many have begun it, this one counted."""
        with self._lock:
            self._starts[number] += 1
            return self._starts[number]

    def tell(self, number: int, done: int, errors: int) -> None:
        """Hear from a worker how far a shard is."""
        with self._lock:
            if number not in self._finished:
                self._open[number] = (done, errors)

    def progress(self) -> Progress | None:
        """Say how far the work is; nothing before the input is listed."""
        with self._lock:
            if self._total is None:
                return None
            done = sum(done for done, _ in self._open.values())
            errors = sum(errors for _, errors in self._open.values())
            return Progress(
                done=self._before + self._done + done,
                errors=self._errors + errors,
                total=self._total,
                fresh=self._fresh + done,
            )


def _start(head: Any, number: int) -> int:
    import ray

    return ray.get(head.start.remote(number))


def _probes(listing: Listing) -> dict[Path, int]:
    """Some files of the input and their sizes."""
    step = max(1, len(listing.items) // _PROBES)
    paths = {item.path for item in listing.items[::step]}
    return {path: path.stat().st_size for path in sorted(paths) if path.is_file()}


# -- a worker ----------------------------------------------------------------------------------------------------------------------


class ShardWorker:
    """One process of the pool: it loads the tokenizer once and makes one shard for each row.

    What it must refuse (another plan, folders that this machine does not see) it says in its rows, for an exception that an actor
    raises when it is made has it made again.

    Args:
        load: gives the tokenizer.
        out: folder of the shards.
        protocol: how items become tokens.
        plan: of the head.
        probes: files of the input that must be there, and their sizes.
        readers: threads that read and decode.
        threads: of the network.
        verify: compare the checksums of shards that are there.
        start: called with the number of a shard, gives how many workers have begun it.
        tell: called with the number of a shard, items done and errors among them.
    """

    def __init__(
        self,
        *,
        load: Callable[[], Tokenizer],
        out: Path,
        protocol: Protocol,
        plan: Mapping[str, Any],
        probes: Mapping[Path, int],
        readers: int,
        threads: int,
        verify: bool,
        start: Callable[[int], int],
        tell: Callable[[int, int, int], object],
    ) -> None:
        torch.set_num_threads(threads)
        self._out, self._protocol, self._readers, self._verify = out, protocol, readers, verify
        self._start, self._tell = start, tell
        self._rank, self._told, self.refusal = worker_rank(), 0.0, ""
        try:
            self._tokenizer = load()
            own = make_plan(self._tokenizer, Listing((), 0), protocol) | {"inputs": plan["inputs"]}
            self._place = joined(out, own, rank=self._rank)
            self._place.__enter__()  # left with the process
            _look(probes)
        except (ValueError, OSError, ImportError) as error:
            self.refusal = f"a worker on {platform.node()} cannot begin: {error}"

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Make the shard of one row.

        Args:
            batch: `number` of the shard, and its `items`, pickled.

        Returns:
            One row: `number`, `facts` of the shard as JSON, `fresh` items, and `refusal`. A shard at which worker after worker
            died is not tried again: it has neither facts nor refusal.
        """
        number, items = int(batch["number"][0]), batch["items"][0]
        if self.refusal or self._start(number) > _STARTS:
            return {"number": [number], "facts": [""], "fresh": [0], "refusal": [self.refusal]}
        stretch: Sequence[Item] = pickle.loads(items)
        report = partial(self._report, number)
        work = ShardWork(self._tokenizer, self._out, self._protocol, rank=self._rank, readers=self._readers, report=report)
        (facts,) = work.write({number: stretch}, verify=self._verify)
        return {"number": [number], "facts": [json.dumps(facts)], "fresh": [work.fresh], "refusal": [""]}

    def _report(self, number: int, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._told >= _LOOK_AGAIN:
            self._told = now
            self._tell(number, progress.done, progress.errors)


def _look(probes: Mapping[Path, int]) -> None:
    """See that this machine finds the files of the head."""
    for path, size in probes.items():
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            there = "is not there" if found is None else f"has {found:,} bytes and not {size:,}"
            raise ValueError(f"{path} {there}. All machines must see the same folders.")
