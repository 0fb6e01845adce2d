"""The text that comes with a picture: its caption where it has one, else its label and the words of its file's name."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["caption", "word_numbers"]

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SHORTEST = 3
_LAST_PARTS = 3  # of the path: what the picture shows, and the folders that sort it
_SAYS_NOTHING = frozenset(
    ("usr", "share", "contents", "images", "image", "default", "data", "resource", "rcc", "png", "jpg", "jpeg", "webp", "the")
)


def caption(record: Mapping[str, Any]) -> str:
    """Give the text of a picture in lower case; "picture" where nothing is known.

    Args:
        record: of `ImageCorpus.record`. A `caption` or `text` is taken as it is; otherwise `label`, and the words of the last
            three parts of `file`, each once: "animal birds hen" of `.../stamps/animals/birds/hen.png` with the label "animal".
    """
    for key in ("caption", "text"):
        if isinstance(record.get(key), str) and record[key].strip():
            return " ".join(record[key].lower().split())
    words = [str(record["label"]).lower()] if record.get("label") else []
    path = str(record.get("file") or "").partition("@")[0]
    for part in path.split("/")[-_LAST_PARTS:]:
        words += [word.lower() for word in _WORD.findall(part)]
    known = [word for word in words if len(word) >= _SHORTEST and word not in _SAYS_NOTHING]
    return " ".join(dict.fromkeys(known)) or "picture"


def word_numbers(text: str, buckets: int) -> list[int]:
    """Give a number in [0, buckets) for each word, by its hash: the same in every run, without a vocabulary."""
    return [int.from_bytes(hashlib.sha256(word.encode()).digest()[:6], "big") % buckets for word in text.split()]
