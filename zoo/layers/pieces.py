"""Networks of audio codecs on pieces of a signal of any length: exact, at constant memory, with no work done twice.

A network is written as a `Chain` of steps that read the ordinary modules, and one chain serves one signal (or a batch of them side
by side). `push` takes the next stretch `(b, c, t)` and gives the stretch of the output that no later input can change; at `last` it
pads as the whole network pads and gives the rest. What overlaps is decided by the receptive field, layer by layer: each step keeps
the inputs that later outputs need, the last ones of a convolution, the last frames of a transposed one, the state of an LSTM, an
unfinished window. So joined pieces are the output of the whole signal, wherever it is cut: at once for causal networks, after a
stated lookahead for others (`Step.later`).

    chain = Chain([ConvStep(conv, left=6), ActivationStep(elu), TransposeStep(up, trim_right=4)])
    y = run(chain, x, piece=8192)              # whole signal, memory of one piece
    part = chain.push(x[..., :100])            # or a stream; None while nothing is settled
    rest = chain.push(x[..., 100:], last=True)

A family builds fresh chains for each call (a few microseconds a module), with its quantizer as the last step of the encoder and its
codebooks as the first of the decoder, runs them with `run` in `_encode` and `_decode`, and returns a `CodecStream` from `_stream`.
Gradients flow where they are wanted; values are overwritten only where they are not.

Memory may hold time first or channels first; shapes are the same. On a CPU, where no gradient is wanted, the steps keep time first:
whole rows of channels are filtered, and convolutions are products of matrices that lie ready (`zoo.layers.row_products`). Then a
step also writes into memory of its own, in which what is held and the next piece lie one after the other, and which `run` and
`SplitStep` let it use again for every piece: fresh memory costs a CPU about as much as filling it, and pieces that come and go
scatter it. A short signal does not pay for weights in another order: it is pushed whole, with channels first, through the modules'
own kernels (`Step.plainly`).
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
from zoo.layers.row_products import SPARE, ConvProduct, DepthwiseSum, Recurrence, TransposeProduct, repays, takes_products

__all__ = [
    "ActivationStep",
    "Chain",
    "ConvStep",
    "ElementStep",
    "LSTMStep",
    "ResidualStep",
    "SplitStep",
    "Step",
    "TransposeStep",
    "WindowStep",
    "narrowing",
    "run",
    "same_step",
    "widening",
]

_CACHED = 1 << 18  # numbers of a result that stays in a core's cache beside what it is made of
Mode = Literal["constant", "reflect", "replicate"]
Activation = Callable[..., Tensor]  # of x and, where a result is to be written to it, out


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Join `(b, c, t)` over time, time first in memory where the last part is."""
    if len(parts) == 1:
        return parts[0]
    if parts[-1].stride(1) == 1:
        return torch.cat([part.transpose(1, 2) for part in parts], 1).transpose(1, 2)
    return torch.cat(parts, 2)


def _quick(x: Tensor, weight: Tensor) -> bool:
    """Products of matrices into memory of the step serve."""
    return may_overwrite(x, weight) and takes_products(x, weight)


class Rows:
    """Memory of a step for `(b, c, t)`, time first, which one piece after the other is written to."""

    def __init__(self) -> None:
        self.memory: Tensor | None = None  # (b, t, c)

    def room(self, like: Tensor, start: int, count: int, *, spare: int = 0) -> Tensor:
        """Positions from `start` on, for `count` of them that are like `like (b, c, any)`; what was there may be lost."""
        b, c = like.shape[:2]
        memory = self.memory
        if (
            memory is None
            or memory.shape[1] < start + count + spare
            or (memory.is_inference() and not torch.is_inference_mode_enabled())  # may not be written to any more
        ):
            memory = self.memory = like.new_empty(b, start + count + spare, c)
        return memory[:, start : start + count].transpose(1, 2)

    def joined(self, parts: Sequence[Tensor], *, spare: int = 0) -> Tensor:
        """Parts one after the other; those that lie at their place already stay there."""
        count, at = sum(part.shape[2] for part in parts), 0
        whole = self.room(parts[0], 0, count, spare=spare)
        for part in parts:
            place = whole[..., at : at + part.shape[2]]
            if part.data_ptr() != place.data_ptr():
                place.copy_(part)
            at += part.shape[2]
        return whole

    def kept(self, rest: Tensor) -> Tensor:
        """Bring the end of the memory to its beginning."""
        return self.room(rest, 0, rest.shape[2]).copy_(rest.clone())

    def clear(self) -> None:
        """Let the memory go."""
        self.memory = None


