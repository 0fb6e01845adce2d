"""`zoo bench NAME`: how fast a tokenizer is, as throughput, latency, memory and share of this machine's own peak.

Tokenizers of clips are measured beside diffusers' classes (`eval.bench_video`).

Weights do not change speed, so they are random. Times are wall times, the best of several calls; the share is floating-point
operations counted by torch over the rate of a large matrix product, measured in the same run.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.tokenizer import Tokenizer

__all__ = ["Measurement", "bench", "main", "matmul_peak"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One call at one setting.

    Attributes:
        what: "encode" or "decode".
        batch: items of the call.
        tokens: positions kept, None for all.
        steps: of a generative decoder.
        seconds: best wall time of the call.
        items_per_s: batch over seconds.
        gflop: floating-point operations of the call, in 10^9.
        share_of_peak: their rate over that of a large matrix product.
        peak_memory_mb: of the call above what was there before; None where the system does not tell.
    """

    what: str
    batch: int
    tokens: int | None
    steps: int | None
    seconds: float
    items_per_s: float
    gflop: float
    share_of_peak: float
    peak_memory_mb: float | None


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(function: Callable[[], Any], device: torch.device, *, budget: float = 3.0, most: int = 10) -> float:
    """Best wall time of a call, within about `budget` seconds."""
    best, spent, calls = math.inf, 0.0, 0
    while calls < 2 or (spent < budget and calls < most):
        _sync(device)
        start = time.perf_counter()
        function()
        _sync(device)
        seconds = time.perf_counter() - start
        best, spent, calls = min(best, seconds), spent + seconds, calls + 1
    return best


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Rate of a square matrix product of this machine in 10^9 operations a second, with the threads that are set."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, device, budget=2.0, most=40) / 1e9


