"""Large frames of an endless clip in tiles: each tile is a stream of its own, so memory is that of a step of one tile.

What is kept from step to step stays that of all tiles together. Cuts and blends are those of `zoo.layers.tiling`, and the result is
that of `encode` and `decode` with the same `tile=`, to the bit.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from zoo.layers.tiling import Tiling, decode_tiles, encode_tiles, grid_tiles, pixel_tiles
from zoo.streaming import Stream, joined
from zoo.tokens import Tokens

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer

__all__ = ["TiledStream"]


class TiledStream(Stream):
    """Streams of the tiles of one clip, side by side.

    Args:
        tok: the tokenizer.
        tiling: how frames are cut.
        one: makes the stream of a tile.
    """

    def __init__(self, tok: "Tokenizer", tiling: Tiling, one: Callable[[], Stream]) -> None:
        super().__init__(tok)
        self.tiling, self.one = tiling, one
        self.encoders: list[Stream] = []
        self.decoders: list[Stream] = []
        self.before: Tokens | None = None  # the tokens taken last
        assert tok.info.downsample is not None, "a tokenizer that takes tiles has a grid"
        self.downsample = tok.info.downsample[1:]

    def _encode(self, x: Tensor, *, last: bool) -> Tensor | None:
        tiles = [x] if max(x.shape[-2:]) <= self.tiling.side else self._cut(pixel_tiles, x)
        self.encoders = self.encoders or [self.one() for _ in tiles]
        parts = [stream._encode(tile, last=last) for stream, tile in zip(self.encoders, tiles, strict=True)]
        final = [part for part in parts if part is not None]
        if len(tiles) == 1 or not final:
            return parts[0]
        assert len(final) == len(parts), "tiles are of one length"
        given = iter(final)
        return encode_tiles(lambda _: next(given), x, self.tiling, downsample=self.downsample)

    def _decode(self, tokens: Tokens | None, *, last: bool) -> Tensor | None:
        return joined(self._decode_parts(tokens, last=last), 2)

    def _decode_parts(self, tokens: Tokens | None, *, last: bool) -> Iterator[Tensor]:
        self.before = tokens or self.before
        if self.before is None:
            return
        data = self.before.data
        if max(n * f for n, f in zip(data.shape[-3:-1], self.downsample, strict=True)) <= self.tiling.side:
            tiles: list[Tokens | None] = [tokens]
        else:
            tiles = [None if tokens is None else self._tokens_of(part) for part in self._cut(grid_tiles, data)]
        self.decoders = self.decoders or [self.one() for _ in tiles]
        running = [stream._decode_parts(tile, last=last) for stream, tile in zip(self.decoders, tiles, strict=True)]
        for parts in zip(*running, strict=True):
            given = iter(parts)
            if len(tiles) == 1:
                yield parts[0]
            else:
                yield decode_tiles(lambda _, given=given: next(given), data, self.tiling, downsample=self.downsample)  # type: ignore[misc]

    def _cut(self, cut: Callable[..., list[Tensor]], x: Tensor) -> list[Tensor]:
        return cut(x, self.tiling, downsample=self.downsample)

    def _tokens_of(self, data: Tensor) -> Tokens:
        assert self.before is not None
        sides = [n * f for n, f in zip(data.shape[-3:-1], self.downsample, strict=True)]
        extent = self.before.extent.new_tensor([[int(self.before.extent[0, 0]), *sides]])
        return Tokens(data, self.before.spec, extent)
