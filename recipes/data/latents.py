"""The latent datamodule: a frozen front end encodes every training picture once, in a few augmented views.

Training behind a frozen tokenizer spends most of its time in that tokenizer. Here it runs once, before training; its
latents stay in one cache file that is found again by what it was made from.
"""

import contextlib
import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from recipes.data.images import ImageDataModule, to_float
from recipes.data.latent_cache import LatentCache, LatentCacheWriter, exclusive
from recipes.data.resumable import ResumableDataModule
from recipes.data.views import cache_path, view_loader, view_of, views_made_from

__all__ = ["LatentBatch", "LatentDataModule", "LatentDataset", "encode_views", "weights_hash"]

_logger = logging.getLogger(__name__)
_FORMAT = 1  # raise it when views are cut in another way, so that old caches are not taken for new ones
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class LatentBatch(NamedTuple):
    """A batch of latents and the pictures they encode.

    Attributes:
        latents: `(b, c, h, w)` float32, as the front end gives them.
        images: `(b, 3, H, W)` float32 in [-1, 1].
        labels: `(b,)` int64 class numbers, -1 where unknown.
        index: `(b,)` int64 positions in the opened corpus.
    """

    latents: Tensor
    images: Tensor
    labels: Tensor
    index: Tensor


def weights_hash(tokenizer: Any) -> str:
    """Return the SHA-256 (hex) of what a front end computes with: its class, its configuration, its tensors.

    Raises:
        TypeError: it is no `torch.nn.Module`, so that its weights cannot be seen.
    """
    if not isinstance(tokenizer, nn.Module):
        raise TypeError(
            f"weights_hash: {type(tokenizer).__name__} is no torch.nn.Module, so its weights cannot be hashed. "
            "Give the datamodule a module, or name the weights by front_end_id=."
        )
    config = getattr(tokenizer, "config", None)
    described = config.to_dict() if hasattr(config, "to_dict") else None
    digest = hashlib.sha256(json.dumps([type(tokenizer).__qualname__, described], sort_keys=True, default=str).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class LatentDataset(Dataset):
    """Rows of a cache. Asked for (epoch, index), the view of that epoch; asked for a bare index, view 0.

    The first view of a picture is a function of (seed, index); over as many epochs as there are views each comes once.
    """

    def __init__(self, cache: LatentCache, *, seed: int = 0) -> None:
        self.cache = cache
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, np.ndarray, int, int]:
        index, view = view_of(item, self.cache.views, self.seed)
        return *self.cache.read(index, view), index


def _collate(items: list[tuple[Tensor, np.ndarray, int, int]]) -> LatentBatch:
    latents, images, labels, index = zip(*items, strict=True)
    pictures = to_float(torch.from_numpy(np.stack(images)))
    return LatentBatch(torch.stack(latents), pictures, torch.tensor(labels), torch.tensor(index))


def encode_views(
    loader: DataLoader, front_end: Any, path: Path, *, dtype: torch.dtype, made_from: dict[str, Any]
) -> None:
    """Encode every view of a `ViewDataset` loader into a new cache file, with a progress bar.

    Args:
        loader: gives views `(b, v, 3, h, w)` uint8 and labels `(b,)`.
        front_end: see `LatentDataModule`; a module is put into evaluation mode and stays on its device.
        path: the finished file.
        dtype: of the stored latents.
        made_from: what is written into the file's metadata.

    Raises:
        ValueError: the front end's latents are not `(b, c, h, w)`, or not finite.
    """
    if isinstance(front_end, nn.Module):
        front_end.eval()
    views, size = loader.dataset.views, loader.dataset.size
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress(console=Console(stderr=True)))
        task = bar.add_task(path.name, total=len(loader.dataset))
        writer: LatentCacheWriter | None = None
        for pictures, labels in loader:
            flat = torch.from_numpy(pictures).flatten(0, 1)
            latents = _latents_of(front_end, to_float(flat)).unflatten(0, (-1, views))
            if writer is None:
                writer = stack.enter_context(
                    LatentCacheWriter(
                        path,
                        count=len(loader.dataset),
                        views=views,
                        latent_shape=tuple(latents.shape[2:]),
                        latent_dtype=dtype,
                        size=size,
                        metadata=made_from,
                    )
                )
            writer.append(latents, pictures, labels)
            bar.advance(task, len(labels))


@torch.inference_mode()
def _latents_of(front_end: Any, x: Tensor) -> Tensor:
    """Encode pictures `(b, 3, h, w)` in [-1, 1] to latents `(b, c, h, w)` with any front end we know how to call."""
    name = type(front_end).__name__
    parameter = next(front_end.parameters(), None) if isinstance(front_end, nn.Module) else None
    if parameter is not None:
        x = x.to(parameter.device, parameter.dtype)
    if hasattr(front_end, "encode_latents"):
        latents = front_end.encode_latents(x)
    elif hasattr(front_end, "encode"):
        tokens = front_end.encode(x)
        if tokens.discrete:
            raise ValueError(f"LatentDataModule: {name} makes codes. Needed: a tokenizer with continuous latents.")
        latents = tokens.data.movedim(-1, 1)
    else:
        raise TypeError(f"LatentDataModule: {name} has neither encode_latents(x) nor encode(x) -> Tokens. Give it one.")
    if latents.ndim != 4 or len(latents) != len(x):
        raise ValueError(
            f"LatentDataModule: {name} made latents of shape {tuple(latents.shape)} from {tuple(x.shape)}. "
            "Needed: (b, c, h, w)."
        )
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(
            f"LatentDataModule: {name} made latents that are NaN or infinite. Check its weights and dtype."
        )
    return latents


def _is_cache(source: Any) -> bool:
    return isinstance(source, str) and Path(source).suffix in (".safetensors", ".npz")


