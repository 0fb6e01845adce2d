"""Measuring on clips: video tokenizers whole, tokenizers of pictures frame by frame, codecs beside them; failures are counted."""

import json
import math
import tarfile

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from eval.baselines.command import evaluate_codec
from eval.protocols import VideoProtocol, get_protocol, noise_seed, read_protocol
from eval.reconstruction import evaluate, main, open_corpus
from eval.results import comparable, load_result
from eval.sheet import item_sheet
from eval.video_runner import VideoRunner, clip_batches, joined
from recipes.data.clip_corpus import ClipCorpus, UnreadableClipError, open_clips
from zoo.config import Config
from zoo.tokenizer import Tokenizer

SIDE = 16
COUNTS = (5, 3, 7)
SCORES = ["frame_psnr_db", "temporal_difference_rmse", "bits_per_pixel", "tokens_per_second"]


def movie(number: int, count: int, toys, side: int = SIDE) -> np.ndarray:
    """A picture that moves to the right, uint8 `(t, h, w, 3)`."""
    wide = toys.waves(number, side + 2 * count)
    return np.stack([wide[:side, 2 * i : 2 * i + side] for i in range(count)])


def write_lossless(path, frames: np.ndarray, rate: int = 10) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode(None))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toys):
    folder = tmp_path_factory.mktemp("clips")
    for number, count in enumerate(COUNTS):
        write_lossless(folder / f"clip_{number}.mkv", movie(number, count, toys))
    return folder


@pytest.fixture(scope="module")
def corpus(folder):
    return open_clips(folder)


