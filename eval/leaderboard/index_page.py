"""The first page: a table and plots for each board, and reported figures apart."""

import json
from collections.abc import Mapping, Sequence
from html import escape

from eval.leaderboard.boards import CODEC, Board, Column, Ranking, Row
from eval.leaderboard.generation_boards import GeneratorBoard
from eval.leaderboard.generation_section import board_name, generation_titles, make_generator_section
from eval.leaderboard.plots import draw_plot, rate_lines, speed_lines
from eval.leaderboard.tables import body_cell, head_cell
from eval.leaderboard.words import (
    DASH,
    MODALITIES,
    bits_unit,
    board_titles,
    breakable,
    compared_text,
    figures_table,
    fill,
    interval_text,
    items_text,
    licence_text,
    number,
    parameters_text,
    score_text,
    score_title,
    yes_no,
)
from eval.reported import Reported
from zoo import __version__

__all__ = ["board_data", "make_index"]

Ranked = tuple[Board, Sequence[Ranking]]
_NOTE = (
    "Intervals: 95 %, bootstrap over the items. A difference is taken item by item (paired); where its interval holds 0 there is "
    "no significant difference. Of twenty comparisons of equals about one seems to differ, by chance. Items/s: both ways; "
    "a tokenizer is timed at its full rate, a codec over all its rates."
)


def make_index(
    boards: Sequence[Ranked],
    reported: Sequence[Reported],
    pages: Mapping[str, str],
    *,
    generations: Sequence[GeneratorBoard] = (),
    generator_pages: Mapping[str, str] | None = None,
) -> str:
    """Write the page.

    Args:
        boards: with the ranking of every ranked column, in that order.
        reported: figures that others published.
        pages: name of a tokenizer -> address of its page.
        generations: boards of generators.
        generator_pages: name of a generator -> address of its page.
    """
    makers = dict(generator_pages or {})
    titles = board_titles([board.results[0] for board, _ in boards])
    sections = []
    numbered = list(enumerate(boards))
    for modality, title in MODALITIES.items():
        here = [(i, ranked) for i, ranked in numbered if ranked[0].modality == modality]
        if here:
            body = "\n".join(_board(i, titles[i], *ranked, pages) for i, ranked in here)
            sections.append(f'<section id="{modality}"><h2>{title}</h2>\n{body}\n</section>')
    sections.append(make_generator_section(generations, makers, pages))
    return fill(
        "index.html",
        title="Leaderboard of tokenizers",
        summary=_summary(boards, generations),
        contents=_contents(titles, pages, generation_titles(generations), makers, bool(reported)),
        boards="\n".join(sections),
        reported=_reported(reported),
        version=escape(__version__),
    )


def _summary(boards: Sequence[Ranked], generations: Sequence[GeneratorBoard]) -> str:
    results = [result for board, _ in boards for result in board.results]
    names = len({result.tokenizer for result in results})
    data = len({result.dataset.sha256 for result in results})
    rows = sum(len(board.rows) for board, _ in boards)
    said = f"{names} measured tokenizers and codecs, {rows} rows, on {_plural(data, 'data set')}."
    makers = len({result.generator for board in generations for result in board.results})
    return f"{said} {_plural(makers, 'generator')} of their tokens." if makers else said


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _contents(
    titles: Sequence[str], pages: Mapping[str, str], made: Sequence[str], makers: Mapping[str, str], reported: bool
) -> str:
    links = [f'<a href="#board-{i}">{escape(title)}</a>' for i, title in enumerate(titles)]
    links += [f'<a href="#{board_name(i)}">{escape(title)}</a>' for i, title in enumerate(made)]
    if reported:
        links.append('<a href="#reported">Reported by others</a>')
    names = [f'<a href="{escape(address)}">{escape(name)}</a>' for name, address in (*pages.items(), *makers.items())]
    return f"<p><strong>Tables</strong> {' '.join(links)}</p>\n<p><strong>One page each</strong> {' '.join(names)}</p>"


# -- a board ---------------------------------------------------------------------------------------------------------


def _board(place: int, title: str, board: Board, rankings: Sequence[Ranking], pages: Mapping[str, str]) -> str:
    first = board.results[0]
    name = f"board-{place}"
    about = (
        f"{items_text(first)}; data <code>{first.dataset.sha256[:12]}</code>. "
        "Only rows of this data and this protocol are compared here."
    )
    data = json.dumps(board_data(board, rankings), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f'<article class="board" id="{name}" aria-labelledby="{name}-title">\n'
        f'<h3 id="{name}-title">{escape(title)}</h3>\n<p class="soft">{about}</p>\n'
        f"{_controls(name, board, rankings)}\n{_table(name, board, rankings, pages)}\n"
        f'<div class="plots">{_plots(board)}</div>\n'
        f'<script type="application/json" class="data">{data}</script>\n</article>'
    )


