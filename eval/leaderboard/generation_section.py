"""What generators make, on the first page: a table and a plot for each board of `eval.leaderboard.generation_boards`."""

from collections.abc import Mapping, Sequence
from html import escape

from eval.leaderboard.generation_boards import (
    DISTANCE,
    Compared,
    GeneratorBoard,
    Reference,
    Spread,
    budget_text,
    compare,
)
from eval.leaderboard.plots import Line, Spot, draw_plot
from eval.leaderboard.tables import body_cell, head_cell
from eval.leaderboard.words import DASH, breakable, interval_text, number

__all__ = [
    "board_name",
    "generation_titles",
    "linked",
    "make_generator_section",
    "score_words",
    "spread_html",
]

_TITLES = {
    "fd": "Fréchet distance",
    "pfd64": "Fréchet distance, 64 axes",
    "kid": "Kernel distance",
    "precision": "Precision",
    "recall": "Recall",
    "class_accuracy": "Class accuracy",
    "codebook_use": "Codebook use",
}
_SHOWN = ("fd", "precision", "recall", "class_accuracy")  # columns of the first page, before what others the page has
_NOTE = (
    "Mean over the seeds, with their standard deviation. One sample for each real picture, of its class. Ranks are by the Fréchet "
    "distance, and only where three generators were trained, each with a seed of its own and within the same budget; intervals are "
    "Welch's, 95 %, over the trainings. Rows in italics are measures, not generators: no generator of these tokens can be expected "
    "to beat their reconstructions; other real pictures are what the number of pictures leaves."
)


def score_words(name: str) -> str:
    """A score in words; its name where there are none for it."""
    return _TITLES.get(name, _TITLES.get(name.partition("_")[0], name))


def _of(names: Sequence[str], start: str) -> str | None:
    """The score that begins so, whatever network it is by."""
    return next((name for name in names if name == start or name.partition("_")[0] == start), None)


def board_name(place: int) -> str:
    """Address of a table on the first page."""
    return f"made-{place}"


def generation_titles(boards: Sequence[GeneratorBoard]) -> list[str]:
    """A title for each board: data and protocol, the budget where others differ in it, and the hash where names do not tell."""
    plain, hashed = [], []
    for board in boards:
        data = board.results[0].dataset
        split = f", {data.split}" if data.split else ""
        plain.append(f"{data.name}{split}: {board.protocol['id']}")
        hashed.append((data.sha256, budget_text(board.results[0].budget)))
    titles: list[str] = []
    for title, own in zip(plain, hashed, strict=True):
        same = {other for other_title, other in zip(plain, hashed, strict=True) if other_title == title}
        told = [f"data {own[0][:8]}"] if len({sha256 for sha256, _ in same}) > 1 else []
        told += [f"budget {own[1]}"] if len({budget for _, budget in same}) > 1 else []
        first = f"{title} ({', '.join(told)})" if told else title
        title, number_of = first, 2
        while title in titles:
            title, number_of = f"{first} #{number_of}", number_of + 1
        titles.append(title)
    return titles


# -- the first page --------------------------------------------------------------------------------------------------


def make_generator_section(boards: Sequence[GeneratorBoard], pages: Mapping[str, str], tokenizer_pages: Mapping[str, str]) -> str:
    """Write the section of the first page; empty without boards.

    Args:
        boards: all of them.
        pages: name of a generator -> address of its page.
        tokenizer_pages: name of a tokenizer -> address of its page.
    """
    if not boards:
        return ""
    parts = [
        _article(i, board, title, pages, tokenizer_pages)
        for i, (board, title) in enumerate(zip(boards, generation_titles(boards), strict=True))
    ]
    return f'<section id="generators"><h2>Generators</h2>\n{"".join(parts)}\n</section>'


