"""Convolutions of signals that hold time first in memory, as matrix products that read the rows where they lie.

A convolution is a sum over its taps, and the inputs that one tap sees are rows of the signal at a stride: a matrix that BLAS takes
as it is, without a copy. So each tap (or all taps of one stride together) adds one product to the output. On a CPU this runs near
the speed of large products, while convolution kernels rearrange signal and weights first. Where a signal has few channels, the
products would be thin: there a row takes several outputs side by side, with zeros in the weights where an output does not look.

All memory is the caller's. No gradient flows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["SPARE", "ConvProduct", "DepthwiseSum", "Recurrence", "TransposeProduct", "repays", "takes_products"]

_LARGE = 1 << 17  # numbers of a recurrent matrix of one gate
_THIN = 8  # channels below which outputs are taken side by side
_ABREAST = 8  # so many
_REPAYS = 256  # positions after which products have saved what it costs to bring the weights into their order
SPARE = _ABREAST  # rows of memory that must come after a signal


def takes_products(x: Tensor, weight: Tensor) -> bool:
    """Whether matrix products serve a signal and a weight: full precision on a CPU."""
    same = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    return same and x.device.type == weight.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def repays(conv: nn.Conv1d | nn.ConvTranspose1d, positions: int) -> bool:
    """Whether so many positions of the lower rate are worth weights in another order; few taps or channels cost next to nothing."""
    return positions >= _REPAYS or conv.kernel_size[0] == 1 or conv.weight.shape[1] == 1 or len(conv.weight) < _THIN


def _by_tap(weight: Tensor) -> Tensor:
    """`(a, b, k)` as `(k, b, a)`, where b lies before k in memory: long rows are what is fast to copy."""
    a, b, k = weight.shape
    return weight.flatten(1).t().contiguous().view(b, k, a).transpose(0, 1)


class ConvProduct:
    """An `nn.Conv1d` of one group, without its padding.

    Args:
        conv: the module; its weight is copied, so a change after this is not seen.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        self.stride, self.dilation, self.bias = conv.stride[0], conv.dilation[0], conv.bias
        self.channels, taps = conv.in_channels, conv.kernel_size[0]
        thin = min(conv.in_channels, conv.out_channels) < _THIN
        self.abreast = _ABREAST if thin and taps > 1 and self.stride == self.dilation == 1 else 1
        self.parts = [*self._products(conv.weight.detach(), taps)]
        if self.abreast > 1:
            self.bias = None if conv.bias is None else conv.bias.detach().repeat(self.abreast)

    def _products(self, weight: Tensor, taps: int) -> Iterator[tuple[int, int, Tensor]]:
        """First input of the first row, numbers of a row, matrix."""
        channels, by_tap = self.channels, _by_tap(weight) if taps > 1 else weight[..., 0].t()[None]
        if self.abreast > 1:
            wide = by_tap.new_zeros(self.abreast + taps - 1, channels, self.abreast, len(weight))
            for i in range(self.abreast):
                wide[i : i + taps, :, i] = by_tap
            wide = wide.flatten(2).flatten(0, 1)
            for first in range(0, len(wide), self.abreast * channels):
                part = wide[first : first + self.abreast * channels]
                yield first, len(part), part
            return
        together = self.stride if self.dilation == 1 else 1
        for tap in range(0, taps, together):
            part = by_tap[tap] if together == 1 else by_tap[tap : tap + together].flatten(0, 1)
            yield tap * self.dilation * channels, len(part), part

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """Write the outputs of all whole windows.

        Args:
            x: `(t, c)` in rows without a gap; where outputs are taken side by side, `SPARE` rows of memory come after it, which are
                set to zero.
            out: `(n, c')`, contiguous, n a multiple of `abreast`.
        """
        rows, step = len(out) // self.abreast, self.abreast * self.stride * self.channels
        out = out.view(rows, -1)
        if self.abreast > 1:
            x.as_strided((SPARE, self.channels), (self.channels, 1), x.storage_offset() + x.numel()).zero_()
        for i, (first, size, matrix) in enumerate(self.parts):
            seen = x.as_strided((rows, size), (step, 1), x.storage_offset() + first)
            _add_product(out, seen, matrix, self.bias, fresh=i == 0)


