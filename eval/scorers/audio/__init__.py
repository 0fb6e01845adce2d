"""Scorers of sound. Their records load no torch; `make` imports what a scorer needs when it is built."""

from typing import TYPE_CHECKING, Any

from eval.scorers.records import ScorerRecord

if TYPE_CHECKING:
    from eval.scorers.base import Scorer

__all__ = ["make"]


def make(record: ScorerRecord, networks: dict[tuple[str, int], Any]) -> "Scorer":
    """Build the scorer of a record; networks are taken from, and put into, `networks`.

    Raises:
        ModuleNotFoundError: a package is missing; the text has the command.
        ValueError: the weights of an installed package are not those the record names.
    """
    from eval.scorers.audio import distribution, perceptual, signal, speech

    for room in (signal, perceptual, speech, distribution):
        if record.name in room.SCORERS:
            return room.SCORERS[record.name](record, networks)
    raise ValueError(f"scorers: {record.name} is no scorer of waveforms.")
