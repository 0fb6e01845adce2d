"""Result files as boards in which only what may be compared is ranked.

    load_results(folder)        all result files below a folder
    make_boards(results)        one board for each data set and protocol; reported figures are in none
    rank(board, column)         ranks by one score, and the paired difference of any two rows
    worst_items(result)         what a tokenizer does worst

A row is a tokenizer at one rate. Rank says little across rates, so that each row is also compared with the best of the rows that
spend no more bits than it does.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from eval.intervals import paired_difference
from eval.rates import rate_text
from eval.results import ItemRow, Point, Result, Score, comparable, load_result
from eval.scorers import RECORDS
from zoo.registry import Entry, find

__all__ = [
    "CODEC",
    "RESULTS",
    "Board",
    "Column",
    "Difference",
    "Facts",
    "Ranking",
    "Row",
    "facts_of",
    "is_generation",
    "load_results",
    "make_boards",
    "rank",
    "worst_items",
]

RESULTS = Path(__file__).parents[1] / "results"
CODEC = "classical codec"
_COSTS = ("bits_per_pixel", "bits_per_second")  # scores that say what a row costs, not how good it is
_SAME_BITS = 1 + 1e-9
_MODALITIES = ("image", "video", "audio")


# -- what a board holds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the catalog says of a row's tokenizer; None where it says nothing.

    Attributes:
        kind: "tokenizer" or "classical codec".
        family: of the catalog.
        licence: of the weights.
        causal: no output depends on later input.
        parameters: numbers in the weight file.
        entry: of the catalog.
    """

    kind: str
    family: str | None = None
    licence: str | None = None
    causal: bool | None = None
    parameters: int | None = None
    entry: Entry | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A tokenizer at one rate.

    Attributes:
        result: the file it is from.
        point: of the result.
        name: of the tokenizer; with the decoder's options, or a number, where a board has it twice.
        facts: of the catalog.
        items: of this rate: number and key -> item. Empty without a CSV file beside the result.
    """

    result: Result
    point: Point
    name: str
    facts: Facts
    items: Mapping[tuple[int, str], ItemRow] = field(repr=False)

    @property
    def rate(self) -> str:
        return rate_text(dict(self.point.rate))

    @property
    def label(self) -> str:
        return f"{self.name} {self.rate}" if self.point.rate else self.name

    @property
    def bits(self) -> float | None:
        """Bits per pixel, or per second of sound."""
        sound = self.result.protocol.modality == "audio"
        return self.point.bits_per_second if sound else self.point.bits_per_pixel

    @property
    def round_trips(self) -> float | None:
        """Items encoded and decoded a second, the times added; None for rates of a tokenizer that were not timed.

        A tokenizer is timed at its full rate; a codec's time is the mean over its rates, of both ways together.
        """
        speed = self.result.speed
        if speed is None or (self.facts.kind != CODEC and self.point is not self.result.points[-1]):
            return None
        if self.facts.kind == CODEC:
            return speed.encode_items_per_s
        return 1 / (1 / speed.encode_items_per_s + 1 / speed.decode_items_per_s)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A score as one definition has it; another definition under the same name is another column.

    Attributes:
        key: unique in the board.
        name: of the score.
        definition: from the protocol.
        ranked: rows are ranked by it.
    """

    key: str
    name: str
    definition: Mapping[str, Any] = field(hash=False)
    ranked: bool

    @property
    def better(self) -> str | None:
        return self.definition.get("better")

    @property
    def unit(self) -> str:
        """Empty for a pure number."""
        unit = str(self.definition.get("unit", "1"))
        return "" if unit == "1" else unit

    def of(self, row: Row) -> Score | None:
        """Score of a row; None where the row has none by this definition."""
        if row.result.protocol.scorers.get(self.name) != self.definition:
            return None
        return row.point.scores.get(self.name)

    def mean(self, row: Row) -> float:
        """Mean of a row; NaN where it has none."""
        score = self.of(row)
        return math.nan if score is None or score.mean is None else score.mean