class DepthwiseSum:
    """An `nn.Conv1d` of one channel a group, without its padding, tap by tap; fast on what fits the cache.

    Args:
        conv: the module; its weight is copied, so a change after this is not seen.
    """

    abreast = 1

    def __init__(self, conv: nn.Conv1d) -> None:
        self.stride, self.dilation = conv.stride[0], conv.dilation[0]
        self.taps = [*conv.weight.detach()[:, 0].t().contiguous()]
        self.bias = conv.bias

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """Write the outputs `(n, c)` of all whole windows of `x (t, c)`."""
        last = (len(out) - 1) * self.stride + 1
        for i, tap in enumerate(self.taps):
            seen = x[i * self.dilation : i * self.dilation + last : self.stride]
            if i:
                out.addcmul_(seen, tap)
            elif self.bias is None:
                torch.mul(seen, tap, out=out)
            else:
                torch.addcmul(self.bias, seen, tap, out=out)


class TransposeProduct:
    """An `nn.ConvTranspose1d` of one group whose kernel is twice its stride, without its padding.

    Args:
        conv: the module; its weight is copied, so a change after this is not seen.
    """

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        stride = conv.stride[0]
        by_tap = _by_tap(conv.weight.detach())  # (k, c', c)
        self.own, self.next = (part.flatten(0, 1).t() for part in by_tap.split(stride))
        self.bias = None if conv.bias is None else conv.bias.detach().repeat(stride)

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """Write what `x (t, c)`, contiguous, gives to the strides of its frames but the first, `out (t - 1, stride * c')`."""
        _add_product(out, x[1:], self.own, self.bias, fresh=True)
        _add_product(out, x[:-1], self.next, None, fresh=False)


class Recurrence:
    """One layer of an `nn.LSTM` on one signal, as products of its own; worth it where the weights are larger than a core's cache.

    Each step reads all recurrent weights. Read from the first row to the last each time, a cache that holds half of them never has
    the next; read forth and back in turn, by gates, it has what was read last.

    Args:
        lstm: the module, of one direction, with biases and without projections.
        layer: its index.
    """

    def __init__(self, lstm: nn.LSTM, layer: int) -> None:
        self.width = lstm.hidden_size
        self.weight = getattr(lstm, f"weight_ih_l{layer}").detach()
        self.bias = (getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")).detach()
        self.gates = [*enumerate(getattr(lstm, f"weight_hh_l{layer}").detach().split(self.width))]

    @staticmethod
    def serves(lstm: nn.LSTM) -> bool:
        plain = lstm.bias and not (lstm.bidirectional or lstm.proj_size or (lstm.training and lstm.dropout))
        return plain and lstm.hidden_size**2 >= _LARGE

    def __call__(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of `x (t, c)` from a state `(width,)` on, and the state after it."""
        width, cell = self.width, cell.clone()
        sums = torch.addmm(self.bias, x, self.weight.t())  # of the input and, step by step, of what was before
        parts = sums.view(-1, width).unbind(0)  # in, forget, new, out
        first_two = sums[:, : 2 * width].unbind(0)
        out = x.new_empty(len(x), width)
        bent, orders = torch.empty_like(cell), (self.gates, self.gates[::-1])
        for step, y in enumerate(out.unbind(0)):
            for gate, weight in orders[step % 2]:
                parts[4 * step + gate].addmv_(weight, hidden)
            first_two[step].sigmoid_()
            cell.mul_(parts[4 * step + 1]).addcmul_(parts[4 * step], parts[4 * step + 2].tanh_())
            hidden = torch.mul(torch.tanh(cell, out=bent), parts[4 * step + 3].sigmoid_(), out=y)
        return out, hidden.clone(), cell


def _add_product(out: Tensor, x: Tensor, matrix: Tensor, bias: Tensor | None, *, fresh: bool) -> None:
    if not fresh:
        out.addmm_(x, matrix)
    elif bias is None:
        torch.mm(x, matrix, out=out)
    else:
        torch.addmm(bias, x, matrix, out=out)
