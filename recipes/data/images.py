"""The picture datamodule: augmented training batches that resume exactly, and centre-cropped validation batches.

An augmented picture is a function of (seed, epoch, index): it depends on no global random state, on no worker and on no
neighbour. The order of pictures is the sampler's (see `recipes.data.sampler`).
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from recipes.data.corpora import open_images
from recipes.data.corpus import ImageCorpus, UnreadableImageError
from recipes.data.resumable import ResumableDataModule
from recipes.data.sampler import seeded
from recipes.data.unreadable import LeavesOut, OnError, check_on_error, readable
from zoo.media import resize_crop

__all__ = ["ImageBatch", "ImageDataModule", "ImageDataset", "random_view", "to_float"]



class ImageBatch(NamedTuple):
    """A batch of pictures.

    Attributes:
        images: `(b, 3, h, w)` float32 in [-1, 1].
        labels: `(b,)` int64 class numbers, -1 where unknown.
        index: `(b,)` int64 positions in the opened corpus.
    """

    images: Tensor
    labels: Tensor
    index: Tensor


def random_view(
    image: Image.Image, size: int, generator: torch.Generator, *, scale: tuple[float, float], hflip: float
) -> Image.Image:
    """Cut a random square, resize it (antialiased bicubic) and mirror it by chance.

    Args:
        image: RGB picture.
        size: side of the result in pixels.
        generator: the only source of chance; four numbers are always drawn, so that settings do not shift the stream.
        scale: the square's side as a fraction of the picture's short side, drawn uniformly from this range.
        hflip: probability of mirroring.
    """
    fraction, x, y, flip = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    width, height = image.size
    side = min(width, height) * (scale[0] + (scale[1] - scale[0]) * fraction)
    left, top = x * (width - side), y * (height - side)
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < hflip else view


def to_float(images: Tensor) -> Tensor:
    """Turn 8-bit pictures `(b, 3, h, w)` into float32 in [-1, 1]: v becomes v / 127.5 - 1."""
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1.0)


class ImageDataset(LeavesOut, Dataset):
    """Pictures of a corpus as 8-bit arrays: random views when asked for (epoch, index), the centre for a bare index.

    Args:
        corpus: where the pictures come from.
        size: side in pixels.
        seed, scale, hflip: of the random views.
        on_error: "raise" stops at an unreadable picture; "skip" leaves it out of its batch, logs it and counts it in
            `unreadable` (also when a worker process met it).
    """

    def __init__(
        self,
        corpus: ImageCorpus,
        *,
        size: int,
        seed: int = 0,
        scale: tuple[float, float] = (1.0, 1.0),
        hflip: float = 0.0,
        on_error: OnError = "raise",
    ) -> None:
        self.corpus = corpus
        self.size = size
        self.seed = seed
        self.scale = scale
        self.hflip = hflip
        super().__init__(len(corpus), on_error)

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[np.ndarray, int, int] | None:
        epoch, index = item if isinstance(item, tuple) else (None, item)
        try:
            image = self.corpus.read(index)
        except UnreadableImageError as error:
            self.leave_out(index, error)
            return None
        if epoch is None:
            view = resize_crop(image, self.size)
        else:
            generator = seeded("view", self.seed, epoch, index)
            view = random_view(image, self.size, generator, scale=self.scale, hflip=self.hflip)
        return np.asarray(view), self.corpus.label_id(index), index


def _collate(items: list[tuple[np.ndarray, int, int] | None]) -> ImageBatch:
    found = readable(items, "ImageDataModule", "pictures")
    images, labels, index = zip(*found, strict=True)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return ImageBatch(to_float(stacked), torch.tensor(labels), torch.tensor(index))


class ImageDataModule(ResumableDataModule):
    """Train and validate on pictures from anything `open_images` opens.

    Training batches continue exactly where a checkpoint was written, also in the middle of an epoch: the checkpoint
    keeps the position, and order and augmentation are functions of (seed, epoch, index). Each process of a distributed
    run gets its own stripe and the same number of steps; Lightning's `use_distributed_sampler` may be true or false.

    Args:
        train: source of the training pictures; see `open_images`. Of a shard folder the split `train` is taken.
        val: source of the validation pictures (split `val`); None trains without validation.
        size: side of the square pictures in pixels.
        batch_size: pictures per process and step.
        num_workers: loader processes; the batches do not depend on it.
        seed: of order and augmentation.
        exclude_packages: leave out pictures whose record has one of these as `package`. A package has to occur in
            the training pictures.
        random_crop: range of the random square's side as a fraction of the short side; (1, 1) takes the largest square.
        hflip: probability of mirroring a training picture.
        limit: use only the first so many training pictures.
        limit_val: use only the first so many validation pictures.
        on_error: "raise", or "skip" to leave unreadable pictures out, logged and counted in `unreadable`.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        size: int = 64,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        exclude_packages: tuple[str, ...] = (),
        random_crop: tuple[float, float] = (0.6, 1.0),
        hflip: float = 0.5,
        limit: int | None = None,
        limit_val: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if size < 1:
            raise ValueError(f"ImageDataModule: size={size} pixels. Use 1 or more.")
        if not 0 <= hflip <= 1:
            raise ValueError(f"ImageDataModule: hflip={hflip} is no probability. Use 0 to 1.")
        if len(random_crop) != 2 or not 0 < random_crop[0] <= random_crop[1] <= 1:
            raise ValueError(f"ImageDataModule: random_crop={random_crop} is no range in (0, 1]. Example: (0.6, 1.0).")
        check_on_error("ImageDataModule", on_error)
        self.train = train
        self.val = val
        self.size = size
        self.exclude_packages = tuple(exclude_packages)
        self.random_crop = tuple(random_crop)
        self.hflip = hflip
        self.limit = limit
        self.limit_val = limit_val
        self.on_error = on_error
        self.train_set: ImageDataset | None = None
        self.val_set: ImageDataset | None = None

    @property
    def unreadable(self) -> int:
        """Pictures found unreadable so far in training and validation; only on_error='skip' lets it grow."""
        return sum(part.unreadable for part in (self.train_set, self.val_set) if part is not None)

    def setup(self, stage: str | None = None) -> None:
        """Open the corpora: training pictures for "fit" (or None), validation pictures always."""
        if self.train_set is None and stage in (None, "fit"):
            self.train_set = ImageDataset(
                self.corpus("train"),
                size=self.size,
                seed=self.seed,
                scale=self.random_crop,
                hflip=self.hflip,
                on_error=self.on_error,
            )
        if self.val_set is None and self.val is not None:
            self.val_set = ImageDataset(self.corpus("val"), size=self.size, on_error=self.on_error)

    def corpus(self, split: Literal["train", "val"]) -> ImageCorpus:
        """Open the pictures of a split, after exclusions and limit."""
        if split == "train":
            return open_images(self.train, split="train", exclude_packages=self.exclude_packages, limit=self.limit)
        return open_images(
            self.val,
            split="val",
            exclude_packages=self.exclude_packages,
            unknown_packages="ignore",  # the training pictures have checked the spelling; val may lack a package
            limit=self.limit_val,
        )

    def train_dataloader(self) -> DataLoader:
        """Return the loader of augmented training batches (`ImageBatch`), at the restored position if there is one."""
        return self.training_loader(self.train_set, _collate)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of centre-cropped validation batches (`ImageBatch`), in corpus order."""
        return self.evaluation_loader(self.val_set, _collate)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader
