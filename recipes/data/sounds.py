"""The sound datamodule: random stretches of recordings that resume exactly, and whole validation clips in order.

A training stretch is a function of (seed, epoch, index): it depends on no global random state, on no worker and on no neighbour.
Every recording gives one stretch in an epoch. The order of recordings is the sampler's (see `recipes.data.sampler`).
"""

import io
import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.data.resumable import ResumableDataModule
from recipes.data.sampler import seeded
from recipes.data.sound_corpus import SoundCorpus, SoundSelection, UnreadableSoundError, open_sounds
from recipes.data.unreadable import LeavesOut, OnError, check_on_error, readable

__all__ = ["SoundBatch", "SoundDataModule", "SoundDataset", "louder"]

_FILTER = 24  # half width of the resampling filter, in samples of the lower of both rates
_PEAK = 0.999
_SILENT = 1e-4  # root mean square, -80 dB: no level is brought up from below


class SoundBatch(NamedTuple):
    """A batch of sounds of one length.

    Attributes:
        sounds: `(b, c, s)` float32 in [-1, 1]; zeros where a recording is shorter.
        lengths: `(b,)` int64 samples that are real.
        index: `(b,)` int64 positions in the opened corpus.
    """

    sounds: Tensor
    lengths: Tensor
    index: Tensor


def louder(x: Tensor, *, level_db: float | None, gain_db: float) -> Tensor:
    """Bring sound `(c, s)` to a level and change it by a gain; where that would clip, only as far as the peak allows.

    Args:
        level_db: root mean square to bring the sound to first, in dB below full scale; None leaves it. Silence stays.
        gain_db: of the change after that.
    """
    scale = 10 ** (gain_db / 20)
    loudness = float(x.square().mean().sqrt())
    if level_db is not None and loudness > _SILENT:
        scale *= 10 ** (level_db / 20) / loudness
    peak = float(x.abs().amax())
    return x * min(scale, max(1.0, _PEAK / peak) if scale > 1 and peak else scale)


