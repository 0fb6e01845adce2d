"""The page of one tokenizer or codec: scores at every rate, reconstructions, what it does worst, and how all that was measured."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from eval.leaderboard.boards import CODEC, Facts, worst_items
from eval.leaderboard.gallery import Gallery, Media, Shown
from eval.leaderboard.tables import folded, score_head, scrolling
from eval.leaderboard.words import (
    bits_unit,
    board_title,
    breakable,
    figures_table,
    fill,
    interval_text,
    items_text,
    number,
    parameters_text,
    score_text,
    tokens_text,
    yes_no,
)
from eval.rates import rate_text
from eval.reported import Reported
from eval.results import ItemRow, Result, Score
from zoo import __version__, samples

__all__ = ["Measured", "make_page"]

_DIALS = {
    "tokens": "Tokens kept",
    "depth": "Levels kept",
    "quality": "Quality",
    "kbps": "kbit/s asked for",
    "crf": "Constant rate factor",
    "bins": "Bins",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One result of the page's tokenizer with its pictures or sounds.

    Attributes:
        result: the result.
        place: of its board on the first page.
        title: of that board.
        samples: items of the sample pack at every rate, or why there are none here.
        worst: its worst items at every rate, in the order of `worst_items`; or why there are none.
        records: of the worst items, from the data: key -> what the pack says of it.
    """

    result: Result
    place: int
    title: str
    samples: Gallery | str
    worst: Gallery | str
    records: Mapping[str, Mapping[str, Any]]


def make_page(
    name: str,
    facts: Facts,
    measured: Sequence[Measured],
    reported: Sequence[Reported],
    *,
    generators: Mapping[str, str] | None = None,
) -> str:
    """Write the page of a tokenizer.

    Args:
        name: of the tokenizer.
        facts: of the catalog.
        measured: its results.
        reported: figures of others.
        generators: of its tokens: name -> address of the page.
    """
    entry = facts.entry
    summary = entry.summary if entry else "A classical codec, as a measure." if facts.kind == CODEC else "Not in the catalog."
    own = f"<section><h2>Reported by others</h2>{figures_table(reported, names=False)}</section>" if reported else ""
    return fill(
        "tokenizer.html",
        title=name,
        summary=escape(summary),
        facts=_facts(facts) + _generators(generators or {}),
        sections=_overview(measured) + "\n".join(_section(i, part) for i, part in enumerate(measured)),
        reported=own,
        credits=_credits(measured),
        version=escape(__version__),
    )


def _facts(facts: Facts) -> str:
    entry = facts.entry
    if entry is None:
        return ""
    size = " x ".join(map(str, entry.native_size)) + " px" if entry.native_size else None
    rows = {
        "Family": entry.family,
        "Tokens": tokens_text(entry),
        "Positions": None if entry.tokens is None else f"{entry.tokens:,}",
        "Codebook": f"{entry.codebook_size:,}" if entry.codebook_size else None,
        "Native size": size,
        "Sample rate": f"{entry.sample_rate:,} Hz" if entry.sample_rate else None,
        "Parameters": parameters_text(entry.parameters),
        "Causal / streaming": f"{yes_no(entry.causal)} / {yes_no(entry.streaming)}",
        "Licence of the weights": entry.license_weights or "unknown",
        "Licence of the code": entry.license_code or "unknown",
        "Trained on": entry.trained_on,
        "Paper": entry.paper,
        "Original release": entry.source,
    }
    body = "".join(f"<div><dt>{key}</dt><dd>{escape(str(value))}</dd></div>" for key, value in rows.items() if value)
    return f'<dl class="facts">{body}</dl>'


def _generators(pages: Mapping[str, str]) -> str:
    if not pages:
        return ""
    links = ", ".join(f'<a href="../{escape(address)}">{breakable(name)}</a>' for name, address in pages.items())
    return f"<p>Generators of its tokens: {links}</p>"


