"""The speech pack: its manifest against the README of the pack, and the build on packages of five short recordings."""

import dataclasses
import gzip
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

import zoo
from recipes.data.build import speech, speech16k, speech_manifest
from recipes.data.build.packages import Package
from recipes.data.build.shardfile import read_shard
from recipes.data.build.speech_manifest import RELEASE_WITHOUT, SpeechManifest, Utterance, speech_sources
from tests.recipes.build.checks import check_goes_on

av = pytest.importorskip("av", reason="G.722 is read with PyAV, of the extra video")
soundfile = pytest.importorskip("soundfile", reason="sounds are read with soundfile, of the extra audio")

DATA = Path(speech_manifest.__file__).with_name("speech16k.jsonl.gz")
# package -> minutes of train, val, test: sums of the table in the pack's README
README = {
    "asterisk-core-sounds-en-g722": (7.82, 1.05, 0.64),
    "asterisk-core-sounds-es-g722": (5.26, 0.33, 0.41),
    "asterisk-core-sounds-it-g722": (5.39, 0.27, 0.35),
    "festvox-ru": (7.38, 0.29, 0.95),
    "fillets-ng-data-cs": (9.35, 0.18, 0.53),
    "fillets-ng-data-nl": (8.39, 0.83, 0.82),
    "tuxpaint-stamps-default": (9.31, 0.80, 1.00),
}


@pytest.fixture(scope="module")
def pack() -> SpeechManifest:
    return speech_manifest.load()


def test_minutes_equal_the_table_of_the_pack():
    for record in speech_sources():
        assert tuple(record.minutes.values()) == pytest.approx(README[record.package.name], abs=0.026), record.package.name
        assert sum(record.licenses.values()) == sum(record.utterances.values())
    assert [record.package.name for record in speech_sources()] == list(README)


def test_shards_are_those_of_the_pack(pack):
    sizes = {name: len(own) for name, own in pack.shards().items()}
    assert sizes == {"train-00000.tar": 620, "train-00001.tar": 474, "val-00000.tar": 86, "test-00000.tar": 96}
    firsts = [own[0].id for own in pack.shards().values()]
    assert firsts == ["5be6de909072", "068a92404042", "d7a3ca90d35c", "efc9ab9767ab"]


def test_what_published_weights_are_trained_on_is_what_the_entry_says(pack):
    part = pack.select(without=RELEASE_WITHOUT)
    assert {package.license for package in pack.packages} - {package.license for package in part.packages} == {"GPL-2.0-only"}
    train = part.splits["train"]
    minutes, languages = sum(own.duration for own in train) / 60, {own.language for own in train}
    assert (len(train), round(minutes), len(languages)) == (760, 35, 9)
    assert "760 utterances of 35 minutes in nine languages" in zoo.info("audio_rvq_nano").trained_on


def test_ids_follow_their_rule_and_no_sentence_crosses_the_split(pack):
    assert len({own.id for own in pack.utterances}) == 1276
    for own in pack.utterances:
        assert own.id == hashlib.sha1((own.package + own.file).encode()).hexdigest()[:12]
    sentences = {}
    for own in pack.utterances:
        sentences.setdefault((own.speaker, own.text.lower()), set()).add(own.split)
    assert {len(splits) for splits in sentences.values()} == {1}


def test_a_record_is_written_as_in_the_pack(pack):
    assert pack.splits["val"][0].record() == {
        "duration": 1.7586,
        "file": "usr/share/games/fillets-ng/sound/electromagnet/nl/b-hurt-1.ogg",
        "id": "d7a3ca90d35c",
        "language": "nl",
        "license": "GPL-2+",
        "package": "fillets-ng-data-nl",
        "source_rate": 22050,
        "speaker": "fillets-nl-big",
        "text": "Dat prikt.",
    }


def test_the_file_is_small_and_survives_a_round_trip(pack):
    assert DATA.stat().st_size < 100_000
    assert gzip.decompress(speech_manifest.dump(pack)) == gzip.decompress(DATA.read_bytes())


def test_select_keeps_order_and_refuses_unknown_names(pack):
    part = pack.select(without=["festvox-ru"])
    assert [own for own in pack.utterances if own.package != "festvox-ru"] == list(part.utterances)
    assert part.digest() != pack.digest()
    with pytest.raises(ValueError, match="without has 'festvox', not a package"):
        pack.select(without=["festvox"])
    with pytest.raises(ValueError, match="leave nothing"):
        pack.select(only=["festvox-ru"], without=["festvox-ru"])


# ------------------------------------------------------------------------------------------------------------ decoding


