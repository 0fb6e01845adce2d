"""Draws of generators: per item, so that a sample never depends on its neighbours, and the schedules of guidance.

Codes are drawn by inverting the cumulative distribution at a uniform number that was drawn before the first step: a sample that
stops early is a prefix of the one that goes on.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Schedule", "check_draw_options", "draw_codes", "draw_sequence", "gaussians", "guidance_at", "uniforms"]

Schedule = Literal["constant", "linear", "cosine", "log", "square", "square_root"]


def uniforms(seeds: Sequence[int], shape: Sequence[int], *, stream: int = 0, device: torch.device | None = None) -> Tensor:
    """Draw numbers in [0, 1) for each item from its own seed, `(b, *shape)` float64; `stream` separates draws of one item."""
    drawn = [torch.rand(*shape, generator=_generator(s, stream), dtype=torch.float64) for s in seeds]
    return torch.stack(drawn).to(device)


def gaussians(seeds: Sequence[int], shape: Sequence[int], *, stream: int = 0, device: torch.device | None = None) -> Tensor:
    """Draw unit Gaussians for each item from its own seed, `(b, *shape)` float32."""
    return torch.stack([torch.randn(*shape, generator=_generator(s, stream)) for s in seeds]).to(device)


def _generator(seed: int, stream: int) -> torch.Generator:
    # The CPU generator looks at the lower 32 bits only, so the stream must change those.
    return torch.Generator().manual_seed((seed + stream * 0x9E3779B1) % 2**32)


def guidance_at(schedule: Schedule, scale: float, step: int, steps: int) -> float:
    """Scale of guidance at step 0..steps-1: 1 at the beginning, `scale` at the end, except "constant".

    With r = (step + 1) / steps: linear 1 + (s-1) r; cosine 1 + (s-1) cos(pi/2 (r - 1)); log 1 + (s-1) log2(1 + r); square
    1 + (s-1) r^2; square_root 1 + (s-1) sqrt(step / steps). Source: ELM's sampler; its log is ours, from the name alone.

    Raises:
        ValueError: another schedule.
    """
    r = (step + 1) / steps
    grow = {
        "constant": 1.0,
        "linear": r,
        "cosine": math.cos(math.pi / 2 * (r - 1)),
        "log": math.log2(1 + r),
        "square": r * r,
        "square_root": math.sqrt(step / steps),
    }
    if schedule not in grow:
        raise ValueError(f"guidance_at: schedule={schedule!r}. Allowed: {', '.join(get_args(Schedule))}.")
    return 1 + (scale - 1) * grow[schedule]


def check_draw_options(name: str, *, temperature: float, top_k: int | None = None, top_p: float | None = None) -> None:
    """Refuse values that no draw can use.

    Raises:
        ValueError: a temperature below 0, top_k below 1, top_p outside (0, 1].
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"{name}: temperature={temperature}. Allowed: 0 (the likeliest) or more.")
    if top_k is not None and top_k < 1:
        raise ValueError(f"{name}: top_k={top_k}. Allowed: at least 1, or None for all.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"{name}: top_p={top_p}. Allowed: above 0, up to 1, or None for all.")


def draw_codes(
    logits: Tensor, u: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Draw codes from `logits (..., k)` at uniform numbers `u (...,)`, int64 `(...,)`.

    Args:
        logits: unnormalised log probabilities.
        u: in [0, 1).
        temperature: divides the logits; 0 takes the likeliest code.
        top_k: only the so many likeliest codes (and those as likely as the last of them).
        top_p: only the likeliest codes that together reach this probability.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        logits = logits.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), -math.inf)
    cumulative = logits.softmax(-1).double().cumsum(-1)
    # Just below the total, so that rounding cannot reach behind the last code that has a probability.
    target = u[..., None] * cumulative[..., -1:] * (1 - 1e-12)
    return torch.searchsorted(cumulative, target, right=True)[..., 0].clamp(max=logits.shape[-1] - 1)


def draw_sequence(
    predict: Callable[[Tensor], Sequence[Tensor]],
    u: Tensor,
    *,
    guidance: Callable[[int], float] | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Tensor:
    """Draw a sequence step by step; the codes of one step are independent of each other.

    Args:
        predict: gives, for the codes so far `(b, t, m)`, the logits of each of the m codes of step t, `(b, k_j)`. With guidance
            it is asked for `(2b, ...)`, the condition first, the null class behind.
        u: `(b, steps, m)` uniform numbers; they say how many steps there are.
        guidance: scale of each step; None where there is none, and then `predict` sees b rows.
        temperature, top_k, top_p: as in `draw_codes`.

    Returns:
        int64 `(b, steps, m)`.
    """
    b, steps, m = u.shape
    codes = torch.zeros(b, steps, m, dtype=torch.int64, device=u.device)
    for t in range(steps):
        so_far = codes[:, :t]
        parts = predict(so_far if guidance is None else so_far.repeat(2, 1, 1))
        for j, logits in enumerate(parts):
            if guidance is not None:
                conditional, null = logits.chunk(2)
                logits = null + guidance(t) * (conditional - null)
            codes[:, t, j] = draw_codes(logits, u[:, t, j], temperature=temperature, top_k=top_k, top_p=top_p)
    return codes
