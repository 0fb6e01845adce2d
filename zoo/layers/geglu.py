"""The gated MLP of Phenaki's transformers, shared by its tokenizer and its generator."""

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GEGLU"]


class GEGLU(nn.Module):
    """down(a * gelu(b)) of the normalised input, a and b being the halves of up(norm x); no biases. Source: arXiv 2002.05202.

    Args:
        width: size of the last axis.
        hidden: size of each half.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, -1)
        return self.down(value * F.gelu(gate))
