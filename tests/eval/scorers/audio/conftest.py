"""Real speech from the package, and copies of it that get worse and worse."""

import pytest
import torch
from torch import Tensor

from eval.resampling import resample
from eval.sounds import Sounds, open_sounds, pcm16

RATE = 16000


def with_noise(wave: Tensor, snr: float, seed: int = 0) -> Tensor:
    """Add white noise of a known signal-to-noise ratio in dB."""
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(seed))
    return wave + noise * wave.square().mean().sqrt() / noise.square().mean().sqrt() * 10 ** (-snr / 20)


def low_passed(wave: Tensor, hz: int) -> Tensor:
    """Remove what lies above a frequency."""
    return resample(resample(wave, RATE, 2 * hz), 2 * hz, RATE)[: len(wave)]


@pytest.fixture(scope="session")
def speech() -> Sounds:
    """The English utterances of the package at 16 kHz, with what is said."""
    corpus = open_sounds("samples")
    numbers = [i for i in range(len(corpus)) if corpus.record(i).get("language") == "en"]
    waves = [resample(x.mean(0), rate, RATE) for x, rate in (corpus.read(i) for i in numbers)]
    return Sounds([pcm16(wave) for wave in waves], RATE, texts=[corpus.record(i)["text"] for i in numbers])


@pytest.fixture(scope="session")
def noisy(speech) -> dict[int, Sounds]:
    """The same with noise 30, 20 and 10 dB below."""
    return {snr: Sounds([with_noise(wave, snr) for wave in speech.waves], RATE) for snr in (30, 20, 10)}


@pytest.fixture(scope="session")
def dull(speech) -> Sounds:
    """The same without what lies above 1.5 kHz."""
    return Sounds([low_passed(wave, 1500) for wave in speech.waves], RATE)


@pytest.fixture(scope="session")
def networks() -> dict:
    """Networks are loaded once."""
    return {}
