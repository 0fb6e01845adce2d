"""Scores of the codes alone: how many bits they take and how much of the codebook they use."""

import math
from typing import Any

import torch
from torch import Tensor

from eval.results import Score
from eval.scorers.base import ItemScorer, Scorer
from eval.scorers.records import ScorerRecord
from zoo.tokens import Tokens, TokenSpec

__all__ = [
    "BitsPerPixel",
    "BitsPerSecond",
    "CodePerplexity",
    "CodebookUse",
    "EntropyBitsPerSecond",
    "TokensPerSecond",
    "entropy_bits",
    "make",
    "position_groups",
]

_MOST_COUNTERS = 2**25  # 256 MiB of counters


class BitsPerPixel(ItemScorer):
    """Bits of each item over its pixels."""

    def update(self, tokens: Tokens | Tensor, *, index: Tensor | None = None, failed: Tensor | None = None) -> None:
        """Add a batch of tokens, or of a codec's bits per pixel `(b,)`; items that `failed` `(b,)` are NaN and counted."""
        self._add(tokens.bits_per_pixel() if isinstance(tokens, Tokens) else tokens, index, failed)


class BitsPerSecond(ItemScorer):
    """Bits of each item over its seconds."""

    def update(self, tokens: Tokens | Tensor, *, index: Tensor | None = None, failed: Tensor | None = None) -> None:
        """Add a batch of tokens, or of a codec's bits per second `(b,)`; items that `failed` `(b,)` are NaN and counted."""
        self._add(tokens.bits_per_second() if isinstance(tokens, Tokens) else tokens, index, failed)


class TokensPerSecond(ItemScorer):
    """Tokens of each item over its seconds."""

    def update(self, rates: Tensor, *, index: Tensor | None = None, failed: Tensor | None = None) -> None:
        """Add tokens per second `(b,)` of a batch; items that `failed` `(b,)` are NaN and counted."""
        self._add(rates, index, failed)


def entropy_bits(counts: Tensor) -> Tensor:
    """Entropy in bits of the frequencies of counts `(..., k)`, `(...)` float64; 0 where nothing was counted."""
    total = counts.sum(-1, keepdim=True).clamp(min=1)
    share = counts.double() / total
    return -torch.special.xlogy(share, share).sum(-1) / math.log(2)


def position_groups(positions: int, spec: TokenSpec) -> list[tuple[int, int]]:
    """First and last position (from 0) of each group of positions that is looked at apart.

    Ordered 1D tokens: 0, 1, 2-3, 4-7, ... so that a kept power of two is a whole number of groups; multi-rate tokens: their
    segments; a grid or an unordered sequence: one group.
    """
    if spec.segments and not spec.deep_segments:
        ends = spec.segment_ends
        return [(first, end - 1) for first, end in zip([0, *ends[:-1]], ends, strict=True)]
    if not spec.ordered:
        return [(0, positions - 1)]
    starts = [0, *(2**i for i in range(positions.bit_length()) if 2**i < positions)]
    return [(first, min(last, positions) - 1) for first, last in zip(starts, [*starts[1:], positions], strict=True)]