def tone(rate: int, seconds: float, hertz: float, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def written(x: np.ndarray, rate: int, **settings: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, x, rate, **settings)
    return buffer.getvalue()


def g722(x: np.ndarray) -> bytes:
    """Encode samples `(s,)` at 16 kHz as a raw G.722 stream."""
    codec = av.CodecContext.create("g722", "w")
    codec.sample_rate, codec.layout, codec.format = 16000, "mono", "s16"
    frame = av.AudioFrame.from_ndarray((x[None] * 32767).astype(np.int16), format="s16", layout="mono")
    frame.sample_rate = 16000
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def snr_db(x: np.ndarray, reference: np.ndarray) -> float:
    return 10 * np.log10((reference**2).sum() / ((x - reference) ** 2).sum())


def test_g722_is_read_raw_at_16_khz():
    x = tone(16000, 0.5, 440)
    stream = g722(x)
    assert len(stream) == len(x) // 2  # 64 kbit/s
    y, rate = speech.decode(stream, "beep.g722")
    assert (rate, y.shape, y.dtype) == (16000, x.shape, np.float32)
    delay = 22  # samples, of the two filter banks of the codec
    assert snr_db(y[1000:7000], x[1000 - delay : 7000 - delay]) > 25


def test_channels_are_averaged_and_rates_changed():
    left, right = tone(44100, 0.5, 440, 0.6), tone(44100, 0.5, 440, 0.2)
    data = written(np.stack([left, right], 1), 44100, format="WAV", subtype="FLOAT")
    y, rate = speech.decode(data, "beep.wav")
    assert (rate, y.shape) == (44100, (8000,))
    assert snr_db(y[500:7500], tone(16000, 0.5, 440, 0.4)[500:7500]) > 60
    high = written(tone(44100, 0.5, 8500), 44100, format="WAV", subtype="FLOAT")
    assert np.abs(speech.decode(high, "high.wav")[0][500:7500]).max() < 0.001


def test_a_peak_that_resampling_makes_is_scaled_and_not_clipped():
    square = np.sign(tone(44100, 0.5, 441)).astype(np.float32) * np.float32(0.999)
    y, _ = speech.decode(written(square, 44100, format="WAV", subtype="FLOAT"), "square.wav")
    assert np.abs(y).max() == pytest.approx(0.999, abs=1e-6)  # the edges ring above full scale
    assert np.median(np.abs(y)) < 0.97
    assert (np.abs(y) > 0.9985).sum() < 100


def test_what_is_no_sound_is_named():
    with pytest.raises(speech.SpeechError, match=r"x\.ogg is no sound"):
        speech.decode(b"no sound", "x.ogg")
    with pytest.raises(speech.SpeechError, match=r"x\.g722"):
        speech.decode(b"", "x.g722")
    with pytest.raises(speech.SpeechError, match=r"x\.wav holds no samples"):
        speech.decode(written(np.zeros(0), 16000, format="WAV"), "x.wav")


def test_flac_holds_16_bits_rounded_to_nearest():
    x = np.array([0, 0.6 / 32767, -0.6 / 32767, 0.4 / 32767, 1.0, -1.0, 1.5], np.float32)
    y, rate = soundfile.read(io.BytesIO(speech.encode_flac(x)), dtype="int16")
    assert rate == 16000
    assert y.tolist() == [0, 1, -1, 0, 32767, -32767, 32767]


def test_vorbis_keeps_the_length_and_the_sound():
    x = tone(16000, 2.0, 300) + tone(16000, 2.0, 1100, 0.2)
    data = speech.encode_vorbis(x)
    y, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert (rate, y.shape) == (16000, x.shape)
    assert snr_db(y, x) > 20
    assert len(data) < 20_000  # 64,000 as 16-bit samples


# --------------------------------------------------------------------------------------------------------------- build


@pytest.fixture
def tiny(tmp_path, write_deb) -> tuple[SpeechManifest, Path]:
    """Five utterances of two packages, and the cache folder that holds them."""
    sounds = {
        ("talk", "a.g722", "train"): (g722(tone(16000, 0.25, 300)), 16000),
        ("talk", "b.g722", "val"): (g722(tone(16000, 0.25, 500)), 16000),
        ("game", "c.ogg", "train"): (written(tone(22050, 0.3, 300), 22050, format="OGG", subtype="VORBIS"), 22050),
        ("game", "d.wav", "test"): (written(tone(16000, 0.3, 200), 16000, format="WAV"), 16000),
        ("game", "e.wav", "val"): (written(tone(44100, 0.2, 200), 44100, format="WAV"), 44100),
    }
    cache = tmp_path / "cache"
    cache.mkdir()
    locked = []
    for name in ("game", "talk"):
        files = {file: data for (package, file, _), (data, _) in sounds.items() if package == name}
        deb = write_deb(cache / f"{name}_1.0_all.deb", name, "1.0", files)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        pool = f"pool/main/t/test/{deb.name}"
        locked.append(
            Package(
                name=name, version="1.0", origin="debian 12", pool=pool, bytes=1, sha256=digest, license="GPL-2.0-only", note=""
            )
        )
    utterances = tuple(
        Utterance(
            id=file.partition(".")[0],
            package=package,
            file=file,
            split=split,
            language="en",
            speaker=f"{package}-one",
            text=f"Text of {file}.",
            license="GPL-2",
            duration=round(len(speech.decode(data, file)[0]) / 16000, 4),
            source_rate=rate,
            sha256=hashlib.sha256(data).hexdigest()[:16],
        )
        for (package, file, split), (data, rate) in sounds.items()
    )
    return SpeechManifest(tuple(locked), utterances), cache


def build(tiny, out, **settings):
    return speech16k.build(out, cache=tiny[1], contents=tiny[0], progress=False, **settings)


def test_every_utterance_is_made_in_order(tiny, tmp_path, no_apt):
    report = build(tiny, tmp_path / "out")
    assert report.complete
    assert report.shards == {"train-00000.tar": 2, "val-00000.tar": 2, "test-00000.tar": 1}
    for name, own in tiny[0].shards().items():
        suffix = "ogg" if name.startswith("train") else "flac"
        found = list(read_shard(tmp_path / "out" / name, suffix=suffix))
        assert [(key, record) for key, _, record in found] == [(utterance.id, utterance.record()) for utterance in own]
        for _, data, record in found:
            info = soundfile.info(io.BytesIO(data))
            assert (info.samplerate, info.channels) == (16000, 1)
            assert (info.format, info.subtype) == (("OGG", "VORBIS") if suffix == "ogg" else ("FLAC", "PCM_16"))
            assert info.frames / 16000 == pytest.approx(record["duration"], abs=1e-4)
    ((_, data, _),) = read_shard(tmp_path / "out" / "test-00000.tar", suffix="flac")
    assert np.abs(soundfile.read(io.BytesIO(data))[0] - tone(16000, 0.3, 200)).max() < 1e-4
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "| game | 1.0 | 0.01 | 0.00 | 0.01 | game-one | GPL-2.0-only |" in readme


def test_a_stopped_build_goes_on_and_a_whole_one_is_left_alone(tiny, tmp_path, no_apt, monkeypatch):
    check_goes_on(speech16k.build, *tiny, tmp_path, monkeypatch)


def test_what_is_missing_or_another_recording_is_reported(tiny, tmp_path, no_apt):
    contents, cache = tiny
    a, b, c, d, e = contents.utterances
    wrong = (
        a,
        dataclasses.replace(b, duration=9.0),
        dataclasses.replace(c, file="lost.ogg"),
        dataclasses.replace(d, sha256="0123456789abcdef"),
        e,
    )
    report = build((SpeechManifest(contents.packages, wrong), cache), tmp_path / "out")
    assert not report.complete
    assert set(report.failed) == {"b", "c"}
    assert "b.g722 is 0.2500 s at 16000 Hz, the manifest says 9.0 s" in report.failed["b"]
    assert "lost.ogg is not in the package (version 1.0)" in report.failed["c"]
    assert report.changed == ("d",)
    assert "INCOMPLETE" in report.text()
    assert "- c: game: lost.ogg" in (tmp_path / "out" / "README.md").read_text()


def test_other_settings_and_other_folders_are_refused(tiny, tmp_path, no_apt):
    build(tiny, tmp_path / "out")
    with pytest.raises(ValueError, match="holds a build with other settings"):
        build(tiny, tmp_path / "out", without=["talk"])
    assert build(tiny, tmp_path / "out", without=["talk"], overwrite=True).shards == {
        "train-00000.tar": 1,
        "val-00000.tar": 1,
        "test-00000.tar": 1,
    }
    assert json.loads((tmp_path / "out" / "build.json").read_text())["settings"]["packages"] == ["game"]
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds files that this command did not write"):
        build(tiny, tmp_path)


def test_the_command_answers_for_people_and_scripts(tiny, tmp_path, no_apt, monkeypatch, capsys):
    monkeypatch.setattr(speech_manifest, "load", lambda: tiny[0])
    out = str(tmp_path / "out")
    assert speech16k.main([out, "--cache", str(tiny[1]), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "5 utterances in 3 shards (0 were there already)" in shown
    assert shown.rstrip().endswith("complete: every utterance of the manifest is there")
    assert speech16k.main([str(tmp_path / "new"), "--cache", str(tmp_path / "none"), "--quiet"]) == 2
    assert "Put these .deb files into" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
