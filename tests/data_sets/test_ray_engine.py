"""What Ray is asked for, and what a worker does, without a cluster: `test_ray_cluster.py` has one."""

import multiprocessing
import pickle
import sys
import time
from pathlib import Path

import pytest
import torch

from zoo.cli import main
from zoo.data import Protocol, tokenize
from zoo.data.inputs import list_items
from zoo.data.plan import claimed, joined, led, make_plan, worker_rank
from zoo.data.ray_engine import RayPool, ShardWorker

SMALL = Protocol(batch_size=2, shard_items=5)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _threads():
    """A worker sets the threads of its process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def begun(toys, pictures, tmp_path):
    """Arguments of a worker for a folder that a head has begun, and the rows."""
    listing, out = list_items(pictures, kinds=("image",)), tmp_path / "by_worker"
    plan = make_plan(toys.grey(), listing, SMALL, threads=1)
    with claimed(out, plan, rank=0, world_size=1):
        pass
    probes = {item.path: item.path.stat().st_size for item in listing.items[:3]}
    words = {
        "load": toys.grey,
        "out": out,
        "protocol": SMALL,
        "plan": plan,
        "probes": probes,
        "tell": lambda *told: None,
        "start": lambda number: 1,
    }
    rows = [{"number": [n], "items": [pickle.dumps(SMALL.stretch(listing.items, n))]} for n in range(5)]
    return {**words, "readers": 1, "threads": 1, "verify": False}, rows


# -- what is asked for -------------------------------------------------------------------------------------------------------------


def test_a_worker_takes_one_processor_or_a_gpu_and_a_processor_for_each_reader():
    assert RayPool().needs == {"CPU": 1.0, "GPU": 0.0}
    assert RayPool(device="cuda", readers=3).needs == {"CPU": 3.0, "GPU": 1.0}
    assert RayPool(device="cuda", gpus=0.5, cpus=4).needs == {"CPU": 4.0, "GPU": 0.5}
    assert [RayPool(cpus=cpus).threads for cpus in (0.5, 1, 2.5, 8)] == [1, 1, 2, 8]


def test_the_room_of_a_cluster_is_counted_machine_by_machine():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 5.0}},
        {"Alive": True, "Resources": {}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert RayPool().room(nodes) == 8
    assert RayPool(cpus=2).room(nodes) == 3  # and not 4: no worker is on two machines
    assert RayPool(device="cuda").room(nodes) == 1
    assert RayPool(device="cuda", gpus=0.25, cpus=1).room(nodes) == 3
    assert RayPool(cpus=0.1).room(nodes[:1]) == 30


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"workers": 0}, "workers=0. Allowed: 1 or more"),
        ({"cpus": 0}, "cpus=0. Allowed: more than 0"),
        ({"cpus": float("nan")}, "cpus=nan"),
        ({"gpus": -1}, "gpus=-1. Allowed: 0 or more"),
        ({"gpus": 1}, "gpus=1 for device='cpu'. Use device='cuda'"),
        ({"device": "cuda:1"}, "device='cuda:1'. Allowed: cpu, cuda, mps; Ray chooses"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        RayPool(**wrong)


def test_mistakes_are_told_in_a_line(pictures, tmp_path, capsys, monkeypatch):
    words = ["tokenize", "kl_vae_nano", str(pictures), str(tmp_path / "out")]
    assert main([*words, "--workers", "2", "--gpus", "1"]) == 2
    assert "--workers, --gpus without Ray. Add --engine ray" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*words, "--engine", "ray"]) == 2
    assert "--engine ray in one of 2 ranks" in capsys.readouterr().err
    monkeypatch.delenv("WORLD_SIZE")
    assert main([*words, "--threads", "0"]) == 2
    assert "--threads 0. Allowed: 1 or more" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*words, "--engine", "ray"]) == 2
    told = capsys.readouterr().err
    assert "the package ray is not installed. Install it with what it needs: pip install 'tokenizer-zoo[ray]'" in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# -- a worker ----------------------------------------------------------------------------------------------------------------------


def test_workers_make_the_shards_of_the_local_engine_in_any_order(toys, pictures, tmp_path, begun):
    words, rows = begun
    told = []
    first, second = (ShardWorker(**{**words, "tell": lambda *what: told.append(what)}) for _ in range(2))
    results = [worker(row) for worker, row in zip((first, second, first, second, first), reversed(rows), strict=True)]
    assert [result["number"] for result in results] == [[4], [3], [2], [1], [0]]
    assert [result["fresh"] for result in results] == [[3], [5], [5], [5], [5]]
    assert {result["refusal"][0] for result in results} == {""}
    assert told  # at least the first batch of a worker
    assert all(number in range(5) and errors <= done <= 5 for number, done, errors in told)
    assert tokenize(toys.grey(), pictures, words["out"], SMALL).fresh == 0  # nothing was left to do but the index
    tokenize(toys.grey(), pictures, tmp_path / "local", SMALL)
    assert files(words["out"]) == files(tmp_path / "local")


def test_a_worker_computes_with_the_threads_that_the_plan_says(begun):
    words, rows = begun
    torch.set_num_threads(2)
    assert ShardWorker(**words)(rows[0])["refusal"] == [""]
    assert torch.get_num_threads() == 1
    assert "protocol.threads was 1 and is 2" in ShardWorker(**{**words, "threads": 2}).refusal


def test_a_shard_at_which_four_workers_died_is_left(begun):
    words, rows = begun
    starts = iter((4, 5))
    worker = ShardWorker(**{**words, "start": lambda number: next(starts)})
    assert worker(rows[0])["facts"] != [""]
    assert worker(rows[1]) == {"number": [1], "facts": [""], "fresh": [0], "refusal": [""]}


def test_a_worker_verifies_what_is_there(begun):
    words, rows = begun
    ShardWorker(**words)(rows[1])
    path = words["out"] / "shard-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    assert ShardWorker(**words)(rows[1])["fresh"] == [0]
    assert ShardWorker(**{**words, "verify": True})(rows[1])["fresh"] == [5]
    assert path.read_bytes() == whole


def test_a_worker_refuses_another_plan_or_folders_that_it_does_not_see(toys, begun, tmp_path):
    words, rows = begun

    def changed():
        tokenizer = toys.grey()
        with torch.no_grad():
            tokenizer.weight.add_(1)
        return tokenizer

    def refusal(**other):
        result = ShardWorker(**{**words, **other})(rows[0])
        assert result["facts"] == [""]
        return result["refusal"][0]

    assert "cannot begin" in refusal(load=changed)
    assert "begun with another plan: weights_sha256 was" in refusal(load=changed)
    assert f"there is no {tmp_path / 'elsewhere' / 'plan.json'}" in refusal(out=tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    first, size = next(iter(words["probes"].items()))
    assert f"{first} has {size:,} bytes and not 7" in refusal(probes={first: 7})
    assert "is not there. All machines must see the same folders" in refusal(probes={Path("/nowhere/1.png"): 7})
    assert not list(words["out"].glob("*shard*"))


# -- the folder --------------------------------------------------------------------------------------------------------------------


def test_a_head_waits_for_the_workers_of_a_run_that_was_killed_and_tidies_up_after_them(toys, pictures, begun):
    words, _ = begun
    out, plan = words["out"], words["plan"]

    def work():
        with joined(out, plan, rank=(rank := worker_rank())):
            (out / f".shard-000000.rank{rank}.part.tar").write_bytes(b"half")
            time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    while not list(out.glob(".shard-*")):
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(ValueError, match="other processes work in"), led(out, plan, patience=0.2):
        pytest.fail("it went on beside a worker")
    with pytest.raises(ValueError, match="workers of another engine work in"):
        tokenize(toys.grey(), pictures, out, SMALL)
    assert list(out.glob(".shard-*"))
    process.kill()
    process.join()
    with led(out, plan, patience=30):
        assert not list(out.glob(".*"))
        (out / f".shard-000001.rank{worker_rank()}.part.tar").write_bytes(b"of a worker that died in this run")
    assert [path.name for path in out.iterdir()] == ["plan.json"]


def test_no_rank_works_beside_a_head(toys, pictures, begun):
    words, _ = begun

    def work():
        with led(words["out"], words["plan"], patience=0):
            (words["out"] / ".sign").touch()
            time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    while not (words["out"] / ".sign").exists():
        assert process.is_alive()
        time.sleep(0.01)
    try:
        for rank in (0, 1, 7):
            with pytest.raises(ValueError, match=f"another process of rank {rank} works in"):
                tokenize(toys.grey(), pictures, words["out"], SMALL, rank=rank, world_size=8)
    finally:
        process.kill()
        process.join()