class Step(ABC):
    """One layer that takes a signal in pieces. `rate` is output over input length."""

    rate: Fraction = Fraction(1)
    reuses: bool = False
    plain: bool = False

    def reuse(self) -> None:
        """From now on the next push may overwrite what this one gives; whoever pushes has used or copied it by then."""
        self.reuses = True

    def plainly(self) -> None:
        """Convolve by the modules' own kernels, in pieces no smaller than they come: for a short signal that is pushed whole."""
        self.plain = True

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


class ActivationStep(ElementStep):
    """A function of each number, or of each in its channel, that takes `out`; a chain gives it to the convolution after it."""

    function: Activation


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
        activation: of the input, before it is padded.

    Raises:
        ValueError: a kernel shorter than its stride, which no codec has.
    """

    def __init__(
        self,
        conv: nn.Conv1d,
        *,
        left: int = 0,
        right: int = 0,
        mode: Mode = "constant",
        whole_strides: bool = False,
        activation: Activation | None = None,
    ) -> None:
        self.conv, self.left, self.right, self.mode, self.whole_strides = conv, left, right, mode, whole_strides
        self.activation = activation
        self.stride = conv.stride[0]
        self.span = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1
        if self.span < self.stride:
            raise ValueError(f"ConvStep: a kernel of {self.span} with stride {self.stride}. Needed: at least the stride.")
        self.rate = Fraction(1, self.stride)
        self.depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
        self.most = max(left, right + (self.stride - 1 if whole_strides else 0)) + 1  # inputs that a mirrored end may show
        self.seen = 0
        self.recent: Tensor | None = None  # last inputs, for the padding of the end
        self.held: Tensor | None = None  # padded inputs that later windows need; None before the start is padded
        self.rows, self.out = Rows(), Rows()
        self.product: ConvProduct | DepthwiseSum | None = None

    def later(self) -> Fraction:
        return Fraction(max(0, self.span - 1 - self.left))

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        if x is None and not last:
            return None
        example = next((part for part in (x, self.held, self.recent) if part is not None), None)
        if example is None:
            return None
        if self.plain and last and x is not None and self.seen == 0 and self.mode == "constant":
            return self._whole(x)
        quick = not self.plain and _quick(example, self.conv.weight) and self._repays(x)
        if x is not None:
            self.seen += x.shape[2]
            x = self._activated(x, quick)
            if quick and self.span == 1 and not self.left + self.right:
                return self._convolved(x, quick, x.shape[2])
            if self.recent is None or (self.held is not None and x.shape[2] >= self.most):
                self.recent = x
            elif self.mode != "constant" or self.held is None:
                self.recent = joined([self.recent, x])
        recent = self.recent
        extra = -self.seen % self.stride if self.whole_strides else 0
        right = self.right + extra if last else 0
        if self.held is None:
            assert recent is not None
            if self.mode == "reflect" and self.seen <= self.left and not last:
                self.recent = recent.clone()
                return None
            parts = [self._start(recent, right), recent] if self.left else [recent]
        else:
            parts = [part for part in (self.held, x) if part is not None and part.shape[2]]
        if right:
            parts.append(self._end(right, recent, example))
        held = self.rows.joined(parts, spare=SPARE) if quick and parts else joined(parts or [example[..., :0]])
        self.recent = recent[..., -self.most :].clone() if self.mode != "constant" and recent is not None else None
        return self._windows(held, quick)

    def _whole(self, x: Tensor) -> Tensor | None:
        """A whole signal between zeros; where there are as many at both ends, they need no copy."""
        self.seen = x.shape[2]
        right = self.right + (-self.seen % self.stride if self.whole_strides else 0)
        x = x if self.activation is None else self.activation(x)
        both = self.left if self.left == right and not self.depthwise else 0
        if not both and self.left + right:
            x = F.pad(x, (self.left, right))
        count = max(0, (x.shape[2] + 2 * both - self.span) // self.stride + 1)
        return self._convolved(x, False, count, both=both) if count else None

    def _repays(self, x: Tensor | None) -> bool:
        """A product does, for all that was seen, this piece included."""
        if x is None or self.depthwise or self.conv.groups > 1:
            return self.depthwise or self.product is not None
        return repays(self.conv, (self.seen + x.shape[2]) * len(x) // self.stride)

    def _activated(self, x: Tensor, quick: bool) -> Tensor:
        """The input as the convolution sees it; where memory may be overwritten, at its place behind what is held."""
        if self.activation is None:
            return x
        if not quick:
            return self.activation(x)
        before = self.left if self.held is None else self.held.shape[2]
        return self.activation(x, self.rows.room(x, before, x.shape[2], spare=self.right + self.stride + SPARE))

    def _windows(self, held: Tensor, quick: bool) -> Tensor | None:
        """Convolve all whole windows of what is held, and keep what later ones need."""
        count = max(0, (held.shape[2] - self.span) // self.stride + 1)
        y = self._convolved(held[..., : (count - 1) * self.stride + self.span], quick, count) if count else None
        rest = held[..., count * self.stride :]
        self.held = self.rows.kept(rest) if quick and self.reuses else rest.clone()  # a copy lets the piece go
        if not self.reuses:
            self.rows.clear()
        return y

    def _convolved(self, x: Tensor, quick: bool, count: int, *, both: int = 0) -> Tensor:
        """`count` windows of `x`; where they are not taken quickly, with `both` zeros more at both ends."""
        conv = self.conv
        if not quick:
            if self.depthwise:
                return self._depthwise(x)
            if self.span == conv.groups == self.stride == 1 and x.stride(1) == 1:
                return F.linear(x.transpose(1, 2), conv.weight[..., 0], conv.bias).transpose(1, 2)
            return F.conv1d(x, conv.weight, conv.bias, conv.stride, both, conv.dilation, conv.groups)
        if self.product is None:
            self.product = DepthwiseSum(conv) if self.depthwise else ConvProduct(conv)
        if x.stride(1) != 1 or not x.transpose(1, 2)[0].is_contiguous():
            x = self.rows.joined([x], spare=SPARE)
        if not self.reuses:
            self.out.clear()
        whole = -(-count // self.product.abreast) * self.product.abreast
        y = self.out.room(x.new_empty(x.shape[0], conv.out_channels, 0), 0, whole)
        for item, result in zip(x.transpose(1, 2), y.transpose(1, 2), strict=True):
            self.product(item, result)
        return y[..., :count]

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

    def _end(self, right: int, x: Tensor | None, example: Tensor) -> Tensor:
        """Padding after the last input; `x` holds the last ones."""
        if self.mode == "constant":
            return example.new_zeros(*example.shape[:2], right)
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
        activation: of the input.

    Raises:
        ValueError: a cut at the end that reaches into what the frame before the last has settled.
    """

    def __init__(
        self, conv: nn.ConvTranspose1d, *, trim_left: int = 0, trim_right: int = 0, activation: Activation | None = None
    ) -> None:
        self.conv, self.trim_left, self.trim_right, self.activation = conv, trim_left, trim_right, activation
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
        self.rows, self.out = Rows(), Rows()
        self.product: TransposeProduct | None = None

    def later(self) -> Fraction:
        return Fraction(self.trim_left, self.stride)

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        example = self.before if x is None else x
        if example is None or (x is None and not last):
            return None
        count = 0 if x is None else x.shape[2]
        if (
            not self.plain
            and self.doubled
            and _quick(example, self.conv.weight)
            and repays(self.conv, (self.frames + count) * len(example))
        ):
            return self._pushed_quickly(x, example, last=last)
        x = x if x is None or self.activation is None else self.activation(x)
        block = joined([part for part in (self.before, x) if part is not None])
        self.frames += 0 if x is None else x.shape[2]
        first = (self.frames - block.shape[2]) * self.stride
        self.before = block[..., max(0, block.shape[2] - self.context) :].clone() if self.context else None
        start, stop = self._settled(first, last=last)
        if stop <= start:
            return None
        conv, right = self.conv, (block.shape[2] - 1) * self.stride + self.span - stop
        both = min(start, right)  # the module's way to cut, which makes no copy
        y = F.conv_transpose1d(block, conv.weight, conv.bias, conv.stride, both, 0, conv.groups, conv.dilation)
        return y[..., start - both : stop - both]

    def _settled(self, first: int, *, last: bool) -> tuple[int, int]:
        """What is next to give, counted from an output `first` of the whole."""
        end = self.frames * self.stride
        if last:
            end += self.span - self.stride - self.trim_right
        start, self.given = self.given, max(self.given, end)
        return start - first, end - first

    def _pushed_quickly(self, x: Tensor | None, example: Tensor, *, last: bool) -> Tensor | None:
        """Where the kernel is twice the stride: each frame adds to its own stride of outputs and to the next one's."""
        before = example.new_zeros(*example.shape[:2], 1) if self.before is None else self.before
        if x is not None and self.activation is not None:
            x = self.activation(x, self.rows.room(x, 1, x.shape[2], spare=1))
        after = example.new_zeros(*example.shape[:2], 1) if last else None
        block = self.rows.joined([part for part in (before, x, after) if part is not None])
        start, stop = self._settled_after(0 if x is None else x.shape[2], last=last)
        y = self._product(block, start, stop) if stop > start else None
        rest = block[..., -1:]
        self.before = self.rows.kept(rest) if self.reuses else rest.clone()
        if not self.reuses:
            self.rows.clear()
        return y

    def _settled_after(self, count: int, *, last: bool) -> tuple[int, int]:
        """What is next to give, counted from the stride of the first of `count` new frames."""
        first = self.frames * self.stride
        self.frames += count
        return self._settled(first, last=last)

    def _product(self, block: Tensor, start: int, stop: int) -> Tensor:
        """Outputs `start` to `stop`, counted from the stride of the second frame of a block."""
        if self.product is None:
            self.product = TransposeProduct(self.conv)
        if not self.reuses:
            self.out.clear()
        like = block.new_empty(block.shape[0], self.conv.out_channels, 0)
        y = self.out.room(like, 0, (block.shape[2] - 1) * self.stride)
        for item, result in zip(block.transpose(1, 2), y.transpose(1, 2), strict=True):
            self.product(item, result.view(len(item) - 1, -1))
        return y[..., start:stop]