@dataclass(frozen=True, kw_only=True)
class Board:
    """Results that may stand in one table: same data, same protocol but for the decoder's options.

    Attributes:
        results: of the board; any two are `comparable`.
        rows: one for each rate of each result.
        columns: scores, in the order of the protocols.
    """

    results: tuple[Result, ...]
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]

    @property
    def modality(self) -> str:
        return self.results[0].protocol.modality

    @property
    def ranked(self) -> list[Column]:
        """Columns that rows are ranked by."""
        return [column for column in self.columns if column.ranked]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row minus another one.

    Attributes:
        mean: over the items that both scored, or of the two numbers where items say nothing.
        ci95: paired bootstrap interval over the items; None where there is none.
        n: items that both scored; 0 without an interval.
        why: there is no interval; empty where there is one.
    """

    mean: float
    ci95: tuple[float, float] | None = None
    n: int = 0
    why: str = ""

    @property
    def differs(self) -> bool:
        """The interval does not hold 0."""
        return self.ci95 is not None and not self.ci95[0] <= 0 <= self.ci95[1]

    def reversed(self) -> "Difference":
        """The other row minus this one."""
        ci95 = None if self.ci95 is None else (-self.ci95[1], -self.ci95[0])
        return Difference(mean=-self.mean, ci95=ci95, n=self.n, why=self.why)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The rows of a board by one score. Rows are named by their place in `board.rows`; those without the score are left out.

    Attributes:
        column: the score.
        order: the best first.
        ranks: 1 is best; rows with equal means share it.
        fair: the best row that spends no more bits, which may be the row itself; None where bits are unknown.
        pairs: (i, j) with i < j: row i minus row j.
    """

    column: Column
    order: tuple[int, ...]
    ranks: Mapping[int, int]
    fair: Mapping[int, int | None]
    pairs: Mapping[tuple[int, int], Difference]

    def difference(self, i: int, j: int) -> Difference:
        """Give row i minus row j.

        Raises:
            KeyError: a row without the score, or the same row twice.
        """
        return self.pairs[i, j] if i < j else self.pairs[j, i].reversed()

    def verdict(self, i: int, j: int) -> str:
        """Say what the difference is: "better", "worse" or "no significant difference"; empty without an interval."""
        difference = self.difference(i, j)
        if difference.ci95 is None:
            return ""
        if not difference.differs:
            return "no significant difference"
        return "better" if (difference.mean > 0) == (self.column.better == "higher") else "worse"


# -- building --------------------------------------------------------------------------------------------------------


