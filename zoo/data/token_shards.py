"""Shards of tokens, written and read: WebDataset (tar) or Parquet, the same bytes for the same tokens.

In a tar file, a sample has `KEY.npy` (codes in the narrowest integers, or latents, without the batch axis), `KEY.json` (record),
a `KEY.side.NAME.npy` for each side tensor, and what its source carried beside the signal. In Parquet, a row has `key`, `codes` or
`latents` (flat) with `shape`, `record` (JSON), `side` (name -> npy) and `others` (ending -> bytes). KEY is the number of the item.
"""

import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zoo.tokens import Tokens, TokenSpec, narrowest

__all__ = [
    "ENDINGS",
    "ParquetReader",
    "ParquetWriter",
    "ShardFormat",
    "TarReader",
    "TarWriter",
    "TokenSample",
    "open_shard",
    "writer_of",
]

ShardFormat = Literal["webdataset", "parquet"]
ENDINGS: dict[ShardFormat, str] = {"webdataset": ".tar", "parquet": ".parquet"}
"""Ending of the shards of a format."""

_OURS = ("npy", "json", "side")
_ROWS = 256  # of a row group


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSample:
    """One item of a folder of token shards.

    Attributes:
        key: number of the item, nine digits.
        tokens: a batch of one.
        record: `number`, `item` (its name in the source), `source_sha256`, `extent`.
        others: what its source carried beside the signal, such as a caption: ending -> bytes.
    """

    key: str
    tokens: Tokens
    record: Mapping[str, Any]
    others: Mapping[str, bytes] = field(default_factory=dict)


def writer_of(path: Path, shards: ShardFormat, spec: TokenSpec) -> "TarWriter | ParquetWriter":
    """Open a shard for writing: a context with `add`.

    Raises:
        ValueError: an unknown format.
    """
    if shards not in get_args(ShardFormat):
        raise ValueError(f"tokenize: shards={shards!r}. Allowed: {', '.join(get_args(ShardFormat))}.")
    return TarWriter(path) if shards == "webdataset" else ParquetWriter(path, spec)


@lru_cache(maxsize=4)
def open_shard(path: Path, spec: TokenSpec) -> "TarReader | ParquetReader":
    """Open a shard for reading; the last few stay open in each process.

    Raises:
        ValueError: damaged.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"TokenDataset: no shard {path}. Run `zoo tokenize` again with the same words: it is made anew.")
    return TarReader(path, spec) if path.suffix == ENDINGS["webdataset"] else ParquetReader(path, spec)


# -- tar ---------------------------------------------------------------------------------------------------------------------------


class TarWriter:
    """Write a WebDataset shard; a context.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._archive = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def __enter__(self) -> "TarWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._archive.close()

    def add(self, sample: TokenSample) -> None:
        """Append one item; an ending that is one of ours gets `source.` before it.

        Raises:
            ValueError: codes outside their vocabulary, or latents that are not finite.
        """
        self._add(f"{sample.key}.npy", _npy(_narrow(sample)))
        self._add(f"{sample.key}.json", json.dumps(dict(sample.record), sort_keys=True).encode())
        for name, value in sorted(sample.tokens.side.items()):
            self._add(f"{sample.key}.side.{name}.npy", _npy(value[0]))
        for ending, content in sorted(sample.others.items()):
            first = ending.partition(".")[0]
            self._add(f"{sample.key}.{'source.' if first in (*_OURS, 'source') else ''}{ending}", content)

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        member.mode = 0o644
        self._archive.addfile(member, io.BytesIO(content))


class TarReader:
    """Samples of a WebDataset shard by their place; the file stays open.

    Args:
        path: of the shard.
        spec: what its numbers mean.

    Raises:
        ValueError: not a whole tar file.
    """

    def __init__(self, path: Path, spec: TokenSpec) -> None:
        self.path, self.spec = path, spec
        self._samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    key, _, ending = member.name.partition(".")
                    self._samples.setdefault(key, {})[ending] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            raise ValueError(f"token shard {path}: not a whole tar file ({error}). Copy it again.") from error
        self._keys = list(self._samples)
        self._file = path.open("rb")

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, place: int) -> TokenSample:
        key = self._keys[place]
        contents = {ending: self._read(*where) for ending, where in self._samples[key].items()}
        record = json.loads(contents.pop("json"))
        data = _tensor(contents.pop("npy"))
        side = {
            ending.removeprefix("side.").removesuffix(".npy"): _tensor(contents.pop(ending))
            for ending in list(contents)
            if ending.startswith("side.")
        }
        others = {ending.removeprefix("source."): content for ending, content in contents.items()}
        return _sample(key, data, side, record, others, self.spec)

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file.fileno(), size, offset)
        while len(data) < size:
            more = os.pread(self._file.fileno(), size - len(data), offset + len(data))
            if not more:
                raise ValueError(
                    f"token shard {self.path}: it ends inside a member, at byte {offset + len(data):,}. Copy it again."
                )
            data += more
        return data


