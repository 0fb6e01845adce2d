"""Finite scalar quantization: every channel is bounded and rounded to one of a few levels.

Paper: Mentzer et al., "Finite Scalar Quantization: VQ-VAE Made Simple", arXiv 2309.15505. Behaviour checked against
vector-quantize-pytorch 1.31.0 (MIT) and apple/ml-flextok through stored fixtures. Differences: integer index arithmetic
(exact for any codebook size below 2^63), int64 codes, no table of all codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.quantizers.base import Quantized, Quantizer, exact_math, working_dtype
from zoo.quantizers.gradients import straight_through
from zoo.quantizers.usage import usage_stats

__all__ = ["FSQ"]

_STRETCH = 1e-3  # the bound reaches slightly past the outermost level, so that tanh need not saturate to select it
_FLOAT_INTEGERS = 1 << 24  # float32 holds every integer up to here
_VECTORS_IN_A_ROW = 64


class FSQ(Quantizer):
    """Finite scalar quantizer; no parameters, nothing in the state dict, no loss.

    With levels L of a channel, h = (L-1)(1 + 0.001)/2, o = 1/2 for even L and 0 for odd L:

    * default: t = round(tanh(z + atanh(o/h)) h - o), value t / floor(L/2), digit t + floor(L/2). Values run from -1 to
      1 for odd L and from -1 to 1 - 2/L for even L; z = 0 gives 0.
    * symmetric: t = floor((L-1)(tanh z + 1)/2 + 1/2), value 2t/(L-1) - 1, digit t. Values run from -1 to 1 for any L.

    The code is sum_j digit_j prod_{m<j} L_m: the FIRST channel varies fastest. Gradients pass the rounding unchanged
    and the tanh as it is.

    Args:
        levels: levels of each channel, `dim = len(levels)`; 3..1000 in the default mode, 2 or more in the symmetric one.
        symmetric: which of the two modes.

    Raises:
        ValueError: no levels, a level outside its range, or a product of 2^63 and more.
    """

    _levels: Tensor
    _strides: Tensor

    def __init__(self, *, levels: Sequence[int], symmetric: bool = False) -> None:
        levels = tuple(levels)
        low, high = (2, 1 << 24) if symmetric else (3, 1000)
        for level in levels:
            if isinstance(level, bool) or not isinstance(level, int) or not low <= level <= high:
                hint = " Two levels need symmetric=True." if level == 2 else ""
                raise ValueError(f"FSQ: levels={levels}, symmetric={symmetric}. Allowed: ints in {low}..{high}.{hint}")
        if not levels or math.prod(levels) >= 1 << 63:
            raise ValueError(f"FSQ: levels={levels}. Allowed: at least one level and a product below 2^63.")
        super().__init__(dim=len(levels), codebook_sizes=(math.prod(levels),))
        self.levels = levels
        self.symmetric = symmetric
        strides = [math.prod(levels[:j]) for j in range(len(levels))]
        self.register_constant("_levels", torch.tensor(levels, dtype=torch.int64, device="cpu"))
        self.register_constant("_strides", torch.tensor(strides, dtype=torch.int64, device="cpu"))

    def bound(self, x: Tensor) -> Tensor:
        """Squash `x (..., dim)` to where rounding gives the level; float32 `(..., dim)`, with gradient.

        In the default mode the result rounds to t; in the symmetric mode it lies half a step higher and its floor is t.
        """
        self._check_x(x, "bound")
        with exact_math(x.device.type):
            wide, levels = self._widen(x)
            return self._bound(wide, levels).reshape(x.shape)

    def forward(self, x: Tensor) -> Quantized:
        self._check_x(x, "forward")
        with exact_math(x.device.type):
            wide, levels = self._widen(x)
            bounded = self._bound(wide, levels)
            steps = self._round(bounded)
            codes = self._codes(steps).reshape(*x.shape[:-1], 1)
            value = self._value(straight_through(bounded, steps), levels, in_place=not bounded.requires_grad)
        out = value.reshape(x.shape).to(x.dtype)
        return Quantized(out, codes, torch.zeros((), device=x.device), usage_stats(codes, self.codebook_sizes))

    def encode(self, x: Tensor) -> Tensor:
        self._check_x(x, "encode", finite=True)
        with exact_math(x.device.type):
            wide, levels = self._widen(x.detach())
            return self._codes(self._round(self._bound(wide, levels))).reshape(*x.shape[:-1], 1)

    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes, "decode")
        steps = self._digits(codes) if self.symmetric else self._digits(codes) - self._levels // 2
        return self._value(steps.float(), self._levels, in_place=True)

    def codes_to_digits(self, codes: Tensor) -> Tensor:
        """Split codes `(..., 1)` into the digit of each channel, int64 `(..., dim)`, channel j in [0, levels[j]).

        Raises:
            ValueError: as `decode`.
        """
        self._check_codes(codes, "codes_to_digits")
        return self._digits(codes)

    def digits_to_codes(self, digits: Tensor) -> Tensor:
        """Join the digits of each channel `(..., dim)` into codes, int64 `(..., 1)`.

        Raises:
            ValueError: wrong last axis, not integer, or a digit outside its level.
        """
        self._check_codes(digits, "digits_to_codes", sizes=self.levels)
        return (digits.long() * self._strides).sum(-1, keepdim=True)

    # -------------------------------------------------------------- pieces
    def _widen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `x (..., dim)` as rows of several vectors, and repeat the levels to match.

        Element-wise work with a last axis of only a few channels is about twice as slow on a CPU.
        """
        x = x.to(working_dtype(x.dtype))
        if torch.compiler.is_compiling() or not x.numel():
            return x, self._levels
        count = x.numel() // self.dim
        together = min(count & -count, _VECTORS_IN_A_ROW)  # the largest power of two that divides the count
        return x.reshape(-1, self.dim * together), self._levels.repeat(together)

    def _bound(self, x: Tensor, levels: Tensor) -> Tensor:
        """As `bound` on what `_widen` gives; without gradient the work is done in one piece of memory."""
        tops = (levels - 1).to(x.dtype)
        if self.symmetric:
            shift, half, offset = torch.zeros_like(tops), tops / 2, -tops / 2 - 0.5
        else:
            half = tops * (1 + _STRETCH) / 2
            offset = 0.5 - 0.5 * (levels % 2).to(x.dtype)
            shift = torch.atanh(offset / half)
        if torch.is_grad_enabled() and x.requires_grad:
            return torch.tanh(x + shift) * half - offset
        return (x + shift).tanh_().mul_(half).sub_(offset)

    def _round(self, bounded: Tensor) -> Tensor:
        """t of what `_bound` gives, no gradient; overwrites a result that nobody needs for a gradient."""
        if bounded.requires_grad:
            return bounded.detach().floor() if self.symmetric else bounded.detach().round()
        return bounded.floor_() if self.symmetric else bounded.round_()

    def _value(self, steps: Tensor, levels: Tensor, *, in_place: bool) -> Tensor:
        """Value in [-1, 1] of t."""
        if self.symmetric:
            scale = 2 / (levels - 1).to(steps.dtype)
            return steps.mul_(scale).sub_(1) if in_place else steps * scale - 1
        scale = (levels // 2).to(steps.dtype)
        return steps.div_(scale) if in_place else steps / scale

    def _digits(self, codes: Tensor) -> Tensor:
        return torch.div(codes.long(), self._strides, rounding_mode="floor") % self._levels

    def _codes(self, steps: Tensor) -> Tensor:
        """Codes `(n,)` of whole numbers t. Sums below 2^24 are exact in float32, and faster there."""
        steps = steps.reshape(-1, self.dim)
        first = 0 if self.symmetric else (self._levels // 2 * self._strides).sum()
        if self.codebook_sizes[0] > _FLOAT_INTEGERS:
            return (steps.long() * self._strides).sum(-1) + first
        return torch.mv(steps, self._strides.to(steps.dtype)).long() + first
