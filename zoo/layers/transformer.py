"""Parts of decoder-only transformers: rotary positions for any grid, a key-value cache, the gated block, masks by group.

Papers: RoFormer (arXiv 2104.09864), LLaMA (arXiv 2302.13971), GLU variants (arXiv 2002.05202). Rotated pairs are neighbours
(0, 1), (2, 3), ...; checked against tests/parity/elm, xar and flowar.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CausalTransformer", "KVCache", "LlamaBlock", "grid_coordinates", "group_mask", "rope_table", "rotate"]


def grid_coordinates(positions: Sequence[int]) -> Tensor:
    """Give the coordinates of every position of a grid in raster order, `(n, axes)` float32."""
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in positions), indexing="ij")
    return torch.stack(axes, -1).flatten(0, -2)


def rope_table(coordinates: Tensor, head: int, *, base: float = 10000.0) -> Tensor:
    """Give cosines and sines of rotary positions, `(n, head / 2, 2)` float32.

    The pairs of a head are shared among the axes, the first axes first; an axis with p pairs has the frequencies base^(-j / p).

    Args:
        coordinates: `(n, axes)`.
        head: size of a head; an even number of at least 2 * axes.
        base: of the frequencies.
    """
    pairs, axes = head // 2, coordinates.shape[1]
    if head % 2 or pairs < axes:
        raise ValueError(f"rope_table: head={head} for {axes} axes. Allowed: an even number of at least {2 * axes}.")
    parts = []
    for axis in range(axes):
        share = pairs // axes + (axis < pairs % axes)
        frequencies = base ** (-torch.arange(share, dtype=torch.float32, device=coordinates.device) / share)
        parts.append(coordinates[:, axis, None].float() * frequencies)
    angles = torch.cat(parts, 1)
    return torch.stack([angles.cos(), angles.sin()], -1)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring pairs of `x (b, heads, n, head)` by `table (n, head / 2, 2)`, in float32."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = table.unbind(-1)
    return torch.stack([first * cosine - second * sine, second * cosine + first * sine], -1).flatten(-2).to(x.dtype)


def group_mask(sizes: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Give the boolean mask `(n, n)` by which a position sees its own group and all groups before it."""
    group = torch.repeat_interleave(torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device))
    return group[:, None] >= group[None, :]


class KVCache:
    """Keys and values of positions that were already seen, for every block of a transformer.

    `extend` writes behind the positions that are kept and gives all of them; `keep` makes what was written permanent. Without
    `keep` the next call writes over it, as a solver does that visits one position many times.

    Args:
        blocks, batch, heads, head: sizes.
        length: the most positions it will hold.
        like: a tensor whose device and dtype it takes.
    """

    def __init__(self, *, blocks: int, batch: int, heads: int, head: int, length: int, like: Tensor) -> None:
        shape = (blocks, batch, heads, length, head)
        self._keys, self._values = like.new_empty(shape), like.new_empty(shape)
        self.kept = 0

    def extend(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write `(b, heads, n, head)` of one block; give `(b, heads, kept + n, head)`."""
        end = self.kept + keys.shape[2]
        self._keys[block, :, :, self.kept : end] = keys
        self._values[block, :, :, self.kept : end] = values
        return self._keys[block, :, :, :end], self._values[block, :, :, :end]

    def keep(self, count: int) -> None:
        """Keep the first `count` positions of what was last written."""
        self.kept += count


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = nn.Linear(width, 3 * width, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, table: Tensor, cache: KVCache | None, block: int, causal: bool) -> Tensor:
        n = x.shape[1]
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, table), rotate(k, table)
        mask = None
        if cache is not None:
            k, v = cache.extend(block, k, v)
            if n > 1 and causal and cache.kept:
                mask = torch.ones(n, k.shape[2], dtype=torch.bool, device=x.device).tril(cache.kept)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and n > 1 and mask is None)
        return self.wo(mixed.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class LlamaBlock(nn.Module):
    """x += attention(norm x); x += feed_forward(norm x); RMS norms, no biases, rotary positions."""

    def __init__(self, width: int, heads: int, hidden: int, *, eps: float, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.feed_forward = _FeedForward(width, hidden)
        self.attention_norm = nn.RMSNorm(width, eps=eps)
        self.ffn_norm = nn.RMSNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, table: Tensor, cache: KVCache | None, block: int, causal: bool) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), table, cache, block, causal))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class CausalTransformer(nn.Module):
    """Blocks and a last norm over vectors `(b, n, width)`.

    Args:
        width: a multiple of `heads`.
        depth: blocks.
        heads: of the attention.
        hidden_multiple: the feed-forward width is 8 / 3 of the width, rounded up to a multiple of it.
        eps: of the norms.
        dropout: on what attention and feed-forward add.
        causal: a position sees itself and those before it; False lets all see all.
    """

    def __init__(
        self, *, width: int, depth: int, heads: int, hidden_multiple: int, eps: float, dropout: float, causal: bool = True
    ) -> None:
        super().__init__()
        hidden = -(-int(8 * width / 3) // hidden_multiple) * hidden_multiple
        self.causal = causal
        self.heads, self.head = heads, width // heads
        self.layers = nn.ModuleList(LlamaBlock(width, heads, hidden, eps=eps, dropout=dropout) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=eps)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def cache(self, batch: int, length: int) -> KVCache:
        """Give an empty cache for `batch` sequences of at most `length` positions."""
        return KVCache(
            blocks=len(self.layers), batch=batch, heads=self.heads, head=self.head, length=length, like=self.norm.weight
        )

    def forward(self, x: Tensor, table: Tensor, cache: KVCache | None = None, *, causal: bool | None = None) -> Tensor:
        """Run `(b, n, width)` with the rows `(n, head / 2, 2)` of their positions.

        Args:
            x, table: vectors and their positions.
            cache: is filled and keeps the keys and values.
            causal: for this call; None as the module was built.
        """
        for i, block in enumerate(self.layers):
            x = block(x, table, cache, i, self.causal if causal is None else causal)
        if cache is not None:
            cache.keep(x.shape[1])
        return self.norm(x)
