"""Weights of losses as shares of the gradient, whatever the scale of each loss.

Paper: Défossez et al., "High Fidelity Neural Audio Compression", arXiv 2210.13438, section 3.4, "Balancer".
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from zoo.quantizers.distributed import all_reduce_sum, world_size

__all__ = ["LossBalancer"]

_TINY = 1e-12


class LossBalancer(nn.Module):
    """Sum the gradients of several losses at the model's output so that each has its share of the whole.

    With `g_i` the gradient of loss i at the output, `n_i` the running mean of its norm and `w_i` its weight, the sum is over
    `norm * w_i / W * g_i / n_i`, W being the weights of the losses that were given. The running mean is corrected for its start, so
    the first step counts in full. Norms are those of an item, averaged over items and processes, so all processes weigh alike.

    Args:
        weights: of each loss, by name.
        norm: of the whole, where all gradients agree.
        decay: of the running means.

    Raises:
        ValueError: no weight above 0, a negative one, or decay outside [0, 1).

    State dict: `sums` and `counts`, `(losses,)` each, in the order of the weights.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, weights: Mapping[str, float], *, norm: float = 1.0, decay: float = 0.999) -> None:
        super().__init__()
        if not weights or min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"LossBalancer: weights={dict(weights)}. Needed: none below 0, and one above.")
        if not 0 <= decay < 1:
            raise ValueError(f"LossBalancer: decay={decay}. Allowed: 0 to below 1.")
        self.weights, self.norm, self.decay = dict(weights), norm, decay
        self.register_buffer("sums", torch.zeros(len(weights), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(len(weights), dtype=torch.float64))

    def forward(self, gradients: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh gradients `(b, ...)` of one shape; gives their sum and the norm of each for the log.

        Raises:
            KeyError: a loss that has no weight.
        """
        unknown = [name for name in gradients if name not in self.weights]
        if unknown:
            raise KeyError(f"LossBalancer: no weight for {', '.join(unknown)}. Known: {', '.join(self.weights)}.")
        names = list(gradients)
        found = torch.stack([gradients[name].detach().flatten(1).norm(dim=1).mean() for name in names]).double()
        found = all_reduce_sum(found) / world_size()
        places = torch.tensor([list(self.weights).index(name) for name in names], device=found.device)
        self.sums[places] = self.sums[places] * self.decay + found
        self.counts[places] = self.counts[places] * self.decay + 1
        means = self.sums[places] / self.counts[places]
        given = sum(self.weights[name] for name in names)
        total = torch.zeros_like(gradients[names[0]])
        for name, mean in zip(names, means, strict=True):
            total += gradients[name] * (self.norm * self.weights[name] / given / (mean + _TINY)).to(total.dtype)
        return total, dict(zip(names, found.float().unbind(), strict=True))
