"""A whole evaluation of sound with a small real codec: residual scalar quantization of frames, 1 to 4 levels."""

import logging
import math

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import zoo
from eval.reconstruction import evaluate, main
from eval.resampling import resample
from eval.results import comparable, item_scores, load_result
from eval.scorers import DEFAULT_AUDIO
from eval.scorers.audio.signal import mel_distance, si_sdr_db
from eval.sheet import item_sheet, spectrogram
from eval.sounds import SoundCorpus, SoundSelection, UnreadableSoundError, open_sounds, pcm16
from zoo.config import Config
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

HOP, LEVELS, STEPS = 4, 4, 7


class FrameScalars(Tokenizer):
    """Each frame of 4 samples is 4 scalars in 7 steps, refined three times by 7 steps of the rest: 4 levels of 7^4 codes.

    `broken` is the smallest peak of an item that breaks the decoder.
    """

    def __init__(self, *, rate: int = 16000, channels: int = 1, broken: float | None = None) -> None:
        size = STEPS**HOP
        facts = Entry(
            name="toy_frames",
            family="toy",
            modality="audio",
            summary="",
            layout="1d",
            discrete=True,
            residual=True,
            depth=LEVELS,
            codebook_size=size,
            vocabulary=(size,) * LEVELS,
            downsample=(HOP, 1, 1),
            size_multiple=HOP,
            sample_rate=rate,
            frame_rate=rate / HOP,
            audio_channels=channels,
        )
        super().__init__(Config(), facts)
        self.broken = broken
        self.weight = nn.Parameter(torch.ones(()))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        frames = x.mean(1).unflatten(1, (-1, HOP)) * self.weight
        places = STEPS ** torch.arange(HOP)
        scale, codes = 1.0, []
        for _ in range(depth or LEVELS):
            steps = ((frames / scale + 1) * (STEPS / 2)).floor().clamp(0, STEPS - 1)
            codes.append((steps.long() * places).sum(-1))
            frames = frames - scale * ((2 * steps + 1) / STEPS - 1)
            scale /= STEPS
        return torch.stack(codes, -1)

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        y, scale = torch.zeros(len(tokens), tokens.positions[0], HOP), 1.0
        for level in range(tokens.levels):
            steps = tokens.data[..., level, None] // STEPS ** torch.arange(HOP) % STEPS
            y = y + scale * ((2 * steps + 1) / STEPS - 1)
            scale /= STEPS
        y = y.flatten(1)[:, None].expand(-1, self.in_channels, -1)
        if self.broken is not None:
            y = y.masked_fill(y.abs().amax((1, 2), keepdim=True) >= self.broken, torch.nan)
        return y


class Clips(SoundCorpus):
    """Some of the package's speech, cut to a second or so of unequal length."""

    source = "clips"

    def __init__(self, count: int = 3, torn: tuple[int, ...] = ()) -> None:
        self.corpus, self.torn = SoundSelection(open_sounds("samples"), range(count)), torn

    def __len__(self) -> int:
        return len(self.corpus)

    def key(self, i: int) -> str:
        return self.corpus.key(i)

    def read_bytes(self, i: int) -> bytes:
        return self.corpus.read_bytes(i)

    def record(self, i: int) -> dict:
        return self.corpus.record(i)

    def read(self, i: int) -> tuple[Tensor, int]:
        if i in self.torn:
            raise UnreadableSoundError(f"recording {self.key(i)!r} is torn.")
        samples, rate = self.corpus.read(i)
        return samples[:, 12000 : 36000 + 1001 * i], rate


@pytest.fixture(scope="module")
def whole():
    names = ["si_sdr_db", "mel_distance", "bits_per_second"]
    return evaluate(FrameScalars(), Clips(), scorers=names, batch_size=2)


def scored(result, name):
    return [point.scores[name].mean for point in result.points]


def test_more_depth_is_better_and_costs_what_it_costs(whole):
    assert [dict(point.rate) for point in whole.points] == [{"depth": d} for d in (1, 2, 4)]
    assert whole.protocol.id == "audio-16k-v1"
    assert scored(whole, "si_sdr_db") == sorted(scored(whole, "si_sdr_db"))
    assert scored(whole, "mel_distance") == sorted(scored(whole, "mel_distance"), reverse=True)
    per_frame = HOP * math.log2(STEPS)
    for point, depth in zip(whole.points, (1, 2, 4), strict=True):
        assert point.bits_per_second == point.scores["bits_per_second"].mean
        assert point.bits_per_second == pytest.approx(depth * per_frame * 16000 / HOP, rel=1e-3)  # the last frame is filled up
        assert point.bits_per_pixel is None
    assert whole.speed.encode_x_realtime > 0


def test_scores_are_those_of_the_items_decoded_by_hand(whole):
    tokenizer, corpus = FrameScalars(), Clips()
    for i in range(3):
        samples, rate = corpus.read(i)
        original = pcm16(resample(samples.mean(0), rate, 16000))
        copy = pcm16(tokenizer(original[None, None], depth=2)[0, 0].detach())
        assert copy.shape == original.shape
        assert item_scores(whole.items, "si_sdr_db", rate="depth=2")[corpus.key(i)] == pytest.approx(si_sdr_db(original, copy))
        expected = mel_distance(original, copy, 16000)
        assert item_scores(whole.items, "mel_distance", rate="depth=2")[corpus.key(i)] == pytest.approx(expected)


def test_the_batch_does_not_matter(whole):
    other = evaluate(FrameScalars(), Clips(), scorers=["si_sdr_db", "mel_distance", "bits_per_second"], batch_size=3, workers=2)
    assert [row.scores for row in other.items] == [row.scores for row in whole.items]
    assert comparable(whole, other) is None


