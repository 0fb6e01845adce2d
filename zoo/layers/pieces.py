"""Networks of audio codecs on pieces of a signal of any length: exact, at constant memory, with no work done twice.

A network is written as a `Chain` of steps that read the ordinary modules, and one chain serves one signal (or a batch of them side
by side). `push` takes the next stretch `(b, c, t)` and gives the stretch of the output that no later input can change; at `last` it
pads as the whole network pads and gives the rest. What overlaps is decided by the receptive field, layer by layer: each step keeps
the inputs that later outputs need, the last ones of a convolution, the last frames of a transposed one, the state of an LSTM, an
unfinished window. So joined pieces are the output of the whole signal, wherever it is cut: at once for causal networks, after a
stated lookahead for others (`Step.later`).

    chain = Chain([ConvStep(conv, left=6), ElementStep(elu), TransposeStep(up, trim_right=4)])
    y = run(chain, x, piece=8192)              # whole signal, memory of one piece
    part = chain.push(x[..., :100])            # or a stream; None while nothing is settled
    rest = chain.push(x[..., 100:], last=True)

A family builds fresh chains for each call (a few microseconds a module), with its quantizer as the last step of the encoder and its
codebooks as the first of the decoder, runs them with `run` in `_encode` and `_decode`, and returns a `CodecStream` from `_stream`.
Gradients flow where they are wanted; values are overwritten only where they are not.

Memory may hold time first or channels first; shapes are the same. Depthwise convolutions and what follows them keep time first, in
which whole rows of channels are filtered, about twice as fast on a CPU.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.activations import may_overwrite

__all__ = [
    "Chain",
    "ConvStep",
    "ElementStep",
    "LSTMStep",
    "ResidualStep",
    "Step",
    "TransposeStep",
    "WindowStep",
    "run",
    "same_step",
]

Mode = Literal["constant", "reflect", "replicate"]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Join `(b, c, t)` over time, time first in memory where the last part is."""
    if len(parts) == 1:
        return parts[0]
    if parts[-1].stride(1) == 1:
        return torch.cat([part.transpose(1, 2) for part in parts], 1).transpose(1, 2)
    return torch.cat(parts, 2)


class Step(ABC):
    """One layer that takes a signal in pieces. `rate` is output over input length."""

    rate: Fraction = Fraction(1)

    @abstractmethod
    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        """Take the next stretch `(b, c, t)` (None where there is none) and give what is settled of the output, or None."""

    def later(self) -> Fraction:
        """How much later input an output may depend on, in input positions."""
        return Fraction(0)


