"""Every scorer of sound on real speech: the best value for a copy, worse for worse copies, NaN and a count where it fails."""

import math
from importlib.util import find_spec

import pytest
import torch

from eval.scorers import RECORDS, make_scorers
from eval.sounds import Sounds

pytestmark = pytest.mark.skipif(
    find_spec("pesq") is None, reason="the extra audio-eval is not installed: some of its packages need a C compiler"
)

WAVEFORM = [name for name, record in RECORDS.items() if record.modality == "audio" and record.kind != "tokens"]
SLOW = ("visqol_audio", "visqol_speech", "wer_sphinx", "wer_gap_sphinx", "dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl", "dnsmos_p808")
QUIET = ("si_sdr_db", "pesq_wb", "pesq_nb", "stoi", "estoi")
BEST = {  # of an exact copy; those without a reference have none
    "si_sdr_db": (100, 0),
    "snr_db": (100, 0),
    "mel_distance": (0, 1e-12),
    "stft_distance": (0, 1e-12),
    "log_spectral_distance_db": (0, 1e-9),
    "pesq_wb": (4.644, 1e-3),
    "pesq_nb": (4.549, 1e-3),
    "stoi": (1, 1e-6),
    "estoi": (1, 1e-6),
    "visqol_audio": (4.73, 0.02),
    "speaker_similarity": (1, 1e-5),
    "f0_error_cents": (0, 1e-9),
    "voicing_error": (0, 0),
    "wer_gap_sphinx": (0, 0),
    "fad_aisfx": (0, 1e-2),
}


def value(name, reference, reconstruction, networks, **options):
    scorer = make_scorers([name], networks=networks)[name]
    scorer.update(reference, reconstruction, **options)
    return scorer.result()


def firsts(sounds, count=2):
    return Sounds(sounds.waves[:count], sounds.sample_rate, texts=sounds.texts[:count])


@pytest.mark.parametrize("name", [name for name in WAVEFORM if name not in SLOW])
def test_a_copy_is_best_and_noise_makes_it_worse(name, speech, noisy, networks):
    same = value(name, speech, speech, networks)
    worse = [value(name, speech, noisy[snr], networks) for snr in (30, 20, 10)]
    means = [same.mean, *(score.mean for score in worse)]
    assert means == sorted(means, reverse=RECORDS[name].better == "higher")
    assert len(set(means)) == 4
    assert (same.n, same.failed) == (len(speech), 0)
    if name in BEST:
        assert same.mean == pytest.approx(BEST[name][0], abs=max(BEST[name][1], 1e-9))
    low, high = RECORDS[name].range
    assert all((low is None or mean >= low - 1e-6) and (high is None or mean <= high + 1e-6) for mean in means)


@pytest.mark.parametrize("name", ["visqol_speech", "dnsmos_ovrl", "dnsmos_p808", "dnsmos_bak"])
def test_slower_networks_hear_noise(name, speech, noisy, networks):
    a, b = firsts(speech, 1), firsts(noisy[10], 1)
    assert value(name, a, a, networks).mean > value(name, a, b, networks).mean + 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["visqol_audio", "visqol_speech", "dnsmos_ovrl", "dnsmos_p808", "dnsmos_bak", "wer_gap_sphinx"])
def test_slower_scorers_order_all_levels(name, speech, noisy, networks):
    means = [value(name, speech, other, networks).mean for other in (speech, *noisy.values())]
    assert means == sorted(means, reverse=RECORDS[name].better == "higher")
    assert means[0] != means[-1]


@pytest.mark.parametrize("name", ["mel_distance", "log_spectral_distance_db", "pesq_wb", "estoi", "speaker_similarity"])
def test_a_missing_upper_band_is_heard(name, speech, dull, networks):
    same, worse = (value(name, speech, other, networks).mean for other in (speech, dull))
    assert worse < same if RECORDS[name].better == "higher" else worse > same


@pytest.mark.parametrize("name", [name for name in WAVEFORM if name not in SLOW or name == "wer_sphinx"])
def test_items_that_failed_are_counted_and_their_sound_is_not_looked_at(name, speech, networks):
    waves = [*speech.waves[:2], torch.full((16000,), torch.nan), torch.zeros(16000)]
    reference = Sounds([*speech.waves[:2], speech.waves[0][:16000], speech.waves[1][:16000]], 16000)
    failed = torch.tensor([False, name == "wer_sphinx", False, True])
    scorer = make_scorers([name], networks=networks)[name]
    scorer.update(reference, Sounds(waves, 16000), index=torch.arange(4), failed=failed)
    score = scorer.result()
    if name == "wer_sphinx":  # no transcript is known
        assert (score.n, score.failed, score.mean) == (0, 4, None)
        return
    assert (score.n, score.failed) == (2, 2)
    if RECORDS[name].kind == "item":
        assert scorer.per_item()[1].isnan().tolist() == [False, False, True, True]