class LatentDataModule(ResumableDataModule):
    """Train on cached latents of a frozen front end; resumes exactly, like `ImageDataModule`.

    Before training, `views` views of each training picture and the centre of each validation picture are encoded into
    `<cache>/train-KEY.safetensors` and `<cache>/val-KEY.safetensors`. KEY is a hash of the pictures, the front end, the
    views and the seed: the same arguments find the same file at the next start, other arguments make another one. The
    first process of each node does this; encode a large set once in a single process before a distributed run.

    Args:
        train: source of the training pictures (see `open_images`), or a finished cache: a .safetensors or .npz file
            with latents `(n, v, c, h, w)`, images `(n, v, 3, H, W)` uint8 and labels `(n,)`, which needs no tokenizer.
        val: the same for validation; None trains without validation.
        tokenizer: the front end: a name for `zoo.load`, a tokenizer of the zoo with continuous latents, or any object
            with `encode_latents(x)`, which turns `(b, 3, size, size)` float32 in [-1, 1] into `(b, c, h, w)`.
        cache: folder of the cache files.
        views: augmented versions of each training picture.
        size, batch_size, num_workers, seed: see `ImageDataModule`.
        exclude_packages, random_crop, hflip, limit, limit_val: see `ImageDataModule`; not for finished caches.
        encode_batch_size: pictures (views) the front end sees at once.
        latent_dtype: how latents are stored; batches are float32 always.
        front_end_id: names the weights of a front end that is no `torch.nn.Module`; part of KEY.

    Raises:
        ValueError: a number out of its range, a tokenizer missing where pictures must be encoded.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        tokenizer: Any = None,
        cache: str = ".cache/latents",
        views: int = 4,
        size: int = 64,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        exclude_packages: tuple[str, ...] = (),
        random_crop: tuple[float, float] = (0.6, 1.0),
        hflip: float = 0.5,
        limit: int | None = None,
        limit_val: int | None = None,
        encode_batch_size: int = 32,
        latent_dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        front_end_id: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if views < 1:
            raise ValueError(f"LatentDataModule: views={views}. Use 1 or more.")
        if encode_batch_size < 1:
            raise ValueError(f"LatentDataModule: encode_batch_size={encode_batch_size}. Use 1 or more.")
        if latent_dtype not in _DTYPES:
            raise ValueError(f"LatentDataModule: latent_dtype={latent_dtype!r}. Allowed: {', '.join(_DTYPES)}.")
        if tokenizer is None and not (_is_cache(train) and (val is None or _is_cache(val))):
            raise ValueError(
                "LatentDataModule: tokenizer is missing, but train or val are pictures. Give a tokenizer that encodes "
                "them, or finished .safetensors or .npz caches."
            )
        self.train = train
        self.val = val
        self.tokenizer = tokenizer
        self.cache = Path(cache).expanduser()
        self.views = views
        self.encode_batch_size = encode_batch_size
        self.latent_dtype = latent_dtype
        self.front_end_id = front_end_id
        self._pictures = ImageDataModule(
            train=train,
            val=None if _is_cache(val) else val,
            size=size,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            exclude_packages=exclude_packages,
            random_crop=random_crop,
            hflip=hflip,
            limit=limit,
            limit_val=limit_val,
        )
        self._facts: dict[str, dict[str, Any]] = {}
        self.train_set: LatentDataset | None = None
        self.val_set: LatentDataset | None = None

    def prepare_data(self) -> None:
        """Encode what is not in the cache yet; Lightning calls this in the first process of each node."""
        for split in ("train", "val"):
            if self._source(split) is not None and not _is_cache(self._source(split)):
                self._encode(split)

    def setup(self, stage: str | None = None) -> None:
        """Open the caches: training pictures for "fit" (or None), validation pictures always."""
        if self.train_set is None and stage in (None, "fit"):
            self.train_set = LatentDataset(LatentCache(self._path("train")), seed=self.seed)
        if self.val_set is None and self.val is not None:
            self.val_set = LatentDataset(LatentCache(self._path("val")))

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training batches (`LatentBatch`), at the restored position if there is one."""
        return self.training_loader(self.train_set, _collate)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of validation batches (`LatentBatch`), in corpus order."""
        return self.evaluation_loader(self.val_set, _collate)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def _source(self, split: str) -> str | list[str] | None:
        return self.train if split == "train" else self.val

    def _path(self, split: str) -> Path:
        source = self._source(split)
        if _is_cache(source):
            return Path(source).expanduser()
        return cache_path(self.cache, split, self._made_from(split))

    def _made_from(self, split: str) -> dict[str, Any]:
        """Return all that the content of a cache depends on."""
        if split not in self._facts:
            self._facts[split] = views_made_from(self._pictures, split, self.views) | {
                "format": _FORMAT,
                "front_end": self._front_end_identity(),
                "latent_dtype": self.latent_dtype,
            }
        return self._facts[split]

    def _front_end_identity(self) -> str:
        if self.front_end_id is not None:
            return self.front_end_id
        return weights_hash(self._front_end())

    def _front_end(self) -> Any:
        if isinstance(self.tokenizer, str):
            import zoo

            self.tokenizer = zoo.load(self.tokenizer)
        return self.tokenizer

    def _encode(self, split: str) -> None:
        path = self._path(split)
        with exclusive(path):
            if path.is_file():
                _logger.info("latents of %s found in %s", split, path)
                return
            facts = self._made_from(split)
            loader = view_loader(self._pictures, split, views=facts["views"], batch_size=self.encode_batch_size)
            _logger.info("encoding %d pictures in %d views into %s", len(loader.dataset), facts["views"], path)
            encode_views(loader, self._front_end(), path, dtype=_DTYPES[self.latent_dtype], made_from=facts)
