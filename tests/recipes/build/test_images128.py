"""The build on a pack of eight pictures: replay, composites, resume, refusals and the report."""

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from recipes.data.build import images128, manifest
from recipes.data.build.images128 import build, main
from recipes.data.build.shardfile import read_shard


def samples(out):
    """Return key -> (pixels, record) of every sample in a pack."""
    return {
        key: (np.asarray(Image.open(io.BytesIO(data))).astype(int), record)
        for path in sorted(out.glob("*.tar"))
        for key, data, record in read_shard(path)
    }


@pytest.fixture
def made(tiny, tmp_path, no_apt):
    report = build(tmp_path / "out", cache=tiny.cache, contents=tiny.manifest, progress=False)
    return tiny, tmp_path / "out", report


def key(tiny, split, position):
    return tiny.manifest.crops[split][position].key


def test_every_crop_is_made_in_order(made):
    tiny, out, report = made
    assert report.complete
    assert report.shards == {"train-00000.tar": 6, "val-00000.tar": 2}
    for split in manifest.SPLITS:
        written = list(read_shard(out / f"{split}-00000.tar"))
        assert [name for name, _, _ in written] == [crop.key for crop in tiny.manifest.crops[split]]
        for crop, (_, data, record) in zip(tiny.manifest.crops[split], written, strict=True):
            assert {name: record[name] for name in crop.record()} == crop.record()
            encoded = Image.open(io.BytesIO(data))
            assert (encoded.format, encoded.mode, encoded.size) == ("JPEG", "RGB", (128, 128))
            assert [component[1:3] for component in encoded.layer] == [(2, 2), (1, 1), (1, 1)]
    assert report.counts["train", "texture"] == (2, 1)
    assert report.kinds["train", "stamp"] == 2


def test_a_crop_shows_its_box(made):
    """The source turns from red to blue at x=150; the box (50, 0, 250, 200) has that edge in its middle."""
    tiny, out, _ = made
    pixels = samples(out)[key(tiny, "train", 0)][0]
    assert np.abs(pixels[:, :56] - (200, 0, 0)).max() <= 12
    assert np.abs(pixels[:, 72:] - (0, 0, 200)).max() <= 12
    red = pixels[:, :, 0].mean(axis=0)
    assert np.flatnonzero(red < 100)[0] in (63, 64, 65)


def test_a_small_box_is_enlarged(made):
    """The box (90, 20, 210, 140) is 120 pixels wide, its edge again in the middle."""
    tiny, out, _ = made
    red = samples(out)[key(tiny, "train", 5)][0][:, :, 0].mean(axis=0)
    assert np.flatnonzero(red < 100)[0] in (63, 64, 65)


def test_a_picture_inside_a_resource_file_is_replayed(made):
    tiny, out, _ = made
    pixels, record = samples(out)[key(tiny, "train", 2)]
    assert record["file"].startswith("sea.rcc@")
    assert np.abs(pixels - (10, 200, 30)).max() <= 12


def test_transparency_of_opencv_doc_lies_on_grey(made):
    tiny, out, _ = made
    pixels = samples(out)[key(tiny, "train", 3)][0]
    assert np.abs(pixels[:, :56] - 190).max() <= 6
    assert pixels[:, 72:].max() <= 6


def test_composites_name_a_background_of_their_own_split(made):
    tiny, out, _ = made
    found = samples(out)
    photo, gradient, small = (found[key(tiny, *place)][1] for place in (("train", 1), ("train", 4), ("val", 0)))
    assert photo["composite"] == small["composite"] == "photo"
    # Of three train photographs that may lie behind a stamp by label, opencv-doc's may not by package.
    assert photo["background"] in (key(tiny, "train", 0), key(tiny, "train", 5))
    assert small["background"] == key(tiny, "val", 1)
    assert (gradient["composite"], gradient["background"]) == ("gradient", None)
    assert len(photo["pastes"]) == 1
    assert 1 <= len(small["pastes"]) <= 3
    x0, y0, x1, y1 = photo["pastes"][0]["box"]
    inside = found[key(tiny, "train", 1)][0][y0 + 4 : y1 - 4, x0 + 4 : x1 - 4]
    assert np.abs(inside - (250, 5, 5)).max() <= 15


def test_opencv_doc_is_never_a_background_of_the_real_pack():
    pool = images128.background_pool(manifest.load())
    assert len(pool["train"]) > 500
    assert len(pool["val"]) > 50
    for split, crops in pool.items():
        assert {crop.source.split for crop in crops} == {split}
        assert "opencv-doc" not in {crop.source.package for crop in crops}
        assert {crop.source.label for crop in crops} <= {"texture", "landscape", "plant"}
        assert {crop.source.kind for crop in crops} == {"photo"}