def board_data(board: Board, rankings: Sequence[Ranking]) -> dict[str, object]:
    """Give what the script needs: for each score the ranks, the best row at no more bits, and every difference in words.

    `verdict` is a word of one letter a row: b better, w worse, n no significant difference, a digit where there is no interval (the
    place of the reason in `why`), a blank for the row itself and for rows without the score.
    """
    count = range(len(board.rows))
    scores = {}
    for ranking in rankings:
        whys = sorted({difference.why for difference in ranking.pairs.values() if difference.why})
        verdicts, said = [], []
        for i in count:
            letters, texts = [], []
            for j in count:
                if i == j or i not in ranking.ranks or j not in ranking.ranks:
                    letters.append(" ")
                    texts.append("")
                    continue
                difference = ranking.difference(i, j)
                letters.append(ranking.verdict(i, j)[:1] or str(whys.index(difference.why)))
                interval = f" {interval_text(difference.ci95)}" if difference.ci95 else ""
                texts.append(f"{number(difference.mean, sign=True)}{interval}")
            verdicts.append("".join(letters))
            said.append(texts)
        scores[ranking.column.key] = {
            "rank": [ranking.ranks.get(i) for i in count],
            "fair": [ranking.fair.get(i) for i in count],
            "verdict": verdicts,
            "said": said,
            "why": whys,
        }
    return {"labels": [row.label for row in board.rows], "scores": scores}


def _controls(name: str, board: Board, rankings: Sequence[Ranking]) -> str:
    def select(key: str, title: str, options: Sequence[tuple[str, str]]) -> str:
        inner = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options)
        return f'<label>{title}<select name="{key}">{inner}</select></label>'

    def of(key: str, title: str, values: Sequence[str]) -> str:
        there = sorted({value for value in values if value != DASH}, key=str.lower)
        return select(key, title, [("", "all"), *((value, value) for value in there)])

    def most(key: str, title: str) -> str:
        return f'<label>{title}<input type="number" name="{key}" min="0" step="any" inputmode="decimal"></label>'

    rows, facts = board.rows, [row.facts for row in board.rows]
    others = [(str(i), row.label) for i, row in enumerate(rows)]
    return (
        '<form class="controls" hidden>'
        + '<fieldset><legend>Compare</legend><div class="fields">'
        + select("score", "Score", [(ranking.column.key, score_title(ranking.column)) for ranking in rankings])
        + select("against", "With", [("fair", "the best row at no more bits"), ("best", "the best row"), *others])
        + '<label class="check"><input type="checkbox" name="all"> show all scores</label></div></fieldset>'
        + '<fieldset><legend>Filter</legend><div class="fields">'
        + '<label>Name<input type="search" name="name" autocomplete="off"></label>'
        + of("kind", "Kind", [fact.kind for fact in facts])
        + of("family", "Family", [fact.family or DASH for fact in facts])
        + of("licence", "Licence of weights", [licence_text(row) for row in rows])
        + of("causal", "Causal", [yes_no(fact.causal) for fact in facts])
        + most("bits", f"At most {bits_unit(board.modality)}")
        + most("parameters", "At most million parameters")
        + '<button type="button" data-clear>Clear filters</button></div></fieldset>'
        + f'<p role="status" class="count"><output name="count">{len(rows)} of {len(rows)} rows</output></p></form>'
    )


def _table(name: str, board: Board, rankings: Sequence[Ranking], pages: Mapping[str, str]) -> str:
    """Rows are in the order of the first score; the script sorts by any column."""
    first = rankings[0] if rankings else None
    ranks = first.ranks if first else {}
    order = sorted(range(len(board.rows)), key=lambda i: (ranks.get(i, len(board.rows) + 1), i))
    sound = board.modality == "audio"
    heads = [
        head_cell("rank", "Rank", "number", "ascending", sorted_now=first is not None),
        head_cell("name", "Tokenizer", "text", "ascending"),
        head_cell("rate", "Rate", "text", "ascending"),
        head_cell("bits", "bit/s" if sound else "bit/px", "number", "ascending"),
    ]
    for column in board.columns:
        chosen = " chosen" if first is not None and column is first.column else ""
        way = "ascending" if column.better == "lower" else "descending"
        small = ", ".join(filter(None, (column.unit, column.better and f"{column.better} is better")))
        heads.append(head_cell("score", column.key, "number", way, kind=f"score{chosen}", small=small, score=column.key))
    heads += [
        head_cell("against", "Against the best at no more bits", "text", "ascending"),
        head_cell("family", "Family", "text", "ascending"),
        head_cell("licence", "Licence", "text", "ascending"),
        head_cell("causal", "Causal", "text", "descending"),
        head_cell("parameters", "Size", "number", "ascending"),
        head_cell("speed", "Items/s", "number", "descending"),
    ]
    body = "\n".join(_row(i, board, first, pages) for i in order)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{name}-title">'
        f'<table class="all" role="table" aria-labelledby="{name}-title">\n'
        f'<thead role="rowgroup"><tr role="row">{"".join(heads)}</tr></thead>\n'
        f'<tbody role="rowgroup">\n{body}\n</tbody></table></div>\n<p class="soft note">{_NOTE}</p>'
    )


