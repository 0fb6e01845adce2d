"""The page of a generator: scores at every rate, samples of each class, and how all that was measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from eval.leaderboard.generation_boards import Generated, GeneratorBoard, Reference, Spread, budget_text
from eval.leaderboard.generation_samples import Strips
from eval.leaderboard.generation_section import board_name, linked, spread_html
from eval.leaderboard.tables import folded, score_head, scrolling
from eval.leaderboard.words import fill, number, parameters_text
from zoo import __version__
from zoo.generators.registry import GeneratorEntry

__all__ = ["Sampled", "make_generator_page"]

_COSTS = ("bits_per_pixel",)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One result of the page's generator with what it makes.

    Attributes:
        result: the result.
        board: that it stands on.
        place: of the board.
        title: of the board.
        samples: by class, a stored sheet as data address, or why there are none.
        sheet: `samples` is a stored sheet.
        classes: class number -> name, where the data were given.
    """

    result: Generated
    board: GeneratorBoard
    place: int
    title: str
    samples: Strips | str
    sheet: bool = False
    classes: Mapping[int, str]


def make_generator_page(
    name: str, entry: GeneratorEntry | None, sampled: Sequence[Sampled], tokenizer_pages: Mapping[str, str]
) -> str:
    """Write the page of a generator.

    Args:
        name: of the generator.
        entry: of the catalog; None where it is not there.
        sampled: its results.
        tokenizer_pages: name of a tokenizer -> address of its page.
    """
    return fill(
        "tokenizer.html",
        title=name,
        summary=escape(entry.summary if entry else "A generator that is not in the catalog."),
        facts=_facts(entry, sampled[0].result, tokenizer_pages),
        sections="\n".join(_section(i, part) for i, part in enumerate(sampled)),
        reported="",
        credits="",
        version=escape(__version__),
    )


def _facts(entry: GeneratorEntry | None, result: Generated, tokenizer_pages: Mapping[str, str]) -> str:
    told = result.values["generator"]
    rows: dict[str, Any] = {
        "Family": escape(str(told.get("family") or "")),
        "Makes tokens of": linked(result.tokenizer, tokenizer_pages, up="../"),
        "A step predicts": escape(f"a {told['unit']}" if told.get("unit") else ""),
        "Objective": escape(str(told.get("objective") or "")),
        "Parameters": parameters_text(told.get("parameters")),
        "Classes": escape(str(told.get("config", {}).get("classes") or "")),
    }
    if entry is not None:
        rows |= {
            "Licence of the weights": escape(entry.license_weights or "unknown"),
            "Licence of the code": escape(entry.license_code or "unknown"),
            "Trained on": escape(entry.trained_on or ""),
            "Paper": escape(entry.paper or ""),
            "Original release": escape(entry.source or ""),
        }
    body = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in rows.items() if value)
    return f'<dl class="facts">{body}</dl>'


def _section(place: int, part: Sampled) -> str:
    result = part.result
    options = "".join(f" {escape(str(key))}={escape(str(value))}." for key, value in result.options.items())
    seeds = f"seed{'s' * (len(result.seeds) > 1)} {', '.join(map(str, result.seeds))} of {result.trained}"
    why = "A ranking takes three generators, each trained with a seed of its own, within a budget that is known."
    ranked = f"<p>{escape(result.why_not_ranked.capitalize())}. {why}</p>" if result.why_not_ranked else ""
    return (
        f'<section id="result-{place}"><h2>{escape(part.title)}</h2>\n'
        f'<p class="soft">{result.dataset.count:,} samples of {escape(result.tokenizer)}, {seeds}; budget of each training: '
        f"{escape(budget_text(result.budget))}.{options} "
        f'<a href="../index.html#{board_name(part.place)}">The table it stands in</a>.</p>\n'
        f"{ranked}\n"
        f"<h3>Scores</h3>\n{_scores(part)}\n<h3>Samples</h3>\n{_samples(place, part)}\n"
        f"<h3>Class accuracy by class</h3>\n{_by_class(part)}\n"
        f"<h3>How it was measured</h3>\n{_protocol(result)}\n</section>"
    )


