"""Rectified flow: noise levels for training, guidance, and the Euler sampler.

Convention: x_t = t * noise + (1 - t) * x_0, so t = 1 is pure noise; the network predicts the velocity noise - x_0. Source: FlexTok
(arXiv 2502.13967) and rectified flow as in Stable Diffusion 3 (arXiv 2403.03206); projected guidance is arXiv 2410.02416.
Checked against tests/parity/flextok.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "NoiseSchedule",
    "ProjectedGuidance",
    "draw_noise_levels",
    "euler",
    "euler_times",
    "mode_schedule",
    "plain_guidance",
    "start_noise",
]

NoiseSchedule = Literal["mode", "logit_normal", "stratified"]


def mode_schedule(u: Tensor, scale: float) -> Tensor:
    """Noise level of a uniform draw: t = 1 - u - scale * (cos(pi u / 2)^2 - 1 + u); scale 0 is uniform."""
    return 1 - u - scale * (torch.cos(math.pi * u / 2).square() - 1 + u)


def draw_noise_levels(
    batch: int, *, schedule: NoiseSchedule, mode_scale: float, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Draw one noise level for each item, `(b,)` float32 in [0, 1].

    Args:
        batch: number of items.
        schedule: "mode" (see `mode_schedule`), "logit_normal" (sigmoid of a unit Gaussian), or "stratified" (the same with one
            quantile for each slot of the batch).
        mode_scale: of "mode".
        generator: source of the draws.
        device: of the result; the generator's where None.
    """
    u = torch.rand(batch, generator=generator, device=generator.device)
    if schedule == "mode":
        t = mode_schedule(u, mode_scale)
    elif schedule == "logit_normal":
        t = torch.randn(batch, generator=generator, device=generator.device).sigmoid()
    elif schedule == "stratified":
        quantile = (torch.randperm(batch, generator=generator, device=generator.device) + u) / batch
        t = torch.special.ndtri(quantile.double().clamp(1e-7, 1 - 1e-7)).sigmoid().float()
    else:
        raise ValueError(f"draw_noise_levels: schedule={schedule!r}. Allowed: mode, logit_normal, stratified.")
    return t.clamp(0, 1).to(device or generator.device)


def euler_times(steps: int) -> Tensor:
    """Noise levels at which a sampler of so many steps asks the network: i / steps for i = steps..1, float32."""
    return torch.arange(steps, 0, -1) / steps


def start_noise(
    batch: int, shape: tuple[int, ...], *, seed: int | list[int] = 0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw the start of a sampler, `(b, *shape)` float32.

    Args:
        batch: number of items.
        shape: of one item.
        seed: one number gives every item the same noise, so that an item does not depend on its neighbours; a list gives each
            its own. Drawn on the CPU, so that every device starts alike; its generator looks at the lower 32 bits only.
        generator: draws one item after another from it instead.

    Raises:
        ValueError: a seed that is no int, or a list of another length.
    """
    if generator is not None:
        return torch.stack([torch.randn(shape, generator=generator, device=generator.device) for _ in range(batch)])
    seeds = list(seed) if isinstance(seed, list | tuple) else [seed] * batch
    if len(seeds) != batch or not all(isinstance(s, int) for s in seeds):
        raise ValueError(f"decode: seed={seed!r} for {batch} items. Needed: one int for all, or a list with one for each.")
    drawn = {s: torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in set(seeds)}
    return torch.stack([drawn[s] for s in seeds])


def plain_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: unconditional + scale * (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)


class ProjectedGuidance:
    """Adaptive projected guidance on velocities; one object for one run of a sampler, it carries the momentum.

    Args:
        momentum: of the running difference; negative pushes away from earlier steps.
        norm_limit: largest norm of the difference of an item; None sets no limit.
        parallel: share of the part along the conditional velocity that is kept (eta).
    """

    def __init__(self, *, momentum: float = -0.5, norm_limit: float | None = 2.5, parallel: float = 0.0) -> None:
        self.momentum = momentum
        self.norm_limit = norm_limit
        self.parallel = parallel
        self._running: Tensor | float = 0.0

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Guide velocities `(b, c, h, w)`."""
        difference = conditional - unconditional + self.momentum * self._running
        self._running = difference
        if self.norm_limit is not None:
            norm = difference.flatten(1).norm(dim=1).view(-1, *[1] * (difference.ndim - 1))
            difference = difference * (self.norm_limit / norm).clamp(max=1)
        flat = difference.double().flatten(1)
        along = torch.nn.functional.normalize(conditional.double().flatten(1), dim=1)
        parallel = (flat * along).sum(1, keepdim=True) * along
        direction = (flat - parallel + self.parallel * parallel).to(conditional.dtype).view_as(conditional)
        return conditional + (scale - 1) * direction


def euler(velocity: Callable[[Tensor, int], Tensor], x: Tensor, steps: int) -> Tensor:
    """Integrate from noise to data: `x <- x - velocity(x, i) / steps` for each of `euler_times(steps)`."""
    for i in range(steps):
        x = x - velocity(x, i) / steps
    return x
