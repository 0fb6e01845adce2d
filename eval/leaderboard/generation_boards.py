"""Results of `zoo eval generate` as boards of their own: what generators make with the tokens of a tokenizer.

    load_generations(folder)       all of them below a folder
    make_generation_boards(...)    one board for each data set, protocol and budget of training
    compare(board)                 ranks, and the difference from the best row at no more bits

A generator differs from training to training, so that nothing is ranked by fewer than three trainings, each with a seed of its own,
nor where nobody stated the budget that they had. Reference rows (reconstructions, real pictures) have no rank.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import StatisticsError, fmean
from typing import Any

from eval.generation import BACKBONE, RANKING_SEEDS, load_generation
from eval.leaderboard.boards import RESULTS, is_generation
from eval.rates import rate_text
from eval.results import Dataset

__all__ = [
    "DISTANCE",
    "Compared",
    "Generated",
    "GeneratorBoard",
    "GeneratorRow",
    "MadePoint",
    "Reference",
    "Spread",
    "budget_text",
    "compare",
    "load_generations",
    "make_generation_boards",
    "welch_interval",
]

DISTANCE = f"fd_{BACKBONE}"  # rows are ranked by it
_OWN = ("guidance", "sampling", "decode", "fingerprint")  # of a protocol; they belong to the generator, as `decode` to a tokenizer


# -- what a board holds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A score over the seeds of a result.

    Attributes:
        mean, least, most: of the seeds.
        deviation: None for one seed.
        seeds: how many.
    """

    mean: float
    deviation: float | None
    least: float
    most: float
    seeds: int


@dataclass(frozen=True, kw_only=True)
class MadePoint:
    """What a generator made at one rate of its tokenizer.

    Attributes:
        rate: in words.
        tokens: positions that were decoded; None where the result does not say.
        bits: of a picture's tokens.
        scores: name -> over the seeds.
    """

    rate: str
    tokens: float | None
    bits: float
    scores: Mapping[str, Spread]


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """A result file of `zoo eval generate`.

    Attributes:
        path: of the file.
        values: all that it holds.
        generator, tokenizer: their names.
        options: guidance and the options of sampling and decoding, where they are not the usual ones.
        dataset: the real pictures.
        train_dataset: those that the classifier was fitted to.
        points: one for each rate.
        seeds: one for each run.
        trainings: how many generators were trained, by their weights.
        budget: what each training was allowed; None where it was not stated, or differs from seed to seed.
        nll: mean bits that the generator needs for a real picture's tokens; None without a likelihood.
        sample_seconds, decode_seconds: mean for a picture; decoding is that of the last rate.
    """

    path: Path
    values: Mapping[str, Any] = field(repr=False)
    generator: str
    tokenizer: str
    options: Mapping[str, Any]
    dataset: Dataset
    train_dataset: Dataset
    points: tuple[MadePoint, ...]
    seeds: tuple[int, ...]
    trainings: int
    budget: Mapping[str, float] | None
    nll: float | None
    sample_seconds: float
    decode_seconds: float

    @property
    def name(self) -> str:
        """Of the generator, with its options."""
        told = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.generator} ({told})" if told else self.generator

    @property
    def why_not_ranked(self) -> str:
        """Why no ranking can be claimed; empty where it can."""
        if self.trainings < max(RANKING_SEEDS, len(self.seeds)):
            seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
            return f"not ranked: {seeds} of {self.trained}"
        return "" if self.budget else "not ranked: budget unknown"

    @property
    def trained(self) -> str:
        """How many trainings, in words."""
        return "1 training" if self.trainings == 1 else f"{self.trainings} trainings"


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratorRow:
    """A generator at one rate."""

    result: Generated
    point: MadePoint

    @property
    def label(self) -> str:
        return f"{self.result.name} {self.point.rate}"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A row that is no generator: a measure beside them.

    Attributes:
        name: what it is.
        tokenizer: of reconstructions; None for real pictures.
        rate: of reconstructions.
        tokens, bits: as of the last row of the result.
        scores: name -> value.
    """

    name: str
    tokenizer: str | None = None
    rate: str = ""
    tokens: float | None = None
    bits: float | None = None
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class GeneratorBoard:
    """Results that may stand in one table.

    Attributes:
        results: of the same data, protocol and budget.
        rows: of all results.
        references: reconstructions of each tokenizer, and real pictures.
    """

    results: tuple[Generated, ...]
    rows: tuple[GeneratorRow, ...]
    references: tuple[Reference, ...]

    @property
    def protocol(self) -> Mapping[str, Any]:
        return self.results[0].values["protocol"]

    @property
    def scorers(self) -> dict[str, Mapping[str, Any]]:
        """Definitions of all scores."""
        return {name: told for result in self.results for name, told in result.values["protocol"]["scorers"].items()}


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What may be said of a row by `DISTANCE`.

    Attributes:
        rank: 1 is best; None where no ranking can be claimed.
        verdict: "better", "worse", "no significant difference", "best at no more bits", or empty.
        other: the row it was compared with, its place on the board.
        mean: this row minus the other.
        ci95: of it, over the trainings.
        why: there is no rank.
    """

    rank: int | None = None
    verdict: str = ""
    other: int | None = None
    mean: float = math.nan
    ci95: tuple[float, float] | None = None
    why: str = ""


