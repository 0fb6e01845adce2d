"""The losses of hearing against the measures that they follow: the packages of PESQ and ViSQOL, and formulas worked out by hand."""

import numpy as np
import pytest
import torch
import torchaudio.functional

from recipes.data.sound_corpus import decode_sound, open_sounds
from recipes.modules.hearing_losses import LoudnessLoss, StructureLoss

RATE = 16_000


@pytest.fixture(scope="module")
def speech():
    """A sentence `(1, 1, s)` at 16 kHz."""
    corpus = open_sounds("samples", split="speech")
    x, rate = decode_sound(corpus.read_bytes(0))
    return torchaudio.functional.resample(x[:1], rate, RATE)[None, :, : 4 * RATE]


def noise(like, seed=0):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)) * float(like.std())


def degraded(x):
    """Speech worse and worse in several ways."""
    for db in (30, 20, 10, 0):
        yield x + noise(x) * 10 ** (-db / 20)
    for cut in (3000, 1500):
        yield torchaudio.functional.lowpass_biquad(torchaudio.functional.lowpass_biquad(x, RATE, cut), RATE, cut)
    for steps in (64, 16):
        yield (x * steps).round() / steps


def ranks(values):
    return np.argsort(np.argsort(values))


def test_loudness_orders_speech_as_pesq_does(speech):
    pesq = pytest.importorskip("pesq", reason="the package is in the extra for scoring sound")
    loss = LoudnessLoss(sample_rate=RATE)
    costs = [float(loss(speech, y)) for y in degraded(speech)]
    scores = [pesq.pesq(RATE, speech[0, 0].numpy(), y[0, 0].numpy(), "wb") for y in degraded(speech)]
    assert np.corrcoef(ranks(costs), -ranks(scores))[0, 1] > 0.8
    raw = 4.5 - (3.8224 - np.log(4 / (np.array(scores) - 0.999) - 1)) / 1.3669  # P.862.2's mapping undone: both disturbances
    assert np.corrcoef(costs, raw)[0, 1] > 0.8


def test_similarity_is_visqols():
    nsim = pytest.importorskip("visqol.nsim", reason="the package is in the extra for scoring sound")
    loss, draws = StructureLoss(sample_rate=RATE), torch.Generator().manual_seed(0)
    a = 20 + 5 * torch.randn(2, 30, 21, generator=draws)
    b = a + torch.randn(a.shape, generator=draws)
    for i in range(2):
        wanted = nsim.measure_patch_similarity(a[i].T.double().numpy(), b[i].T.double().numpy()).similarity
        assert float(loss.similarity(a[i : i + 1], b[i : i + 1]).mean()) == pytest.approx(wanted, abs=1e-3)


def test_structure_grows_with_noise(speech):
    loss = StructureLoss(sample_rate=RATE)
    costs = [float(loss(speech, speech + noise(speech) * 10 ** (-db / 20))) for db in (60, 40, 20, 0)]
    assert costs == sorted(costs)
    assert costs[0] < 0.5 * costs[-1]


@pytest.mark.parametrize("kind", [LoudnessLoss, StructureLoss])
def test_equal_sounds_are_not_apart(kind, speech):
    assert float(kind(sample_rate=RATE)(speech, speech)) == pytest.approx(0, abs=2e-4)


def test_loudness_by_hand():
    """Zwicker: at the threshold nothing is heard; far above it ten times the power is 10^0.23 times as loud."""
    loss = LoudnessLoss(sample_rate=RATE)
    assert float(loss.loudness(loss.quiet).abs().max()) < 1e-5
    high = loss.quiet * 1e9
    torch.testing.assert_close(loss.loudness(10 * high) / loss.loudness(high), torch.full_like(high, 10**0.23), rtol=0.01, atol=0)


def test_a_tone_lies_in_its_band_with_all_its_power():
    loss = LoudnessLoss(sample_rate=RATE)
    bin_of = 40  # 1250 Hz
    bank = loss._bank[bin_of]
    bark = 6 * np.arcsinh(1250 / 600)
    low, top = 6 * np.arcsinh(80 / 600), 6 * np.arcsinh(8000 / 600)
    assert int(bank.argmax()) == int((bark - low) / (top - low) * 49)
    torch.testing.assert_close(loss._bank[5:-1].sum(1), torch.ones(len(loss._bank) - 6))


def test_level_does_not_matter_and_noise_costs_more_than_what_is_missing(speech):
    loss = LoudnessLoss(sample_rate=RATE)
    y = speech + 0.1 * noise(speech)
    assert float(loss(speech / 4, y / 4)) == pytest.approx(float(loss(speech, y)), rel=1e-3)
    band = torchaudio.functional.bandpass_biquad(noise(speech), RATE, 5000, 5.0)
    band = band * (speech.std() / band.std() / 10)
    assert float(loss(speech, speech + band)) > 1.3 * float(loss(speech + band, speech))


@pytest.mark.parametrize("kind", [LoudnessLoss, StructureLoss])
@pytest.mark.parametrize("silent", ["reference", "codec", "both"])
def test_silence_has_a_gradient_without_nan(kind, silent):
    x, y = noise(torch.randn(2, 1, 4000)) * 0.1, noise(torch.randn(2, 1, 4000), 1) * 0.1
    x, y = (0 * x if silent != "codec" else x), (0 * y if silent != "reference" else y).requires_grad_()
    kind(sample_rate=RATE)(x, y).backward()
    assert bool(y.grad.isfinite().all())


@pytest.mark.parametrize("kind", [LoudnessLoss, StructureLoss])
def test_following_the_gradient_brings_a_sound_nearer(kind, speech):
    loss, x = kind(sample_rate=RATE), speech[..., RATE : 2 * RATE]
    y = (x + 0.3 * noise(x)).requires_grad_()
    first = loss(x, y)
    optimizer = torch.optim.Adam([y], lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss(x, y).backward()
        optimizer.step()
    assert float(loss(x, y).detach()) < 0.9 * float(first.detach())


@pytest.mark.parametrize("kind", [LoudnessLoss, StructureLoss])
def test_bfloat16_autocast_changes_nothing(kind, speech):
    loss, y = kind(sample_rate=RATE), speech + 0.1 * noise(speech)
    with torch.autocast("cpu", torch.bfloat16):
        inside = float(loss(speech, y))
    assert inside == float(loss(speech, y))


def test_what_is_refused():
    with pytest.raises(ValueError, match="LoudnessLoss: sample_rate=500"):
        LoudnessLoss(sample_rate=500)
    with pytest.raises(ValueError, match=r"StructureLoss: sample_rate=16000, bands=1\."):
        StructureLoss(sample_rate=RATE, bands=1)
    with pytest.raises(ValueError, match=r"StructureLoss: sounds of 1000 samples\. Needed: 1280"):
        StructureLoss(sample_rate=RATE)(torch.zeros(1, 1, 1000), torch.zeros(1, 1, 1000))
