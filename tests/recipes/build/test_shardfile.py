"""Shards are plain tars of pairs, reproducible, and never half there."""

import os
import tarfile

import pytest

from recipes.data.build.shardfile import read_shard, write_atomic, write_shard

SAMPLES = [("b_001", b"\xff\xd8first", {"z": 1, "a": [2]}), ("a_000", b"\xff\xd8second", {"label": "x"})]


def test_what_is_written_is_read_in_order(tmp_path):
    path = tmp_path / "train-00000.tar"
    write_shard(path, SAMPLES)
    assert list(read_shard(path)) == SAMPLES
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["b_001.jpg", "b_001.json", "a_000.jpg", "a_000.json"]
        assert archive.extractfile("b_001.json").read() == b'{"a": [2], "z": 1}'
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o644)}


def test_sounds_are_pairs_of_their_own_suffix(tmp_path):
    path = tmp_path / "val-00000.tar"
    write_shard(path, SAMPLES, suffix="flac")
    assert list(read_shard(path, suffix="flac")) == SAMPLES
    with pytest.raises(ValueError, match=r"'b_001\.flac' is out of place\. Allowed: pairs KEY\.ogg, KEY\.json"):
        list(read_shard(path, suffix="ogg"))


def test_equal_samples_give_equal_bytes(tmp_path):
    write_shard(tmp_path / "one.tar", SAMPLES)
    write_shard(tmp_path / "two.tar", iter(SAMPLES))
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_broken_shards_are_errors(tmp_path):
    path = tmp_path / "train-00000.tar"
    write_shard(path, SAMPLES)
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    with pytest.raises(ValueError, match="not a whole tar file"):
        list(read_shard(path))
    path.write_bytes(b"nothing of the kind" * 40)
    with pytest.raises(ValueError, match="not a whole tar file"):
        list(read_shard(path))
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a_000.json"))
    with pytest.raises(ValueError, match=r"'a_000\.json' is out of place"):
        list(read_shard(path))
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a_000.jpg"))
    with pytest.raises(ValueError, match=r"a_000\.jpg has no record"):
        list(read_shard(path))
