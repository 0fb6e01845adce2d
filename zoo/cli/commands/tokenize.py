"""Turn a whole data set into shards of tokens, which `zoo.data.TokenDataset` reads.

INPUT is a folder with all below it, or one file: pictures, sounds or clips; WebDataset shards (.tar); Parquet as the Hub stores its
data sets (a column of bytes); the Arrow files that Hugging Face's `save_to_disk` writes. Each item is held in memory whole.

OUT receives shards of tokens in the narrowest integers (WebDataset: KEY.npy, KEY.json and what the source carried beside the
signal; or Parquet), an index.json with checksums, the tokenizer, the hash of its weights and all settings, and errors.jsonl, which
lists every item that could not be read or encoded. Killed at any moment and started again with the same words, the command goes on
and ends with the same files.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.cli.models import add_tile_argument, add_tokenizer_arguments, load_tokenizer, sides, tile_option
from zoo.cli.progress import counting
from zoo.cli.text import plural

if TYPE_CHECKING:
    from zoo.data import Progress, Protocol, Summary
    from zoo.data.ray_engine import RayPool
    from zoo.tokenizer import Tokenizer

__all__ = ["configure", "run"]

COMMAND = "zoo tokenize"
_LOG_SECONDS = 30.0
_EXAMPLES = """examples:
  zoo tokenize flextok_nano photos/ tokens/
  zoo tokenize mimi_24khz speech-shards/ tokens/ --depth 8 --device cuda --batch-size 32
  zoo tokenize kl_vae_nano data.parquet tokens/ --format parquet --column image

several processes, of one machine or many that see the same folders (each takes its share of the shards; any number may be killed):
  torchrun --no-python --nproc-per-node 8 zoo tokenize NAME INPUT OUT --device cuda

workers of Ray (pip install 'tokenizer-zoo[ray]'), on this machine or on a cluster whose machines see the same folders:
  zoo tokenize NAME INPUT OUT --engine ray --workers 4 --cpus 2
  zoo tokenize NAME INPUT OUT --engine ray --address ray://head:10001 --device cuda
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    add_tokenizer_arguments(parser)
    parser.add_argument("source", metavar="INPUT", help="a folder of files, .tar shards, Parquet or Arrow files, or one of them")
    parser.add_argument("out", metavar="OUT", help="a folder, new or begun by this command")
    rate = parser.add_argument_group("rate and size (all tokens, native size where nothing is said)")
    rate.add_argument("--tokens", type=int, metavar="K", help="keep the first K tokens of an ordered tokenizer")
    rate.add_argument("--depth", type=int, metavar="D", help="keep the first D levels of a residual tokenizer")
    rate.add_argument("--size", metavar="S|HxW", help="resize pictures and clips to these sides")
    rate.add_argument("--no-crop", action="store_true", help="keep the aspect ratio, with the short side at the size")
    add_tile_argument(rate)
    files = parser.add_argument_group("files")
    files.add_argument("--column", metavar="NAME", help="of Parquet and Arrow, where the signal is (default: found by its name)")
    files.add_argument("--format", default="webdataset", choices=("webdataset", "parquet"), help="of OUT (default: %(default)s)")
    files.add_argument("--shard-items", type=int, default=1000, metavar="N", help="items of a shard (default: %(default)s)")
    files.add_argument("--verify", action="store_true", help="compare the checksums of shards in OUT, and make damaged ones anew")
    work = parser.add_argument_group("work")
    work.add_argument(
        "--readers", type=int, default=2, metavar="N", help="threads that read and decode, in each process (default: %(default)s)"
    )
    work.add_argument(
        "--threads", type=int, metavar="N",
        help="of the network, on a processor; with another number the last bits differ, so that a folder keeps to it "
        "(default: one for each core, 1 in ranks of torchrun; for Ray --cpus says it)",
    )  # fmt: skip
    work.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="this process and ranks of torchrun, or Ray (default: %(default)s)",
    )
    ray = parser.add_argument_group("workers of Ray (--engine ray)")
    ray.add_argument("--workers", type=int, metavar="N", help="processes (default: as many as there is room for)")
    ray.add_argument(
        "--cpus", type=float, metavar="C", help="of a worker, and threads of its network (default: 1; on cuda --readers)"
    )
    ray.add_argument("--gpus", type=float, metavar="G", help="of a worker, also a part such as 0.5 (default: 1 on cuda, else 0)")
    ray.add_argument("--address", help="of a cluster, such as ray://head:10001 or auto (default: RAY_ADDRESS, else this machine)")


def run(arguments: argparse.Namespace) -> int:
    if not Path(arguments.source).exists():
        raise FileNotFoundError(f"{COMMAND}: no file or folder {arguments.source}.")
    size, rank, world_size = sides(arguments.size, COMMAND), _number("RANK", 0), _number("WORLD_SIZE", 1)
    pool = _pool(arguments, world_size)
    _use_threads(arguments, pool)
    if arguments.device == "cuda" and "LOCAL_RANK" in os.environ:
        arguments.device = f"cuda:{_number('LOCAL_RANK', 0)}"
    if pool is not None:
        arguments.device = "cpu"  # of this process, which may have no GPU
    tokenizer = load_tokenizer(arguments, COMMAND)
    from zoo.data import Protocol

    protocol = Protocol(
        size=size,
        crop=not arguments.no_crop,
        tokens=arguments.tokens,
        depth=arguments.depth,
        column=arguments.column,
        batch_size=arguments.batch_size,
        shard_items=arguments.shard_items,
        shards=arguments.format,
        **tile_option(tokenizer, arguments.tile),
    )
    if pool is None:
        done = _here(arguments, tokenizer, protocol, rank, world_size)
    else:
        done = _by_ray(arguments, protocol, pool)
    who = "" if done.complete else f"rank {rank}, others have still to finish: "
    sys.stdout.write(f"{who}{_said(done, Path(arguments.out))}\n")
    return 0 if done.tokenized or not done.items else 1


def _here(arguments: argparse.Namespace, tokenizer: "Tokenizer", protocol: "Protocol", rank: int, world_size: int) -> "Summary":
    from zoo.data import tokenize

    with _reporting(f"rank {rank}" if world_size > 1 else "tokenizing") as report:
        return tokenize(
            tokenizer,
            arguments.source,
            arguments.out,
            protocol,
            rank=rank,
            world_size=world_size,
            readers=arguments.readers,
            verify=arguments.verify,
            report=report,
        )


def _pool(arguments: argparse.Namespace, world_size: int) -> "RayPool | None":
    """The workers of Ray, where they are asked for."""
    own = {name: getattr(arguments, name) for name in ("workers", "cpus", "gpus")}
    if arguments.engine == "local":
        given = [f"--{name}" for name, value in {**own, "address": arguments.address}.items() if value is not None]
        if given:
            raise ValueError(f"{COMMAND}: {', '.join(given)} without Ray. Add --engine ray, or leave it out.")
        return None
    if world_size > 1:
        raise ValueError(f"{COMMAND}: --engine ray in one of {world_size} ranks. Ray starts its own workers: leave torchrun out.")
    from zoo.data.ray_engine import RayPool, need_ray

    need_ray()
    return RayPool(**own, device=arguments.device, readers=arguments.readers)


def _use_threads(arguments: argparse.Namespace, pool: "RayPool | None") -> None:
    if arguments.threads is None:
        return
    if pool is not None:
        raise ValueError(f"{COMMAND}: --threads {arguments.threads} with Ray. Say --cpus, which are the threads of a worker too.")
    if arguments.threads < 1:
        raise ValueError(f"{COMMAND}: --threads {arguments.threads}. Allowed: 1 or more.")
    import torch

    torch.set_num_threads(arguments.threads)


def _by_ray(arguments: argparse.Namespace, protocol: "Protocol", pool: "RayPool") -> "Summary":
    from functools import partial

    import zoo
    from zoo.data.ray_engine import tokenize_by_ray

    name = arguments.name
    if name not in zoo.list_models() and Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser().absolute())  # workers are in folders of their own
    with _reporting("tokenizing") as report:
        return tokenize_by_ray(
            partial(zoo.load, name),
            arguments.source,
            arguments.out,
            protocol,
            pool=pool,
            address=arguments.address,
            verify=arguments.verify,
            report=report,
        )


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit():
        raise ValueError(f"{COMMAND}: the environment variable {variable} is {text!r}. Needed: a whole number.")
    return int(text)


def _said(done: "Summary", out: Path) -> str:
    text = f"{plural(done.items, 'item')} in, {done.tokenized:,} tokenized and {plural(done.errors, 'error')}"
    text += f": {plural(done.shards, 'shard')} in {out}"
    if done.fresh and done.seconds:
        text += f", {done.fresh / done.seconds:.3g} items/s"
    if done.errors and done.complete:
        text += f"; the errors are listed in {out / 'errors.jsonl'}"
    if done.passed_over:
        text += f"; {plural(done.passed_over, 'file')} of other kinds passed over"
    return text


@contextmanager
def _reporting(what: str) -> Iterator[Callable[["Progress"], None]]:
    """A bar where a person looks, and in a log now and then a line."""
    start = last = time.monotonic()
    with counting("items") as show:

        def report(progress: "Progress") -> None:
            nonlocal last
            text = f"{what}, {plural(progress.errors, 'error')}" if progress.errors else what
            show(text, progress.done, progress.total)
            now = time.monotonic()
            if not sys.stderr.isatty() and now - last >= _LOG_SECONDS:
                last = now
                sys.stderr.write(f"{what}: {line(progress, now - start)}\n")
                sys.stderr.flush()

        yield report


def line(progress: "Progress", seconds: float) -> str:
    """Say in a line how far the work is, how fast it goes and how long it will take."""
    text = f"{progress.done:,} of {progress.total:,} items, {plural(progress.errors, 'error')}"
    if not progress.fresh or seconds <= 0:
        return text
    rate = progress.fresh / seconds
    hours, rest = divmod(round((progress.total - progress.done) / rate), 3600)
    return f"{text}, {rate:.3g} items/s, {hours}:{rest // 60:02d}:{rest % 60:02d} left"