def load_results(folder: str | Path = RESULTS) -> list[Result]:
    """Read every result file of reconstructions below a folder, in the order of their paths.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is no result file, or one cannot be read; its path is named.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"load_results: no folder {folder}. Give the folder that `zoo eval` wrote its results to.")
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise ValueError(f"load_results: {folder} holds no .json files. Measure something first: zoo eval --help.")
    return [load_result(path) for path in paths if not is_generation(path)]


def is_generation(path: str | Path) -> bool:
    """Say whether a JSON file is a result of `zoo eval generate`: those have boards of their own."""
    try:
        values = json.loads(Path(path).read_text())
    except ValueError:
        return False  # whoever reads it as a result says what is wrong with it
    return isinstance(values, dict) and values.get("kind") == "generation"


def make_boards(results: Sequence[Result]) -> list[Board]:
    """Put results on boards: a result joins the first board with all of whose results it may be compared."""
    groups: list[list[Result]] = []
    for result in results:
        home = next((group for group in groups if all(comparable(result, other) is None for other in group)), None)
        if home is None:
            groups.append([result])
        else:
            home.append(result)
    catalog = {entry.name: entry for entry in find()}
    return sorted((_board(group, catalog) for group in groups), key=lambda board: _MODALITIES.index(board.modality))


def _board(results: Sequence[Result], catalog: Mapping[str, Entry]) -> Board:
    rows = []
    for result, name in zip(results, _names(results), strict=True):
        by_rate: dict[str, dict[tuple[int, str], ItemRow]] = {}
        for item in result.items:
            by_rate.setdefault(item.rate, {})[item.item, item.key] = item
        facts = facts_of(result, catalog.get(result.tokenizer))
        for point in result.points:
            items = by_rate.get(rate_text(dict(point.rate)), {})
            rows.append(Row(result=result, point=point, name=name, facts=facts, items=items))
    return Board(results=tuple(results), rows=tuple(rows), columns=tuple(_columns(results)))


def _names(results: Sequence[Result]) -> list[str]:
    """Names that tell the results of a board apart."""
    plain = [result.tokenizer for result in results]
    names: list[str] = []
    for result in results:
        name = result.tokenizer
        if plain.count(name) > 1 and result.protocol.decode:
            name += f" ({', '.join(f'{key}={value}' for key, value in result.protocol.decode.items())})"
        number, first = 2, name
        while name in names:
            name, number = f"{first} #{number}", number + 1
        names.append(name)
    return names


def facts_of(result: Result, entry: Entry | None) -> Facts:
    """Join a result with its entry of the catalog; without an entry or a hash of weights it is a classical codec."""
    if entry is not None:
        return Facts(
            kind="tokenizer",
            family=entry.family,
            licence=entry.license_weights,
            causal=entry.causal,
            parameters=entry.parameters,
            entry=entry,
        )
    return Facts(kind="tokenizer" if result.weights_sha256 else CODEC)


def _columns(results: Sequence[Result]) -> list[Column]:
    columns: dict[str, Column] = {}
    keys: dict[str, str] = {}  # definition as text -> key
    for result in results:
        for name, definition in result.protocol.scorers.items():
            text = json.dumps([name, dict(definition)], sort_keys=True, default=str)
            if name in _COSTS or text in keys:
                continue
            same = sum(column.name == name for column in columns.values())
            key = keys[text] = name if not same else f"{name} ({same + 1})"
            about_codes = name in RECORDS and RECORDS[name].kind == "tokens"
            ranked = definition.get("better") in ("higher", "lower") and not about_codes
            columns[key] = Column(key=key, name=name, definition=definition, ranked=ranked)
    return list(columns.values())


# -- comparing -------------------------------------------------------------------------------------------------------


def rank(board: Board, column: Column) -> Ranking:
    """Rank the rows of a board by one score and take the paired difference of any two.

    Args:
        board: from `make_boards`.
        column: a ranked one of the board.

    Raises:
        ValueError: the column is not ranked, or the items of two results are not the same.
    """
    if not column.ranked:
        there = ", ".join(other.key for other in board.ranked) or "none"
        raise ValueError(f"rank: rows are not ranked by {column.key}. Ranked here: {there}.")
    sign = -1 if column.better == "higher" else 1
    means = {i: sign * mean for i, row in enumerate(board.rows) if not math.isnan(mean := column.mean(row))}
    order = sorted(means, key=lambda i: means[i])
    fair: dict[int, int | None] = {}
    for i in order:
        bits = board.rows[i].bits
        fair[i] = None if bits is None else next(j for j in order if j == i or _spends_at_most(board.rows[j], bits))
    return Ranking(
        column=column,
        order=tuple(order),
        ranks={i: 1 + sum(means[j] < means[i] for j in order) for i in order},
        fair=fair,
        pairs={(i, j): _difference(board.rows[i], board.rows[j], column) for i, j in combinations(sorted(order), 2)},
    )


def _spends_at_most(row: Row, bits: float) -> bool:
    return row.bits is not None and row.bits <= bits * _SAME_BITS


def _difference(row: Row, other: Row, column: Column) -> Difference:
    plain = column.mean(row) - column.mean(other)
    sides = [{key: item.scores.get(column.name) for key, item in side.items.items()} for side in (row, other)]
    if not all(sides):
        return Difference(mean=plain, why="no items beside the result")
    if any(value is None for side in sides for value in side.values()):
        return Difference(mean=plain, why="a score of whole sets")
    ours, theirs = ({f"{number} {key}": value for (number, key), value in side.items() if value is not None} for side in sides)
    if ours.keys() == theirs.keys() and all(math.isnan(ours[key] - theirs[key]) for key in ours):
        return Difference(mean=plain, why="no item was scored by both")
    paired = paired_difference(ours, theirs, score=column.name, seed=row.result.protocol.seed)
    if paired.ci95 is None:
        return Difference(mean=paired.mean, why="fewer than 2 items")
    return Difference(mean=paired.mean, ci95=paired.ci95, n=paired.n)


def worst_items(result: Result, *, count: int = 5) -> tuple[str, list[ItemRow]]:
    """Give the first per-item score of a result and the items that it finds worst at the last rate, the worst first.

    Items that failed have no score; they come before all others, because nothing is worse.
    """
    last = rate_text(dict(result.points[-1].rate))
    rows = [row for row in result.items if row.rate == last]
    better = {name: definition.get("better") for name, definition in result.protocol.scorers.items() if name not in _COSTS}
    names = [name for name, which in better.items() if which in ("higher", "lower") and rows and name in rows[0].scores]
    if not names:
        return "", []
    name = names[0]
    sign = 1 if better[name] == "higher" else -1

    def badness(row: ItemRow) -> float:
        value = row.scores[name]
        return -math.inf if math.isnan(value) else sign * value

    return name, sorted(rows, key=badness)[:count]
