"""Classical codecs: real bits, the right place in time, better with more of them, and rows beside those of tokenizers."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from eval.baselines.command import evaluate_codec, main
from eval.baselines.pictures import PICTURE_CODECS
from eval.baselines.sounds import SOUND_CODECS
from eval.reconstruction import evaluate
from eval.resampling import resample
from eval.results import comparable, load_result
from eval.scorers.audio.signal import mel_distance
from eval.sounds import SoundSelection, open_sounds


@pytest.fixture(scope="module")
def wave():
    samples, rate = open_sounds("samples").read(0)
    return resample(samples.mean(0), rate, 16000)[:40001]


def scored(result, name):
    return [point.scores[name].mean for point in result.points]


@pytest.mark.parametrize(("name", "kbps"), [("opus", 12), ("opus_music", 24), ("mp3", 32)])
def test_a_decoded_recording_is_at_its_place(name, kbps, wave):
    """No delay is left, the length is kept, and the bits are about those asked for."""
    coded, bits = SOUND_CODECS[name].code(wave, 16000, kbps)
    assert coded.shape == wave.shape
    size = 2 * len(wave)
    cross = torch.fft.irfft(torch.fft.rfft(coded, size) * torch.fft.rfft(wave, size).conj(), size)
    lag = int(cross.argmax())
    assert min(lag, size - lag) <= 2
    assert bits * 16000 / len(wave) / 1000 == pytest.approx(kbps, rel=0.15)


@pytest.mark.parametrize("name", ["opus", "mp3"])
def test_more_bits_are_nearer_to_the_original(name, wave):
    found = [SOUND_CODECS[name].code(wave, 16000, kbps) for kbps in (8, 16, 32)]
    assert [bits for _, bits in found] == sorted(bits for _, bits in found)
    distances = [mel_distance(wave, coded, 16000) for coded, _ in found]
    assert distances == sorted(distances, reverse=True)


def test_rates_that_a_codec_does_not_take_are_told(wave):
    with pytest.raises(ValueError, match=r"baseline mp3: 8000 samples a second. Allowed: 16000, "):
        SOUND_CODECS["mp3"].code(wave, 8000, 16)


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif"])
def test_the_bits_of_a_picture_are_those_of_its_file(name, toys):
    codec, picture = PICTURE_CODECS[name], toys.waves(1, 64)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, codec.format, quality=50, **codec.options)
    decoded, bits = codec.code(picture, 50)
    assert bits == 8 * len(buffer.getvalue())
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(buffer).convert("RGB")))
    errors = [float(((codec.code(picture, quality)[0] - picture.astype(float)) ** 2).mean()) for quality in (5, 50, 95)]
    assert errors == sorted(errors, reverse=True)


def test_jpeg_xl_is_a_bare_codestream_of_its_quality(toys):
    """Quality 90 is libjxl's distance 1, and 75 its 2.35 (lib/jxl/encode.cc: 0.1 + 0.09 (100 - quality))."""
    imagecodecs = pytest.importorskip("imagecodecs", reason="JPEG XL is coded with imagecodecs, of the extra `codecs`")
    codec, picture = PICTURE_CODECS["jpegxl"], toys.waves(1, 64)
    for quality, distance in ((90, 1.0), (75, 2.35)):
        file = imagecodecs.jpegxl_encode(picture, distance=distance, effort=7, usecontainer=False, numthreads=1)
        assert bytes(file[:2]) == b"\xff\x0a"
        decoded, bits = codec.code(picture, quality)
        assert bits == 8 * len(file)
        np.testing.assert_array_equal(decoded, imagecodecs.jpegxl_decode(file))
    errors = [float(((codec.code(picture, quality)[0] - picture.astype(float)) ** 2).mean()) for quality in (5, 50, 95)]
    assert errors == sorted(errors, reverse=True)
    assert codec.facts()["encoder"].startswith(f"JPEG XL of imagecodecs {imagecodecs.__version__}, library libjxl ")


def test_a_missing_package_is_told(toys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ModuleNotFoundError, match=r"baseline jpegxl: package imagecodecs .* pip install 'tokenizer-zoo\[codecs\]'"):
        PICTURE_CODECS["jpegxl"].code(toys.waves(1, 64), 50)


def test_a_codec_of_pictures_stands_beside_a_tokenizer(toys):
    corpus = toys.pictures(4, 24)
    jpeg = evaluate_codec("jpeg", corpus, protocol="image-16-v1", rates=[20, 90], scorers=["psnr_db", "bits_per_pixel"])
    tokenizer = evaluate(toys.BlockColours(), corpus, rates=[16], scorers=["psnr_db", "bits_per_pixel"])
    assert comparable(jpeg, tokenizer) is None
    assert [dict(point.rate) for point in jpeg.points] == [{"quality": 20}, {"quality": 90}]
    assert scored(jpeg, "psnr_db")[1] > scored(jpeg, "psnr_db")[0]
    assert scored(jpeg, "bits_per_pixel") == [point.bits_per_pixel for point in jpeg.points]
    assert "libjpeg-turbo" in jpeg.protocol.decode["encoder"]
    assert (jpeg.weights_sha256, len(jpeg.items)) == (None, 8)


def test_a_codec_of_sound_keeps_count_of_what_it_used():
    corpus = SoundSelection(open_sounds("samples"), [0, 1])
    result = evaluate_codec("opus", corpus, protocol="audio-16k-v1", rates=[8, 24], scorers=["mel_distance", "bits_per_second"])
    low, high = result.points
    assert dict(low.rate) == {"kbps": 8}
    assert 7000 < low.bits_per_second < 9000 < 21000 < high.bits_per_second < 27000
    assert low.bits_per_second == low.scores["bits_per_second"].mean
    assert high.scores["mel_distance"].mean < low.scores["mel_distance"].mean
    assert result.protocol.decode["encoder"].startswith("libopus of FFmpeg ")
    assert result.protocol.id == "audio-16k-v1"


def test_what_does_not_fit_is_refused(toys):
    corpus = toys.pictures(2, 16)
    with pytest.raises(
        ValueError, match=r"there is no codec 'flac'. Allowed: jpeg, webp, avif, jpegxl, h264, av1, opus, opus_music, mp3"
    ):
        evaluate_codec("flac", corpus, protocol="image-16-v1")
    with pytest.raises(ValueError, match=r"baseline opus: protocol image-16-v1 is for image"):
        evaluate_codec("opus", corpus, protocol="image-16-v1")
    with pytest.raises(ValueError, match=r"baseline jpeg: scorer codebook_use cannot be used"):
        evaluate_codec("jpeg", corpus, protocol="image-16-v1", scorers=["codebook_use"])


def test_the_command_writes_a_row(tmp_path, monkeypatch, capsys):
    from eval.reconstruction import main as evaluation

    monkeypatch.chdir(tmp_path)
    words = ["--data", "samples", "--limit", "2", "--rates", "12", "--scorers", "mel_distance,bits_per_second"]
    assert evaluation(["baseline", "opus", *words]) == 0
    result = load_result(tmp_path / "eval" / "results" / "opus" / "samples-first2.audio-16k-v1.json")
    assert (result.tokenizer, result.dataset.limit, len(result.items)) == ("opus", 2, 2)
    assert "kbps=12" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--rates '6,x'. Give whole numbers"):
        main(["opus", *words[:4], "--rates", "6,x"])
