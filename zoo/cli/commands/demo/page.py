"""The demo as one HTML page that needs nothing else: pictures, style and script are inside."""

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

import torch
from PIL import Image
from torch import Tensor

from zoo import __version__, samples
from zoo.cli.commands.demo.chart import draw_chart
from zoo.cli.commands.demo.ladder import Ladder, Rung
from zoo.cli.commands.demo.words import axis_text, bits_text, bytes_text, dial_text, heading, lede, picture_name, rung_text
from zoo.cli.text import count, licence, tokens_by_vocabulary

__all__ = ["make_page"]

_LOSSLESS_UP_TO = 160  # pixels a side; larger pictures are stored as JPEG to keep the page small
_ENLARGED_BELOW = 128  # pixels a side; smaller pictures show their pixels as squares


def make_page(ladder: Ladder, *, options: str) -> str:
    """Write the page.

    Args:
        ladder: pictures and scores.
        options: of the decoder, in words; empty for none.
    """
    rungs = [
        {"label": rung_text(ladder, rung), "said": f"{rung_text(ladder, rung)} · {bits_text(rung)} · {_means_text(ladder, rung)}"}
        for rung in ladder.rungs
    ]
    template = files("zoo.cli.commands.demo").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(heading(ladder)),
        name=escape(ladder.entry.name),
        lede=escape(lede(ladder)),
        about=_about(ladder),
        facts=_facts(ladder),
        charts=_charts(ladder),
        dial=escape(dial_text(ladder)),
        cards="\n".join(_card(ladder, i) for i in range(len(ladder.paths))),
        count=f"{len(ladder.paths)} pictures" if len(ladder.paths) > 1 else "one picture",
        means=_means_table(ladder),
        notes=_notes(ladder, options),
        credits=_credits(ladder),
        rungs=json.dumps({"dial": dial_text(ladder), "rungs": rungs}, ensure_ascii=False).replace("<", "\\u003c"),
    )


def _about(ladder: Ladder) -> str:
    entry = ladder.entry
    height, width = ladder.originals.shape[2:]
    text = [escape(entry.summary)] if entry.summary else []
    text.append(f"The pictures are {width} × {height} px" + (", shown enlarged." if max(height, width) < _ENLARGED_BELOW else "."))
    if entry.name.endswith("_nano"):
        text.append(
            f"It is a nano model: {count(ladder.parameters)} parameters, small enough to be trained on the processor of a laptop "
            "by the recipe that ships with it. Look for what each step adds; expect colours and shapes, not detail."
        )
    return f'<p class="soft">{" ".join(text)}</p>'


def _facts(ladder: Ladder) -> str:
    entry, full = ladder.entry, ladder.rungs[-1]
    height, width = ladder.originals.shape[2:]
    facts = {
        "tokens x codes": tokens_by_vocabulary(entry),
        "at the full rate": f"{full.bits_per_pixel:.3g} bits per pixel, 1/{24 / full.bits_per_pixel:.3g} of plain RGB",
        "parameters": f"{ladder.parameters:,}",
        "picture": f"{width} × {height} px",
        "trained on": entry.trained_on,
        "licence of the weights": licence(entry),
    }
    return "\n".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items() if value)


def _charts(ladder: Ladder) -> str:
    """The first score and the last, against the rate; nothing for a tokenizer with one rate."""
    if len(ladder.rungs) == 1:
        return ""
    drawn = "\n".join(draw_chart(ladder, score) for score in (ladder.scores[0], ladder.scores[-1]))
    return f'<div class="charts">\n{drawn}\n</div>'


def _means_text(ladder: Ladder, rung: Rung) -> str:
    means = [(score.title, rung.mean(score)) for score in ladder.scores]
    return " · ".join(f"PSNR {value} dB" if title == "PSNR, dB" else f"{title} {value}" for title, value in means)


