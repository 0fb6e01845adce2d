"""The clip datamodule: random stretches of clips beside still pictures, resuming exactly, and validation clips in order.

Where clips are few, a share of the stretches can be windows that move over still pictures: textures of many pictures under the
motion of a camera, without anything that moves by itself.

A training stretch is a function of (seed, epoch, index), as are the stills that come with it: they depend on no global random
state, on no worker and on no neighbour. Every clip gives one stretch in an epoch.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from recipes.data.clip_corpus import ClipCorpus, UnreadableClipError, open_clips
from recipes.data.corpora import open_images
from recipes.data.corpus import ImageCorpus
from recipes.data.images import random_view, to_float
from recipes.data.resumable import ResumableDataModule
from recipes.data.sampler import seeded
from recipes.data.unreadable import LeavesOut, OnError, check_on_error, readable

__all__ = ["ClipBatch", "ClipDataModule", "ClipDataset", "moving_window", "random_stretch"]

_WINDOW = (0.5, 0.9)  # sides of a moving window as a fraction of the picture's short side
_SHIFT = 0.3  # of its side that a window moves at most, in each direction, over a stretch


class ClipBatch(NamedTuple):
    """A batch of clips and of still pictures.

    Attributes:
        clips: `(b, 3, t, h, w)` float32 in [-1, 1].
        stills: `(s, 3, h, w)` float32 in [-1, 1]; s is 0 without a source of pictures, and in validation.
        index: `(b,)` int64 positions in the opened corpus of clips.
    """

    clips: Tensor
    stills: Tensor
    index: Tensor


def random_stretch(
    frames: Tensor, count: int, size: int, generator: torch.Generator, *, scale: tuple[float, float], hflip: float
) -> Tensor:
    """Cut a random stretch and a random square, the same in all frames, resize it (antialiased bicubic), mirror it by chance.

    Args:
        frames: `(t, 3, h, w)` uint8; one that is shorter than `count` is continued with its last frame.
        count: frames of the result.
        size: side of the result in pixels.
        generator: the only source of chance; five numbers are always drawn, so that settings do not shift the stream.
        scale: the square's side as a fraction of the short side, drawn uniformly from this range.
        hflip: probability of mirroring.

    Returns:
        `(count, 3, size, size)` uint8.
    """
    start, fraction, x, y, flip = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    first = int(start * (max(0, len(frames) - count) + 1))
    height, width = frames.shape[-2:]
    side = max(1, round(min(height, width) * (scale[0] + (scale[1] - scale[0]) * fraction)))
    left, top = round(x * (width - side)), round(y * (height - side))
    part = _lasting(frames[first : first + count, :, top : top + side, left : left + side], count)
    part = _resized(part, size)
    return part.flip(-1) if flip < hflip else part


def moving_window(picture: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Move a square window evenly over a picture, closer or farther, from one random place to another nearby.

    Args:
        picture: `(3, h, w)` uint8.
        count: frames of the result.
        size: side of the result in pixels.
        generator: the only source of chance; six numbers are drawn.

    Returns:
        `(count, 3, size, size)` uint8, interpolated by bicubic splines between pixels.
    """
    small, large, x, y, right, down = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    height, width = picture.shape[-2:]
    sides = [min(height, width) * (_WINDOW[0] + (_WINDOW[1] - _WINDOW[0]) * part) for part in (small, large)]
    ends = []
    for whole, place, shift in ((width, x, right), (height, y, down)):
        first = place * (whole - sides[0]) + sides[0] / 2  # centres of the window
        last = first + (2 * shift - 1) * _SHIFT * sides[0]
        ends.append((first, min(max(last, sides[1] / 2), whole - sides[1] / 2)))
    along = torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    inside = ((torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5) * (sides[0] + (sides[1] - sides[0]) * along)
    across, downwards = (
        (2 * (first + (last - first) * along + inside) / whole - 1).float()
        for (first, last), whole in zip(ends, (width, height), strict=True)
    )
    grid = torch.stack([across[:, None, :].expand(-1, size, -1), downwards[:, :, None].expand(-1, -1, size)], -1)
    pictures = picture.float()[None].expand(count, -1, -1, -1)
    moved = F.grid_sample(pictures, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return moved.round_().clamp_(0, 255).to(torch.uint8)


def _lasting(frames: Tensor, count: int) -> Tensor:
    """Continue with the last frame up to `count` frames."""
    missing = count - len(frames)
    return frames if missing <= 0 else torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])


