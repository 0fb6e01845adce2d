"""How the pages speak of numbers, rows and scores, and how a page is put together."""

import re
from html import escape
from importlib.resources import files
from string import Template

from eval.leaderboard.boards import CODEC, Board, Column, Ranking, Row
from eval.results import Result, Score
from zoo.registry import Entry

__all__ = [
    "MODALITIES",
    "bits_unit",
    "board_title",
    "compared_text",
    "difference_text",
    "fill",
    "interval_text",
    "items_text",
    "licence_text",
    "number",
    "parameters_text",
    "score_text",
    "score_title",
    "slug",
    "tokens_text",
    "yes_no",
]

MODALITIES = {"image": "Pictures", "video": "Video", "audio": "Sound"}
_MINUS = "\u2212"
_VERDICTS = {
    "better": "better than",
    "worse": "worse than",
    "no significant difference": "no significant difference from",
    "": "against",
}


def number(value: float | None, *, sign: bool = False) -> str:
    """Four digits at most, with a true minus sign; a dash for None."""
    if value is None:
        return "\u2013"
    text = f"{value:{'+' if sign else ''}.4g}"
    if "e" in text and 1e4 <= abs(value) < 1e9:
        text = f"{float(text):{'+' if sign else ''},.0f}"
    return text.replace("-", _MINUS)


def interval_text(ci95: tuple[float, float]) -> str:
    return f"[{number(ci95[0])}, {number(ci95[1])}]"


def score_text(score: Score | None) -> str:
    """A score without its interval; failures are told."""
    if score is None:
        return "\u2013"
    failed = f" ({score.failed} failed)" if score.failed else ""
    return f"{number(score.mean)}{failed}"


def score_title(column: Column) -> str:
    """Name, unit and which way is better."""
    unit = f", {column.unit}" if column.unit else ""
    better = f", {column.better} is better" if column.better else ""
    return f"{column.key}{unit}{better}"


def difference_text(ranking: Ranking, i: int, j: int) -> str:
    """Row i minus row j with its interval, or why there is none."""
    difference = ranking.difference(i, j)
    mean = number(difference.mean, sign=True)
    return f"{mean}, no interval: {difference.why}" if difference.ci95 is None else f"{mean} {interval_text(difference.ci95)}"


def compared_text(board: Board, ranking: Ranking, i: int) -> str:
    """Row i against the best row that spends no more bits, in words. The script of the page says the same in the same words."""
    if i not in ranking.ranks:
        return "not scored"
    j = ranking.fair[i]
    if j is None:
        return "bits unknown"
    if j == i:
        return "best at no more bits"
    verdict = _VERDICTS[ranking.verdict(i, j)]
    return f"{verdict} {board.rows[j].label}: {difference_text(ranking, i, j)}"


def parameters_text(count: int | None) -> str:
    if count is None:
        return "\u2013"
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def yes_no(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "\u2013"}[value]


def licence_text(row: Row) -> str:
    """Licence of the weights; a dash for codecs, "unknown" where nobody stated one."""
    if row.facts.kind == CODEC:
        return "\u2013"
    return (row.facts.licence or "unknown").removeprefix("LicenseRef-")


def bits_unit(modality: str) -> str:
    return "bits per second" if modality == "audio" else "bits per pixel"


def board_title(result: Result) -> str:
    """Data set, split and protocol."""
    split = f", {result.dataset.split}" if result.dataset.split else ""
    return f"{result.dataset.name}{split}: {result.protocol.id}"


def items_text(result: Result) -> str:
    """How many items were scored, and which."""
    data = result.dataset
    kind = {"image": "pictures", "video": "clips", "audio": "recordings"}[result.protocol.modality]
    part = "" if data.limit is None else f" (the first {data.limit:,} of {data.total:,})"
    return f"{data.count:,} {kind}{part}"


def tokens_text(entry: Entry) -> str:
    """Layout and order of the tokens in words."""
    kind = "codes" if entry.discrete else "latents"
    order = "any prefix decodes" if entry.ordered else "any depth decodes" if entry.residual else "one rate"
    return f"{entry.layout} {kind}, {order}"


def slug(name: str) -> str:
    """A name as a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def fill(template: str, **parts: str) -> str:
    """Fill a template of this folder with HTML; style and script are put inside, so that the page needs nothing else.

    `title` is escaped here, all other parts are HTML already.
    """
    folder = files("eval.leaderboard")
    read = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in (template, "style.css", "site.js")}
    parts["title"] = escape(parts["title"])
    return Template(read[template]).substitute(parts, style=read["style.css"], script=read["site.js"])
