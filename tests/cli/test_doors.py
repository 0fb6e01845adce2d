"""Commands that hand their words to other rooms give them all, unchanged, and return what they return."""

import importlib

import pytest

from zoo import samples
from zoo.cli import main


@pytest.mark.parametrize(
    ("words", "room", "given"),
    [
        (["train", "kl_vae_nano", "--trainer.max_steps", "5"], "recipes.train", ["kl_vae_nano", "--trainer.max_steps", "5"]),
        (["train", "test", "x.yaml"], "recipes.train", ["test", "x.yaml"]),
        (["eval", "kl_vae_nano", "--data", "samples"], "eval.reconstruction", ["kl_vae_nano", "--data", "samples"]),
        (["bench", "kl_vae_nano", "--json", "x"], "eval.bench", ["kl_vae_nano", "--json", "x"]),
        (["bench", "quantizers", "--help"], "eval.bench_quantizers", ["--help"]),
        (["data", "build", "images128", "out", "--size", "64"], "recipes.data.build.images128", ["out", "--size", "64"]),
        (["data", "build", "speech16k", "out", "--cache", "x"], "recipes.data.build.speech16k", ["out", "--cache", "x"]),
        (["data", "build", "video128", "out", "--release"], "recipes.data.build.video128", ["out", "--release"]),
    ],
)
def test_words_arrive(words, room, given, monkeypatch):
    seen = []
    monkeypatch.setattr(importlib.import_module(room), "main", lambda argv: seen.append(argv) or 7)
    assert main(words) == 7
    assert seen == [given]


def test_train_names_the_recipes_that_ship(capsys):
    assert main(["train"]) == 0
    out = capsys.readouterr().out
    assert "kl_vae_nano" in out
    assert "flextok_nano" in out


def test_data_refuses_other_verbs(capsys):
    assert main(["data", "destroy", "images128"]) == 2
    assert "no verb" in capsys.readouterr().err
    assert main(["data", "build"]) == 0
    out = capsys.readouterr().out
    assert "images128" in out
    assert "speech16k" in out
    assert "video128" in out


def test_samples(capsys):
    assert main(["samples"]) == 0
    assert capsys.readouterr().out == f"{samples.folder()}\n"
    assert main(["samples", "music"]) == 0
    assert capsys.readouterr().out.split() == [str(path) for path in samples.music()]
    assert main(["samples", "--credits"]) == 0
    out = capsys.readouterr().out
    for path in samples.images() + samples.speech() + samples.music() + samples.video():
        assert f"{samples.info(path).file}  {samples.credit(path)}\n" in out