def _scores(part: Sampled) -> str:
    result = part.result
    scorers = result.values["protocol"]["scorers"]
    names = [name for name in dict.fromkeys(name for point in result.points for name in point.scores) if name not in _COSTS]
    head = '<th scope="col">Rate</th><th scope="col">bits a picture</th>' + "".join(
        score_head(name, scorers.get(name, {})) for name in names
    )
    rows = []
    for point in result.points:
        cells = "".join(f"<td>{_wide(point.scores.get(name))}</td>" for name in names)
        rows.append(f'<tr><th scope="row">{escape(point.rate)}</th><td>{number(point.bits)}</td>{cells}</tr>')
    own = _references(part)
    for reference in own:
        cells = "".join(f"<td>{number(reference.scores.get(name))}</td>" for name in names)
        at = f", {reference.rate}" if reference.rate else ""
        rows.append(
            f'<tr class="reference"><th scope="row">{escape(reference.name + at)}</th><td>{number(reference.bits)}</td>{cells}</tr>'
        )
    table = scrolling(f"Scores on {part.title}", f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>")
    return f'{table}\n<p class="soft note">Mean over the seeds, their standard deviation, least and largest.</p>'


def _references(part: Sampled) -> list[Reference]:
    """Reference rows of the board that are not about another tokenizer."""
    return [row for row in part.board.references if row.tokenizer in (None, part.result.tokenizer)]


def _wide(spread: Spread | None) -> str:
    if spread is None or spread.seeds < 2:
        return spread_html(spread)
    return f'{spread_html(spread)}<br><small class="ci">{number(spread.least)} to {number(spread.most)}</small>'


def _class(part: Sampled, label: int) -> str:
    return f"{label}: {part.classes[label]}" if label in part.classes else f"class {label}"


def _samples(place: int, part: Sampled) -> str:
    if isinstance(part.samples, str) and not part.sheet:
        return f"<p>{escape(part.samples)}</p>"
    if isinstance(part.samples, str):
        picture = f'<img class="sheet" src="{part.samples}" alt="Samples: one row for each class">'
        return f'<p class="soft note">A sheet that was stored with the result.</p>{picture}'
    strips = part.samples
    height, width = strips.size
    rows = []
    for label, made in zip(strips.classes, strips.strips, strict=True):
        name = _class(part, label)
        figures = []
        for i, (step, address) in enumerate(zip(strips.steps, made, strict=True)):
            alt = escape(f"{name}: {strips.columns} samples, {step}")
            picture = f'<img src="{address}" width="{width * strips.columns}" height="{height}" alt="{alt}">'
            figures.append(f'<figure data-step="{i}">{picture if address else "<div class=failed>failed</div>"}</figure>')
        rows.append(f'<div class="strip"><h4>{escape(name)}</h4>{"".join(figures)}</div>')
    note = (
        f"{strips.columns} samples of each class by the first run's seed; the same column starts from the same noise. "
        f"Nothing was chosen. Stored as WebP."
    )
    shown_of = part.result.values["generator"].get("config", {}).get("classes")
    if shown_of and shown_of > len(strips.classes):
        note += f" The first {len(strips.classes)} of {shown_of} classes."
    steps = json.dumps(list(strips.steps), ensure_ascii=False).replace("<", "\\u003c")
    return (
        f'<div class="gallery pixels"><p class="soft note">{escape(note)}</p>\n'
        f'<div class="dial" hidden><label for="dial-made-{place}">Tokens decoded</label>'
        f'<input type="range" id="dial-made-{place}" min="0" step="1"><output for="dial-made-{place}"></output></div>\n'
        f'<div class="strips">{"".join(rows)}</div>\n<script type="application/json" class="steps">{steps}</script></div>'
    )


def _by_class(part: Sampled) -> str:
    runs = part.result.values["runs"]
    labels = sorted({label for run in runs for label in run["class_accuracy_by_class"]}, key=int)
    if not labels:
        return "<p>Not stored with this result.</p>"
    head = '<th scope="col">Class</th>' + "".join(f'<th scope="col">seed {run["seed"]}</th>' for run in runs)
    rows = [
        f'<tr><th scope="row">{escape(_class(part, int(label)))}</th>'
        + "".join(f"<td>{number(run['class_accuracy_by_class'].get(label))}</td>" for run in runs)
        + "</tr>"
        for label in labels
    ]
    said = f"Share of samples that the classifier takes for their class, at {part.result.points[-1].rate}."
    note = f'<p class="soft note">{escape(said)}</p>'
    return note + scrolling("Class accuracy by class", f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>")


def _protocol(result: Generated) -> str:
    values = dict(result.values["protocol"])
    scorers = values.pop("scorers")
    data, train = result.dataset, result.train_dataset
    first = {
        "real pictures": f"{data.name}, {data.split or 'all'}: {data.count:,}, SHA-256 {data.sha256}",
        "training pictures": f"{train.name}, {train.split or 'all'}: {train.count:,}, SHA-256 {train.sha256}",
        "tokenizer": f"{result.tokenizer}, SHA-256 {result.values['tokenizer_sha256']}",
        **values,
    }
    parts = [folded("Protocol", first), folded("Definitions of the scores", scorers)]
    parts.append(folded("Generator", result.values["generator"]))
    for run in result.values["runs"]:
        training = {
            "budget": budget_text(run["training"].get("budget")),
            **{k: v for k, v in run["training"].items() if k != "budget"},
        }
        told = {"weights": f"SHA-256 {run['weights_sha256']}", **training, "bits of a real picture": run["nll_bits_per_picture"]}
        parts.append(folded(f"Run with seed {run['seed']}", {**told, **run["speed"]}))
    parts.append(folded("Versions and date", result.values["environment"]))
    return "\n".join(parts)
