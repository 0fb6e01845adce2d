"""What all scorers share: items are numbered, a failed item is NaN and counted, states join over devices.

Pictures are uint8 `(b, 3, h, w)`, as a reader would see them.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from eval.intervals import bootstrap_mean
from eval.results import Score
from eval.scorers.records import ScorerRecord

__all__ = ["ItemScorer", "PictureScorer", "Scorer", "check_pictures"]


class Scorer(Metric):
    """A metric with its record; `compute()` gives one number, `result()` what a result file stores.

    Every process of a distributed run has to call `update` at least once before `compute`.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, record: ScorerRecord) -> None:
        super().__init__()
        self.record = record

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]  # a constant of the class there
        return None if self.record.better is None else self.record.better == "higher"

    def result(self, *, seed: int = 0) -> Score:
        """Give value, confidence interval where there is one, and how many items gave it and how many failed."""
        raise NotImplementedError


class ItemScorer(Scorer):
    """One number for each item; the value is their mean over all items that did not fail, never a mean of means."""

    values: list[Tensor]
    index: list[Tensor]

    def __init__(self, record: ScorerRecord) -> None:
        super().__init__(record)
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.add_state("index", default=[], dist_reduce_fx="cat")

    def _add(self, values: Tensor, index: Tensor | None, failed: Tensor | None) -> None:
        values = values.detach().double()
        if failed is not None:
            values = values.masked_fill(failed.to(values.device), torch.nan)
        if index is None:
            index = torch.full((len(values),), -1)
        if index.shape != values.shape:
            raise ValueError(
                f"{self.record.name}.update: index has shape {tuple(index.shape)} for {len(values)} items. Give one number each."
            )
        self.values.append(values)
        self.index.append(index.to(values.device, torch.int64))

    def compute(self) -> Tensor:
        """Give the mean over the items that did not fail, float64; NaN where all failed."""
        return dim_zero_cat(self.values).nanmean()

    def per_item(self) -> tuple[Tensor, Tensor]:
        """Give the numbers of the items `(n,)` int64, rising, and their values `(n,)` float64, of all processes, on the CPU.

        Raises:
            ValueError: an item was scored twice, as by a sampler that pads: its weight would be wrong.
        """
        with self.sync_context():
            index, values = dim_zero_cat(self.index).cpu(), dim_zero_cat(self.values).cpu()
        order = index.argsort(stable=True)
        index, values = index[order], values[order]
        twice = (index[1:] == index[:-1]) & (index[1:] >= 0)
        if bool(twice.any()):
            number = int(index[1:][twice][0])
            raise ValueError(f"{self.record.name}: item {number} was scored twice. Use a sampler that shows each item once.")
        return index, values

    def result(self, *, seed: int = 0) -> Score:
        _, values = self.per_item()
        good = values[~values.isnan()]
        failed = len(values) - len(good)
        if not len(good):
            return Score(mean=None, ci95=None, n=0, failed=failed)
        return Score(mean=float(good.mean()), ci95=bootstrap_mean(good, seed=seed), n=len(good), failed=failed)


class PictureScorer(ItemScorer):
    """An item scorer of original and reconstruction; a subclass implements `score`."""

    def score(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Score uint8 pictures `(b, 3, h, w)`, `(b,)`."""
        raise NotImplementedError

    def update(
        self, reference: Tensor, reconstruction: Tensor, *, index: Tensor | None = None, failed: Tensor | None = None
    ) -> None:
        """Score a batch.

        Args:
            reference: originals, uint8 `(b, 3, h, w)`.
            reconstruction: the same items after the tokenizer, same shape.
            index: `(b,)` number of each item in its data set; None for items without numbers.
            failed: `(b,)` boolean, True where there is no original or no reconstruction: the item is NaN and counted, and its
                pictures are not looked at.

        Raises:
            ValueError: a wrong dtype, shape or side.
        """
        check_pictures(self.record, reference, reconstruction)
        self._add(self.score(reference, reconstruction), index, failed)


def check_pictures(record: ScorerRecord, reference: Tensor, reconstruction: Tensor) -> None:
    """Refuse what is not a pair of batches of 8-bit pictures."""
    for name, pictures in (("reference", reference), ("reconstruction", reconstruction)):
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(
                f"{record.name}.update: {name} has dtype {pictures.dtype} and shape {tuple(pictures.shape)}. "
                "Needed: torch.uint8 (b, 3, h, w); zoo.media.to_uint8 rounds a decoded batch."
            )
    if reference.shape != reconstruction.shape:
        raise ValueError(
            f"{record.name}.update: reference has shape {tuple(reference.shape)}, reconstruction {tuple(reconstruction.shape)}. "
            "Needed: the same pictures, one by one."
        )
    if min(reference.shape[2:]) < record.min_side:
        raise ValueError(
            f"{record.name}.update: sides {tuple(reference.shape[2:])} are too small. Needed: at least {record.min_side} px."
        )
