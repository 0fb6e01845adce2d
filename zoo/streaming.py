"""Endless signals: chunks of any size in, tokens out as soon as they are final, and the reverse.

A family implements `_encode` and `_decode` on what it has been given so far; checks, extents and the cut at the end are done here,
once. Joined parts equal the result of the whole signal: `Tokens.join` of what `encode` gave, and the decoded parts end to end.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from zoo.tokens import Tokens

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer

__all__ = ["Stream", "joined"]

Item = TypeVar("Item")


class Stream(ABC):
    """Encoder and decoder of one endless signal (or of a batch of them side by side); made by `Tokenizer.stream`.

    The two directions are independent: a stream may only encode, only decode, or do both in turn. After `last=True` a direction
    has ended and refuses more.
    """

    def __init__(self, tok: "Tokenizer") -> None:
        self.tok = tok
        self._shared: tuple[int, ...] | None = None  # batch and sides that every chunk has
        self._taken = self._covered = self._positions = 0  # length pushed in; length and number of the positions given
        self._promised = self._given = 0  # length that the tokens taken so far stand for; length decoded
        self._sides: tuple[int, ...] = ()  # of the decoded frames
        self._ended = {"encode": False, "decode": False}

    # -- what a family provides ----------------------------------------------------------------------------------------------

    @abstractmethod
    def _encode(self, x: Tensor, *, last: bool) -> Tensor | None:
        """Take the next stretch `(b, c, t[, h, w])` and give the data `(b, n, ..., d)` of all positions that became final.

        At `last` nothing more comes: pad as the whole signal is padded. `x` may be empty along its first axis at `last`.
        """

    @abstractmethod
    def _decode(self, tokens: Tokens | None, *, last: bool) -> Tensor | None:
        """Take the next tokens and give the signal `(b, c, t[, h, w])` that became final; `None` tokens come only at `last`."""

    def _decode_parts(self, tokens: Tokens | None, *, last: bool) -> Iterator[Tensor]:
        """Give the same as `_decode`, one part after the other where a family can."""
        y = self._decode(tokens, last=last)
        if y is not None:
            yield y

    def _side(self) -> dict[str, Tensor]:
        """Side tensors of the tokens that `_encode` has just given."""
        return {}

    # -- the two verbs -------------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor, *, last: bool = False) -> Tokens | None:
        """Push a chunk and get the tokens that became final.

        Args:
            x: `(b, channels, t)` sound or `(b, 3, t, h, w)` video, any t; t = 0 is allowed with `last`.
            last: the signal ends with this chunk.

        Returns:
            Tokens with the extent they stand for, or None while none is final.

        Raises:
            ValueError: a bad chunk (as `Tokenizer.encode`), another batch or sides than before, or a stream that has ended.
        """
        name = self._begin("encode")
        if x.ndim < 3 or x.shape[2] > 0 or not last:
            self.tok._check_signal(x)
        sides = (x.shape[0], *x.shape[3:])
        if self._shared not in (None, sides):
            raise ValueError(f"{name}: a chunk with batch and sides {sides} after {self._shared}. A stream keeps to the first.")
        self._shared = sides
        self._taken += x.shape[2]
        if last and not self._taken:
            raise ValueError(f"{name}: the signal is empty. Give at least one sample or frame.")
        self._ended["encode"] = last
        data = self._encode(self._padded(x.to(self.tok.dtype)), last=last)
        if data is None or not data.shape[1]:
            return None
        self._positions += data.shape[1]
        end = self._taken if last else min(self._taken, self.tok._span(self._positions))
        extent = torch.tensor([[end - self._covered, *sides[1:]]] * sides[0], dtype=torch.int64, device=data.device)
        self._covered = end
        return Tokens(data, self.tok.spec, extent, None, self._side())

    def decode(self, tokens: Tokens | None, *, last: bool = False) -> Tensor | None:
        """Push tokens and get the signal that became final.

        Args:
            tokens: the next part; None is allowed with `last`.
            last: the signal ends with these tokens.

        Returns:
            `(b, channels, t[, h, w])`, or None while nothing is final.

        Raises:
            ValueError: tokens of another tokenizer, codes outside the vocabulary, or a stream that has ended.
        """
        return joined(self._checked_parts(tokens, last), 2)

    def encode_all(self, chunks: Iterable[Tensor]) -> Iterator[Tokens]:
        """Encode chunks from a reader, one after the other, up to the last."""
        for x, last in _with_last(chunks):
            tokens = self.encode(x, last=last)
            del x  # whoever takes the tokens may need the memory
            if tokens is not None:
                yield tokens

    def decode_all(self, parts: Iterable[Tokens]) -> Iterator[Tensor]:
        """Decode parts, one after the other, up to the last."""
        for tokens, last in _with_last(parts):
            yield from self._checked_parts(tokens, last)

    # -- inner steps ---------------------------------------------------------------------------------------------------------

    def _begin(self, verb: str) -> str:
        name = f"{self.tok.info.name}.stream.{verb}"
        if self._ended[verb]:
            raise ValueError(f"{name}: this stream has ended with last=True. Make a new one by stream().")
        return name

    def _checked_parts(self, tokens: Tokens | None, last: bool) -> Iterator[Tensor]:
        """Check tokens, and give what they make final, part by part."""
        name = self._begin("decode")
        if tokens is None and not last:
            raise ValueError(f"{name}: tokens=None before the end. Give tokens, or say last=True.")
        if tokens is not None:
            self._check_part(name, tokens)
            self._promised += int(tokens.extent[0, 0])
            self._sides = tuple(tokens.extent[0, 1:].tolist())
        self._ended["decode"] = last
        for y in self._decode_parts(tokens, last=last):
            y = y[:, :, : self._promised - self._given]
            self._given += y.shape[2]
            if y.shape[2]:
                yield y[(slice(None), slice(None), slice(None), *(slice(side) for side in self._sides))]

    def _padded(self, x: Tensor) -> Tensor:
        """Bring the sides of frames to a legal size, as `Tokenizer.encode` does."""
        size = (x.shape[2], *self.tok._legal_size(tuple(x.shape[2:]))[1:])
        return self.tok._pad(x, size) if x.shape[2] else x.new_zeros(*x.shape[:2], *size)

    def _check_part(self, name: str, tokens: Tokens) -> None:
        if not isinstance(tokens, Tokens):
            raise TypeError(f"{name}: tokens is a {type(tokens).__name__}. Needed: zoo.Tokens, as encode() gives.")
        if tokens.spec != self.tok.spec:
            raise ValueError(f"{name}: these are tokens of {tokens.spec.tokenizer!r}. Only their maker decodes them.")
        if tokens.lengths is not None:
            raise ValueError(f"{name}: items of unequal length do not stream side by side. Decode them one by one.")
        tokens.check_codes(name)


def joined(parts: Iterable[Tensor], axis: int) -> Tensor | None:
    """Parts end to end along an axis; None where there is none."""
    found = list(parts)
    return torch.cat(found, axis) if len(found) > 1 else found[0] if found else None


def _with_last(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Give each item, and whether it is the last."""
    held: list[Item] = []
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.pop(0), False  # not kept here while it is used
    if held:
        yield held.pop(), True