class LSTMStep(Step):
    """An LSTM over time with its input added; the state goes on from piece to piece."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self.lstm = lstm
        self.state: tuple[Tensor, Tensor] | None = None  # hidden and cell, (layers, b, c)
        self.layers: list[Recurrence] = []

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        if x is None:
            return None
        steps = x.permute(2, 0, 1)
        if _quick(x, self.lstm.weight_hh_l0) and len(x) == 1 and Recurrence.serves(self.lstm):
            y = self._layer_by_layer(steps[:, 0])[:, None]
        else:
            y, self.state = self.lstm(steps, self.state)
        return (y.add_(steps) if may_overwrite(y, steps) else y + steps).permute(1, 2, 0)

    def _layer_by_layer(self, y: Tensor) -> Tensor:
        """Outputs `(t, c)` of one signal."""
        if not self.layers:
            self.layers = [Recurrence(self.lstm, i) for i in range(self.lstm.num_layers)]
        zero = y.new_zeros(len(self.layers), 1, self.lstm.hidden_size)
        hidden, cell = (zero, zero) if self.state is None else self.state
        states = []
        for i, layer in enumerate(self.layers):
            y, *state = layer(y, hidden[i, 0], cell[i, 0])
            states.append(state)
        self.state = (torch.stack([h for h, _ in states])[:, None], torch.stack([c for _, c in states])[:, None])
        return y


class Chain(Step):
    """Steps one after the other."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps: list[Step] = []
        for step in steps:
            before = self.steps[-1] if self.steps else None
            if isinstance(before, ActivationStep) and isinstance(step, (ConvStep, TransposeStep)) and step.activation is None:
                step.activation = before.function
                self.steps.pop()
            self.steps.append(step)
            self.rate = self.rate * step.rate

    def reuse(self) -> None:
        for step in self.steps:
            step.reuse()

    def plainly(self) -> None:
        for step in self.steps:
            step.plainly()

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

    def reuse(self) -> None:
        self.main.reuse()
        self.shortcut.reuse()

    def plainly(self) -> None:
        self.main.plainly()
        self.shortcut.plainly()

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


