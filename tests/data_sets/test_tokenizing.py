"""Whole data sets: every item is in a shard or in the errors, and a run that was killed ends with the same bytes."""

import io
import json
import multiprocessing
import tarfile
import time

import numpy as np
import pytest
import soundfile
import torch

from zoo.checkpoint import tensors_sha256
from zoo.data import Protocol, TokenDataset, tokenize
from zoo.data.plan import ShardPlace

SMALL = Protocol(batch_size=2, shard_items=5)


def files(folder):
    """Contents of every file, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def program(toys, source, out, *, seconds=0.0, rank=0, world_size=1, shards="webdataset"):
    """Another process that tokenizes: forked, so that it begins at once."""

    def work():
        torch.set_num_threads(1)
        protocol = Protocol(batch_size=2, shard_items=5, shards=shards)
        tokenize(toys.grey(seconds), source, out, protocol, rank=rank, world_size=world_size)

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    return process


def ended(process):
    process.join(120)
    return process.exitcode


def test_every_picture_is_in_a_shard_or_in_the_errors(toys, pictures, tmp_path, code_of):
    out = tmp_path / "out"
    told = []
    done = tokenize(toys.grey(), pictures, out, SMALL, report=told.append)
    assert (done.items, done.tokenized, done.errors, done.shards, done.passed_over) == (23, 22, 1, 5, 1)
    assert done.complete
    assert (told[-1].done, told[-1].errors, told[-1].total, told[-1].fresh) == (23, 1, 23, 23)

    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [(e["number"], e["item"]) for e in errors] == [(7, "part0/007.png")]
    assert "not a readable picture" in errors[0]["error"]
    assert str(pictures) not in errors[0]["error"]  # the same bytes wherever the data set lies

    index = json.loads((out / "index.json").read_text())
    assert index["counts"] == {"items": 23, "tokenized": 22, "errors": 1}
    assert index["weights_sha256"] == tensors_sha256(toys.grey())
    assert index["protocol"]["size"] == [16, 16]

    samples = list(TokenDataset(out, verify=True))
    assert [sample.record["number"] for sample in samples] == [n for n in range(23) if n != 7]
    for sample in samples:
        assert sample.tokens.data.tolist() == [[[[code_of(sample.record["number"] * 10)]] * 4] * 4]
        assert sample.tokens.extent.tolist() == [[16, 16]]
        assert len(sample.record["source_sha256"]) == 64


def test_a_webdataset_shard_keeps_captions_and_integers_are_narrow(toys, shard, tmp_path, code_of):
    out = tmp_path / "out"
    done = tokenize(toys.grey(), shard.parent, out, SMALL)
    assert (done.items, done.tokenized, done.errors) == (6, 5, 1)
    assert "no image member, only: txt" in (out / "errors.jsonl").read_text()
    with tarfile.open(out / "shard-000000.tar") as archive:
        names = archive.getnames()
        codes = np.load(io.BytesIO(archive.extractfile("000000003.npy").read()))
    assert codes.dtype == np.uint16
    assert codes.tolist() == [[[code_of(60)]] * 4] * 4
    assert names[:4] == ["000000000.npy", "000000000.json", "000000000.source.json", "000000000.txt"]
    sample = list(TokenDataset(out))[-1]
    assert sample.others == {"txt": b"grey 5", "json": b'{"own": 1}'}
    assert sample.record["item"] == "a-000.tar/sample5.png"


def test_a_broken_shard_loses_its_end_only_and_says_so(toys, shard, tmp_path):
    shard.write_bytes(shard.read_bytes()[:5300])
    done = tokenize(toys.grey(), shard, tmp_path / "out", SMALL)
    assert done.items == done.tokenized + done.errors
    assert done.tokenized >= 1
    assert "a-000.tar" in (tmp_path / "out" / "errors.jsonl").read_text()


def test_pictures_of_one_size_share_a_batch_and_one_that_the_network_refuses_is_an_error(toys, tmp_path, picture):
    folder = tmp_path / "in"
    folder.mkdir()
    sizes = [(16, 16), (16, 32), (16, 16), (12, 12), (16, 32), (16, 16)]
    for number, size in enumerate(sizes):
        (folder / f"{number}.png").write_bytes(picture(100, size))
    tokenizer = toys.grey()
    done = tokenize(tokenizer, folder, tmp_path / "out", Protocol(size=4 * 4, crop=False, batch_size=3, shard_items=10))
    assert done.tokenized == 6  # 12 x 12 was resized
    assert sorted(tokenizer.batches) == [(1, 3, 16, 16), (2, 3, 32, 16), (3, 3, 16, 16)]
    done = tokenize(toys.grey(), folder, tmp_path / "refused", Protocol(size=12, crop=False, batch_size=3, shard_items=10))
    assert (done.tokenized, done.errors) == (0, 6)
    assert "does not like this width" in (tmp_path / "refused" / "errors.jsonl").read_text()
    assert [sample.record["number"] for sample in TokenDataset(tmp_path / "out")] == list(range(6))


def test_sound_gives_latents_of_any_length(toys, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number, samples in enumerate((800, 1250, 800)):
        soundfile.write(folder / f"{number}.wav", np.full(samples, 0.25, np.float32), 8000)
    (folder / "3.wav").write_bytes(b"RIFF")
    done = tokenize(toys.Loud(toys.Config()).eval(), folder, tmp_path / "out", SMALL)
    assert (done.items, done.tokenized, done.errors) == (4, 3, 1)
    found = [sample.tokens for sample in TokenDataset(tmp_path / "out")]
    assert [tuple(tokens.data.shape) for tokens in found] == [(1, 8, 1), (1, 13, 1), (1, 8, 1)]
    assert [tokens.extent.tolist() for tokens in found] == [[[800]], [[1250]], [[800]]]
    assert torch.allclose(found[0].data, torch.tensor(0.25), atol=1e-4)


@pytest.mark.parametrize("shards", ["webdataset", "parquet"])
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bytes(toys, pictures, tmp_path, shards):
    if shards == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet is of the extra `data`")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert ended(program(toys, pictures, whole, shards=shards)) == 0
    kills = 0
    for wanted in (0, 1, 3):  # shards that are there when the process is killed, somewhere inside the next one
        process = program(toys, pictures, killed, seconds=0.25, shards=shards)
        end = time.monotonic() + 120
        while time.monotonic() < end and process.is_alive():
            unfinished = list(killed.glob(".shard-*")) if killed.exists() else []
            if unfinished and len(list(killed.glob("shard-*.json"))) >= wanted:
                break
            time.sleep(0.005)
        assert process.is_alive(), "it ended before it could be killed"
        process.kill()  # -9
        assert ended(process) == -9
        kills += 1
        assert not (killed / "index.json").exists()
    assert kills == 3
    assert [name for name in files(killed) if name.startswith(".")], "nothing unfinished was left: the kill came too early or late"
    assert ended(program(toys, pictures, killed, shards=shards)) == 0
    assert files(killed) == files(whole)


def test_two_ranks_give_the_files_of_one(toys, pictures, tmp_path):
    tokenize(toys.grey(), pictures, tmp_path / "one", SMALL)
    first = tokenize(toys.grey(), pictures, tmp_path / "two", SMALL, rank=0, world_size=2)
    assert not first.complete
    assert first.items == first.tokenized + first.errors == 13
    second = tokenize(toys.grey(), pictures, tmp_path / "two", SMALL, rank=1, world_size=2)
    assert second.complete
    assert second.items == 23
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_two_processes_at_once_give_the_files_of_one(toys, pictures, tmp_path):
    tokenize(toys.grey(), pictures, tmp_path / "one", SMALL)
    both = [program(toys, pictures, tmp_path / "two", seconds=0.1, rank=rank, world_size=2) for rank in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_what_is_there_is_not_made_again_unless_it_is_damaged(toys, pictures, tmp_path):
    out = tmp_path / "out"
    tokenize(toys.grey(), pictures, out, SMALL)
    before = files(out)
    again = toys.grey()
    assert tokenize(again, pictures, out, SMALL).fresh == 0
    assert again.batches == []
    place = ShardPlace(out, 2, "webdataset")
    damaged = bytearray(place.data.read_bytes())
    damaged[600] ^= 1
    place.data.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"1 of 5 shards are damaged: shard-000002.tar"):
        TokenDataset(out, verify=True)
    assert tokenize(again, pictures, out, SMALL, verify=True).fresh == 5
    assert files(out) == before
    place.data.unlink()
    assert tokenize(again, pictures, out, SMALL).fresh == 5
    assert files(out) == before


def test_another_plan_a_foreign_folder_or_a_place_inside_the_input_is_refused(toys, pictures, tmp_path):
    out = tmp_path / "out"
    tokenize(toys.grey(), pictures, out, SMALL)
    with pytest.raises(ValueError, match=r"begun with another plan: protocol.batch_size was 2 and is 3"):
        tokenize(toys.grey(), pictures, out, Protocol(batch_size=3, shard_items=5))
    other = toys.grey()
    with torch.no_grad():
        other.weight.add_(1)
    with pytest.raises(ValueError, match="weights_sha256 was"):
        tokenize(other, pictures, out, SMALL)
    torch.set_num_threads(torch.get_num_threads() + 1)  # rounds in another order
    try:
        with pytest.raises(ValueError, match=r"protocol.threads was \d+ and is \d+"):
            tokenize(toys.grey(), pictures, out, SMALL)
    finally:
        torch.set_num_threads(torch.get_num_threads() - 1)
    (pictures / "part0" / "999.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"inputs.items was 23 and is 24"):
        tokenize(toys.grey(), pictures, out, SMALL)
    with pytest.raises(ValueError, match="holds other files, such as part0"):
        tokenize(toys.grey(), pictures / "part1", pictures, SMALL)
    with pytest.raises(ValueError, match="lies in the input"):
        tokenize(toys.grey(), pictures, pictures / "out", SMALL)
    with pytest.raises(ValueError, match=r"rank=2 of world_size=2"):
        tokenize(toys.grey(), pictures, tmp_path / "x", SMALL, rank=2, world_size=2)
    with pytest.raises(ValueError, match="fixed layout"):
        tokenize(toys.grey(), pictures, tmp_path / "x", Protocol(tokens=3))
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        tokenize(toys.grey(), tmp_path / "nowhere", tmp_path / "x")


def test_one_folder_takes_one_process_of_a_rank(toys, pictures, tmp_path):
    process = program(toys, pictures, tmp_path / "out", seconds=0.5)
    while not list((tmp_path / "out").glob(".shard-*")):
        assert process.is_alive()
        time.sleep(0.01)
    try:
        with pytest.raises(ValueError, match="another process of rank 0 works in"):
            tokenize(toys.grey(), pictures, tmp_path / "out", SMALL)
    finally:
        process.kill()
        ended(process)