def _resized(frames: Tensor, size: int) -> Tensor:
    """Resize squares `(t, 3, side, side)` uint8."""
    if frames.shape[-1] == size:
        return frames
    resized = F.interpolate(frames.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


class ClipDataset(LeavesOut, Dataset):
    """Stretches of clips with stills: random ones when asked for (epoch, index), the beginning and no stills for a bare index.

    Args:
        corpus: where the clips come from.
        stills: where the still pictures come from; None for no stills.
        frames: of a stretch; a shorter clip is continued with its last frame.
        size: side in pixels.
        stills_per_clip: pictures that come with a stretch.
        seed, scale, hflip: of the random stretches and views.
        pans: share of the random stretches that are windows moving over still pictures instead.
        keep_frames: decoded frames to keep in memory, in each process. What comes out does not depend on it.
        on_error: "raise" stops at an unreadable clip; "skip" leaves it out of its batch, logs it and counts it in `unreadable`.
    """

    def __init__(
        self,
        corpus: ClipCorpus,
        stills: ImageCorpus | None = None,
        *,
        frames: int,
        size: int,
        stills_per_clip: int = 0,
        seed: int = 0,
        scale: tuple[float, float] = (1.0, 1.0),
        hflip: float = 0.0,
        pans: float = 0.0,
        keep_frames: int = 0,
        on_error: OnError = "raise",
    ) -> None:
        self.corpus, self.stills = corpus, stills
        self.frames, self.size, self.stills_per_clip = frames, size, stills_per_clip
        self.seed, self.scale, self.hflip, self.pans = seed, scale, hflip, pans
        self._room = keep_frames
        self._kept: dict[int, Tensor] = {}
        super().__init__(len(corpus), on_error)

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, list[Tensor], int] | None:
        epoch, index = item if isinstance(item, tuple) else (None, item)
        try:
            if epoch is None:
                found = self.corpus.read(index, size=(self.size, self.size), frames=self.frames).frames
                return _lasting(found, self.frames), [], index
            draws = seeded("clip", self.seed, epoch, index)
            if self.pans and float(torch.rand((), generator=draws)) < self.pans:
                stretch = moving_window(self._picture(draws), self.frames, self.size, draws)
            else:
                stretch = random_stretch(self._decoded(index), self.frames, self.size, draws, scale=self.scale, hflip=self.hflip)
        except UnreadableClipError as error:
            self.leave_out(index, error)
            return None
        return stretch, [self._still(draws) for _ in range(self.stills_per_clip)], index

    def _picture(self, draws: torch.Generator) -> Tensor:
        """A random still picture, `(3, h, w)` uint8."""
        image = self.stills.read(int(torch.randint(len(self.stills), (), generator=draws)))
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)

    def _still(self, draws: torch.Generator) -> Tensor:
        image = self.stills.read(int(torch.randint(len(self.stills), (), generator=draws)))
        view = random_view(image, self.size, draws, scale=self.scale, hflip=self.hflip)
        return torch.from_numpy(np.array(view)).permute(2, 0, 1)

    def _decoded(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        frames = self.corpus.read(index).frames
        if len(frames) <= self._room:
            self._room -= len(frames)
            self._kept[index] = frames
        return frames


def _collate(items: list[tuple[Tensor, list[Tensor], int] | None]) -> ClipBatch:
    found = readable(items, "ClipDataModule", "clips")
    clips = torch.stack([clip for clip, _, _ in found])
    stills = [still for _, some, _ in found for still in some]
    pictures = torch.stack(stills) if stills else clips.new_zeros(0, *clips.shape[2:])
    frames = to_float(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).transpose(1, 2).contiguous()
    return ClipBatch(frames, to_float(pictures), torch.tensor([index for _, _, index in found]))


class ClipDataModule(ResumableDataModule):
    """Train on clips with still pictures beside them, validate on clips.

    Training batches continue exactly where a checkpoint was written, also in the middle of an epoch: the checkpoint keeps the
    position, and order and stretches are functions of (seed, epoch, index).

    Args:
        train: source of the training clips; see `open_clips`. Of a shard folder the split `train` is taken.
        val: source of the validation clips (split `val`); None trains without validation.
        stills: source of the still pictures (split `train`); see `open_images`. None for no stills.
        frames: of a training stretch and of a validation clip.
        size: side of the square frames in pixels.
        stills_per_clip: pictures that come with each clip.
        batch_size: clips per process and step.
        num_workers: loader processes; the batches do not depend on it.
        seed: of order and stretches.
        exclude_packages: leave out clips and pictures whose record has one of these as `package`.
        random_crop: range of the random square's side as a fraction of the short side.
        hflip: probability of mirroring.
        pans: share of the training stretches that are windows moving over still pictures (`moving_window`) instead; needs stills.
        keep_frames: decoded training frames to keep in memory, in each process.
        limit, limit_val: use only the first so many clips.
        on_error: "raise", or "skip" to leave unreadable clips out, logged and counted in `unreadable`.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        stills: str | None = None,
        frames: int = 17,
        size: int = 64,
        stills_per_clip: int = 4,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        exclude_packages: tuple[str, ...] = (),
        random_crop: tuple[float, float] = (0.6, 1.0),
        hflip: float = 0.5,
        pans: float = 0.0,
        keep_frames: int = 0,
        limit: int | None = None,
        limit_val: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        counts = {"frames": frames, "size": size, "limit": limit, "limit_val": limit_val}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ValueError(f"ClipDataModule: {name}={value}. Use 1 or more.")
        for name, value in {"stills_per_clip": stills_per_clip, "keep_frames": keep_frames}.items():
            if value < 0:
                raise ValueError(f"ClipDataModule: {name}={value}. Use 0 or more.")
        if not 0 <= hflip <= 1:
            raise ValueError(f"ClipDataModule: hflip={hflip} is no probability. Use 0 to 1.")
        if not 0 <= pans <= 1 or (pans and stills is None):
            raise ValueError(f"ClipDataModule: pans={pans}, stills={stills!r}. Use 0 to 1, and name stills to move over.")
        if len(random_crop) != 2 or not 0 < random_crop[0] <= random_crop[1] <= 1:
            raise ValueError(f"ClipDataModule: random_crop={random_crop} is no range in (0, 1]. Example: (0.6, 1.0).")
        check_on_error("ClipDataModule", on_error)
        self.train, self.val, self.stills = train, val, stills
        self.frames, self.size, self.stills_per_clip = frames, size, stills_per_clip
        self.exclude_packages = tuple(exclude_packages)
        self.random_crop, self.hflip, self.pans = tuple(random_crop), hflip, pans
        self.keep_frames, self.limit, self.limit_val, self.on_error = keep_frames, limit, limit_val, on_error
        self.train_set: ClipDataset | None = None
        self.val_set: ClipDataset | None = None

    @property
    def unreadable(self) -> int:
        """Clips found unreadable so far in training and validation; only on_error='skip' lets it grow."""
        return sum(part.unreadable for part in (self.train_set, self.val_set) if part is not None)

    def setup(self, stage: str | None = None) -> None:
        """Open the corpora: training clips for "fit" (or None), validation clips always."""
        if self.train_set is None and stage in (None, "fit"):
            stills = None
            if self.stills is not None:
                stills = open_images(self.stills, split="train", exclude_packages=self.exclude_packages, unknown_packages="ignore")
            self.train_set = ClipDataset(
                self.corpus("train"),
                stills,
                frames=self.frames,
                size=self.size,
                stills_per_clip=self.stills_per_clip if stills is not None else 0,
                seed=self.seed,
                scale=self.random_crop,
                hflip=self.hflip,
                pans=self.pans,
                keep_frames=self.keep_frames,
                on_error=self.on_error,
            )
        if self.val_set is None and self.val is not None:
            self.val_set = ClipDataset(self.corpus("val"), frames=self.frames, size=self.size, on_error=self.on_error)

    def corpus(self, split: Literal["train", "val"]) -> ClipCorpus:
        """Open the clips of a split, after exclusions and limit."""
        source, limit = (self.train, self.limit) if split == "train" else (self.val, self.limit_val)
        found = open_clips(source, split=split)
        kept = [i for i in range(len(found)) if found.record(i).get("package") not in self.exclude_packages]
        if not kept:
            raise ValueError(f"ClipDataModule: exclude_packages={self.exclude_packages} leaves no clip of {source}.")
        return found.select(kept[:limit])

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training batches (`ClipBatch`), at the restored position if there is one."""
        return self.training_loader(self.train_set, _collate)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of validation batches (`ClipBatch`), in corpus order."""
        return self.evaluation_loader(self.val_set, _collate)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader
