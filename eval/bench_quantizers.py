"""Speed and memory of our quantizers beside vector-quantize-pytorch, both in one run, with the same codebooks.

    zoo bench quantizers

Needs the `test` extra (vector-quantize-pytorch is a yardstick here, never a dependency of the product). Times are the best
of several alternating runs on the CPU with the thread count torch is set to; memory is the peak of the resident set above
its level before the call, each side in a forked process of its own. Only the ratio of two times taken in one run means
something; absolute times belong to the machine.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.quantizers import FSQ, LFQ, RVQ, VQ, DimensionWise

__all__ = ["Row", "main", "print_table", "run"]

Call = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case.

    Attributes:
        case: what was run.
        ours_seconds, theirs_seconds: best time of a call; nan where the other side cannot run.
        ours_mib, theirs_mib: extra peak memory of a call; nan where it cannot be measured.
        same_codes: share of vectors with equal codes.
        target: speed ratio we promise; nan if none.
        note: what the other side is, if not vector-quantize-pytorch.
    """

    case: str
    ours_seconds: float
    theirs_seconds: float
    ours_mib: float
    theirs_mib: float
    same_codes: float
    target: float
    note: str = ""

    @property
    def speedup(self) -> float:
        """How many times faster ours is."""
        return self.theirs_seconds / self.ours_seconds

    @property
    def memory_share(self) -> float:
        """Our extra memory over theirs."""
        return self.ours_mib / self.theirs_mib if self.theirs_mib else math.nan


@dataclass(frozen=True, kw_only=True)
class _Case:
    """Two calls that give the codes of the same vectors (or the loss, for the entropy cases)."""

    name: str
    ours: Call
    theirs: Call | None
    target: float = math.nan
    note: str = ""


def _library() -> Any:
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise ImportError(
            'bench quantizers: vector-quantize-pytorch is not installed. Install the "test" extra of this package.'
        ) from error
    return vector_quantize_pytorch


def _vectors(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------- cases
def _rvq_case(*, dim: int, depth: int, size: int, count: int, target: float, train: bool) -> _Case:
    theirs = _library().ResidualVQ(dim=dim, num_quantizers=depth, codebook_size=size, rotation_trick=False, decay=0.99)
    ours = RVQ(dim=dim, codebook_size=size, num_codebooks=depth, gradient_scale="per_depth", commitment_weight=1.0)
    for j, (mine, other) in enumerate(zip(ours.layers, theirs.layers, strict=True)):
        # each depth about as wide as the residuals it meets, so that codes spread as in a trained codebook
        book = torch.randn(size, dim, generator=torch.Generator().manual_seed(j + 1)) * 0.8**j
        mine.set_codebook(book)
        _give_codebook(other, book)
    kind = f"ResidualVQ {depth} x {size}, dim {dim}, {count:,} vectors"
    x = _vectors(count, dim)
    if not train:
        return _Case(
            name=kind,
            ours=_in_eval(ours, lambda: ours(x[None]).codes[0]),
            theirs=_in_eval(theirs, lambda: theirs(x[None])[1][0]),
            target=target,
        )
    return _Case(
        name=kind + ", training step",
        ours=_training_call(ours, x, lambda r: (r.x, r.loss, r.codes)),
        theirs=_training_call(theirs, x, lambda r: (r[0], r[2].mean(), r[1])),
    )


def _vq_case(*, dim: int, size: int, count: int) -> _Case:
    theirs = _library().VectorQuantize(dim=dim, codebook_size=size, rotation_trick=False)
    ours = VQ(dim=dim, codebook_size=size)
    book = _vectors(size, dim).flip(0)
    ours.set_codebook(book)
    _give_codebook(theirs, book)
    x = _vectors(count, dim)
    return _Case(
        name=f"VectorQuantize {size:,}, dim {dim}, {count:,} vectors",
        ours=_in_eval(ours, lambda: ours(x[None]).codes[0, :, 0]),
        theirs=_in_eval(theirs, lambda: theirs(x[None])[1][0]),
    )


def _fsq_case(levels: Sequence[int], count: int, target: float) -> _Case:
    theirs, ours = _library().FSQ(levels=list(levels)), FSQ(levels=tuple(levels))
    x = _vectors(count, len(levels))
    return _Case(
        name=f"FSQ {list(levels)}, {count:,} vectors",
        ours=_in_eval(ours, lambda: ours(x[None]).codes[0, :, 0]),
        theirs=_in_eval(theirs, lambda: theirs(x[None])[1][0].long()),
        target=target,
    )


def _lfq_case(*, bits: int, count: int, target: float, with_library: bool) -> _Case:
    ours = LFQ(bits=bits, log_guard="clamp").train()
    x = _vectors(count, bits)
    theirs: Call | None = None
    note = ""
    if with_library:
        library = _library().LFQ(codebook_size=1 << bits, dim=bits, commitment_loss_weight=0.25).train()
        theirs = _training_call(library, x, lambda r: (r[0], r[2], r[1]))
    else:
        note = f"the library's table would take {count * (1 << bits) * 4 / 2**30:.1f} GiB, several times over: not run"
    return _Case(
        name=f"LFQ {bits} bits with entropy loss, {count:,} vectors, training step",
        ours=_training_call(ours, x, lambda r: (r.x, r.loss, r.codes[..., 0])),
        theirs=theirs,
        target=target,
        note=note,
    )


def _dimension_wise_case(*, count: int, dim: int) -> _Case:
    ours = DimensionWise(dim=dim, levels=64)
    x = _vectors(count, dim)
    values = ours.values[0]

    def table() -> Tensor:
        return (x[..., None] - values).abs().argmin(-1)

    return _Case(
        name=f"dimension-wise 6 bits, {count:,} x {dim} numbers",
        ours=_in_eval(ours, lambda: ours.encode(x)),
        theirs=table,
        note="the other side is the published rule, a table of numbers x levels",
    )


def _give_codebook(module: nn.Module, book: Tensor) -> None:
    codebook = module._codebook
    codebook.embed.data.copy_(book[None])
    codebook.embed_avg.data.copy_(book[None])
    codebook.cluster_size.data.fill_(1)


def _in_eval(module: nn.Module, call: Call) -> Call:
    module.eval()

    def wrapped() -> Tensor:
        with torch.no_grad():
            return call()

    return wrapped


def _training_call(module: nn.Module, x: Tensor, parts: Callable[[Any], tuple[Tensor, Tensor, Tensor]]) -> Call:
    """Forward and backward in train mode from the same state every time; gives the codes."""
    start = {name: value.clone() for name, value in module.state_dict().items()}

    def wrapped() -> Tensor:
        module.load_state_dict(start)
        module.train()
        leaf = x[None].clone().requires_grad_()
        value, loss, codes = parts(module(leaf))
        (value.mean() + loss).backward()
        return codes[0]

    return wrapped


# ------------------------------------------------------------- measurement
def _times(case: _Case, repeats: int) -> tuple[float, float, float]:
    """Best time of each side, taken in turns, and the share of equal codes."""
    best = [math.inf, math.inf if case.theirs else math.nan]
    codes: list[Tensor | None] = [None, None]
    for _ in range(repeats + 1):  # the first round also warms up
        for side, call in enumerate((case.ours, case.theirs)):
            if call is None:
                continue
            begin = time.perf_counter()
            codes[side] = call()
            best[side] = min(best[side], time.perf_counter() - begin)
    first, second = codes
    if first is None or second is None:
        return best[0], best[1], math.nan
    equal = (first.reshape(second.shape) == second).reshape(len(second), -1).all(-1)
    return best[0], best[1], equal.float().mean().item()


def _extra_memory(call: Call | None) -> float:
    """Peak resident memory of one call above the level before it, MiB; nan where the system cannot tell."""
    if call is None or not Path("/proc/self/clear_refs").exists():
        return math.nan
    gc.collect()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def measure() -> None:
        ctypes.CDLL(None).malloc_trim(0)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # puts the peak back to the present level
        call()
        sender.send(_status("VmHWM") - before)

    process = context.Process(target=measure)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError("bench quantizers: the process that measures memory ended without a result.") from error
    finally:
        process.join()


def _status(field: str) -> float:
    """A memory field of this process, MiB."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"bench quantizers: /proc/self/status has no field {field}.")
    return int(match[1]) / 1024


def _cases() -> list[Callable[[], _Case]]:
    """Builders, so that only one case at a time is in memory."""
    return [
        lambda: _rvq_case(dim=128, depth=8, size=1024, count=16_384, target=5, train=False),
        lambda: _rvq_case(dim=128, depth=8, size=1024, count=16_384, target=5, train=True),
        lambda: _rvq_case(dim=8, depth=9, size=1024, count=16_384, target=8, train=False),
        lambda: _rvq_case(dim=8, depth=9, size=1024, count=16_384, target=8, train=True),
        lambda: _vq_case(dim=256, size=16_384, count=4096),
        lambda: _fsq_case((8, 5, 5, 5), 262_144, 1.3),
        lambda: _fsq_case((8, 8, 8, 6, 5), 262_144, 1.3),
        lambda: _lfq_case(bits=14, count=2048, target=50, with_library=True),
        lambda: _lfq_case(bits=18, count=2048, target=math.nan, with_library=False),
        lambda: _dimension_wise_case(count=4096, dim=16),
    ]


def run(*, repeats: int = 3) -> list[Row]:
    """Measure every case.

    Args:
        repeats: timed rounds per case after one to warm up; the best counts.

    Returns:
        One row per case.

    Raises:
        ImportError: vector-quantize-pytorch is missing.
        ValueError: `repeats` below 1.
    """
    if repeats < 1:
        raise ValueError(f"bench quantizers: repeats={repeats}. Allowed: 1 or more.")
    rows = []
    for build in _cases():
        case = build()
        ours, theirs, same = _times(case, repeats)
        rows.append(
            Row(
                case=case.name,
                ours_seconds=ours,
                theirs_seconds=theirs,
                ours_mib=_extra_memory(case.ours),
                theirs_mib=_extra_memory(case.theirs),
                same_codes=same,
                target=case.target,
                note=case.note,
            )
        )
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Show the rows of `run` on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Quantizers beside vector-quantize-pytorch, CPU, {torch.get_num_threads()} thread(s)")
    for column in ("case", "ours", "theirs", "faster", "promised", "our memory", "theirs", "share", "same codes"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(
            row.case,
            _shown(row.ours_seconds * 1000, "{:.1f} ms"),
            _shown(row.theirs_seconds * 1000, "{:.1f} ms"),
            _shown(row.speedup, "{:.1f} x"),
            _shown(row.target, ">= {:g} x"),
            _shown(row.ours_mib, "{:.0f} MiB"),
            _shown(row.theirs_mib, "{:.0f} MiB"),
            _shown(row.memory_share, "{:.0%}"),
            _shown(row.same_codes, "{:.2%}"),
        )
    console = Console(width=max(160, int(os.environ.get("COLUMNS", "0"))))
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.case}: {row.note}.")


def _shown(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)


def main(args: Sequence[str] | None = None) -> int:
    """Run `zoo bench quantizers`: measure, show the table, and fail (1) if a promise is broken."""
    parser = argparse.ArgumentParser(prog="zoo bench quantizers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds per case, the best counts (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    rows = run(repeats=options.repeats)
    print_table(rows)
    return int(any(row.speedup < row.target for row in rows if not math.isnan(row.target)))