class SplitStep(Step):
    """A chain that takes at most `piece` positions at a time, so that what its layers hand on stays in the cache; plainly, all."""

    def __init__(self, chain: Chain, *, piece: int) -> None:
        self.chain, self.piece, self.rate = chain, piece, chain.rate
        self.taken = self.given = 0
        self.rows = Rows()
        chain.reuse()

    def later(self) -> Fraction:
        return self.chain.later()

    def plainly(self) -> None:
        super().plainly()
        self.chain.plainly()

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        if self.plain:
            return self.chain.push(x, last=last)
        count = 0 if x is None else x.shape[2]
        self.taken += count
        waiting = math.ceil(self.taken * self.rate) - self.given  # one place for all, since memory that comes and goes is slow
        if not self.reuses:
            self.rows.clear()
        parts, whole, filled = [], None, 0
        for start in range(0, max(count, 1), self.piece):
            part = None if x is None else x[..., start : start + self.piece]
            y = self.chain.push(part, last=last and start + self.piece >= count)
            if y is None:
                continue
            if may_overwrite(y):
                end = filled + y.shape[2]
                if whole is None or whole.shape[2] < end:  # the second where the ends are padded to more than the signal
                    before, self.rows = whole, self.rows if whole is None else Rows()
                    whole = self.rows.room(y, 0, max(waiting, end))
                    if before is not None:
                        whole[..., :filled] = before[..., :filled]
                whole[..., filled:end] = y
                filled = end
            else:
                parts.append(y)
        y = whole[..., :filled] if whole is not None else joined(parts) if parts else None
        self.given += 0 if y is None else y.shape[2]
        return y


