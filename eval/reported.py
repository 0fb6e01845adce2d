"""Figures that others published, as `reported.csv` has them: each with its data and its source.

They were made under protocols of others (crops, resampling, feature networks, statistics), so they stand apart: no figure here is
ever ranked with a measured one.
"""

import csv
import functools
import math
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Reported", "reported_of", "reported_table"]

_FILE = Path(__file__).with_name("reported.csv")


@dataclass(frozen=True, kw_only=True)
class Reported:
    """One published figure.

    Attributes:
        name: entry of the catalog, of a tokenizer or a generator.
        rate: setting it was made at, such as `tokens=32`; empty where there is only one.
        score: what it is called, in the words of `eval.scorers` where they have one: `rfid`, `gfid`, `psnr_db`, ...
        value: as published.
        data: that it was measured on, by them.
        source: where it was read.
    """

    name: str
    rate: str
    score: str
    value: float
    data: str
    source: str

    def __post_init__(self) -> None:
        missing = [field for field in ("name", "score", "data", "source") if not getattr(self, field)]
        if missing or not math.isfinite(self.value):
            raise ValueError(f"Reported: {self}. Needed: a finite value, and {', '.join(missing) or 'all fields'} given.")


@functools.cache
def reported_table() -> tuple[Reported, ...]:
    """All published figures, in the order of the file."""
    with _FILE.open(newline="", encoding="utf-8") as lines:
        return tuple(Reported(**{**row, "value": float(row["value"])}) for row in csv.DictReader(lines))


def reported_of(name: str) -> list[Reported]:
    """The published figures of one catalog entry; none for most."""
    return [figure for figure in reported_table() if figure.name == name]
