"""Listening models that compare with the original: PESQ, STOI and ViSQOL, through their packages."""

import math
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import Tensor

from eval.scorers.audio.base import SoundScorer
from eval.scorers.records import ScorerRecord

__all__ = ["PESQ", "SCORERS", "STOI", "ViSQOL", "package"]


def package(scorer: str, module: str, name: str) -> Any:
    """Import a module of an optional package.

    Raises:
        ModuleNotFoundError: it is missing; the text has the command.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"scorer {scorer}: package {name} is not installed ({error}). Install it with: pip install 'tokenizer-zoo[audio-eval]'"
        ) from error


class _Packaged(SoundScorer):
    """A scorer whose number comes from a package; its version is part of the protocol."""

    def __init__(self, record: ScorerRecord, networks: dict[tuple[str, int], Any] | None = None) -> None:
        super().__init__(record)
        self._load(record)
        self.record = record.with_protocol(version=version(record.protocol["package"]))

    def _load(self, record: ScorerRecord) -> None:
        raise NotImplementedError


class PESQ(_Packaged):
    """Perceptual evaluation of speech quality; silence and items under a quarter of a second fail."""

    def _load(self, record: ScorerRecord) -> None:
        self._module = package(record.name, "pesq", "pesq")

    def score_item(self, reference: Tensor, reconstruction: Tensor, sample_rate: int) -> float:
        mode = self.record.protocol["mode"]
        if not bool(reference.any()) or not bool(reconstruction.any()):
            return self.cannot("silence")
        try:
            return float(self._module.pesq(sample_rate, reference.numpy(), reconstruction.numpy(), mode))
        except self._module.PesqError as error:
            return self.cannot(error.args[0] if error.args else error)


class STOI(_Packaged):
    """Short-time objective intelligibility; items with too few frames of speech fail."""

    def _load(self, record: ScorerRecord) -> None:
        self._stoi: Callable[..., float] = package(record.name, "pystoi", "pystoi").stoi

    def score_item(self, reference: Tensor, reconstruction: Tensor, sample_rate: int) -> float:
        if not bool(reference.any()) or not bool(reconstruction.any()):
            return self.cannot("silence")
        a, b = reference.double().numpy(), reconstruction.double().numpy()
        with warnings.catch_warnings():
            # pystoi gives 1e-5 with a warning where there are not 30 frames of speech: that is no score.
            warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
            try:
                value = float(self._stoi(a, b, sample_rate, extended=self.record.protocol["extended"]))
            except (RuntimeWarning, ValueError) as error:
                return self.cannot(error)
        return value if math.isfinite(value) else self.cannot("the package gave no number")


class ViSQOL(_Packaged):
    """Virtual speech quality objective listener."""

    def _load(self, record: ScorerRecord) -> None:
        visqol = package(record.name, "visqol", "visqol-python[lattice]")
        speech = record.name == "visqol_speech"
        if speech:
            package(record.name, "ai_edge_litert.interpreter", "ai-edge-litert")
        self._api = visqol.VisqolApi()
        self._api.create(mode="speech" if speech else "audio", use_lattice_model=True if speech else None)

    def score_item(self, reference: Tensor, reconstruction: Tensor, sample_rate: int) -> float:
        if not bool(reference.any()) or not bool(reconstruction.any()):
            return self.cannot("silence")
        a, b = (np.ascontiguousarray(x.double().numpy()) for x in (reference, reconstruction))
        try:
            value = float(self._api.measure_from_arrays(a, b, sample_rate).moslqo)
        except (ValueError, RuntimeError, IndexError, ZeroDivisionError) as error:  # too short for one patch, no active patch
            return self.cannot(error)
        return value if math.isfinite(value) else self.cannot("the package gave no number")


SCORERS: dict[str, type[SoundScorer]] = {
    "pesq_wb": PESQ,
    "pesq_nb": PESQ,
    "stoi": STOI,
    "estoi": STOI,
    "visqol_speech": ViSQOL,
    "visqol_audio": ViSQOL,
}