class CodeCounts(Scorer):
    """Counts how often each code occurs, at each depth and in each group of positions.

    Args:
        record: of the scorer.
        spec: of the tokens.
        positions: positions of the longest item; only an ordered tokenizer needs it.

    Raises:
        ValueError: latents have no codes, or the codebook is too large to count.
    """

    items: Tensor
    failures: Tensor

    def __init__(self, record: ScorerRecord, spec: TokenSpec, positions: int | None = None) -> None:
        super().__init__(record)
        if not spec.discrete:
            raise ValueError(f"scorer {record.name}: {spec.tokenizer} makes latents, which have no codebook. Leave it out.")
        if positions is None and spec.ordered and not spec.segments:
            raise ValueError(f"scorer {record.name}: positions is needed for {spec.tokenizer}, whose tokens are ordered.")
        self.spec = spec
        self.groups = position_groups(positions or 1, spec)
        if sum(spec.vocabulary) * len(self.groups) > _MOST_COUNTERS:
            raise ValueError(
                f"scorer {record.name}: codebooks of {spec.vocabulary} in {len(self.groups)} groups are more than {_MOST_COUNTERS} "
                "counters. Leave this scorer out."
            )
        for depth, size in enumerate(spec.vocabulary):
            counts = torch.zeros(len(self.groups), size, dtype=torch.int64)
            self.add_state(f"counts_{depth}", default=counts, dist_reduce_fx="sum")
        self.add_state("items", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("failures", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, tokens: Tokens, *, index: Tensor | None = None, failed: Tensor | None = None) -> None:
        """Count the real positions of a batch; items that `failed` `(b,)` are counted as such and their codes are not.

        Raises:
            ValueError: tokens of another vocabulary.
        """
        if tokens.spec.vocabulary != self.spec.vocabulary:
            raise ValueError(
                f"{self.record.name}.update: tokens have vocabulary {tokens.spec.vocabulary}. Needed: {self.spec.vocabulary}."
            )
        if failed is not None and bool(failed.any()):
            self.failures += int(failed.sum())
            tokens = tokens[~failed.to(tokens.device)]
        codes, real = tokens.data, tokens.mask
        if len(self.groups) == 1:
            chosen = [codes[real]]
        else:
            chosen = [codes[:, first : last + 1][real[:, first : last + 1]] for first, last in self.groups]
        for group, rows in enumerate(chosen):
            for depth in range(tokens.levels):
                counts = getattr(self, f"counts_{depth}")
                counts[group] += torch.bincount(rows[:, depth], minlength=counts.shape[1]).to(counts.device)
        self.items += len(tokens)

    def _of(self, counts: Tensor) -> float:
        """Value of the counts `(k,)` of one depth."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        """Give the mean over the depths that were seen, float64; NaN where none was."""
        depths = [self._of(counts) for counts in self._totals()]
        return torch.tensor(depths, dtype=torch.float64).mean()

    def _totals(self) -> list[Tensor]:
        totals = [getattr(self, f"counts_{depth}").sum(0) for depth in range(len(self.spec.vocabulary))]
        return [counts for counts in totals if int(counts.sum())]

    def result(self, *, seed: int = 0) -> Score:
        """Give the value over all codes; it has no confidence interval."""
        with self.sync_context():
            items, failed = int(self.items), int(self.failures)
        return Score(mean=float(self.compute()) if items else None, ci95=None, n=items, failed=failed)

    def details(self) -> dict[str, Any]:
        """Give what was counted, as plain values: for each depth, and for each group of positions where there are several.

        `use` is the used share of the codebook; `use_bound` is what it could be at most with so few codes seen.
        """
        with self.sync_context():
            counts = [getattr(self, f"counts_{depth}").cpu() for depth in range(len(self.spec.vocabulary))]
        out: dict[str, Any] = {"depths": [_describe(table.sum(0)) for table in counts if int(table.sum())]}
        if len(self.groups) > 1:
            out["position_groups"] = [
                {"positions": [first, last], "depths": [_describe(table[group]) for table in counts if int(table[group].sum())]}
                for group, (first, last) in enumerate(self.groups)
                if any(int(table[group].sum()) for table in counts)
            ]
        return out


def _describe(counts: Tensor) -> dict[str, Any]:
    seen, size, used = int(counts.sum()), len(counts), int((counts > 0).sum())
    entropy = float(entropy_bits(counts))
    return {
        "codebook_size": size,
        "codes_seen": seen,
        "used": used,
        "use": used / size,
        "use_bound": min(1.0, seen / size),
        "entropy_bits": entropy,
        "perplexity": 2**entropy,
    }


class CodebookUse(CodeCounts):
    """Used share of the codebook."""

    def _of(self, counts: Tensor) -> float:
        return float((counts > 0).double().mean())


class CodePerplexity(CodeCounts):
    """Perplexity of the codes."""

    def _of(self, counts: Tensor) -> float:
        return 2 ** float(entropy_bits(counts))


class EntropyBitsPerSecond(CodeCounts):
    """Bits a second at the entropy of the codes of each depth: what an ideal coder of single codes would need."""

    seconds: Tensor

    def __init__(self, record: ScorerRecord, spec: TokenSpec, positions: int | None = None) -> None:
        super().__init__(record, spec, positions)
        self.add_state("seconds", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, tokens: Tokens, *, index: Tensor | None = None, failed: Tensor | None = None) -> None:
        super().update(tokens, index=index, failed=failed)
        rate = self.spec.sample_rate
        if rate is None:
            raise ValueError(f"{self.record.name}.update: {self.spec.tokenizer} says no sample rate. Leave this score out.")
        good = slice(None) if failed is None else ~failed.to(tokens.device)
        self.seconds += float(tokens.extent[good, 0].sum()) / rate

    def compute(self) -> Tensor:
        """Give the bits of all codes over the seconds of all items, float64."""
        bits = sum(float(counts.sum()) * float(entropy_bits(counts)) for counts in self._totals())
        return torch.tensor(bits, dtype=torch.float64) / self.seconds


def make(record: ScorerRecord, spec: TokenSpec | None, positions: int | None) -> Scorer:
    """Build the scorer of a record.

    Raises:
        ValueError: no tokens are there to count.
    """
    if record.name == "bits_per_pixel":
        return BitsPerPixel(record)
    if record.name == "bits_per_second":
        return BitsPerSecond(record)
    if record.name == "tokens_per_second":
        return TokensPerSecond(record)
    if spec is None:
        raise ValueError(f"scorer {record.name}: there are no codes to count. Leave it out, or give spec=.")
    return _COUNTED[record.name](record, spec, positions)


_COUNTED: dict[str, type[CodeCounts]] = {
    "codebook_use": CodebookUse,
    "code_perplexity": CodePerplexity,
    "entropy_bits_per_second": EntropyBitsPerSecond,
}
