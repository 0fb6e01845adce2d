"""Gradients through a choice: straight-through and rotation trick.

Each function returns exactly the quantized value and only decides what gradient the input gets.

Papers: van den Oord et al., "Neural Discrete Representation Learning", arXiv 1711.00937 (straight-through); Fifty et al.,
"Restructuring Vector Quantization with the Rotation Trick", arXiv 2410.06424.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Estimator", "estimate", "rotate", "straight_through", "with_gradient"]

Estimator = Literal["straight_through", "rotation"]

_TINY = 1e-6  # norms are not allowed below this, as upstream


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad if ctx.scale == 1 else grad * ctx.scale), None, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(x, value)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, value = ctx.saved_tensors
        length_x = x.norm(dim=-1, keepdim=True).clamp_min(_TINY)
        length_value = value.norm(dim=-1, keepdim=True)
        u = x / length_x
        v = value / length_value.clamp_min(_TINY)
        w = u + v
        w = w / w.norm(dim=-1, keepdim=True).clamp_min(_TINY)
        reflected = grad - 2 * (grad * w).sum(-1, keepdim=True) * w + 2 * (grad * v).sum(-1, keepdim=True) * u
        return reflected * (length_value / length_x), None


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grad, None, None


def straight_through(x: Tensor, value: Tensor, *, scale: float = 1.0) -> Tensor:
    """Return `value`; its gradient goes to `x` unchanged, times `scale`. Both `(..., dim)`; none goes to `value`."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return value
    return _StraightThrough.apply(x, value.detach(), scale)


def rotate(x: Tensor, value: Tensor) -> Tensor:
    """Return `value` as if it were `x` rotated onto `value` and rescaled, rotation and scale held constant.

    Both `(..., dim)`. With u, v the unit vectors of x and value and w that of u + v, the gradient of `x` is
    |value|/|x| (g - 2 (g.w) w + 2 (g.v) u).
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return value
    return _Rotate.apply(x, value.detach())


def estimate(x: Tensor, value: Tensor, estimator: Estimator) -> Tensor:
    """Apply the named estimator: `straight_through` or `rotate`."""
    return rotate(x, value) if estimator == "rotation" else straight_through(x, value)


def with_gradient(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Return the scalar `value` whose gradient with respect to `x` is the given `slope`, shaped like `x`."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return value
    return _WithGradient.apply(x, value, slope)
