"""Running a tokenizer of sound over a corpus: items keep their length, rates and channels are matched by the protocol's rules."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eval.protocols import SoundProtocol, noise_seed
from eval.resampling import resample
from eval.results import Speed
from eval.runner import device_name, per_second
from eval.sounds import SoundCorpus, Sounds, UnreadableSoundError, pcm16
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["SoundBatch", "SoundRunner", "sound_batches"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SoundBatch:
    """Prepared recordings: mono at the protocol's rate, 16 bits; a second of silence where one could not be read."""

    index: Tensor
    sounds: Sounds
    unreadable: Tensor

    @property
    def items(self) -> Sounds:
        """What the scorers compare with."""
        return self.sounds


def _read(corpus: SoundCorpus, protocol: SoundProtocol, number: int) -> tuple[Tensor, str | None] | None:
    try:
        samples, rate = corpus.read(number)
    except UnreadableSoundError as error:
        logger.warning("%s It counts as failed.", error)
        return None
    record = corpus.record(number)
    text = record.get("text") if record.get("language", "en") == "en" else None  # the recogniser knows English only
    return pcm16(resample(samples.mean(0), rate, protocol.sample_rate)), text


def sound_batches(
    corpus: SoundCorpus, protocol: SoundProtocol, numbers: Sequence[int], batch_size: int, workers: int
) -> Iterator[SoundBatch]:
    """Read, mix and resample recordings; `workers` threads read a batch together."""
    with ThreadPoolExecutor(workers) if workers else nullcontext() as pool:
        for first in range(0, len(numbers), batch_size):
            part = numbers[first : first + batch_size]
            read = map if pool is None else pool.map
            items = list(read(lambda number: _read(corpus, protocol, number), part))
            silence = torch.zeros(protocol.sample_rate)
            waves = [silence if item is None else item[0] for item in items]
            texts = [None if item is None else item[1] for item in items]
            yield SoundBatch(
                torch.tensor(list(part), dtype=torch.int64),
                Sounds(waves, protocol.sample_rate, texts=texts),
                torch.tensor([item is None for item in items]),
            )


class SoundRunner:
    """Encode and decode batches of one tokenizer of sound, with times and without letting one bad item stop the rest."""

    def __init__(self, tokenizer: Tokenizer, protocol: SoundProtocol) -> None:
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.rate = tokenizer.info.sample_rate or protocol.sample_rate
        self.encode_times: list[tuple[float, int]] = []
        self.decode_times: list[tuple[float, int]] = []
        self._seconds = 0.0

    def _now(self) -> float:
        if self.tokenizer.device.type == "cuda":
            torch.cuda.synchronize(self.tokenizer.device)
        return time.perf_counter()

    @torch.inference_mode()
    def encode(self, batch: SoundBatch) -> tuple[Tokens, Tensor]:
        """Give all tokens, and `(b,)` boolean: True for items without usable tokens, whose latents are set to zero."""
        channels, device, dtype = self.tokenizer.in_channels, self.tokenizer.device, self.tokenizer.dtype
        waves = [wave.clamp(-1, 1).to(device, dtype) for wave in batch.sounds.at(self.rate)]
        items = [wave.expand(channels, -1) for wave in waves]
        start = self._now()
        tokens = self.tokenizer.encode(items)
        self.encode_times.append((self._now() - start, len(items)))
        self._seconds += sum(map(len, waves)) / self.rate
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
        return y.float().cpu()

    def decode(self, tokens: Tokens, batch: SoundBatch, *, timed: bool = False) -> tuple[Sounds, Tensor]:
        """Give the reconstructions at the protocol's rate, and `(b,)` boolean: True for items that are not finite."""
        y = self._decode(tokens, batch.index, timed)
        waves, failed = [], []
        for row, length, original in zip(y, tokens.extent[:, 0].tolist(), batch.sounds.waves, strict=True):
            wave = row[:, :length].mean(0)
            failed.append(not bool(torch.isfinite(wave).all()))
            wave = resample(torch.nan_to_num(wave, posinf=0.0, neginf=0.0), self.rate, self.protocol.sample_rate)
            missing = len(original) - len(wave)  # rounding of lengths between two rates: a sample at most
            waves.append(pcm16(torch.nn.functional.pad(wave, (0, max(0, missing)))[: len(original)]))
        return Sounds(waves, self.protocol.sample_rate), torch.tensor(failed)

    def counted(self, tokens: Tokens, batch: SoundBatch) -> Tokens:
        """Give what the scorers count."""
        return tokens

    def speed(self) -> Speed:
        items = sum(count for _, count in self.encode_times)
        mean = self._seconds / max(items, 1)
        encode, decode = per_second(self.encode_times), per_second(self.decode_times)
        return Speed(
            encode_items_per_s=encode,
            decode_items_per_s=decode,
            encode_x_realtime=encode * mean,
            decode_x_realtime=decode * mean,
            device=device_name(self.tokenizer.device),
            dtype=self.protocol.dtype,
            batch=max(count for _, count in self.encode_times),
            threads=torch.get_num_threads(),
        )
