"""A class-conditional autoregressive transformer over any tokens: ordered 1D, grids in raster order, frames x levels.

Our own composition of known parts: the Llama block (arXiv 2302.13971), a learned start to which the class is added and any prefix
as a sample (FlexTok, arXiv 2502.13967), rotary positions of the place that is predicted, and the delay pattern for residual
levels (MusicGen, arXiv 2306.05284).

    pattern "parallel": a step is one position, its d codes independent of each other           n steps
    pattern "delay":    level j of position i is in step i + j, so it has seen levels 0..j-1    n + d - 1 steps
    pattern "flat":     a step is one code, level after level within a position                 n * d steps
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.generators.registry import GeneratorEntry
from zoo.generators.sequence import SequenceConfig, SequenceGenerator
from zoo.layers.transformer import grid_coordinates

__all__ = ["Autoregressive", "AutoregressiveConfig"]

Pattern = Literal["parallel", "delay", "flat"]


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig(SequenceConfig):
    """Sizes of the transformer, and the pattern.

    Attributes:
        pattern: how the codes of one position follow each other; with one code for each position all three are the same.
    """

    pattern: Pattern = "parallel"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.pattern in get_args(Pattern), "pattern", ", ".join(get_args(Pattern)))
        line = self.pattern != "delay" or len(self.positions) == 1
        self.require(line, "pattern", "'delay' for one axis of positions only; 'parallel' or 'flat' for a grid")


class Autoregressive(SequenceGenerator):
    """Codes `(b, *positions, d)` from a class."""

    family = "autoregressive"
    Config = AutoregressiveConfig
    facts = {"unit": "token", "objective": "cross-entropy", "context": "clean"}

    def __init__(self, config: AutoregressiveConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: AutoregressiveConfig = config
        with torch.device("cpu"):
            where = grid_coordinates(config.positions)
            if config.pattern == "delay":
                where = torch.arange(self.step_count(config.positions), dtype=torch.float32)[:, None]
            elif config.pattern == "flat":
                where = where.repeat_interleave(config.depth, 0)
            self._build(where, padded=config.pattern == "delay" and config.depth > 1)

    # -- codes and steps -----------------------------------------------------------------------------------------------------------

    def step_count(self, positions: Sequence[int]) -> int:
        n, depth = 1, self.config.depth
        for side in positions:
            n *= side
        return {"parallel": n, "delay": n + depth - 1, "flat": n * depth}[self.config.pattern]

    @property
    def codes_per_step(self) -> int:
        return 1 if self.config.pattern == "flat" else self.config.depth

    def to_steps(self, data: Tensor) -> Tensor:
        codes = data.flatten(1, -2)
        if self.config.pattern == "flat":
            return codes.flatten(1)[..., None]
        if self.config.pattern == "delay":
            depth = codes.shape[2]
            return torch.stack([F.pad(codes[..., j], (j, depth - 1 - j)) for j in range(depth)], -1)
        return codes

    def from_steps(self, steps: Tensor) -> Tensor:
        depth = self.config.depth
        if self.config.pattern == "flat":
            codes = steps.reshape(len(steps), -1, depth)
        elif self.config.pattern == "delay":
            n = steps.shape[1] - depth + 1
            codes = torch.stack([steps[:, j : j + n, j] for j in range(depth)], -1)
        else:
            codes = steps
        if len(self.config.positions) == 1:
            return codes
        return codes.unflatten(1, self.config.positions)

    def real(self, steps: Tensor, mask: Tensor | None) -> Tensor | None:
        depth = self.config.depth
        if self.config.pattern == "delay" and depth > 1:
            if mask is None:
                mask = torch.ones(len(steps), steps.shape[1] - depth + 1, dtype=torch.bool, device=steps.device)
            # Where an item is cut short, later steps look at codes that it does not have; at the full length those are no codes.
            number, count = torch.arange(steps.shape[1], device=steps.device), mask.sum(1)
            seen = (number < count[:, None]) | (count == self.config.count)[:, None]
            return torch.stack([F.pad(mask, (j, depth - 1 - j)) & seen for j in range(depth)], -1)
        if self.config.pattern == "flat" and mask is not None:
            return mask.flatten(1).repeat_interleave(depth, 1)[..., None]
        return super().real(steps, mask)

    # -- embedding and scores ------------------------------------------------------------------------------------------------------

    def embed(self, steps: Tensor, first: int) -> Tensor:
        if self.config.pattern == "flat":
            level = (first + torch.arange(steps.shape[1], device=steps.device)) % self.config.depth
            return self.embedding(steps[..., 0] + self.row_offsets[level])
        if self.padded:
            # What is in the corners before the first and behind the last position is no code, whatever was drawn for it.
            number = first + torch.arange(steps.shape[1], device=steps.device)[:, None]
            position = number - torch.arange(self.config.depth, device=steps.device)
            inside = (position >= 0) & (position < self.config.count)
            steps = torch.where(inside, steps, torch.tensor(self.columns, device=steps.device))
        return super().embed(steps, first)

    def scores(self, hidden: Tensor, first: int) -> list[Tensor]:
        if self.config.pattern != "flat":
            return super().scores(hidden, first)
        level = first % self.config.depth
        start, size = self.outputs[level], self.columns[level]
        return [F.linear(hidden, self.head.weight[start : start + size])]

    def code_losses(self, steps: Tensor, labels: Tensor) -> Tensor:
        if self.config.pattern != "flat":
            return super().code_losses(steps, labels)
        depth, hidden = self.config.depth, self.hidden(steps[:, :-1], labels)
        parts = []
        for level in range(depth):
            scores = self.scores(hidden[:, level::depth], level)[0]
            target = steps[:, level::depth, 0]
            parts.append(F.cross_entropy(scores.flatten(0, 1).float(), target.flatten(), reduction="none").view_as(target))
        return torch.stack(parts, -1).flatten(1)[..., None]
