"""Open a picture corpus by what its source is."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from recipes.data.corpus import ImageCorpus, Selection, content_hash, exclude
from recipes.data.folder import ImageFolder
from recipes.data.huggingface import HuggingFaceImages
from recipes.data.shards import TarShards
from zoo import samples

__all__ = ["content_hash", "open_images"]


def open_images(
    source: str | Path | Sequence[str | Path],
    *,
    split: str | None = None,
    exclude_packages: Sequence[str] = (),
    unknown_packages: Literal["raise", "ignore"] = "raise",
    limit: int | None = None,
) -> ImageCorpus:
    """Open pictures, picking the reader by what the source is.

    Args:
        source: a tar file; a glob of tar files; a list of tar files; a folder that holds `SPLIT-*.tar` shards; a folder
            of pictures (class sub-folders are labels); `hf:ORG/NAME` or `hf:ORG/NAME:CONFIG` for a Hugging Face data
            set; `samples` for the dozen photographs in the package.
        split: which shards of a shard folder, or which split of a Hugging Face data set; ignored for the others.
        exclude_packages: leave out pictures whose record has one of these as `package`.
        unknown_packages: whether a package that no picture comes from is an error (a spelling mistake) or all right.
        limit: keep only the first so many pictures.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: something is there that holds no pictures; a split that the shard folder does not have; a package
            that no picture comes from; limit below 1.
        ImportError: `hf:` without the `datasets` library.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"open_images: limit={limit} keeps no picture. Use 1 or more, or leave it out.")
    corpus = exclude(_open(source, split), exclude_packages, unknown_packages=unknown_packages)
    if not len(corpus):
        raise ValueError(
            f"open_images: exclude_packages={list(exclude_packages)} leaves no picture of {corpus.source}."
        )
    if limit is not None and limit < len(corpus):
        corpus = Selection(corpus, range(limit))
    return corpus


def _open(source: str | Path | Sequence[str | Path], split: str | None) -> ImageCorpus:
    if not isinstance(source, str | Path):
        return TarShards(source)
    text = os.fspath(source)
    if text == "samples":
        return ImageFolder(samples.folder() / "images")
    if text.startswith("hf:"):
        return HuggingFaceImages(text.removeprefix("hf:"), split=split or "train")
    path = Path(text).expanduser()
    if path.is_file():
        return TarShards([path])
    if path.is_dir():
        return _open_folder(path, split)
    shards = sorted(glob.glob(os.fspath(path)))
    if not shards:
        raise FileNotFoundError(
            f"open_images: {text!r} is no file, no folder, and no glob that matches anything. Give a tar file, a glob "
            "of them, a folder of SPLIT-*.tar shards or of pictures, hf:ORG/NAME, or samples."
        )
    return TarShards(shards)


def _open_folder(path: Path, split: str | None) -> ImageCorpus:
    shards = sorted(path.glob("*.tar"))
    if not shards:
        return ImageFolder(path)
    splits = sorted({shard.name.split("-", 1)[0] for shard in shards if "-" in shard.name})
    if split is None:
        raise ValueError(f"open_images: {path} is a folder of shards; say which split. Splits there: {splits}.")
    chosen = [shard for shard in shards if shard.name.startswith(f"{split}-")]
    if not chosen:
        raise ValueError(f"open_images: {path} has no {split}-*.tar. Splits there: {splits}.")
    return TarShards(chosen)
