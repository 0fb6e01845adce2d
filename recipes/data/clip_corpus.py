"""Clips to train on and to score: an ordered list of video files with a record each, from a folder or from shards.

A corpus is a folder of files that end in one of `CLIP_SUFFIXES`, or WebDataset shards: tar files with `KEY.mp4` and `KEY.json`. It
holds nothing open, and reading never changes it.
"""

import glob
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recipes.data.corpus import ImageCorpus, Selection
from recipes.data.folder import ImageFolder
from recipes.data.shards import TarShards

__all__ = ["CLIP_SUFFIXES", "Clip", "ClipCorpus", "UnreadableClipError", "decode_clip", "open_clips"]

CLIP_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".ogv")


class UnreadableClipError(ValueError):
    """A clip that is there but cannot be decoded; the message names its source and key."""


class Clip(NamedTuple):
    """Decoded frames, uint8 `(t, 3, h, w)`, and how many of them last a second."""

    frames: Tensor
    frame_rate: float


def decode_clip(data: bytes, *, size: tuple[int, int] | None = None, frames: int | None = None) -> Clip:
    """Decode an encoded clip to 8-bit RGB, each frame by the project's resize rule.

    Args:
        data: of a file.
        size: `(h, w)`: the largest centred box of that shape, by antialiased bicubic; None keeps the size.
        frames: only the first so many; None for all.

    Raises:
        ValueError: no readable video, a damaged or cut one, one without frames or without a frame rate.
    """
    from zoo.media import to_uint8
    from zoo.media.video import ClipReader

    parts: list[Tensor] = []
    with tempfile.NamedTemporaryFile(suffix=".video") as file:
        file.write(data)
        file.flush()
        with ClipReader(file.name, size=size) as reader:
            for part in reader:
                parts.append(to_uint8(part[0].transpose(0, 1)))
                if frames is not None and sum(map(len, parts)) >= frames:
                    break
            rate = reader.frame_rate
    if rate is None:
        raise ValueError("decode_clip: the file states no frame rate. Is it a still picture?")
    return Clip(torch.cat(parts)[:frames].contiguous(), rate)


class ClipCorpus:
    """An ordered list of clips.

    Args:
        files: the files, with their keys and records.
    """

    def __init__(self, files: ImageCorpus) -> None:
        self.files = files
        self.source = files.source

    def __len__(self) -> int:
        return len(self.files)

    def key(self, i: int) -> str:
        """Name of clip i; stable over machines and runs."""
        return self.files.key(i)

    def read_bytes(self, i: int) -> bytes:
        """The encoded clip i as it is stored."""
        return self.files.read_bytes(i)

    def record(self, i: int) -> dict[str, Any]:
        """What is known of clip i: always `key`; `fps`, `frames`, `package` and others where known."""
        return self.files.record(i)

    def read(self, i: int, *, size: tuple[int, int] | None = None, frames: int | None = None) -> Clip:
        """Decode clip i; see `decode_clip`.

        Raises:
            UnreadableClipError: it cannot be decoded; names the source and the key.
        """
        try:
            return decode_clip(self.read_bytes(i), size=size, frames=frames)
        except ValueError as error:
            raise UnreadableClipError(
                f"ClipCorpus.read: clip {self.key(i)!r} (number {i}) of {self.source} is unreadable: {error}"
            ) from error

    def select(self, numbers: Sequence[int]) -> "ClipCorpus":
        """Give some of the clips, in the given order."""
        return ClipCorpus(Selection(self.files, numbers))


def open_clips(source: str | Path, *, split: str | None = None) -> ClipCorpus:
    """Open clips, picking the reader by what the source is.

    Args:
        source: a tar file; a glob of tar files; a folder that holds `SPLIT-*.tar` shards; a folder of video files; `samples` for
            the clips in the package.
        split: which shards of a shard folder.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: nothing that is a clip, or no such split (those there are listed).
    """
    text = os.fspath(source)
    if text == "samples":
        from zoo import samples

        return _in_folder(samples.folder() / "video")
    path = Path(text).expanduser()
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if not shards:
            return _in_folder(path)
        splits = sorted({shard.stem.rpartition("-")[0] or shard.stem for shard in shards})
        if split not in splits:
            told = "say which split" if split is None else f"there is no split {split!r}"
            raise ValueError(f"open_clips: {text} is a folder of shards; {told}. Splits there: {', '.join(splits)}.")
        return _in_shards([shard for shard in shards if (shard.stem.rpartition("-")[0] or shard.stem) == split])
    found = [os.fspath(path)] if path.is_file() else sorted(glob.glob(os.fspath(path)))
    if not found:
        raise FileNotFoundError(f"open_clips: {text!r} is no file, no folder, and no glob that matches anything.")
    return _in_shards(found)


def _in_folder(folder: Path) -> ClipCorpus:
    try:
        return ClipCorpus(ImageFolder(folder, suffixes=CLIP_SUFFIXES))
    except ValueError as error:
        raise ValueError(f"open_clips: no clip in {folder}. Names must end in {', '.join(CLIP_SUFFIXES)}.") from error


def _in_shards(shards: Sequence[str | Path]) -> ClipCorpus:
    return ClipCorpus(TarShards(shards, suffixes=CLIP_SUFFIXES))