class ElementStep(Step):
    """A function of each position alone, `(b, c, t)` to `(b, c', t)`."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        return None if x is None else self.function(x)


class WindowStep(Step):
    """A function of whole windows side by side, `(b, c, n * size)` to `(b, c', n * size * rate)`.

    Args:
        size: positions of a window.
        function: of any number of windows.
        rate: output over input length.

    Raises (on the last push):
        ValueError: a signal that ends within a window.
    """

    def __init__(self, size: int, function: Callable[[Tensor], Tensor], *, rate: Fraction = Fraction(1)) -> None:
        self.size, self.function, self.rate = size, function, rate
        self.begun: Tensor | None = None  # of the window that is not whole

    def later(self) -> Fraction:
        return Fraction(self.size - 1)

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        parts = [part for part in (self.begun, x) if part is not None]
        if not parts:
            return None
        x = joined(parts)
        rest = x.shape[2] % self.size
        if last and rest:
            raise ValueError(f"WindowStep: the signal ends {rest} positions into a window of {self.size}. Needed: whole windows.")
        whole = x.shape[2] - rest
        self.begun = x[..., whole:].clone() if rest else None
        return self.function(x[..., :whole]) if whole else None


class ConvStep(Step):
    """A convolution (dilated, strided, grouped) with padding on both sides; the module's own padding is not used.

    Args:
        conv: the module with the weights.
        left, right: padding at the two ends of the whole signal.
        mode: what is padded: zeros, the signal mirrored without its end ("reflect"), or its end repeated ("replicate").
        whole_strides: at the end pad also up to a multiple of the stride, as the SEANet codecs do.

    Raises:
        ValueError: a kernel shorter than its stride, which no codec has.
    """

    def __init__(
        self, conv: nn.Conv1d, *, left: int = 0, right: int = 0, mode: Mode = "constant", whole_strides: bool = False
    ) -> None:
        self.conv, self.left, self.right, self.mode, self.whole_strides = conv, left, right, mode, whole_strides
        self.stride = conv.stride[0]
        self.span = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
        if self.span < self.stride:
            raise ValueError(f"ConvStep: a kernel of {self.span} with stride {self.stride}. Needed: at least the stride.")
        self.rate = Fraction(1, self.stride)
        self.most = max(left, right + (self.stride - 1 if whole_strides else 0)) + 1  # inputs that a mirrored end may show
        self.seen = 0
        self.recent: Tensor | None = None  # last inputs, for the padding of the end
        self.held: Tensor | None = None  # padded inputs that later windows need; None before the start is padded

    def later(self) -> Fraction:
        return Fraction(max(0, self.span - 1 - self.left))

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        if x is None and not last:
            return None
        if x is not None:
            self.seen += x.shape[2]
            if self.mode != "constant" or self.held is None:
                self.recent = x if self.recent is None else joined([self.recent, x])
        recent = self.recent
        if recent is None and self.held is None:
            return None
        extra = -self.seen % self.stride if self.whole_strides else 0
        right = self.right + extra if last else 0
        if self.held is None:
            assert recent is not None
            if self.mode == "reflect" and self.seen <= self.left and not last:
                return None
            self.held = joined([self._start(recent, right), recent]) if self.left else recent
        elif x is not None:
            self.held = joined([self.held, x]) if self.held.shape[2] else x
        if right:
            self.held = joined([self.held, self._end(right)])
        if self.mode != "constant" and recent is not None:
            self.recent = recent[..., -self.most :].clone()
        else:
            self.recent = None
        return self._windows()

    def _windows(self) -> Tensor | None:
        """Convolve all whole windows of what is held, and keep what later ones need."""
        held, conv = self.held, self.conv
        assert held is not None
        count = (held.shape[2] - self.span) // self.stride + 1
        if count < 1:
            return None
        used = (count - 1) * self.stride + self.span
        x = held[..., :used]
        if conv.groups == conv.in_channels == conv.out_channels > 1:
            y = self._depthwise(x)
        else:
            y = F.conv1d(x, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
        self.held = held[..., count * self.stride :].clone()  # a copy lets the piece go
        return y

    def _depthwise(self, x: Tensor) -> Tensor:
        """Filter each channel by itself, as a picture of one line with its channels last."""
        conv = self.conv
        line = x[:, :, None].contiguous(memory_format=torch.channels_last)
        weight = conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)
        return F.conv2d(line, weight, conv.bias, (1, self.stride), 0, (1, conv.dilation[0]), conv.groups)[:, :, 0]

    def _start(self, x: Tensor, right: int) -> Tensor:
        """Padding before the first input."""
        if self.mode == "constant":
            return x.new_zeros(*x.shape[:2], self.left)
        if self.mode == "replicate":
            return x[..., :1].expand(-1, -1, self.left)
        seen = self._enough(x, right)[..., : self.left + 1]
        return F.pad(seen, (self.left, 0), mode="reflect")[..., : self.left]

    def _end(self, right: int) -> Tensor:
        """Padding after the last input."""
        held, x = self.held, self.recent
        assert held is not None
        if self.mode == "constant":
            return held.new_zeros(*held.shape[:2], right)
        assert x is not None
        if self.mode == "replicate":
            return x[..., -1:].expand(-1, -1, right)
        x = x[..., -self.most :]
        known = x.shape[2]
        return F.pad(self._enough(x, right), (0, right), mode="reflect")[..., known : known + right]

    def _enough(self, x: Tensor, right: int) -> Tensor:
        """A signal too short to be mirrored gets zeros behind it first."""
        return F.pad(x, (0, max(0, max(self.left, right) + 1 - x.shape[2])))


def same_step(conv: nn.Conv1d) -> ConvStep:
    """A convolution padded with zeros as the module says."""
    return ConvStep(conv, left=conv.padding[0], right=conv.padding[0])


class TransposeStep(Step):
    """A transposed convolution whose whole output is cut at both ends; the module's own padding is not used.

    Args:
        conv: the module with the weights.
        trim_left, trim_right: so many outputs of (t - 1) * stride + kernel are cut at the ends of the whole signal.

    Raises:
        ValueError: a cut at the end that reaches into what the frame before the last has settled.
    """

    def __init__(self, conv: nn.ConvTranspose1d, *, trim_left: int = 0, trim_right: int = 0) -> None:
        self.conv, self.trim_left, self.trim_right = conv, trim_left, trim_right
        self.stride = conv.stride[0]
        self.span = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
        if not 0 <= trim_right <= self.span - self.stride:
            allowed = f"0..{self.span - self.stride}, kernel less stride"
            raise ValueError(f"TransposeStep: trim_right={trim_right}. Allowed: {allowed}.")
        self.rate = Fraction(self.stride)
        self.context = (self.span - 1) // self.stride
        self.doubled = conv.kernel_size[0] == 2 * self.stride and conv.groups == conv.dilation[0] == 1
        self.frames = 0
        self.given = trim_left  # next position of the whole output
        self.before: Tensor | None = None
        self.taps: Tensor | None = None  # weights of the product

    def later(self) -> Fraction:
        return Fraction(self.trim_left, self.stride)

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        parts = [part for part in (self.before, x) if part is not None]
        if not parts or (x is None and not last):
            return None
        block = joined(parts)
        self.frames += 0 if x is None else x.shape[2]
        first = (self.frames - block.shape[2]) * self.stride
        end = self.frames * self.stride
        if last:
            end = (self.frames - 1) * self.stride + self.span - self.trim_right
        self.before = block[..., max(0, block.shape[2] - self.context) :].clone() if self.context else None
        if end <= self.given:
            return None
        start, stop = self.given - first, end - first
        self.given = end
        if self.doubled and may_overwrite(block, self.conv.weight):
            return self._product(block, start, stop)
        conv, right = self.conv, (block.shape[2] - 1) * self.stride + self.span - stop
        both = min(start, right)  # the module's way to cut, which makes no copy
        y = F.conv_transpose1d(block, conv.weight, conv.bias, conv.stride, both, 0, conv.groups, conv.dilation)
        return y[..., start - both : stop - both]

    def _product(self, block: Tensor, start: int, stop: int) -> Tensor:
        """Outputs `start` to `stop` of a block where the kernel is twice the stride, about twice as fast as the library's kernel.

        One matrix product gives what each frame adds to its own stride of outputs and to the next one's.
        """
        conv, s = self.conv, self.stride
        b, c, t = block.shape
        low, high = start // s, -(-stop // s)
        if block.stride(1) == 1:
            if self.taps is None:
                self.taps = conv.weight.permute(0, 2, 1).reshape(c, -1)
            both = torch.matmul(block.transpose(1, 2), self.taps).view(b, t, 2, s, -1)
            out = both.new_empty(b, high - low, s, both.shape[4])
        else:
            both = torch.matmul(conv.weight.flatten(1).t(), block).view(b, -1, 2, s, t).permute(0, 4, 2, 3, 1)
            out = both.new_empty(b, both.shape[4], high - low, s).permute(0, 2, 3, 1)
        own, next_ = both[:, :, 0], both[:, :, 1]  # (b, t, s, c), whatever is first in memory
        first, end = max(low, 1), min(high, t)
        if end > first:
            torch.add(own[:, first:end], next_[:, first - 1 : end - 1], out=out[:, first - low : end - low])
        if low == 0:
            out[:, 0] = own[:, 0]
        if high > t:
            out[:, t - low] = next_[:, t - 1]
        if conv.bias is not None:
            out.add_(conv.bias)
        return out.permute(0, 3, 1, 2).flatten(2)[..., start - low * s : stop - low * s]


class LSTMStep(Step):
    """An LSTM over time with its input added; the state goes on from piece to piece."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self.lstm = lstm
        self.state: tuple[Tensor, Tensor] | None = None

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        if x is None:
            return None
        steps = x.permute(2, 0, 1)
        y, self.state = self.lstm(steps, self.state)
        return (y + steps).permute(1, 2, 0)


