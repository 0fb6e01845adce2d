"""`zoo tokenize`: what a user types, reads and gets."""

import json

import pytest
import torch

import zoo
from zoo.cli import main
from zoo.cli.commands.tokenize import line
from zoo.data import Progress, TokenDataset


@pytest.fixture
def photos(tmp_path, picture):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(number * 90, (40, 32)))
    (folder / "broken.jpg").write_bytes(b"")
    return folder


def test_a_folder_of_photos_to_shards_and_back(photos, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["tokenize", "kl_vae_nano", str(photos), str(out), "--size", "32", "--shard-items", "2", "--batch-size", "2"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"4 items in, 3 tokenized and 1 error: 2 shards in {out}")
    assert f"the errors are listed in {out / 'errors.jsonl'}" in told
    assert [shard["file"] for shard in json.loads((out / "index.json").read_text())["shards"]] == [
        "shard-000000.tar", "shard-000001.tar",
    ]  # fmt: skip
    tokenizer = zoo.load("kl_vae_nano")
    first = next(iter(TokenDataset(out)))
    with torch.inference_mode():
        expected = tokenizer.encode(tokenizer.preprocess(photos / first.record["item"], size=32))
        assert torch.allclose(first.tokens.data, expected.data, atol=1e-4)
        assert tokenizer.decode(first.tokens).shape == (1, 3, 32, 32)
    assert main(words) == 0
    assert "items/s" not in capsys.readouterr().out  # nothing was left to do
    before = torch.get_num_threads()
    try:
        assert main([*words, "--threads", str(before + 1)]) == 2
    finally:
        torch.set_num_threads(before)
    assert f"protocol.threads was {before} and is {before + 1}" in capsys.readouterr().err
    assert main([*words, "--no-crop"]) == 2
    assert "protocol.crop was True and is False" in capsys.readouterr().err


def test_mistakes_are_told_in_a_line(tmp_path, capsys, monkeypatch):
    assert main(["tokenize", "kl_vae_nano", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "no file or folder" in capsys.readouterr().err
    assert main(["tokenize", "kl_vae_nano", str(tmp_path), str(tmp_path / "out"), "--readers", "0"]) == 2
    assert "readers=0. Allowed: 1 or more." in capsys.readouterr().err
    monkeypatch.setenv("RANK", "first")
    assert main(["tokenize", "kl_vae_nano", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "RANK is 'first'" in capsys.readouterr().err


def test_a_line_of_progress_says_rate_and_time_left():
    half = Progress(done=600, errors=1, total=4200, fresh=100)
    assert line(half, 50.0) == "600 of 4,200 items, 1 error, 2 items/s, 0:30:00 left"
    assert line(Progress(done=0, errors=0, total=10, fresh=0), 1.0) == "0 of 10 items, 0 errors"


def test_a_size_that_is_none(photos, tmp_path, capsys):
    assert main(["tokenize", "kl_vae_nano", str(photos), str(tmp_path / "out"), "--size", "big"]) != 0
    assert "zoo tokenize: --size big. Write one side such as 256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
