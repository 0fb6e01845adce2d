"""Transformer blocks modulated by a condition (adaLN with gates), as xAR and FlowAR have them, and the embedding of noise levels.

Papers: xAR (arXiv 2502.20388), FlowAR (arXiv 2412.15205); the modulation is that of DiT (arXiv 2212.09748). Parameter names are
those of the public checkpoints; checked against tests/parity/xar and flowar.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.transformer import KVCache, rotate

__all__ = ["GatedMLP", "ModulatedAttention", "ModulatedBlock", "TimeEmbedding", "modulate", "plain_rms"]

EPS = 1e-6


def plain_rms(x: Tensor) -> Tensor:
    """RMS norm without weights."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Give norm(x) * (1 + scale) + shift."""
    return plain_rms(x) * (1 + scale) + shift


class TimeEmbedding(nn.Module):
    """Noise levels in 0..1 to vectors; the network sees the whole part of 1000 t, taken in float32."""

    def __init__(self, width: int, *, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed `(...,)` to `(..., width)`."""
        half = self.features // 2
        frequencies = (-math.log(10000) * torch.arange(half, device=t.device).float() / half).exp()
        angles = (t.float() * 1000).floor()[..., None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.mlp[0].weight.dtype))


class ModulatedAttention(nn.Module):
    """Multi-head attention with rotary positions; scale head ** -0.5."""

    def __init__(self, width: int, heads: int, *, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor, table: Tensor, mask: Tensor | None, cache: KVCache | None, block: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, table), rotate(k, table)
        if cache is not None:
            k, v = cache.extend(block, k, v)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return F.dropout(self.proj(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


class GatedMLP(nn.Module):
    """fc2(gelu(fc1_g x) * fc1_x x), hidden width int(8 width / 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(8 * width / 3)
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1_g(x)) * self.fc1_x(x))


class ModulatedBlock(nn.Module):
    """x += g1 * attention(norm(x) * (1 + s1) + h1); x += g2 * mlp(norm(x) * (1 + s2) + h2).

    The six pieces g1, g2, s1, s2, h1, h2 come from the condition, `ada_lin`.
    """

    def __init__(self, width: int, heads: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.attn = ModulatedAttention(width, heads, bias=bias, dropout=dropout)
        self.mlp = GatedMLP(width)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        table: Tensor,
        *,
        groups: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        block: int = 0,
    ) -> Tensor:
        """Update `(b, n, width)`.

        Args:
            x: the positions.
            condition: `(b, m, width)`; m is n, 1, or the number of groups.
            table: rotary rows of the positions.
            groups: `(n,)`, which row of the condition each position has; None where m is n or 1.
            mask: boolean, True may attend.
            cache: keys and values of earlier positions, and the place of this block in it.
        """
        pieces = self.ada_lin(condition)
        if groups is not None:
            pieces = pieces[:, groups]
        g1, g2, s1, s2, h1, h2 = pieces.chunk(6, -1)
        x = x + g1 * self.attn(modulate(x, s1, h1), table, mask, cache, block)
        return x + g2 * self.mlp(modulate(x, s2, h2))