def _row(i: int, board: Board, first: Ranking | None, pages: Mapping[str, str]) -> str:
    row = board.rows[i]
    facts, codec = row.facts, row.facts.kind == CODEC
    parameters = 0 if codec else facts.parameters
    family = facts.family or ("codec" if codec else "unknown")
    rank = first.ranks.get(i) if first else None
    name = breakable(row.name)
    if row.result.tokenizer in pages:
        name = f'<a href="{escape(pages[row.result.tokenizer])}">{name}</a>'
    cells = [
        body_cell("rank", "rank", DASH if rank is None else str(rank), value=rank),
        f'<th role="rowheader" scope="row" class="name" data-value="{escape(row.name)}">{name}</th>',
        body_cell("rate", "rate", escape(row.rate), value=row.rate),
        body_cell("bits", "bits per second" if board.modality == "audio" else "bits per pixel", number(row.bits), value=row.bits),
    ]
    for column in board.columns:
        cells.append(_score_cell(row, column, first is not None and column is first.column))
    cells += [
        body_cell("against", "against the best at no more bits", escape(compared_text(board, first, i)) if first else ""),
        body_cell("family", "family", escape(family), value=family),
        body_cell("licence", "licence of weights", escape(licence_text(row)), value=licence_text(row)),
        body_cell("causal", "causal", yes_no(facts.causal), value=yes_no(facts.causal)),
        body_cell("parameters", "parameters", DASH if codec else parameters_text(parameters), value=parameters),
        body_cell("speed", "items a second", number(row.round_trips), value=row.round_trips),
    ]
    data = {
        "row": i,
        "name": row.label.lower(),
        "plot": row.name,
        "kind": facts.kind,
        "family": facts.family or "",
        "licence": licence_text(row),
        "causal": yes_no(facts.causal),
        "bits": "" if row.bits is None else row.bits,
        "parameters": "" if parameters is None else parameters,
    }
    told = " ".join(f'data-{key}="{escape(str(value))}"' for key, value in data.items())
    return f'<tr role="row" {told}>{"".join(cells)}</tr>'


def _score_cell(row: Row, column: Column, chosen: bool) -> str:
    score = column.of(row)
    interval = f' <small class="ci">{interval_text(score.ci95)}</small>' if score is not None and score.ci95 else ""
    value = None if score is None else score.mean
    text = f"{escape(score_text(score))}{interval}"
    return body_cell("score", column.key, text, value=value, kind="chosen" if chosen else "", score=column.key)


def _plots(board: Board) -> str:
    parts = []
    unit = bits_unit(board.modality)
    timed = sorted(
        {
            f"{result.speed.device}, batch {result.speed.batch}, {result.speed.threads} thread(s)"
            for result in board.results
            if result.speed is not None
        }
    )
    note = f"Timed on {'; '.join(timed)}. Compare speeds of one device only." if timed else ""
    for column in board.ranked:
        data = f' data-score="{column.key}"'
        title = score_title(column)
        parts.append(draw_plot(rate_lines(board, column), title=f"{title}: by rate", x_title=unit, attributes=data))
        speed = draw_plot(
            speed_lines(board, column),
            title=f"{title}: by speed",
            x_title="items encoded and decoded a second",
            note=note,
            attributes=data,
        )
        parts.append(speed)
    return "\n".join(part for part in parts if part)


# -- reported figures ------------------------------------------------------------------------------------------------


def _reported(figures: Sequence[Reported]) -> str:
    if not figures:
        return ""
    return (
        '<section id="reported"><h2>Reported by others</h2>\n'
        '<p class="soft">Figures from papers and their code, as printed there. They were not measured here, and their protocols '
        f"differ in ways that are not written down: they have no ranks and no intervals.</p>\n{figures_table(figures)}</section>"
    )
