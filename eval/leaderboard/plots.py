"""A score over bits or speed as inline SVG: a line for each tokenizer or codec. No script is needed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape

from eval.leaderboard.boards import CODEC, Board, Column, Row
from eval.leaderboard.words import bits_unit, interval_text, number, score_text

__all__ = ["Line", "Spot", "draw_plot", "rate_lines", "speed_lines"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 520, 330, 54, 16, 14, 44
_COLOURS = 8  # classes c0..c7 of the style
_SHAPES = 3


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One point: its interval, or its least and largest value, is drawn upright where it has one."""

    x: float
    y: float
    ci95: tuple[float, float] | None = None
    label: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """The points of one tokenizer; those of a classical codec are squares on a dashed line.

    Attributes:
        number: chooses colour and shape, the same in all plots of a board.
    """

    name: str
    spots: Sequence[Spot]
    number: int
    classical: bool = False


# -- what is drawn ---------------------------------------------------------------------------------------------------


def rate_lines(board: Board, column: Column) -> list[Line]:
    """Give the score over the bits of every row that has both."""
    unit = bits_unit(board.modality)
    return _lines(board, column, lambda row: row.bits, unit)


def speed_lines(board: Board, column: Column) -> list[Line]:
    """Give the score over items encoded and decoded a second, for the rates that were timed (`Row.round_trips`)."""
    return _lines(board, column, lambda row: row.round_trips, "items a second")


def _lines(board: Board, column: Column, place: Callable[[Row], float | None], unit: str) -> list[Line]:
    spots: dict[str, list[Spot]] = {}
    classical = {}
    for row in board.rows:
        classical[row.name] = row.facts.kind == CODEC
        here = spots.setdefault(row.name, [])
        score, x = column.of(row), place(row)
        if score is None or score.mean is None or x is None:
            continue
        interval = f" {interval_text(score.ci95)}" if score.ci95 else ""
        label = f"{row.label}: {score_text(score)}{interval} at {number(x)} {unit}"
        here.append(Spot(x=x, y=score.mean, ci95=score.ci95, label=label))
    return [Line(name=name, spots=spots[name], number=i, classical=classical[name]) for i, name in enumerate(spots)]


# -- drawing ---------------------------------------------------------------------------------------------------------


def draw_plot(
    lines: Sequence[Line],
    *,
    title: str,
    x_title: str,
    note: str = "",
    attributes: str = "",
    levels: Sequence[tuple[str, float]] = (),
) -> str:
    """Draw lines over a logarithmic axis; SVG inside a `figure`, with a legend.

    Args:
        lines: those without points with x > 0 are left out.
        title: above the plot.
        x_title: below the axis.
        note: a sentence under the legend.
        attributes: of the figure, HTML.
        levels: name and height of lines across the plot, for what has no place on the axis.

    Returns:
        HTML; empty where there is nothing to draw.
    """
    kept = [replace(line, spots=sorted((s for s in line.spots if s.x > 0), key=lambda s: s.x)) for line in lines]
    kept = [line for line in kept if line.spots]
    if not kept:
        return ""
    x, y, parts = _axes([spot for line in kept for spot in line.spots], [height for _, height in levels])
    for name, height in levels:
        at = y(height)
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT - 4}" y="{at - 5:.1f}" text-anchor="end">{escape(name)}: {number(height)}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>')
    parts += [_drawn(line, x, y) for line in kept]
    legend = "".join(
        f'<li class="{_colour(line)}" data-name="{escape(line.name)}">'
        f'<svg viewBox="0 0 14 14" aria-hidden="true">{_mark(7, 7, line)}</svg>{escape(line.name)}</li>'
        for line in kept
    )
    said = "; ".join(f"{line.name}: " + ", ".join(f"{number(s.y)} at {number(s.x)}" for s in line.spots) for line in kept)
    said = "; ".join([said, *(f"{name}: {number(height)}" for name, height in levels)])
    foot = f'<p class="soft note">{escape(note)}</p>' if note else ""
    return (
        f'<figure class="plot"{attributes}><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{title}, by {x_title}. {said}")}">'
        f'{"".join(parts)}</svg><ul class="legend">{legend}</ul>{foot}</figure>'
    )


Axis = Callable[[float], float]


def _axes(spots: Sequence[Spot], levels: Sequence[float]) -> tuple[Axis, Axis, list[str]]:
    """Give the places of values, and the grid with its numbers."""
    left, right = (math.log10(end(spot.x for spot in spots)) for end in (min, max))
    margin = 0.05 * ((right - left) or 1)
    left, right = left - margin, right + margin
    heights = [value for spot in spots for value in (spot.y, *(spot.ci95 or ()))] + list(levels)
    step = _step(min(heights), max(heights))
    low, high = math.floor(min(heights) / step + 1e-9), math.ceil(max(heights) / step - 1e-9)
    if low == high:
        low, high = low - 1, high + 1

    def x(value: float) -> float:
        return _LEFT + (math.log10(value) - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - value / step) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for value in (k * step for k in range(low, high + 1)):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>')
    for value in _ticks(left, right):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_short(value)}</text>')
    return x, y, parts


def _drawn(line: Line, x: Axis, y: Axis) -> str:
    path = " ".join(f"{x(spot.x):.1f},{y(spot.y):.1f}" for spot in line.spots)
    parts = [f'<polyline class="line{" classical" * line.classical}" points="{path}"/>'] if len(line.spots) > 1 else []
    for spot in line.spots:
        if spot.ci95 is not None:
            low, high = (y(value) for value in spot.ci95)
            parts.append(f'<line class="bar" x1="{x(spot.x):.1f}" x2="{x(spot.x):.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f"<g>{_mark(x(spot.x), y(spot.y), line)}<title>{escape(spot.label)}</title></g>")
    return f'<g class="{_colour(line)}" data-name="{escape(line.name)}">{"".join(parts)}</g>'


def _colour(line: Line) -> str:
    return f"c{line.number % _COLOURS}"


def _mark(x: float, y: float, line: Line) -> str:
    """A square for codecs; for tokenizers a circle, a diamond or a triangle, so that more than eight can be told apart."""
    if line.classical:
        return f'<rect class="mark" x="{x - 3.4:.1f}" y="{y - 3.4:.1f}" width="6.8" height="6.8"/>'
    shape = line.number // _COLOURS % _SHAPES
    if shape == 0:
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    corners = [(0, -5), (5, 0), (0, 5), (-5, 0)] if shape == 1 else [(0, -5), (4.6, 3.4), (-4.6, 3.4)]
    return f'<polygon class="mark" points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def _step(low: float, high: float) -> float:
    """A round step that gives four to eight lines."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 5))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= span / 5 * 0.999)


def _ticks(left: float, right: float) -> list[float]:
    """Round values between two exponents: 1, 2, 5 for short axes, powers of ten for long ones."""
    wanted = (1, 2, 5) if right - left < 2.5 else (1,)
    tens = range(math.floor(left), math.ceil(right) + 1)
    return [m * 10.0**e for e in tens for m in wanted if left <= math.log10(m * 10.0**e) <= right]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
