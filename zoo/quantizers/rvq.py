"""Residual vector quantization: each codebook quantizes what the ones before it left over.

Papers: Zeghidour et al., "SoundStream", arXiv 2107.03312 (RVQ, quantizer dropout); Lee et al., "Autoregressive Image
Generation using Residual Quantization", arXiv 2203.01941 (one shared codebook). Behaviour checked against
vector-quantize-pytorch 1.31.0 (MIT) and kakaobrain/rq-vae-transformer (Apache-2.0) through stored fixtures.

Differences: all depths of a few hundred vectors are searched while they are in the cache; the gradient reaches x once, not
once per depth, unless asked for; depths can be cut or dropped everywhere; draws depend on seed and step only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.quantizers.base import (
    Quantized,
    Quantizer,
    check_choice,
    check_integer,
    check_number,
    exact_math,
    working_dtype,
)
from zoo.quantizers.distributed import rank
from zoo.quantizers.gradients import Estimator, estimate, straight_through, with_gradient
from zoo.quantizers.learning import StepCounter, seeded_generator
from zoo.quantizers.search import SearchTable, nearest, rows_at_once
from zoo.quantizers.usage import usage_stats
from zoo.quantizers.vq import VQ, CodebookOptions, learn_codebooks

__all__ = ["RVQ"]


class _Descent(NamedTuple):
    """What the walk through the depths found for `(n, dim)` rows; nothing here carries a gradient.

    Attributes:
        codes: `(n, depth)`, -1 where dropped.
        value: sum of the vectors of the codes, added in order of depth, `(n, dim)`.
        errors: mean squared residual after each depth, `(depth,)`; 0 where nobody went that deep.
        slope: sum over depths of the residuals after them, `(n, dim)`; None if it was not wanted.
    """

    codes: Tensor
    value: Tensor
    errors: Tensor
    slope: Tensor | None


class _Room(NamedTuple):
    """Memory that the pieces of one walk share."""

    scores: Tensor
    lowest: Tensor
    best: Tensor
    residual: Tensor
    vector: Tensor


class RVQ(Quantizer):
    """Residual quantizer of any depth; codes `(..., depth)`, coarsest first.

    r_1 = x; q_j = nearest(r_j); r_{j+1} = r_j - q_j; result = sum q_j. Loss: commitment_weight times the mean over depths
    of mean |r_j - q_j'|^2 (a dropped depth counts as zero), and for `learning="gradient"` the same with codebook_weight
    and the other side constant. With `gradient_scale="once"` the estimator acts on (x, sum q_j), so x gets the gradient
    once. With "per_depth" it acts on every (r_j, q_j) and the residual is a constant, which passes `depth` times the
    gradient, as vector-quantize-pytorch does.

    Quantizer dropout (train mode only): with probability `dropout` only the first m depths are used, m uniform in
    dropout_min_depth..depth; one draw per batch, equal on all ranks, or one per item (leading axis of x).

    Args:
        dim: channels.
        codebook_size: entries of every codebook, or one number per depth.
        num_codebooks: depth.
        shared: one codebook serves all depths.
        gradient_scale: "once" or "per_depth".
        estimator: "straight_through" or "rotation".
        dropout: probability of cutting the depth, 0..1.
        dropout_per: "batch" or "item".
        dropout_min_depth: smallest depth a draw may give.
        update_order: "together" updates all codebooks after the last depth; "per_depth" updates after each depth, so
            that with a shared codebook deeper levels search the updated one (RQ-VAE).
        seed: of the random start and of all draws.
        codebook: options of `VQ`; `distance="cosine"` has no residual and is refused.

    Raises:
        ValueError: an argument outside its range.

    State dict: `layers.{j}.*` as in `VQ`, one layer if shared; `clock.steps ()`.
    """

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int | Sequence[int],
        num_codebooks: int,
        shared: bool = False,
        gradient_scale: Literal["once", "per_depth"] = "once",
        estimator: Estimator = "straight_through",
        dropout: float = 0.0,
        dropout_per: Literal["batch", "item"] = "batch",
        dropout_min_depth: int = 1,
        update_order: Literal["together", "per_depth"] = "together",
        seed: int = 0,
        **codebook: Unpack[CodebookOptions],
    ) -> None:
        check_integer("RVQ", "num_codebooks", num_codebooks, low=1)
        sizes = (codebook_size,) * num_codebooks if isinstance(codebook_size, int) else tuple(codebook_size)
        if len(sizes) != num_codebooks or (shared and len(set(sizes)) != 1):
            raise ValueError(
                f"RVQ: codebook_size={codebook_size!r} with num_codebooks={num_codebooks}, shared={shared}. "
                f"Allowed: one number, or one per depth; equal numbers if shared."
            )
        check_choice("RVQ", "gradient_scale", gradient_scale, ("once", "per_depth"))
        check_number("RVQ", "dropout", dropout, low=0, high=1)
        check_choice("RVQ", "dropout_per", dropout_per, ("batch", "item"))
        check_integer("RVQ", "dropout_min_depth", dropout_min_depth, low=1, high=num_codebooks)
        check_choice("RVQ", "update_order", update_order, ("together", "per_depth"))
        check_choice("RVQ", "distance", codebook.get("distance", "euclidean"), ("euclidean", "cosine_search"))
        if update_order == "per_depth" and codebook.get("learning", "ema") != "ema":
            raise ValueError('RVQ: update_order="per_depth" is about running averages. Allowed with learning="ema" only.')
        check_integer("RVQ", "seed", seed, low=0)
        super().__init__(dim=dim, codebook_sizes=sizes)
        self.shared, self.gradient_scale, self.estimator = shared, gradient_scale, estimator
        self.dropout, self.dropout_per, self.dropout_min_depth = dropout, dropout_per, dropout_min_depth
        self.update_order = update_order
        self.seed = seed
        self.layers = nn.ModuleList(
            VQ(dim=dim, codebook_size=size, estimator=estimator, seed=seed * 1024 + j, **codebook)
            for j, size in enumerate(sizes[:1] if shared else sizes)
        )
        self.clock = StepCounter()

    # ------------------------------------------------------------ the verbs
    def forward(self, x: Tensor, *, depth: int | None = None) -> Quantized:
        """Quantize `x (..., dim)`; `depth` fixes how many codebooks are used, None leaves it to the dropout draw."""
        self._check_x(x, "forward")
        kept = self._kept(x, self._check_depth(depth, "forward"), drawn=depth is None)
        with exact_math(x.device.type):
            rows = x.to(working_dtype(x.dtype)).reshape(-1, self.dim)
            learn = self._books[0].learning_now()
            revived = None
            if learn and self.update_order == "per_depth":
                found, values, revived = self._descend_and_learn(rows.detach(), kept)
            else:
                if learn:
                    self._start_codebooks(rows.detach(), kept)
                found, values = self._descend(rows.detach(), kept, slope=rows.requires_grad), None
            loss = self._loss(rows, found, values)
            out = self._estimate(rows, found, values, kept)
            if learn and revived is None:
                revived = self._learn(rows.detach(), found.codes, kept)
        stats = usage_stats(found.codes, self.codebook_sizes)
        stats["commitment"] = found.errors.float()
        if revived is not None:
            stats["revived_codes"] = revived
        codes = found.codes.reshape(*x.shape[:-1], self.depth)
        return Quantized(out.reshape(x.shape).to(x.dtype), codes, loss.float(), stats)

    def encode(self, x: Tensor, *, depth: int | None = None) -> Tensor:
        """Codes of `x (..., dim)`: int64 `(..., depth)`, with the first `depth` codebooks only if given.

        Raises:
            ValueError: as `Quantizer.encode`, or `depth` outside 1..num_codebooks.
        """
        self._check_x(x, "encode", finite=True)
        depth = self._check_depth(depth, "encode")
        with exact_math(x.device.type):
            rows = x.detach().to(working_dtype(x.dtype)).reshape(-1, self.dim)
            codes = self._descend(rows, depth, slope=False).codes
        return codes[:, :depth].reshape(*x.shape[:-1], depth)

    def decode(self, codes: Tensor) -> Tensor:
        """Sum the vectors of codes `(..., m)` for any m in 1..depth; -1 marks a dropped depth and adds nothing."""
        self._check_codes(codes, "decode", shorter=True, low=-1)
        total = self._lookup(0, codes[..., 0])
        for j in range(1, codes.shape[-1]):
            total = total + self._lookup(j, codes[..., j])
        return total

    def vectors(self, codes: Tensor) -> Tensor:
        """The vector of each code of `(..., m)`, before summing: `(..., m, dim)`; zero where -1.

        Raises:
            ValueError: as `decode`.
        """
        self._check_codes(codes, "vectors", shorter=True, low=-1)
        return torch.stack([self._lookup(j, codes[..., j]) for j in range(codes.shape[-1])], -2)

    def distances(self, x: Tensor) -> tuple[Tensor, ...]:
        """Squared distances of each residual of `x (..., dim)` to its codebook: per depth `(..., k_j)`.

        Each residual is that of the hard codes; softmax(-distances / temperature) are RQ-VAE's soft codes.

        Raises:
            ValueError: as `encode`.
        """
        vectors = self.vectors(self.encode(x))
        residuals = [x.to(vectors.dtype)] + [x.to(vectors.dtype) - v for v in vectors.cumsum(-2).unbind(-2)[:-1]]
        return tuple(self.layer(j).distances(residual) for j, residual in enumerate(residuals))

    def layer(self, depth: int) -> VQ:
        """The codebook that serves `depth`, 0..num_codebooks-1."""
        return self._books[0 if self.shared else depth]

    @property
    def _books(self) -> list[VQ]:
        return [cast(VQ, layer) for layer in self.layers]

    def freeze_codebook(self, frozen: bool = True) -> None:
        """Stop (or resume) codebook learning at all depths."""
        for layer in self._books:
            layer.freeze_codebook(frozen)

    # ------------------------------------------------------------- the walk
    def _lookup(self, depth: int, codes: Tensor) -> Tensor:
        return self.layer(depth).lookup_kept(codes.long())

    @torch.no_grad()
    def _descend(self, rows: Tensor, kept: int | Tensor, *, slope: bool) -> _Descent:
        """Walk `(n, dim)` rows through the first `kept` depths (a number, or one per row `(n,)`)."""
        if torch.compiler.is_compiling():
            return self._descend_whole(rows, kept, slope=slope)
        found = self._empty(rows, slope)
        books = [layer.codebook.detach().to(rows.dtype) for layer in self._books]
        tables = [layer.search_table(rows.dtype) for layer in self._books]
        step = min(rows_at_once(max(self.codebook_sizes), rows.device), len(rows))
        room = _Room(
            scores=rows.new_empty(step * max(self.codebook_sizes)),
            lowest=rows.new_empty(step),
            best=found.codes.new_empty(step),
            residual=rows.new_empty(step, self.dim),
            vector=rows.new_empty(step, self.dim),
        )
        for start in range(0, len(rows), step or 1):
            here = slice(start, start + step)
            piece = found._replace(
                codes=found.codes[here], value=found.value[here], slope=None if found.slope is None else found.slope[here]
            )
            self._descend_piece(rows[here], kept if isinstance(kept, int) else kept[here], piece, books, tables, room)
        return found._replace(errors=found.errors / max(rows.numel(), 1))

    def _descend_piece(
        self,
        rows: Tensor,
        kept: int | Tensor,
        found: _Descent,
        books: list[Tensor],
        tables: list[SearchTable],
        room: _Room,
    ) -> None:
        """Walk a few hundred rows, writing into `found` (errors are added up, not averaged) and using `room`."""
        count = len(rows)
        residual = room.residual[:count].copy_(rows)
        lowest, best = room.lowest[:count], room.best[:count]
        for j in range(kept if isinstance(kept, int) else int(kept.max())):
            book, table = books[0 if self.shared else j], tables[0 if self.shared else j]
            scores = room.scores[: count * len(book)].view(count, len(book))
            torch.addmm(table.offsets, residual, table.columns, alpha=-1, out=scores)
            torch.min(scores, dim=-1, out=(lowest, best))
            vector = torch.index_select(book, 0, best, out=room.vector[:count])
            left = residual
            if isinstance(kept, int):
                found.codes[:, j] = best
                residual.sub_(vector)
            else:
                active = kept > j
                found.codes[:, j] = torch.where(active, best, -1)
                residual.sub_(vector.mul_(active[:, None]))
                left = residual * active[:, None]
            found.value.add_(vector)
            found.errors[j] += torch.dot(left.flatten(), left.flatten())
            if found.slope is not None:
                found.slope.add_(left)

    def _empty(self, rows: Tensor, slope: bool) -> _Descent:
        codes = torch.full((rows.shape[0], self.depth), -1, dtype=torch.int64, device=rows.device)
        value = torch.zeros_like(rows)
        return _Descent(codes, value, rows.new_zeros(self.depth), torch.zeros_like(rows) if slope else None)

    def _descend_whole(self, rows: Tensor, kept: int | Tensor, *, slope: bool) -> _Descent:
        """As `_descend`, depth by depth over all rows at once: for tracing, where the number of rows is symbolic."""
        found = self._empty(rows, slope)
        residual, value, total = rows, found.value, torch.zeros_like(rows)
        codes, errors = list(found.codes.unbind(-1)), list(found.errors.unbind())
        for j in range(kept if isinstance(kept, int) else self.depth):
            active = torch.ones_like(codes[j], dtype=torch.bool) if isinstance(kept, int) else kept > j
            best = nearest(residual, self.layer(j).search_table(rows.dtype))
            codes[j] = torch.where(active, best, -1)
            vector = self._lookup(j, codes[j]).to(rows.dtype)
            residual, value = residual - vector, value + vector
            left = residual * active[:, None]
            errors[j] = left.square().mean()
            total = total + left
        return _Descent(torch.stack(codes, -1), value, torch.stack(errors), total if slope else None)

    # -------------------------------------------------- loss and gradient
    def _loss(self, rows: Tensor, found: _Descent, values: list[Tensor] | None) -> Tensor:
        first = self._books[0]
        commitment = found.errors.sum()
        if found.slope is not None:
            commitment = with_gradient(rows, commitment, found.slope * (2 / max(rows.numel(), 1)))
        loss = first.commitment_weight * commitment
        if first.learning == "gradient":
            residual = rows.detach()
            for j in range(self.depth):
                vector = self._lookup(j, found.codes[:, j]) if values is None else values[j]
                active = (found.codes[:, j] >= 0)[:, None]
                loss = loss + first.codebook_weight * F.mse_loss(vector, residual * active)
                residual = residual - vector.detach()
        return loss / self.depth

    def _estimate(self, rows: Tensor, found: _Descent, values: list[Tensor] | None, kept: int | Tensor) -> Tensor:
        if self.gradient_scale == "once":
            return estimate(rows, found.value, self.estimator)
        if self.estimator == "straight_through" and isinstance(kept, int):
            return straight_through(rows, found.value, scale=float(kept))
        residual, out = rows, torch.zeros_like(rows)
        for j in range(self.depth):
            vector = (self._lookup(j, found.codes[:, j]) if values is None else values[j]).detach().to(rows.dtype)
            active = (found.codes[:, j] >= 0)[:, None]
            out = out + torch.where(active, estimate(residual, vector, self.estimator), 0)
            residual = residual - vector
        return out

    # ------------------------------------------------------- depth, learning
    def _check_depth(self, depth: int | None, where: str) -> int:
        if depth is None:
            return self.depth
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= self.depth:
            raise ValueError(f"RVQ.{where}: depth={depth!r}. Allowed: an int in 1..{self.depth}, or None for all.")
        return depth

    def _kept(self, x: Tensor, depth: int, *, drawn: bool) -> int | Tensor:
        """Depths to use in this call: one number, or one per row for `dropout_per="item"`."""
        if not (drawn and self.training and self.dropout):
            return depth
        per_item = self.dropout_per == "item"
        generator = seeded_generator(self.seed * 65536 + (rank() if per_item else 0), 3, self.clock.value)
        self.clock.add_one()
        items = x.shape[0] if per_item and x.ndim > 1 else 1
        depths = torch.randint(self.dropout_min_depth, self.depth + 1, (items,), generator=generator)
        cut = torch.rand(items, generator=generator) < self.dropout
        depths = torch.where(cut, depths, self.depth)
        if not per_item:
            return int(depths)
        rows = x.numel() // self.dim
        return depths.to(x.device).repeat_interleave(rows // items) if items else depths.to(x.device)

    def _served(self, deepest: int) -> tuple[list[VQ], list[list[int]]]:
        """The codebooks in use down to `deepest` and the depths each serves."""
        if self.shared:
            return self._books, [list(range(deepest))]
        return self._books[:deepest], [[j] for j in range(deepest)]

    @torch.no_grad()
    def _start_codebooks(self, rows: Tensor, kept: int | Tensor) -> None:
        """K-means on the residuals, depth by depth, for codebooks that are used for the first time."""
        deepest = self.depth if isinstance(kept, Tensor) else kept
        layers, _ = self._served(deepest)
        if all(layer.is_started() for layer in layers):
            return
        residual = rows
        for layer in layers:
            layer.start_codebook(residual)
            residual = residual - layer.lookup(layer.search(residual)).to(residual.dtype)

    def _learn(self, rows: Tensor, codes: Tensor, kept: int | Tensor) -> Tensor:
        """Update the codebooks in use: with one number of depths for the batch those below it, else all."""
        layers, depths = self._served(kept if isinstance(kept, int) else self.depth)
        revived = torch.zeros(len(self.layers), device=rows.device)
        revived[: len(layers)] = learn_codebooks(layers, depths, rows, codes)
        return revived

    @torch.no_grad()
    def _descend_and_learn(self, rows: Tensor, kept: int | Tensor) -> tuple[_Descent, list[Tensor], Tensor]:
        """Search, look up and update one depth after the other (RQ-VAE's order); also gives the vectors looked up."""
        found, slope = self._empty(rows, slope=False), torch.zeros_like(rows)
        values = [torch.zeros_like(rows) for _ in range(self.depth)]
        residual, revived = rows, torch.zeros(len(self.layers), device=rows.device)
        for j in range(kept if isinstance(kept, int) else self.depth):
            active = torch.ones_like(rows[:, 0], dtype=torch.bool) if isinstance(kept, int) else kept > j
            layer = self.layer(j)
            layer.start_codebook(residual)
            found.codes[:, j] = torch.where(active, layer.search(residual), -1)
            vector = layer.lookup_kept(found.codes[:, j]).to(rows.dtype)
            values[j] = vector
            revived[0 if self.shared else j] += learn_codebooks([layer], [[0]], residual, found.codes[:, j : j + 1])[0]
            residual = residual - vector
            found.value.add_(vector)
            left = residual * active[:, None]
            found.errors[j] = left.square().mean()
            slope.add_(left)
        return found._replace(slope=slope), values, revived
