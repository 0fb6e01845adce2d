"""Activations of audio codecs: ELU and Snake on `(b, c, t)`, part by part in the cache where no gradient is wanted.

Snake: Ziyin et al., "Neural Networks Fail to Learn Periodic Functions and How to Fix It", arXiv 2006.08195. The audio codecs add
1e-9 to alpha before they divide.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["Snake", "elu", "may_overwrite", "snake"]

_IN_CACHE = 1 << 17  # numbers of a part: half a megabyte of float32
_TINY = 1e-9


def may_overwrite(x: Tensor, *others: Tensor) -> bool:
    """Nobody needs the old value for a gradient, and writing in place costs no more than writing anew."""
    wanted = torch.is_grad_enabled() and any(value.requires_grad for value in (x, *others))
    return not wanted and not torch.compiler.is_compiling()


def _parts(x: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Channels and positions of `x (b, c, t)` that stay in the cache while several operations pass over them.

    Of `others` the same: `(b, c, t)`, or `(1, c, 1)` of which each part takes its channels.
    """
    b, c, t = x.shape
    if x.numel() <= _IN_CACHE:
        yield x, *others
        return
    columns = min(t, max(1, _IN_CACHE // b))
    if x.stride(1) == 1:  # time first in memory: whole rows of channels
        columns = min(t, max(1, _IN_CACHE // (b * c)))
    rows = max(1, _IN_CACHE // (b * columns))
    for first in range(0, c, rows):
        own = [value[:, first : first + rows] for value in (x, *others)]
        for start in range(0, t, columns):
            yield tuple(value[..., start : start + columns] if value.shape[2] == t else value for value in own)


def elu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """ELU as max(x, exp(min(x, 0)) - 1): within 1e-7 of the library's expm1 and about twice as fast on a CPU.

    `x (b, c, t)` itself is left as it was. `out`, where given, is of its shape and takes the result; no gradient flows then.
    """
    if out is None and not may_overwrite(x):
        return torch.where(x > 0, x, x.clamp(max=0).exp() - 1)
    out = torch.empty_like(x) if out is None else out
    for part, y in _parts(x, out):
        torch.clamp(part, max=0, out=y)
        torch.maximum(y.exp_().sub_(1), part, out=y)
    return out


def snake(x: Tensor, alpha: Tensor, out: Tensor | None = None) -> Tensor:
    """Snake x + sin(alpha x)^2 / alpha for `x (b, c, t)` and `alpha (1, c, 1)`; `x` itself is left as it was.

    `out`, where given, is of the shape of `x` and takes the result; no gradient flows then.
    """
    inverse = (alpha + _TINY).reciprocal()
    if out is None and not may_overwrite(x, alpha):
        return torch.addcmul(x, torch.sin(alpha * x).square(), inverse)
    out = torch.empty_like(x) if out is None else out
    for part, y, rate, size in _parts(x, out, alpha, inverse):
        torch.mul(part, rate, out=y)
        y.sin_()
        y.mul_(y)
        torch.addcmul(part, y, size, out=y)
    return out


class Snake(nn.Module):
    """Snake with one alpha for each channel; its state dict is `alpha (1, c, 1)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return snake(x, self.alpha, out)
