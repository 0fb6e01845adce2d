"""The manifest is the pack that its README describes: numbers below are copied from there."""

import gzip
import hashlib
from pathlib import Path

import pytest

import recipes.data.build
from recipes.data.build import manifest

# label -> (train crops, train sources, val crops, val sources)
README = {
    "animal": (1183, 194, 151, 27),
    "plant": (412, 40, 40, 5),
    "food": (386, 50, 46, 7),
    "object": (761, 177, 138, 25),
    "vehicle": (156, 21, 24, 3),
    "building": (756, 110, 122, 15),
    "landscape": (449, 38, 29, 4),
    "astronomy": (567, 256, 74, 34),
    "painting": (197, 90, 29, 4),
    "texture": (332, 62, 40, 8),
}
DATA = Path(manifest.__file__).with_name("images128.jsonl.gz")


@pytest.fixture(scope="module")
def pack() -> manifest.Manifest:
    return manifest.load()


def test_counts_equal_the_table_of_the_pack(pack):
    counts = pack.counts()
    assert {label: (*counts["train", label], *counts["val", label]) for label in manifest.LABELS} == README
    kinds = pack.kinds()
    assert (kinds["train", "photo"], kinds["val", "photo"]) == (3535, 465)
    assert (kinds["train", "alpha"], kinds["val", "alpha"]) == (167, 0)
    assert (
        kinds["train", "stamp"] + kinds["train", "smallstamp"],
        kinds["val", "stamp"] + kinds["val", "smallstamp"],
    ) == (1497, 228)
    assert len(pack.sources) == 1170


def test_shards_are_those_of_the_pack(pack):
    sizes = {name: len(crops) for name, crops in pack.shards().items()}
    assert sizes == {**{f"train-0000{i}.tar": 1150 for i in range(4)}, "train-00004.tar": 599, "val-00000.tar": 693}
    assert pack.shards()["train-00000.tar"][0].key == "2b8a549ade7a_001"
    assert pack.shards()["val-00000.tar"][0].key == "a8fecb76dea6_001"


def test_no_group_is_on_both_sides(pack):
    groups = {split: {crop.source.group for crop in pack.crops[split]} for split in manifest.SPLITS}
    assert len(groups["train"]) > 900
    assert len(groups["val"]) > 100
    assert not groups["train"] & groups["val"]


def test_keys_positions_and_boxes_are_consistent(pack):
    keys = [crop.key for split in manifest.SPLITS for crop in pack.crops[split]]
    assert len(set(keys)) == 5892
    for split in manifest.SPLITS:
        assert [crop.position for crop in pack.crops[split]] == list(range(len(pack.crops[split])))
        for crop in pack.crops[split]:
            source = crop.source
            expected = hashlib.sha1(f"{source.package}/{source.file}".encode()).hexdigest()[:12]
            assert crop.key == f"{expected}_{crop.number:03d}"
            assert source.split == split
            assert (crop.box is None) == (source.kind in ("stamp", "smallstamp")) == (crop.composite is not None)
            if crop.box is not None:
                x0, y0, x1, y1 = crop.box
                assert x1 - x0 == y1 - y0 > 0
                assert x0 >= 0
                assert y0 >= 0
                assert x1 <= source.size[0]
                assert y1 <= source.size[1]


def test_the_file_is_small_and_survives_a_round_trip(pack):
    assert DATA.stat().st_size < 100_000
    assert gzip.decompress(manifest.dump(pack)) == gzip.decompress(DATA.read_bytes())


def test_a_record_is_written_as_in_the_pack(pack):
    record = pack.crops["train"][0].record()
    assert record == {
        "crop": [0, 43, 100, 143],
        "file": "paintings.rcc@933526",
        "group": "192541124b22",
        "kind": "alpha",
        "label": "painting",
        "label_id": 8,
        "package": "gcompris-qt-data",
        "source_id": "2b8a549ade7a",
        "source_size": [219, 187],
    }
    composite = pack.crops["train"][1].record()
    assert (composite["crop"], composite["composite"]) == (None, "photo")


def test_the_lock_list_names_every_package_once(pack):
    names = [package.name for package in pack.packages]
    assert names == sorted({source.package for source in pack.sources})
    for package in pack.packages:
        assert len(bytes.fromhex(package.sha256)) == 32
        assert package.file == f"{package.name}_{package.version.rpartition(':')[2]}_all.deb"
        assert package.license


def test_sources_count_what_each_package_gives():
    records = recipes.data.build.sources()
    assert sum(record.crops["train"] for record in records) == 5199
    assert sum(record.crops["val"] for record in records) == 693
    stamps = next(record for record in records if record.package.name == "tuxpaint-stamps-default")
    assert (stamps.crops["train"] + stamps.crops["val"], sum(stamps.sources.values())) == (1670, 331)
    for record in records:
        assert sum(record.licenses.values()) == sum(record.sources.values())


def test_sources_without_a_package():
    records = recipes.data.build.sources(without=("opencv-doc",))
    assert "opencv-doc" not in [record.package.name for record in records]
    assert sum(record.crops["train"] for record in records) == 5199 - 235
    assert sum(record.crops["val"] for record in records) == 693 - 35


def test_licences_of_single_pictures_are_known(pack):
    licenses = {source.file: source.license for source in pack.sources if source.package == "lomiri-wallpapers-16.04"}
    assert licenses["usr/share/backgrounds/Dragonfly_by_Bolly.jpg"] == "CC-BY-SA-4.0"
    assert None not in licenses.values()
    kangaroo = [
        source
        for source in pack.sources
        if (source.title or "").endswith("explore_world_animals/resource/animals/kangaroo.webp")
    ]
    assert [source.license for source in kangaroo] == ["GFDL-NIV-1.2"]


def test_select_keeps_order_and_refuses_unknown_names(pack):
    part = pack.select(only=["kalzium-data"])
    assert [crop.source.package for crop in part.crops["train"]] == ["kalzium-data"] * 105
    positions = [crop.position for crop in part.crops["train"]]
    assert positions == sorted(positions)
    with pytest.raises(
        ValueError, match=r"only has 'kalzium', not a package\. Allowed: gcompris-qt-data, kalzium-data"
    ):
        pack.select(only=["kalzium"])
    with pytest.raises(ValueError, match="without has 'x'"):
        pack.select(without=["x"])
    with pytest.raises(ValueError, match="leave nothing"):
        pack.select(only=["opencv-doc"], without=["opencv-doc"])


def test_digest_notices_a_moved_box(tiny):
    first, *rest = tiny.manifest.crops["train"]
    moved = manifest.Crop(source=first.source, number=0, position=0, box=(51, 0, 251, 200), composite=None)
    other = manifest.Manifest(tiny.manifest.packages, {**tiny.manifest.crops, "train": (moved, *rest)})
    assert other.digest() != tiny.manifest.digest()