def _article(place: int, board: GeneratorBoard, title: str, pages: Mapping[str, str], tokenizer_pages: Mapping[str, str]) -> str:
    name, first = board_name(place), board.results[0]
    about = (
        f"{first.dataset.count:,} samples a seed; data <code>{first.dataset.sha256[:12]}</code>; budget of each training: "
        f"{escape(budget_text(first.budget))}. Only rows of this data, this protocol and this budget are compared here."
    )
    return (
        f'<article class="board made" id="{name}" aria-labelledby="{name}-title">\n'
        f'<h3 id="{name}-title">{escape(title)}</h3>\n<p class="soft">{about}</p>\n'
        f"{_table(name, board, pages, tokenizer_pages)}\n"
        f'<div class="plots">{_plot(board)}</div>\n</article>'
    )


def _columns(board: GeneratorBoard) -> list[str]:
    names = list(board.scorers)
    return [name for start in _SHOWN if (name := _of(names, start)) is not None]


def _table(name: str, board: GeneratorBoard, pages: Mapping[str, str], tokenizer_pages: Mapping[str, str]) -> str:
    said = compare(board)
    ranked = any(told.rank is not None for told in said)
    order = sorted(range(len(board.rows)), key=lambda i: (said[i].rank or len(said) + 1, i))
    heads = [
        head_cell("rank", "Rank", "number", "ascending", sorted_now=ranked),
        head_cell("name", "Generator", "text", "ascending"),
        head_cell("tokenizer", "Tokenizer", "text", "ascending"),
        head_cell("rate", "Rate", "text", "ascending"),
        head_cell("bits", "Bits", "number", "ascending", small="a picture"),
    ]
    for score in _columns(board):
        better = board.scorers[score].get("better")
        way = "ascending" if better == "lower" else "descending"
        kind = "score chosen" if score == DISTANCE else "score"
        heads.append(
            head_cell("score", score_words(score), "number", way, kind=kind, small=f"{better} is better" if better else "")
        )
    heads += [
        head_cell("against", "Against the best at no more bits", "text", "ascending"),
        head_cell("nll", "Likelihood", "number", "ascending", kind="fact", small="bits of a real picture, lower is better"),
        head_cell("speed", "Sampling", "number", "ascending", small="s a picture"),
        head_cell("seeds", "Seeds", "text", "ascending", kind="fact"),
    ]
    rows = "\n".join(_row(board, i, said[i], pages, tokenizer_pages) for i in order)
    references = "\n".join(_reference(board, reference, tokenizer_pages) for reference in board.references)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{name}-title">'
        f'<table class="all" role="table" aria-labelledby="{name}-title">\n'
        f'<thead role="rowgroup"><tr role="row">{"".join(heads)}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{rows}\n</tbody>\n'
        f'<tbody role="rowgroup" class="references">\n{references}\n</tbody></table></div>\n<p class="soft note">{_NOTE}</p>'
    )


def linked(name: str, pages: Mapping[str, str], up: str = "") -> str:
    shown = breakable(name)
    return f'<a href="{up}{escape(pages[name])}">{shown}</a>' if name in pages else shown


def _row(board: GeneratorBoard, i: int, said: Compared, pages: Mapping[str, str], tokenizer_pages: Mapping[str, str]) -> str:
    row = board.rows[i]
    result, point = row.result, row.point
    told = ", ".join(f"{key}={value}" for key, value in result.options.items())
    options = f' <small class="soft">{escape(told)}</small>' if told else ""
    cells = [
        body_cell("rank", "rank", DASH if said.rank is None else str(said.rank), value=said.rank),
        f'<th role="rowheader" scope="row" class="name" data-value="{escape(result.name)}">'
        f"{linked(result.generator, pages)}{options}</th>",
        body_cell("tokenizer", "tokenizer", linked(result.tokenizer, tokenizer_pages), value=result.tokenizer),
        body_cell("rate", "rate", escape(point.rate), value=point.rate),
        body_cell("bits", "bits a picture", number(point.bits), value=point.bits),
    ]
    for name in _columns(board):
        spread = point.scores.get(name)
        kind = "chosen" if name == DISTANCE else ""
        cells.append(body_cell("score", score_words(name), spread_html(spread), value=spread and spread.mean, kind=kind))
    text = _compared_text(board, said)
    seeds = f"{', '.join(map(str, result.seeds))} <small>of {result.trained}</small>"
    cells += [
        body_cell("against", "against the best at no more bits", escape(text), value=text),
        body_cell("nll", "bits of a real picture", number(result.nll), value=result.nll, kind="fact"),
        body_cell(
            "speed", "seconds to sample a picture", number(float(f"{result.sample_seconds:.2g}")), value=result.sample_seconds
        ),
        body_cell("seeds", "seeds", seeds, value=len(result.seeds), kind="fact"),
    ]
    return f'<tr role="row" data-row="{i}">{"".join(cells)}</tr>'


