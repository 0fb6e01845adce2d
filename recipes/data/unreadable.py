"""Items that cannot be read: stop at them, or leave them out, told in the log and counted."""

import logging
from typing import Any, Literal

import torch

__all__ = ["LeavesOut", "OnError", "check_on_error", "readable"]

_logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]


def check_on_error(owner: str, on_error: str) -> None:
    """Refuse a word that is no way to meet an unreadable item."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"{owner}: on_error={on_error!r}. Allowed: 'raise', 'skip'.")


class LeavesOut:
    """Part of a dataset: remembers which of its items were unreadable, also those that a worker process met.

    Args:
        count: items of the dataset.
        on_error: "raise" stops at an unreadable item; "skip" leaves it out of its batch, logs it and counts it in `unreadable`.
    """

    def __init__(self, count: int, on_error: OnError) -> None:
        self.on_error = on_error
        self._bad = torch.zeros(count, dtype=torch.bool).share_memory_()

    @property
    def unreadable(self) -> int:
        """How many different items have been found unreadable so far."""
        return int(self._bad.sum())

    def leave_out(self, index: int, error: Exception) -> None:
        """Note an unreadable item; call it where the error is caught. Raises the error unless items are skipped."""
        if self.on_error == "raise":
            raise error
        if not self._bad[index]:
            self._bad[index] = True
            _logger.warning("%s Left out.", error)


def readable(items: list[Any], owner: str, what: str) -> list[Any]:
    """Give the items of a batch that could be read.

    Raises:
        ValueError: none could.
    """
    found = [item for item in items if item is not None]
    if not found:
        raise ValueError(f"{owner}: all {len(items)} {what} of a batch are unreadable; the log names them.")
    return found
