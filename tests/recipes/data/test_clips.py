"""Stretches of clips: what is cut, that chance is a function of its place, resume, stills, and bad clips."""

import logging
import shutil

import pytest
import torch

from recipes.data.clips import ClipDataModule, moving_window, random_stretch
from zoo import samples


def stretch(frames, count, size, seed=0, **options):
    options = {"scale": (1.0, 1.0), "hflip": 0.0, **options}
    return random_stretch(frames, count, size, torch.Generator().manual_seed(seed), **options)


def numbered(t, side=8):
    """Every pixel of frame i is i."""
    return torch.arange(t, dtype=torch.uint8).view(t, 1, 1, 1).expand(t, 3, side, side)


def test_a_stretch_is_consecutive_and_reaches_both_ends():
    starts = set()
    for seed in range(60):
        part = stretch(numbered(6), 4, 8, seed)[:, 0, 0, 0].tolist()
        assert part == list(range(part[0], part[0] + 4))
        starts.add(part[0])
    assert starts == {0, 1, 2}


def test_a_short_clip_is_continued_with_its_last_frame():
    assert stretch(numbered(3), 5, 8)[:, 0, 0, 0].tolist() == [0, 1, 2, 2, 2]


def test_all_frames_are_cut_and_mirrored_alike():
    ramp = torch.arange(12, dtype=torch.uint8).view(1, 1, 1, 12).expand(4, 3, 12, 12)
    for seed in range(10):
        part = stretch(ramp, 4, 6, seed, scale=(0.5, 0.5), hflip=0.5)
        assert (part == part[:1]).all()
        assert set(part[0, 0, 0].diff().tolist()) in ({1}, {255})  # 255 is -1 in 8 bits
    assert stretch(ramp, 4, 5).shape == (4, 3, 5, 5)


@pytest.mark.parametrize("seed", range(6))
def test_a_window_moves_evenly_over_the_picture_and_stays_inside(seed):
    across = (2.0 * torch.arange(120)).expand(100, -1)
    downwards = (2.0 * torch.arange(100))[:, None].expand(-1, 120)
    picture = torch.stack([across, downwards, torch.zeros(100, 120)]).to(torch.uint8)
    frames = moving_window(picture, 5, 32, torch.Generator().manual_seed(seed)).double() / 2
    assert frames.shape == (5, 3, 32, 32)
    centres = frames[:, :2, 8:24, 8:24].mean((2, 3))
    for axis, whole in ((0, 120), (1, 100)):
        lines = frames[:, axis].mean(1 if axis == 0 else 2)  # what the columns, or rows, show: their place in the picture
        sides = 32 / 31 * (lines[:, -1] - lines[:, 0])
        assert float(sides.min()) >= 0.5 * 100 - 2
        assert float(sides.max()) <= 0.9 * 100 + 2
        assert float(lines.min()) >= -1
        assert float(lines.max()) <= whole
        steps = centres[:, axis].diff()
        assert float((steps - steps.mean()).abs().max()) < 0.3
        assert float(steps.sum().abs()) <= 0.3 * 90 + 1
    assert float(centres.diff(dim=0).abs().max()) > 0.2


def test_a_share_of_the_stretches_moves_over_stills():
    def first(**options):
        data = module(stills="samples", **options)
        data.setup("fit")
        return torch.stack([data.train_set[epoch, 0][0] for epoch in range(12)])

    clips, half, all_ = first(), first(pans=0.5), first(pans=1.0)
    assert torch.equal(half, first(pans=0.5))
    assert not torch.equal(all_, clips)
    still = (half == all_).flatten(1).all(1)
    assert 0 < int(still.sum()) < 12
    with pytest.raises(ValueError, match=r"pans=0\.5, stills=None"):
        ClipDataModule(train="samples", pans=0.5)


def module(**options):
    return ClipDataModule("samples", **{"frames": 5, "size": 16, "batch_size": 2, "stills_per_clip": 3, **options})


def test_batches():
    data = module(val="samples", stills="samples")
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch.clips.shape == (2, 3, 5, 16, 16)
    assert batch.stills.shape == (6, 3, 16, 16)
    assert -1 <= float(batch.clips.min()) < float(batch.clips.max()) <= 1
    batches = list(data.val_dataloader())
    assert torch.cat([b.index for b in batches]).tolist() == [0, 1, 2]
    assert batches[0].stills.shape == (0, 3, 16, 16)
    whole = data.val_set.corpus.read(0, size=(16, 16), frames=5).frames
    assert torch.equal(batches[0].clips[0], (whole.transpose(0, 1).float() / 127.5 - 1))


def test_training_goes_on_where_it_stood():
    """The batch after the position of a checkpoint equals that of an uninterrupted run, inside the second epoch."""

    def made(**options):
        data = module(stills="samples", batch_size=1, **options)
        data.setup("fit")
        return data

    loader = made(keep_frames=10_000).train_dataloader()
    loader.sampler.set_epoch(1)
    expected = list(loader)
    again = made()
    again.load_state_dict({"epoch": 1, "batch": 1, "count": 3, "batch_size": 1, "world_size": 1, "seed": 0})
    got = list(again.train_dataloader())
    assert len(got) == 2
    for ours, theirs in zip(got, expected[1:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_unreadable_clip(tmp_path, caplog):
    shutil.copy(samples.folder() / "video" / "bunny.mp4", tmp_path)
    (tmp_path / "cut.mp4").write_bytes((samples.folder() / "video" / "city.mp4").read_bytes()[:3000])
    data = ClipDataModule(str(tmp_path), frames=3, size=16, batch_size=2)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"clip 'cut\.mp4' \(number 1\) of .* is unreadable"):
        list(data.train_dataloader())
    data = ClipDataModule(str(tmp_path), frames=3, size=16, batch_size=2, on_error="skip")
    data.setup("fit")
    with caplog.at_level(logging.WARNING):
        (batch,) = data.train_dataloader()
    assert len(batch.clips) == 1
    assert data.unreadable == 1
    assert "cut.mp4" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 0}, "frames=0. Use 1 or more"),
        ({"size": 0}, "size=0"),
        ({"limit": 0}, "limit=0"),
        ({"stills_per_clip": -1}, "stills_per_clip=-1"),
        ({"hflip": 2}, "hflip=2 is no probability"),
        ({"random_crop": (0.9, 0.5)}, r"random_crop=\(0.9, 0.5\) is no range"),
        ({"on_error": "ignore"}, "on_error='ignore'. Allowed: 'raise', 'skip'"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        module(**options)