class SoundDataset(LeavesOut, Dataset):
    """Stretches of a corpus: random ones when asked for (epoch, index), the beginning for a bare index.

    Args:
        corpus: where the recordings come from.
        sample_rate: of what comes out, in Hz; recordings of another rate are resampled.
        samples: length of a stretch; shorter recordings are filled with zeros at their end.
        channels: of what comes out, 1 or 2: several are averaged to one, one is copied to two.
        seed: of all that is drawn.
        level_db, gain_db: of `louder`; the gain is drawn evenly from a range. Of random stretches only.
        flip: probability of turning a random stretch's sign.
        keep_minutes: decoded recordings to keep in memory, in each process. What comes out does not depend on it.
        on_error: "raise" stops at an unreadable recording; "skip" leaves it out of its batch, logs it and counts it in
            `unreadable` (also when a worker process met it).
    """

    def __init__(
        self,
        corpus: SoundCorpus,
        *,
        sample_rate: int,
        samples: int,
        channels: int = 1,
        seed: int = 0,
        level_db: float | None = None,
        gain_db: tuple[float, float] = (0.0, 0.0),
        flip: float = 0.0,
        keep_minutes: float = 0.0,
        on_error: OnError = "raise",
    ) -> None:
        self.corpus, self.sample_rate, self.samples, self.channels = corpus, sample_rate, samples, channels
        self.seed, self.level_db, self.gain_db, self.flip = seed, level_db, gain_db, flip
        self._room = keep_minutes * 60.0  # seconds
        self._kept: dict[int, tuple[np.ndarray, int]] = {}
        super().__init__(len(corpus), on_error)

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int, int] | None:
        epoch, index = item if isinstance(item, tuple) else (None, item)
        place, gain, sign = 0.0, 0.0, 1.0
        if epoch is not None:  # three numbers are always drawn, so that settings do not shift the stream
            draws = torch.rand(3, generator=seeded("stretch", self.seed, epoch, index), dtype=torch.float64).tolist()
            place, gain = draws[0], self.gain_db[0] + (self.gain_db[1] - self.gain_db[0]) * draws[1]
            sign = -1.0 if draws[2] < self.flip else 1.0
        try:
            x = self._stretch(index, place)
        except UnreadableSoundError as error:
            self.leave_out(index, error)
            return None
        length = x.shape[1]
        if epoch is not None:
            x = sign * louder(x, level_db=self.level_db, gain_db=gain)
        return F.pad(x, (0, self.samples - length)), length, index

    def _stretch(self, index: int, place: float) -> Tensor:
        """Read up to `samples` samples `(c, s)`, beginning at a share `place` in [0, 1] of where they can begin."""
        source = self._source(index)
        old, frames = source.rate, source.frames
        total = -(-frames * self.sample_rate // old)
        start = min(int(place * (max(0, total - self.samples) + 1)), max(0, total - self.samples))
        stop = min(start + self.samples, total)
        common = math.gcd(old, self.sample_rate)
        step_in, step_out = old // common, self.sample_rate // common  # so many samples in are so many out
        margin = math.ceil(_FILTER * max(1.0, old / self.sample_rate) / step_in) * step_in if old != self.sample_rate else 0
        first = max(0, start // step_out * step_in - margin)
        last = min(frames, -(-stop // step_out) * step_in + margin)
        x = _channels(source.read(first, last), self.channels)
        if old == self.sample_rate:
            return x
        from torchaudio.functional import resample

        skip = start - first // step_in * step_out
        return resample(x, old, self.sample_rate)[:, skip : skip + stop - start].clamp(-1, 1)

    def _source(self, index: int) -> "_Kept | _Encoded":
        """The recording in memory, where there is room for it, or as it is stored."""
        if index in self._kept:
            return _Kept(*self._kept[index])
        source = _Encoded(self.corpus, index)
        if source.frames <= self._room * source.rate:
            self._room -= source.frames / source.rate
            self._kept[index] = source.pcm(0, source.frames), source.rate
            return _Kept(*self._kept[index])
        return source


class _Kept:
    """A decoded recording `(s, c)` of 16 bits."""

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self.samples, self.rate, self.frames = samples, rate, len(samples)

    def read(self, first: int, last: int) -> Tensor:
        return _from_pcm(self.samples[first:last])


class _Encoded:
    """A recording as it is stored; a stretch is decoded without the rest."""

    def __init__(self, corpus: SoundCorpus, index: int) -> None:
        import soundfile

        self.where = f"recording {corpus.key(index)!r} (number {index}) of {corpus.source}"
        try:
            self.file = soundfile.SoundFile(io.BytesIO(corpus.read_bytes(index)))
        except (soundfile.SoundFileError, TypeError) as error:
            raise self._unreadable(str(error)) from error
        self.rate, self.frames = self.file.samplerate, self.file.frames
        if not self.frames:
            raise self._unreadable("it holds no sample")

    def pcm(self, first: int, last: int) -> np.ndarray:
        """Samples `(s, c)` of 16 bits."""
        import soundfile

        try:
            self.file.seek(first)
            x = self.file.read(last - first, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise self._unreadable(str(error)) from error
        if len(x) < last - first:
            raise self._unreadable(f"it ends after {first + len(x):,} of {self.frames:,} samples")
        if not np.isfinite(x).all():
            raise self._unreadable("it holds NaN or infinity")
        return np.clip(np.rint(x * 32768), -32768, 32767).astype(np.int16)

    def read(self, first: int, last: int) -> Tensor:
        return _from_pcm(self.pcm(first, last))

    def _unreadable(self, why: str) -> UnreadableSoundError:
        advice = "Repair or remove it, or open the data with on_error='skip'."
        return UnreadableSoundError(f"SoundDataset: {self.where} is unreadable: {why}. {advice}")


def _from_pcm(samples: np.ndarray) -> Tensor:
    return torch.from_numpy(samples.T.astype(np.float32) / 32768)


def _channels(x: Tensor, wanted: int) -> Tensor:
    """Bring `(c, s)` to the number of channels wanted; of more than two for stereo the mean is copied."""
    if len(x) == wanted:
        return x
    mean = x.mean(0, keepdim=True)
    return mean if wanted == 1 else mean.expand(wanted, -1)


def _collate(items: list[tuple[Tensor, int, int] | None]) -> SoundBatch:
    found = readable(items, "SoundDataModule", "recordings")
    sounds, lengths, index = zip(*found, strict=True)
    return SoundBatch(torch.stack(sounds), torch.tensor(lengths), torch.tensor(index))


class SoundDataModule(ResumableDataModule):
    """Train and validate on recordings from anything `open_sounds` opens.

    Training batches continue exactly where a checkpoint was written, also in the middle of an epoch: the checkpoint keeps the
    position, and order and stretches are functions of (seed, epoch, index).

    Args:
        train: source of the training recordings: a folder of wav, flac, ogg or mp3, a folder of `train-*.tar` shards, a tar file,
            a glob of them, or `samples`.
        val: source of the validation recordings (split `val`); None trains without validation.
        sample_rate: in Hz, of what comes out.
        seconds: length of a training stretch.
        seconds_val: length of a validation clip, from the beginning of each recording.
        channels: of what comes out.
        batch_size: recordings per process and step.
        num_workers: loader processes; the batches do not depend on it.
        seed: of order and stretches.
        level_db: root mean square that stretches are brought to, in dB below full scale; None leaves their own.
        gain_db: range of a random gain after that.
        flip: probability of turning the sign.
        keep_minutes: decoded training recordings to keep in memory, in each process (1.9 MB a minute at 16 kHz).
        limit, limit_val: use only the first so many recordings.
        on_error: "raise", or "skip" to leave unreadable recordings out, logged and counted in `unreadable`.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        sample_rate: int = 16_000,
        seconds: float = 1.0,
        seconds_val: float = 4.0,
        channels: int = 1,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        level_db: float | None = None,
        gain_db: tuple[float, float] = (0.0, 0.0),
        flip: float = 0.0,
        keep_minutes: float = 0.0,
        limit: int | None = None,
        limit_val: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        for name, value, low in (("sample_rate", sample_rate, 1), ("seconds", seconds, 0), ("seconds_val", seconds_val, 0)):
            if not value >= low or value * sample_rate < 1:
                raise ValueError(f"SoundDataModule: {name}={value}. Use a number above 0 that gives at least one sample.")
        if channels not in (1, 2):
            raise ValueError(f"SoundDataModule: channels={channels}. Allowed: 1 or 2.")
        if not 0 <= flip <= 1:
            raise ValueError(f"SoundDataModule: flip={flip} is no probability. Use 0 to 1.")
        if len(gain_db) != 2 or not gain_db[0] <= gain_db[1]:
            raise ValueError(f"SoundDataModule: gain_db={gain_db} is no range. Example: (-12.0, 6.0).")
        if keep_minutes < 0:
            raise ValueError(f"SoundDataModule: keep_minutes={keep_minutes}. Use 0 or more.")
        for name, value in (("limit", limit), ("limit_val", limit_val)):
            if value is not None and value < 1:
                raise ValueError(f"SoundDataModule: {name}={value} keeps no recording. Use 1 or more, or leave it out.")
        check_on_error("SoundDataModule", on_error)
        self.train, self.val = train, val
        self.sample_rate, self.channels = sample_rate, channels
        self.seconds, self.seconds_val = seconds, seconds_val
        self.level_db, self.gain_db, self.flip = level_db, tuple(gain_db), flip
        self.keep_minutes = keep_minutes
        self.limit, self.limit_val = limit, limit_val
        self.on_error = on_error
        self.train_set: SoundDataset | None = None
        self.val_set: SoundDataset | None = None

    @property
    def unreadable(self) -> int:
        """Recordings found unreadable so far in training and validation; only on_error='skip' lets it grow."""
        return sum(part.unreadable for part in (self.train_set, self.val_set) if part is not None)

    def setup(self, stage: str | None = None) -> None:
        """Open the corpora: training recordings for "fit" (or None), validation recordings always."""
        shared: dict[str, Any] = dict(sample_rate=self.sample_rate, channels=self.channels, on_error=self.on_error)
        if self.train_set is None and stage in (None, "fit"):
            self.train_set = SoundDataset(
                self.corpus("train"),
                samples=round(self.seconds * self.sample_rate),
                seed=self.seed,
                level_db=self.level_db,
                gain_db=self.gain_db,
                flip=self.flip,
                keep_minutes=self.keep_minutes,
                **shared,
            )
        if self.val_set is None and self.val is not None:
            self.val_set = SoundDataset(self.corpus("val"), samples=round(self.seconds_val * self.sample_rate), **shared)

    def corpus(self, split: Literal["train", "val"]) -> SoundCorpus:
        """Open the recordings of a split, as many as the limit leaves."""
        source, limit = (self.train, self.limit) if split == "train" else (self.val, self.limit_val)
        corpus = open_sounds(source, split=None if source == "samples" else split)
        return corpus if limit is None or limit >= len(corpus) else SoundSelection(corpus, range(limit))

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training batches (`SoundBatch`), at the restored position if there is one."""
        return self.training_loader(self.train_set, _collate)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of validation batches (`SoundBatch`), in corpus order."""
        return self.evaluation_loader(self.val_set, _collate)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader
