"""Tensors of a TorchScript archive (`.jit`), read as plain data: no code of the file is compiled or run.

The archive is a zip with a pickle of the module tree (`data.pkl`) and one file for each storage (`data/0`, ...). The unpickler here
knows how to rebuild a tensor and makes a plain holder of every scripted class; any other name in the file is refused.
"""

import collections
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

__all__ = ["read_script"]

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Holder:
    """Stands for an object of a scripted class: its attributes and nothing else."""

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Holder
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return lambda values, *_: values  # typed lists
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, numel = pid
        content = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        values = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if len(values) < numel:
            raise pickle.UnpicklingError(f"storage {key} holds {len(values)} of {numel} numbers")
        return values


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset).clone()


def _walk(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Names as in `state_dict`: attributes joined by dots."""
    for key, part in value.state.items():
        if isinstance(part, Tensor):
            yield prefix + key, part
        elif isinstance(part, _Holder):
            yield from _walk(part, f"{prefix}{key}.")


def read_script(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a module that was saved with `torch.jit.save`.

    Returns:
        name -> tensor; the parameters and buffers of the module, and tensors that are other attributes of it.

    Raises:
        ValueError: not such an archive, a damaged one, or one that names anything but tensors and scripted classes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise pickle.UnpicklingError("it is no TorchScript archive")
            with archive.open(f"{roots[0]}/data.pkl") as file:
                tree = _Reader(file, archive, roots[0]).load()
            if not isinstance(tree, _Holder):
                raise pickle.UnpicklingError("it holds no scripted module")
            return dict(_walk(tree, ""))
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"zoo.read_tensors: {path} is not a readable TorchScript archive ({error}).") from error
