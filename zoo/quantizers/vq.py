"""Vector quantization: the nearest entry of one codebook.

Papers: van den Oord et al., arXiv 1711.00937 (VQ-VAE, both ways to learn the codebook); Yu et al., arXiv 2110.04627
(unit-length codes); Fifty et al., arXiv 2410.06424 (rotation trick). Behaviour checked against vector-quantize-pytorch
1.31.0 (MIT) through stored fixtures.

Differences: the search needs a few megabytes whatever the batch; every choice about ranks is made at call time; k-means
start and revival give all ranks the codebook that one process would get from the joint batch; a revived code is entered
into its running averages; a code without samples after k-means keeps its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

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
from zoo.quantizers.distributed import all_reduce_sum
from zoo.quantizers.gradients import Estimator, estimate
from zoo.quantizers.learning import (
    StepCounter,
    batch_sums,
    draw_rows,
    joint_offset,
    kmeans,
    pick_indices,
    seeded_generator,
)
from zoo.quantizers.search import Distance, SearchTable, nearest, search_table, squared_distances
from zoo.quantizers.usage import usage_stats

__all__ = ["VQ", "CodebookOptions", "learn_codebooks"]

_SMOOTHING = 1e-5  # keeps an unused code finite when the average is taken


class CodebookOptions(TypedDict, total=False):
    """Keyword arguments of `VQ` that `RVQ` hands on to each of its codebooks."""

    learning: Literal["ema", "gradient"]
    decay: float
    commitment_weight: float
    codebook_weight: float
    distance: Distance
    kmeans_iterations: int
    revive_below: float


class VQ(Quantizer):
    """Nearest-code quantizer with one codebook; codes `(..., 1)`.

    Loss: commitment_weight * mean |x - q'|^2 and, for `learning="gradient"`, + codebook_weight * mean |x' - q|^2, where '
    marks a constant. (The "legacy" order of early VQGAN checkpoints is codebook_weight 0.25, commitment_weight 1.)

    Codebook, in train mode: with n_k, s_k the count and sum of the vectors of code k over all ranks,
    `cluster_size` <- decay * cluster_size + (1 - decay) n_k, `codebook_sum` likewise with s_k, and after the lookup
    `codebook` = codebook_sum / cluster_size, the latter smoothed by 1e-5. Do not run this module under activation
    checkpointing; if it is, the statistics are still counted once (never inside a backward pass).

    Args:
        dim: channels.
        codebook_size: entries.
        learning: "ema" moves the codebook by running averages, "gradient" makes it a parameter.
        decay: of the running averages, 0..1.
        commitment_weight: weight of the pull of x towards its code.
        codebook_weight: weight of the pull of the code towards x, for "gradient".
        distance: "euclidean"; "cosine" puts x and the codes on the unit sphere; "cosine_search" compares directions but
            returns the code as stored (Descript's codec).
        estimator: gradient given to x, "straight_through" or "rotation".
        kmeans_iterations: Lloyd iterations on the first training batch; 0 keeps the random start.
        revive_below: a code whose `cluster_size` falls below this is replaced by a random vector of the batch and gets
            this cluster size; 0 never revives.
        seed: of the random start and of all draws.

    Raises:
        ValueError: an argument outside its range.

    State dict: `codebook (k, dim)`, `cluster_size (k,)`, `codebook_sum (k, dim)` for "ema", `initialized ()` bool,
    `clock.steps ()` int64. To put in a codebook from elsewhere use `set_codebook`.
    """

    codebook: Tensor
    codebook_sum: Tensor
    cluster_size: Tensor
    initialized: Tensor

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        learning: Literal["ema", "gradient"] = "ema",
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        distance: Distance = "euclidean",
        estimator: Estimator = "straight_through",
        kmeans_iterations: int = 10,
        revive_below: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_integer("VQ", "dim", dim, low=1)
        check_integer("VQ", "codebook_size", codebook_size, low=1)
        check_choice("VQ", "learning", learning, ("ema", "gradient"))
        check_number("VQ", "decay", decay, low=0, high=1)
        check_number("VQ", "commitment_weight", commitment_weight, low=0)
        check_number("VQ", "codebook_weight", codebook_weight, low=0)
        check_choice("VQ", "distance", distance, ("euclidean", "cosine", "cosine_search"))
        check_choice("VQ", "estimator", estimator, ("straight_through", "rotation"))
        check_integer("VQ", "kmeans_iterations", kmeans_iterations, low=0)
        check_number("VQ", "revive_below", revive_below, low=0)
        check_integer("VQ", "seed", seed, low=0)
        super().__init__(dim=dim, codebook_sizes=(codebook_size,))
        self.learning, self.decay, self.distance, self.estimator = learning, decay, distance, estimator
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.kmeans_iterations, self.revive_below, self.seed = kmeans_iterations, revive_below, seed
        self.frozen = False
        start = torch.randn(codebook_size, dim, generator=seeded_generator(seed, 0), device="cpu") * dim**-0.5
        if distance == "cosine":
            start = F.normalize(start, dim=-1)
        start = start.to(torch.get_default_device())
        if learning == "gradient":
            self.codebook = nn.Parameter(start)
        else:
            self.register_buffer("codebook", start)
            self.register_buffer("codebook_sum", start.clone())
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("initialized", torch.tensor(kmeans_iterations == 0))
        self.clock = StepCounter()
        self._started = False  # `initialized`, once it was found true: spares a wait for the device per step

    # ------------------------------------------------------------ the verbs
    def forward(self, x: Tensor) -> Quantized:
        self._check_x(x, "forward")
        with exact_math(x.device.type):
            rows = self._to_space(x.to(working_dtype(x.dtype)).reshape(-1, self.dim))
            learn = self.learning_now()
            if learn:
                self.start_codebook(rows)
            codes = self.search(rows)
            value = self.lookup(codes)
            commitment = F.mse_loss(rows, value.detach())
            loss = self.commitment_weight * commitment
            if self.learning == "gradient":
                loss = loss + self.codebook_weight * F.mse_loss(value, rows.detach())
            out = estimate(rows, value.detach(), self.estimator)
            stats = usage_stats(codes[:, None], self.codebook_sizes)
            stats["commitment"] = commitment.detach().float().reshape(1)
            if learn:
                stats["revived_codes"] = learn_codebooks([self], [[0]], rows.detach(), codes[:, None])
        return Quantized(out.reshape(x.shape).to(x.dtype), codes.reshape(*x.shape[:-1], 1), loss.float(), stats)

    def encode(self, x: Tensor) -> Tensor:
        self._check_x(x, "encode", finite=True)
        with exact_math(x.device.type):
            rows = self._to_space(x.detach().to(working_dtype(x.dtype)).reshape(-1, self.dim))
            return self.search(rows).reshape(*x.shape[:-1], 1)

    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes, "decode")
        return self.lookup(codes[..., 0].long())

    def distances(self, x: Tensor) -> Tensor:
        """Squared Euclidean distances of `x (..., dim)` to all codes, float32 `(..., k)`, with gradient.

        softmax(-distances / temperature) are the soft codes of RQ-VAE and of proxy-code training.

        Raises:
            ValueError: as `forward`.
        """
        self._check_x(x, "distances")
        with exact_math(x.device.type):
            rows = self._to_space(x.to(working_dtype(x.dtype)).reshape(-1, self.dim))
            return squared_distances(rows, self._table().to(rows.dtype)).reshape(*x.shape[:-1], -1)

    # ------------------------------------------------------ codebook access
    def set_codebook(self, codebook: Tensor, *, cluster_size: Tensor | None = None) -> None:
        """Put in a codebook learned elsewhere, with averages that agree with it, so that training goes on from it.

        Args:
            codebook: `(k, dim)`.
            cluster_size: `(k,)` positive counts; None is one each.

        Raises:
            ValueError: wrong shape.
        """
        for name, value, shape in (
            ("codebook", codebook, self.codebook.shape),
            ("cluster_size", cluster_size, self.cluster_size.shape),
        ):
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"VQ.set_codebook: {name} has shape {tuple(value.shape)}. Allowed: {tuple(shape)}. "
                    f"Build the quantizer with the sizes of the codebook."
                )
        sizes = torch.ones_like(self.cluster_size) if cluster_size is None else cluster_size
        with torch.no_grad():
            self.codebook.copy_(codebook)
            self.cluster_size.copy_(sizes)
            if self.learning == "ema":
                self.codebook_sum.copy_(self.codebook * self.cluster_size[:, None])
            self.initialized.fill_(True)

    def freeze_codebook(self, frozen: bool = True) -> None:
        """Stop (or resume) every kind of codebook learning; gradients to x and the commitment loss stay."""
        self.frozen = frozen
        if self.learning == "gradient":
            self.codebook.requires_grad_(not frozen)

    def search(self, rows: Tensor) -> Tensor:
        """Nearest code of `(n, dim)` rows already in code space; int64 `(n,)`. No checks."""
        return nearest(rows, self.search_table(rows.dtype))

    def search_table(self, dtype: torch.dtype) -> SearchTable:
        """The codebook as the search wants it."""
        return search_table(self.codebook.to(dtype), self.distance)

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors of codes `(...)`: `(..., dim)`, with gradient to a learned codebook. No checks."""
        value = F.embedding(codes, self.codebook)
        return F.normalize(value, dim=-1) if self.distance == "cosine" else value

    def lookup_kept(self, codes: Tensor) -> Tensor:
        """As `lookup`, with zero vectors for the code -1 (dropped)."""
        return self.lookup(codes.clamp_min(0)) * (codes >= 0)[..., None]

    def _table(self) -> Tensor:
        return F.normalize(self.codebook, dim=-1) if self.distance == "cosine" else self.codebook

    def _to_space(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1) if self.distance == "cosine" else rows

    # ------------------------------------------------------------- learning
    def learning_now(self) -> bool:
        """Whether this call moves the codebook: train mode, not frozen, not a recomputation inside a backward pass."""
        if not self.training or self.frozen:
            return False
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return False
        if self.codebook.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{type(self).__name__}.forward: the codebook has dtype {self.codebook.dtype}. Allowed in train mode: "
                f"float32, because running averages do not move in {self.codebook.dtype}. Keep the module in float32 "
                f"and use autocast, or freeze_codebook()."
            )
        return True

    def is_started(self) -> bool:
        """`initialized` as a Python bool; read back from the device until it is true."""
        self._started = self._started or bool(self.initialized)
        return self._started

    @torch.compiler.disable
    @torch.no_grad()
    def start_codebook(self, rows: Tensor) -> None:
        """Place the codes by k-means on the joint rows `(n, dim)` unless that was done; a collective when it was not.

        With fewer joint rows than codes some codes start equal; revival spreads them.
        """
        if self.is_started():
            return
        rows = rows.detach().to(self.codebook.dtype)
        rows = rows[torch.isfinite(rows).all(-1)]
        offset, total = joint_offset(len(rows), rows.device)
        if total == 0:
            return
        picks = pick_indices(self.codebook_size, total, seeded_generator(self.seed, 1))
        start = draw_rows(rows, offset, picks)
        means, counts = kmeans(rows, start, iterations=self.kmeans_iterations, cosine=self.distance == "cosine")
        self.set_codebook(means, cluster_size=counts.clamp_min(1))

    def absorb(self, sums: Tensor) -> None:
        """Move the running averages by the joint sums and counts `(k, dim + 1)`; the codebook itself stays."""
        self.cluster_size.lerp_(sums[:, -1], 1 - self.decay)
        if self.learning == "ema":
            self.codebook_sum.lerp_(sums[:, :-1], 1 - self.decay)

    def refresh(self) -> None:
        """Compute the codebook from the running averages."""
        if self.learning == "gradient":
            return
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + _SMOOTHING) / (total + self.codebook_size * _SMOOTHING) * total
        codebook = self.codebook_sum / smoothed[:, None]
        self.codebook.copy_(F.normalize(codebook, dim=-1) if self.distance == "cosine" else codebook)

    def replace(self, which: Tensor, vectors: Tensor) -> None:
        """Put `vectors (m, dim)` at the codes `which (m,)`, averages included; non-finite vectors are left out."""
        real = torch.isfinite(vectors).all(-1)
        which, vectors = which[real], vectors[real]
        self.codebook[which] = vectors
        self.cluster_size[which] = self.revive_below
        if self.learning == "ema":
            self.codebook_sum[which] = vectors * self.revive_below

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._started = False
        super()._load_from_state_dict(*args, **kwargs)


