"""The README is true: its Python runs and prints what it says, its commands work, its table is that of the catalog."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from zoo import samples
from zoo.cli import main
from zoo.cli.commands.list import MARKERS

ROOT = Path(__file__).parents[1]
ROOMS = ("zoo", "zoo/quantizers", "zoo/image", "zoo/audio", "zoo/video", "zoo/generators", "recipes", "eval", "tests")
PAGES = ("README.md", *(f"{room}/README.md" for room in ROOMS))


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of the code blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def python_blocks(page: str) -> list[tuple[str, str]]:
    """Python of a page with what it prints: the text block behind it, or nothing."""
    found = blocks(page)
    followed = [*found[1:], ("", "")][: len(found)]
    return [
        (code, text if kind == "text" else "")
        for (language, code), (kind, text) in zip(found, followed, strict=True)
        if language == "python"
    ]


TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks("README.md")
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


@pytest.mark.parametrize("page", PAGES)
def test_python(page, place, monkeypatch):
    """A page is read from top to bottom: later blocks use the names of earlier ones."""
    monkeypatch.chdir(place)
    names = {"__name__": "page"}
    with torch.random.fork_rng():
        for code, expected in python_blocks(page):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, page, "exec"), names)
            assert printed.getvalue() == expected, code


def test_every_room_has_a_page_and_its_table_names_what_is_there():
    for room in ROOMS:
        text = (ROOT / room / "README.md").read_text(encoding="utf-8")
        first = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
        places = [name for cell in first for name in re.findall(r"`([a-z_*.0-9/]+(?:/|\.py))`", cell)]
        assert places or room.startswith("zoo/"), room
        missing = [name for name in places if not list((ROOT / room).glob(name.rstrip("/")))]
        assert missing == [], room


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
