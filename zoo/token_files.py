"""Token files of endless signals: written and read in stretches, at constant memory.

The file is the one of `Tokens.save`, so that `Tokens.load` reads it whole: with one item in the batch, the stretches lie one behind
the other in the stored tensor. Its header is written when the length is known.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from torch import Tensor

from zoo.tokens import FORMAT, Tokens, TokenSpec, narrowest
from zoo.whole_files import whole_file

__all__ = ["TokenFile", "TokenWriter"]

_CODES = {
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
_POSITIONS = 64


def _raw(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


class TokenWriter:
    """Write the stretches of one signal into a token file that is there only when all is written: a context.

    Args:
        path: of the file.
        frame_rate: of the video that the tokens stand for, kept in the header for the writer of the decoded clip.

    Attributes:
        count: positions written.
        length: of the signal they stand for.
        bits: of their codes, side tensors included.
    """

    def __init__(self, path: str | Path, *, frame_rate: float | None = None) -> None:
        self.path, self.frame_rate = Path(path), frame_rate
        self.count, self.length, self.bits = 0, 0, 0.0
        self._stack = ExitStack()
        self._spools: dict[str, IO[bytes]] = {}
        self._shapes: dict[str, list[int]] = {}
        self._types: dict[str, torch.dtype] = {}
        self._first: Tokens | None = None

    def __enter__(self) -> Self:
        self._target = self._stack.enter_context(whole_file(self.path))
        return self

    def write(self, tokens: Tokens) -> None:
        """Append a stretch.

        Raises:
            ValueError: more than one item, items with `lengths`, or a stretch that does not follow the ones before.
        """
        name = f"TokenWriter.write to {self.path}"
        if len(tokens) != 1 or tokens.lengths is not None:
            raise ValueError(f"{name}: {tokens}. Needed: one item without lengths.")
        tokens.check_codes(name)
        if self._first is None:
            self._first = replace(tokens[:], data=tokens.data[:, :0])
        else:
            Tokens.join([self._first, tokens])  # refuses what is no stretch of the same signal
        data = tokens.data
        if tokens.discrete:
            data = data.to(narrowest(max(tokens.spec.vocabulary[: tokens.levels]) - 1))
        self._append("data", data)
        for key, value in tokens.side.items():
            self._append(f"side.{key}", value)
        self.length += int(tokens.extent[0, 0])
        self.count += int(tokens.counts[0])
        self.bits += float(tokens.bits()[0])

    def _append(self, key: str, value: Tensor) -> None:
        if key not in self._spools:
            self._spools[key] = self._stack.enter_context(tempfile.TemporaryFile(dir=self._target.parent))  # noqa: SIM115
            self._shapes[key], self._types[key] = list(value.shape), value.dtype
        else:
            self._shapes[key][1] += value.shape[1]
        self._spools[key].write(_raw(value))

    def _finish(self) -> None:
        """Put the header before what was spooled; wide numbers come first, so that all are aligned."""
        first = self._first
        if first is None:
            raise ValueError(f"TokenWriter: nothing was written to {self.path}. Write at least one stretch.")
        extent = first.extent.clone()
        extent[:, 0] = self.length
        metadata = {"format": FORMAT, "spec": first.spec.to_json()}
        if self.frame_rate is not None:
            metadata["frame_rate"] = repr(float(self.frame_rate))
        header: dict[str, Any] = {"__metadata__": metadata}
        end = extent.numel() * 8
        header["extent"] = {"dtype": "I64", "shape": list(extent.shape), "data_offsets": [0, end]}
        keys = sorted(self._spools, key=lambda key: -self._types[key].itemsize)
        for key in keys:
            start, end = end, end + self._spools[key].tell()
            header[key] = {"dtype": _CODES[self._types[key]], "shape": self._shapes[key], "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with self._target.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text + _raw(extent))
            for key in keys:
                self._spools[key].seek(0)
                shutil.copyfileobj(self._spools[key], out, 1 << 20)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            try:
                self._finish()
            except BaseException as fault:
                self._stack.__exit__(type(fault), fault, fault.__traceback__)
                raise
        self._stack.__exit__(kind, error, trace)


class TokenFile:
    """What the header of a token file says, and its stretches.

    Attributes:
        spec: what the numbers mean.
        frame_rate: of the video they stand for, where it is known.
        items: in the batch.
        positions: along the first axis.

    Raises:
        ValueError: not a file of tokens.
        FileNotFoundError: no such file.
    """

    def __init__(self, path: str | Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path, name = Path(path), f"Tokens.load of {path}"
        if not self.path.exists():
            raise FileNotFoundError(f"{name}: no such file.")
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                keys = list(file.keys())
                shape = file.get_slice("data").get_shape() if "data" in keys else None
                self._extent = file.get_tensor("extent") if "extent" in keys else None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{name}: not a readable safetensors file ({error}).") from error
        if metadata.get("format") != FORMAT or "spec" not in metadata or shape is None or self._extent is None or len(shape) < 3:
            raise ValueError(f"{name}: the file holds no tokens.")
        self.spec = TokenSpec.from_json(metadata["spec"])
        try:
            self.frame_rate = float(metadata["frame_rate"]) if "frame_rate" in metadata else None
        except ValueError as error:
            raise ValueError(f"{name}: frame_rate={metadata['frame_rate']!r} in its header is no number.") from error
        self.items, self.positions = shape[0], shape[1]
        self._plain = set(keys) == {"data", "extent"}

    @property
    def in_stretches(self) -> bool:
        """One signal without lengths and side tensors, which can be read in stretches."""
        return self.items == 1 and self._plain and not (self.spec.segments and not self.spec.deep_segments)

    def stretches(self, span: Any, *, positions: int = _POSITIONS) -> Iterator[Tokens]:
        """Read so many positions at a time.

        Args:
            span: `span(n)` is the length of the signal that the first n positions stand for (`Tokenizer._span`).
            positions: of a stretch.

        Raises:
            ValueError: a file that `in_stretches` says no for, or codes outside their vocabulary.
        """
        from safetensors import safe_open

        if not self.in_stretches or self._extent is None:
            raise ValueError(f"TokenFile.stretches of {self.path}: items of a batch and side tensors are read by Tokens.load.")
        total, covered = int(self._extent[0, 0]), 0
        with safe_open(self.path, "pt") as file:
            stored = file.get_slice("data")
            for start in range(0, self.positions, positions):
                stop = min(start + positions, self.positions)
                data = stored[:, start:stop]
                data = data.long() if self.spec.discrete and not data.is_floating_point() else data
                end = total if stop == self.positions else min(total, span(stop))
                extent = self._extent.clone()
                extent[:, 0] = end - covered
                covered = end
                tokens = Tokens(data, self.spec, extent)
                tokens.check_codes(f"Tokens.load of {self.path}")
                yield tokens
