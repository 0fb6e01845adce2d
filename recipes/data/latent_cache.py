"""One safetensors file of what a frozen tokenizer makes of pictures, never held in memory as a whole.

The file holds, for n pictures in v views: `latents (n, v, c, h, w)`, `images (n, v, 3, H, W)` uint8 and `labels (n,)`
int64, and in its metadata what it was made from; tokens are stored as `tokens (n, v, *positions, d)` without the
pictures. It appears under its name only when it is whole: it is written beside
it and moved into place.
"""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["LatentCache", "LatentCacheWriter", "TokenCache", "exclusive"]

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.int64: "I64",
}
_STORED = {  # numpy has no bfloat16: its 16 bits
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "U8": "u1",
    "U16": "<u2",
    "I32": "<i4",
    "I64": "<i8",
}


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to a file; other processes wait. A killed process lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class LatentCacheWriter:
    """Fill a cache from its first row to its last; use as a context, under `exclusive`.

    Leaving the context with all rows written moves the file into place; leaving it otherwise removes what was written.
    A killed process leaves a `.partial` file that nothing reads and the next writer overwrites.

    Args:
        path: name of the finished file.
        count, views: pictures and views of each.
        latent_shape: `(c, h, w)`, or `(*positions, d)` of tokens.
        latent_dtype: float32, float16 or bfloat16, and the integer types for codes.
        size: side of the pictures; None stores tokens without them.
        metadata: what the latents were made from; plain values.
    """

    def __init__(
        self,
        path: Path,
        *,
        count: int,
        views: int,
        latent_shape: tuple[int, ...],
        latent_dtype: torch.dtype,
        size: int | None,
        metadata: dict[str, Any],
    ) -> None:
        self.path = path
        self.count = count
        self._partial = path.with_name(f".{path.name}.partial")
        self._done = 0
        self._name = "tokens" if size is None else "latents"
        tensors = {self._name: (latent_dtype, (count, views, *latent_shape)), "labels": (torch.int64, (count,))}
        if size is not None:
            tensors["images"] = (torch.uint8, (count, views, 3, size, size))
        header: dict[str, Any] = {"__metadata__": {"made_from": json.dumps(metadata, sort_keys=True)}}
        end = 0
        for name, (dtype, shape) in tensors.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(self._partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        self._latent_dtype = latent_dtype
        self._arrays = _map(self._partial, "r+")[0]

    def __enter__(self) -> "LatentCacheWriter":
        return self

    def append(self, latents: Tensor, images: np.ndarray, labels: np.ndarray) -> None:
        """Write the next pictures: latents `(b, v, c, h, w)`, images `(b, v, 3, H, W)` uint8, labels `(b,)`.

        Tokens are `(b, v, *positions, d)`, and the pictures are left out.
        """
        rows = slice(self._done, self._done + len(labels))
        stored = latents.to("cpu", self._latent_dtype)
        self._arrays[self._name][rows] = (
            stored.view(torch.uint16) if stored.dtype == torch.bfloat16 else stored
        ).numpy()
        if "images" in self._arrays:
            self._arrays["images"][rows] = images
        self._arrays["labels"][rows] = labels
        self._done += len(labels)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        whole = kind is None and self._done == self.count
        if whole:
            for array in self._arrays.values():
                array.flush()
        self._arrays.clear()
        if whole:
            os.replace(self._partial, self.path)
            return
        self._partial.unlink()
        if kind is None:
            raise ValueError(f"LatentCacheWriter: {self._done} of {self.count} pictures were written to {self.path}.")


class LatentCache:
    """Read a finished cache; memory-mapped, opened again in every process.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no safetensors file of this layout, or is cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._arrays: dict[str, np.ndarray] = {}
        arrays, self.made_from = _map(self.path, "r")
        missing = [name for name in ("latents", "images", "labels") if name not in arrays]
        if missing:
            raise ValueError(f"LatentCache: {self.path} lacks {missing}. Needed: latents, images and labels.")
        self.count, self.views = arrays["latents"].shape[:2]
        self.latent_shape = tuple(arrays["latents"].shape[2:])
        if arrays["images"].shape[:3] != (self.count, self.views, 3) or arrays["labels"].shape != (self.count,):
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(
                f"LatentCache: the shapes in {self.path} do not fit each other: {shapes}. "
                "Needed: latents (n, v, c, h, w), images (n, v, 3, H, W), labels (n,)."
            )
        if arrays["images"].dtype != np.uint8:
            raise ValueError(f"LatentCache: images in {self.path} are {arrays['images'].dtype}. Needed: uint8.")

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    def read(self, i: int, view: int) -> tuple[Tensor, np.ndarray, int]:
        """Return latents `(c, h, w)` float32, picture `(3, H, W)` uint8 and label of one view of picture i."""
        if not self._arrays:
            self._arrays = _map(self.path, "r")[0]
        latents = torch.from_numpy(self._arrays["latents"][i, view].copy())
        if latents.dtype == torch.uint16:
            latents = latents.view(torch.bfloat16)
        return latents.float(), self._arrays["images"][i, view], int(self._arrays["labels"][i])


class TokenCache:
    """Read a finished cache of tokens; memory-mapped, opened again in every process.

    Attributes:
        made_from: what the writer put into the metadata.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no safetensors file of this layout, or is cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._arrays: dict[str, np.ndarray] = {}
        arrays, self.made_from = _map(self.path, "r")
        missing = [name for name in ("tokens", "labels") if name not in arrays]
        if missing:
            raise ValueError(f"TokenCache: {self.path} lacks {missing}. Needed: tokens and labels.")
        self.count, self.views = arrays["tokens"].shape[:2]
        if arrays["labels"].shape != (self.count,):
            raise ValueError(f"TokenCache: {self.path} holds {len(arrays['labels'])} labels for {self.count} pictures.")
        self.labels = torch.from_numpy(np.array(arrays["labels"]))

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    def read(self, i: int, view: int) -> Tensor:
        """Return the tokens of one view of picture i, `(*positions, d)`: int64 codes, or float32 latents."""
        if not self._arrays:
            self._arrays = _map(self.path, "r")[0]
        stored = torch.from_numpy(self._arrays["tokens"][i, view].copy())
        return stored.float() if stored.is_floating_point() else stored.long()


def _map(path: Path, mode: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Map the tensors of a safetensors file (or load those of an .npz); return them and what they were made from."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}, {}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        end = os.fstat(file.fileno()).st_size - 8
        if not 0 < length <= end:
            raise ValueError(f"LatentCache: {path} is no safetensors file.")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        if entry["data_offsets"][1] > end - length:
            raise ValueError(f"LatentCache: {path} is cut short at tensor {name!r}. Remove it; it is made again.")
        offset = 8 + length + entry["data_offsets"][0]
        arrays[name] = np.memmap(path, _STORED[entry["dtype"]], mode, offset=offset, shape=tuple(entry["shape"]))
    return arrays, json.loads(metadata.get("made_from", "{}"))
