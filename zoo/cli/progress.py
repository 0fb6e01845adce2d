"""Progress on the standard error output, only where a person looks at it and only for work that takes time."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["progress", "waiting"]

T = TypeVar("T")


def progress(items: Sequence[T], what: str, *, weights: Sequence[int] | None = None) -> Iterator[T]:
    """Walk through items with a bar.

    Args:
        items: what to walk through.
        what: said beside the bar.
        weights: how much each item counts; one where None.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    sizes = [1] * len(items) if weights is None else list(weights)
    with Progress(*parts, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=sum(sizes))
        for item, size in zip(items, sizes, strict=True):
            yield item
            bar.advance(task, size)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that something of unknown length is going on."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
