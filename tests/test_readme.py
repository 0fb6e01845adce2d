"""The README is true: its Python runs and prints what it says, its commands work, its table is that of the catalog."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from zoo import samples
from zoo.cli import main
from zoo.cli.commands.list import MARKERS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
PYTHON = [
    (code, BLOCKS[i + 1][1] if BLOCKS[i + 1 : i + 2] and BLOCKS[i + 1][0] == "text" else None)
    for i, (language, code) in enumerate(BLOCKS)
    if language == "python"
]
LINES = [line.partition("#")[0].strip() for language, code in BLOCKS if language == "bash" for line in code.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("zoo ")]
# These need an hour and a network; their own tests run them small.
NOT_RUN = ("zoo data build images128", "zoo train kl_vae_nano")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a reader's, with `photos/`."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "photos").mkdir()
    for path in samples.images()[:2]:
        shutil.copy(path, folder / "photos")
    return folder


@pytest.fixture(scope="module")
def names():
    """Names that earlier blocks define: the page is read from top to bottom."""
    return {"__name__": "readme"}


@pytest.mark.parametrize(("code", "expected"), PYTHON, ids=[f"block{i}" for i in range(len(PYTHON))])
def test_python(code, expected, place, names, monkeypatch):
    monkeypatch.chdir(place)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), names)
    assert printed.getvalue() == (expected or "")


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith(NOT_RUN)])
def test_command(line, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("line", NOT_RUN)
def test_commands_that_are_not_run_are_there_and_take_these_words(line, capsys):
    assert any(command.startswith(line) for command in COMMANDS)
    words = shlex.split(line)[1:]
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage:")
    assert "images128" in out if words[0] == "data" else "--trainer.max_steps" in out


def test_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = [line.split()[1] for line in LINES if line.startswith("make ")]
    assert named == ["demo", "test"]
    assert set(named) <= set(targets)


def test_the_table_is_the_catalogs(capsys):
    table = TEXT.partition(MARKERS[0] + "\n")[2].partition(MARKERS[1])[0]
    assert main(["list", "--markdown"]) == 0
    assert table == capsys.readouterr().out, "run `make readme`"


def test_every_place_of_the_map_exists():
    places = re.findall(r"`((?:zoo|recipes|eval|tests)/[^`<]*)", TEXT.partition("## Where things are")[2])
    missing = [place for place in places if not (ROOT / place).exists() and place != "eval/results/"]
    assert len(places) > 15
    assert missing == []
