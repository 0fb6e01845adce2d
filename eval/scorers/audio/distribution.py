"""Distances of two sets of sounds on the features of a network: each item gives one row of features for every window."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from eval.results import Score
from eval.scorers.audio.base import Batch, as_sounds, check_sounds
from eval.scorers.audio.networks import Networks, SoundFeatures
from eval.scorers.base import Scorer
from eval.scorers.distribution import frechet_distance, kernel_distance
from eval.scorers.records import ScorerRecord

__all__ = ["SCORERS", "FrechetAudioDistance", "KernelAudioDistance"]

_RATE = 44100


class _SetScorer(Scorer):
    """Keeps the features of all windows of both sets; an item that failed is left out of both and counted.

    Args:
        record: of the scorer.
        networks: shared between scorers.
        features: waveform `(s,)` of 44.1 kHz to `(windows, d)`; None takes the network of the record.
    """

    a: list[Tensor]
    b: list[Tensor]
    count: Tensor
    failures: Tensor

    def __init__(
        self, record: ScorerRecord, networks: Networks | None = None, *, features: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__(record)
        networks = {} if networks is None else networks
        if features is None and ("aisfx", _RATE) not in networks:
            networks["aisfx", _RATE] = SoundFeatures()
        network: Any = networks["aisfx", _RATE].forward if features is None else features
        self._features: list[Any] = [network]  # in a list: it is no part of this metric's state
        self.add_state("a", default=[], dist_reduce_fx="cat")
        self.add_state("b", default=[], dist_reduce_fx="cat")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("failures", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self,
        reference: Batch,
        reconstruction: Batch,
        *,
        sample_rate: int | None = None,
        index: Tensor | None = None,
        failed: Tensor | None = None,
    ) -> None:
        """Add a batch of originals and reconstructions; see `SoundScorer.update`. Items that `failed` `(b,)` are counted only."""
        a = as_sounds(self.record, "reference", reference, sample_rate)
        b = as_sounds(self.record, "reconstruction", reconstruction, sample_rate)
        check_sounds(self.record, a, b)
        bad = [False] * len(a) if failed is None else [bool(value) for value in failed.tolist()]
        for i in range(len(a)):
            if bad[i] or not bool(torch.isfinite(b.waves[i]).all()):
                self.failures += 1
                continue
            for sounds, kept in ((a, self.a), (b, self.b)):
                key = ("features", i, self._features[0])  # equal for all scorers that share the network
                rows = sounds.once(key, lambda s=sounds, i=i: self._features[0](s.at(_RATE)[i]))
                kept.append(rows.double())
            self.count += 1

    def _value(self, a: Tensor, b: Tensor) -> Tensor:
        raise NotImplementedError

    def compute(self) -> Tensor:
        """Give the value, float64.

        Raises:
            ValueError: fewer items than this score needs.
        """
        if int(self.count) < self.record.min_items:
            raise ValueError(f"{self.record.name}: {int(self.count)} items. Needed: at least {self.record.min_items}.")
        return self._value(dim_zero_cat(self.a), dim_zero_cat(self.b))

    def result(self, *, seed: int = 0) -> Score:
        """Give the value; it has no confidence interval."""
        with self.sync_context():
            n, failed = int(self.count), int(self.failures)
        value = float(self.compute()) if n >= self.record.min_items else None
        return Score(mean=value, ci95=None, n=n, failed=failed)


class FrechetAudioDistance(_SetScorer):
    """Frechet distance of the windows' features."""

    def _value(self, a: Tensor, b: Tensor) -> Tensor:
        return frechet_distance(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))


class KernelAudioDistance(_SetScorer):
    """Kernel distance of the windows' features, times 1,000."""

    def _value(self, a: Tensor, b: Tensor) -> Tensor:
        return 1000 * kernel_distance(a, b)


SCORERS: dict[str, type[_SetScorer]] = {"fad_aisfx": FrechetAudioDistance, "kad_aisfx": KernelAudioDistance}
