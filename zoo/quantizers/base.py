"""What every quantizer promises: one base class, one result.

The rules, valid for all files of this folder:

* Channels last. `x` is `(..., dim)`; any number of leading axes, also none.
* Codes are int64 and ALWAYS carry a last axis: `(..., depth)`. `depth` is the number of codes of one position, 1 for a
  plain codebook. Code `j` lies in `[0, codebook_sizes[j])`, so codes fit `Tokens.data` without reshaping.
* `forward(x)` is the training path: straight-through (or rotation) gradients, losses, statistics and, in train mode
  only, codebook updates. `encode(x)` and `decode(codes)` never change the module.
* Numbers are computed in float32 (float64 stays float64) with autocast off and without reduced-precision matrix
  products. `Quantized.x` comes back in the dtype of the input; `decode` returns the dtype of the codebook, float32 where
  there is none.
* Gradient context belongs to the caller: nothing here switches gradients off for `x`, and the gradient estimator works in
  train and in eval mode alike.
* There is no mask argument: a padded batch passes only its real vectors, `quantizer(x[mask])`.
* Randomness (k-means start, revival, quantizer dropout) is a function of the constructor's `seed` and of the number of
  training steps, which is part of the state dict; the global generator is never touched.
* Constructor arguments are keyword-only plain numbers, checked before anything else.

Names in state dicts, where a class has them: `codebook (k, dim)`, `cluster_size (k,)`, `codebook_sum (k, dim)`,
`initialized ()`, `clock.steps ()`.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

__all__ = [
    "Quantized",
    "Quantizer",
    "all_finite",
    "check_choice",
    "check_integer",
    "check_number",
    "exact_math",
    "working_dtype",
]


class Quantized(NamedTuple):
    """The result of `Quantizer.forward`.

    Attributes:
        x: quantized vectors `(..., dim)`, dtype of the input, carrying the gradient estimator's gradient.
        codes: int64 `(..., depth)`; -1 where a residual level was dropped for training.
        loss: float32 scalar, already weighted; what the trainer adds. Zero (and without gradient) where there is none.
        stats: detached float32 tensors for the log, never part of the loss. Every quantizer gives `used_fraction`,
            `perplexity` and `dead_codes`, each `(depth,)`, of this call's batch on this rank (see `usage.py`; use
            `UsageMonitor` for numbers over a window and over all ranks). Parts of the loss appear, unweighted, under
            their own names.
    """

    x: Tensor
    codes: Tensor
    loss: Tensor
    stats: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """Base of all quantizers: the three verbs, the sizes, and the input checks.

    Args:
        dim: channels of `x`.
        codebook_sizes: entries of the codebook at each depth.
    """

    def __init__(self, *, dim: int, codebook_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self._constants: dict[str, Tensor] = {}
        self.dim = dim
        self.codebook_sizes = codebook_sizes

    def register_constant(self, name: str, value: Tensor) -> None:
        """Keep `value` as a non-persistent buffer that follows the device and never the dtype.

        A plain buffer would be rounded by `.to(torch.bfloat16)` and left undefined by `.to_empty()`.
        """
        self._constants[name] = value
        self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, value in self._constants.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self

    @property
    def depth(self) -> int:
        """Codes of one position: the length of the last axis of `codes`."""
        return len(self.codebook_sizes)

    @property
    def codebook_size(self) -> int:
        """Entries of one codebook.

        Raises:
            ValueError: the codebooks of this quantizer have different sizes.
        """
        if len(set(self.codebook_sizes)) != 1:
            raise ValueError(
                f"{type(self).__name__}.codebook_size: the codebooks differ, {self.codebook_sizes}. Use codebook_sizes."
            )
        return self.codebook_sizes[0]

    @property
    def bits(self) -> float:
        """Bits of one position at full depth when every code is equally likely."""
        return sum(math.log2(size) for size in self.codebook_sizes)

    @abstractmethod
    def forward(self, x: Tensor) -> Quantized:
        """Quantize `x (..., dim)` for training; see `Quantized`.

        Raises:
            ValueError: `x` has the wrong last axis or is not floating point.
        """

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Turn finite vectors `(..., dim)` into codes, int64 `(..., depth)`.

        Raises:
            ValueError: wrong last axis, not floating point, NaN or infinite values.
        """

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Turn codes `(..., depth)` into vectors `(..., dim)`.

        Raises:
            ValueError: wrong last axis, not integer, or a code outside its codebook.
        """

    # ---------------------------------------------------------------- checks
    # Value checks read one number back from the device. They are left out while tracing (compile, export), where no
    # value exists; a traced graph therefore trusts its caller.

    def _check_x(self, x: Tensor, where: str, *, finite: bool = False) -> None:
        name = f"{type(self).__name__}.{where}"
        if not x.is_floating_point():
            raise ValueError(f"{name}: x has dtype {x.dtype}. Allowed: a floating-point dtype. Convert x first.")
        if x.ndim < 1 or x.shape[-1] != self.dim:
            raise ValueError(
                f"{name}: x has shape {tuple(x.shape)}. Allowed: (..., {self.dim}), channels last. "
                f"Move the channel axis to the end."
            )
        if finite and not torch.compiler.is_compiling() and not all_finite(x.detach()):
            raise ValueError(f"{name}: x holds NaN or infinite values. Allowed: finite values. Check the encoder.")

    def _check_codes(
        self, codes: Tensor, where: str, *, sizes: tuple[int, ...] | None = None, shorter: bool = False, low: int = 0
    ) -> None:
        """Refuse codes this quantizer cannot have made; `shorter` allows the first depths only, `low=-1` dropped ones."""
        sizes = self.codebook_sizes if sizes is None else sizes
        name = f"{type(self).__name__}.{where}"
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"{name}: codes have dtype {codes.dtype}. Allowed: an integer dtype, best int64.")
        given = codes.shape[-1] if codes.ndim else 0
        if not (1 <= given <= len(sizes) if shorter else given == len(sizes)):
            allowed = f"(..., 1..{len(sizes)})" if shorter else f"(..., {len(sizes)})"
            raise ValueError(
                f"{name}: codes have shape {tuple(codes.shape)}. Allowed: {allowed}; the last axis is the depth. "
                f"Add it with codes[..., None] if it is missing."
            )
        if torch.compiler.is_compiling() or not codes.numel():
            return
        groups = [(slice(None), sizes[0])] if len(set(sizes)) == 1 else [(j, sizes[j]) for j in range(given)]
        for column, size in groups:
            lowest, highest = (int(v) for v in torch.aminmax(codes[..., column]))
            if lowest < low or highest >= size:
                at = "" if len(groups) == 1 else f" at depth {column}"
                raise ValueError(
                    f"{name}: codes{at} run from {lowest} to {highest}. Allowed: {low}..{size - 1}. "
                    f"They were not made by this quantizer."
                )


def all_finite(x: Tensor) -> bool:
    """Tell whether `x` holds neither NaN nor infinities; one cheap pass when it does not."""
    return math.isfinite(float(x.sum(dtype=working_dtype(x.dtype)))) or bool(torch.isfinite(x).all())


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers are computed: float64 stays, everything narrower becomes float32."""
    return dtype if dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def exact_math(device_type: str) -> Iterator[None]:
    """Switch autocast and reduced-precision float32 matrix products off, so that codes do not depend on either.

    A bfloat16 or TF32 matrix product changes 1 to 8 % of nearest-code decisions on Gaussian data. Both settings are
    put back afterwards.

    Args:
        device_type: `x.device.type`.
    """
    autocast = (
        torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else contextlib.nullcontext()
    )
    with autocast:
        if torch.compiler.is_compiling() or torch.get_float32_matmul_precision() == "highest":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def check_number(owner: str, name: str, value: float, *, low: float, high: float = math.inf, open_low: bool = False) -> None:
    """Refuse a constructor argument that is not a finite number in `low..high`; `open_low` leaves `low` itself out.

    Raises:
        ValueError: not a number (bool included), not finite, or out of range.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value > high or value < low or (open_low and value == low):
        allowed = f"above {low}" if open_low else f"at least {low}"
        limit = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{owner}: {name}={value!r}. Allowed: a finite number {allowed}{limit}.")


def check_choice(owner: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a constructor argument that is none of the `allowed` words.

    Raises:
        ValueError: any other value.
    """
    if value not in allowed:
        raise ValueError(f"{owner}: {name}={value!r}. Allowed: {', '.join(repr(word) for word in allowed)}.")


def check_integer(owner: str, name: str, value: int, *, low: int, high: int | None = None) -> None:
    """Refuse a constructor argument that is not an int in `low..high`.

    Raises:
        ValueError: not an int (bool included), or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        allowed = f"an int of at least {low}" if high is None else f"an int in {low}..{high}"
        raise ValueError(f"{owner}: {name}={value!r}. Allowed: {allowed}.")