def _reference(board: GeneratorBoard, reference: Reference, tokenizer_pages: Mapping[str, str]) -> str:
    cells = [
        body_cell("rank", "rank", DASH),
        f'<th role="rowheader" scope="row" class="name">{escape(reference.name)}</th>',
        body_cell("tokenizer", "tokenizer", linked(reference.tokenizer, tokenizer_pages) if reference.tokenizer else DASH),
        body_cell("rate", "rate", escape(reference.rate) or DASH),
        body_cell("bits", "bits a picture", number(reference.bits)),
    ]
    for name in _columns(board):
        kind = "chosen" if name == DISTANCE else ""
        cells.append(body_cell("score", score_words(name), number(reference.scores.get(name)), kind=kind))
    cells += [body_cell("against", "", DASH), *(body_cell(key, "", DASH, kind="fact") for key in ("nll", "speed", "seeds"))]
    return f'<tr role="row">{"".join(cells)}</tr>'


def spread_html(spread: Spread | None) -> str:
    if spread is None:
        return DASH
    deviation = "" if spread.deviation is None else f' <small class="ci">± {number(float(f"{spread.deviation:.2g}"))}</small>'
    return f"{number(spread.mean)}{deviation}"


def _compared_text(board: GeneratorBoard, said: Compared) -> str:
    """A comparison in words."""
    if said.why or said.verdict == "best at no more bits" or said.other is None:
        return said.why or said.verdict
    words = {"better": "better than", "worse": "worse than"}.get(said.verdict, f"{said.verdict} from")
    interval = f" {interval_text(said.ci95)}" if said.ci95 else ""
    return f"{words} {board.rows[said.other].label}: {number(said.mean, sign=True)}{interval}"


def _plot(board: GeneratorBoard) -> str:
    """The distance over the tokens; reconstructions as a square, other real pictures as a line across."""
    lines: list[Line] = []
    names: list[str] = []
    for result in board.results:
        name = f"{result.name}, {result.tokenizer}"
        names.append(name)
        spots = []
        for point in result.points:
            spread = point.scores.get(DISTANCE)
            if spread is not None and point.tokens is not None:
                ends = (spread.least, spread.most) if spread.seeds > 1 else None
                label = f"{result.name} {point.rate}: {number(spread.mean)} at {number(point.tokens)} tokens"
                spots.append(Spot(x=point.tokens, y=spread.mean, ci95=ends, label=label))
        shown = name if names.count(name) == 1 else f"{name} #{names.count(name)}"
        lines.append(Line(name=shown, spots=spots, number=len(lines)))
    levels = []
    for reference in board.references:
        height = reference.scores.get(DISTANCE)
        if height is None:
            continue
        if reference.tokens is None:
            levels.append((reference.name, height))
            continue
        name = f"{reference.name}, {reference.tokenizer}"
        label = f"{name} {reference.rate}: {number(height)}"
        lines.append(Line(name=name, spots=[Spot(x=reference.tokens, y=height, label=label)], number=len(lines), classical=True))
    return draw_plot(
        lines,
        title="Fréchet distance, lower is better: by tokens",
        x_title="tokens of a picture",
        note="Bars: least and largest of the seeds.",
        levels=levels,
    )
