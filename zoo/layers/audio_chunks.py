"""Convolution networks of audio codecs on pieces of a signal of any length: exact, at constant memory, with no work done twice.

A network is written as a `Chain` of steps that read the ordinary modules, and one chain serves one signal (or a batch of them side
by side). `push` takes the next stretch `(b, c, t)` and gives the stretch of the output that no later input can change; at `last` it
pads as the whole network pads and gives the rest. Each step carries what later pieces need: the last inputs of a convolution, the
last frames of a transposed one, the state of an LSTM. So joined pieces are the output of the whole signal, wherever it is cut, for
causal and for other convolutions; those only answer later (`Step.later`).

    chain = Chain([ConvStep(conv, left=6), ElementStep(elu), TransposeStep(up, trim_right=4)])
    y = run(chain, x, piece=8192)              # whole signal, memory of one piece
    part = chain.push(x[..., :100])            # or a stream; None while nothing is settled
    rest = chain.push(x[..., 100:], last=True)

A family builds fresh chains for each call (a few microseconds a module), with its quantizer as the last step of the encoder and its
codebooks as the first of the decoder, runs them with `run` in `_encode` and `_decode`, and returns a `CodecStream` from `_stream`.
Gradients flow where they are wanted; in-place forms of the activations are used only where they are not.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zoo.streaming import Stream
from zoo.tokens import Tokens

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer

__all__ = [
    "Chain",
    "CodecStream",
    "ConvStep",
    "ElementStep",
    "LSTMStep",
    "ResidualStep",
    "Step",
    "TransposeStep",
    "elu",
    "fold_weight_norm",
    "remove_weight_norm",
    "run",
    "snake",
]

Mode = Literal["constant", "reflect", "replicate"]
_IN_CACHE = 1 << 16  # numbers of a tile: a quarter of a megabyte of float32


# -- activations -------------------------------------------------------------------------------------------------------------------


def _may_overwrite(x: Tensor, *others: Tensor) -> bool:
    """Nobody needs the old value for a gradient, and writing in place costs no more than writing anew."""
    wanted = torch.is_grad_enabled() and any(value.requires_grad for value in (x, *others))
    return not wanted and not torch.compiler.is_compiling()


def _tiles(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Channels and positions of parts of `(b, c, t)` that stay in the cache while several operations pass over them."""
    b, c, t = x.shape
    columns = min(t, max(1, _IN_CACHE // b))
    rows = max(1, _IN_CACHE // (b * columns))
    for first in range(0, c, rows):
        for start in range(0, t, columns):
            yield slice(first, first + rows), slice(start, start + columns)


def elu(x: Tensor) -> Tensor:
    """ELU as max(x, exp(min(x, 0)) - 1): within 1e-7 of the library's expm1 and about twice as fast on a CPU.

    `x (b, c, t)` itself is left as it was.
    """
    if not _may_overwrite(x):
        return torch.where(x > 0, x, x.clamp(max=0).exp() - 1)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for rows, columns in _tiles(x):
        part, y = x[:, rows, columns], out[:, rows, columns]
        torch.clamp(part, max=0, out=y)
        torch.maximum(y.exp_().sub_(1), part, out=y)
    return out


def snake(x: Tensor, alpha: Tensor, *, tiny: float = 1e-9) -> Tensor:
    """Snake x + sin(alpha x)^2 / (alpha + tiny) for `x (b, c, t)` and `alpha (1, c, 1)`; `x` itself is left as it was."""
    inverse = (alpha + tiny).reciprocal()
    if not _may_overwrite(x, alpha):
        return torch.addcmul(x, torch.sin(alpha * x).square(), inverse)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for rows, columns in _tiles(x):
        part, y = x[:, rows, columns], out[:, rows, columns]
        torch.mul(part, alpha[:, rows], out=y)
        y.sin_()
        y.mul_(y).mul_(inverse[:, rows]).add_(part)
    return out


# -- steps -------------------------------------------------------------------------------------------------------------------------


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
                self.recent = x if self.recent is None else torch.cat([self.recent, x], 2)
        recent = self.recent
        if recent is None and self.held is None:
            return None
        extra = -self.seen % self.stride if self.whole_strides else 0
        right = self.right + extra if last else 0
        if self.held is None:
            assert recent is not None
            if self.mode == "reflect" and self.seen <= self.left and not last:
                return None
            self.held = torch.cat([self._start(recent, right), recent], 2) if self.left else recent
        elif x is not None:
            self.held = torch.cat([self.held, x], 2) if self.held.shape[2] else x
        if right:
            self.held = torch.cat([self.held, self._end(right)], 2)
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
        y = F.conv1d(held[..., :used], conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
        self.held = held[..., count * self.stride :].clone()  # a copy lets the piece go
        return y

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

    def later(self) -> Fraction:
        return Fraction(self.trim_left, self.stride)

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        parts = [part for part in (self.before, x) if part is not None]
        if not parts or (x is None and not last):
            return None
        block = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
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
        if self.doubled and _may_overwrite(block, self.conv.weight):
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
        b, _, t = block.shape
        both = torch.matmul(conv.weight.flatten(1).t(), block).view(b, -1, 2, s, t).transpose(3, 4)
        own, next_ = both[:, :, 0], both[:, :, 1]
        low, high = start // s, -(-stop // s)
        out = own.new_empty(b, own.shape[1], high - low, s)
        first, end = max(low, 1), min(high, t)
        if end > first:
            torch.add(own[:, :, first:end], next_[:, :, first - 1 : end - 1], out=out[:, :, first - low : end - low])
        if low == 0:
            out[:, :, 0] = own[:, :, 0]
        if high > t:
            out[:, :, t - low] = next_[:, :, t - 1]
        if conv.bias is not None:
            out.add_(conv.bias.view(-1, 1, 1))
        return out.view(b, out.shape[1], -1)[..., start - low * s : stop - low * s]


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
    """Two branches of the same rate, added; the one that is ahead waits for the other.

    Args:
        main: the branch that may answer later.
        shortcut: the other branch; an empty chain passes the input on.
    """

    def __init__(self, main: Chain, shortcut: Chain | None = None) -> None:
        self.main, self.shortcut = main, shortcut or Chain([])
        self.rate = main.rate
        self.waiting: list[Tensor | None] = [None, None]

    def later(self) -> Fraction:
        return max(self.main.later(), self.shortcut.later())

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        for i, branch in enumerate((self.main, self.shortcut)):
            new, old = branch.push(x, last=last), self.waiting[i]
            self.waiting[i] = new if old is None else old if new is None else torch.cat([old, new], 2)
        a, b = self.waiting
        if a is None or b is None:
            return None
        ready = min(a.shape[2], b.shape[2])
        self.waiting = [part[..., ready:].clone() if part.shape[2] > ready else None for part in (a, b)]
        a, b = a[..., :ready], b[..., :ready]
        return a.add_(b) if _may_overwrite(a, b) else a + b  # the main branch ends in a layer, whose output is its own


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
        if not _may_overwrite(y):
            parts.append(y)
            continue
        if out is None:  # one place for all, since small results between large ones that come and go would scatter the memory
            out = y.new_empty(*y.shape[:2], math.ceil(x.shape[2] * chain.rate))
        out[..., filled : filled + y.shape[2]] = y
        filled += y.shape[2]
    return torch.cat(parts, 2) if out is None else out[..., :filled]


# -- weight normalisation ----------------------------------------------------------------------------------------------------------


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace gain and direction of weight normalisation by the weight they stand for: g v / |v|, the norm over all but axis 0.

    Takes `X.weight_g` / `X.weight_v` and `X.parametrizations.weight.original0` / `original1`, both to `X.weight`; everything else,
    folded weights too, passes unchanged. Half of a pair is left as it is, so that the strict load reports it.
    """
    folded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for gain, direction in (("weight_g", "weight_v"), (f"{_SPELLING}0", f"{_SPELLING}1")):
            if name.endswith(f".{gain}") and (other := name.removesuffix(gain) + direction) in tensors:
                v = tensors[other].float()
                norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
                folded[name.removesuffix(gain) + "weight"] = (v * (tensor.float() / norm)).to(tensor.dtype)
                break
            if name.endswith(f".{direction}") and name.removesuffix(direction) + gain in tensors:
                break
        else:
            folded[name] = tensor
    return folded


_SPELLING = "parametrizations.weight.original"


def remove_weight_norm(module: nn.Module) -> None:
    """Turn every weight-normalised layer inside into a plain one with the same weight."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


# -- streams -----------------------------------------------------------------------------------------------------------------------


class CodecStream(Stream):
    """A stream of a codec made of two chains, the quantizer in the first and the codebook in the second.

    Args:
        tok: the tokenizer.
        encoder: samples `(b, channels, s)` to codes `(b, d, n)`.
        decoder: codes to samples.
        pad: `pad(x, length)` brings the last stretch of samples to a whole number of hops; None leaves it to the layers.
        ending: told the number of positions and the length that they stand for, says whether the last position must be pushed once
            more to give all samples; None for decoders that always do.
    """

    def __init__(
        self,
        tok: "Tokenizer",
        *,
        encoder: Step,
        decoder: Step,
        pad: Callable[[Tensor, int], Tensor] | None = None,
        ending: Callable[[int, int], bool] | None = None,
    ) -> None:
        super().__init__(tok)
        self.encoder, self.decoder, self.pad, self.ending = encoder, decoder, pad, ending
        self.hop = encoder.rate.denominator
        self.gathered: list[Tensor] = []
        self.decoded = 0
        self.final: Tensor | None = None  # the last position so far

    def _encode(self, x: Tensor, *, last: bool) -> Tensor | None:
        if x.shape[2]:
            self.gathered.append(x)
        held = sum(part.shape[2] for part in self.gathered)
        if not last and held < self.hop:
            return None  # tiny chunks are gathered, so that the layers are called once for each position
        piece = torch.cat(self.gathered, 2) if self.gathered else None
        rest = 0 if last else held % self.hop
        self.gathered = [piece[..., held - rest :].clone()] if piece is not None and rest else []
        piece = piece[..., : held - rest] if piece is not None else None
        missing = -self._taken % self.hop if last else 0
        if missing and self.pad is not None and piece is not None:
            piece = self.pad(piece, piece.shape[2] + missing)
        codes = self.encoder.push(piece, last=last)
        return None if codes is None else codes.transpose(1, 2)

    def _decode(self, tokens: Tokens | None, *, last: bool) -> Tensor | None:
        codes = None if tokens is None else tokens.data.transpose(1, 2)
        if self.ending is not None:
            if codes is not None:
                self.decoded += codes.shape[2]
                self.final = codes[..., -1:].clone()
            if last and self.final is not None and self.ending(self.decoded, self._promised):
                codes = self.final if codes is None else torch.cat([codes, self.final], 2)
        return self.decoder.push(codes, last=last)
