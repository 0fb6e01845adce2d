"""`--engine ray` on a cluster of two machines with one processor each: the files of one process, whoever is killed and when."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import pytest

from zoo import samples
from zoo.data import Protocol, TokenDataset, tokenize
from zoo.data.plan import led
from zoo.data.ray_engine import RayPool, tokenize_by_ray

pytestmark = pytest.mark.slow  # each run starts processes that import torch

SMALL = Protocol(batch_size=2, shard_items=5)
TWO = RayPool(workers=2)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(toys):
    """Two nodes, and a server for clients; this process is connected to it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv("RAY_AUTH_MODE", "token")  # Ray reads it when it is imported
        environment.setenv("RAY_AUTH_TOKEN", os.urandom(16).hex())
        ray = pytest.importorskip("ray", reason="Ray is of the extra `ray`, which `make test-all` installs")
        from ray.cluster_utils import Cluster

        port = _free_port()
        head = {"num_cpus": 1, "ray_client_server_port": port, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args=head)
        found.add_node(num_cpus=1)
        found.client_address = f"ray://127.0.0.1:{port}"
        ray.init(found.address, log_to_driver=False)
        ray.cloudpickle.register_pickle_by_value(toys)
        yield found
        ray.cloudpickle.unregister_pickle_by_value(toys)
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def local(toys, pictures, tmp_path):
    """The files that one process makes."""
    tokenize(toys.grey(), pictures, tmp_path / "local", SMALL)
    return files(tmp_path / "local")