def _overview(measured: Sequence[Measured]) -> str:
    """A table of all results of the page: at the last rate, the scores that several of them have; empty for one result."""
    if len(measured) < 2:
        return ""
    results = [part.result for part in measured]
    counted = Counter(name for result in results for name in result.points[-1].scores)
    names = [name for name, times in counted.items() if times > 1 and _one_definition(name, results)]
    head = '<th scope="col">Data and protocol</th><th scope="col">Items</th><th scope="col">Rate</th>'
    head += "".join(score_head(name, _defined(name, results)) for name in names)
    rows = []
    for i, part in enumerate(measured):
        point = part.result.points[-1]
        cells = "".join(f"<td>{_score(point.scores.get(name))}</td>" for name in names)
        rows.append(
            f'<tr><th scope="row"><a href="#result-{i}">{escape(part.title)}</a></th><td>{part.result.dataset.count:,}</td>'
            f"<td>{escape(rate_text(dict(point.rate)))}</td>{cells}</tr>"
        )
    table = scrolling("All results", f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>")
    note = "At the last rate of each. Numbers of different data say how it does elsewhere; they rank nothing."
    return f'<section id="results"><h2>On all data sets</h2>\n<p class="soft note">{note}</p>\n{table}</section>\n'


def _defined(name: str, results: Sequence[Result]) -> Mapping[str, Any]:
    return next((result.protocol.scorers[name] for result in results if name in result.protocol.scorers), {})


def _one_definition(name: str, results: Sequence[Result]) -> bool:
    definition = _defined(name, results)
    return all(result.protocol.scorers.get(name, definition) == definition for result in results)


def _section(place: int, part: Measured) -> str:
    result = part.result
    decode = ", ".join(f"{key}={value}" for key, value in result.protocol.decode.items())
    told = f" {'Decoder' if result.weights_sha256 else 'Codec'}: {escape(decode)}." if decode else ""
    return (
        f'<section id="result-{place}"><h2>{escape(part.title)}</h2>\n'
        f'<p class="soft">{items_text(result)}.{told} <a href="../index.html#board-{part.place}">The table it stands in</a>.</p>\n'
        f"<h3>Scores</h3>\n{_scores(result)}\n"
        f"<h3>Reconstructions</h3>\n{_samples(place, part)}\n"
        f"<h3>Its worst items</h3>\n{_worst(place, part)}\n"
        f"<h3>How it was measured</h3>\n{_protocol(result)}\n</section>"
    )


def _scores(result: Result) -> str:
    names = list(dict.fromkeys(name for point in result.points for name in point.scores))
    names = [name for name in names if name not in ("bits_per_pixel", "bits_per_second")]
    head = f'<th scope="col">Rate</th><th scope="col">{bits_unit(result.protocol.modality)}</th>'
    head += "".join(score_head(name, result.protocol.scorers.get(name, {})) for name in names)
    rows = []
    for point in result.points:
        bits = point.bits_per_second if result.protocol.modality == "audio" else point.bits_per_pixel
        cells = "".join(f"<td>{_score(point.scores.get(name))}</td>" for name in names)
        rows.append(f'<tr><th scope="row">{escape(rate_text(dict(point.rate)))}</th><td>{number(bits)}</td>{cells}</tr>')
    return scrolling(f"Scores on {board_title(result)}", f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>")


def _score(score: Score | None) -> str:
    interval = f'<br><small class="ci">{interval_text(score.ci95)}</small>' if score is not None and score.ci95 else ""
    return f"{escape(score_text(score))}{interval}"


# -- reconstructions -------------------------------------------------------------------------------------------------


def _samples(place: int, part: Measured) -> str:
    if isinstance(part.samples, str):
        return f"<p>{escape(part.samples)}</p>"
    labels = {shown.key: _title(shown.key) for shown in part.samples.items}
    note = "Items of the sample pack: they show how it behaves, and rank nothing. "
    return _gallery(f"samples-{place}", part.samples, labels, part.result, note)


def _title(key: str) -> str:
    """What a sample shows, or its file name."""
    record = _sample(key)
    return key if record is None else record.title


def _sample(key: str) -> samples.Sample | None:
    for path in (*samples.images(), *samples.speech(), *samples.music(), *samples.video()):
        if path.name == key:
            return samples.info(path)
    return None


def _gallery(name: str, gallery: Gallery, labels: Mapping[str, str], result: Result, note: str) -> str:
    axis = next(iter(result.points[0].rate), "rate")
    kind = "sounds" if gallery.modality == "audio" else "pixels" if gallery.modality == "image" and gallery.side < 128 else ""
    stored = ""
    if gallery.modality == "audio":
        stored = "Each recording is cut to its first seconds; the picture is its spectrogram. Sounds are stored without loss."
    elif gallery.modality == "video":
        stored = "Clips are cut to their first frames and stored as VP9 of quality 16, which costs a little of what is seen here."
    elif not gallery.lossless:
        stored = "Pictures are stored as WebP of quality 92."
    if gallery.between and gallery.modality == "image":
        stored = f"{stored} Rates between those of the table are stored as WebP of quality 90.".strip()
    steps = json.dumps(list(gallery.steps), ensure_ascii=False).replace("<", "\\u003c")
    items = "\n".join(_shown(shown, labels[shown.key]) for shown in gallery.items)
    return (
        f'<div class="gallery {kind}"><p class="soft note">{escape(note + stored)}</p>\n'
        f'<div class="dial" hidden><label for="dial-{name}">{escape(_DIALS.get(axis, axis))}</label>'
        f'<input type="range" id="dial-{name}" min="0" step="1"><output for="dial-{name}"></output></div>\n'
        f'<div class="items">{items}</div>\n<script type="application/json" class="steps">{steps}</script></div>'
    )


def _shown(shown: Shown, label: str) -> str:
    figures = [_figure(shown.original, label, "")]
    for step, media in enumerate(shown.again):
        figures.append(_figure(media, label, f' data-step="{step}"'))
    return f'<div class="item"><h4>{escape(label)}</h4><div class="pair">{"".join(figures)}</div></div>'


def _figure(media: Media | None, label: str, attributes: str) -> str:
    if media is None:
        return f'<figure{attributes}><div class="failed">failed</div></figure>'
    said = escape(media.said)
    alt = f"{label}: {'spectrogram, ' if media.sound else ''}{media.said}"
    if media.clip:
        return (
            f'<figure{attributes}><video controls loop muted playsinline preload="metadata" src="{media.clip}" '
            f'poster="{media.picture}" aria-label="{escape(alt)}"></video><figcaption>{said}</figcaption></figure>'
        )
    sound = f'<audio controls preload="none" src="{media.sound}" aria-label="{escape(f"{label}: {media.said}")}"></audio>'
    return (
        f'<figure{attributes}><img src="{media.picture}" alt="{escape(alt)}">{sound if media.sound else ""}'
        f"<figcaption>{said}</figcaption></figure>"
    )


# -- the worst items -------------------------------------------------------------------------------------------------


def _worst(place: int, part: Measured) -> str:
    score, rows = worst_items(part.result)
    if not rows:
        return "<p>No scores of single items are stored beside this result.</p>"
    last = rate_text(dict(part.result.points[-1].rate))
    better = part.result.protocol.scorers[score].get("better")
    lead = f"By {score} ({better} is better) at {last}, of {part.result.dataset.count:,}."
    table = _worst_table(rows, part.result, part.records)
    if isinstance(part.worst, str):
        return f'<p class="soft note">{escape(lead)} {escape(part.worst)}</p>\n{table}'
    labels = {row.key: f"{row.key}: {score} {number(row.scores[score])}" for row in rows}
    return f"{_gallery(f'worst-{place}', part.worst, labels, part.result, lead + ' ')}\n{table}"


def _worst_table(rows: Sequence[ItemRow], result: Result, records: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(rows[0].scores)
    head = '<th scope="col">Item</th><th scope="col">Number</th>'
    head += "".join(score_head(name, result.protocol.scorers.get(name, {})) for name in names)
    if records:
        head += '<th scope="col" class="text">Origin</th>'
    body = []
    for row in rows:
        cells = [f'<th scope="row">{escape(row.key)}</th>', f"<td>{row.item}</td>"]
        cells += [f"<td>{'failed' if row.scores[name] != row.scores[name] else number(row.scores[name])}</td>" for name in names]
        if records:
            cells.append(f'<td class="text">{escape(_origin(records.get(row.key, {})))}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return scrolling("Worst items", f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>")


def _origin(record: Mapping[str, Any]) -> str:
    """What the data say of an item: where it is from and under which terms, what is said in it."""
    file = Path(str(record["file"])).name if record.get("file") else None
    parts = (record.get("package"), file, record.get("license"), record.get("language"), record.get("text"))
    return ", ".join(str(value) for value in parts if value)


# -- the protocol ----------------------------------------------------------------------------------------------------


def _protocol(result: Result) -> str:
    values = result.protocol.to_dict()
    scorers = values.pop("scorers")
    data = result.dataset
    first: dict[str, Any] = {
        "data": f"{board_title(result).rpartition(':')[0]}, SHA-256 {data.sha256}",
        "weights": f"SHA-256 {result.weights_sha256}" if result.weights_sha256 else None,
        **values,
    }
    if result.speed is not None:
        speed = result.speed
        each = f"encode {number(speed.encode_items_per_s)}, decode {number(speed.decode_items_per_s)} items a second"
        first["speed"] = f"{each}; {speed.device}, {speed.dtype}, batch {speed.batch}, threads {speed.threads}"
    parts = [
        ("Protocol", first),
        ("Definitions of the scores", scorers),
        ("Versions and date", dict(result.environment or {})),
    ]
    return "\n".join(folded(title, rows) for title, rows in parts)


def _credits(measured: Sequence[Measured]) -> str:
    """Every sample shown, with author, licence and change: several licences ask for it."""
    keys = [shown.key for part in measured if isinstance(part.samples, Gallery) for shown in part.samples.items]
    records = [record for key in dict.fromkeys(keys) if (record := _sample(key)) is not None]
    if not records:
        return ""
    items = "".join(f"<li>{escape(record.credit)}</li>" for record in records)
    lead = "Cut, resized or resampled, and shown with reconstructions."
    return f'<section><h2>Samples</h2><p>{lead}</p><ul class="credits">{items}</ul></section>'
