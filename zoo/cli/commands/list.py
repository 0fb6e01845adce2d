"""List the zoo.

Conditions are joined by "and". PATTERN takes shell wildcards; without any it matches a part of the name.
"""

import argparse
import ast
import difflib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from zoo.cli.text import columns, count, layout, licence, plural, rate, tokens_by_vocabulary, where_weights
from zoo.registry import MODALITIES, Entry, find, list_models

__all__ = ["MARKERS", "configure", "markdown", "run"]

MARKERS = ("<!-- zoo list --markdown: begin -->", "<!-- zoo list --markdown: end -->")
_WIDTH = 100


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="names, such as 'flextok*'")
    parser.add_argument("--modality", choices=MODALITIES)
    parser.add_argument("--family", help="such as flextok")
    parser.add_argument("--license-weights", metavar="SPDX", help="such as MIT")
    parser.add_argument("--causal", action="store_true", help="no output depends on later input")
    parser.add_argument("--embedded", action="store_true", help="weights ship with the package")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="any field of an entry, such as ordered=true or bits_per_pixel__lt=0.1 (also le gt ge ne in contains); repeatable",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all fields, for programs")
    form.add_argument("--names", action="store_true", help="names only, one a line")
    form.add_argument("--markdown", action="store_true", help="the table of README.md")
    parser.add_argument("--into", metavar="FILE", help="with --markdown: put the table between the markers of FILE")


def run(arguments: argparse.Namespace) -> int:
    if arguments.into and not arguments.markdown:
        raise ValueError("zoo list: --into goes with --markdown only. Add it, or redirect the output.")
    filters = _filters(arguments)
    pattern = arguments.pattern
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    names = set(list_models(pattern))
    entries = [entry for entry in find(**filters) if entry.name in names]
    if arguments.json:
        sys.stdout.write(json.dumps([{**entry.to_dict(), "embedded": entry.embedded} for entry in entries], indent=1) + "\n")
    elif arguments.names:
        sys.stdout.write("".join(f"{entry.name}\n" for entry in entries))
    elif arguments.into:
        _put_into(Path(arguments.into), markdown(entries))
    elif arguments.markdown:
        sys.stdout.write(markdown(entries))
    elif entries:
        width = max(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns) if sys.stdout.isatty() else _WIDTH
        sys.stdout.write(_table(entries, width))
    if not entries:
        sys.stderr.write(f"zoo list: nothing matches. `zoo list` shows all {len(find())}.\n")
        return 1
    return 0


def _filters(arguments: argparse.Namespace) -> dict[str, Any]:
    filters: dict[str, Any] = {}
    for name in ("modality", "family", "license_weights"):
        if getattr(arguments, name) is not None:
            filters[name] = getattr(arguments, name)
    for name in ("causal", "embedded"):
        if getattr(arguments, name):
            filters[name] = True
    _known(arguments.family, "family", {entry.family for entry in find()})
    for condition in arguments.where:
        key, sign, text = condition.partition("=")
        if not sign:
            raise ValueError(f"zoo list: --where {condition!r} has no '='. Write FIELD=VALUE, such as bits_per_pixel__lt=0.1.")
        filters[key] = _value(key, text)
    return filters


def _known(value: str | None, option: str, there: set[str]) -> None:
    if value is not None and value not in there:
        near = difflib.get_close_matches(value, there, n=1)
        guess = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"zoo list: no {option} {value!r}.{guess} There: {', '.join(sorted(there))}.")


def _value(key: str, text: str) -> Any:
    """Read a value: a number, true/false/none, a list with commas for `__in`, else text."""
    if key.endswith("__in"):
        return tuple(_value("", part.strip()) for part in text.split(","))
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _table(entries: list[Entry], width: int) -> str:
    """One line an entry, under a heading for each family; the columns of each modality have widths of their own."""
    blocks = [_block([entry for entry in entries if entry.modality == modality], width) for modality in MODALITIES]
    last = f"{plural(len(entries), 'tokenizer')}; the licence is that of the weights; `zoo show NAME` tells more."
    return "\n\n".join([*filter(None, blocks), last]) + "\n"


def _block(entries: list[Entry], width: int) -> str:
    """The entries of one modality."""
    if not entries:
        return ""
    header = ("name", "layout", "tokens x codes", "rate", "params", "licence", "weights")
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(f"{entry.modality}, {entry.family}", []).append(entry)
    rows = [
        (
            f" {entry.name}",
            layout(entry),
            tokens_by_vocabulary(entry),
            rate(entry),
            count(entry.parameters),
            licence(entry).replace("-or-later", "+"),
            where_weights(entry),
        )
        for group in groups.values()
        for entry in group
    ]
    top, *lines = columns(header, rows, width=width, flexible=(5, 2)).splitlines()
    text = [top]
    for title, group in groups.items():
        text += [title, *lines[: len(group)]]
        del lines[: len(group)]
    return "\n".join(text)


def markdown(entries: list[Entry]) -> str:
    """The table of the README: one row an entry, grouped by modality."""
    lines = ["| name | what it is | tokens x codes | rate | weights' licence | weights |", "| --- | --- | --- | --- | --- | --- |"]
    for modality in MODALITIES:
        for entry in entries:
            if entry.modality == modality:
                cells = (tokens_by_vocabulary(entry), rate(entry), licence(entry), where_weights(entry))
                lines.append(f"| `{entry.name}` | {entry.summary} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _put_into(path: Path, table: str) -> None:
    from zoo.whole_files import whole_file

    text = path.read_text(encoding="utf-8")
    begin, end = (text.find(marker) for marker in MARKERS)
    if not 0 <= begin < end:
        raise ValueError(f"zoo list: {path} has no lines {MARKERS[0]!r} and {MARKERS[1]!r}. Add them where the table goes.")
    with whole_file(path) as temporary:
        temporary.write_text(f"{text[:begin]}{MARKERS[0]}\n{table}{text[end:]}", encoding="utf-8")
