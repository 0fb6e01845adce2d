"""The items of a data set: files below a folder, members of WebDataset shards, rows of Parquet and Arrow files. Imports no torch.

Every item has a place in one fixed order, that of the names, so that each process finds the same list. What cannot be listed,
such as the rest of a broken shard, is an item too: one that carries its fault. Parquet as the Hub stores its data sets, and the
folders of Arrow files that `datasets` saves, are read through pyarrow (extra `data`).
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from zoo.file_kinds import kind_of

__all__ = ["Item", "Listing", "Member", "ending_of", "list_items", "read_item"]

_BLOCK = tarfile.BLOCKSIZE
_TABLES = (".parquet", ".arrow")
_COLUMNS = {
    "image": ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp"),
    "audio": ("audio", "sound", "wav", "flac", "mp3", "ogg"),
    "video": ("video", "clip", "mp4", "mkv", "webm"),
}
_ENDINGS = {"image": ".png", "audio": ".wav", "video": ".mp4"}  # readers look into the bytes; the ending is only a name
_GROUPS = 4  # row groups kept: two that readers are in, one at each border
_lock = Lock()


@dataclass(frozen=True, slots=True)
class Member:
    """A stretch of a tar file: the ending of its name (without the first dot), where it starts and how long it is."""

    ending: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Item:
    """One picture, sound or clip.

    Attributes:
        name: below the input, with slashes; a member of a shard is `shard.tar/member`, a row `file.parquet/000000012`.
        path: of the file, the shard or the table.
        size: bytes; of a row, those of its file.
        offset: in the shard; None for a file of its own.
        others: members of the same sample, such as a caption, that are copied as they are.
        column: of a row, the one that holds the signal; None for what is no row.
        group, row: of a row, its row group and its place there.
        fault: why there is nothing to read.
    """

    name: str
    path: Path
    size: int
    offset: int | None = None
    others: tuple[Member, ...] = ()
    column: str | None = None
    group: int = 0
    row: int = 0
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Items in the order of their names, and how many files were passed over because they hold nothing of the kinds asked for."""

    items: Sequence[Item]
    passed_over: int

    @property
    def sha256(self) -> str:
        """A hash of the list: names, places and sizes, but nothing of the contents."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(repr((item.name, item.size, item.offset, item.column, item.fault is not None)).encode())
        return digest.hexdigest()


def list_items(source: str | Path, *, kinds: Sequence[str], column: str | None = None) -> Listing:
    """List what a folder, a shard or a table holds, in the order of the names; hidden files are no part of it.

    Args:
        source: a folder (with all below it), a tar file, a Parquet or Arrow file, or one picture, sound or clip.
        kinds: modalities to take, of "image", "video", "audio"; the first is that of rows whose names do not say.
        column: of tables, where the signal is; None finds it by its type and name.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: nothing to take, no such column, or several that it could be.
        ModuleNotFoundError: a table, without pyarrow.
    """
    source = Path(source)
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.is_file())
        places = [(path, path.relative_to(source)) for path in found]
        named = [(path, place.as_posix()) for path, place in places if not any(p.startswith(".") for p in place.parts)]
    elif source.is_file():
        named = [(source, source.name)]
    else:
        raise FileNotFoundError(f"tokenize: no file or folder {source}. Give a folder, a tar shard or a Parquet file.")
    items: list[Item] = []
    passed_over = 0
    for path, name in named:
        suffix = path.suffix.lower()
        if suffix == ".tar":
            items += _items_of_shard(path, name, kinds)
        elif suffix in _TABLES:
            items += _items_of_table(path, name, kinds, column)
        elif kind_of(path) in kinds:
            items.append(Item(name, path, path.stat().st_size))
        else:
            passed_over += 1
    if not items:
        wanted = " or ".join(kinds)
        raise ValueError(f"tokenize: {source} holds no {wanted} files, tar shards or Parquet files. Give another input.")
    return Listing(items, passed_over)


def read_item(item: Item) -> tuple[bytes, str, dict[str, bytes]]:
    """Read one item: its bytes, the ending of its name, and what its source carries beside it (ending -> bytes).

    Raises:
        ValueError: it has a fault, or its shard or table is damaged there.
        OSError: the file cannot be read.
    """
    if item.fault is not None:
        raise ValueError(item.fault)
    if item.column is not None:
        return _read_row(item)
    ending = Path(item.name).suffix.lower()
    if item.offset is None:
        return item.path.read_bytes(), ending, {}
    with item.path.open("rb") as file:
        content = _stretch(file, item.offset, item.size, item.name)
        others = {member.ending: _stretch(file, member.offset, member.size, item.name) for member in item.others}
    return content, ending, others


# -- WebDataset shards -------------------------------------------------------------------------------------------------------------


def _items_of_shard(path: Path, name: str, kinds: Sequence[str]) -> Iterator[Item]:
    """Signals of a shard, each with the other members of its sample; samples without one, and a broken end, as faults."""
    samples: dict[str, list[tuple[str, Member]]] = {}
    fault = _walk(path, samples)
    for key, members in samples.items():
        signals = [(full, member) for full, member in members if kind_of(Path(full)) in kinds]
        others = tuple(member for full, member in members if kind_of(Path(full)) not in kinds)
        for full, member in signals:
            yield Item(f"{name}/{full}", path, member.size, member.offset, others)
        if not signals:
            kept = ", ".join(member.ending for _, member in members)
            yield Item(f"{name}/{key}", path, 0, 0, fault=f"the sample has no {' or '.join(kinds)} member, only: {kept}")
    if fault is not None:
        yield Item(name, path, path.stat().st_size, 0, fault=fault)


def _walk(path: Path, samples: dict[str, list[tuple[str, Member]]]) -> str | None:
    """Gather the members of a shard by sample; give the fault where the walk did not reach the end of the archive."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                samples.setdefault(key, []).append((member.name, Member(ending, member.offset_data, member.size)))
            end = archive.offset
    except (tarfile.TarError, OSError) as error:
        return f"not a whole, uncompressed tar file ({error}); what follows is not listed"
    with path.open("rb") as file:  # a damaged header in the middle ends the walk without an error
        file.seek(end)
        block = file.read(_BLOCK)
    if block.strip(b"\0") or 0 < len(block) < _BLOCK:
        return f"the tar file is damaged at byte {end:,}; what follows is not listed"
    return None


