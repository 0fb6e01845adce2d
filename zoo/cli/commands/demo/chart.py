"""How a score grows with the rate, as a small picture of lines for the page."""

from html import escape

import torch
from torch import Tensor

from zoo.cli.commands.demo.ladder import Ladder, Score
from zoo.cli.commands.demo.words import axis_text

__all__ = ["draw_chart"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 170, 34, 12, 10, 24


def draw_chart(ladder: Ladder, score: Score) -> str:
    """Draw the mean as a line, single pictures as faint lines and the mean colour as a dashed one; SVG inside a `div`."""
    values = torch.stack([rung.scores[score.scorer] for rung in ladder.rungs])
    floor = ladder.mean_colour[score.scorer]
    low, high = min(float(values.min()), floor), max(float(values.max()), floor)
    span = (high - low) or 1.0
    xs = [_LEFT + i * (_WIDTH - _LEFT - _RIGHT) / (len(values) - 1) for i in range(len(values))]
    mean = values.mean(1)

    def y(value: float) -> float:
        return _TOP + (high - value) / span * (_HEIGHT - _TOP - _BOTTOM)

    def across(value: float, kind: str) -> str:
        return f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'

    def line(row: Tensor, kind: str) -> str:
        points = " ".join(f"{x:.1f},{y(float(v)):.1f}" for x, v in zip(xs, row, strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    parts = [across(low, "grid"), across(high, "grid"), across(floor, "floor")]
    parts += [f'<text x="{_LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>' for v in (low, high)]
    places = " ".join(f"{x:.1f}" for x in xs)
    parts.append(f'<line class="mark" data-x="{places}" x1="{xs[-1]:.1f}" x2="{xs[-1]:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    parts += [line(row, "one") for row in values.T]
    parts.append(line(mean, "mean"))
    for x, v, rung in zip(xs, mean, ladder.rungs, strict=True):
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y(float(v)):.1f}" r="3.5"/>')
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{rung.count}</text>')
    said = ", ".join(f"{rung.count}: {rung.mean(score)}" for rung in ladder.rungs)
    legend = f"Line: mean; {score.direction}. Faint: single pictures. Dashed: each picture filled with its mean colour."
    return (
        f'<div class="chart"><h3>{escape(score.title)} by {axis_text(ladder)}</h3>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(score.title)}, mean by {axis_text(ladder)}. {said}">'
        f'{"".join(parts)}</svg><p class="soft"><small>{legend}</small></p></div>'
    )