def _status(field: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
    except OSError:
        return None
    return None


def _peak_memory(function: Callable[[], Any], device: torch.device) -> float | None:
    """Peak memory of a call in MB above what was resident before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    function()
    after = _status("VmHWM")
    return None if before is None or after is None else max(0.0, after - before)


def _measure(
    function: Callable[[], Any], device: torch.device, peak: float, *, what: str, batch: int, tokens: int | None, steps: int | None
) -> Measurement:
    with FlopCounterMode(display=False) as counter:
        function()
    gflop = counter.get_total_flops() / 1e9
    seconds = best_seconds(function, device)
    return Measurement(
        what=what,
        batch=batch,
        tokens=tokens,
        steps=steps,
        seconds=seconds,
        items_per_s=batch / seconds,
        gflop=gflop,
        share_of_peak=gflop / seconds / peak,
        peak_memory_mb=_peak_memory(function, device),
    )


def _signal(tokenizer: Tokenizer, batch: int, size: tuple[int, int] | None) -> Tensor:
    """Smooth random pictures (noise would be an unusual input) of the native size."""
    info = tokenizer.info
    if info.modality != "image":
        raise ValueError(f"zoo bench: {info.name} is of modality {info.modality}; pictures and clips can be benched.")
    sides = size or info.native_size or (256, 256)
    draws = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, tokenizer.in_channels, 8, 8, generator=draws) * 2 - 1
    x = torch.nn.functional.interpolate(coarse, sides, mode="bicubic").clamp(-1, 1)
    return x.to(tokenizer.device, tokenizer.dtype)


def bench(
    tokenizer: Tokenizer,
    *,
    batches: Sequence[int] = (1, 8),
    tokens: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[float, list[Measurement]]:
    """Measure encode and decode.

    Args:
        tokenizer: in evaluation mode, on its device.
        batches: items of a call.
        tokens: lengths to decode, for ordered tokenizers; None takes 1, 1/16 and all.
        steps: of a generative decoder; None takes its own and twice as many.
        guidance: of a generative decoder; None takes its own.
        size: sides of the pictures; None takes the native ones.

    Returns:
        The matrix-product peak in 10^9 operations a second, and the measurements.
    """
    device, info = tokenizer.device, tokenizer.info
    peak = matmul_peak(device, tokenizer.dtype)
    rows: list[Measurement] = []
    generative = "steps" in getattr(tokenizer.config, "__dataclass_fields__", {})
    lengths: Sequence[int | None] = [None]
    if info.ordered and info.tokens:
        lengths = tokens or sorted({1, max(1, info.tokens // 16), info.tokens})
    counts: Sequence[int | None] = (steps or [tokenizer.config.steps, 2 * tokenizer.config.steps]) if generative else [None]
    with torch.inference_mode():
        for batch in batches:
            x = _signal(tokenizer, batch, size)
            for k in [*lengths[:-1], None] if info.ordered else [None]:
                rate = {} if k is None else {"tokens": k}
                call = lambda rate=rate, x=x: tokenizer.encode(x, **rate)  # noqa: E731 - one expression, bound now
                rows.append(_measure(call, device, peak, what="encode", batch=batch, tokens=k, steps=None))
            full = tokenizer.encode(x)
            for k in lengths:
                part = full if k is None else full.keep(k)
                for count in counts:
                    options = {} if count is None else {"steps": count}
                    if generative and guidance is not None:
                        options["guidance"] = guidance
                    call = lambda options=options, part=part: tokenizer.decode(part, **options)  # noqa: E731
                    rows.append(_measure(call, device, peak, what="decode", batch=batch, tokens=k, steps=count))
    return peak, rows


def _table(name: str, peak: float, rows: Sequence[Measurement]) -> Any:
    from rich.table import Table

    title = f"{name}: peak of a 1024 x 1024 matrix product here {peak:.0f} GFLOP/s, {torch.get_num_threads()} thread(s)"
    table = Table(title=title, title_justify="left")
    for column in ("call", "batch", "tokens", "steps", "ms", "items/s", "GFLOP", "of peak", "peak MB"):
        table.add_column(column, justify="left" if column == "call" else "right")
    for row in rows:
        table.add_row(
            row.what,
            str(row.batch),
            "all" if row.tokens is None else str(row.tokens),
            "" if row.steps is None else str(row.steps),
            f"{row.seconds * 1e3:.1f}",
            f"{row.items_per_s:.2f}",
            f"{row.gflop:.1f}",
            f"{row.share_of_peak:.0%}",
            "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}",
        )
    return table


def _override(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    if not _:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def main(args: Sequence[str] | None = None) -> int:
    """Run `zoo bench NAME`."""
    parser = argparse.ArgumentParser(prog="zoo bench", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="catalog name; random weights are used, they do not change speed")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, nargs="+", help="lengths to decode (ordered tokenizers)")
    parser.add_argument("--steps", type=int, nargs="+", help="steps of a generative decoder")
    parser.add_argument("--guidance", type=float, help="of a generative decoder; 1 switches it off")
    parser.add_argument("--frames", type=int, default=17, help="of clips (default 17)")
    parser.add_argument("--side", type=int, default=128, help="of the frames of clips (default 128)")
    parser.add_argument("--set", type=_override, nargs="+", default=[], metavar="KEY=VALUE", help="change the configuration")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer = zoo.create(options.name, **dict(options.set)).to(options.device, getattr(torch, options.dtype)).eval()
    values: dict[str, Any] = {"name": options.name, "set": dict(options.set)}
    if tokenizer.info.modality == "video":
        shown = _clips(tokenizer, options, values)
    else:
        peak, rows = bench(
            tokenizer, batches=options.batch_size, tokens=options.tokens, steps=options.steps, guidance=options.guidance
        )
        shown = _table(options.name, peak, rows)
        values |= {"peak_gflops": peak, "rows": [asdict(row) for row in rows]}
    from rich.console import Console

    Console().print(shown)
    if options.json is not None:
        options.json.write_text(json.dumps(values, indent=2) + "\n")
    return 0


def _clips(tokenizer: Tokenizer, options: argparse.Namespace, values: dict[str, Any]) -> Any:
    """The table of a tokenizer of clips, beside diffusers' class; its rows go into `values`."""
    from eval.bench_video import measure, table

    for name in ("tokens", "steps", "guidance"):
        if getattr(options, name) is not None:
            raise ValueError(f"zoo bench: --{name} for {options.name}, a tokenizer of clips. Leave it out.")
    rows = [row for n in options.batch_size for row in measure(tokenizer, batch=n, frames=options.frames, side=options.side)]
    values["rows"] = [asdict(row) for row in rows]
    return table(options.name, rows)


if __name__ == "__main__":
    raise SystemExit(main())