def test_the_seed_decides_the_composites_and_nothing_else(tiny, tmp_path, no_apt):
    outs = [tmp_path / name for name in ("a", "b", "c")]
    for out, seed in zip(outs, (3, 3, 4), strict=True):
        build(out, cache=tiny.cache, contents=tiny.manifest, seed=seed, progress=False)
    for name in ("train-00000.tar", "val-00000.tar"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
        assert (outs[0] / name).read_bytes() != (outs[2] / name).read_bytes()
    first, other = samples(outs[0]), samples(outs[2])
    for name, (pixels, record) in first.items():
        assert (pixels == other[name][0]).all() == (record["crop"] is not None)


def test_a_finished_build_is_reused_without_packages(made, tmp_path):
    tiny, out, _ = made
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    report = build(out, cache=tmp_path / "empty", contents=tiny.manifest, progress=False)
    assert report.reused == ("train-00000.tar", "val-00000.tar")
    assert report.complete
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("damage", ["cut", "gone", "part"])
def test_a_half_written_shard_is_written_again_and_others_stay(made, damage):
    tiny, out, _ = made
    path, other = out / "train-00000.tar", out / "val-00000.tar"
    whole, kept = path.read_bytes(), other.stat()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.unlink()
    if damage == "part":
        (out / "train-00000.tar.part").write_bytes(whole[:100])
    report = build(out, cache=tiny.cache, contents=tiny.manifest, progress=False)
    assert report.reused == ("val-00000.tar",)
    assert path.read_bytes() == whole
    assert (other.stat().st_ino, other.stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)
    assert not list(out.glob("*.part"))


def test_a_run_that_dies_between_shards_goes_on(tiny, tmp_path, no_apt, monkeypatch):
    out, write = tmp_path / "out", images128.shardfile.write_shard

    def dies(path, made):
        if path.name.startswith("val"):
            raise KeyboardInterrupt
        write(path, made)

    with monkeypatch.context() as patch:
        patch.setattr(images128.shardfile, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            build(out, cache=tiny.cache, contents=tiny.manifest, progress=False)
    report = build(out, cache=tiny.cache, contents=tiny.manifest, progress=False)
    assert report.reused == ("train-00000.tar",)
    assert report.complete
    build(tmp_path / "at_once", cache=tiny.cache, contents=tiny.manifest, progress=False)
    assert (out / "val-00000.tar").read_bytes() == (tmp_path / "at_once" / "val-00000.tar").read_bytes()


def test_other_settings_are_refused_unless_overwritten(made):
    tiny, out, _ = made
    with pytest.raises(
        ValueError, match=r"other settings \(seed: 0 there, 1 asked for; size: 128 there, 64 asked for\)"
    ):
        build(out, cache=tiny.cache, contents=tiny.manifest, size=64, seed=1, progress=False)
    report = build(
        out, cache=tiny.cache, contents=tiny.manifest, without=["tuxpaint-stamps-default", "gcompris-qt-data"], size=64,
        overwrite=True, progress=False,
    )  # fmt: skip
    assert report.complete
    assert report.reused == ()
    assert {pixels.shape for pixels, _ in samples(out).values()} == {(64, 64, 3)}


def test_overwriting_leaves_no_shard_of_the_old_build(made):
    tiny, out, _ = made
    build(out, cache=tiny.cache, contents=tiny.manifest, only=["opencv-doc"], overwrite=True, progress=False)
    assert sorted(path.name for path in out.glob("*.tar")) == ["train-00000.tar"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_refused(tiny, tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds files that this command did not write"):
        build(tmp_path, cache=tiny.cache, contents=tiny.manifest, overwrite=overwrite, progress=False)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize("size", [31, 513, 0])
def test_sizes_out_of_range_are_refused(tiny, tmp_path, size):
    with pytest.raises(ValueError, match=f"build: size={size} is out of range. Allowed: 32..512"):
        build(tmp_path / "out", cache=tiny.cache, contents=tiny.manifest, size=size, progress=False)


def test_without_photographs_composites_get_a_gradient_and_say_so(tiny, tmp_path, no_apt):
    out = tmp_path / "out"
    report = build(out, cache=tiny.cache, contents=tiny.manifest, only=["tuxpaint-stamps-default"], progress=False)
    assert report.complete
    assert {record["composite"] for _, record in samples(out).values()} == {"gradient"}


def test_a_picture_that_is_gone_is_reported_with_what_depends_on_it(tiny, tmp_path, no_apt):
    """val's only background is missing, so the composite on it is, too."""
    roof = tiny.manifest.crops["val"][1].source
    lost = dataclasses.replace(roof, file="usr/share/games/supertuxkart/data/textures/lost.png")
    crop = dataclasses.replace(tiny.manifest.crops["val"][1], source=lost)
    contents = manifest.Manifest(
        tiny.manifest.packages, {**tiny.manifest.crops, "val": (tiny.manifest.crops["val"][0], crop)}
    )
    report = build(tmp_path / "out", cache=tiny.cache, contents=contents, progress=False)
    assert not report.complete
    assert "lost.png is not in the package (version 1:1.0)" in report.failed[crop.key]
    assert report.failed[key(tiny, "val", 0)] == f"its background {crop.key} could not be made"
    assert report.shards == {"train-00000.tar": 6, "val-00000.tar": 0}
    assert "INCOMPLETE" in report.text()
    assert f"{crop.key}: " in (tmp_path / "out" / "README.md").read_text()
    again = build(tmp_path / "out", cache=tmp_path / "empty", contents=contents, progress=False)
    assert again.failed == report.failed


def test_a_source_of_another_size_is_reported(tiny, tmp_path, no_apt):
    first = tiny.manifest.crops["train"][0]
    wrong = dataclasses.replace(first, source=dataclasses.replace(first.source, size=(301, 200)))
    contents = manifest.Manifest(tiny.manifest.packages, {"train": (wrong,), "val": ()})
    report = build(tmp_path / "out", cache=tiny.cache, contents=contents, progress=False)
    assert "wall.png has the size (300, 200), the manifest says (301, 200)" in report.failed[wrong.key]


def test_a_source_with_other_content_is_made_and_named(tiny, tmp_path, no_apt):
    first = tiny.manifest.crops["train"][0]
    other = dataclasses.replace(first, source=dataclasses.replace(first.source, sha256="0123456789abcdef"))
    contents = manifest.Manifest(tiny.manifest.packages, {"train": (other,), "val": ()})
    report = build(tmp_path / "out", cache=tiny.cache, contents=contents, progress=False)
    assert report.complete
    assert report.changed == (other.key,)
    assert "1 crops may differ" in report.text()


def test_another_package_version_builds_everything_again(made, write_deb, caplog):
    tiny, out, _ = made
    (out / "val-00000.tar").unlink()
    name = "opencv-doc"
    (tiny.cache / f"{name}_1.0_all.deb").unlink()
    write_deb(tiny.cache / f"{name}_1.1_all.deb", name, "1:1.1", tiny.files[name])
    report = build(out, cache=tiny.cache, contents=tiny.manifest, progress=False)
    assert "begun with other package versions" in caplog.text
    assert report.reused == ()
    assert report.complete
    assert report.versions[name] == "1:1.1"
    assert report.changed == ()


def test_the_readme_names_packages_licences_and_authors(made):
    _, out, _ = made
    text = (out / "README.md").read_text()
    assert "| texture | 2 (1) | 1 (1) |" in text
    assert "| gcompris-qt-data | 1:1.0 | 1 (1) | 0 (0) | GPL-3.0-or-later |" in text
    assert "- supertuxkart-data: CC-BY-4.0 1, GPL-3.0-or-later (package) 1" in text
    assert "wall.png: 2001 Wanda Wall 2002 Another; CC-BY-4.0" in text
    assert "Finn Fisher" not in text  # public domain asks for no name


def test_the_state_file_holds_what_was_used(made):
    tiny, out, report = made
    state = json.loads((out / "build.json").read_text())
    assert state["settings"]["manifest"] == tiny.manifest.digest()
    assert state["packages"]["opencv-doc"] == {"version": "1:1.0", "sha256": tiny.package("opencv-doc").sha256}
    assert report.versions == dict.fromkeys(
        ("gcompris-qt-data", "opencv-doc", "supertuxkart-data", "tuxpaint-stamps-default"), "1:1.0"
    )


def test_the_command_answers_for_people_and_scripts(tiny, tmp_path, no_apt, monkeypatch, capsys):
    monkeypatch.setattr(manifest, "load", lambda: tiny.manifest)
    out = str(tmp_path / "out")
    assert main([out, "--cache", str(tiny.cache), "--without", "opencv-doc", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "7 pictures in 2 shards (0 were there already)" in shown
    assert shown.rstrip().endswith("complete: every crop of the manifest is there")
    assert main([out, "--cache", str(tiny.cache), "--size", "64", "--quiet"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([str(tmp_path / "new"), "--cache", str(tmp_path / "none"), "--quiet"]) == 2
    assert "there is no apt-get on this machine" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_command_fails_if_a_crop_is_missing(tiny, tmp_path, no_apt, monkeypatch):
    first = tiny.manifest.crops["train"][0]
    wrong = dataclasses.replace(first, source=dataclasses.replace(first.source, size=(301, 200)))
    contents = manifest.Manifest(tiny.manifest.packages, {"train": (wrong,), "val": ()})
    monkeypatch.setattr(manifest, "load", lambda: contents)
    assert main([str(tmp_path / "out"), "--cache", str(tiny.cache), "--quiet"]) == 1


def test_help_says_where_packages_come_from(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "zoo data build images128" in shown
    assert "1 some crops could not be made" in shown


def test_shards_open_with_plain_tarfile(made):
    _, out, _ = made
    with tarfile.open(out / "val-00000.tar") as archive:
        names = archive.getnames()
    assert [name.rpartition(".")[2] for name in names] == ["jpg", "json"] * 2
