"""Audio tokenizers of the zoo."""

from zoo.registry import Entry

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = ()
