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
from zoo.quantizers.usage import usage_stats

__all__ = ["FSQ"]

_STRETCH = 1e-3  # the bound reaches slightly past the outermost level, so that tanh need not saturate to select it
_FLOAT_INTEGERS = 1 << 24  # float32 holds every integer up to here


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
            x = x.to(working_dtype(x.dtype))
            levels = self._levels.to(x.dtype)
            if self.symmetric:
                return (x.tanh() + 1) * ((levels - 1) / 2) + 0.5
            half = (levels - 1) * (1 + _STRETCH) / 2
            offset = 0.5 - 0.5 * (levels % 2)
            return torch.tanh(x + torch.atanh(offset / half)) * half - offset

    def forward(self, x: Tensor) -> Quantized:
        bounded = self.bound(x)
        with exact_math(x.device.type):
            rounded = self._round(bounded.detach())
            codes = self._codes_from_steps(rounded)
            if bounded.requires_grad:
                rounded = bounded + (rounded - bounded).detach()
            value = self._value(rounded).to(x.dtype)
        loss = torch.zeros((), device=x.device)
        return Quantized(value, codes, loss, usage_stats(codes, self.codebook_sizes))

    def encode(self, x: Tensor) -> Tensor:
        self._check_x(x, "encode", finite=True)
        return self._codes_from_steps(self._round(self.bound(x)))

    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes, "decode")
        digits = self._digits(codes).float()
        return self._value(digits if self.symmetric else digits - self._centre().float())

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
    def _centre(self) -> Tensor:
        return self._levels // 2

    def _round(self, bounded: Tensor) -> Tensor:
        return bounded.floor() if self.symmetric else bounded.round()

    def _value(self, steps: Tensor) -> Tensor:
        """Value in [-1, 1] of t."""
        if self.symmetric:
            return steps * (2 / (self._levels - 1).to(steps.dtype)) - 1
        return steps / self._centre().to(steps.dtype)

    def _digits(self, codes: Tensor) -> Tensor:
        return torch.div(codes.long(), self._strides, rounding_mode="floor") % self._levels

    def _codes_from_steps(self, steps: Tensor) -> Tensor:
        """Codes of whole numbers t. Sums below 2^24 are exact in float32 and faster there."""
        if self.codebook_sizes[0] > _FLOAT_INTEGERS:
            digits = steps.long() if self.symmetric else steps.long() + self._centre()
            return (digits * self._strides).sum(-1, keepdim=True)
        strides = self._strides.to(steps.dtype)
        first = 0 if self.symmetric else (self._centre() * self._strides).sum()
        return (steps * strides).sum(-1, keepdim=True).long() + first
