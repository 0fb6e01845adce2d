"""The sound datamodule: what a stretch is, that memory changes nothing, order, level, bad files, and the place in an epoch."""

import io
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from recipes.data.sound_corpus import UnreadableSoundError, open_sounds
from recipes.data.sounds import SoundDataModule, SoundDataset, louder

RATE = 800


def tone(seconds, rate=RATE, seed=0):
    """Smooth noise within half a range."""
    draws = np.random.default_rng(seed)
    x = np.convolve(draws.standard_normal(int(seconds * rate) + 8), np.ones(9) / 9, "valid")
    return (0.5 * x / np.abs(x).max()).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    for i, seconds in enumerate((1.0, 2.0, 0.3, 1.5, 3.0, 1.2)):
        soundfile.write(tmp_path / f"{i}.wav", tone(seconds, seed=i), RATE, subtype="PCM_16")
    return tmp_path


def dataset(folder, **options):
    return SoundDataset(open_sounds(folder), **{"sample_rate": RATE, "samples": 400, **options})


def test_a_stretch_lies_in_its_recording(folder):
    whole = soundfile.read(folder / "1.wav", dtype="float32")[0]
    places = set()
    for epoch in range(20):
        x, length, index = dataset(folder)[epoch, 1]
        assert (x.shape, length, index) == ((1, 400), 400, 1)
        found = [at for at in range(len(whole) - 399) if np.array_equal(whole[at : at + 400], x[0].numpy())]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 15
    assert max(places) - min(places) > 600, "places reach over the whole recording"


def test_a_short_recording_is_filled_with_zeros(folder):
    x, length, _ = dataset(folder)[3, 2]
    assert length == 240
    assert torch.equal(x[:, 240:], torch.zeros(1, 160))
    assert torch.equal(x[0, :240], torch.from_numpy(soundfile.read(folder / "2.wav", dtype="float32")[0]))


def test_memory_changes_nothing(folder):
    """Kept recordings, kept ones that fill the memory half-way, and none kept: the same stretches."""
    for options in ({}, {"sample_rate": 640, "gain_db": (-6.0, 6.0), "flip": 0.5}):
        sets = [dataset(folder, keep_minutes=minutes, **options) for minutes in (0.0, 3.5 / 60, 1.0)]
        for item in ((0, 4), (0, 1), (1, 4), (1, 0), (2, 4), 3):
            first, *others = [part[item][0] for part in sets]
            assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("rate", [400, 640, 1000, 1600])