# -- Parquet -----------------------------------------------------------------------------------------------------------------------


class ParquetWriter:
    """Write a Parquet shard, compressed with zstd; a context.

    Args:
        path: of the file.
        spec: of the tokens, which also goes into the metadata of the file.
    """

    def __init__(self, path: Path, spec: TokenSpec) -> None:
        import pyarrow as pa

        self._path, self._spec, self._pa = path, spec, pa
        self._writer: Any = None
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> "ParquetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            if self._writer is None:
                self._open(np.dtype("uint8" if self._spec.discrete else "float32"))
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def add(self, sample: TokenSample) -> None:
        """Append one item.

        Raises:
            ValueError: codes outside their vocabulary, or latents that are not finite.
        """
        array = _array(_narrow(sample))
        if self._writer is None:
            self._open(array.dtype)
        self._rows.append(
            {
                "key": sample.key,
                self._field: array.reshape(-1),
                "shape": list(array.shape),
                "record": json.dumps(dict(sample.record), sort_keys=True),
                "side": [(name, _npy(value[0])) for name, value in sorted(sample.tokens.side.items())],
                "others": sorted(sample.others.items()),
            }
        )
        if len(self._rows) == _ROWS:
            self._flush()

    @property
    def _field(self) -> str:
        return "codes" if self._spec.discrete else "latents"

    def _open(self, numbers: np.dtype) -> None:
        import pyarrow.parquet as pq

        pa, plain = self._pa, self._pa.map_(self._pa.string(), self._pa.binary())
        columns = [("key", pa.string()), (self._field, pa.list_(pa.from_numpy_dtype(numbers))), ("shape", pa.list_(pa.int32()))]
        columns += [("record", pa.string()), ("side", plain), ("others", plain)]
        self._schema = pa.schema(columns, metadata={"zoo_token_spec": self._spec.to_json()})
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd", use_dictionary=False)

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


class ParquetReader:
    """Samples of a Parquet shard by their place; row groups are read as they are asked for, the last two stay in memory.

    Args:
        path: of the shard.
        spec: what its numbers mean.

    Raises:
        ValueError: not a whole Parquet file.
    """

    def __init__(self, path: Path, spec: TokenSpec) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path, self.spec = path, spec
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"token shard {path}: not a whole Parquet file ({error}). Copy it again.") from error
        self._group = lru_cache(maxsize=2)(self._file.read_row_group)

    def __len__(self) -> int:
        return self._file.metadata.num_rows

    def __getitem__(self, place: int) -> TokenSample:
        import pyarrow as pa

        if not 0 <= place < len(self):
            raise IndexError(place)
        try:
            row = {name: column[place % _ROWS] for name, column in zip(*self._columns(place // _ROWS), strict=True)}
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"token shard {self.path}: damaged at row {place} ({error}). Copy it again.") from error
        numbers = row["codes" if self.spec.discrete else "latents"].values.to_numpy(zero_copy_only=False)
        data = torch.from_numpy(numbers.reshape(row["shape"].as_py()).copy())
        side = {name: _tensor(content) for name, content in row["side"].as_py()}
        return _sample(row["key"].as_py(), data, side, json.loads(row["record"].as_py()), dict(row["others"].as_py()), self.spec)

    def _columns(self, group: int) -> tuple[list[str], list[Any]]:
        table = self._group(group)
        return table.schema.names, table.columns


# -- numbers -----------------------------------------------------------------------------------------------------------------------


def _narrow(sample: TokenSample) -> Tensor:
    """The numbers of one item, without filler and batch axis, in the narrowest type."""
    tokens = sample.tokens
    tokens.check_codes(f"Tokens of {tokens.spec.tokenizer} for {sample.record.get('item', sample.key)}")
    data = tokens.data[0][tuple(slice(side) for side in tokens.sizes[0].tolist())]
    return data.to(narrowest(max(tokens.spec.vocabulary) - 1)) if tokens.discrete else data


def _sample(
    key: str, data: Tensor, side: dict[str, Tensor], record: dict[str, Any], others: dict[str, bytes], spec: TokenSpec
) -> TokenSample:
    data = data.long() if spec.discrete else data
    extent = torch.tensor([record["extent"]], dtype=torch.int64)
    tokens = Tokens(data[None], spec, extent, None, {name: value[None] for name, value in side.items()})
    return TokenSample(key=key, tokens=tokens, record=record, others=others)


def _array(x: Tensor) -> np.ndarray:
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:  # numpy has none; float32 holds it exactly
        x = x.float()
    return x.contiguous().numpy()


def _npy(x: Tensor) -> bytes:
    out = io.BytesIO()
    np.save(out, _array(x), allow_pickle=False)
    return out.getvalue()


def _tensor(content: bytes) -> Tensor:
    return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
