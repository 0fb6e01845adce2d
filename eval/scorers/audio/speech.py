"""Scores of speech: opinion predicted without the original, words, voice and pitch."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from eval.scorers.audio.base import SoundScorer
from eval.scorers.audio.networks import DNSMOS, DistillMOS, Networks, SpeakerEncoder
from eval.scorers.audio.perceptual import package
from eval.scorers.audio.pitch import Pitch, track_pitch
from eval.scorers.records import ScorerRecord
from eval.sounds import Sounds

__all__ = ["SCORERS", "PitchError", "PredictedOpinion", "Recogniser", "SpeakerSimilarity", "VoicingError", "WordErrors", "words_of"]

_RATE = 16000


def _shared(networks: Networks | None, name: str, make: Callable[[], Any]) -> Any:
    """Take a network from `networks`, or make it and put it in."""
    networks = {} if networks is None else networks
    if (name, _RATE) not in networks:
        networks[name, _RATE] = make()
    return networks[name, _RATE]


def _each(sounds: Sounds, wanted: Sequence[bool], name: str, compute: Callable[[Tensor], Any]) -> list[Any]:
    """Compute something of the wanted items at 16 kHz, once for a batch; None for the others."""
    out = []
    for i, (wave, want) in enumerate(zip(sounds.at(_RATE), wanted, strict=True)):
        out.append(sounds.once((name, i), lambda wave=wave: compute(wave)) if want else None)
    return out


# -- opinion ---------------------------------------------------------------------------------------------------------


class PredictedOpinion(SoundScorer):
    """Opinion of listeners as a network predicts it from the reconstruction alone; silence fails."""

    def __init__(self, record: ScorerRecord, networks: Networks | None = None) -> None:
        super().__init__(record)
        self.name, _, self.part = record.name.partition("_")
        kind = {"dnsmos": DNSMOS, "distillmos": DistillMOS}[self.name]
        self._network = _shared(networks, self.name, lambda: kind(record.name))

    def _opinion(self, wave: Tensor) -> Any:
        return self._network(wave) if bool(wave.any()) else None

    def scores(self, reference: Sounds, reconstruction: Sounds, wanted: Sequence[bool]) -> list[float]:
        found = _each(reconstruction, wanted, self.name, self._opinion)
        values = [value[self.part] if isinstance(value, dict) else value for value in found]
        silent = [want and value is None for want, value in zip(wanted, values, strict=True)]
        return [self.cannot("silence") if s else math.nan if v is None else v for s, v in zip(silent, values, strict=True)]


# -- voice and pitch -------------------------------------------------------------------------------------------------


class SpeakerSimilarity(SoundScorer):
    """Cosine of the embeddings of the two voices; silence fails."""

    def __init__(self, record: ScorerRecord, networks: Networks | None = None) -> None:
        super().__init__(record)
        self._network = _shared(networks, "speaker", SpeakerEncoder)

    def _embed(self, wave: Tensor) -> Tensor | None:
        return self._network(wave) if bool(wave.any()) else None

    def scores(self, reference: Sounds, reconstruction: Sounds, wanted: Sequence[bool]) -> list[float]:
        a, b = (_each(sounds, wanted, "speaker", self._embed) for sounds in (reference, reconstruction))
        values = [math.nan if x is None or y is None else float(x @ y) for x, y in zip(a, b, strict=True)]
        missing = [want and math.isnan(value) for want, value in zip(wanted, values, strict=True)]
        return [self.cannot("silence") if m else value for m, value in zip(missing, values, strict=True)]


class PitchError(SoundScorer):
    """Root mean squared difference of the pitch in cents over the frames voiced in both."""

    def scores(self, reference: Sounds, reconstruction: Sounds, wanted: Sequence[bool]) -> list[float]:
        a, b = (_each(sounds, wanted, "pitch", track_pitch) for sounds in (reference, reconstruction))
        return [math.nan if x is None else self._score(x, y) for x, y in zip(a, b, strict=True)]

    def _score(self, a: Pitch, b: Pitch) -> float:
        both = a.voiced & b.voiced
        if int(both.sum()) < self.record.protocol["fewest_frames"]:
            return self.cannot(f"{int(both.sum())} frames are voiced in both")
        return float((1200 * (b.hz[both] / a.hz[both]).log2()).square().mean().sqrt())


class VoicingError(PitchError):
    """Share of the frames whose voicing differs."""

    def _score(self, a: Pitch, b: Pitch) -> float:
        return float((a.voiced != b.voiced).double().mean())


# -- words -----------------------------------------------------------------------------------------------------------


def words_of(text: str) -> str:
    """Lower case words of letters, digits and apostrophes with one space between, for counting word errors."""
    return " ".join(re.findall(r"[\w']+", text.lower().replace("’", "'").replace("_", " ")))


class Recogniser:
    """The recogniser of package pocketsphinx with the US English models it brings."""

    def __init__(self, scorer: str) -> None:
        pocketsphinx = package(scorer, "pocketsphinx", "pocketsphinx")
        self._decoder = pocketsphinx.Decoder(samprate=_RATE, loglevel="FATAL", maxhmmpf=3000)

    def __call__(self, wave: Tensor) -> str:
        """Give the words heard in a waveform `(s,)` of 16 kHz; empty where there are none."""
        samples = (wave.numpy() * 32767).round().clip(-32768, 32767).astype(np.int16)
        self._decoder.reinit_feat()  # what it adapted to belongs to another item
        self._decoder.start_utt()
        self._decoder.process_raw(samples.tobytes(), full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return "" if heard is None else words_of(heard.hypstr)


class WordErrors(SoundScorer):
    """Word error rate of the reconstruction, or by how much it is higher than the original's; items without English text fail."""

    def __init__(self, record: ScorerRecord, networks: Networks | None = None) -> None:
        super().__init__(record)
        self._count: Callable[[str, str], float] = package(record.name, "jiwer", "jiwer").wer
        self._recogniser = _shared(networks, "sphinx", lambda: Recogniser(record.name))

    def scores(self, reference: Sounds, reconstruction: Sounds, wanted: Sequence[bool]) -> list[float]:
        texts = [words_of(text or "") for text in reference.texts]
        spoken = [want and bool(text) for want, text in zip(wanted, texts, strict=True)]
        rates = [self._rates(reconstruction, texts, spoken)]
        if self.record.name == "wer_gap_sphinx":
            rates.append(self._rates(reference, texts, spoken))
        values = [rate[0] - sum(rate[1:]) for rate in zip(*rates, strict=True)]
        missing = [want and not text for want, text in zip(wanted, texts, strict=True)]
        return [self.cannot("no English text is known") if m else value for m, value in zip(missing, values, strict=True)]

    def _rates(self, sounds: Sounds, texts: Sequence[str], spoken: Sequence[bool]) -> list[float]:
        heard = _each(sounds, spoken, "sphinx", self._recogniser)
        return [math.nan if h is None else float(self._count(text, h)) for text, h in zip(texts, heard, strict=True)]


SCORERS: dict[str, type[SoundScorer]] = {
    **{f"dnsmos_{part}": PredictedOpinion for part in ("sig", "bak", "ovrl", "p808")},
    "distillmos": PredictedOpinion,
    "speaker_similarity": SpeakerSimilarity,
    "f0_error_cents": PitchError,
    "voicing_error": VoicingError,
    "wer_sphinx": WordErrors,
    "wer_gap_sphinx": WordErrors,
}
