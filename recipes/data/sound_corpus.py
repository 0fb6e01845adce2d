"""Recordings to train on and to score: an ordered list of encoded sounds with a record each, from a folder or from shards.

A corpus is a folder of wav, flac, ogg or mp3 files (a transcript may lie beside `NAME.wav` as `NAME.txt`), or WebDataset shards:
tar files with `KEY.flac` and `KEY.json`. It holds nothing open, and reading never changes it. Waveforms are float32 in [-1, 1].
"""

import glob
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "SOUND_SUFFIXES",
    "SoundCorpus",
    "SoundFolder",
    "SoundSelection",
    "SoundShards",
    "UnreadableSoundError",
    "decode_sound",
    "open_sounds",
]

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


class UnreadableSoundError(ValueError):
    """A recording that is there but cannot be decoded; the message names its source and key."""


def decode_sound(data: bytes) -> tuple[Tensor, int]:
    """Decode an encoded recording to `(channels, s)` float32 and its samples a second.

    Raises:
        ValueError: the bytes are no sound, hold no sample, or hold NaN or infinity.
        ModuleNotFoundError: package soundfile is missing.
    """
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "decode_sound: package soundfile is not installed. Install it with: pip install 'tokenizer-zoo[audio]'"
        ) from error
    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:
        raise ValueError(f"decode_sound: {len(data)} bytes are no readable wav, flac, ogg or mp3 ({error}).") from error
    if not len(samples):
        raise ValueError("decode_sound: the recording holds no sample.")
    if not np.isfinite(samples).all():
        raise ValueError("decode_sound: the recording holds NaN or infinity.")
    return torch.from_numpy(np.ascontiguousarray(samples.T)), int(rate)


class SoundCorpus:
    """An ordered list of recordings. Subclasses say where the bytes and the records are; `source` is what a user would type."""

    source: str

    def __len__(self) -> int:
        raise NotImplementedError

    def key(self, i: int) -> str:
        """Name of recording i; stable over machines and runs."""
        raise NotImplementedError

    def read_bytes(self, i: int) -> bytes:
        """The encoded recording i as it is stored."""
        raise NotImplementedError

    def record(self, i: int) -> dict[str, Any]:
        """What is known of recording i: always `key`; `text`, `language`, `speaker` and others where known."""
        raise NotImplementedError

    def read(self, i: int) -> tuple[Tensor, int]:
        """Decode recording i to `(channels, s)` float32 and its samples a second.

        Raises:
            UnreadableSoundError: it cannot be decoded; names the source and the key.
        """
        try:
            return decode_sound(self.read_bytes(i))
        except ValueError as error:
            raise UnreadableSoundError(
                f"{type(self).__name__}.read: recording {self.key(i)!r} (number {i}) of {self.source} is unreadable: {error}"
            ) from error


