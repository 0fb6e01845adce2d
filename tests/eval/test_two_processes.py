"""Two processes score what one scores: the metrics join, and `evaluate` takes stripes."""

import json
import math
import multiprocessing
import socket

import pytest
from PIL import Image

import zoo
from eval.reconstruction import main
from eval.results import load_result


def same(a, b, where=""):
    """Compare nested values, floats to 1e-9 (relative), NaN equal to NaN."""
    if isinstance(a, float) and isinstance(b, float):
        assert (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, rel=1e-9, abs=1e-12), where
    elif isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def in_two_processes(function, *arguments):
    """Run `function(rank, 2, *arguments)` in two processes at once."""
    fork = multiprocessing.get_context("fork")  # the packages are loaded already
    both = [fork.Process(target=function, args=(rank, 2, *arguments)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=120)
    stuck = [process for process in both if process.is_alive()]
    for process in stuck:
        process.kill()
    assert not stuck, "the processes wait for each other"
    assert [process.exitcode for process in both] == [0, 0]


def test_two_processes_equal_one(toys, tmp_path):
    out = tmp_path / "out.json"
    alone = {"stripes": toys.stripe_scores(list(range(9))), "run": toys.whole_run()}  # first: the packages are loaded once
    in_two_processes(toys.run_rank, str(tmp_path / "store"), str(out))
    joined = json.loads(out.read_text())
    assert alone["stripes"]["psnr_db"]["n"] == 8
    assert alone["stripes"]["psnr_db"]["failed"] == 1
    assert alone["stripes"]["items"][0] == list(range(9))
    same(joined, json.loads(json.dumps(alone)))


def test_the_command_under_torchrun_writes_one_result(toys, tmp_path, monkeypatch):
    for i in range(5):
        Image.fromarray(toys.waves(i, 20)).save(tmp_path / f"{i}.png")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["toy", "--data", str(tmp_path), "--scorers", "psnr_db,codebook_use", "--rates", "1,16", "--device", "cpu", "--out"]
    in_two_processes(toys.run_command, port, [*words, str(tmp_path / "two" / "r.json")])
    monkeypatch.setattr(zoo, "load", lambda name, **options: toys.BlockColours())
    main([*words, str(tmp_path / "one" / "r.json")])
    two, one = (load_result(tmp_path / name / "r.json") for name in ("two", "one"))
    assert [row.item for row in two.items] == [0, 1, 2, 3, 4] * 2
    same(two.to_dict()["points"], one.to_dict()["points"])
    assert two.items == one.items
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == ["r.items.csv", "r.json"]
