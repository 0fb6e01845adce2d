"""Tables of the pages: heads that the script sorts by, cells that become a card on a phone, and tables of names and values."""

from collections.abc import Mapping
from html import escape
from typing import Any

from eval.leaderboard.words import DASH

__all__ = ["body_cell", "folded", "head_cell", "plain_value", "score_head", "scrolling"]


def head_cell(
    key: str, title: str, sort: str, way: str, *, kind: str = "", small: str = "", score: str = "", sorted_now: bool = False
) -> str:
    """Write a head that the script sorts by.

    Args:
        key: of the column, a class of its cells.
        title: of the column.
        sort: "number" or "text".
        way: "ascending" or "descending", the first time.
        kind: more classes.
        small: unit, and which way is better.
        score: name of the score, for score columns.
        sorted_now: rows are in this order.
    """
    small = f" <small>{escape(small)}</small>" if small else ""
    extra = f' data-score="{escape(score)}"' if score else ""
    now = "ascending" if sorted_now else "none"
    names = f"{key} {kind}".strip()
    return (
        f'<th role="columnheader" scope="col" class="{names}" aria-sort="{now}" data-key="{key}"{extra} '
        f'data-sort="{sort}" data-first="{way}">{escape(title)}{small}</th>'
    )


def body_cell(key: str, label: str, html: str, *, value: object = None, kind: str = "", score: str = "") -> str:
    """Write a cell under such a head: `label` stands above it on a phone, `value` is what it is sorted by (None: last)."""
    data = "" if value is None else f' data-value="{escape(str(value))}"'
    extra = f' data-score="{escape(score)}"' if score else ""
    names = " ".join(filter(None, (key, kind, "none" if html == DASH else "")))
    return f'<td role="cell" class="{names}" data-label="{escape(label)}"{extra}{data}>{html}</td>'


def score_head(name: str, definition: Mapping[str, Any], *, kind: str = "") -> str:
    """Write a head of a table that is not sorted: name, unit, which way is better."""
    unit, better = str(definition.get("unit", "1")), definition.get("better")
    small = ", ".join(filter(None, ("" if unit == "1" else unit, better and f"{better} is better")))
    below = f"<br><small>{escape(small)}</small>" if small else ""
    kind = f' class="{kind}"' if kind else ""
    return f'<th scope="col"{kind}>{escape(name)}{below}</th>'


def scrolling(label: str, inner: str) -> str:
    """Put the inside of a table into a region that scrolls to the side, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table class="plain">{inner}</table></div>'


def folded(title: str, rows: Mapping[str, Any]) -> str:
    """Names and values behind a title that opens; what is None or empty is left out."""
    body = "".join(
        f'<tr><th scope="row">{escape(str(key))}</th><td>{escape(plain_value(value))}</td></tr>'
        for key, value in rows.items()
        if value not in (None, {}, "")
    )
    return f'<details><summary>{escape(title)}</summary><table class="protocol"><tbody>{body}</tbody></table></details>'


def plain_value(value: Any) -> str:
    """A value of a result file in words."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {plain_value(part)}" for key, part in value.items())
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
