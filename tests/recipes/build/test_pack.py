"""The command that all packs share."""

import pytest

from recipes.data.build.pack import PackReport, run_command


def run(argv, tmp_path, *, failed=(), **more):
    """Run the command of a pack of three words; give its exit status and what the builder was asked for."""
    asked = {}

    def build(out, **options):
        asked.update(options, out=out)
        counts = {"shards": {"train-00000.tar": 3 - len(failed)}, "expected": {"train-00000.tar": 3}, "versions": {}}
        missing = dict.fromkeys(failed, "it is lost")
        return PackReport(noun="word", out=tmp_path, reused=(), changed=(), failed=missing, **counts)

    given = {"description": "Words.", "noun": "word", "download": "by hand", "release": ("b",)} | more
    return run_command(build, argv, name="words", **given), asked


def test_release_leaves_out_more_than_what_was_named(tmp_path):
    status, asked = run(["--without", "a, c", "--release", "--quiet"], tmp_path)
    assert status == 0
    assert asked == {"out": "words", "progress": False, "cache": None, "only": None, "without": ["a", "c", "b"], "overwrite": False}
    assert run(["--quiet"], tmp_path)[1]["without"] == []


def test_numbers_are_options_of_the_builder(tmp_path):
    asked = run(["x", "--size", "64", "--quiet"], tmp_path, numbers={"size": (128, "side"), "seed": (0, "draws")})[1]
    assert (asked["out"], asked["size"], asked["seed"]) == ("x", 64, 0)


def test_what_is_missing_is_said_and_told_to_scripts(tmp_path, capsys):
    assert run(["--quiet"], tmp_path, failed=["w2"])[0] == 1
    shown = capsys.readouterr().out
    assert "train-00000.tar" in shown
    assert "2   expected 3" in shown
    assert "1 words could not be made:\n  w2: it is lost\nINCOMPLETE" in shown
    with pytest.raises(SystemExit) as stop:
        run(["--help"], tmp_path)
    assert stop.value.code == 0
    assert "1 some words could not be made" in " ".join(capsys.readouterr().out.split())
