"""Sounds as people have them: values against independent formulas, files there and back, refusals that leave nothing behind."""

import gc
import math
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from zoo.media.audio import SoundWriter, read_sounds, sound_chunks, sound_length, to_arrays, write_sound

RATE = 24000


def tone(samples, rate=RATE, channels=1, hertz=440.0):
    t = torch.arange(samples, dtype=torch.float64) / rate
    return torch.stack([0.5 * torch.sin(2 * math.pi * (hertz + 110 * c) * t) for c in range(channels)]).float()


def read(source, rate=RATE, channels=1, target=RATE):
    return read_sounds(source, sample_rate=rate, target_rate=target, channels=channels)


# -- what is read ------------------------------------------------------------------------------------------------------------------


def test_every_kind_of_sound_gives_the_same_values(tmp_path):
    x = (tone(1000) * 32768).round() / 32768
    soundfile.write(tmp_path / "x.wav", x[0].numpy(), RATE, subtype="PCM_16")
    soundfile.write(tmp_path / "x.flac", x[0].numpy(), RATE, subtype="PCM_16")
    shorts = (x * 32768).to(torch.int16)
    for source in (x, x[0], x.numpy(), x[0].numpy(), x.double(), x[None], [x[0]], shorts, shorts.numpy(), shorts.int() * 65536):
        assert torch.equal(read(source), x[None])
    assert torch.equal(read([x, x]), torch.stack([x, x]))
    for name in ("x.wav", "x.flac"):
        for source in (tmp_path / name, str(tmp_path / name), [tmp_path / name]):
            assert torch.equal(read(source), x[None])
            assert torch.equal(read(source, rate=None), x[None])
    assert read(torch.tensor([0, 128, 255], dtype=torch.uint8)).tolist() == [[[-1.0, 0.0, 127 / 128]]]


@pytest.mark.parametrize("ending", [".ogg", ".mp3"])
def test_lossy_files_keep_the_tone(tmp_path, ending):
    x = tone(RATE)
    write_sound(x[None], tmp_path / f"x{ending}", sample_rate=RATE)
    y = read(tmp_path / f"x{ending}", rate=None)
    assert abs(y.shape[2] - RATE) < 2000
    spectrum = torch.fft.rfft(y[0, 0, :16384]).abs()
    assert abs(int(spectrum.argmax()) * RATE / 16384 - 440) < 2


def test_channels(tmp_path):
    x = tone(500, channels=2)
    torch.testing.assert_close(read(x)[0], x.mean(0, keepdim=True))
    assert torch.equal(read(x, channels=2)[0], x)
    assert torch.equal(read(x[:1], channels=2)[0], x[:1].expand(2, -1))
    soundfile.write(tmp_path / "x.wav", x.T.numpy(), RATE, subtype="FLOAT")
    torch.testing.assert_close(read(tmp_path / "x.wav")[0], x.mean(0, keepdim=True))


@pytest.mark.parametrize(("rate", "target"), [(44100, 24000), (16000, 24000), (48000, 16000), (8000, 44100)])
def test_resampling_in_chunks_is_that_of_the_whole(tmp_path, rate, target):
    x = tone(rate * 2 + 17, rate)
    soundfile.write(tmp_path / "x.wav", x[0].numpy(), rate, subtype="FLOAT")
    wanted = resample(x, rate, target)
    for seconds in (0.05, 0.4, 100.0):
        chunks = list(sound_chunks(tmp_path / "x.wav", target_rate=target, channels=1, seconds=seconds))
        assert len(chunks) > 1 or seconds == 100.0
        torch.testing.assert_close(torch.cat(chunks, 2)[0], wanted, rtol=0, atol=2e-6)
    assert sound_length(tmp_path / "x.wav", target_rate=target) == wanted.shape[1]
    torch.testing.assert_close(read(x, rate=rate, target=target)[0], wanted, rtol=0, atol=2e-6)
    ideal = tone(wanted.shape[1], target)
    assert float((wanted - ideal)[:, 200:-200].abs().max()) < 5e-3, "the tone is the same at the other rate"


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_the_shortest_sounds(samples):
    assert read(torch.zeros(samples), rate=48000, target=16000).shape == (1, 1, 1)


def test_full_scale_is_clamped_after_resampling():
    square = torch.ones(4000).view(-1, 20)
    square[1::2] = -1
    x = read(square.flatten(), rate=44100, target=16000)
    assert float(x.abs().max()) == 1.0


# -- what is refused ---------------------------------------------------------------------------------------------------------------

REFUSED = {
    "no sample": (lambda: torch.zeros(1, 0), RATE, r"\(1, 0\).*At least one sample"),
    "NaN": (lambda: torch.full((9,), math.nan), RATE, r"nan.*\[-1, 1\]"),
    "16-bit range": (lambda: torch.full((9,), 20000.0), RATE, r"reaches from 2e\+04.*divide"),
    "rank": (lambda: torch.zeros(1, 1, 1, 9), RATE, r"\(1, 1, 1, 9\).*\(channels, samples\)"),
    "transposed": (lambda: torch.zeros(1000, 2), RATE, r"1000 channels.*transpose"),
    "type": (lambda: torch.zeros(9, dtype=torch.int64), RATE, r"int64.*int16"),
    "no rate": (lambda: torch.zeros(9), None, r"without sample_rate="),
    "rate zero": (lambda: torch.zeros(9), 0, r"sample_rate=0"),
    "rate in words": (lambda: torch.zeros(9), "24k", r"sample_rate='24k'"),
    "rates without a common divisor": (lambda: torch.zeros(9), 44101, r"24000 filters.*common divisor"),
    "surround": (lambda: torch.zeros(6, 9), RATE, r"6 channels for a model of 2"),
    "empty list": (lambda: [], RATE, r"list of sounds is empty"),
    "unequal": (lambda: [torch.zeros(9), torch.zeros(8)], RATE, r"2 lengths \(8 to 9 samples\).*Give encode\(\) a list"),
    "no file": (lambda: "nowhere.wav", None, r"no file nowhere\.wav"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    make, rate, words = REFUSED[case]
    with pytest.raises(ValueError, match=rf"preprocess: .*{words}"):
        read(make(), rate=rate, channels=2)


def test_what_is_no_sound():
    with pytest.raises(TypeError, match="preprocess: int is no sound"):
        read(3)


def test_a_rate_that_the_file_does_not_have(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(100), 16000)
    with pytest.raises(ValueError, match=r"sample_rate=24000, but the file has 16000"):
        read(tmp_path / "x.wav", rate=24000)
    assert read(tmp_path / "x.wav", rate=16000, target=16000).shape == (1, 1, 100)


@pytest.mark.parametrize("ending", [".wav", ".flac", ".ogg", ".mp3", ".aiff"])
def test_files_that_are_cut_short(tmp_path, ending):
    whole, cut = tmp_path / f"whole{ending}", tmp_path / f"cut{ending}"
    write_sound(tone(2 * RATE)[None], whole, sample_rate=RATE)
    for share in (0.0, 0.5, 0.9):
        data = whole.read_bytes()
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=rf"preprocess: .*cut{ending}.*(cut short|damaged|not a readable)"):
            read(cut, rate=None)


def test_files_that_hold_no_sound(tmp_path):
    (tmp_path / "x.wav").write_text("hello")
    with pytest.raises(ValueError, match=r"x\.wav is not a readable sound"):
        read(tmp_path / "x.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    with pytest.raises(ValueError, match=r"empty\.wav holds no sample"):
        read(tmp_path / "empty.wav")
    for name, value in (("loud", 30000.0), ("nan", math.nan)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(100, value, np.float32), RATE, subtype="FLOAT")
        with pytest.raises(ValueError, match=rf"{name}\.wav holds the value .*\[-1, 1\]"):
            read(tmp_path / f"{name}.wav")


# -- writing -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".wav", ".flac", ".aiff"])
def test_chunks_that_are_written_come_back(tmp_path, ending):
    x = tone(200_001, channels=2)
    with SoundWriter(tmp_path / f"x{ending}", sample_rate=RATE, channels=2) as writer:
        for chunk in x[None].split(70_000, 2):
            writer.write(chunk)
    y = read(tmp_path / f"x{ending}", channels=2)
    assert y.shape[2] == 200_001
    assert float((y[0] - x).abs().max()) <= 1 / 32768
    assert [p.name for p in tmp_path.iterdir()] == [f"x{ending}"]


def test_nothing_half_written_stays(tmp_path):
    with (  # noqa: PT012
        pytest.raises(ValueError, match="postprocess: the tensor holds NaN"),
        SoundWriter(tmp_path / "x.wav", sample_rate=RATE, channels=1) as writer,
    ):
        writer.write(torch.zeros(1, 1, 100))
        writer.write(torch.full((1, 1, 100), math.nan))
    with pytest.raises(ValueError, match="nothing was written"), SoundWriter(tmp_path / "x.wav", sample_rate=RATE, channels=1):
        pass
    with (
        pytest.raises(ValueError, match=r"chunk of shape \(1, 2, 5\)"),
        SoundWriter(tmp_path / "x.wav", sample_rate=RATE, channels=1) as writer,
    ):
        writer.write(torch.zeros(1, 2, 5))
    for name, rate, words in (("x.mp3", 96000, "takes no 1 channels at 96000"), ("x.m4a", RATE, r"ends in \.m4a. Allowed: \.wav")):
        with pytest.raises(ValueError, match=words):
            write_sound(torch.zeros(1, 1, 9), tmp_path / name, sample_rate=rate)
    with pytest.raises(ValueError, match="2 sounds for one file"):
        write_sound(torch.zeros(2, 1, 9), tmp_path / "x.wav", sample_rate=RATE)
    assert not list(tmp_path.iterdir())


def test_arrays_are_clamped():
    assert to_arrays(torch.tensor([[[-3.0, 0.5, 3.0]]]))[0].tolist() == [[-1.0, 0.5, 1.0]]
    with pytest.raises(ValueError, match=r"\(1, 5\).*\(b, channels, samples\)"):
        to_arrays(torch.zeros(1, 5))


MEASURE = """
import resource, sys, torch
torch.set_num_threads(1)
from zoo.media.audio import SoundWriter, sound_chunks
path, out = sys.argv[1:]
with SoundWriter(out, sample_rate=24000, channels=1) as writer:
    for x in sound_chunks(path, target_rate=24000, channels=1, seconds=2.0):
        writer.write(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_what_is_held_does_not_grow_with_the_length(tmp_path):
    """Near the end of a minute as many numbers are alive as near the end of ten seconds: chunks that were given are forgotten."""

    def held(seconds):
        soundfile.write(tmp_path / "x.wav", np.zeros(seconds * 44100), 44100)
        with SoundWriter(tmp_path / "y.wav", sample_rate=RATE, channels=1) as writer:
            for number, x in enumerate(sound_chunks(tmp_path / "x.wav", target_rate=RATE, channels=1, seconds=2.0)):
                writer.write(x)
                if number == seconds // 2 - 2:
                    found = sum(thing.numel() for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
        assert soundfile.info(tmp_path / "y.wav").frames == seconds * RATE
        return found

    assert abs(held(60) - held(10)) < RATE  # a second, of 50 more


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path):
    def peak(seconds):
        path = tmp_path / "x.wav"
        with soundfile.SoundFile(path, "w", 44100, 1) as file:
            for _ in range(seconds):
                file.write(np.zeros(44100))
        done = subprocess.run([sys.executable, "-c", MEASURE, path, tmp_path / "y.wav"], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert peak(300) - peak(10) < 30_000, "kilobytes; the samples alone would take 50,000 in float32"
