"""The contract every generator keeps: tokens in and a loss out; a condition and a seed in and tokens out.

Shapes: `b` batch, `d` depth. A family implements `_loss` and `_sample` on plain tensors; checks, conditions, seeds and the meaning
of the tokens are handled here, once. The configuration says for which tokens the generator is: vocabulary of each depth (or
channels of latents), positions, extent. `binding(tokens)` reads that off any tokens of the zoo.
"""

import inspect
import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.generators.registry import GeneratorEntry
from zoo.generators.text import TextCondition
from zoo.tokenizer import Tokenizer
from zoo.tokens import Segment, Tokens, TokenSpec

__all__ = ["Condition", "Generator", "GeneratorConfig", "binding"]

Condition = Tensor | Sequence[int] | int | Sequence[str] | str | TextCondition | None
"""What `loss` and `sample` may be given as the condition; a generator takes classes, or text, or nothing."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Config):
    """What every generator knows of its tokens and its condition.

    Attributes:
        tokenizer: name of the tokenizer whose tokens it makes.
        modality: "image", "video" or "audio".
        positions: shape of the token grid, the largest where the tokens are ordered or frames of sound.
        extent: size of the signal that so many positions stand for.
        vocabulary: codebook size for each depth; empty for latents.
        channels: of latents; None for codes.
        levels: how many depths of the vocabulary are generated; None for all.
        ordered, residual, sample_rate, latents: as in `TokenSpec`.
        segment_lengths, segment_strides: levels of a multi-rate axis, as `TokenSpec.segments`.
        classes: number of classes; 0 for a generator without condition.
        label_dropout: share of items that are trained without their class.
    """

    tokenizer: str
    modality: str = "image"
    positions: tuple[int, ...]
    extent: tuple[int, ...]
    vocabulary: tuple[int, ...] = ()
    channels: int | None = None
    levels: int | None = None
    ordered: bool = False
    residual: bool = False
    sample_rate: float | None = None
    latents: str = "normalised"
    segment_lengths: tuple[int, ...] = ()
    segment_strides: tuple[int, ...] = ()
    classes: int = 1000
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        self.require(len(self.positions) >= 1 and min(self.positions) >= 1, "positions", "sides of at least 1")
        self.require(len(self.extent) >= 1 and min(self.extent) >= 1, "extent", "sides of at least 1")
        self.require(len(self.segment_lengths) == len(self.segment_strides), "segment_strides", "one for each segment length")
        self.require(self.classes >= 0, "classes", "0 or more")
        self.require(0 <= self.label_dropout < 1, "label_dropout", "0 to below 1")
        self.require(self.levels is None or self.levels in self.spec.depths, "levels", f"None, or one of {self.spec.depths}")

    @property
    def spec(self) -> TokenSpec:
        """Meaning of the tokens."""
        pairs = zip(self.segment_lengths, self.segment_strides, strict=True)
        return TokenSpec(
            tokenizer=self.tokenizer,
            modality=self.modality,  # type: ignore[arg-type]
            vocabulary=self.vocabulary,
            channels=self.channels,
            ordered=self.ordered,
            residual=self.residual,
            sample_rate=self.sample_rate,
            segments=tuple(Segment(length=length, stride=stride) for length, stride in pairs),
            latents=self.latents,
        )

    @property
    def count(self) -> int:
        """Positions of one item."""
        return math.prod(self.positions)

    @property
    def depth(self) -> int:
        """Codes or channels of one position."""
        return self.channels or self.levels or len(self.vocabulary)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codebook sizes of the depths that are generated."""
        return self.vocabulary[: self.depth]


def binding(tokens: Tokens) -> dict[str, Any]:
    """Read off tokens what a generator of such tokens must know: fields of `GeneratorConfig`.

    Raises:
        ValueError: the items are of different extent.
    """
    spec, extents = tokens.spec, {tuple(row) for row in tokens.extent.tolist()}
    if len(extents) != 1:
        raise ValueError(f"generators.binding: tokens of {spec.tokenizer} have extents {sorted(extents)}. Needed: one size.")
    return {
        "tokenizer": spec.tokenizer,
        "modality": spec.modality,
        "positions": tokens.positions,
        "extent": extents.pop(),
        "vocabulary": spec.vocabulary,
        "channels": spec.channels,
        "levels": tokens.levels if spec.residual and tokens.levels < len(spec.vocabulary) else None,
        "ordered": spec.ordered,
        "residual": spec.residual,
        "sample_rate": spec.sample_rate,
        "latents": spec.latents,
        "segment_lengths": tuple(segment.length for segment in spec.segments),
        "segment_strides": tuple(segment.stride for segment in spec.segments),
    }


