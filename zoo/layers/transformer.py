"""Parts of decoder-only transformers: rotary positions for any grid, a key-value cache, the gated block, attention to a context,
masks by group.

Papers: RoFormer (arXiv 2104.09864), LLaMA (arXiv 2302.13971), GLU variants (arXiv 2002.05202). Rotated pairs are neighbours
(0, 1), (2, 3), ...; checked against tests/parity/elm, xar and flowar.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "CausalTransformer",
    "ContextKeys",
    "CrossAttention",
    "GatedFeedForward",
    "KVCache",
    "LlamaBlock",
    "grid_coordinates",
    "group_mask",
    "rope_table",
    "rotate",
]


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


class GatedFeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, width: int, hidden: int, *, bias: bool = False) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, width, bias=bias)
        self.w3 = nn.Linear(width, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


@dataclass(frozen=True)
class ContextKeys:
    """A context as the blocks of a transformer see it, made once for many calls.

    Attributes:
        blocks: for each block the keys and values `(b, heads, m, head)`.
        known: `(b, m)` bool, rows that are not padding; at least one for each item.
    """

    blocks: tuple[tuple[Tensor, Tensor], ...]
    known: Tensor


class CrossAttention(nn.Module):
    """Attention from vectors to a context; a context without padding may leave the mask away.

    Args:
        width: of the vectors, a multiple of `heads`.
        context: channels of the context.
        heads: of the attention.
        bias: on query, key and value.
        out_bias: on the output.
        head_norm: makes the norm of queries and of keys from the size of a head; None for no norm.
    """

    def __init__(
        self,
        width: int,
        context: int,
        heads: int,
        *,
        bias: bool = False,
        out_bias: bool = False,
        head_norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.wq = nn.Linear(width, width, bias=bias)
        self.wk = nn.Linear(context, width, bias=bias)
        self.wv = nn.Linear(context, width, bias=bias)
        self.wo = nn.Linear(width, width, bias=out_bias)
        self.q_norm = nn.Identity() if head_norm is None else head_norm(width // heads)
        self.k_norm = nn.Identity() if head_norm is None else head_norm(width // heads)

    def read(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Give the keys and values `(b, heads, m, head)` of a context `(b, m, c)`."""
        keys = self.wk(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.k_norm(keys), self.wv(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, known: Tensor | None = None) -> Tensor:
        """Attend from `x (b, n, width)` to what `read` gave, where `known (b, m)` marks the rows that are not padding."""
        q = self.q_norm(self.wq(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        mask = None if known is None else known[:, None, None]
        return self.wo(F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).transpose(1, 2).flatten(2))


class LlamaBlock(nn.Module):
    """x += attention(norm x); x += cross(norm x) where there is a context; x += feed_forward(norm x).

    RMS norms, no biases, rotary positions.
    """

    def __init__(self, width: int, heads: int, hidden: int, *, eps: float, dropout: float, context: int | None = None) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.feed_forward = GatedFeedForward(width, hidden)
        self.attention_norm = nn.RMSNorm(width, eps=eps)
        self.ffn_norm = nn.RMSNorm(width, eps=eps)
        self.cross = None if context is None else CrossAttention(width, context, heads)
        self.cross_norm = None if context is None else nn.RMSNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        table: Tensor,
        cache: KVCache | None,
        block: int,
        causal: bool,
        context: ContextKeys | None = None,
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), table, cache, block, causal))
        if self.cross is not None and self.cross_norm is not None and context is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), *context.blocks[block], context.known))
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
        context: channels of a context that every block looks at; None for none.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        hidden_multiple: int,
        eps: float,
        dropout: float,
        causal: bool = True,
        context: int | None = None,
    ) -> None:
        super().__init__()
        hidden = -(-int(8 * width / 3) // hidden_multiple) * hidden_multiple
        self.causal = causal
        self.heads, self.head = heads, width // heads
        self.layers = nn.ModuleList(
            LlamaBlock(width, heads, hidden, eps=eps, dropout=dropout, context=context) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width, eps=eps)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def cache(self, batch: int, length: int) -> KVCache:
        """Give an empty cache for `batch` sequences of at most `length` positions."""
        return KVCache(
            blocks=len(self.layers), batch=batch, heads=self.heads, head=self.head, length=length, like=self.norm.weight
        )

    def read(self, context: Tensor, known: Tensor) -> ContextKeys:
        """Make the keys of a context `(b, m, c)` whose real rows `known (b, m)` marks, for `forward`."""
        return ContextKeys(tuple(block.cross.read(context) for block in self.layers), known)

    def forward(
        self,
        x: Tensor,
        table: Tensor,
        cache: KVCache | None = None,
        *,
        causal: bool | None = None,
        context: ContextKeys | None = None,
    ) -> Tensor:
        """Run `(b, n, width)` with the rows `(n, head / 2, 2)` of their positions.

        Args:
            x, table: vectors and their positions.
            cache: is filled and keeps the keys and values.
            causal: for this call; None as the module was built.
            context: what `read` made of the context; None leaves it out.
        """
        for i, block in enumerate(self.layers):
            x = block(x, table, cache, i, self.causal if causal is None else causal, context)
        if cache is not None:
            cache.keep(x.shape[1])
        return self.norm(x)
