"""Running a tokenizer over a corpus of clips: one of video sees clips, one of pictures sees each of their frames alone."""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eval.clips import Clips
from eval.protocols import VideoProtocol, noise_seed
from eval.results import Speed
from eval.runner import device_name, eight_bits, per_second
from recipes.data.clip_corpus import Clip, ClipCorpus, UnreadableClipError
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens, TokenSpec

__all__ = ["ClipBatch", "VideoRunner", "clip_batches", "clip_spec", "joined"]

logger = logging.getLogger(__name__)
_FRAMES = 32  # a tokenizer of pictures sees so many at once


@dataclass(frozen=True)
class ClipBatch:
    """Prepared clips at the protocol's size; one black frame where one could not be read."""

    index: Tensor
    items: Clips
    unreadable: Tensor


def _read(corpus: ClipCorpus, protocol: VideoProtocol, number: int) -> Clip | None:
    try:
        return corpus.read(number, size=protocol.size, frames=protocol.frames)
    except UnreadableClipError as error:
        logger.warning("%s It counts as failed.", error)
        return None


def clip_batches(
    corpus: ClipCorpus, protocol: VideoProtocol, numbers: Sequence[int], batch_size: int, workers: int
) -> Iterator[ClipBatch]:
    """Read clips and bring their frames to size; `workers` threads read a batch together."""
    black = Clip(torch.zeros(1, 3, *protocol.size, dtype=torch.uint8), 1.0)
    with ThreadPoolExecutor(workers) if workers else nullcontext() as pool:
        for first in range(0, len(numbers), batch_size):
            part = numbers[first : first + batch_size]
            read = map if pool is None else pool.map
            found = list(read(lambda number: _read(corpus, protocol, number), part))
            clips = [black if clip is None else clip for clip in found]
            yield ClipBatch(
                torch.tensor(list(part), dtype=torch.int64),
                Clips([clip.frames for clip in clips], [clip.frame_rate for clip in clips]),
                torch.tensor([clip is None for clip in found]),
            )


def clip_spec(spec: TokenSpec) -> TokenSpec:
    """What the numbers of `joined` tokens mean, of a tokenizer of pictures: all frames on one axis, which is not ordered."""
    if spec.modality == "video":
        return spec
    return replace(spec, modality="video", ordered=False, segments=spec.segments if spec.deep_segments else ())


def joined(frames: Tokens, clips: Clips) -> Tokens:
    """Lay the tokens of the frames of each clip on one axis, `(b, n, d)`; they can be counted, not decoded."""
    if frames.side:
        names = ", ".join(frames.side)
        raise ValueError(f"joined: side tensors {names} of single frames of {frames.spec.tokenizer} cannot be counted for a clip.")
    spec, parts, first = clip_spec(frames.spec), [], 0
    for clip in clips.frames:
        rows = slice(first, first + len(clip))
        data = frames.data[rows][frames.mask[rows]]
        parts.append(Tokens(data[None], spec, [(len(clip), *clip.shape[2:])]))  # type: ignore[arg-type]  # rows become a tensor
        first += len(clip)
    return Tokens.cat(parts)


class VideoRunner:
    """Encode and decode batches of clips, with times and without letting one bad clip stop the rest."""

    def __init__(self, tokenizer: Tokenizer, protocol: VideoProtocol) -> None:
        self.tokenizer = tokenizer
        self.protocol = protocol
        self.by_frame = tokenizer.info.modality == "image"
        self.encode_times: list[tuple[float, int]] = []
        self.decode_times: list[tuple[float, int]] = []
        self._seconds = 0.0

    def _now(self) -> float:
        if self.tokenizer.device.type == "cuda":
            torch.cuda.synchronize(self.tokenizer.device)
        return time.perf_counter()

    @torch.inference_mode()
    def encode(self, batch: ClipBatch) -> tuple[Tokens, Tensor]:
        """Give all tokens, of clips or of all their frames, and `(b,)` boolean: True for clips without usable tokens.

        Latents that are not finite are set to zero.
        """
        device, dtype = self.tokenizer.device, self.tokenizer.dtype
        clips = [(frames.to(device).float() / 127.5 - 1).to(dtype) for frames in batch.items.frames]
        start = self._now()
        if self.by_frame:
            tokens = Tokens.cat([self.tokenizer.encode(part) for part in torch.cat(clips).split(_FRAMES)])
        else:
            tokens = self.tokenizer.encode([clip.transpose(0, 1) for clip in clips])
        self.encode_times.append((self._now() - start, len(clips)))
        self._seconds += float(batch.items.seconds.sum())
        failed = batch.unreadable.clone()
        if not tokens.discrete:
            broken = ~torch.isfinite(tokens.data).flatten(1).all(1)
            failed |= self._of_clips(broken.cpu(), batch.items)
            tokens = replace(tokens, data=tokens.data.masked_fill(broken.view(-1, *[1] * (tokens.data.ndim - 1)), 0))
        return tokens, failed

    def _of_clips(self, bad: Tensor, clips: Clips) -> Tensor:
        """Tell of each clip whether any of its frames is bad, where frames were coded alone."""
        if not self.by_frame:
            return bad
        return torch.stack([part.any() for part in bad.split([len(clip) for clip in clips.frames])])

    @torch.inference_mode()
    def _decode(self, tokens: Tokens, batch: ClipBatch, timed: bool) -> list[Tensor]:
        """Give `(t, 3, h, w)` float32 of each clip."""
        counts = [len(clip) for clip in batch.items.frames]
        seeds = [noise_seed(self.protocol.seed, number) for number in batch.index.tolist()]
        if self.by_frame:
            seeds = [seed for seed, count in zip(seeds, counts, strict=True) for _ in range(count)]
        parts, step = [], _FRAMES if self.by_frame else len(tokens)
        start = self._now()
        for first in range(0, len(tokens), step):
            options = dict(self.protocol.decode)
            if self.tokenizer.info.stochastic_decode:
                options["seed"] = seeds[first : first + step]
            parts.append(self.tokenizer.decode(tokens[first : first + step], **options))
        if timed:
            self.decode_times.append((self._now() - start, len(counts)))
        if self.by_frame:
            return list(torch.cat(parts).float().split(counts))
        return [clip[:, :count].transpose(0, 1).float() for clip, count in zip(parts[0], counts, strict=True)]

    def decode(self, tokens: Tokens, batch: ClipBatch, *, timed: bool = False) -> tuple[Clips, Tensor]:
        """Give the reconstructions, and `(b,)` boolean on the CPU: True for clips that are not finite.

        Args:
            tokens: of the batch as `encode` gave them, at any rate.
            batch: what was encoded; its numbers choose the noise.
            timed: the time counts for `speed`.
        """
        decoded = self._decode(tokens, batch, timed)
        failed = torch.tensor([not bool(torch.isfinite(clip).all()) for clip in decoded])
        frames = [eight_bits(torch.nan_to_num(clip), self.protocol.to_uint8) for clip in decoded]
        return Clips(frames, batch.items.frame_rates), failed

    def counted(self, tokens: Tokens, batch: ClipBatch) -> Tokens:
        """Give tokens of clips, for the scorers that count: those of frames are `joined`."""
        return joined(tokens, batch.items) if self.by_frame else tokens

    def speed(self) -> Speed:
        clips = sum(count for _, count in self.encode_times)
        mean = self._seconds / max(clips, 1)
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
