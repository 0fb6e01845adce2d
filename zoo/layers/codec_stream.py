"""Streams of codecs that are chains of steps (`zoo.layers.pieces`)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo.layers.pieces import Step
from zoo.streaming import Stream
from zoo.tokens import Tokens

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer

__all__ = ["CodecStream"]


class CodecStream(Stream):
    """A stream of a codec made of two chains, the quantizer in the first and the codebook in the second.

    Args:
        tok: the tokenizer.
        encoder: samples `(b, channels, s)` to codes `(b, d, n)`.
        decoder: codes to samples.
        multiple: the end is padded with zeros to a multiple of so many samples; 1 leaves it to the layers.
        ending: told the number of positions and the length that they stand for, says whether the last position must be pushed once
            more to give all samples; None for decoders that always do.
    """

    def __init__(
        self,
        tok: "Tokenizer",
        *,
        encoder: Step,
        decoder: Step,
        multiple: int = 1,
        ending: Callable[[int, int], bool] | None = None,
    ) -> None:
        super().__init__(tok)
        self.encoder, self.decoder, self.multiple, self.ending = encoder, decoder, multiple, ending
        self.hop = encoder.rate.denominator
        self.gathered: list[Tensor] = []
        self.decoded = 0  # positions
        self.final: Tensor | None = None  # the last position so far

    def _encode(self, x: Tensor, *, last: bool) -> Tensor | None:
        if last:
            x = torch.cat([*self.gathered, x, x.new_zeros(*x.shape[:2], -self._taken % self.multiple)], 2)
            codes = self.encoder.push(x if x.shape[2] else None, last=True)
            return None if codes is None else codes.transpose(1, 2)
        self.gathered.append(x)
        held = sum(part.shape[2] for part in self.gathered)
        if held < self.hop:
            return None  # tiny chunks are gathered, so that the layers are called once for each position
        x, rest = torch.cat(self.gathered, 2), held % self.hop
        self.gathered = [x[..., held - rest :].clone()]
        codes = self.encoder.push(x[..., : held - rest], last=False)
        return None if codes is None else codes.transpose(1, 2)

    def _decode(self, tokens: Tokens | None, *, last: bool) -> Tensor | None:
        codes = None if tokens is None else tokens.data.transpose(1, 2)
        if codes is not None:
            self.decoded += codes.shape[2]
            self.final = codes[..., -1:].clone()
        if last and self.ending is not None and self.final is not None and self.ending(self.decoded, self._promised):
            codes = self.final if codes is None else torch.cat([codes, self.final], 2)
        return self.decoder.push(codes, last=last)