def _stretch(file: Any, offset: int, size: int, name: str) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"the shard ends inside {name}: {len(data):,} bytes of {size:,}")
    return data


# -- Parquet and Arrow -------------------------------------------------------------------------------------------------------------


def _items_of_table(path: Path, name: str, kinds: Sequence[str], column: str | None) -> Iterator[Item]:
    """Rows of a table; one that cannot be opened is one item with a fault."""
    import pyarrow as pa

    size = path.stat().st_size
    try:
        schema, rows = _shape_of_table(path)
    except (pa.ArrowException, OSError) as error:
        yield Item(name, path, size, fault=f"not a readable {path.suffix[1:]} file ({error}); its rows are not listed")
        return
    chosen = _signal_column(schema, name, kinds[0], column)
    number = 0
    for group, count in enumerate(rows):
        for row in range(count):
            yield Item(f"{name}/{number:09d}", path, size, column=chosen, group=group, row=row)
            number += 1


def _shape_of_table(path: Path) -> tuple[Any, list[int]]:
    """Schema, and rows of each row group."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            return file.schema_arrow, [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    reader = _open_arrow(path)
    return reader.schema, [batch.num_rows for batch in reader]


def _open_arrow(path: Path) -> Any:
    """A stream of record batches, as `datasets` writes them."""
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(path)))


def _signal_column(schema: Any, name: str, kind: str, column: str | None) -> str:
    """The column of the signal: the one asked for, else the only one of bytes, or that of them whose name says so."""
    usable = [field.name for field in schema if _holds_bytes(field.type)]
    if column is not None:
        if column not in usable:
            raise ValueError(
                f"tokenize: {name} has no column {column!r} of bytes. Columns of bytes: {', '.join(usable) or 'none'}."
            )
        return column
    named = [found for found in usable if found.lower() in _COLUMNS[kind]]
    if len(named) == 1 or (not named and len(usable) == 1):
        return (named or usable)[0]
    found = ", ".join(usable) or "none"
    raise ValueError(f"tokenize: which column of {name} holds the {kind}? Columns of bytes: {found}. Say it with column=.")


def _holds_bytes(kind: Any) -> bool:
    """Bytes, or the Hub's pair of `bytes` and `path`."""
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


@lru_cache(maxsize=_GROUPS)
def _group(path: Path, size: int, group: int) -> Any:
    """One row group in memory. `size` makes a file that changed another one."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            return file.read_row_group(group)
    for number, batch in enumerate(_open_arrow(path)):
        if number == group:
            return batch
    raise ValueError(f"the Arrow file ends before its batch {group}")


def _read_row(item: Item) -> tuple[bytes, str, dict[str, bytes]]:
    import pyarrow as pa

    try:
        with _lock:
            table = _group(item.path, item.size, item.group)
        cells = {name: table.column(name)[item.row].as_py() for name in table.schema.names}
    except pa.ArrowException as error:
        raise ValueError(f"the {item.path.suffix[1:]} file is damaged there ({error})") from error
    assert item.column is not None
    cell = cells.pop(item.column)
    place = cell.get("path") if isinstance(cell, Mapping) else None
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if content is None:
        raise ValueError(f"the row has no bytes in column {item.column}, only {cell!r}")
    return content, Path(place or "").suffix.lower(), _others_of_row(cells)


def _others_of_row(cells: dict[str, Any]) -> dict[str, bytes]:
    """Columns of bytes become members of their own, all else one JSON record."""
    raw = {f"{name}.bin": value for name, value in cells.items() if isinstance(value, bytes)}
    plain = {name: value for name, value in cells.items() if not isinstance(value, bytes)}
    if plain:
        raw["json"] = json.dumps(plain, default=str, sort_keys=True).encode()
    return raw


def ending_of(kind: str, ending: str) -> str:
    """The ending for a temporary file of an item, that of its kind where its source says none."""
    return ending if kind_of(Path(f"x{ending}")) is not None else _ENDINGS[kind]