@torch.compiler.disable
@torch.no_grad()
def learn_codebooks(layers: Sequence[VQ], depths: Sequence[Sequence[int]], rows: Tensor, codes: Tensor) -> Tensor:
    """Update codebooks from one batch: running averages, codebook, revival. A collective.

    Args:
        layers: the codebooks to update.
        depths: for each codebook the depths it serves, ascending. Together they are 0..m-1 for some m.
        rows: the vectors before depth 0, `(n, dim)`.
        codes: `(n, m or more)` in [-1, k); -1 was dropped.

    Returns:
        Float32 `(len(layers),)`: codes revived.
    """
    rows = rows.detach().to(layers[0].codebook.dtype)
    serving = {depth: layer for layer, own in zip(layers, depths, strict=True) for depth in own}
    chain = [serving[depth] for depth in range(len(serving))]
    residual, sums = rows, []
    for depth, layer in enumerate(chain):
        sums.append(batch_sums(residual, codes[:, depth], layer.codebook_size))
        if depth + 1 < len(chain):
            residual = residual - layer.lookup_kept(codes[:, depth])
    pieces = all_reduce_sum(torch.cat([piece.flatten() for piece in sums])).split([piece.numel() for piece in sums])
    for layer, total, piece in zip(chain, pieces, sums, strict=True):
        layer.absorb(total.view_as(piece))
    # Vectors for dead codes are residuals under the old codebooks, so all are fetched before any codebook moves.
    revivals = _vectors_for_dead_codes(layers, depths, chain, rows, codes)
    for layer, (dead, vectors) in zip(layers, revivals, strict=True):
        layer.refresh()
        if len(dead):
            layer.replace(dead, vectors)
        layer.clock.add_one()
    return torch.tensor([float(len(dead)) for dead, _ in revivals], device=rows.device)


