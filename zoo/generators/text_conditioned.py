"""Generators that may be led by text: what they share in reading a text, and in leaving it out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from zoo.generators.base import Generator, GeneratorConfig
from zoo.generators.registry import GeneratorEntry
from zoo.generators.text import TextCondition, TextTower

__all__ = ["TextConditioned", "TextConfig"]


@dataclass(frozen=True, kw_only=True)
class TextConfig(GeneratorConfig):
    """What a generator knows of its text.

    Attributes:
        text_width: channels of text embeddings as the condition; None for classes. With it `classes` is 0.
        text_encoder: folder or Hub repository of the tower that embeds text; None where the user gives embeddings, or a tower.
        text_length: longest text in tokens; None for what the tower's tokenizer says.
    """

    text_width: int | None = None
    text_encoder: str | None = None
    text_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.text_width is None or self.text_width >= 1, "text_width", "at least 1, or None")
        self.require(self.text_width is None or not self.classes, "classes", "0 with text_width")
        self.require(self.text_encoder is None or self.text_width is not None, "text_encoder", "None without text_width")
        self.require(self.text_length is None or self.text_length >= 1, "text_length", "at least 1, or None")


class TextConditioned(Generator):
    """Base of the families that take a class or text; not a family itself.

    With `text_width` in the configuration `loss` and `sample` take a text for all items, a list with one for each, embeddings
    `(n or 1, m, c)` whose rows of zeros are padding, or a `TextCondition`.
    """

    def __init__(self, config: TextConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: TextConfig = config
        self._tower: TextTower | None = None
        self._empty: TextCondition | None = None

    # -- the tower -----------------------------------------------------------------------------------------------------------------

    def use_text_tower(self, tower: TextTower) -> Self:
        """Embed texts with this tower from now on, such as one on another device.

        Raises:
            ValueError: a generator that takes no text, or embeddings of another width.
        """
        name = f"{self.info.name}.use_text_tower"
        if self.config.text_width is None:
            raise ValueError(f"{name}: this generator takes no text. Its condition is {self._takes}.")
        if tower.width != self.config.text_width:
            raise ValueError(f"{name}: {tower.name} has embeddings of {tower.width}. Needed: {self.config.text_width}.")
        self._tower, self._empty = tower, None
        return self

    def encode_text(self, texts: str | Sequence[str]) -> TextCondition:
        """Embed a text or several, to be given as the condition again and again.

        Raises:
            ValueError: a generator that takes no text or has no tower, or texts that the tower refuses.
        """
        name = f"{self.info.name}.encode_text"
        if self.config.text_width is None:
            raise ValueError(f"{name}: this generator takes no text. Its condition is {self._takes}.")
        if self._tower is None:
            source = self.config.text_encoder
            if source is None:
                raise ValueError(
                    f"{name}: no tower is known for the text. Give embeddings of {self.config.text_width} channels, or a tower: "
                    "use_text_tower(TextTower.load(folder or repository))."
                )
            place = Path(source) if Path(source).is_dir() else source
            self.use_text_tower(TextTower.load(place, device=self.device))
        assert self._tower is not None
        return self._tower.encode([texts] if isinstance(texts, str) else texts, length=self.config.text_length)

    def no_text(self, n: int) -> TextCondition:
        """What stands for no condition, for n items: nothing to look at. A family that learned it from "" gives that."""
        assert self.config.text_width is not None
        return TextCondition(torch.zeros(n, 1, self.config.text_width), torch.zeros(n, 1, dtype=torch.bool))

    # -- what the contract asks ----------------------------------------------------------------------------------------------------

    @property
    def _takes(self) -> str:
        return f"a class of 0..{self.config.classes - 1}" if self.config.classes else "None"

    @property
    def _conditional(self) -> bool:
        return bool(self.config.classes) or self.config.text_width is not None

    def _labels(self, condition: Any, n: int, name: str) -> Any:
        channels = self.config.text_width
        if channels is None:
            return super()._labels(condition, n, name)
        if condition is None:
            return self.no_text(n)
        if isinstance(condition, str):
            condition = self.encode_text(condition)
        elif isinstance(condition, list | tuple) and condition and all(isinstance(text, str) for text in condition):
            if len(condition) != n:
                raise ValueError(f"{name}: condition holds {len(condition)} texts. Needed: one text, or one for each of {n} items.")
            condition = self.encode_text(condition)
        elif torch.is_tensor(condition) and condition.is_floating_point():
            if not (condition.ndim == 3 and condition.shape[0] in (1, n) and condition.shape[1] and condition.shape[2] == channels):
                found = tuple(condition.shape)
                raise ValueError(f"{name}: condition has shape {found}. Needed: ({n} or 1, words, {channels}).")
            if not bool(condition.isfinite().all()):
                raise ValueError(f"{name}: condition holds numbers that are not finite. Needed: finite text embeddings.")
            condition = TextCondition(condition)
        if not isinstance(condition, TextCondition):
            found = f"{condition.dtype} tensor" if torch.is_tensor(condition) else type(condition).__name__
            raise ValueError(
                f"{name}: condition is a {found}. Needed: text, or floating-point text embeddings of {channels} channels."
            )
        if condition.embeddings.shape[2] != channels or len(condition) not in (1, n):
            found = tuple(condition.embeddings.shape)
            raise ValueError(f"{name}: condition has embeddings of shape {found}. Needed: ({n} or 1, words, {channels}).")
        condition, silent = condition.expand(n), ~condition.known.any(1)
        return self._left_out(condition, silent.expand(n)) if bool(silent.any()) else condition

    def _left_out(self, labels: Any, dropped: Tensor) -> Any:
        if not isinstance(labels, TextCondition):
            return super()._left_out(labels, dropped)
        return labels.replaced(dropped.to(labels.device), self.no_text(1).to(labels.device))

    def guided_labels(self, labels: Any, guidance: float) -> Any:
        if not isinstance(labels, TextCondition) or guidance == 1:
            return super().guided_labels(labels, guidance)
        return labels.join(self.no_text(len(labels)).to(labels.device))
