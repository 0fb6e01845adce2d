"""An autoregressive transformer over any tokens, from a class or text: ordered 1D, grids in raster order, frames x levels.

Our own composition of known parts: the Llama block (arXiv 2302.13971), a learned start to which the class is added and any prefix
as a sample (FlexTok, arXiv 2502.13967), rotary positions of the place that is predicted, and the delay pattern for residual
levels (MusicGen, arXiv 2306.05284).

    pattern "parallel": a step is one position, its d codes independent of each other           n steps
    pattern "delay":    level j of position i is in step i + j, so it has seen levels 0..j-1    n + d - 1 steps
    pattern "flat":     a step is one code, level after level within a position                 n * d steps

A code of a large codebook may be written as several digits, `factors`: FSQ's levels are such. Each digit is embedded and predicted
like a code of its own, so that 64,000 codes need tables of 39 rows; with "delay" a digit sees those before it, at few more steps.

Training may mix three tasks, one for each batch (TokenUnify, arXiv 2405.16847): random tokens, the next token, all next tokens. The
paper pre-trains an encoder of volumes so; here the tasks are laid over codes. How they share the network is our choice: one trunk,
a head for each task, and one learned vector for what a task hides. Sampling and the loss in evaluation are those of the next token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.generators.registry import GeneratorEntry
from zoo.generators.sequence import SequenceConfig, SequenceGenerator
from zoo.generators.text import TextCondition
from zoo.layers.transformer import grid_coordinates

__all__ = ["Autoregressive", "AutoregressiveConfig"]

Pattern = Literal["parallel", "delay", "flat"]
Task = Literal["random", "next", "all"]


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig(SequenceConfig):
    """Sizes of the transformer, and the pattern.

    Attributes:
        pattern: how the codes of one position follow each other; with one code for each position all three are the same.
        factors: sizes of the digits that a code is written in, the first digit the fastest; their product is the codebook size.
            Empty predicts codes as they are. For one code at a position only.
        mixture: shares of the tasks "random", "next" and "all" in training, together 1; other than (0, 1, 0) with "parallel" only.
        random_share: share of the positions that the task "random" hides.
    """

    pattern: Pattern = "parallel"
    factors: tuple[int, ...] = ()
    mixture: tuple[float, float, float] = (0.0, 1.0, 0.0)
    random_share: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.pattern in get_args(Pattern), "pattern", ", ".join(get_args(Pattern)))
        line = self.pattern != "delay" or len(self.positions) == 1
        self.require(line, "pattern", "'delay' for one axis of positions only; 'parallel' or 'flat' for a grid")
        whole = not self.factors or (self.depth == 1 and min(self.factors) >= 1 and math.prod(self.factors) == self.sizes[0])
        self.require(whole, "factors", f"sizes with the product {self.sizes[0]}, for one code at a position")
        shares = len(self.mixture) == 3 and min(self.mixture) >= 0 and abs(sum(self.mixture) - 1) < 1e-6
        self.require(shares, "mixture", "three shares of at least 0 that together are 1")
        self.require(not self.mixed or self.pattern == "parallel", "mixture", "(0, 1, 0) with this pattern; others with 'parallel'")
        self.require(0 < self.random_share < 1, "random_share", "above 0, below 1")

    @property
    def mixed(self) -> bool:
        """Training has another task than the next token."""
        return self.mixture[0] > 0 or self.mixture[2] > 0


class Autoregressive(SequenceGenerator):
    """Codes `(b, *positions, d)` from a class or text."""

    family = "autoregressive"
    Config = AutoregressiveConfig
    facts = {"unit": "token", "objective": "cross-entropy", "context": "clean"}

    def __init__(self, config: AutoregressiveConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: AutoregressiveConfig = config
        self.columns = config.factors or config.sizes
        self.levels = len(self.columns)
        sizes = config.factors or (1,)
        bases = [math.prod(sizes[:j]) for j in range(len(sizes))]
        self.register_buffer("digits", torch.tensor(sizes, device="cpu"), persistent=False)
        self.register_buffer("bases", torch.tensor(bases, device="cpu"), persistent=False)
        with torch.device("cpu"):
            where = grid_coordinates(config.positions)
            if config.pattern == "delay":
                where = torch.arange(self.step_count(config.positions), dtype=torch.float32)[:, None]
            elif config.pattern == "flat":
                where = where.repeat_interleave(self.levels, 0)
        self._build(where, padded=config.pattern == "delay" and self.levels > 1)
        self.hidden_step = nn.Parameter(torch.randn(config.width) * 0.02) if config.mixed else None
        wanted = [task for task, share in zip(("random", "all"), config.mixture[::2], strict=True) if share > 0]
        self.task_heads = nn.ModuleDict({task: nn.Linear(config.width, sum(self.columns), bias=False) for task in wanted})
        for head in self.task_heads.values():
            nn.init.zeros_(head.weight)

    # -- codes and steps -----------------------------------------------------------------------------------------------------------

    def step_count(self, positions: Sequence[int]) -> int:
        n, depth = 1, self.levels
        for side in positions:
            n *= side
        return {"parallel": n, "delay": n + depth - 1, "flat": n * depth}[self.config.pattern]

    @property
    def codes_per_step(self) -> int:
        return 1 if self.config.pattern == "flat" else self.levels

    def to_steps(self, data: Tensor) -> Tensor:
        codes = data.flatten(1, -2)
        if self.config.factors:
            codes = codes // self.bases % self.digits
        if self.config.pattern == "flat":
            return codes.flatten(1)[..., None]
        if self.config.pattern == "delay":
            depth = codes.shape[2]
            return torch.stack([F.pad(codes[..., j], (j, depth - 1 - j)) for j in range(depth)], -1)
        return codes

    def from_steps(self, steps: Tensor) -> Tensor:
        depth = self.levels
        if self.config.pattern == "flat":
            codes = steps.reshape(len(steps), -1, depth)
        elif self.config.pattern == "delay":
            n = steps.shape[1] - depth + 1
            codes = torch.stack([steps[:, j : j + n, j] for j in range(depth)], -1)
        else:
            codes = steps
        if self.config.factors:
            codes = (codes * self.bases).sum(-1, keepdim=True)
        if len(self.config.positions) == 1:
            return codes
        return codes.unflatten(1, self.config.positions)

    def real(self, steps: Tensor, mask: Tensor | None) -> Tensor | None:
        depth = self.levels
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
            level = (first + torch.arange(steps.shape[1], device=steps.device)) % self.levels
            return self.embedding(steps[..., 0] + self.row_offsets[level])
        if self.padded:
            # What is in the corners before the first and behind the last position is no code, whatever was drawn for it.
            number = first + torch.arange(steps.shape[1], device=steps.device)[:, None]
            position = number - torch.arange(self.levels, device=steps.device)
            inside = (position >= 0) & (position < self.config.count)
            steps = torch.where(inside, steps, torch.tensor(self.columns, device=steps.device))
        return super().embed(steps, first)

    def scores(self, hidden: Tensor, first: int) -> list[Tensor]:
        if self.config.pattern != "flat":
            return super().scores(hidden, first)
        level = first % self.levels
        start, size = self.outputs[level], self.columns[level]
        return [F.linear(hidden, self.head.weight[start : start + size])]

    def code_losses(self, steps: Tensor, labels: Tensor | TextCondition) -> Tensor:
        if self.config.pattern != "flat":
            return super().code_losses(steps, labels)
        depth, hidden = self.levels, self.hidden(steps[:, :-1], labels)
        parts = []
        for level in range(depth):
            scores = self.scores(hidden[:, level::depth], level)[0]
            target = steps[:, level::depth, 0]
            parts.append(F.cross_entropy(scores.flatten(0, 1).float(), target.flatten(), reduction="none").view_as(target))
        return torch.stack(parts, -1).flatten(1)[..., None]

    # -- mixture of tasks ----------------------------------------------------------------------------------------------------------

    def _loss(self, data: Tensor, labels: Tensor | TextCondition, mask: Tensor | None, draws: torch.Generator) -> Tensor:
        return self._digit_loss(data, labels, mask, draws) * len(self.config.factors or (1,))

    def _digit_loss(self, data: Tensor, labels: Tensor | TextCondition, mask: Tensor | None, draws: torch.Generator) -> Tensor:
        """Nats of each code, or of each digit where codes are written in digits."""
        if not (self.config.mixed and self.training):
            return super()._loss(data, labels, mask, draws)
        shares = torch.tensor(self.config.mixture, device=draws.device)
        task = get_args(Task)[int(torch.multinomial(shares, 1, generator=draws))]
        if task == "next":
            return super()._loss(data, labels, mask, draws)
        steps = self.to_steps(data)
        b, t = steps.shape[:2]
        real = torch.ones(b, t, dtype=torch.bool, device=steps.device) if mask is None else mask.flatten(1)
        chance, length = torch.rand(b, t, generator=draws, device=draws.device).to(steps.device), real.sum(1, keepdim=True)
        if task == "random":
            rank = chance.masked_fill(~real, 2).argsort(1).argsort(1)
            hidden = rank < (self.config.random_share * length).round().clamp(min=1)
        else:
            hidden = torch.arange(t, device=steps.device) >= (chance[:, :1] * length).floor()
        return self.task_losses(task, steps, hidden, labels)[hidden & real].mean()

    def task_losses(self, task: Task, steps: Tensor, hidden: Tensor, labels: Tensor | TextCondition) -> Tensor:
        """Nats of each code of `steps (b, T, m)` where a task hides the steps `hidden (b, T)`; they count where it hides.

        Args:
            task: "random": attention sees all steps but the hidden and the last, before and after. "all": it sees those before,
                and `hidden` is everything from some step on.
            steps, hidden, labels: codes, what is hidden, classes.

        Raises:
            ValueError: a task that has no share in the configuration's mixture, and "next", which hides nothing.
        """
        if task not in self.task_heads:
            known = ", ".join(self.task_heads) or "none"
            raise ValueError(f"{self.info.name}.task_losses: task={task!r}. Allowed by the configuration's mixture: {known}.")
        shown = torch.where(hidden[:, :-1, None], self.hidden_step, self.embed(steps[:, :-1], 0))
        x = self.dropout(torch.cat([self._begin(labels)[:, None], shown], 1))
        features = self.trunk(x, self.table[: x.shape[1]], causal=task == "all", context=self.context(labels))
        parts = []
        for j, scores in enumerate(self.task_heads[task](features).split(list(self.columns), -1)):
            target = steps[..., j].clamp(0, scores.shape[-1] - 1)
            parts.append(F.cross_entropy(scores.flatten(0, 1).float(), target.flatten(), reduction="none").view_as(target))
        return torch.stack(parts, -1)