class Generator(nn.Module):
    """Base class of the families.

    A subclass sets `family`, `Config` and `facts`, and implements `_loss` and `_sample`; one that reads a public release also
    implements `from_public` and `rename_public`.
    """

    family: ClassVar[str]
    Config: ClassVar[type[GeneratorConfig]]
    facts: ClassVar[dict[str, Any]] = {}
    config_file: ClassVar[str] = "config.json"  # of the public release
    families: ClassVar[dict[str, type["Generator"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "family" in cls.__dict__:
            Generator.families[cls.family] = cls

    def __init__(self, config: GeneratorConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__()
        self.config = config
        self.info = info or GeneratorEntry(
            name=self.family, family=self.family, summary="", config=config.to_dict(), **self.facts
        )

    # -- what a family provides ----------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> GeneratorConfig:
        """Translate the public release's configuration; `shapes` are those of the tensors beside it."""
        raise ValueError(f"{cls.family}: no public configuration format is known for this family. Load our own format.")

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
        """Give the public release's tensors our parameter names."""
        return tensors

    @classmethod
    def settings_for(cls, tokenizer: Tokenizer) -> dict[str, Any]:
        """Fields of the configuration that this family takes from a tokenizer, beside those that its tokens tell (`binding`)."""
        return {}

    def take_from(self, tokenizer: Tokenizer) -> None:
        """Copy the tensors that this family needs of a tokenizer, such as codebooks; most need none."""

    def _loss(self, data: Tensor, labels: Tensor, mask: Tensor | None, draws: torch.Generator) -> Tensor:
        """Give the training loss of `data (b, *positions, d)`; `labels (b,)` are classes or the null class."""
        raise NotImplementedError

    def _sample(self, labels: Tensor, seeds: list[int], guidance: float, **options: Any) -> Tensor:
        """Draw `(b, *positions, d)`, each item from its own seed."""
        raise NotImplementedError

    # -- facts -----------------------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> TokenSpec:
        """Meaning of the tokens it makes."""
        return self.config.spec

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def null(self) -> int:
        """Label that stands for no condition."""
        return self.config.classes

    def bind(self, tokenizer: Tokenizer) -> Self:
        """Make tokens for this tokenizer from now on, such as one you trained with the vocabulary of a public generator.

        Raises:
            ValueError: its codes or latents are not of the kind that the generator makes.
        """
        new = tokenizer.spec
        for what in ("modality", "vocabulary", "channels"):
            if getattr(new, what) != getattr(self.spec, what):
                raise ValueError(
                    f"{self.info.name}.bind: {new.tokenizer} has {what} {getattr(new, what)}. Needed: {getattr(self.spec, what)}."
                )
        changes = {key: getattr(new, key) for key in ("tokenizer", "ordered", "residual", "sample_rate", "latents")}
        self.config = replace(self.config, **changes)
        return self

    # -- the two verbs -----------------------------------------------------------------------------------------------------------

    def loss(self, tokens: Tokens, condition: Condition = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Give the training loss, a scalar: nats for each code, or the flow's squared error.

        Args:
            tokens: of the tokenizer this generator is for, of its positions.
            condition: one class for all, one for each item `(b,)`, or None for no condition; text or its embeddings where the
                configuration has `text_width` (`TextConditioned`). In training mode the share `label_dropout` of it is left out.
            generator: source of the draws (noise, masks, left-out labels). In evaluation mode None draws from seed 0, so that
                the figure is reproducible; in training mode it must be given, or every step would see the same draws.

        Raises:
            ValueError: tokens of another kind, codes outside the vocabulary, classes outside theirs, text for a generator of
                classes or the reverse, or no `generator` in training.
        """
        name = f"{self.info.name}.loss"
        self._check_tokens(tokens, name)
        labels = self._labels(condition, len(tokens), name).to(tokens.device)
        if generator is None:
            if self.training:
                raise ValueError(f"{name}: generator=None in training mode. Give a torch.Generator, of another state at each step.")
            generator = torch.Generator().manual_seed(0)
        if self.training and self.config.label_dropout:
            dropped = _uniform(generator, len(labels)).to(labels.device) < self.config.label_dropout
            labels = self._left_out(labels, dropped)
        mask = None if tokens.lengths is None else tokens.mask
        data = tokens.data if tokens.discrete else tokens.data.to(next(self.parameters()).dtype)
        return self._loss(data, labels, mask, generator)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition = None,
        *,
        n: int | None = None,
        seed: int | Sequence[int] = 0,
        guidance: float = 1.0,
        **options: Any,
    ) -> Tokens:
        """Draw tokens that the tokenizer decodes.

        Args:
            condition: one class for all, one for each item, or None for no condition; text or its embeddings where the
                configuration has `text_width` (`TextConditioned`).
            n: number of items; None takes the length of `condition`, or 1.
            seed: an int gives item i a stream of its own; a list gives each item the stream that a call for it alone has.
                An item does not depend on its neighbours, up to rounding.
            guidance: scale of classifier-free guidance; 1 is none.
            options: of the family, such as `tokens`, `temperature`, `top_k` or `steps`.

        Returns:
            Tokens of `config.tokenizer`.

        Raises:
            ValueError: the module is in training mode, a wrong class, count or seed, or an option that the family does not have.
        """
        name = f"{self.info.name}.sample"
        if self.training:
            raise ValueError(f"{name}: the module is in training mode, where dropout is active. Call eval() first.")
        if n is None:
            one = isinstance(condition, str) or (torch.is_tensor(condition) and not condition.ndim)
            n = len(condition) if isinstance(condition, Sized) and not one else 1
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ValueError(f"{name}: n={n!r}. Allowed: an int of at least 1.")
        if not isinstance(guidance, int | float) or not math.isfinite(guidance) or guidance < 0:
            raise ValueError(f"{name}: guidance={guidance!r}. Allowed: a finite number of at least 0; 1 is no guidance.")
        if guidance != 1 and not self._conditional:
            raise ValueError(f"{name}: guidance={guidance}, but this generator has no condition to guide by. Leave it out.")
        self._check_options(options, name)
        labels = self._labels(condition, n, name).to(self.device)
        data = self._sample(labels, _item_seeds(seed, n, name), float(guidance), **options)
        return Tokens(data, self.spec, torch.tensor([self._extent(data.shape[1:-1])] * n, device=data.device))

    def guided_labels(self, labels: Tensor, guidance: float) -> Tensor:
        """Labels of one batch that holds the condition and, for guidance, the null class behind it."""
        return labels if guidance == 1 else torch.cat([labels, torch.full_like(labels, self.null)])

    @property
    def _conditional(self) -> bool:
        """There is a condition to guide by."""
        return bool(self.config.classes)

    def _left_out(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """Labels without the condition of the items that `dropped (b,)` marks."""
        return labels.masked_fill(dropped, self.null)

    # -- checks --------------------------------------------------------------------------------------------------------------------

    def _extent(self, positions: Sequence[int]) -> list[int]:
        """Size of the signal of so many positions; sound is shorter when it has fewer frames."""
        extent = list(self.config.extent)
        if self.config.modality == "audio":
            extent[0] = max(1, round(extent[0] * positions[0] / self.config.positions[0]))
        return extent

    def _check_tokens(self, tokens: Tokens, name: str) -> None:
        if not isinstance(tokens, Tokens):
            raise TypeError(f"{name}: tokens is a {type(tokens).__name__}. Needed: zoo.Tokens, as encode() returns.")
        if not len(tokens):
            raise ValueError(f"{name}: tokens hold an empty batch. Give at least one item.")
        for what in ("tokenizer", "modality", "vocabulary", "channels"):
            found, needed = getattr(tokens.spec, what), getattr(self.spec, what)
            if found != needed:
                raise ValueError(f"{name}: tokens have {what} {found!r}. Needed: {needed!r}.")
        if tokens.levels != self.config.depth:
            raise ValueError(f"{name}: tokens have depth {tokens.levels}. Needed: {self.config.depth}.")
        if not self._fits(tokens.positions):
            raise ValueError(f"{name}: tokens have positions {tokens.positions}. Needed: {self._fitting}.")
        if tokens.lengths is not None and not self._takes_lengths:
            raise ValueError(f"{name}: tokens have items of unequal length. Needed: whole items of {self.config.positions}.")
        tokens.check_codes(name)

    @property
    def _takes_lengths(self) -> bool:
        """A family that predicts one position after another may be given shorter items."""
        return False

    @property
    def _fitting(self) -> str:
        return f"{self.config.positions}"

    def _fits(self, positions: tuple[int, ...]) -> bool:
        return positions == self.config.positions

    def _labels(self, condition: Any, n: int, name: str) -> Tensor:
        if condition is None:
            return torch.full((n,), self.null, dtype=torch.int64)
        classes = self.config.classes
        if not classes:
            raise ValueError(f"{name}: condition={condition}, but this generator has no classes. Leave it out.")
        try:
            labels = torch.as_tensor(condition)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}: condition={condition!r}. Needed: one class, or one for each of {n} items.") from error
        if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape not in ((), (n,)):
            raise ValueError(f"{name}: condition has shape {tuple(labels.shape)}. Needed: one class, or one for each of {n} items.")
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
            raise ValueError(f"{name}: condition={labels.tolist()} is outside 0..{classes - 1}. None stands for no condition.")
        return labels.long().expand(n)

    def _check_options(self, options: dict[str, Any], name: str) -> None:
        known = list(inspect.signature(self._sample).parameters)[3:]
        unknown = [key for key in options if key not in known]
        if unknown:
            raise ValueError(f"{name}: no option {', '.join(map(repr, unknown))}. Allowed: {', '.join(known) or 'none'}.")


def _uniform(generator: torch.Generator, n: int) -> Tensor:
    return torch.rand(n, generator=generator, device=generator.device)


def _item_seeds(seed: Any, n: int, name: str) -> list[int]:
    """One 32-bit seed for each item; neighbouring seeds and items give unrelated streams."""
    if isinstance(seed, int) and not isinstance(seed, bool):
        return [_mix(seed, i) for i in range(n)]
    if not isinstance(seed, list | tuple) or len(seed) != n or not all(isinstance(s, int) for s in seed):
        raise ValueError(f"{name}: seed={seed!r} for {n} items. Needed: one int for all, or a list with one for each.")
    return [_mix(s, 0) for s in seed]


def _mix(seed: int, index: int) -> int:
    """Scramble two numbers into 32 bits (the finaliser of SplitMix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return (value ^ (value >> 31)) % 2**32