# -- reading ---------------------------------------------------------------------------------------------------------


def load_generations(folder: str | Path = RESULTS) -> list[Generated]:
    """Read every result of `zoo eval generate` below a folder, in the order of their paths; there may be none.

    Raises:
        ValueError: one has another schema, or lacks something; its path is named.
    """
    return [_read(path) for path in sorted(Path(folder).rglob("*.json")) if is_generation(path)]


def _read(path: Path) -> Generated:
    values = load_generation(path)
    try:
        points = tuple(_point(values["runs"][0]["points"][i], told) for i, told in enumerate(values["summary"]))
        runs, protocol = values["runs"], values["protocol"]
        guidance = {} if protocol["guidance"] == 1 else {"guidance": protocol["guidance"]}
        budgets = [run["training"].get("budget") for run in runs]
        nlls = [run["nll_bits_per_picture"] for run in runs]
        return Generated(
            path=path,
            values=values,
            generator=values["generator"]["name"],
            tokenizer=values["tokenizer"],
            options={**guidance, **protocol["sampling"], **{f"decoder {key}": value for key, value in protocol["decode"].items()}},
            dataset=Dataset(**values["dataset"]),
            train_dataset=Dataset(**values["train_dataset"]),
            points=points,
            seeds=tuple(run["seed"] for run in runs),
            trainings=len({run["weights_sha256"] for run in runs}),
            budget=budgets[0] if budgets[0] and all(budget == budgets[0] for budget in budgets) else None,
            nll=None if None in nlls else fmean(nlls),
            sample_seconds=fmean(run["speed"]["sample_seconds_per_picture"] for run in runs),
            decode_seconds=fmean(run["speed"]["decode_seconds_per_picture"] for run in runs),
        )
    except (KeyError, TypeError, AttributeError, IndexError, StatisticsError) as error:
        raise ValueError(f"load_generations: {path} is not complete ({error!r}). Measure again: zoo eval generate.") from error


def _point(point: Mapping[str, Any], summary: Mapping[str, Any]) -> MadePoint:
    scores = {
        name: Spread(mean=told["mean"], deviation=told["std"], least=told["min"], most=told["max"], seeds=told["seeds"])
        for name, told in summary["scores"].items()
    }
    return MadePoint(
        rate=rate_text(summary["rate"]), tokens=point["tokens_per_item"], bits=summary["bits_per_picture"], scores=scores
    )


def budget_text(budget: Mapping[str, float] | None) -> str:
    """A budget in words."""
    if not budget:
        return "unknown"
    return ", ".join(f"{value:,.6g} {'operations' if key == 'flops' else key}" for key, value in budget.items())


# -- boards ----------------------------------------------------------------------------------------------------------


def make_generation_boards(results: Sequence[Generated]) -> list[GeneratorBoard]:
    """Put results on boards: data, training data, protocol and budget have to be the same, and scores of one name one thing."""
    groups: list[list[Generated]] = []
    for result in results:
        home = next((group for group in groups if all(_comparable(result, other) for other in group)), None)
        if home is None:
            groups.append([result])
        else:
            home.append(result)
    return [_board(group) for group in groups]


