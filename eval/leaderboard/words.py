"""How the pages speak of numbers, rows and scores, and how a page is put together."""

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from eval.leaderboard.boards import CODEC, Board, Column, Ranking, Row
from eval.reported import Reported
from eval.results import Result, Score
from zoo.registry import Entry

__all__ = [
    "DASH",
    "MODALITIES",
    "bits_unit",
    "board_title",
    "board_titles",
    "breakable",
    "compared_text",
    "difference_text",
    "figures_table",
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
DASH = "\u2013"
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
        return DASH
    text = f"{value:{'+' if sign else ''}.4g}"
    if "e" in text and 1e4 <= abs(value) < 1e9:
        text = f"{float(text):{'+' if sign else ''},.0f}"
    return text.replace("-", _MINUS)


def interval_text(ci95: tuple[float, float]) -> str:
    return f"[{number(ci95[0])}, {number(ci95[1])}]"


def score_text(score: Score | None) -> str:
    """A score without its interval; failures are told."""
    if score is None:
        return DASH
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
        return DASH
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def yes_no(value: bool | None) -> str:
    return {True: "yes", False: "no", None: DASH}[value]


def licence_text(row: Row) -> str:
    """Licence of the weights; a dash for codecs, "unknown" where nobody stated one."""
    if row.facts.kind == CODEC:
        return DASH
    return (row.facts.licence or "unknown").removeprefix("LicenseRef-")


def bits_unit(modality: str) -> str:
    return "bits per second" if modality == "audio" else "bits per pixel"


def board_title(result: Result) -> str:
    """Data set, split and protocol."""
    split = f", {result.dataset.split}" if result.dataset.split else ""
    return f"{result.dataset.name}{split}: {result.protocol.id}"


def board_titles(results: Sequence[Result]) -> list[str]:
    """Titles of boards by one result of each; other data under the same name are told apart by the start of their hash."""
    plain = [board_title(result) for result in results]
    titles: list[str] = []
    for title, result in zip(plain, results, strict=True):
        same = {other.dataset.sha256 for other, other_title in zip(results, plain, strict=True) if other_title == title}
        first = title if len(same) == 1 else f"{title} (data {result.dataset.sha256[:8]})"
        title, number_of = first, 2
        while title in titles:
            title, number_of = f"{first} #{number_of}", number_of + 1
        titles.append(title)
    return titles


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


def figures_table(figures: Sequence[Reported], *, names: bool = True) -> str:
    """Reported figures as tables, one for each data set as their authors name it: in the order of the names, without ranks."""
    groups: dict[str, list[Reported]] = {}
    for figure in figures:
        groups.setdefault(figure.data, []).append(figure)
    parts = []
    for data, group in sorted(groups.items()):
        scores = list(dict.fromkeys(figure.score for figure in group))
        rows: dict[tuple[str, str, str], dict[str, float]] = {}
        for figure in sorted(group, key=lambda figure: figure.name):
            rows.setdefault((figure.name, figure.rate, figure.source), {})[figure.score] = figure.value
        titles = [*(["Tokenizer"] if names else []), "Rate", *scores, "Source"]
        head = "".join(f'<th scope="col"{_side(title)}>{escape(title)}</th>' for title in titles)
        body = []
        for (name, rate, source), values in rows.items():
            first = f'<th scope="row">{breakable(name)}</th>' if names else ""
            cells = "".join(f"<td>{number(values.get(score))}</td>" for score in scores)
            body.append(f'<tr>{first}<td>{escape(rate) or DASH}</td>{cells}<td class="text">{_linked(source)}</td></tr>')
        parts.append(
            f'<h3>{escape(data)}</h3><div class="scroll" role="region" tabindex="0" aria-label="{escape(data)}">'
            f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        )
    return "\n".join(parts)


def _side(title: str) -> str:
    """Heads of words are on the left, as what is below them."""
    return ' class="text"' if title == "Source" else ""


def _linked(source: str) -> str:
    """A source; an address in it becomes a link, and no other address is one."""
    return re.sub(r"https?://[^\s,;\"<>]+", lambda match: f'<a href="{match[0]}">{match[0]}</a>', escape(source))


def breakable(name: str) -> str:
    """A name as HTML that may be broken after an underscore."""
    return escape(name).replace("_", "_<wbr>")


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