def test_a_result_is_saved_and_read_again(whole, tmp_path):
    path = whole.save(tmp_path / "clips.audio-16k-v1.json")
    again = load_result(path)
    assert again == whole
    assert again.protocol.sample_rate == 16000
    text = path.read_text().replace('"sample_rate": 16000', '"sample_rate": 8000', 1)
    path.write_text(text)
    with pytest.raises(ValueError, match=r"does not fit the fields"):
        load_result(path)


def test_other_rates_and_channels_are_matched_by_the_protocol():
    """A stereo tokenizer of 24 kHz on the 16 kHz protocol: reconstructions come back with the original's length and rate."""
    fine = evaluate(FrameScalars(rate=24000, channels=2), Clips(2), protocol="audio-16k-v1", scorers=["si_sdr_db", "mel_distance"])
    assert fine.points[-1].scores["si_sdr_db"].mean > 25
    assert (fine.points[-1].scores["si_sdr_db"].n, fine.protocol.sample_rate) == (2, 16000)
    own = evaluate(FrameScalars(rate=24000), Clips(2), scorers=["si_sdr_db"], rates=[4])
    assert own.protocol.id == "audio-24k-v1"
    assert "other protocol: id" in comparable(fine, own)


def test_items_that_fail_are_counted(caplog):
    peaks = [float(Clips().read(i)[0].abs().max()) for i in range(3)]
    tokenizer = FrameScalars(broken=sorted(peaks)[-1] * 0.98)
    with caplog.at_level(logging.WARNING):
        result = evaluate(tokenizer, Clips(torn=(0,)), scorers=["si_sdr_db", "bits_per_second"], rates=[4])
    assert "is torn" in caplog.text
    for score in result.points[0].scores.values():
        assert score.n + score.failed == 3
        assert score.failed >= 1
    values = item_scores(result.items, "si_sdr_db")
    assert math.isnan(values[Clips().key(0)])
    with pytest.raises(ValueError, match=r"none of the 3 recordings of clips can be read"):
        evaluate(FrameScalars(), Clips(torn=(0, 1, 2)), scorers=["si_sdr_db"])


def test_codes_are_counted_at_every_level():
    """The entropy rate never exceeds the fixed rate, and each depth is described."""
    result = evaluate(FrameScalars(), Clips(2), scorers=["entropy_bits_per_second", "codebook_use"], rates=[1, 4])
    depths = result.points[1].codes["depths"]
    assert len(depths) == 4
    assert all(0 < depth["entropy_bits"] <= math.log2(depth["codes_seen"]) for depth in depths)
    seconds = sum(Clips(2).read(i)[0].shape[1] / Clips(2).read(i)[1] for i in range(2))
    expected = sum(depth["entropy_bits"] * depth["codes_seen"] for depth in depths) / seconds
    assert result.points[1].scores["entropy_bits_per_second"].mean == pytest.approx(expected, rel=1e-3)
    assert result.points[1].scores["entropy_bits_per_second"].mean < result.points[1].bits_per_second


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"protocol image-64-v1 is for pictures, toy_frames for recordings"):
        evaluate(FrameScalars(), Clips(), protocol="image-64-v1")
    with pytest.raises(ValueError, match=r"scorer psnr_db cannot be used: it is for pictures"):
        evaluate(FrameScalars(), Clips(), scorers=["psnr_db"])
    with pytest.raises(ValueError, match=r"toy_frames has sample rate 8000. Choose a protocol: audio-16k-v1, audio-24k-v1"):
        evaluate(FrameScalars(rate=8000), Clips())
    with pytest.raises(ValueError, match=r"depth=9. Allowed: 1..4"):
        evaluate(FrameScalars(), Clips(), rates=[9], scorers=["si_sdr_db"])


def test_the_command_writes_result_items_and_spectrograms(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "load", lambda name, **options: FrameScalars())
    words = ["toy_frames", "--data", "samples", "--limit", "2", "--rates", "1,4", "--scorers", "si_sdr_db,bits_per_second"]
    assert main([*words, "--device", "cpu", "--sheet", "sheet.png"]) == 0
    result = load_result(tmp_path / "eval" / "results" / "toy_frames" / "samples-first2.audio-16k-v1.json")
    assert (result.dataset.count, result.dataset.limit, len(result.items)) == (2, 2, 4)
    assert "bit/s" in capsys.readouterr().out
    assert Image.open(tmp_path / "sheet.png").width > 3 * 256


def test_a_spectrogram_shows_a_tone_where_it_is():
    t = torch.arange(64000) / 16000
    low, high = (spectrogram(0.9 * torch.sin(2 * math.pi * hz * t), 16000) for hz in (300.0, 5000.0))
    rows = [max(range(128), key=lambda y, picture=picture: picture.getpixel((100, y))[0]) for picture in (low, high)]
    assert rows[0] > 100, "low is at the bottom"
    assert rows[1] < 40
    assert low.getpixel((100, rows[0]))[0] > 240
    assert spectrogram(torch.zeros(64000), 16000).getextrema() == ((0, 0),) * 3


def test_the_sheet_has_a_column_for_every_rate(whole):
    sheet = item_sheet(FrameScalars(), Clips(), whole, first=2)
    assert sheet.width > 4 * 256
    assert sheet.height > (2 + 3) * 128


def test_the_default_scorers_exist():
    assert len(DEFAULT_AUDIO) == len(set(DEFAULT_AUDIO)) == 19
