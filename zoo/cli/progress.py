"""Progress on the standard error output, only where a person looks at it and only for work that takes time."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["counting", "progress", "steps", "waiting"]

T = TypeVar("T")


def progress(items: Sequence[T], what: str, *, weights: Sequence[int] | None = None) -> Iterator[T]:
    """Walk through items with a bar.

    Args:
        items: what to walk through.
        what: said beside the bar.
        weights: how much each item counts; one where None.
    """
    sizes = [1] * len(items) if weights is None else list(weights)
    with steps(what, sum(sizes)) as advance:
        for item, size in zip(items, sizes, strict=True):
            yield item
            advance(size)


@contextmanager
def steps(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar for work that comes in pieces; gives the function that says how much was done.

    Args:
        what: said beside the bar.
        total: all there is to do; None where nobody knows.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*parts, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def counting(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar with rate and time left for work that may have begun earlier; gives a function of text, done and total.

    Args:
        unit: of what is counted, said behind the rate.
    """
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class _Rate(ProgressColumn):
        def render(self, task):
            return Text("" if task.speed is None else f"{task.speed:.3g} {unit}/s")

    parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*parts, console=Console(stderr=True), transient=True) as bar:

        def update(what: str, done: int, total: int) -> None:
            if not bar.tasks:  # what was done before this run does not count for the rate
                bar.add_task(what, total=total, completed=done)
            bar.update(bar.task_ids[0], description=what, completed=done, total=total)

        yield update


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that something of unknown length is going on."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