def _comparable(a: Generated, b: Generated) -> bool:
    if (a.dataset.sha256, a.train_dataset.sha256, a.budget) != (b.dataset.sha256, b.train_dataset.sha256, b.budget):
        return False
    ours, theirs = (result.values["protocol"] for result in (a, b))
    if any(ours.get(key) != theirs.get(key) for key in (ours.keys() | theirs.keys()) - {*_OWN, "scorers"}):
        return False
    common = ours["scorers"].keys() & theirs["scorers"].keys()
    return DISTANCE in common and all(ours["scorers"][name] == theirs["scorers"][name] for name in common)


def _board(results: Sequence[Generated]) -> GeneratorBoard:
    references: dict[tuple[str, str, str], Reference] = {}
    for result in results:
        for key, scores in result.values["anchors"].items():
            means = {name: told["mean"] for name, told in scores.items() if told["mean"] is not None}
            of_tokenizer = key == "reconstructions"
            own = json.dumps(result.values["protocol"]["decode"], sort_keys=True) if of_tokenizer else ""
            last = result.points[-1]
            place = (key, result.values["tokenizer_sha256"] if of_tokenizer else "", own)
            references.setdefault(
                place,
                Reference(
                    name=key.replace("_", " "),
                    tokenizer=result.tokenizer if of_tokenizer else None,
                    rate=last.rate if of_tokenizer else "",
                    tokens=last.tokens if of_tokenizer else None,
                    bits=last.bits if of_tokenizer else None,
                    scores=means,
                ),
            )
    rows = tuple(GeneratorRow(result=result, point=point) for result in results for point in result.points)
    return GeneratorBoard(results=tuple(results), rows=rows, references=tuple(references.values()))


# -- comparing -------------------------------------------------------------------------------------------------------


def compare(board: GeneratorBoard) -> list[Compared]:
    """Rank the rows of a board by `DISTANCE`, and compare each with the best ranked row that spends no more bits.

    Returns:
        One for each of `board.rows`.
    """
    whys = [row.result.why_not_ranked or ("" if DISTANCE in row.point.scores else "not scored") for row in board.rows]
    ranked = [i for i, why in enumerate(whys) if not why]
    means = {i: board.rows[i].point.scores[DISTANCE].mean for i in ranked}
    out = []
    for i, (row, why) in enumerate(zip(board.rows, whys, strict=True)):
        if why:
            out.append(Compared(why=why))
            continue
        rank = 1 + sum(means[j] < means[i] for j in ranked)
        cheap = [j for j in ranked if j == i or _spends_at_most(board.rows[j], row)]
        best = min(cheap, key=lambda j: (means[j], j != i))
        if best == i:
            out.append(Compared(rank=rank, verdict="best at no more bits", other=i))
            continue
        mine, other = row.point.scores[DISTANCE], board.rows[best].point.scores[DISTANCE]
        ci95 = welch_interval(mine, other)
        verdict = "no significant difference" if ci95[0] <= 0 <= ci95[1] else "better" if ci95[1] < 0 else "worse"
        out.append(Compared(rank=rank, verdict=verdict, other=best, mean=mine.mean - other.mean, ci95=ci95))
    return out


def _spends_at_most(row: GeneratorRow, other: GeneratorRow) -> bool:
    return row.point.bits <= other.point.bits * (1 + 1e-9)


def welch_interval(a: Spread, b: Spread) -> tuple[float, float]:
    """Give the 95 % interval of the difference of two means over trainings: Student's t with Welch's degrees of freedom.

    Raises:
        ValueError: fewer than two trainings on a side.

    Source: B. L. Welch, The generalization of Student's problem, Biometrika 34 (1947).
    """
    if a.deviation is None or b.deviation is None:
        raise ValueError(f"welch_interval: {a.seeds} and {b.seeds} trainings. Needed: two at least on each side.")
    difference = a.mean - b.mean
    ours, theirs = a.deviation**2 / a.seeds, b.deviation**2 / b.seeds
    error = math.sqrt(ours + theirs)
    if error == 0:
        return difference, difference
    from scipy.stats import t

    freedom = (ours + theirs) ** 2 / (ours**2 / (a.seeds - 1) + theirs**2 / (b.seeds - 1))
    half = float(t.ppf(0.975, freedom)) * error
    return difference - half, difference + half