class SoundFolder(SoundCorpus):
    """Files below a folder, in order of their path; keys are paths relative to it.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no recording in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, self.source = Path(folder), os.fspath(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"SoundFolder: there is no folder {folder}.")
        found = [path for path in self.folder.rglob("*") if path.suffix.lower() in SOUND_SUFFIXES and path.is_file()]
        self.paths = sorted(found, key=lambda path: path.relative_to(self.folder).as_posix())
        if not self.paths:
            raise ValueError(f"SoundFolder: no recording in {folder}. Names must end in {', '.join(SOUND_SUFFIXES)}.")

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, i: int) -> str:
        return self.paths[i].relative_to(self.folder).as_posix()

    def read_bytes(self, i: int) -> bytes:
        return self.paths[i].read_bytes()

    def record(self, i: int) -> dict[str, Any]:
        record: dict[str, Any] = {"key": self.key(i)}
        text = self.paths[i].with_suffix(".txt")
        if text.is_file():
            record["text"] = text.read_text().strip()
        return record


class _Member(NamedTuple):
    shard: str
    offset: int
    size: int


class SoundShards(SoundCorpus):
    """Recordings in uncompressed tar shards, in the order of the shards and of their members; records come from KEY.json.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: a shard is compressed or broken, a key occurs twice, or no recording is in any.
    """

    def __init__(self, shards: Sequence[str | Path]) -> None:
        paths = [os.fspath(shard) for shard in shards]
        self.source = " and ".join([*paths[:1], *([f"{len(paths) - 1} more"] if len(paths) > 1 else [])])
        self._sounds: dict[str, _Member] = {}
        self._records: dict[str, _Member] = {}
        for path in paths:
            self._index(path)
        self._keys = list(self._sounds)
        if not self._keys:
            raise ValueError(f"SoundShards: no recording in {self.source}. Names must end in {', '.join(SOUND_SUFFIXES)}.")

    def _index(self, path: str) -> None:
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    key, dot, suffix = member.name.rpartition(".")
                    place = _Member(path, member.offset_data, member.size)
                    if not member.isfile():
                        continue
                    if f"{dot}{suffix.lower()}" in SOUND_SUFFIXES:
                        if key in self._sounds:
                            raise ValueError(f"SoundShards: key {key!r} occurs twice, in {self._sounds[key].shard} and {path}.")
                        self._sounds[key] = place
                    elif suffix == "json":
                        self._records[key] = place
        except tarfile.TarError as error:
            raise ValueError(f"SoundShards: {path} is not a whole, uncompressed tar file ({error}).") from error

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, i: int) -> str:
        return self._keys[i]

    def read_bytes(self, i: int) -> bytes:
        return _cut(self._sounds[self._keys[i]])

    def record(self, i: int) -> dict[str, Any]:
        place = self._records.get(self._keys[i])
        try:
            record = {} if place is None else dict(json.loads(_cut(place)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"SoundShards.record: the record of {self._keys[i]!r} is no JSON object ({error}).") from error
        return {**record, "key": self._keys[i]}


def _cut(place: _Member) -> bytes:
    with open(place.shard, "rb") as file:
        file.seek(place.offset)
        data = file.read(place.size)
    if len(data) != place.size:
        raise ValueError(f"SoundShards: {place.shard} ends inside a member. It was cut after it was opened: copy it again.")
    return data


class SoundSelection(SoundCorpus):
    """Some recordings of another corpus, in the given order."""

    def __init__(self, corpus: SoundCorpus, numbers: Sequence[int]) -> None:
        self.corpus, self.numbers, self.source = corpus, list(numbers), corpus.source

    def __len__(self) -> int:
        return len(self.numbers)

    def key(self, i: int) -> str:
        return self.corpus.key(self.numbers[i])

    def read_bytes(self, i: int) -> bytes:
        return self.corpus.read_bytes(self.numbers[i])

    def record(self, i: int) -> dict[str, Any]:
        return self.corpus.record(self.numbers[i])


class _SampleSounds(SoundFolder):
    """The recordings in the package, with what is said in them."""

    def record(self, i: int) -> dict[str, Any]:
        from zoo import samples

        record = super().record(i)
        sample = samples.info(f"{self.folder.name}/{record['key']}")
        told = {"text": sample.text, "language": sample.language}
        return {**record, **{key: value for key, value in told.items() if value is not None}}


def _splits(folder: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for shard in sorted(folder.glob("*.tar")):
        splits.setdefault(shard.stem.rpartition("-")[0] or shard.stem, []).append(shard)
    return splits


def open_sounds(source: str | Path, *, split: str | None = None) -> SoundCorpus:
    """Open recordings, picking the reader by what the source is.

    Args:
        source: a tar file; a glob of tar files; a folder that holds `SPLIT-*.tar` shards; a folder of recordings; `samples` for
            the speech and music in the package.
        split: which shards of a shard folder, or `speech` or `music` of the samples.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: nothing that is a recording, or no such split (those there are listed).
    """
    text = os.fspath(source)
    if text == "samples":
        from zoo import samples

        if split not in (None, "speech", "music"):
            raise ValueError(f"open_sounds: the samples have no split {split!r}. Splits there: speech, music.")
        return _SampleSounds(samples.folder() / (split or "speech"))
    path = Path(text).expanduser()
    if path.is_file():
        return SoundShards([path])
    if not path.is_dir():
        shards = sorted(glob.glob(os.fspath(path)))
        if not shards:
            raise FileNotFoundError(f"open_sounds: {text!r} is no file, no folder, and no glob that matches anything.")
        return SoundShards(shards)
    splits = _splits(path)
    if not splits:
        return SoundFolder(path)
    if split not in splits:
        told = "say which split" if split is None else f"there is no split {split!r}"
        raise ValueError(f"open_sounds: {text} is a folder of shards; {told}. Splits there: {', '.join(splits)}.")
    return SoundShards(splits[split])
