"""Pictures in WebDataset shards: plain tar files with KEY.jpg|jpeg|png|webp and KEY.json (or KEY.cls) members.

Only the standard library reads them. The tar headers are walked once; pictures are then read at their offsets with
`os.pread`, which has no file position, so forks and threads may share a file.
"""

import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.data.corpus import IMAGE_SUFFIXES, ImageCorpus

__all__ = ["TarShards"]


@dataclass(frozen=True, slots=True)
class _Span:
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Sample:
    shard: int
    key: str
    image: _Span
    json: _Span | None
    cls: _Span | None


class TarShards(ImageCorpus):
    """Pictures of one or more uncompressed tar shards, in the order of the shards and of their members.

    Records come from KEY.json (an object); KEY.cls (a whole number) gives `label_id` where the JSON does not.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: no shards, a shard is compressed or broken, holds the same member twice, or no picture is in any.
    """

    def __init__(self, shards: Sequence[str | Path]) -> None:
        self.shards = [os.fspath(shard) for shard in shards]
        if not self.shards:
            raise ValueError("TarShards: got no shards. Give at least one tar file.")
        self.source = self.shards[0] if len(self.shards) == 1 else f"{self.shards[0]} and {len(self.shards) - 1} more"
        self._samples = [sample for n, shard in enumerate(self.shards) for sample in _index(n, shard)]
        if not self._samples:
            raise ValueError(f"TarShards: no picture in {self.source}. Names must end in {', '.join(IMAGE_SUFFIXES)}.")
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def key(self, i: int) -> str:
        return self._samples[i].key

    def read_bytes(self, i: int) -> bytes:
        sample = self._samples[i]
        return self._read(sample.shard, sample.image)

    def record(self, i: int) -> dict[str, Any]:
        sample = self._samples[i]
        record: dict[str, Any] = {}
        if sample.json is not None:
            try:
                record = json.loads(self._read(sample.shard, sample.json))
            except ValueError as error:
                raise ValueError(
                    f"TarShards.record: {sample.key}.json in {self.shards[sample.shard]} is not JSON ({error})."
                ) from error
        if sample.cls is not None and "label_id" not in record:
            record["label_id"] = int(self._read(sample.shard, sample.cls))
        record["key"] = sample.key
        return record

    def _read(self, shard: int, span: _Span) -> bytes:
        if shard not in self._files:
            self._files[shard] = os.open(self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(self._files[shard], span.size, span.offset)
        while len(data) < span.size:  # one call may return less, on network file systems above all
            more = os.pread(self._files[shard], span.size - len(data), span.offset + len(data))
            if not more:
                raise ValueError(
                    f"TarShards: {self.shards[shard]} ends at byte {span.offset + len(data)}, a member goes on to "
                    f"{span.offset + span.size}. The shard was cut after it was opened: open it again."
                )
            data += more
        return data


def _index(number: int, shard: str) -> list[_Sample]:
    spans: dict[str, dict[str, _Span]] = {}
    size = os.stat(shard).st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                suffix = f".{suffix.lower()}"
                kind = "image" if suffix in IMAGE_SUFFIXES else suffix.removeprefix(".")
                if kind not in ("image", "json", "cls"):
                    continue
                if kind in spans.setdefault(key, {}):
                    raise ValueError(
                        f"TarShards: {shard} holds two {kind} members of key {key!r}; keys must be unique."
                    )
                if member.offset_data + member.size > size:
                    raise ValueError(f"TarShards: {shard} ends inside member {member.name!r}. Copy the shard again.")
                spans[key][kind] = _Span(member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(
            f"TarShards: {shard} is not an uncompressed tar file ({error}). Unpack .tar.gz or .tar.zst shards first."
        ) from error
    return [
        _Sample(number, key, found["image"], found.get("json"), found.get("cls"))
        for key, found in spans.items()
        if "image" in found
    ]
