"""The scorers of one rate together: fed batch by batch, they give a point of a result and the scores of every item."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from eval.results import Point
from eval.scorers import make_scorers
from eval.scorers.base import ItemScorer
from eval.scorers.tokens import CodeCounts
from zoo.tokens import Tokens, TokenSpec

__all__ = ["PointMeter"]


class PointMeter:
    """Score reconstructions at one rate.

    Args:
        rate: of the tokenizer or codec.
        scorers: names.
        spec: of the tokens; None for a codec without tokens.
        positions: token positions of the longest item.
        networks: shared between the rates; see `eval.scorers.make_scorers`.
        device: of the scorers.
        sound: rates are bits per second, and items are `Sounds`.
    """

    def __init__(
        self,
        rate: Mapping[str, Any],
        scorers: Iterable[str],
        *,
        spec: TokenSpec | None = None,
        positions: int | None = None,
        networks: dict[tuple[str, int], Any] | None = None,
        device: torch.device | str = "cpu",
        sound: bool = False,
    ) -> None:
        self.sound = sound
        self.rate = dict(rate)
        made = make_scorers(scorers, spec=spec, positions=positions, networks=networks)
        self.scorers = {name: scorer.to(device) for name, scorer in made.items()}
        self._bits: list[Tensor] = []
        self._positions: list[Tensor] = []

    @property
    def definitions(self) -> dict[str, dict[str, Any]]:
        """Definition of each scorer, with the hash of its network, for the protocol."""
        return {name: scorer.record.definition() for name, scorer in self.scorers.items()}

    def update(
        self,
        reference: Any,
        reconstruction: Any,
        *,
        index: Tensor,
        failed: Tensor,
        tokens: Tokens | None = None,
        rates: Tensor | None = None,
    ) -> None:
        """Score a batch.

        Args:
            reference: originals: pictures, uint8 `(b, 3, h, w)`, `Clips` or `Sounds`.
            reconstruction: the same items.
            index: `(b,)` int64 number of each item in the data set.
            failed: `(b,)` boolean, True for items without original or reconstruction.
            tokens: what the reconstruction was decoded from.
            rates: bits per pixel, or per second, `(b,)`, for a codec without tokens.
        """
        for scorer in self.scorers.values():
            if scorer.record.name == "tokens_per_second":
                scorer.update(_per_second(tokens, reference), index=index, failed=failed)
            elif scorer.record.kind == "tokens":
                scorer.update(rates if tokens is None else tokens, index=index, failed=failed)
            else:
                scorer.update(reference, reconstruction, index=index, failed=failed)
        good = ~failed.cpu()
        if tokens is not None:
            rates = tokens.bits_per_second() if self.sound else tokens.bits_per_pixel()
            self._positions.append(tokens.counts.cpu()[good])
        if rates is not None:
            self._bits.append(rates.double().cpu()[good])

    def point(self, *, seed: int = 0) -> Point:
        """Give the scores over all batches (and all processes, for the scores)."""
        scores = {name: scorer.result(seed=seed) for name, scorer in self.scorers.items()}
        counters = [scorer for scorer in self.scorers.values() if isinstance(scorer, CodeCounts)]
        return Point(
            rate=self.rate,
            bits_per_pixel=None if self.sound else _mean(self._bits),
            bits_per_second=_mean(self._bits) if self.sound else None,
            tokens_per_item=_mean(self._positions),
            scores=scores,
            codes=counters[0].details() if counters else {},
        )

    def per_item(self) -> tuple[list[int], dict[str, list[float]]]:
        """Give the numbers of the items, rising, and for each per-item score its values in that order, NaN where it failed."""
        numbers: list[int] = []
        columns = {}
        for name, scorer in self.scorers.items():
            if isinstance(scorer, ItemScorer):
                index, values = scorer.per_item()
                numbers, columns[name] = index.tolist(), values.tolist()
        return numbers, columns


def _per_second(tokens: Tokens | None, clips: Any) -> Tensor:
    """Positions over the seconds of each clip, `(b,)` float64."""
    if tokens is None:
        raise ValueError("scorer tokens_per_second: there are no tokens to count. Leave it out.")
    return tokens.counts.double().cpu() / clips.seconds


def _mean(parts: list[Tensor]) -> float | None:
    """Mean over all items, as a weighted sum over processes where there are several; None where there are none."""
    if not parts:
        return None
    values = torch.cat(parts).double()
    total = torch.tensor([float(values.sum()), float(len(values))], dtype=torch.float64)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        total = total.to(device)
        torch.distributed.all_reduce(total)
    return float(total[0] / total[1]) if float(total[1]) else None
