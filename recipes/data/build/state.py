"""What a build notes in `build.json` beside its shards, so that a run that was stopped goes on where it was."""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.data.build import shardfile
from recipes.data.build.packages import Unpacked

__all__ = ["finished", "note_packages", "note_shard", "progress_bar", "read_state", "write_state"]

_log = logging.getLogger(__name__)
_STATE = "build.json"


def read_state(out: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Return what an earlier run with the same settings noted; refuse a folder that holds anything else.

    `overwrite` removes the shards of a run with other settings, and those only.

    Raises:
        ValueError: `out` holds files of somebody else, or a build with other settings and `overwrite` is False.
    """
    fresh: dict[str, Any] = {"settings": settings, "packages": {}, "shards": {}}
    path = out / _STATE
    if not path.exists():
        if out.exists() and [found for found in out.iterdir() if found.suffix != ".part"]:
            raise ValueError(
                f"build: out={str(out)!r} holds files that this command did not write. Name an empty or new folder."
            )
        return fresh
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    found = state.get("settings", {})
    different = sorted(name for name in {*settings, *found} if found.get(name) != settings.get(name))
    if different and not overwrite:
        listed = "; ".join(f"{name}: {found.get(name)} there, {settings.get(name)} asked for" for name in different)
        raise ValueError(
            f"build: out={str(out)!r} holds a build with other settings ({listed}).\n"
            "Name another folder, or replace that build (overwrite=True, --overwrite)."
        )
    if different:
        for name in state.get("shards", {}):
            (out / Path(name).name).unlink(missing_ok=True)
        return fresh
    return state


def write_state(out: Path, state: dict[str, Any]) -> None:
    """Write `build.json`, whole or not at all."""
    shardfile.write_atomic(out / _STATE, (json.dumps(state, indent=1, sort_keys=True) + "\n").encode("utf-8"))


def note_packages(
    out: Path, state: dict[str, Any], done: list[str], unpacked: Mapping[str, Unpacked], **more: str
) -> list[str]:
    """Note the packages that shards are made from, making `out` if needed, and `more` beside them.

    Returns:
        The shards of `done` that stay: none of them if an earlier run had other packages.
    """
    used = {name: {"version": item.version, "sha256": item.sha256} for name, item in unpacked.items()}
    if state["packages"] not in ({}, used):
        _log.warning("%s was begun with other package versions: all its shards are built again", out)
        done, state["shards"] = [], {}
    state |= {"packages": used, **more}
    out.mkdir(parents=True, exist_ok=True)
    write_state(out, state)
    return done


def note_shard(
    out: Path, state: dict[str, Any], name: str, *, samples: int, failed: dict[str, str], changed: list[str]
) -> None:
    """Note a shard that is whole: its checksum, its samples, and what is missing from it or may differ, by key."""
    state["shards"][name] = {
        "sha256": hashlib.sha256((out / name).read_bytes()).hexdigest(),
        "samples": samples,
        "failed": failed,
        "changed": changed,
    }
    write_state(out, state)


def finished(out: Path, state: dict[str, Any]) -> list[str]:
    """Return the shards on disk that are exactly as an earlier run wrote them."""
    return [
        name
        for name, noted in state["shards"].items()
        if (out / name).is_file() and hashlib.sha256((out / name).read_bytes()).hexdigest() == noted["sha256"]
    ]


@contextmanager
def progress_bar(what: str, total: int, enabled: bool) -> Iterator[Callable[[], None]]:
    """Give a function to be called once a sample; a bar is drawn if asked for, on a terminal, with rich installed."""
    bar = None
    if enabled and sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            bar = Progress(
                TextColumn(what),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
        except ImportError:
            _log.info("rich is not installed: no progress bar")
    if bar is None:
        yield lambda: None
        return
    with bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
