"""Outputs that are whole or not there: work under a temporary name, which takes its place at the end. Imports no torch."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole_file", "whole_folder"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that takes its place at the end; nothing stays when the work was stopped or failed.

    The temporary path has the same name, in a hidden folder, so that formats chosen by the ending are the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path) as folder:
        temporary = folder / path.name
        yield temporary
        os.replace(temporary, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder whose files move into `path` together at the end; other files there are left alone."""
    path.mkdir(parents=True, exist_ok=True)
    with _beside(path / "x") as folder:
        yield folder
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            target = path / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=".zoo-", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
