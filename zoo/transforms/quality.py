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
        score: `score(x, y) -> (b,)` on originals in [-1, 1] and reconstructions, which may overshoot.
        higher_is_better: False for distances.
    """

    target: float
    score: Callable[[Tensor, Tensor], Tensor] = psnr_db
    higher_is_better: bool = True

    def reached(self, x: Tensor, y: Tensor) -> Tensor:
        """`(b,)` boolean."""
        scores = self.score(x, y)
        if not isinstance(scores, Tensor) or scores.shape != (len(x),):
            found = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise ValueError(f"Quality: score gave {found}. Needed: a tensor with one number for each of the {len(x)} items.")
        return scores >= self.target if self.higher_is_better else scores <= self.target


def smallest_tokens(x: Tensor, tokens: Tokens, decode: Callable[[Tokens], Tensor], quality: Quality) -> Tokens:
    """Cut each item to the smallest prefix that reaches the target.

    The first, second, fourth, eighth, ... prefix is tried, then the gap under the first that reaches is halved until a prefix
    reaches and the one before it does not. An item that never reaches keeps all its tokens. The work is about 2 log2(n) decodes
    for each item. Multi-rate tokens are cut only at the ends of their levels.

    Args:
        x: originals `(b, c, ...)` in [-1, 1].
        tokens: all tokens of the same items, ordered.
        decode: gives reconstructions of tokens.
        quality: the target.
    """
    if not tokens.spec.ordered:
        raise ValueError(f"{tokens.spec.tokenizer}.encode: quality needs an ordered tokenizer. Leave it out.")
    most = tokens.data.shape[1]
    ends = [end for end in tokens.spec.segment_ends if end <= most] or range(1, most + 1)
    prefixes = torch.tensor(list(ends), device=tokens.device)
    # Numbers of prefixes, from 1: the longest that is known to fail, and the shortest that is known or assumed to reach.
    failed = torch.zeros(len(x), dtype=torch.int64, device=tokens.device)
    reached = torch.full_like(failed, len(prefixes))
    open_items = torch.ones(len(x), dtype=torch.bool, device=tokens.device)

    def reaches(rows: Tensor, numbers: Tensor) -> Tensor:
        part = tokens[rows]
        part = part.keep(prefixes[numbers - 1].clamp(max=part.data.shape[1]))
        return quality.reached(x[rows], decode(part).to(x.dtype))

    number = 1
    while number < len(prefixes) and bool(open_items.any()):
        rows = open_items.nonzero()[:, 0]
        ok = reaches(rows, torch.full_like(rows, number))
        reached[rows[ok]], failed[rows[~ok]] = number, number
        open_items[rows[ok]] = False
        number *= 2
    rows = open_items.nonzero()[:, 0]
    if len(rows) and len(prefixes) > 1:
        ok = reaches(rows, torch.full_like(rows, len(prefixes)))
        failed[rows[~ok]] = len(prefixes) - 1
    while bool((gap := reached - failed > 1).any()):
        rows = gap.nonzero()[:, 0]
        middle = (reached[rows] + failed[rows]) // 2
        ok = reaches(rows, middle)
        reached[rows[ok]], failed[rows[~ok]] = middle[ok], middle[~ok]
    return tokens.keep(prefixes[reached - 1])
