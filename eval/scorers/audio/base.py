"""What the scorers of sound share: mono waveforms at the rate the scorer is defined for, item by item, a failure is NaN."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eval.scorers.base import ItemScorer
from eval.scorers.records import ScorerRecord
from eval.sounds import Sounds

__all__ = ["SoundScorer", "as_sounds", "check_sounds", "scoring_rate"]

logger = logging.getLogger(__name__)

Batch = Sounds | Tensor | Sequence[Tensor]


def as_sounds(record: ScorerRecord, name: str, sounds: Batch, sample_rate: int | None) -> Sounds:
    """Give a batch as `Sounds`; tensors need `sample_rate`.

    Raises:
        ValueError: tensors without a rate, or a rate that differs from that of the sounds.
    """
    if isinstance(sounds, Sounds):
        if sample_rate not in (None, sounds.sample_rate):
            raise ValueError(
                f"{record.name}.update: sample_rate={sample_rate}, but {name} says {sounds.sample_rate}. Leave it out."
            )
        return sounds
    if sample_rate is None:
        raise ValueError(f"{record.name}.update: sample_rate is missing. Say how many samples a second the waveforms have.")
    return Sounds(sounds, sample_rate)


def check_sounds(record: ScorerRecord, reference: Sounds, reconstruction: Sounds) -> None:
    """Refuse batches that are not the same items at one rate and of one length."""
    lengths = [tuple(len(wave) for wave in batch.waves) for batch in (reference, reconstruction)]
    if reference.sample_rate != reconstruction.sample_rate or lengths[0] != lengths[1]:
        raise ValueError(
            f"{record.name}.update: reference has {lengths[0]} samples at {reference.sample_rate} Hz, reconstruction {lengths[1]} "
            f"at {reconstruction.sample_rate} Hz. Needed: the same items, one by one, of equal rate and length."
        )
    scoring_rate(record, reference.sample_rate)


def scoring_rate(record: ScorerRecord, sample_rate: int) -> int:
    """Give the rate at which a scorer looks at waveforms of a rate.

    Raises:
        ValueError: the scorer needs a higher rate, and would take a missing upper band for a fault.
    """
    if record.sample_rate is None:
        return sample_rate
    if sample_rate < record.sample_rate and not record.raises_rate:
        raise ValueError(
            f"{record.name}: the waveforms have {sample_rate} samples a second. Needed: at least {record.sample_rate}; bringing "
            "them up would leave its upper band empty. Use recordings and a protocol of a higher rate."
        )
    return record.sample_rate


class SoundScorer(ItemScorer):
    """An item scorer of waveforms; a subclass implements `score_item`, or `scores` for what is computed of a batch at once."""

    def __init__(self, record: ScorerRecord, networks: dict[tuple[str, int], Any] | None = None) -> None:
        super().__init__(record)

    def score_item(self, reference: Tensor, reconstruction: Tensor, sample_rate: int) -> float:
        """Score one item, float waveforms `(s,)`; NaN where it cannot be scored."""
        raise NotImplementedError

    def scores(self, reference: Sounds, reconstruction: Sounds, wanted: Sequence[bool]) -> list[float]:
        """Score the items that are `wanted`; NaN for the others."""
        rate = scoring_rate(self.record, reference.sample_rate)
        pairs = zip(reference.at(rate), reconstruction.at(rate), wanted, strict=True)
        return [self.score_item(a, b, rate) if want else math.nan for a, b, want in pairs]

    def update(
        self,
        reference: Batch,
        reconstruction: Batch,
        *,
        sample_rate: int | None = None,
        index: Tensor | None = None,
        failed: Tensor | None = None,
    ) -> None:
        """Score a batch.

        Args:
            reference: originals: `Sounds`, or a tensor `(b, s)` or list of `(s,)`, floating point in [-1, 1].
            reconstruction: the same items after the tokenizer.
            sample_rate: of tensors.
            index: `(b,)` number of each item in its data set; None for items without numbers.
            failed: `(b,)` boolean, True where there is no original or no reconstruction: the item is NaN and counted.

        Raises:
            ValueError: other items, rates or lengths, or a rate lower than this scorer's.
        """
        a = as_sounds(self.record, "reference", reference, sample_rate)
        b = as_sounds(self.record, "reconstruction", reconstruction, sample_rate)
        check_sounds(self.record, a, b)
        bad = [False] * len(a) if failed is None else [bool(value) for value in failed.tolist()]
        finite = [bool(torch.isfinite(wave).all()) for wave in b.waves]
        values = self.scores(a, b, [good and not out for good, out in zip(finite, bad, strict=True)])
        self._add(torch.tensor(values, dtype=torch.float64), index, failed)

    def cannot(self, reason: object) -> float:
        """Say in the log why an item cannot be scored, and give NaN."""
        logger.info("%s: an item cannot be scored (%s). It counts as failed.", self.record.name, reason)
        return math.nan
