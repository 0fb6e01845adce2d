"""One loop for the whole signal and for an endless one: a network that is always given steps of the same lengths.

Chunks of any length come in; they are cut into a first step and steps of a fixed length, and the network is called on each of them.
A whole clip is one chunk. So the result does not depend on how the signal was cut, to the last bit, and memory is that of one step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo.layers.causal_conv import Memory
from zoo.streaming import Stream, joined
from zoo.tokens import Tokens

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer

__all__ = ["StepStream", "Stepper"]


class Stepper:
    """Calls a network with memory on one signal.

    Args:
        network: `network(step, memory)`: the next frames or positions `(b, t, ...)` in, what became final out, time on axis 1.
        first: length of the first step.
        size: length of all others; the last one may be shorter.
        multiple: what the lengths of all steps but the first are a multiple of; the end of the signal is filled up with its last
            frame.
        alone: frames at the beginning that do not count for `multiple` where the first step is the last.
        flush: at the end call the network once more, on nothing and with `memory.ending`, for what it holds back. Or the layers
            that hold something back, from first to last: then a call for each of them, and what comes out of a call is never much
            more than what comes out of a step.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Memory], Tensor],
        *,
        first: int,
        size: int,
        multiple: int = 1,
        alone: int = 0,
        flush: bool | Sequence[nn.Module] = False,
    ) -> None:
        self.network, self.size, self.multiple = network, size, multiple
        self.turns: Sequence[nn.Module | None] = ([None] if flush else []) if isinstance(flush, bool) else flush
        self.memory = Memory()
        self.held: Tensor | None = None  # of a step that is not complete
        self.next, self.alone = first, alone

    def push(self, x: Tensor, *, last: bool) -> Tensor | None:
        """Give all that became final with the next chunk `(b, t, ...)`; t = 0 is allowed at the end."""
        return joined(self.parts(x, last=last), 1)

    def parts(self, x: Tensor, *, last: bool) -> Iterator[Tensor]:
        """Give the same as `push`, one part after the other: none is kept here."""
        for y in self._calls(x, last):
            if y.shape[1]:
                yield y

    def _calls(self, x: Tensor, last: bool) -> Iterator[Tensor]:
        for step in self._steps(x, last):
            yield self.network(step, self.memory)
        if last and self.turns:
            self.memory.ending = True
            for turn in self.turns:
                self.memory.turn = turn
                yield self.network(x[:, :0], self.memory)

    def _steps(self, x: Tensor, last: bool) -> Iterator[Tensor]:
        held = x if self.held is None else torch.cat([self.held, x], 1)
        while held.shape[1] >= self.next:
            step, held = held.split([self.next, held.shape[1] - self.next], 1)
            self.next, self.alone = self.size, 0
            yield step
        self.held = held.clone() if held.shape[1] and not last else None
        if last and held.shape[1]:
            missing = (self.alone - held.shape[1]) % self.multiple
            yield torch.cat([held, held[:, -1:].expand(-1, missing, *held.shape[2:])], 1) if missing else held


class StepStream(Stream):
    """A stream of video by two steppers.

    Args:
        tok: the tokenizer.
        encoder: gives data `(b, n, ..., c)` of frames `(b, t, h, w, c)`.
        decoder: gives frames of the data of tokens.
        final: what becomes of the encoder's data in the tokens, such as the mean of a distribution.
    """

    def __init__(
        self, tok: "Tokenizer", encoder: Stepper, decoder: Stepper, *, final: Callable[[Tensor], Tensor] = lambda data: data
    ) -> None:
        super().__init__(tok)
        self.encoder, self.decoder, self.final = encoder, decoder, final
        self._empty: Tensor | None = None

    def _encode(self, x: Tensor, *, last: bool) -> Tensor | None:
        data = self.encoder.push(x.permute(0, 2, 3, 4, 1), last=last)
        return None if data is None else self.final(data)

    def _decode(self, tokens: Tokens | None, *, last: bool) -> Tensor | None:
        return joined(self._decode_parts(tokens, last=last), 2)

    def _decode_parts(self, tokens: Tokens | None, *, last: bool) -> Iterator[Tensor]:
        data = self._empty if tokens is None else tokens.data
        if data is None:
            return
        data = data.to(self.tok.dtype) if data.is_floating_point() else data
        self._empty = data[:, :0].clone()
        for y in self.decoder.parts(data, last=last):
            yield y.permute(0, 4, 1, 2, 3)