def _vectors_for_dead_codes(
    layers: Sequence[VQ], depths: Sequence[Sequence[int]], chain: Sequence[VQ], rows: Tensor, codes: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """For each codebook its dead codes `(m,)` and as many random vectors of the joint batch `(m, dim)`.

    Whether there are any is decided from synchronised counts, so all ranks agree on the collectives that follow.
    """
    nobody = rows.new_zeros(0, dtype=torch.int64), rows[:0]
    masks = [layer.cluster_size < layer.revive_below for layer in layers]
    if not any(layer.revive_below for layer in layers) or not any(torch.stack([m.any() for m in masks]).tolist()):
        return [nobody for _ in layers]
    offset, total = joint_offset(len(rows), rows.device)
    result = []
    for layer, own, mask in zip(layers, depths, masks, strict=True):
        dead = mask.nonzero().flatten()
        if not len(dead) or not total:
            result.append(nobody)
            continue
        generator = seeded_generator(layer.seed, 2, layer.clock.value)
        picks = pick_indices(len(dead), total * len(own), generator).to(rows.device)
        wanted_depth = torch.tensor(list(own), device=rows.device)[picks % len(own)]
        joint = torch.cat([rows, codes.to(rows.dtype)], -1)
        drawn = draw_rows(joint, offset, torch.div(picks, len(own), rounding_mode="floor"))
        residual, drawn_codes = drawn[:, : rows.shape[-1]], drawn[:, rows.shape[-1] :].long()
        vectors = residual
        for depth in range(max(own)):
            residual = residual - chain[depth].lookup_kept(drawn_codes[:, depth])
            vectors = torch.where((wanted_depth > depth)[:, None], residual, vectors)
        result.append((dead, vectors))
    return result
