"""Pictures inside the resource files (`.rcc`) of GCompris.

A Qt resource file holds its data one after the other, each as a 4-byte big-endian length and the bytes themselves, then
(in GCompris' files) a table of names and a tree. GCompris stores its pictures uncompressed, so they can be taken out by
position. Layout read from files that `rcc` of Qt 5.15 wrote (format version 3); versions 1 to 3 are read.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["EmbeddedPicture", "find_pictures", "picture_at", "resource_names"]

_MAGIC = b"qres"
_SIGNATURES: tuple[tuple[bytes, Literal["webp", "jpeg", "png"]], ...] = (
    (b"RIFF", "webp"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
)
_DIRECTORY, _COMPRESSED = 2, 1 | 4


@dataclass(frozen=True, kw_only=True)
class EmbeddedPicture:
    """Where a picture lies in a resource file, in bytes."""

    offset: int
    length: int
    format: Literal["webp", "jpeg", "png"]


def _picture(data: bytes, offset: int) -> EmbeddedPicture | None:
    """Describe the picture that begins at a byte, None if there is none."""
    for signature, name in _SIGNATURES:
        if not data.startswith(signature, offset) or offset < 4:
            continue
        if name == "webp":
            if data[offset + 8 : offset + 12] != b"WEBP":
                continue
            length = struct.unpack_from("<I", data, offset + 4)[0] + 8
        else:
            length = struct.unpack_from(">I", data, offset - 4)[0]
        if len(signature) < length <= len(data) - offset:
            return EmbeddedPicture(offset=offset, length=length, format=name)
    return None


def picture_at(data: bytes, offset: int) -> bytes:
    """Return the encoded picture (WebP, JPEG or PNG) that begins at byte `offset` of a resource file.

    Raises:
        ValueError: no picture begins there.
    """
    found = _picture(data, offset)
    if found is None:
        raise ValueError(f"picture_at: offset={offset}: no WebP, JPEG or PNG begins there (file of {len(data)} bytes).")
    return data[found.offset : found.offset + found.length]


def find_pictures(data: bytes) -> Iterator[EmbeddedPicture]:
    """Find every WebP, JPEG and PNG in a resource file, in order of position; a picture is not searched inside."""
    position = 4
    while True:
        starts = [start for start in (data.find(signature, position) for signature, _ in _SIGNATURES) if start >= 0]
        if not starts:
            return
        position = min(starts)
        found = _picture(data, position)
        if found is not None:
            yield found
        position += 1 if found is None else found.length


def resource_names(data: bytes) -> dict[int, str]:
    """Map the position of every uncompressed item to its path inside the resource file.

    Raises:
        ValueError: not a resource file of version 1, 2 or 3.
    """
    if data[:4] != _MAGIC:
        raise ValueError(f"resource_names: data begins with {data[:4]!r}, not {_MAGIC!r}: not a Qt resource file.")
    version, tree, items, names = struct.unpack_from(">4I", data, 4)
    if version not in (1, 2, 3):
        raise ValueError(f"resource_names: resource format {version}. Known: 1, 2, 3.")
    entry = 14 if version == 1 else 22  # versions 2 and 3 add a time stamp of 8 bytes

    def name_at(offset: int) -> str:
        length = struct.unpack_from(">H", data, names + offset)[0]
        start = names + offset + 6  # length (2) and hash (4) stand before the text
        return data[start : start + 2 * length].decode("utf-16-be")

    found: dict[int, str] = {}
    pending = [(0, "")]
    while pending:
        index, parent = pending.pop()
        at = tree + index * entry
        name, flags = struct.unpack_from(">IH", data, at)
        path = f"{parent}/{name_at(name)}".lstrip("/") if index else ""
        if flags & _DIRECTORY:
            count, first = struct.unpack_from(">II", data, at + 6)
            pending.extend((child, path) for child in range(first, first + count))
        elif not flags & _COMPRESSED:
            found[items + struct.unpack_from(">I", data, at + 10)[0] + 4] = path
    return found
