"""What generators share that predict a sequence of steps, each a few codes at once: embedding, trunk, heads, loss, sampling.

A family says how codes become steps and back (`to_steps`, `from_steps`). Codes of one step are predicted in parallel from one
hidden state; every code of the step has a table of its own, laid one behind the other in one joint table.

    [start + class, step_1 .. step_{T-1}] -> causal transformer -> scores of step_1 .. step_T

Text is looked at by every block, behind one learned row that stands for no text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.generators.base import Condition
from zoo.generators.drawing import Schedule, check_draw_options, draw_sequence, guidance_at, uniforms
from zoo.generators.registry import GeneratorEntry
from zoo.generators.text import TextCondition, TextProjection
from zoo.generators.text_conditioned import TextConditioned, TextConfig
from zoo.layers.transformer import CausalTransformer, ContextKeys, KVCache, rope_table
from zoo.tokens import Tokens

__all__ = ["SequenceConfig", "SequenceGenerator"]


@dataclass(frozen=True, kw_only=True)
class SequenceConfig(TextConfig):
    """Sizes of the transformer.

    Attributes:
        width, depth_blocks, heads: of the transformer; a head has an even size of at least 2 for each axis of the positions.
        hidden_multiple: the feed-forward width is 8 / 3 of the width, rounded up to a multiple of it.
        dropout: on embeddings, attention and feed-forward outputs, in training.
    """

    width: int = 768
    depth_blocks: int = 12
    heads: int = 12
    hidden_multiple: int = 64
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.vocabulary), "vocabulary", "codebook sizes: this generator makes codes")
        for name in ("depth_blocks", "heads", "hidden_multiple"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        least = 2 * len(self.positions)
        even = self.width >= 1 and self.width % (2 * self.heads) == 0 and self.width // self.heads >= least
        self.require(even, "width", f"heads times an even number of at least {least}")
        self.require(0 <= self.dropout < 1, "dropout", "0 to below 1")


class SequenceGenerator(TextConditioned):
    """Base of the families that go step by step; not a family itself.

    A subclass calls `_build` with the coordinates of its steps and implements `to_steps`, `from_steps`, and where its steps differ
    from one position each, `embed`, `scores` and `real`.
    """

    learns_no_text: ClassVar[bool] = True
    """No text is a learned row of the context; False where it is something else, such as the text ""."""

    def __init__(self, config: SequenceConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: SequenceConfig = config
        self.columns = config.sizes
        self.padded = False

    def _build(self, coordinates: Tensor | None, *, padded: bool = False) -> None:
        """Make the modules; `coordinates (T, axes)` place the steps, `padded` gives each column a row for what is no code.

        A family that places them in another way gives None.
        """
        config, self.padded = self.config, padded
        rows = [size + padded for size in self.columns]
        self.offsets = [sum(rows[:j]) for j in range(len(rows))]
        self.outputs = [sum(self.columns[:j]) for j in range(len(rows))]
        self.register_buffer("row_offsets", torch.tensor(self.offsets, device="cpu"), persistent=False)
        self.start = nn.Parameter(torch.empty(config.width))
        self.class_embedding = nn.Embedding(config.classes, config.width) if config.classes else None
        self.embedding = nn.Embedding(sum(rows), config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.text_projection = self.null_text = None
        if config.text_width is not None:
            self.text_projection = self._make_text_projection(config.text_width)
            self.null_text = nn.Parameter(torch.randn(1, 1, config.width) * 0.02) if self.learns_no_text else None
        self.trunk = self._make_trunk()
        self.head = nn.Linear(config.width, sum(self.columns), bias=False)
        if coordinates is not None:
            self.register_buffer("table", rope_table(coordinates, config.width // config.heads), persistent=False)
        for parameter in (self.start, self.embedding.weight):
            nn.init.normal_(parameter, std=0.02)
        nn.init.zeros_(self.head.weight)
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding.weight, std=0.02)

    def _make_trunk(self) -> nn.Module:
        config = self.config
        return CausalTransformer(
            width=config.width,
            depth=config.depth_blocks,
            heads=config.heads,
            hidden_multiple=config.hidden_multiple,
            eps=1e-5,
            dropout=config.dropout,
            context=None if config.text_width is None else config.width,
        )

    def _make_text_projection(self, channels: int) -> TextProjection:
        return TextProjection(channels, self.config.width, self.config.width)

    # -- what a family says --------------------------------------------------------------------------------------------------------

    def to_steps(self, data: Tensor) -> Tensor:
        """Lay codes `(b, *positions, d)` out as steps `(b, T, m)`."""
        raise NotImplementedError

    def from_steps(self, steps: Tensor) -> Tensor:
        """Undo `to_steps`."""
        raise NotImplementedError

    def embed(self, steps: Tensor, first: int) -> Tensor:
        """Embed steps `(b, t, m)`, of which the first is step number `first`, to `(b, t, width)`."""
        return self.embedding(steps + self.row_offsets).sum(2)

    def scores(self, hidden: Tensor, first: int) -> list[Tensor]:
        """Give the scores `(b, t, k_j)` of each code of the steps from number `first` on, from the trunk's `(b, t, width)`."""
        return list(self.head(hidden).split(list(self.columns), -1))

    def real(self, steps: Tensor, mask: Tensor | None) -> Tensor | None:
        """Which codes of `(b, T, m)` are real, `(b, T, m)` or None for all; `mask (b, *positions)` marks real positions."""
        return None if mask is None else mask.flatten(1)[..., None].expand_as(steps)

    def step_count(self, positions: Sequence[int]) -> int:
        """Steps of an item of so many positions."""
        raise NotImplementedError

    # -- network -----------------------------------------------------------------------------------------------------------------

    def hidden(
        self, steps: Tensor, labels: Tensor | TextCondition, cache: KVCache | None = None, context: ContextKeys | None = None
    ) -> Tensor:
        """Run the trunk on the steps so far `(b, t, m)`; give what predicts steps 1..t+1, or with a filled cache step t+1 only.

        Args:
            steps, labels: codes, and classes or text.
            cache: keys and values of the steps before; is filled.
            context: what `context` gave for these labels; None makes it again.
        """
        first, x = self.inputs(steps, labels, cache)
        context = self.context(labels) if context is None else context
        return self.trunk(self.dropout(x), self.table[first : first + x.shape[1]], cache, context=context)

    def inputs(self, steps: Tensor, labels: Tensor | TextCondition, cache: KVCache | None) -> tuple[int, Tensor]:
        """Embed what the trunk has not seen yet: the place of the first vector, and the vectors `(b, n, width)`."""
        if cache is not None and cache.kept:
            return cache.kept, self.embed(steps[:, cache.kept - 1 :], cache.kept - 1)
        x = self._begin(labels)[:, None]
        return 0, torch.cat([x, self.embed(steps, 0)], 1) if steps.shape[1] else x

    def context(self, labels: Tensor | TextCondition) -> ContextKeys | None:
        """Make of the text what the blocks look at; None where the condition is no text."""
        if not isinstance(labels, TextCondition):
            return None
        assert self.text_projection is not None
        rows = self.text_projection(labels.embeddings.to(self.start))
        known = labels.known
        if self.null_text is not None:
            rows = torch.cat([self.null_text.expand(len(labels), -1, -1), rows], 1)
            known = F.pad(known, (1, 0), value=True)
        return self.trunk.read(rows, known)

    def _begin(self, labels: Tensor | TextCondition) -> Tensor:
        """The first vector `(b, width)`: a learned start, and the class unless it is the null class."""
        start = self.start.expand(len(labels), -1)
        if self.class_embedding is None or isinstance(labels, TextCondition):
            return start
        known = self.class_embedding(labels.clamp(max=self.config.classes - 1))
        return start + known * (labels != self.null)[:, None]

    def predict(self, steps: Tensor, labels: Tensor | TextCondition) -> list[Tensor]:
        """Teacher forcing: the scores `(b, T, k_j)` of each code of `(b, T, m)` from the steps before it."""
        return self.scores(self.hidden(steps[:, :-1], labels), 0)

    # -- the two verbs -------------------------------------------------------------------------------------------------------------

    @property
    def _takes_lengths(self) -> bool:
        return len(self.config.positions) == 1

    @property
    def _fitting(self) -> str:
        return f"1 to {self.config.positions[0]}" if self._takes_lengths else f"{self.config.positions}"

    def _fits(self, positions: tuple[int, ...]) -> bool:
        if self._takes_lengths:
            return len(positions) == 1 and positions[0] <= self.config.positions[0]
        return positions == self.config.positions

    def _loss(self, data: Tensor, labels: Tensor | TextCondition, mask: Tensor | None, draws: torch.Generator) -> Tensor:
        steps = self.to_steps(data)
        real = self.real(steps, mask)
        losses = self.code_losses(steps, labels)
        return losses.mean() if real is None else (losses * real).sum() / real.sum()

    def nats(self, tokens: Tokens, condition: Condition = None) -> Tensor:
        """Give the negative log-likelihood of each item, `(b,)` nats: the sum over all its codes, each given those before it.

        Args:
            tokens, condition: as for `loss`; nothing is left out and nothing is drawn.

        Raises:
            ValueError: as `loss`.
        """
        name = f"{self.info.name}.nats"
        self._check_tokens(tokens, name)
        labels = self._labels(condition, len(tokens), name).to(tokens.device)
        steps = self.to_steps(tokens.data)
        real = self.real(steps, None if tokens.lengths is None else tokens.mask)
        losses = self.code_losses(steps, labels)
        return (losses if real is None else losses * real).flatten(1).sum(1)

    def code_losses(self, steps: Tensor, labels: Tensor | TextCondition) -> Tensor:
        """Nats of each code of `(b, T, m)` given the steps before it; nonsense where a code is not real."""
        parts = []
        for j, scores in enumerate(self.predict(steps, labels)):
            target = steps[..., j].clamp(0, scores.shape[-1] - 1)
            parts.append(F.cross_entropy(scores.flatten(0, 1).float(), target.flatten(), reduction="none").view_as(target))
        return torch.stack(parts, -1)

    def _sample(
        self,
        labels: Tensor | TextCondition,
        seeds: list[int],
        guidance: float,
        *,
        tokens: int | None = None,
        schedule: Schedule = "constant",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        cache: bool = True,
    ) -> Tensor:
        """Draw codes.

        Args:
            labels, seeds, guidance: of each item, as `sample` gives them.
            tokens: stop after so many positions of a sequence; the result is the beginning of what a longer call gives.
            schedule: how guidance grows over the steps (`drawing.guidance_at`).
            temperature, top_k, top_p: of the draws, see `drawing.draw_codes`.
            cache: keep keys and values; False runs everything again at each step.
        """
        name, positions = f"{self.info.name}.sample", self.config.positions
        check_draw_options(name, temperature=temperature, top_k=top_k, top_p=top_p)
        if tokens is not None:
            if not self._takes_lengths:
                raise ValueError(f"{name}: tokens={tokens}, but a grid of {positions} has one size. Leave it out.")
            if not isinstance(tokens, int) or not 1 <= tokens <= positions[0]:
                raise ValueError(f"{name}: tokens={tokens!r}. Allowed: 1..{positions[0]}.")
            positions = (tokens,)
        both, whole = self.guided_labels(labels, guidance), self.step_count(self.config.positions)
        steps = self.step_count(positions)
        kept, context = self.trunk.cache(len(both), steps) if cache else None, self.context(both)
        u = uniforms(seeds, (whole, self.codes_per_step), device=labels.device)[:, :steps]
        scale = partial(guidance_at, schedule, guidance, steps=whole) if guidance != 1 else None

        def predict(so_far: Tensor) -> list[Tensor]:
            hidden = self.hidden(so_far, both, kept, context)[:, -1:]
            return [scores[:, 0] for scores in self.scores(hidden, so_far.shape[1])]

        drawn = draw_sequence(predict, u, guidance=scale, temperature=temperature, top_k=top_k, top_p=top_p)
        return self.from_steps(drawn)

    @property
    def codes_per_step(self) -> int:
        """m, the codes that one step draws."""
        return len(self.columns)
