"""Big pictures and frames in overlapping tiles, so that the memory a network needs is that of one tile.

    pixels     |-------- tile --------|
                              |-------- tile --------|          neighbours share at least `overlap` pixels
    encode     kept            ..|..            kept            each position comes from the tile that sees it furthest inside
    decode     kept          ../xxxx\\..         kept            blended over the middle half of what is shared

A network of convolutions gives what it gives for the whole picture where the tile sees all that they reach: `overlap` / 2 pixels
beside a position for the encoder, `overlap` / 4 beside a pixel for the decoder. Norms over the picture and attention see one tile
instead of the whole, and then the result is close, not equal.

All tiles of a picture have one size. They are spread evenly, so neighbours often share more than they must. At the border of the
picture a tile ends where the picture ends: nothing is invented around it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Tiling", "decode_tiles", "encode_tiles", "grid_tiles", "pixel_tiles", "windows"]


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut.

    Attributes:
        side: of a tile, in pixels; rounded down to whole positions, at least 4 of them.
        overlap: pixels that neighbours share at least, at most half the side; None takes a quarter of it. Rounded up to an even
            number of positions.
    """

    side: int
    overlap: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("side", self.side, 1), ("overlap", 0 if self.overlap is None else self.overlap, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"Tiling: {name}={value!r}. Needed: a whole number of pixels, at least {least}.")
        if self.overlap is not None and 2 * self.overlap > self.side:
            raise ValueError(f"Tiling: overlap={self.overlap} is more than half of side={self.side}. Allowed: 0..{self.side // 2}.")

    def positions(self, downsample: int) -> tuple[int, int]:
        """Side and overlap in positions of `downsample` pixels.

        Raises:
            ValueError: the side holds fewer than 4 positions.
        """
        side = self.side // downsample
        if side < 4:
            least = 4 * downsample
            raise ValueError(f"Tiling: side={self.side} holds {side} positions of {downsample} pixels. Allowed: {least} or more.")
        pixels = self.side // 4 if self.overlap is None else self.overlap
        return side, min(2 * -(-pixels // (2 * downsample)), side // 4 * 2)


def windows(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """Give the first and past-last position of each tile along an axis: as few as cover it, spread evenly."""
    if length <= side:
        return [(0, length)]
    gaps = -(-(length - side) // (side - overlap))
    starts = [i * (length - side) // gaps for i in range(gaps + 1)]
    return [(start, start + side) for start in starts]


def pixel_tiles(x: Tensor, tiling: Tiling, *, downsample: tuple[int, int]) -> list[Tensor]:
    """Give what `encode_tiles` calls its function with, in that order."""
    (rows, columns), (fy, fx) = _axes(x.shape[-2:], tiling, downsample), downsample
    return [x[i : i + 1, ..., a * fy : b * fy, c * fx : d * fx] for i in range(len(x)) for a, b in rows for c, d in columns]


def grid_tiles(data: Tensor, tiling: Tiling, *, downsample: tuple[int, int]) -> list[Tensor]:
    """Give what `decode_tiles` calls its function with, in that order."""
    rows, columns = _axes([n * f for n, f in zip(data.shape[-3:-1], downsample, strict=True)], tiling, downsample)
    return [data[i : i + 1, ..., a:b, c:d, :] for i in range(len(data)) for a, b in rows for c, d in columns]


def encode_tiles(encode: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, *, downsample: tuple[int, int]) -> Tensor:
    """Encode pictures tile by tile, one picture at a time.

    Args:
        encode: `(1, c, [t,] h, w)` to `(1, [t',] h / fy, w / fx, d)`; called for the tiles from left to right, row by row.
        x: `(b, c, [t,] h, w)`, sides multiples of `downsample`.
        downsample: `(fy, fx)`, pixels over positions.

    Returns:
        `(b, [t',] h / fy, w / fx, d)`, as one call would give it up to what a tile does not see.
    """
    rows, columns = _axes(x.shape[-2:], tiling, downsample)
    (fy, fx), out = downsample, None
    for i in range(len(x)):
        for (top, bottom), (up, down) in zip(rows, _cuts(rows), strict=True):
            for (left, right), (first, last) in zip(columns, _cuts(columns), strict=True):
                tile = encode(x[i : i + 1, ..., top * fy : bottom * fy, left * fx : right * fx])[0]
                if out is None:
                    out = tile.new_empty(len(x), *tile.shape[:-3], rows[-1][1], columns[-1][1], tile.shape[-1])
                out[i, ..., up:down, first:last, :] = tile[..., up - top : down - top, first - left : last - left, :]
    assert out is not None, "a batch of at least one item has been checked"
    return out


def decode_tiles(decode: Callable[[Tensor], Tensor], data: Tensor, tiling: Tiling, *, downsample: tuple[int, int]) -> Tensor:
    """Decode a grid tile by tile, one picture at a time, and blend neighbours.

    Args:
        decode: `(1, [t,] gh, gw, d)` to `(1, c, [t',] gh * fy, gw * fx)`.
        data: `(b, [t,] gh, gw, d)` codes or latents.
        downsample: `(fy, fx)`.

    Returns:
        `(b, c, [t',] gh * fy, gw * fx)`.
    """
    fy, fx = downsample
    grid = data.shape[-3:-1]
    rows, columns = _axes((grid[0] * fy, grid[1] * fx), tiling, downsample)
    vertical, horizontal = (_ramps(axis, tiling, f) for axis, f in ((rows, fy), (columns, fx)))
    out = None
    for i in range(len(data)):
        for (top, bottom), (up, tall) in zip(rows, vertical, strict=True):
            for (left, right), (first, wide) in zip(columns, horizontal, strict=True):
                tile = decode(data[i : i + 1, ..., top:bottom, left:right, :])[0]
                if out is None:
                    out = tile.new_zeros(len(data), *tile.shape[:-2], grid[0] * fy, grid[1] * fx)
                y, x = up - top * fy, first - left * fx
                part = tile[..., y : y + len(tall), x : x + len(wide)]
                weight = (tall.to(tile)[:, None] * wide.to(tile)).expand_as(part)
                target = out[i, ..., up : up + len(tall), first : first + len(wide)]
                target.addcmul_(part, weight)
    assert out is not None, "a batch of at least one item has been checked"
    return out


def _axes(size: Sequence[int], tiling: Tiling, downsample: tuple[int, int]) -> list[list[tuple[int, int]]]:
    return [windows(length // f, *tiling.positions(f)) for length, f in zip(size, downsample, strict=True)]


def _cuts(axis: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Share of each window when every overlap is cut in its middle."""
    middles = [(second[0] + first[1]) // 2 for first, second in pairwise(axis)]
    return list(zip([axis[0][0], *middles], [*middles, axis[-1][1]], strict=True))


def _ramps(axis: list[tuple[int, int]], tiling: Tiling, f: int) -> list[tuple[int, Tensor]]:
    """First pixel and weights of each window; the weights of all windows add up to 1 at every pixel.

    Neighbours change over `overlap / 2` pixels around the middle of what they share, which is half of it or less.
    """
    width = tiling.positions(f)[1] // 2 * f
    starts = [(second[0] + first[1]) * f // 2 - width // 2 for first, second in pairwise(axis)]
    rise = (torch.arange(width) + 0.5) / max(width, 1)
    out = []
    for i, (begin, end) in enumerate(axis):
        first = starts[i - 1] if i else begin * f
        last = starts[i] + width if i < len(starts) else end * f
        weights = torch.ones(last - first)
        if i:
            weights[:width] = rise
        if i < len(starts):
            weights[len(weights) - width :] = 1 - rise
        out.append((first, weights))
    return out