@pytest.fixture
def photos(tmp_path):
    """Forty photos, and one file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        path = samples.images()[number % len(samples.images())]
        (folder / f"{number:02d}{path.suffix}").write_bytes(path.read_bytes())
    (folder / "99.png").write_bytes(b"no picture")
    return folder


def zoo_tokenize(source, out, *more, **environment):
    """The command in a process of its own."""
    words = ["tokenize", "kl_vae_nano", str(source), str(out), "--size", "32", "--batch-size", "2", "--shard-items", "2"]
    program = [sys.executable, "-c", "import sys; from zoo.cli import main; sys.exit(main(sys.argv[1:]))"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen([*program, *words, *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("shards", ["webdataset", "parquet"])
def test_two_workers_give_the_files_of_one_process(cluster, toys, pictures, tmp_path, shards):
    protocol, told = Protocol(batch_size=2, shard_items=5, shards=shards), []
    load = partial(toys.loaded, tmp_path / "processes", 0.3)
    done = tokenize_by_ray(load, pictures, tmp_path / "ray", protocol, pool=TWO, report=told.append)
    assert (done.complete, done.items, done.tokenized, done.errors, done.shards, done.fresh) == (True, 23, 22, 1, 5, 23)
    assert (told[-1].done, told[-1].errors, told[-1].total, told[-1].fresh) == (23, 1, 23, 23)
    assert any(progress.done % 5 > 0 for progress in told[:-1]), "progress inside of a shard is not told"
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert len(list((tmp_path / "processes").iterdir())) == 3  # the head and two workers, once each
    tokenize(toys.grey(), pictures, tmp_path / "local", protocol)
    assert files(tmp_path / "ray") == files(tmp_path / "local")
    again = tokenize_by_ray(load, pictures, tmp_path / "ray", protocol, pool=TWO)
    assert (again.items, again.tokenized, again.errors, again.fresh) == (23, 22, 1, 0)
    assert len(list(TokenDataset(tmp_path / "ray", verify=True))) == 22


@pytest.mark.parametrize(("who", "processes"), [("worker", 4), ("head", 6)])
def test_whoever_is_killed_is_started_anew_and_nothing_of_it_is_left(cluster, toys, pictures, tmp_path, local, who, processes):
    notes, killed = tmp_path / "processes", []

    def kill(progress):
        by_age = sorted(notes.iterdir(), key=lambda path: path.stat().st_mtime)  # the head loads the tokenizer first
        if not killed and 0 < progress.done < 20 and list((tmp_path / "ray").glob(".shard-*")):
            killed.append(int(by_age[0 if who == "head" else -1].name))
            os.kill(killed[0], signal.SIGKILL)

    done = tokenize_by_ray(partial(toys.loaded, notes, 0.5), pictures, tmp_path / "ray", SMALL, pool=TWO, report=kill)
    assert killed
    assert len(list(notes.iterdir())) == processes  # with a head go its workers
    assert (done.items, done.tokenized, done.errors) == (23, 22, 1)
    assert files(tmp_path / "ray") == local


def test_a_machine_that_is_lost_takes_no_shard_with_it(cluster, toys, pictures, tmp_path, local):
    lost = []

    def lose(progress):
        if not lost and 0 < progress.done < 20:
            lost.append(cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False))

    try:
        load = partial(toys.loaded, tmp_path / "processes", 0.5)
        tokenize_by_ray(load, pictures, tmp_path / "ray", SMALL, pool=TWO, report=lose)
    finally:
        cluster.add_node(num_cpus=1)
    assert lost
    assert files(tmp_path / "ray") == local


def test_a_picture_that_kills_every_worker_ends_the_run_and_says_so(cluster, toys, tmp_path, picture):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, grey in enumerate((10, 20, 30, 255)):
        (folder / f"{number}.png").write_bytes(picture(grey))
    load = partial(toys.loaded, tmp_path / "processes", deadly=True)
    with pytest.raises(RuntimeError, match=r"4 workers died at shard 1 \(2.png, 3.png, ...\)"):
        tokenize_by_ray(load, folder, tmp_path / "out", Protocol(shard_items=2), pool=RayPool(workers=1))
    assert (tmp_path / "out" / "shard-000000.json").exists()
    assert not (tmp_path / "out" / "index.json").exists()


def test_what_the_local_engine_refuses_is_refused_with_the_same_words(cluster, toys, pictures, tmp_path, local):
    load = partial(toys.loaded, tmp_path / "processes")
    with pytest.raises(ValueError, match=r"begun with another plan: protocol.batch_size was 2 and is 3"):
        tokenize_by_ray(load, pictures, tmp_path / "local", Protocol(batch_size=3, shard_items=5))
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        tokenize_by_ray(load, tmp_path / "nowhere", tmp_path / "x", SMALL)
    with pytest.raises(ValueError, match="lies in the input"):
        tokenize_by_ray(load, pictures, pictures / "out", SMALL)
    assert files(tmp_path / "local") == local


@pytest.mark.parametrize("door", ["the cluster itself", "client"])
def test_the_command_killed_and_started_again_ends_with_the_same_files(cluster, photos, tmp_path, door):
    words = ("--engine", "ray", "--workers", "2", "--readers", "1")
    address = {"RAY_ADDRESS": cluster.client_address} if door == "client" else {}
    words += () if door == "client" else ("--address", cluster.address)
    ended(zoo_tokenize(photos, tmp_path / "local"))
    out = tmp_path / "ray"
    process, end = zoo_tokenize(photos, out, *words, **address), time.monotonic() + 300
    while time.monotonic() < end and not list(out.glob("shard-*.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.kill()  # -9
    process.wait()
    assert not (out / "index.json").exists()
    there = len(list(out.glob("shard-*.json")))
    assert 0 < there < 21
    told = ended(zoo_tokenize(photos, out, *words, **address))
    assert told.startswith(f"41 items in, 40 tokenized and 1 error: 21 shards in {out}")
    assert files(out) == files(tmp_path / "local")


def test_a_run_of_one_machine_begun_by_ray_and_ended_without_it(photos, tmp_path, monkeypatch, capsys):
    """No cluster is given: one is started for the run; it takes what the machine has, and no more."""
    pytest.importorskip("ray", reason="Ray is of the extra `ray`, which `make test-all` installs")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.urandom(16).hex())
    ended(zoo_tokenize(photos, tmp_path / "local"))
    process, out, end = zoo_tokenize(photos, tmp_path / "ray", "--engine", "ray"), tmp_path / "ray", time.monotonic() + 300
    while time.monotonic() < end and not list(out.glob("shard-*.json")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (out / "index.json").exists()
    with led(out, json.loads((out / "plan.json").read_text()), patience=120):
        pass  # the processes of that cluster end with the one that started it, but not at once
    ended(zoo_tokenize(photos, out))
    assert files(out) == files(tmp_path / "local")
    many = zoo_tokenize(photos, tmp_path / "many", "--engine", "ray", "--workers", "100", "--cpus", "2")
    assert "100 workers of 2 CPU each, but there is room for" in many.communicate(timeout=300)[1]
    assert many.returncode == 2