@pytest.fixture
def broken(tmp_path, folder):
    """The same clips and one that is cut."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "clip_9.mkv").write_bytes((folder / "clip_0.mkv").read_bytes()[:700])
    return open_clips(tmp_path)


def video_tokenizer(toys, *, broken: float | None = None, noise: float = 0.0) -> Tokenizer:
    """Codes of pairs of frames after the first: the colour of each 4 x 4 block of their mean, in 5 levels a channel."""

    class Toy(Tokenizer):
        first_frame_alone = True

        def __init__(self) -> None:
            facts = dict(modality="video", layout="3d", discrete=True, codebook_size=125, vocabulary=(125,), downsample=(2, 4, 4))
            super().__init__(Config(), toys.entry("toy_video", **facts, size_multiple=4, stochastic_decode=noise > 0))
            self.empty = nn.Parameter(torch.zeros(()))

        def _encode(self, x, *, tokens, depth, generator):
            x = torch.cat([x[:, :, :1], x], 2)
            means = nn.functional.avg_pool3d(x, (2, 4, 4))
            levels = ((means + 1) * 2.5).floor().clamp(0, 4).long()
            return (levels * torch.tensor([25, 5, 1]).view(1, 3, 1, 1, 1)).sum(1)[..., None]

        def _decode(self, tokens, size, *, seed=0):
            codes = tokens.data[..., 0]
            levels = torch.stack([codes // 25, codes // 5 % 5, codes % 5], 1)
            y = nn.functional.interpolate((levels - 2) * 0.4 + self.empty, scale_factor=(2, 4, 4))[:, :, 1:]
            if broken is not None:
                y = y.masked_fill(y.mean((1, 2, 3, 4), keepdim=True) >= broken, torch.nan)
            if noise:
                draws = [torch.randn(y.shape[1:], generator=torch.Generator().manual_seed(one)) for one in seed]
                y = y + noise * torch.stack(draws)
            return y

    return Toy()


# -- reading -----------------------------------------------------------------------------------------------------------------------


def test_lossless_clips_are_read_to_the_bit_in_order_with_their_rate(corpus, toys):
    assert [corpus.key(i) for i in range(3)] == ["clip_0.mkv", "clip_1.mkv", "clip_2.mkv"]
    for number, count in enumerate(COUNTS):
        frames, rate = corpus.read(number)
        np.testing.assert_array_equal(frames.permute(0, 2, 3, 1).numpy(), movie(number, count, toys))
        assert rate == 10
    assert corpus.read(2, frames=4).frames.shape == (4, 3, SIDE, SIDE)
    assert corpus.read(0, size=(8, 12)).frames.shape == (5, 3, 8, 12)
    assert corpus.select([2, 0]).key(0) == "clip_2.mkv"


def test_shards_hold_clips_with_records(tmp_path, folder):
    record = tmp_path / "a.json"
    record.write_text(json.dumps({"fps": 10, "package": "toys"}))
    with tarfile.open(tmp_path / "val-00000.tar", "w") as archive:
        archive.add(folder / "clip_1.mkv", "a.mkv")
        archive.add(record, "a.json")
    corpus = open_clips(tmp_path, split="val")
    assert corpus.record(0) == {"fps": 10, "package": "toys", "key": "a"}
    assert len(corpus.read(0).frames) == COUNTS[1]
    with pytest.raises(ValueError, match=r"there is no split 'test'. Splits there: val"):
        open_clips(tmp_path, split="test")
    assert isinstance(
        open_corpus(str(tmp_path), "val", "image"), ClipCorpus
    )  # nothing but clips: for frames of a picture tokenizer


def test_what_holds_no_clip_is_refused(tmp_path, broken):
    with pytest.raises(FileNotFoundError, match="no file, no folder"):
        open_clips(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="open_clips: no clip in"):
        open_clips(tmp_path / "empty")
    with pytest.raises(ValueError, match="ImageFolder: no picture in"):
        open_corpus(str(tmp_path / "empty"), None, "image")
    with pytest.raises(UnreadableClipError, match=r"clip 'clip_9.mkv' \(number 3\) of .* is unreadable"):
        broken.read(3)


# -- the protocol ------------------------------------------------------------------------------------------------------------------


def test_protocols_of_clips():
    protocol = get_protocol("video-128-v1")
    assert isinstance(protocol, VideoProtocol)
    assert protocol.size == (128, 128)
    assert get_protocol("video-64x96-v1").size == (64, 96)
    assert read_protocol(json.loads(json.dumps(protocol.to_dict()))) == protocol
    assert protocol.varied(frames=17).id == "video-128-v1+frames=17"
    assert protocol.varied(frames=17).fingerprint != protocol.fingerprint
    with pytest.raises(ValueError, match=r"frames=0. Allowed: at least 1, or None for all"):
        protocol.varied(frames=0)
    with pytest.raises(ValueError, match=r"there is no protocol 'video-128'. Closest: video-128-v1"):
        get_protocol("video-128")


# -- tokenizers --------------------------------------------------------------------------------------------------------------------


def test_a_video_tokenizer_on_clips_of_unequal_length(corpus, toys):
    tokenizer = video_tokenizer(toys)
    result = evaluate(tokenizer, corpus, scorers=[*SCORES, "codebook_use"], batch_size=2)
    assert result.protocol.id == "video-16-v1"
    point = result.points[0]
    positions = [(1 + (count - 1) // 2) * 16 for count in COUNTS]
    assert point.tokens_per_item == pytest.approx(np.mean(positions))
    wanted = np.mean([n * math.log2(125) / (count * SIDE**2) for n, count in zip(positions, COUNTS, strict=True)])
    assert point.bits_per_pixel == pytest.approx(wanted)
    assert point.scores["bits_per_pixel"].mean == pytest.approx(wanted)
    rates = [n / (count / 10) for n, count in zip(positions, COUNTS, strict=True)]
    assert point.scores["tokens_per_second"].mean == pytest.approx(np.mean(rates))
    assert point.codes["depths"][0]["codes_seen"] == sum(positions)
    for row, count in zip(result.items, COUNTS, strict=True):
        x = torch.from_numpy(movie(row.item, count, toys)).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        y = ((tokenizer.decode(tokenizer.encode(x)).detach().clamp(-1, 1) + 1) * 127.5).round()
        original = (x + 1) * 127.5
        frames = [
            10 * math.log10(255**2 / float((a - b).square().mean()))
            for a, b in zip(original[0].unbind(1), y[0].unbind(1), strict=True)
        ]
        assert row.scores["frame_psnr_db"] == pytest.approx(np.mean(frames), abs=1e-4)
    alone = evaluate(tokenizer, corpus, scorers=SCORES, batch_size=1)
    assert [dict(row.scores) for row in alone.items] == [
        {name: pytest.approx(value) for name, value in row.scores.items()} for row in result.items
    ]
    assert result.speed.encode_x_realtime == pytest.approx(result.speed.encode_items_per_s * np.mean(COUNTS) / 10)


def test_a_tokenizer_of_pictures_sees_each_frame_alone(corpus, toys):
    tokenizer = toys.BlockColours()
    result = evaluate(tokenizer, corpus, rates=[4, 16], scorers=[*SCORES, "codebook_use"], batch_size=2)
    few, full = result.points
    assert (few.rate, full.rate) == ({"tokens": 4}, {"tokens": 16})
    assert full.tokens_per_item == pytest.approx(16 * np.mean(COUNTS))
    assert few.scores["tokens_per_second"].mean == pytest.approx(4 * 10)
    assert full.bits_per_pixel == pytest.approx(16 * math.log2(27) / SIDE**2)
    assert full.codes["depths"][0]["codes_seen"] == 16 * sum(COUNTS)
    assert full.scores["codebook_use"].n == len(COUNTS)
    assert full.scores["frame_psnr_db"].mean > few.scores["frame_psnr_db"].mean
    frame = corpus.read(1).frames[2:3].float() / 127.5 - 1
    batch = next(clip_batches(corpus, result.protocol, [1], 1, 0))
    runner = VideoRunner(tokenizer, result.protocol)
    tokens, failed = runner.encode(batch)
    assert not bool(failed.any())
    clips, _ = runner.decode(tokens, batch)
    expected = ((tokenizer.decode(tokenizer.encode(frame)).clamp(-1, 1) + 1) * 127.5).round()
    assert torch.equal(clips.frames[0][2:3].float(), expected)
    together = joined(tokens, batch.items)
    assert together.data.shape == (1, 3 * 16, 1)
    assert together.extent.tolist() == [[3, SIDE, SIDE]]
    assert float(together.bits()) == pytest.approx(float(tokens.bits().sum()))
    against = evaluate(video_tokenizer(toys), corpus, scorers=SCORES)
    assert comparable(result, against) is None


def test_the_frames_of_a_clip_share_their_noise_and_clips_do_not(corpus, toys):
    noisy, protocol = toys.Pixels(noise=0.3), get_protocol("video-16-v1")
    runner = VideoRunner(noisy, protocol)
    batch = next(clip_batches(corpus, protocol, [0, 1], 2, 0))
    tokens, _ = runner.encode(batch)
    decoded = runner._decode(tokens, batch, False)
    drawn = [clip - (frames.float() / 127.5 - 1) for clip, frames in zip(decoded, batch.items.frames, strict=True)]
    torch.testing.assert_close(drawn[0], drawn[0][:1].expand_as(drawn[0]), atol=1e-5, rtol=0)
    assert float((drawn[0][0] - drawn[1][0]).abs().mean()) > 0.1
    expected = 0.3 * torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(noise_seed(0, 1)))
    torch.testing.assert_close(drawn[1][0], expected, atol=1e-5, rtol=0)
    scores = [evaluate(video_tokenizer(toys, noise=0.2), corpus, scorers=["frame_psnr_db"], batch_size=b).items for b in (1, 3)]
    assert [dict(row.scores) for row in scores[0]] == [dict(row.scores) for row in scores[1]]


def test_failed_clips_are_nan_and_counted(broken, toys):
    means = [float(movie(number, count, toys).mean()) / 127.5 - 1 for number, count in enumerate(COUNTS)]
    highest = int(np.argmax(means))
    bound = sorted(means)[-2] + (max(means) - sorted(means)[-2]) / 2
    for tokenizer in (video_tokenizer(toys, broken=bound), toys.Pixels(broken=bound)):
        result = evaluate(tokenizer, broken, scorers=["frame_psnr_db"], batch_size=3)
        score = result.points[0].scores["frame_psnr_db"]
        failed = {row.item for row in result.items if math.isnan(row.scores["frame_psnr_db"])}
        assert {highest, 3} <= failed
        assert (score.n, score.failed) == (4 - len(failed), len(failed))
    only_broken = broken.select([3])
    with pytest.raises(ValueError, match=r"none of the 1 clips of .* can be read"):
        evaluate(video_tokenizer(toys), only_broken, scorers=["frame_psnr_db"])


def test_data_and_protocol_have_to_be_of_one_kind(corpus, toys):
    with pytest.raises(ValueError, match=r"holds clips, protocol image-16-v1 is for pictures"):
        evaluate(toys.BlockColours(), corpus, protocol="image-16-v1")
    with pytest.raises(ValueError, match=r"holds pictures, protocol video-16-v1 is for clips"):
        evaluate(toys.BlockColours(), toys.pictures(2, 16), protocol="video-16-v1")
    with pytest.raises(ValueError, match=r"protocol image-16-v1 is for pictures, toy_video for clips"):
        evaluate(video_tokenizer(toys), corpus, protocol="image-16-v1")
    with pytest.raises(ValueError, match=r"scorer psnr_db cannot be used: it is for pictures"):
        evaluate(video_tokenizer(toys), corpus, scorers=["psnr_db"])


# -- the command, codecs and the sheet ---------------------------------------------------------------------------------------------


def test_the_command_writes_result_items_and_sheet(folder, tmp_path, toys, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "load", lambda name, **options: video_tokenizer(toys))
    monkeypatch.chdir(tmp_path)
    sheet = tmp_path / "sheet.png"
    words = ["toy_video", "--data", str(folder), "--scorers", ",".join(SCORES), "--device", "cpu"]
    assert main([*words, "--sheet", str(sheet), "--sheet-items", "1", "--dataset-name", "moving"]) == 0
    result = load_result(tmp_path / "eval" / "results" / "toy_video" / "moving.video-16-v1.json")
    assert [row.key for row in result.items] == ["clip_0.mkv", "clip_1.mkv", "clip_2.mkv"]
    assert "on 3 clips of moving" in capsys.readouterr().out
    assert Image.open(sheet).size[0] == 6 * (96 + 6) + 6


def test_the_sheet_shows_frames_of_the_original_above_the_reconstruction(corpus, toys):
    result = evaluate(toys.Pixels(), corpus, scorers=["frame_psnr_db"])
    drawn = np.asarray(item_sheet(toys.Pixels(), corpus, result, first=1))
    row, left, top = 96 + 14 + 6, 6, 14 + 6 + 14
    for place in (0, 5):
        cut = [drawn[top + line * row :][:96, left + place * 102 :][:, :96] for line in (0, 1)]
        wanted = movie(0, COUNTS[0], toys)[0 if place == 0 else -1].repeat(6, 0).repeat(6, 1)
        np.testing.assert_array_equal(cut[0], wanted)
        np.testing.assert_array_equal(cut[1], wanted)
    worst = sorted(result.items, key=lambda item: item.scores["frame_psnr_db"])
    assert len(drawn) == 14 + 6 + 2 * row * (1 + len(worst))


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_codecs_are_rows_of_the_same_protocol(tmp_path, toys, codec):
    for number in range(2):
        write_lossless(tmp_path / f"{number}.mkv", movie(number, 4, toys, side=64))
    corpus = open_clips(tmp_path)
    result = evaluate_codec(codec, corpus, protocol="video-64-v1", rates=[20, 50], scorers=["frame_psnr_db", "flicker_rmse"])
    assert [point.rate for point in result.points] == [{"crf": 50}, {"crf": 20}]
    low, high = result.points
    assert low.bits_per_pixel < high.bits_per_pixel
    assert low.scores["frame_psnr_db"].mean < high.scores["frame_psnr_db"].mean
    assert result.protocol.decode["encoder"].startswith("lib")
    assert len(result.items) == 4
    with pytest.raises(ValueError, match="scorer tokens_per_second cannot be used on a codec of video"):
        evaluate_codec(codec, corpus, protocol="video-64-v1", scorers=["tokens_per_second"])
    with pytest.raises(ValueError, match="protocol image-64-v1 is for image"):
        evaluate_codec(codec, corpus, protocol="image-64-v1")