class Chain(Step):
    """Steps one after the other."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = list(steps)
        for step in self.steps:
            self.rate = self.rate * step.rate

    def push(self, x: Tensor | None, *, last: bool = False) -> Tensor | None:
        for step in self.steps:
            x = step.push(x, last=last)
            if x is None and not last:
                return None
        return x

    def later(self) -> Fraction:
        total, rate = Fraction(0), Fraction(1)
        for step in self.steps:
            total += step.later() / rate
            rate *= step.rate
        return total


class ResidualStep(Step):
    """Two branches of the same rate, added.

    Args:
        main: the branch that may answer later; it ends in a layer, whose output is its own.
        shortcut: a branch that answers at once; an empty chain passes the input on.
    """

    def __init__(self, main: Chain, shortcut: Chain | None = None) -> None:
        self.main, self.shortcut = main, shortcut or Chain([])
        self.rate = main.rate
        self.waiting: Tensor | None = None  # of the shortcut

    def later(self) -> Fraction:
        return self.main.later()

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        y, new = self.main.push(x, last=last), self.shortcut.push(x, last=last)
        parts = [part for part in (self.waiting, new) if part is not None]
        ready, at, kept = 0 if y is None else y.shape[2], 0, []
        overwrite = y is not None and may_overwrite(y, *parts)
        if y is not None and not overwrite:
            y = y + joined(parts)[..., :ready]
        for part in parts:
            count = min(part.shape[2], ready - at)
            if y is not None and overwrite and count:
                y[..., at : at + count] += part[..., :count]
            at += count
            if count < part.shape[2]:
                kept.append(part[..., count:])
        self.waiting = joined(kept).clone() if kept else None
        return y


def run(chain: Step, x: Tensor, *, piece: int) -> Tensor:
    """Give the chain's output of a whole signal `(b, c, t)`, `piece` positions at a time."""
    if x.shape[2] <= piece:
        y = chain.push(x, last=True)
        assert y is not None, "a codec gives at least one position"
        return y
    parts: list[Tensor] = []
    out, filled = None, 0
    for start in range(0, x.shape[2], piece):
        y = chain.push(x[..., start : start + piece], last=start + piece >= x.shape[2])
        if y is None:
            continue
        if not may_overwrite(y):
            parts.append(y)
            continue
        if out is None:  # one place for all, since small results between large ones that come and go would scatter the memory
            out = y.new_empty(*y.shape[:2], math.ceil(x.shape[2] * chain.rate))
        out[..., filled : filled + y.shape[2]] = y
        filled += y.shape[2]
    return torch.cat(parts, 2) if out is None else out[..., :filled]
