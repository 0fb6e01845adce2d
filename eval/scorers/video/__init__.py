"""Scorers of clips. Their records load no torch; `make` imports what a scorer needs when it is built."""

from typing import TYPE_CHECKING, Any

from eval.scorers.records import ScorerRecord

if TYPE_CHECKING:
    from eval.scorers.base import Scorer

__all__ = ["make"]


def make(record: ScorerRecord, networks: dict[tuple[str, int], Any]) -> "Scorer":
    """Build the scorer of a record; networks are taken from, and put into, `networks`.

    Raises:
        ModuleNotFoundError: a package is missing; the text has the command.
        WeightsUnavailableError: official weights are neither on this machine nor to be had.
    """
    from eval.scorers.video import distribution, frames, motion

    if record.kind == "distribution":
        return distribution.make(record, networks)
    if record.name.startswith("frame_"):
        return frames.make(record, networks)
    return motion.SCORERS[record.name](record)
