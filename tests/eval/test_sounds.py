"""Recordings as they lie in folders and shards, the resampling rule, and batches that compute once."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from eval.resampling import resample
from eval.sounds import SoundFolder, Sounds, SoundSelection, SoundShards, UnreadableSoundError, decode_sound, open_sounds, pcm16
from recipes.data.corpus import content_hash


def encoded(wave, rate=16000, form="FLAC"):
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=form)
    return buffer.getvalue()


def sine(hz, seconds=0.5, rate=16000):
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def pack(tmp_path):
    """Two splits of shards, one with a record, and a compressed one elsewhere."""
    for split, count in (("train", 3), ("val", 2)):
        with tarfile.open(tmp_path / f"{split}-00000.tar", "w") as archive:
            for i in range(count):
                members = {f"{split}{i}.flac": encoded(sine(100 * (i + 1)))}
                if i == 0:
                    members[f"{split}{i}.json"] = json.dumps({"text": "hello", "language": "en"}).encode()
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return tmp_path


def test_shards_give_recordings_and_records(pack):
    corpus = open_sounds(pack, split="val")
    assert [corpus.key(i) for i in range(len(corpus))] == ["val0", "val1"]
    assert corpus.record(0) == {"text": "hello", "language": "en", "key": "val0"}
    assert corpus.record(1) == {"key": "val1"}
    samples, rate = corpus.read(1)
    assert (rate, tuple(samples.shape)) == (16000, (1, 8000))
    np.testing.assert_allclose(samples[0], sine(200), atol=1 / 32768)
    with pytest.raises(ValueError, match=r"say which split. Splits there: train, val"):
        open_sounds(pack)
    with pytest.raises(ValueError, match=r"there is no split 'test'. Splits there: train, val"):
        open_sounds(pack, split="test")
    assert len(open_sounds(pack / "*.tar")) == 5


def test_folders_give_files_in_order_with_their_transcripts(tmp_path):
    (tmp_path / "b").mkdir()
    for name, form in (("b/two.wav", "WAV"), ("a.ogg", "OGG")):
        (tmp_path / name).write_bytes(encoded(sine(300), form=form))
    (tmp_path / "b" / "two.txt").write_text("two words\n")
    (tmp_path / "notes.md").write_text("no sound")
    corpus = open_sounds(tmp_path)
    assert isinstance(corpus, SoundFolder)
    assert [corpus.key(i) for i in range(2)] == ["a.ogg", "b/two.wav"]
    assert corpus.record(1) == {"key": "b/two.wav", "text": "two words"}
    assert content_hash(SoundSelection(corpus, [0, 1])) == content_hash(corpus) != content_hash(SoundSelection(corpus, [1, 0]))


def test_the_samples_know_what_is_said():
    corpus = open_sounds("samples")
    assert len(corpus) == 6
    assert {corpus.record(i)["language"] for i in range(6)} == {"en", "it", "ru"}
    assert all(corpus.record(i)["text"] for i in range(6))
    assert len(open_sounds("samples", split="music")) == 3
    with pytest.raises(ValueError, match=r"no split 'val'. Splits there: speech, music"):
        open_sounds("samples", split="val")


def test_what_is_no_recording_is_told(tmp_path):
    (tmp_path / "torn.wav").write_bytes(encoded(sine(100), form="WAV")[:20])
    with pytest.raises(UnreadableSoundError, match=r"recording 'torn.wav' \(number 0\) of .* is unreadable"):
        SoundFolder(tmp_path).read(0)
    with pytest.raises(ValueError, match=r"holds no sample"):
        decode_sound(encoded(np.zeros(0, np.float32), form="WAV"))
    bad = io.BytesIO()
    soundfile.write(bad, np.array([0.0, np.nan], np.float32), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(ValueError, match=r"holds NaN or infinity"):
        decode_sound(bad.getvalue())
    with pytest.raises(FileNotFoundError, match=r"is no file, no folder, and no glob"):
        open_sounds(tmp_path / "none")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"not a whole, uncompressed tar file"):
        SoundShards([tmp_path / "x.tar.gz"])


@pytest.mark.parametrize(("old", "new"), [(24000, 16000), (16000, 24000), (44100, 16000), (16000, 44100)])
def test_resampling_keeps_a_sine_and_the_length(old, new):
    x = torch.from_numpy(sine(1000, 1.0, old))
    y = resample(x, old, new)
    assert len(y) == new
    expected = torch.from_numpy(sine(1000, 1.0, new))
    torch.testing.assert_close(y[1000:-1000], expected[1000:-1000], atol=2e-3, rtol=0)
    assert resample(x, old, old) is x
    with pytest.raises(ValueError, match=r"rates 0 and 16000"):
        resample(x, 0, 16000)


def test_16_bits_are_rounded_and_clamped():
    x = torch.tensor([0.0, 1.4 / 32768, 1.6 / 32768, 2.0, -2.0])
    assert (pcm16(x) * 32768).tolist() == [0, 1, 2, 32767, -32768]


def test_a_batch_computes_once_and_knows_its_items():
    sounds = Sounds([torch.ones(160), torch.ones(80)], 16000, texts=["a", None])
    calls = []
    assert [sounds.once("x", lambda: calls.append(1) or 7) for _ in range(3)] == [7, 7, 7]
    assert calls == [1]
    assert sounds.at(8000)[1].shape == (40,)
    assert sounds.at(8000) is sounds.at(8000)
    for waves, rate, texts, message in (
        ([], 16000, None, "there is no item"),
        ([torch.ones(2, 3)], 16000, None, r"shape \(2, 3\). Needed: \(s,\)"),
        ([torch.ones(0)], 16000, None, "at least one sample"),
        ([torch.ones(3)], 0, None, "sample_rate=0"),
        ([torch.ones(3)], 16000, ["a", "b"], "2 texts for 1 items"),
    ):
        with pytest.raises(ValueError, match=message):
            Sounds(waves, rate, texts=texts)
