"""Files that were cut short: what a container says of its own size, against what is there.

Readers of sound and video take a file that ends too early for a shorter one; its header knows better.
"""

from pathlib import Path

__all__ = ["check_complete"]

_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_TAIL = 1 << 17  # an Ogg page has at most 65307 bytes


def check_complete(path: Path) -> None:
    """Refuse a WAV, AVI, AIFF, MP4, MOV, Matroska, WebM or Ogg file that ends before its header says. Others pass.

    Raises:
        ValueError: with both sizes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if head[:4] == b"OggS":
            file.seek(max(0, size - _TAIL))
            tail = file.read()
            if not _ends_with_last_page(tail[tail.rfind(b"OggS") :]):
                raise ValueError(f"preprocess: {path} is cut short: it does not end with a page that says it is the last.")
            return
        end = _declared(file, head, size)
    if end is not None and end > size + 1:  # a chunk of odd length may lack the byte that fills it
        raise ValueError(f"preprocess: {path} is cut short: it has {size:,} bytes of {end:,}.")


def _ends_with_last_page(page: bytes) -> bool:
    """An Ogg page, whole, with the flag of the last; its table of segments says how long it is."""
    if len(page) < 27 or not page[5] & 4:
        return False
    table = page[27 : 27 + page[26]]
    return len(page) >= 27 + page[26] + sum(table)


def _declared(file, head: bytes, size: int) -> int | None:
    """Where the file ends by its own header; None where it does not say."""
    if head[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        return None if length in (0, 0xFFFFFFFF) else length + 8
    if head[:4] == b"FORM":
        return int.from_bytes(head[4:8], "big") + 8
    if head[4:8] in _BOXES:
        return _end_of_boxes(file, size)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _end_of_segment(head)
    return None


def _end_of_boxes(file, size: int) -> int | None:
    position = 0
    while position < size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # up to the end of the file
            return None
        position += max(length, 8)
    return position


def _end_of_segment(head: bytes) -> int | None:
    """End of the one element that follows the header of a Matroska file."""
    length, used = _number(head, 4)
    start = 4 + used + length
    if head[start : start + 4] != b"\x18\x53\x80\x67":
        return None
    length, used = _number(head, start + 4)
    unknown = length == (1 << 7 * used) - 1
    return None if unknown else start + 4 + used + length


def _number(data: bytes, start: int) -> tuple[int, int]:
    """A number of variable length, and how many bytes it takes."""
    first = data[start] if start < len(data) else 0
    used = 9 - first.bit_length()
    if used > 8:
        return 0, 1
    return int.from_bytes(data[start : start + used], "big") & ((1 << 7 * used) - 1), used
