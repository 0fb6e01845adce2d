"""Convolution networks on pieces of a long signal: exact, in memory that does not grow, and fast on a CPU.

A `Piece` is a stretch of a signal with time first, `(n, c)`. A step turns a piece into the piece of its output that the input
settles: at a true end of the signal it pads with zeros as the whole network does, inside it gives fewer positions. So a chain of
steps on a piece gives the numbers of the whole signal, wherever it was cut, and little is computed only to be thrown away.
`needed` walks a chain backwards to find the input that an output wants.

With time first a convolution of kernel 2s and stride s, either way, is two matrix products; a depthwise convolution reads whole
rows; and the Snake between them is taken a few hundred rows at a time, while they are in the cache. Steps read the parameters of
the ordinary modules when they are made; they carry no gradient.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.snake import Snake

__all__ = [
    "Attend",
    "Bend",
    "Conv",
    "Depthwise",
    "Down",
    "Downsample",
    "Geometry",
    "Piece",
    "Pointwise",
    "Same",
    "SnakeUnit",
    "Step",
    "Stretch",
    "Up",
    "Upsample",
    "Windows",
    "WithNoise",
    "needed",
    "run",
]

_IN_CACHE = 1 << 17  # numbers of a tile: half a megabyte of float32
_SMALL = 64  # a product with an inner size below this is made in one, whatever it copies


class Stretch(NamedTuple):
    """Positions `start <= p < end`."""

    start: int
    end: int


class Piece(NamedTuple):
    """Rows `(n, c)` of positions `start..start + n` of a signal of `total` positions."""

    rows: Tensor
    start: int
    total: int

    @property
    def end(self) -> int:
        return self.start + len(self.rows)

    def padded(self, left: int, right: int) -> tuple[Tensor, int]:
        """Add zeros beyond the true ends of the signal; also gives the first position that has `left` rows before it."""
        before = left if self.start == 0 else 0
        after = right if self.end == self.total else 0
        rows = F.pad(self.rows, (0, 0, before, after)) if before or after else self.rows
        return rows, self.start + left - before


class Geometry:
    """Which input an output depends on; `rate` is output positions per input position, as (numerator, denominator)."""

    rate: tuple[int, int] = (1, 1)

    def needs(self, out: Stretch) -> Stretch:
        """Give the input that these outputs depend on; it may reach beyond the signal."""
        raise NotImplementedError


class Same(Geometry):
    """Every output sees `reach` positions to each side."""

    def __init__(self, reach: int) -> None:
        self.reach = reach

    def needs(self, out: Stretch) -> Stretch:
        return Stretch(out.start - self.reach, out.end + self.reach)


class Down(Geometry):
    """Kernel 2s, stride s, padding of half the stride rounded up."""

    def __init__(self, stride: int) -> None:
        self.stride, self.pad = stride, -(-stride // 2)
        self.rate = (1, stride)

    def needs(self, out: Stretch) -> Stretch:
        return Stretch(out.start * self.stride - self.pad, (out.end + 1) * self.stride - self.pad)


class Up(Geometry):
    """The transpose of `Down`, with exactly s outputs for an input."""

    def __init__(self, stride: int) -> None:
        self.stride, self.pad = stride, -(-stride // 2)
        self.rate = (stride, 1)

    def needs(self, out: Stretch) -> Stretch:
        return Stretch((out.start + self.pad) // self.stride - 1, (out.end - 1 + self.pad) // self.stride + 1)


class Windows(Geometry):
    """Windows of a fixed size, one beside the other, see only themselves."""

    def __init__(self, size: int) -> None:
        self.size = size

    def needs(self, out: Stretch) -> Stretch:
        return Stretch(out.start // self.size * self.size, -(-out.end // self.size) * self.size)


def needed(chain: Sequence[Geometry], out: Stretch) -> Stretch:
    """Give the input of a chain that an output depends on; it may reach beyond the signal."""
    for step in reversed(chain):
        out = step.needs(out)
    return out


def run(steps: Sequence["Step"], signal: Tensor, out: Stretch, *, start: int, total: int) -> Tensor:
    """Compute a stretch of a chain's output.

    Args:
        steps: the chain.
        signal: rows `(n, c)` of the input from position `start` on; all that `needed` asks for.
        out: positions of the output.
        start: position of the first row.
        total: positions of the whole input.

    Returns:
        `(out.end - out.start, channels)`.
    """
    low, high = needed(steps, out)
    low, high = max(low, 0), min(high, total)
    piece = Piece(signal[low - start : high - start], low, total)
    for step in steps:
        piece = step(piece)
    assert piece.start <= out.start, "the input began later than `needed` says"
    assert piece.end >= out.end, "the input ended earlier than `needed` says"
    return piece.rows[out.start - piece.start : out.end - piece.start]


class Step(Geometry):
    """A step that computes."""

    def __call__(self, piece: Piece) -> Piece:
        raise NotImplementedError


def _tiles(length: int, channels: int) -> range:
    return range(0, length, max(64, _IN_CACHE // channels))


class _Bent:
    """Snake with its constants at hand, in place."""

    def __init__(self, snake: Snake) -> None:
        self.alpha = snake.alpha.detach().flatten()
        self.inverse = snake.inverse().detach().flatten()

    def __call__(self, rows: Tensor, out: Tensor, room: Tensor) -> None:
        """Write the Snake of `rows` to `out`, which may be `rows`; `room` is memory of the same shape."""
        torch.mul(rows, self.alpha, out=room)
        room.sin_()
        room.mul_(room)
        torch.addcmul(rows, room, self.inverse, out=out)


class Bend(Same, Step):
    """Snake."""

    def __init__(self, snake: Snake) -> None:
        super().__init__(0)
        self.bent = _Bent(snake)

    def __call__(self, piece: Piece) -> Piece:
        rows = piece.rows
        out, tiles = torch.empty_like(rows), _tiles(*rows.shape)
        room = rows.new_empty(tiles.step, rows.shape[1])
        for at in tiles:
            part = rows[at : at + tiles.step]
            self.bent(part, out[at : at + tiles.step], room[: len(part)])
        return piece._replace(rows=out)


class Conv(Same, Step):
    """A dense convolution with as many outputs as inputs."""

    def __init__(self, conv: nn.Conv1d) -> None:
        self.kernel, self.dilation = conv.kernel_size[0], conv.dilation[0]
        super().__init__(self.dilation * (self.kernel - 1) // 2)
        self.weight, self.bias = conv.weight.detach(), _bias(conv)
        self.taps = self.weight.permute(2, 1, 0).contiguous()  # (k, c_in, c_out)

    def __call__(self, piece: Piece) -> Piece:
        rows, start = piece.padded(self.reach, self.reach)
        n = len(rows) - 2 * self.reach
        k, c_in, c_out = self.taps.shape
        shifts = [slice(i * self.dilation, i * self.dilation + n) for i in range(k)]
        if c_in * k <= _SMALL:
            side_by_side = torch.cat([rows[shift] for shift in shifts], 1)
            out = torch.addmm(self.bias, side_by_side, self.taps.flatten(0, 1))
        elif c_out * k <= _SMALL:
            each = rows @ self.taps.transpose(0, 1).reshape(c_in, k * c_out)
            out = self.bias.expand(n, c_out).clone()
            for i, shift in enumerate(shifts):
                out += each[shift, i * c_out : (i + 1) * c_out]
        else:
            out = torch.addmm(self.bias, rows[shifts[0]], self.taps[0])
            for shift, tap in zip(shifts[1:], self.taps[1:], strict=True):
                out.addmm_(rows[shift], tap)
        return Piece(out, start, piece.total)


class Pointwise(Same, Step):
    """A convolution of kernel 1."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__(0)
        self.weight, self.bias = conv.weight.detach()[..., 0].t(), _bias(conv)

    def __call__(self, piece: Piece) -> Piece:
        return piece._replace(rows=torch.addmm(self.bias, piece.rows, self.weight))


