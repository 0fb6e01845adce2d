"""The interface of a picture corpus: an ordered list of encoded pictures with a record each.

A corpus is map-style: `len(corpus)`, `corpus.read_bytes(i)`, `corpus.read(i)`, `corpus.record(i)`. It holds
nothing open that a fork or a DataLoader worker could spoil, and reading never changes it.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageCorpus",
    "Selection",
    "UnreadableImageError",
    "content_hash",
    "decode_rgb",
    "exclude",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class UnreadableImageError(ValueError):
    """A picture that is there but cannot be decoded; the message names its source and key."""


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an encoded picture to upright 8-bit RGB.

    The EXIF orientation is applied, transparency is laid on white, 16-bit grey keeps its upper 8 bits.

    Raises:
        ValueError: the bytes are no picture, are cut short, or hold 32-bit values that have no 8-bit meaning.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"decode_rgb: {len(data)} bytes are no whole JPEG, PNG or WebP picture ({error}).") from error
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"decode_rgb: mode {image.mode!r} has 32 bits per value and no agreed way to 8 bits. Convert it before."
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


class ImageCorpus(ABC):
    """An ordered list of pictures. Subclasses say where the bytes and the records are.

    Attributes:
        source: what the user would type to open it again; used in error messages.
    """

    source: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, i: int) -> str:
        """Return the name of picture i; stable over machines and runs."""

    @abstractmethod
    def read_bytes(self, i: int) -> bytes:
        """Return the encoded picture i as it is stored."""

    @abstractmethod
    def record(self, i: int) -> dict[str, Any]:
        """Return what is known of picture i: always `key`; `label`, `label_id`, `package` and others where known."""

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self)

    def read(self, i: int) -> Image.Image:
        """Decode picture i to 8-bit RGB.

        Raises:
            UnreadableImageError: it cannot be decoded; names the source and the key.
        """
        try:
            return decode_rgb(self.read_bytes(i))
        except ValueError as error:
            raise UnreadableImageError(
                f"{type(self).__name__}.read: picture {self.key(i)!r} (number {i}) of {self.source} is unreadable: "
                f"{error} Repair or remove it, or open the data with on_error='skip'."
            ) from error

    def label_id(self, i: int) -> int:
        """Return the class number of picture i, -1 where it has none."""
        value = self.record(i).get("label_id")
        return -1 if value is None else int(value)


class Selection(ImageCorpus):
    """Some pictures of another corpus, in the given order."""

    def __init__(self, corpus: ImageCorpus, indices: Sequence[int]) -> None:
        self.corpus = corpus
        self.indices = np.asarray(indices, dtype=np.int64)
        self.source = corpus.source

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, i: int) -> str:
        return self.corpus.key(int(self.indices[i]))

    def read_bytes(self, i: int) -> bytes:
        return self.corpus.read_bytes(int(self.indices[i]))

    def record(self, i: int) -> dict[str, Any]:
        return self.corpus.record(int(self.indices[i]))

    def label_id(self, i: int) -> int:
        return self.corpus.label_id(int(self.indices[i]))


def exclude(
    corpus: ImageCorpus, packages: Iterable[str], *, unknown_packages: Literal["raise", "ignore"] = "raise"
) -> ImageCorpus:
    """Leave out every picture whose record names one of the packages.

    Raises:
        ValueError: a package that no picture comes from, unless `unknown_packages="ignore"`: a spelling mistake would
            silently keep its pictures.
    """
    unwanted = set(packages)
    if not unwanted:
        return corpus
    origin = [corpus.record(i).get("package") for i in range(len(corpus))]
    unknown = sorted(unwanted.difference(origin))
    if unknown and unknown_packages == "raise":
        known = sorted({name for name in origin if name is not None})
        raise ValueError(
            f"exclude: no picture of {corpus.source} comes from package(s) {unknown}. "
            f"Packages there: {known or 'none is recorded'}. Leave the unknown names out."
        )
    return Selection(corpus, [i for i, name in enumerate(origin) if name not in unwanted])


def content_hash(corpus: ImageCorpus) -> str:
    """Return the SHA-256 (hex) of the ordered (key, SHA-256 of the encoded bytes) list.

    Each picture adds the line `KEY<tab>HEX<newline>`. Two corpora with the same hash hold the same pictures in the same
    order; where they lie and how they are packed does not matter.
    """
    digest = hashlib.sha256()
    for i in range(len(corpus)):
        digest.update(f"{corpus.key(i)}\t{hashlib.sha256(corpus.read_bytes(i)).hexdigest()}\n".encode())
    return digest.hexdigest()
