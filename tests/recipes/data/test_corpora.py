"""Corpora: shards, folders, data sets; what they read, what they refuse."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from recipes.data import shards as shards_module
from recipes.data.corpora import content_hash, open_images
from recipes.data.corpus import UnreadableImageError, decode_rgb
from recipes.data.folder import ImageFolder
from recipes.data.shards import TarShards


@pytest.fixture
def folder(tmp_path, encoded):
    for number, name in enumerate(
        ["dog/b.png", "dog/a.jpg", "ant/deep/c.webp", "loose.JPEG", ".hidden/x.jpg", "notes.txt"]
    ):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix, "JPEG")
        path.write_bytes(encoded(number, kind=kind))
    return tmp_path / "pictures"


# -- shards ------------------------------------------------------------------------------------------------------------


def test_shards_give_the_bytes_and_records_that_were_written(pack, encoded):
    corpus = open_images(pack, split="train")
    assert len(corpus) == corpus.count == 22
    assert [corpus.key(i) for i in range(22)] == [f"p{i:03d}" for i in range(22)]
    for i in (0, 11, 12, 21):
        assert corpus.read_bytes(i) == encoded(i)
    assert corpus.record(13) == {"key": "p013", "label": "plant", "label_id": 1, "package": "odd"}
    assert corpus.label_id(13) == 1
    expected = Image.open(io.BytesIO(encoded(13))).convert("RGB")
    assert np.array_equal(np.asarray(corpus.read(13)), np.asarray(expected))


@pytest.mark.parametrize(
    "source", ["{0}/train-00001.tar", ["{0}/train-00001.tar"], "{0}/*n-00001.tar"], ids=["file", "list", "glob"]
)
def test_one_shard_by_file_list_and_glob(pack, source):
    source = [part.format(pack) for part in source] if isinstance(source, list) else source.format(pack)
    corpus = open_images(source)
    assert [corpus.key(0), corpus.key(9), len(corpus)] == ["p012", "p021", 10]


def test_members_may_stand_in_any_order_in_folders_and_beside_others(tmp_path, tar, encoded):
    members = {
        "a/1.json": json.dumps({"label_id": 4}).encode(),
        "b/1.jpg": encoded(1),
        "a/1.png": encoded(2, kind="PNG"),
        "a/1.seg.png": b"not the picture",
        "b/1.cls": b"7\n",
        "only.json": b"{}",
    }
    corpus = TarShards([tar(tmp_path / "x.tar", members)])
    assert [corpus.record(i) for i in range(2)] == [{"key": "a/1", "label_id": 4}, {"key": "b/1", "label_id": 7}]
    assert corpus.read_bytes(0) == members["a/1.png"]


def test_a_shard_without_records_has_keys_only(tmp_path, tar, encoded):
    corpus = TarShards([tar(tmp_path / "x.tar", {"k.jpg": encoded(0)})])
    assert corpus.record(0) == {"key": "k"}
    assert corpus.label_id(0) == -1


def _hash_in_child(corpus, queue):
    queue.put(content_hash(corpus))


def test_open_shards_are_read_in_forked_and_in_spawned_processes(pack):
    corpus = open_images(pack, split="train")
    expected = content_hash(corpus)  # descriptors are open now
    assert content_hash(pickle.loads(pickle.dumps(corpus))) == expected  # what a spawned worker gets
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_hash_in_child, args=(corpus, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [expected, expected]
    for child in children:
        child.join()
    assert content_hash(corpus) == expected


def test_few_descriptors_stay_open(tmp_path, tar, encoded, monkeypatch):
    monkeypatch.setattr(shards_module, "_MOST_OPEN", 2)
    paths = [tar(tmp_path / f"{n}.tar", {f"k{n}.jpg": encoded(n)}) for n in range(5)]
    before = len(os.listdir("/proc/self/fd"))
    corpus = TarShards(paths)
    for _ in range(2):
        assert [corpus.read_bytes(n) for n in range(5)] == [encoded(n) for n in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del corpus
    assert len(os.listdir("/proc/self/fd")) == before


def test_broken_shards_are_refused(tmp_path, tar, encoded):
    whole = tar(tmp_path / "whole.tar", {"a.jpg": encoded(0), "b.jpg": encoded(1)})
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[: 512 + len(encoded(0)) // 2])
    with pytest.raises(ValueError, match=r"cut.tar"):
        TarShards([cut])
    packed = tmp_path / "packed.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(whole, "a.jpg")
    with pytest.raises(ValueError, match="not a whole, uncompressed tar file"):
        TarShards([packed])
    with pytest.raises(ValueError, match="no picture in"):
        TarShards([tar(tmp_path / "empty.tar", {"a.txt": b"x"})])
    with pytest.raises(ValueError, match=r"holds 'a\.png' although key 'a' has its image member already"):
        TarShards([tar(tmp_path / "twice.tar", {"a.jpg": encoded(0), "a.png": encoded(0)})])
    with pytest.raises(ValueError, match=r"record of 'a' in .*bad\.tar"):
        TarShards([tar(tmp_path / "bad.tar", {"a.jpg": encoded(0), "a.json": b"{"})]).record(0)
    with pytest.raises(ValueError, match="no shards"):
        TarShards([])


# -- folders, the pack, data sets --------------------------------------------------------------------------------------


def test_folders_are_ordered_by_path_and_labelled_by_the_first_sub_folder(folder):
    corpus = open_images(folder)
    assert [corpus.record(i) for i in range(len(corpus))] == [
        {"key": "ant/deep/c.webp", "label": "ant", "label_id": 0},
        {"key": "dog/a.jpg", "label": "dog", "label_id": 1},
        {"key": "dog/b.png", "label": "dog", "label_id": 1},
        {"key": "loose.JPEG"},
    ]
    assert corpus.label_id(3) == -1
    assert corpus.read(0).size == (48, 40)


def test_the_pack_in_the_package_is_opened_by_name():
    corpus = open_images("samples")
    assert len(corpus) == 12
    assert {corpus.read(i).size for i in range(12)} == {(256, 256)}
    assert "cat.jpg" in [corpus.key(i) for i in range(12)]


def test_sources_that_are_not_there(tmp_path, pack):
    with pytest.raises(FileNotFoundError, match="no file, no folder, and no glob"):
        open_images(tmp_path / "nothing")
    with pytest.raises(NotADirectoryError, match="not a folder"):
        ImageFolder(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no picture in"):
        open_images(tmp_path)
    with pytest.raises(ValueError, match=r"no test-\*.tar. Splits there: \['train', 'val'\]"):
        open_images(pack, split="test")
    with pytest.raises(ValueError, match=r"say which split. Splits there: \['train', 'val'\]"):
        open_images(pack)


def test_hugging_face_without_the_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"'hf:some/name' needs the `datasets` library.*tokenizer-zoo\[data\]"):
        open_images("hf:some/name")


def test_hugging_face_reads_a_local_data_set(tmp_path, encoded):
    datasets = pytest.importorskip("datasets", reason="the optional library of the extra `data` is not installed")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"image": [{"bytes": encoded(n), "path": None} for n in range(3)], "label": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    corpus = open_images(f"hf:{tmp_path / 'set'}", split="train")
    assert [corpus.read_bytes(n) for n in range(3)] == [encoded(n) for n in range(3)]
    assert corpus.record(0) == {"key": "000000000", "label": "yes", "label_id": 1}


# -- selections and hashes ---------------------------------------------------------------------------------------------


def test_packages_are_left_out_and_unknown_ones_refused(pack):
    corpus = open_images(pack, split="train", exclude_packages=["odd"])
    assert [corpus.key(i) for i in range(len(corpus))] == [f"p{i:03d}" for i in range(0, 22, 2)]
    assert corpus.record(3) == {"key": "p006", "label": "animal", "label_id": 0, "package": "even"}
    with pytest.raises(ValueError, match=r"package\(s\) \['od'\]. Packages there: \['even', 'odd'\]"):
        open_images(pack, split="train", exclude_packages=["od"])
    assert len(open_images(pack, split="train", exclude_packages=["od"], unknown_packages="ignore")) == 22
    with pytest.raises(ValueError, match="leaves no picture"):
        open_images(pack, split="train", exclude_packages=["odd", "even"])


def test_limit_keeps_the_first(pack):
    corpus = open_images(pack, split="train", exclude_packages=["odd"], limit=3)
    assert [corpus.key(i) for i in range(len(corpus))] == ["p000", "p002", "p004"]
    assert len(open_images(pack, split="train", limit=100)) == 22
    with pytest.raises(ValueError, match="limit=0"):
        open_images(pack, split="train", limit=0)


def test_content_hash_is_of_keys_and_bytes_in_order(tmp_path, pack, tar, encoded):
    lines = "".join(f"p{n:03d}\t{hashlib.sha256(encoded(n)).hexdigest()}\n" for n in range(12, 22))
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert content_hash(open_images(pack / "train-00001.tar")) == expected
    repacked = [tar(tmp_path / f"{n}.tar", {f"p{n:03d}.jpg": encoded(n)}) for n in range(12, 22)]
    assert content_hash(open_images(repacked)) == expected
    assert content_hash(open_images(repacked[::-1])) != expected
    changed = tar(tmp_path / "12.tar", {"p012.jpg": encoded(13)})
    assert content_hash(open_images([changed, *repacked[1:]])) != expected


# -- decoding ----------------------------------------------------------------------------------------------------------


def as_png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_every_kind_of_picture_becomes_rgb():
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    assert np.asarray(decode_rgb(as_png(clear))).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    deep = Image.fromarray(np.array([[0, 256, 65535]], dtype=np.uint16))
    assert np.asarray(decode_rgb(as_png(deep))).tolist() == [[[0] * 3, [1] * 3, [255] * 3]]
    palette = Image.new("RGB", (1, 1), (200, 0, 100)).quantize(2)
    assert np.asarray(decode_rgb(as_png(palette))).tolist() == [[[200, 0, 100]]]
    grey = Image.new("L", (1, 1), 77)
    assert np.asarray(decode_rgb(as_png(grey))).tolist() == [[[77] * 3]]


def test_pictures_are_turned_upright():
    turned = Image.new("RGB", (4, 2), (1, 2, 3))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    assert decode_rgb(as_png(turned, exif=exif)).size == (2, 4)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 99])
def test_unreadable_pictures_name_source_and_key(tmp_path, tar, encoded, damage):
    path = tar(tmp_path / "some.tar", {"good.jpg": encoded(0), "bad.jpg": damage(encoded(1))})
    corpus = TarShards([path])
    with pytest.raises(UnreadableImageError, match=r"'bad' \(number 1\) of .*some\.tar"):
        corpus.read(1)
    assert corpus.read(0).mode == "RGB"
