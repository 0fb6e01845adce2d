"""Write and read the tar shards of a pack: `KEY.jpg` (or `.ogg`, `.flac`) followed by `KEY.json`, whole or not at all."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["read_shard", "write_atomic", "write_shard"]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that its name never stands for half of it: a neighbour ending in `.part`, then one rename."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(part, path)


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, dict[str, Any]]], *, suffix: str = "jpg") -> None:
    """Write (key, encoded sample, record) triples as one tar without dates and owners: equal samples give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key, sample, record in samples:
            for kind, data in ((suffix, sample), ("json", json.dumps(record, sort_keys=True).encode("utf-8"))):
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    write_atomic(path, buffer.getvalue())


def read_shard(path: Path, *, suffix: str = "jpg") -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Yield (key, encoded sample, record) in the order of the file.

    Raises:
        ValueError: a tar that is cut short, or whose members are not pairs `KEY.SUFFIX`, `KEY.json`.
    """
    try:
        with tarfile.open(path) as archive:
            sample: tuple[str, bytes] | None = None
            for member in archive:
                key, _, kind = member.name.rpartition(".")
                data = archive.extractfile(member).read()  # type: ignore[union-attr]
                if kind == suffix and sample is None:
                    sample = (key, data)
                elif kind == "json" and sample is not None and sample[0] == key:
                    yield key, sample[1], json.loads(data)
                    sample = None
                else:
                    raise ValueError(
                        f"read_shard: {path}: {member.name!r} is out of place. Allowed: pairs KEY.{suffix}, KEY.json."
                    )
            if sample is not None:
                raise ValueError(f"read_shard: {path}: {sample[0]}.{suffix} has no record after it. Build the shard again.")
    except tarfile.TarError as error:
        raise ValueError(f"read_shard: {path}: not a whole tar file ({error}). Build the shard again.") from error
