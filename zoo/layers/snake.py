"""Snake: x + sin(alpha x)^2 / alpha, with one alpha for each channel.

Paper: Ziyin et al., "Neural Networks Fail to Learn Periodic Functions and How to Fix It", arXiv 2006.08195. The audio codecs add
1e-9 to alpha before they divide.
"""

import torch
from torch import Tensor, nn

__all__ = ["Snake"]

_TINY = 1e-9


class Snake(nn.Module):
    """Snake on `(b, c, t)`; its state dict is `alpha (1, c, 1)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def inverse(self) -> Tensor:
        """1 / alpha, `(1, c, 1)`."""
        return (self.alpha + _TINY).reciprocal()

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, torch.sin(self.alpha * x).square(), self.inverse())