def _card(ladder: Ladder, i: int) -> str:
    """One picture: the original, and a table of all rates under it; the script adds the slider and the large reconstruction."""
    name = picture_name(ladder.paths[i])
    rungs = ladder.rungs
    heads = "".join(f'<th scope="col">{rung.count}</th>' for rung in rungs)
    cells = []
    for rung in rungs:
        said = f"{rung_text(ladder, rung)} · {rung.of(ladder.scores[0], i)} dB"
        alt = f"{name}, from {said}"
        cells.append(f'<td data-said="{escape(said)}"><img src="{_inline(rung.pictures[i])}" alt="{escape(alt)}"></td>')
    rows = [_row("bits per pixel", [f"{rung.bits_per_pixel:.2g}" for rung in rungs])]
    rows += [_row(score.title, [rung.of(score, i) for rung in rungs]) for score in ladder.scores]
    numbers = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<article class="card"><h3>{escape(name)}</h3>'
        f'<div class="pair"><figure><img src="{_inline(ladder.originals[i])}" alt="{escape(name)}, original">'
        "<figcaption>original</figcaption></figure></div>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)} at every rate"><table>'
        f'<thead><tr><th scope="row">{axis_text(ladder)}</th>{heads}</tr></thead>'
        f'<tbody><tr><th scope="row">picture</th>{"".join(cells)}</tr>{numbers}</tbody></table></div></article>'
    )


def _inline(picture: Tensor) -> str:
    """A uint8 picture `(3, h, w)` as a data address."""
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    lossless = max(image.size) <= _LOSSLESS_UP_TO
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _means_table(ladder: Ladder) -> str:
    titles = [axis_text(ladder), "bytes a picture", "bits per pixel", *[score.title for score in ladder.scores]]
    rows = [
        (str(rung.count), bytes_text(rung), f"{rung.bits_per_pixel:.3g}", *[rung.mean(score) for score in ladder.scores])
        for rung in ladder.rungs
    ]
    rows.append(("mean colour", "", "", *[score.text(ladder.mean_colour[score.scorer]) for score in ladder.scores]))
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = "".join(f"<tr>{_row(first, rest)}</tr>" for first, *rest in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _row(title: str, values: Sequence[str]) -> str:
    return f'<th scope="row">{escape(title)}</th>' + "".join(f"<td>{escape(value)}</td>" for value in values)


def _notes(ladder: Ladder, options: str) -> str:
    meanings = " ".join(f"<b>{escape(score.title)}</b>: {escape(score.meaning)}, {score.direction}." for score in ladder.scores)
    stored = "losslessly" if max(ladder.originals.shape[2:]) <= _LOSSLESS_UP_TO else "as JPEG of quality 95, after scoring"
    invents = ""
    if ladder.entry.stochastic_decode:
        invents = "The decoder draws what the tokens leave open, so a picture from few of them can score below its mean colour."
    with_options = f" Decoder options: {escape(options)}." if options else ""
    return f"""<section><h2>How to read the numbers</h2>
<p>{meanings} {escape(ladder.missing)} All are of 8-bit pictures at the size the tokenizer works at, with the originals cut and
resized to it. <b>Mean colour</b> is what filling each picture with its mean colour scores. {len(ladder.paths)} pictures show how a
tokenizer behaves; they do not rank it. {invents}</p>
<p>Pictures are stored in this page {stored}.{with_options} Encoding and decoding took {ladder.seconds:.1f} s. Made with zoo
{escape(__version__)}, torch {escape(torch.__version__)}.</p></section>"""


def _credits(ladder: Ladder) -> str:
    """Every picture of the sample pack with author, licence and change: several licences ask for it."""
    records = [samples.info(path) for path in ladder.paths if path.parent == samples.folder() / "images"]
    if not records:
        return ""
    items = "".join(f"<li>{_linked(record)}</li>" for record in records)
    return f"<section><h2>Pictures</h2><p>All were cut, resized and shown with reconstructions.</p><ul>{items}</ul></section>"


def _linked(record: samples.Sample) -> str:
    """The credit line with its licence as a link."""
    words, name = escape(record.credit), escape(samples.LICENSE_NAMES[record.license])
    if record.license_url is None:
        return words
    return words.replace(f", {record.license_url}", "").replace(name, f'<a href="{record.license_url}">{name}</a>', 1)