def test_another_rate_is_resampled_as_the_whole_recording_would_be(folder, rate):
    whole = resample(torch.from_numpy(soundfile.read(folder / "4.wav", dtype="float32")[0]), RATE, rate)
    part = dataset(folder, sample_rate=rate, samples=rate // 2)
    for epoch in range(5):
        x = part[epoch, 4][0][0]
        windows = whole.unfold(0, len(x), 1)
        assert float((windows - x).abs().amax(1).min()) < 1e-5
    torch.testing.assert_close(part[4][0][0], whole[: rate // 2], atol=1e-5, rtol=0)


def test_levels_and_gains():
    x = torch.tensor([[0.1, -0.2, 0.1, -0.2]])
    rms = float(x.square().mean().sqrt())
    assert float(louder(x, level_db=None, gain_db=6.0).square().mean().sqrt()) == pytest.approx(rms * 10**0.3)
    assert float(louder(x, level_db=-20.0, gain_db=0.0).square().mean().sqrt()) == pytest.approx(0.1)
    assert float(louder(x, level_db=-20.0, gain_db=-6.0).square().mean().sqrt()) == pytest.approx(0.1 * 10**-0.3)
    assert float(louder(x, level_db=None, gain_db=40.0).abs().amax()) == pytest.approx(0.999), "the peak is the limit"
    full = torch.tensor([[1.0, -1.0]])
    assert torch.equal(louder(full, level_db=None, gain_db=3.0), full), "what is at full scale stays"
    silence = torch.zeros(1, 4)
    assert torch.equal(louder(silence, level_db=-16.0, gain_db=0.0), silence)


def test_gain_and_sign_are_drawn(folder):
    plain, drawn = dataset(folder), dataset(folder, gain_db=(-12.0, 0.0), flip=0.5)
    ratios = torch.tensor(
        [float((drawn[e, 3][0].double() * plain[e, 3][0]).sum() / plain[e, 3][0].square().sum()) for e in range(40)]
    )
    assert set(ratios.sign().tolist()) == {-1.0, 1.0}
    decibels = 20 * ratios.abs().log10()
    assert -12 <= float(decibels.min()) < -9
    assert -3 < float(decibels.max()) <= 1e-4


def test_channels(tmp_path):
    stereo = np.stack([tone(1, seed=1), tone(1, seed=2)], 1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    mono, both = (dataset(tmp_path, channels=c)[0][0] for c in (1, 2))
    torch.testing.assert_close(mono[0].numpy(), stereo[:400].mean(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(both.numpy(), stereo[:400].T, atol=1e-4, rtol=0)
    soundfile.write(tmp_path / "a.wav", stereo[:, 0], RATE, subtype="FLOAT")
    copied = dataset(tmp_path, channels=2)[0][0]
    assert torch.equal(copied[0], copied[1])


def test_an_unreadable_recording(folder):
    (folder / "3.wav").write_bytes(b"RIFF and nothing else")
    with pytest.raises(UnreadableSoundError, match=r"recording '3.wav' \(number 3\).*on_error='skip'"):
        dataset(folder)[0, 3]
    cut = (folder / "4.wav").read_bytes()
    soundfile.write(folder / "5.wav", np.full(100, np.nan, np.float32), RATE, subtype="FLOAT")
    part = dataset(folder, on_error="skip")
    assert part[0, 3] is None
    assert part[1, 3] is None
    assert part[0, 5] is None
    assert part.unreadable == 2
    assert len(cut) > 44


def test_shards_and_validation_in_order(folder, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for split, names in (("train", (4, 3, 1)), ("val", (5, 2, 0))):
        with tarfile.open(shards / f"{split}-00000.tar", "w") as archive:
            for name in names:
                data = (folder / f"{name}.wav").read_bytes()
                member = tarfile.TarInfo(f"{name}.wav")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    module = SoundDataModule(str(shards), str(shards), sample_rate=RATE, seconds=0.5, seconds_val=1.0, batch_size=2)
    module.setup()
    batches = list(module.val_dataloader())
    assert torch.cat([b.index for b in batches]).tolist() == [0, 1, 2]
    assert torch.cat([b.lengths for b in batches]).tolist() == [800, 240, 800]
    wanted = torch.from_numpy(soundfile.read(folder / "5.wav", dtype="float32")[0][:800])
    assert torch.equal(batches[0].sounds[0, 0], wanted)
    assert len(list(module.train_dataloader())) == 1


def test_training_goes_on_where_it_stood(folder):
    """The batch after the position of a checkpoint equals that of an uninterrupted run, inside the second epoch."""

    def module():
        made = SoundDataModule(str(folder), sample_rate=RATE, seconds=0.5, batch_size=2, gain_db=(-6.0, 6.0), flip=0.5)
        made.setup("fit")
        return made

    whole = module()
    loader = whole.train_dataloader()
    loader.sampler.set_epoch(1)
    expected = [batch.sounds for batch in loader]
    again = module()
    again.load_state_dict({"epoch": 1, "batch": 1, "count": 6, "batch_size": 2, "world_size": 1, "seed": 0})
    got = [batch.sounds for batch in again.train_dataloader()]
    assert len(got) == 2
    assert all(torch.equal(a, b) for a, b in zip(got, expected[1:], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds=0"),
        ({"channels": 3}, "channels=3. Allowed: 1 or 2"),
        ({"flip": 2}, "flip=2 is no probability"),
        ({"gain_db": (3.0, -3.0)}, r"gain_db=\(3.0, -3.0\) is no range"),
        ({"keep_minutes": -1}, "keep_minutes=-1"),
        ({"limit": 0}, "limit=0 keeps no recording"),
        ({"on_error": "ignore"}, "on_error='ignore'. Allowed: 'raise', 'skip'"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SoundDataModule("samples", **options)
