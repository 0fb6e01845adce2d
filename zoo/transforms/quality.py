"""Rate by quality: the smallest number of tokens whose reconstruction reaches a target, for each item."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.tokens import Tokens

__all__ = ["Quality", "psnr_db", "smallest_tokens"]


def psnr_db(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for signals in [-1, 1], `(b,)`; `y` is clamped, equal signals give infinity."""
    error = (x.float() - y.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error)


@dataclass(frozen=True)
class Quality:
    """A target for `encode(quality=...)`.

    Attributes:
        target: the score to reach.
        score: `score(x, y) -> (b,)` on originals and reconstructions in [-1, 1].
        higher_is_better: False for distances.
    """

    target: float
    score: Callable[[Tensor, Tensor], Tensor] = psnr_db
    higher_is_better: bool = True

    def reached(self, x: Tensor, y: Tensor) -> Tensor:
        """`(b,)` boolean."""
        scores = self.score(x, y)
        if scores.shape != (len(x),):
            raise ValueError(f"Quality: score gave shape {tuple(scores.shape)}. Needed: one number for each of the {len(x)} items.")
        return scores >= self.target if self.higher_is_better else scores <= self.target


def smallest_tokens(x: Tensor, tokens: Tokens, decode: Callable[[Tokens], Tensor], quality: Quality) -> Tokens:
    """Cut each item to the smallest prefix that reaches the target.

    Powers of two are tried from below, then the gap under the first that reaches is halved until k reaches and k - 1 does not.
    An item that never reaches keeps all its tokens. The work is about 2 log2(n) decodes for each item.

    Args:
        x: originals `(b, c, ...)` in [-1, 1].
        tokens: all tokens of the same items, ordered.
        decode: gives reconstructions of tokens.
        quality: the target.
    """
    if not tokens.spec.ordered:
        raise ValueError(f"{tokens.spec.tokenizer}.encode: quality needs an ordered tokenizer. Leave it out.")
    most = tokens.data.shape[1]
    failed = torch.zeros(len(x), dtype=torch.int64, device=tokens.device)
    reached = torch.full_like(failed, most)
    open_items = torch.ones(len(x), dtype=torch.bool, device=tokens.device)

    def reaches(rows: Tensor, ks: Tensor) -> Tensor:
        part = tokens[rows].keep(ks)
        return quality.reached(x[rows], decode(part).to(x.dtype))

    k = 1
    while k < most and bool(open_items.any()):
        rows = open_items.nonzero()[:, 0]
        ok = reaches(rows, torch.full_like(rows, k))
        reached[rows[ok]], failed[rows[~ok]] = k, k
        open_items[rows[ok]] = False
        k *= 2
    rows = open_items.nonzero()[:, 0]
    if len(rows):
        ok = reaches(rows, torch.full_like(rows, most))
        failed[rows[~ok]] = most - 1
    while bool((gap := reached - failed > 1).any()):
        rows = gap.nonzero()[:, 0]
        middle = (reached[rows] + failed[rows]) // 2
        ok = reaches(rows, middle)
        reached[rows[ok]], failed[rows[~ok]] = middle[ok], middle[~ok]
    return tokens.keep(reached)