class Depthwise(Same, Step):
    """One filter for each channel, as many outputs as inputs."""

    def __init__(self, conv: nn.Conv1d) -> None:
        self.dilation, channels = conv.dilation[0], conv.in_channels
        super().__init__(self.dilation * (conv.kernel_size[0] - 1) // 2)
        self.weight = conv.weight.detach()[:, :, None].contiguous(memory_format=torch.channels_last)
        self.bias, self.groups = _bias(conv), channels

    def inside(self, rows: Tensor) -> Tensor:
        """Filter `(n + 2 reach, c)` to `(n, c)`."""
        image = rows.t()[None, :, None]  # a picture of one line, channels last
        return F.conv2d(image, self.weight, self.bias, dilation=(1, self.dilation), groups=self.groups)[0, :, 0].t()

    def __call__(self, piece: Piece) -> Piece:
        rows, start = piece.padded(self.reach, self.reach)
        return Piece(self.inside(rows), start, piece.total)


class SnakeUnit(Same, Step):
    """x + pointwise(snake(conv(snake(x)))), a few hundred rows at a time."""

    def __init__(self, first: Snake, conv: nn.Conv1d, second: Snake, pointwise: nn.Conv1d) -> None:
        self.first, self.second = _Bent(first), _Bent(second)
        self.conv: Depthwise | Conv = Conv(conv) if conv.groups == 1 else Depthwise(conv)
        super().__init__(self.conv.reach)
        self.weight, self.bias = pointwise.weight.detach()[..., 0].t(), _bias(pointwise)

    def __call__(self, piece: Piece) -> Piece:
        rows, reach = piece.rows, self.reach
        low = 0 if piece.start == 0 else piece.start + reach
        high = piece.total if piece.end == piece.total else piece.end - reach
        out = rows.new_empty(high - low, rows.shape[1])
        tiles = _tiles(*out.shape)
        bent, room = (rows.new_empty(tiles.step + 2 * reach, rows.shape[1]) for _ in range(2))
        for at in tiles:
            first, last = low + at, min(low + at + tiles.step, high)  # positions of the signal
            before, after = max(first - reach, 0), min(last + reach, piece.total)
            part = rows[before - piece.start : after - piece.start]
            inside = bent[: len(part)]
            self.first(part, inside, room[: len(part)])
            filtered = self.conv(Piece(inside, before, piece.total))
            middle = filtered.rows[first - filtered.start : last - filtered.start]
            self.second(middle, middle, room[: last - first])
            target = out[at : at + last - first]
            torch.addmm(rows[first - piece.start : last - piece.start], middle, self.weight, out=target)
            target.add_(self.bias)
        return Piece(out, low, piece.total)


class Downsample(Down, Step):
    """A convolution of kernel 2s and stride s."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__(conv.stride[0])
        weight = conv.weight.detach().permute(2, 1, 0).reshape(2, -1, conv.out_channels)  # (2, s * c_in, c_out)
        self.early, self.late, self.bias = weight[0], weight[1], _bias(conv)

    def __call__(self, piece: Piece) -> Piece:
        s, pad = self.stride, self.pad
        first = 0 if piece.start == 0 else -(-(piece.start + pad) // s)
        last = piece.total // s if piece.end == piece.total else (piece.end + pad) // s - 1
        low, high = self.needs(Stretch(first, last))
        inside = piece.rows[max(low, piece.start) - piece.start : min(high, piece.end) - piece.start]
        rows = F.pad(inside, (0, 0, max(-low, 0), max(high - piece.total, 0)))
        blocks = rows.reshape(last - first + 1, -1)  # s rows side by side
        out = torch.addmm(self.bias, blocks[:-1], self.early).addmm_(blocks[1:], self.late)
        return Piece(out, first, piece.total // s)


class Upsample(Up, Step):
    """A transposed convolution of kernel 2s and stride s."""

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        super().__init__(conv.stride[0])
        weight = conv.weight.detach().permute(0, 2, 1)  # (c_in, 2s, c_out)
        self.early = weight[:, : self.stride].reshape(conv.in_channels, -1)
        self.late = weight[:, self.stride :].reshape(conv.in_channels, -1)
        self.bias = _bias(conv)

    def __call__(self, piece: Piece) -> Piece:
        s, rows = self.stride, piece.rows
        # Block i of s outputs takes the early taps of input i and the late taps of input i - 1.
        out = torch.empty(len(rows) + 1, self.early.shape[1], dtype=rows.dtype, device=rows.device)
        torch.addmm(self.bias.repeat(s), rows, self.early, out=out[:-1])
        out[-1] = self.bias.repeat(s)
        out[1:].addmm_(rows, self.late)
        first = piece.start * s - self.pad  # position of the first row of block `piece.start`
        low = 0 if piece.start == 0 else first + s
        high = piece.total * s if piece.end == piece.total else first + len(rows) * s
        return Piece(out.view(-1, len(self.bias))[low - first : high - first], low, piece.total * s)


class WithNoise(Same, Step):
    """x + noise * pointwise(x), a few hundred rows at a time; `noise` gives `(n, 1)` of absolute positions."""

    def __init__(self, pointwise: nn.Conv1d, noise: Callable[[Stretch], Tensor]) -> None:
        super().__init__(0)
        self.weight, self.noise = pointwise.weight.detach()[..., 0].t(), noise

    def __call__(self, piece: Piece) -> Piece:
        rows, noise = piece.rows, self.noise(Stretch(piece.start, piece.end))
        out, tiles = torch.empty_like(rows), _tiles(*rows.shape)
        for at in tiles:
            here = slice(at, at + tiles.step)
            torch.mm(rows[here], self.weight, out=out[here])
            out[here].mul_(noise[here]).add_(rows[here])
        return piece._replace(rows=out)


class Attend(Windows, Step):
    """Any function of whole windows, `(n, c)` to `(n, c)`."""

    def __init__(self, size: int, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(size)
        self.function = function

    def __call__(self, piece: Piece) -> Piece:
        first = -(-piece.start // self.size) * self.size
        last = piece.end // self.size * self.size
        return piece._replace(rows=self.function(piece.rows[first - piece.start : last - piece.start]), start=first)


def _bias(conv: nn.Conv1d | nn.ConvTranspose1d) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
