"""Pictures in WebDataset shards: plain tar files with KEY.jpg|jpeg|png|webp and KEY.json (or KEY.cls) members.

Only the standard library reads them. The tar headers are walked once, when the shards are opened; pictures are then
read at their offsets with `os.pread`, which has no file position, so forked workers may share a descriptor.
"""

import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.data.corpus import IMAGE_SUFFIXES, ImageCorpus

__all__ = ["TarShards"]

_KINDS = ("image", "json", "cls")
_MOST_OPEN = 128  # descriptors a process keeps; the usual limit for everything together is 1024


class TarShards(ImageCorpus):
    """Pictures of one or more uncompressed tar shards, in the order of the shards and of their members.

    Other kinds of file are listed by `suffixes`; `read` is for pictures only.

    Records come from KEY.json (an object); KEY.cls (a whole number) gives `label_id` where the JSON does not.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: no shards, a shard is compressed or broken, holds the same member twice, or no picture is in any.
    """

    def __init__(self, shards: Sequence[str | Path], *, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> None:
        self.shards = [os.fspath(shard) for shard in shards]
        if not self.shards:
            raise ValueError("TarShards: got no shards. Give at least one tar file.")
        self.source = self.shards[0] if len(self.shards) == 1 else f"{self.shards[0]} and {len(self.shards) - 1} more"
        self._keys: list[str] = []
        rows: list[tuple[int, ...]] = []
        for number, shard in enumerate(self.shards):
            for key, members in _index(shard, suffixes).items():
                if "image" in members:
                    self._keys.append(key)
                    rows.append((number, *(value for kind in _KINDS for value in members.get(kind, (-1, 0)))))
        if not rows:
            raise ValueError(f"TarShards: no picture in {self.source}. Names must end in {', '.join(suffixes)}.")
        self._table = np.array(rows, dtype=np.int64)  # shard, then offset and size of each kind; offset -1: not there
        self._open: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def key(self, i: int) -> str:
        return self._keys[i]

    def read_bytes(self, i: int) -> bytes:
        data = self._member(i, "image")
        assert data is not None
        return data

    def record(self, i: int) -> dict[str, Any]:
        record: dict[str, Any] = {}
        described, label = self._member(i, "json"), self._member(i, "cls")
        try:
            if described is not None:
                record = dict(json.loads(described))
            if label is not None:
                record.setdefault("label_id", int(label))
        except (ValueError, TypeError) as error:
            shard = self.shards[int(self._table[i, 0])]
            raise ValueError(
                f"TarShards.record: the record of {self._keys[i]!r} in {shard} cannot be read ({error}). "
                "Needed: a JSON object in KEY.json, a whole number in KEY.cls."
            ) from error
        record["key"] = self._keys[i]
        return record

    def _member(self, i: int, kind: str) -> bytes | None:
        row = self._table[i].tolist()
        column = 1 + 2 * _KINDS.index(kind)
        shard, offset, size = row[0], row[column], row[column + 1]
        if offset < 0:
            return None
        descriptor = self._descriptor(shard)
        data = os.pread(descriptor, size, offset)
        while len(data) < size:  # one call may return less than asked for, on network file systems above all
            more = os.pread(descriptor, size - len(data), offset + len(data))
            if not more:
                raise ValueError(
                    f"TarShards: {self.shards[shard]} ends at byte {offset + len(data)}, but {self._keys[i]!r} goes on "
                    f"to {offset + size}. The shard was cut after it was opened: copy it again."
                )
            data += more
        return data

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = os.open(self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > _MOST_OPEN:
                os.close(self._open.popitem(last=False)[1])
        return self._open[shard]


def _index(shard: str, suffixes: Sequence[str]) -> dict[str, dict[str, tuple[int, int]]]:
    """Return key -> kind -> (offset, size) of the members of a shard, in their order."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    end = os.stat(shard).st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                kind = "image" if f".{suffix.lower()}" in suffixes else suffix.lower()
                if not member.isfile() or kind not in _KINDS:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                members = found.setdefault(key, {})
                if kind in members:
                    raise ValueError(
                        f"TarShards: {shard} holds {member.name!r} although key {key!r} has its {kind} member already. "
                        "Keys must be unique within a shard."
                    )
                if member.offset_data + member.size > end:
                    raise ValueError(f"TarShards: {shard} ends inside member {member.name!r}. Copy the shard again.")
                members[kind] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(
            f"TarShards: {shard} is not a whole, uncompressed tar file ({error}). Unpack .tar.gz or .tar.zst first."
        ) from error
    return found