def narrowing(stages: Sequence[tuple[int, Sequence[Step]]]) -> Chain:
    """A chain of stages of falling rate, each on pieces that fit the cache.

    Args:
        stages: channels at the rate that a stage begins with, and its steps.
    """
    inner: list[SplitStep] = []
    rate, before = Fraction(1), 0
    for channels, steps in stages:
        piece = math.ceil(max(1, _CACHED // channels) / rate)
        if inner and 2 * piece < 3 * before:  # too little more for a split of its own
            inner[0] = SplitStep(Chain([inner[0].chain, *steps]), piece=before)
        else:
            inner, before = [SplitStep(Chain([*inner, *steps]), piece=piece)], piece
        rate *= math.prod(step.rate for step in steps)
    return Chain(inner)


def widening(stages: Sequence[tuple[int, Sequence[Step]]]) -> Chain:
    """A chain of stages of rising rate, each on pieces that fit the cache.

    Args:
        stages: channels at the rate that a stage ends with, and its steps.
    """
    inner: list[SplitStep] = []
    for channels, steps in reversed(stages):
        rate = math.prod(step.rate for step in steps)
        piece = max(1, int(max(1, _CACHED // channels) / rate))
        if inner and 2 * piece < 3 * inner[0].piece / rate:
            inner = [SplitStep(Chain([*steps, *inner[0].chain.steps]), piece=max(1, int(inner[0].piece / rate)))]
        else:
            inner = [SplitStep(Chain([*steps, *inner]), piece=piece)]
    return Chain(inner)


def run(chain: Chain, x: Tensor, *, piece: int, short: int = 0) -> Tensor:
    """Give the chain's output of a whole signal `(b, c, t)`, `piece` positions at a time.

    Args:
        chain: fresh; it serves this signal alone.
        x: the signal.
        piece: more cost memory.
        short: so many positions, those of all items together, are taken plainly at once.
    """
    if not torch.compiler.is_compiling() and x.shape[0] * x.shape[2] <= short:
        chain.plainly()
        y = chain.push(x, last=True)
    else:
        y = SplitStep(chain, piece=piece).push(x, last=True)
    assert y is not None, "a codec gives at least one position"
    return y
