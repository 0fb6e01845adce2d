"""Views of pictures for caches: each picture in the centre, mirrored and in random squares, a function of (seed, view, index)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from recipes.data.corpus import ImageCorpus, content_hash
from recipes.data.images import ImageDataModule, random_view
from recipes.data.sampler import seeded
from zoo.media import resize_crop

__all__ = ["ViewDataset", "cache_path", "view_loader", "view_of", "views_made_from"]


class ViewDataset(Dataset):
    """The views of every picture as `(v, 3, size, size)` uint8, a function of (seed, view, index).

    View 0 is the centre. View 1 is the centre mirrored, if mirroring is wanted at all. The others are random squares,
    mirrored by chance.
    """

    def __init__(self, corpus: ImageCorpus, *, size: int, views: int, seed: int, scale: tuple[float, float], hflip: float) -> None:
        self.corpus = corpus
        self.size = size
        self.views = views
        self.seed = seed
        self.scale = scale
        self.hflip = hflip

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image = self.corpus.read(index)
        center = np.asarray(resize_crop(image, self.size))
        views = [center]
        for view in range(1, self.views):
            if view == 1 and self.hflip > 0:
                views.append(center[:, ::-1])
                continue
            generator = seeded("latent view", self.seed, view, index)
            cut = random_view(image, self.size, generator, scale=self.scale, hflip=self.hflip)
            views.append(np.asarray(cut))
        return np.stack(views).transpose(0, 3, 1, 2), self.corpus.label_id(index)


def view_of(item: int | tuple[int, int], views: int, seed: int) -> tuple[int, int]:
    """Give the index and the view that are meant: view 0 of a bare index, the view of an epoch for (epoch, index).

    The first view of a picture is a function of (seed, index); over as many epochs as there are views each comes once.
    """
    if not isinstance(item, tuple):
        return item, 0
    epoch, index = item
    first = int(torch.randint(views, (), generator=seeded("first view", seed, index)))
    return index, (first + epoch) % views


def view_loader(pictures: ImageDataModule, split: str, *, views: int, batch_size: int) -> DataLoader:
    """Give a loader of the views of a split, in corpus order: `(b, v, 3, h, w)` uint8 and labels `(b,)`.

    Args:
        pictures: says which pictures, their size, seed and crops.
        split: "train" or "val".
        views: of each picture.
        batch_size: views in a batch, about.
    """
    dataset = ViewDataset(
        pictures.corpus(split),
        size=pictures.size,
        views=views,
        seed=pictures.seed,
        scale=pictures.random_crop,
        hflip=pictures.hflip,
    )
    return DataLoader(
        dataset=dataset, batch_size=max(1, batch_size // views), num_workers=pictures.num_workers, collate_fn=_collate_views
    )


def _collate_views(items: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    views, labels = zip(*items, strict=True)
    return np.stack(views), np.array(labels, dtype=np.int64)


def views_made_from(pictures: ImageDataModule, split: str, views: int) -> dict[str, Any]:
    """Give all that the views of a split depend on; validation pictures have one view."""
    made_from: dict[str, Any] = {
        "pictures": content_hash(pictures.corpus(split)),
        "size": pictures.size,
        "views": views if split == "train" else 1,
    }
    if split == "train":
        made_from |= {"seed": pictures.seed, "random_crop": list(pictures.random_crop), "hflip": pictures.hflip}
    return made_from


def cache_path(folder: Path, split: str, made_from: dict[str, Any]) -> Path:
    """Name the cache file after what it was made from."""
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return folder / f"{split}-{key[:20]}.safetensors"