@pytest.mark.parametrize("name", [*QUIET, "visqol_speech", "distillmos", "dnsmos_ovrl", "speaker_similarity"])
def test_silence_is_no_score(name, speech, networks):
    """A silent original, or a silent reconstruction where no number means anything, is NaN; never a number that enters the mean."""
    silent = Sounds([torch.zeros(16000)], 16000)
    score = value(name, silent, silent, networks)
    assert (score.mean, score.n, score.failed) == (None, 0, 1)


@pytest.mark.parametrize("name", ["pesq_wb", "stoi", "f0_error_cents"])
def test_an_item_too_short_is_no_score(name, speech, networks):
    short = Sounds([speech.waves[0][8000:9600]], 16000)
    score = value(name, short, short, networks)
    assert (score.mean, score.failed) == (None, 1)


def test_a_silent_reconstruction_of_speech(speech, networks):
    silent = Sounds([torch.zeros_like(wave) for wave in speech.waves], 16000)
    assert value("si_sdr_db", speech, silent, networks).mean == -100
    assert value("snr_db", speech, silent, networks).mean == pytest.approx(0, abs=1e-9)
    assert value("pesq_wb", speech, silent, networks).failed == len(speech)
    assert value("f0_error_cents", speech, silent, networks).failed == len(speech)
    assert 0.1 < value("voicing_error", speech, silent, networks).mean < 1


@pytest.mark.parametrize("name", [name for name in WAVEFORM if (RECORDS[name].sample_rate or 0) > 8000])
def test_a_rate_too_low_is_refused_or_stated(name, speech, networks, request):
    low = Sounds([wave[:16000:2] for wave in speech.waves], 8000)
    record = RECORDS[name]
    if record.raises_rate:
        assert "brought up" in record.protocol["resample"]
        return
    with pytest.raises(ValueError, match=rf"{name}: the waveforms have 8000 samples a second. Needed: at least"):
        value(name, low, low, networks)


@pytest.mark.parametrize("name", ["pesq_wb", "estoi", "speaker_similarity", "f0_error_cents", "distillmos"])
def test_higher_rates_are_brought_down(name, speech, noisy, networks):
    """At 24 kHz, with nothing new in the upper band, the scores are those of 16 kHz."""
    at_24 = [Sounds(sounds.at(24000), 24000) for sounds in (speech, noisy[20])]
    expected, found = value(name, speech, noisy[20], networks).mean, value(name, *at_24, networks).mean
    scale = {"f0_error_cents": 2.0, "distillmos": 0.15}.get(name, 0.08)
    assert found == pytest.approx(expected, abs=scale)


def test_tensors_need_their_rate_and_pairs_must_fit(speech, networks):
    a = torch.stack([wave[:16000] for wave in speech.waves])
    with pytest.raises(ValueError, match=r"si_sdr_db.update: sample_rate is missing"):
        value("si_sdr_db", a, a, networks)
    assert value("si_sdr_db", a, a, networks, sample_rate=16000).n == len(a)
    with pytest.raises(ValueError, match=r"reconstruction .* at 24000 Hz. Needed: the same items"):
        value("si_sdr_db", speech, Sounds(speech.waves, 24000), networks)
    with pytest.raises(ValueError, match=r"Needed: the same items, one by one, of equal rate and length"):
        value("si_sdr_db", speech, Sounds([wave[:-1] for wave in speech.waves], 16000), networks)
    with pytest.raises(ValueError, match=r"sample_rate=8000, but reference says 16000"):
        value("si_sdr_db", speech, speech, networks, sample_rate=8000)


def test_a_sum_over_items_is_no_mean_of_batches(speech, noisy, networks):
    scorer = make_scorers(["mel_distance"], networks=networks)["mel_distance"]
    for first, last, snr in ((0, 1, 30), (1, 2, 10)):
        scorer.update(Sounds(speech.waves[first:last], 16000), Sounds(noisy[snr].waves[first:last], 16000))
    scorer.update(speech, noisy[20])
    values = scorer.per_item()[1]
    assert len(values) == 2 + len(speech)
    assert scorer.result().mean == pytest.approx(float(values.mean()), abs=1e-12)
    assert math.isfinite(scorer.result().mean)


def test_the_protocol_says_which_weights_and_packages(networks):
    made = make_scorers(["pesq_wb", "visqol_speech", "dnsmos_ovrl", "fad_aisfx", "speaker_similarity"], networks=networks)
    definitions = {name: scorer.record.definition() for name, scorer in made.items()}
    assert definitions["pesq_wb"]["version"] == "0.0.4"
    assert definitions["visqol_speech"]["mapping"] == "lattice"
    for name in ("dnsmos_ovrl", "fad_aisfx", "speaker_similarity"):
        assert len(definitions[name]["sha256"]) == 64
