"""Running a tokenizer over a corpus: pictures are read ahead, one bad item does not stop the rest, and the time is taken."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.protocols import Protocol, noise_seed, prepare
from eval.results import Speed
from recipes.data.corpus import UnreadableImageError
from zoo.checkpoint import tensors_sha256
from zoo.media import to_uint8
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["Batch", "Runner", "batches", "device_name", "eight_bits", "evaluation_mode", "per_second", "tensors_sha256"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Prepared pictures: uint8 `(b, 3, h, w)`, black where one could not be read."""

    index: Tensor
    pictures: Tensor
    unreadable: Tensor

    @property
    def items(self) -> Tensor:
        """What the scorers compare with."""
        return self.pictures


def _read(corpus: Any, protocol: Protocol, number: int) -> np.ndarray | None:
    try:
        image = corpus.read(number)
    except UnreadableImageError as error:
        logger.warning("%s It counts as failed.", error)
        return None
    return np.asarray(prepare(protocol, image))


def batches(corpus: Any, protocol: Protocol, numbers: Sequence[int], batch_size: int, workers: int) -> Iterator[Batch]:
    """Read and crop pictures; `workers` threads read the next batch while this one is in use."""
    parts = [numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size)]
    with ThreadPoolExecutor(workers) if workers else nullcontext() as pool:

        def start(part: Sequence[int]) -> Callable[[], list[np.ndarray | None]]:
            if pool is None:
                return lambda: [_read(corpus, protocol, number) for number in part]
            futures = [pool.submit(_read, corpus, protocol, number) for number in part]
            return lambda: [future.result() for future in futures]

        waiting = start(parts[0]) if parts else None
        for i, part in enumerate(parts):
            assert waiting is not None
            arrays, waiting = waiting(), start(parts[i + 1]) if i + 1 < len(parts) else None
            black = np.zeros((*protocol.size, 3), np.uint8)
            stacked = np.stack([black if array is None else array for array in arrays])
            yield Batch(
                torch.tensor(part, dtype=torch.int64),
                torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(),
                torch.tensor([array is None for array in arrays]),
            )


class Runner:
    """Encode and decode batches of one tokenizer, with times and without letting one bad item stop the rest."""

    def __init__(self, tokenizer: Tokenizer, protocol: Protocol) -> None:
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.encode_times: list[tuple[float, int]] = []
        self.decode_times: list[tuple[float, int]] = []

    def _now(self) -> float:
        if self.tokenizer.device.type == "cuda":
            torch.cuda.synchronize(self.tokenizer.device)
        return time.perf_counter()

    @torch.inference_mode()
    def encode(self, batch: Batch) -> tuple[Tokens, Tensor]:
        """Give all tokens, and `(b,)` boolean: True for items without usable tokens, whose latents are set to zero."""
        x = (batch.pictures.to(self.tokenizer.device).float() / 127.5 - 1).to(self.tokenizer.dtype)
        start = self._now()
        tokens = self.tokenizer.encode(x)
        self.encode_times.append((self._now() - start, len(x)))
        failed = batch.unreadable.clone()
        if not tokens.discrete:
            broken = ~torch.isfinite(tokens.data).flatten(1).all(1)
            failed |= broken.cpu()
            tokens = replace(tokens, data=tokens.data.masked_fill(broken.view(-1, *[1] * (tokens.data.ndim - 1)), 0))
        return tokens, failed

    @torch.inference_mode()
    def _decode(self, tokens: Tokens, index: Tensor, timed: bool) -> Tensor:
        options = dict(self.protocol.decode)
        if self.tokenizer.info.stochastic_decode:
            options["seed"] = [noise_seed(self.protocol.seed, number) for number in index.tolist()]
        start = self._now()
        y = self.tokenizer.decode(tokens, **options)
        if timed:
            self.decode_times.append((self._now() - start, len(tokens)))
        return y.float()

    def decode(self, tokens: Tokens, batch: Batch, *, timed: bool = False) -> tuple[Tensor, Tensor]:
        """Give pictures, uint8 `(b, 3, h, w)`, and `(b,)` boolean on the CPU: True for items that are not finite.

        Args:
            tokens: of the batch, at any rate.
            batch: what was encoded; its numbers choose the noise.
            timed: the time counts for `speed`.
        """
        y = self._decode(tokens, batch.index, timed)
        failed = ~torch.isfinite(y).flatten(1).all(1)
        y = torch.nan_to_num(y)
        return eight_bits(y, self.protocol.to_uint8), failed.cpu()

    def counted(self, tokens: Tokens, batch: Batch) -> Tokens:
        """Give what the scorers count."""
        return tokens

    def speed(self) -> Speed:
        tokenizer = self.tokenizer
        return Speed(
            encode_items_per_s=per_second(self.encode_times),
            decode_items_per_s=per_second(self.decode_times),
            device=device_name(tokenizer.device),
            dtype=self.protocol.dtype,
            batch=max(count for _, count in self.encode_times),
            threads=torch.get_num_threads(),
        )


def eight_bits(y: Tensor, rule: str) -> Tensor:
    """Bring decoded values in [-1, 1] to uint8, same shape: "round" or "truncate"."""
    return ((y.clamp(-1, 1) + 1) * 127.5).to(torch.uint8) if rule == "truncate" else to_uint8(y)


def per_second(times: list[tuple[float, int]]) -> float:
    """Items a second of `(seconds, items)` of each batch, the first left out where there are more."""
    times = times[1:] or times
    return sum(count for _, count in times) / max(sum(seconds for seconds, _ in times), 1e-9)


def device_name(device: torch.device) -> str:
    """Name of a device for people, with the processor's own name where it is known."""
    if device.type == "cuda":
        return torch.cuda.getdevice_name(device)
    if device.type == "cpu" and Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"cpu ({line.partition(':')[2].strip()})"
    return device.type


@contextmanager
def evaluation_mode(tokenizer: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and the like off, and afterwards back to what each module was."""
    modes = [(module, module.training) for module in tokenizer.modules()]
    tokenizer.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
