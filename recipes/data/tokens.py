"""The token datamodule: a frozen tokenizer encodes every training picture once, in a few views; generators learn from that.

Tokens of `v` views of each picture stay in one cache file that is found again by what it was made from. A view of a picture
counts as a picture of its own: training shows another one in every epoch.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import zoo
from recipes.data.images import ImageDataModule, to_float
from recipes.data.latent_cache import LatentCacheWriter, TokenCache, exclusive
from recipes.data.latents import weights_hash
from recipes.data.resumable import ResumableDataModule
from recipes.data.views import cache_path, view_loader, view_of, views_made_from
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens, TokenSpec, narrowest

__all__ = ["TokenBatch", "TokenDataModule", "TokenDataset", "encode_tokens"]

_logger = logging.getLogger(__name__)
_FORMAT = 1  # raise it when views are cut or tokens are stored in another way
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


class TokenBatch(NamedTuple):
    """A batch of tokens.

    Attributes:
        tokens: of one view of each picture.
        labels: `(b,)` int64 class numbers, -1 where unknown.
        index: `(b,)` int64 positions in the opened corpus.
    """

    tokens: Tokens
    labels: Tensor
    index: Tensor


class TokenDataset(Dataset):
    """Rows of a cache. Asked for (epoch, index), the view of that epoch; asked for a bare index, view 0.

    The first view of a picture is a function of (seed, index); over as many epochs as there are views each comes once.
    """

    def __init__(self, cache: TokenCache, *, seed: int = 0) -> None:
        self.cache = cache
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int, int]:
        index, view = view_of(item, self.cache.views, self.seed)
        return self.cache.read(index, view), int(self.cache.labels[index]), index


@torch.inference_mode()
def encode_tokens(
    loader: DataLoader,
    tokenizer: Tokenizer,
    path: Path,
    *,
    depth: int | None = None,
    latent_dtype: torch.dtype = torch.float16,
    made_from: dict[str, Any],
) -> None:
    """Encode every view of a `ViewDataset` loader into a new cache file, with a progress bar.

    Args:
        loader: gives views `(b, v, 3, h, w)` uint8 and labels `(b,)`.
        tokenizer: in evaluation mode.
        path: the finished file.
        depth: levels of a residual tokenizer to keep; None keeps all.
        latent_dtype: how latents are stored; codes are stored in the narrowest integer type.
        made_from: what is written into the file's metadata, with the meaning of the tokens.

    Raises:
        ValueError: tokens with side tensors or of unequal length, which the cache cannot hold, or latents that are not finite.
    """
    views, count = loader.dataset.views, len(loader.dataset)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress(console=Console(stderr=True)))
        task = bar.add_task(path.name, total=count)
        writer: LatentCacheWriter | None = None
        for pictures, labels in loader:
            x = to_float(torch.from_numpy(pictures).flatten(0, 1)).to(tokenizer.device, tokenizer.dtype)
            tokens = tokenizer.encode(x, depth=depth)
            if tokens.side or tokens.lengths is not None:
                raise ValueError(
                    f"TokenDataModule: {tokenizer.info.name} makes tokens with side tensors or unequal lengths. Needed: whole ones."
                )
            if not tokens.discrete and not bool(torch.isfinite(tokens.data).all()):
                raise ValueError(f"TokenDataModule: {tokenizer.info.name} made latents that are not finite. Check its weights.")
            if writer is None:
                meaning = {"spec": tokens.spec.to_json(), "extent": tokens.extent[0].tolist()}
                dtype = narrowest(max(tokens.spec.vocabulary) - 1) if tokens.discrete else latent_dtype
                writer = stack.enter_context(
                    LatentCacheWriter(
                        path,
                        count=count,
                        views=views,
                        latent_shape=tuple(tokens.data.shape[1:]),
                        latent_dtype=dtype,
                        size=None,
                        metadata={**made_from, "tokens": meaning},
                    )
                )
            writer.append(tokens.data.unflatten(0, (-1, views)), pictures, labels)
            bar.advance(task, len(labels))


class TokenDataModule(ResumableDataModule):
    """Train on cached tokens of a frozen tokenizer of pictures; resumes exactly, like `ImageDataModule`.

    Before training, `views` views of each training picture and the centre of each validation picture are encoded into
    `<cache>/train-KEY.safetensors` and `<cache>/val-KEY.safetensors`. KEY is a hash of the pictures, the tokenizer, the views
    and the seed: the same arguments find the same file at the next start, other arguments make another one. View 0 is the
    centre, view 1 its mirror image, the others are random squares. The first process of each node does this; encode a large
    set once in a single process before a distributed run.

    Args:
        train: source of the training pictures (see `open_images`).
        val: the same for validation; None trains without validation.
        tokenizer: catalog name, folder or repository for `zoo.load`, or a tokenizer of pictures.
        depth: so many levels of a residual tokenizer; None takes all.
        cache: folder of the cache files.
        views: versions of each training picture.
        size: side of the pictures; None takes the tokenizer's native size.
        batch_size, num_workers, seed: see `ImageDataModule`.
        exclude_packages, random_crop, hflip, limit, limit_val: see `ImageDataModule`.
        encode_batch_size: pictures (views) that the tokenizer sees at once.
        latent_dtype: how latents are stored; batches are float32 always.

    Raises:
        ValueError: a number out of its range, or a tokenizer that is not one of pictures.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        tokenizer: Any = None,
        depth: int | None = None,
        cache: str = ".cache/tokens",
        views: int = 10,
        size: int | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        exclude_packages: tuple[str, ...] = (),
        random_crop: tuple[float, float] = (0.6, 1.0),
        hflip: float = 0.5,
        limit: int | None = None,
        limit_val: int | None = None,
        encode_batch_size: int = 32,
        latent_dtype: Literal["float32", "float16"] = "float16",
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if views < 1 or encode_batch_size < 1:
            raise ValueError(f"TokenDataModule: views={views}, encode_batch_size={encode_batch_size}. Use 1 or more.")
        if latent_dtype not in _DTYPES:
            raise ValueError(f"TokenDataModule: latent_dtype={latent_dtype!r}. Allowed: {', '.join(_DTYPES)}.")
        if tokenizer is None:
            raise ValueError("TokenDataModule: tokenizer is missing. Give a catalog name, a folder or a tokenizer.")
        self.train = train
        self.val = val
        self.tokenizer = tokenizer
        self.depth = depth
        self.cache = Path(cache).expanduser()
        self.views = views
        self.size = size
        self.encode_batch_size = encode_batch_size
        self.latent_dtype = latent_dtype
        self._picture_options = {
            "exclude_packages": exclude_packages,
            "random_crop": random_crop,
            "hflip": hflip,
            "limit": limit,
            "limit_val": limit_val,
        }
        self._facts: dict[str, dict[str, Any]] = {}
        self._pictures: ImageDataModule | None = None
        self.train_set: TokenDataset | None = None
        self.val_set: TokenDataset | None = None
        self.spec: TokenSpec | None = None
        self.extent: tuple[int, ...] = ()

    def prepare_data(self) -> None:
        """Encode what is not in the cache yet; Lightning calls this in the first process of each node."""
        for split in ("train", "val"):
            if getattr(self, split) is not None:
                self._encode(split)

    def setup(self, stage: str | None = None) -> None:
        """Open the caches: training pictures for "fit" (or None), validation pictures always."""
        if self.train_set is None and stage in (None, "fit"):
            self.train_set = self._open("train")
        if self.val_set is None and self.val is not None:
            self.val_set = self._open("val")

    def train_dataloader(self) -> DataLoader:
        """Return the loader of training batches (`TokenBatch`), at the restored position if there is one."""
        return self.training_loader(self.train_set, self.collate)

    def val_dataloader(self) -> DataLoader | list:
        """Return the loader of validation batches (`TokenBatch`), in corpus order."""
        return self.evaluation_loader(self.val_set, self.collate)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def collate(self, items: list[tuple[Tensor, int, int]]) -> TokenBatch:
        """Join rows of a `TokenDataset`."""
        data, labels, index = zip(*items, strict=True)
        tokens = Tokens(torch.stack(data), self.spec, torch.tensor([self.extent] * len(data)))
        return TokenBatch(tokens, torch.tensor(labels), torch.tensor(index))

    def _open(self, split: str) -> TokenDataset:
        cache = TokenCache(self._path(split))
        meaning = cache.made_from["tokens"]
        self.spec, self.extent = TokenSpec.from_json(meaning["spec"]), tuple(meaning["extent"])
        return TokenDataset(cache, seed=self.seed)

    def _loaded(self) -> Tokenizer:
        if isinstance(self.tokenizer, str | Path):
            self.tokenizer = zoo.load(self.tokenizer)
        if self.tokenizer.info.modality != "image":
            name, kind = self.tokenizer.info.name, self.tokenizer.info.modality
            raise ValueError(f"TokenDataModule: {name} is a tokenizer of {kind}. Needed: one of pictures.")
        return self.tokenizer.eval()

    def pictures(self) -> ImageDataModule:
        """Return the pictures behind the tokens, at the tokenizer's size."""
        if self._pictures is None:
            size = self.size or max(self._loaded().info.native_size or (0,))
            if not size:
                raise ValueError(f"TokenDataModule: {self._loaded().info.name} has no native size. Give size=.")
            self._pictures = ImageDataModule(
                train=self.train,
                val=self.val,
                size=size,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                seed=self.seed,
                **self._picture_options,
            )
        return self._pictures

    def _made_from(self, split: str) -> dict[str, Any]:
        """Return all that the content of a cache depends on."""
        if split not in self._facts:
            self._facts[split] = views_made_from(self.pictures(), split, self.views) | {
                "format": _FORMAT,
                "tokenizer": [self._loaded().info.name, weights_hash(self._loaded())],
                "depth": self.depth,
                "latent_dtype": self.latent_dtype,
            }
        return self._facts[split]

    def _path(self, split: str) -> Path:
        return cache_path(self.cache, split, self._made_from(split))

    def _encode(self, split: str) -> None:
        path = self._path(split)
        with exclusive(path):
            if path.is_file():
                _logger.info("tokens of %s found in %s", split, path)
                return
            facts = self._made_from(split)
            loader = view_loader(self.pictures(), split, views=facts["views"], batch_size=self.encode_batch_size)
            _logger.info("encoding %d pictures in %d views into %s", len(loader.dataset), facts["views"], path)
            dtype = _DTYPES[self.latent_dtype]
            encode_tokens(loader, self._loaded(), path, depth=self.depth, latent_dtype=dtype, made_from=facts)
