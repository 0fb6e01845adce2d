"""Lookup-free and binary spherical quantization: one bit per channel, its sign.

Papers: Yu et al., "Language Model Beats Diffusion", arXiv 2310.05737 (LFQ); Zhao et al., "Image and Video Tokenization
with Binary Spherical Quantization", arXiv 2406.07548 (BSQ). Behaviour checked against vector-quantize-pytorch 1.31.0 (MIT)
and TencentARC/SEED-Voken (Apache-2.0) through stored fixtures.

Differences: the entropy loss is computed from its factors (see `entropy.py`), exact and affordable for 18 bits and more;
the batch distribution is averaged over ranks; straight-through works in eval mode too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.quantizers.base import (
    Quantized,
    Quantizer,
    check_choice,
    check_integer,
    check_number,
    exact_math,
    working_dtype,
)
from zoo.quantizers.entropy import LogGuard, distribution_entropy, mean_bit_entropy, mean_code_distribution
from zoo.quantizers.gradients import straight_through
from zoo.quantizers.usage import usage_stats

__all__ = ["BSQ", "LFQ"]

_LARGEST_EXACT_GROUP = 22  # bits; the batch distribution of 2^22 codes is 16 MB


class LFQ(Quantizer):
    """Sign quantizer: channel j becomes +scale if x_j > 0, else -scale (0 counts as negative). No parameters.

    Loss: entropy_weight * (sample_weight * H_sample - batch_weight * H_batch) + commitment_weight * mean |x - q'|^2, where
    H_sample is the mean entropy of p(code | x) and H_batch that of p averaged over the batch and over all ranks, both in
    nats, with p(code | x) = softmax over all codes of 2 * inverse_temperature * x.code.

    Statistics beside the common ones, `(1,)` each: `sample_entropy`, `batch_entropy` (or `batch_entropy_grouped`),
    `commitment`.

    Args:
        bits: channels, 1..62.
        scale: size of the quantized values.
        soft_clamp: first squash x to soft_clamp * tanh(x / soft_clamp); at least `scale`, None does not.
        bit_order: "first_is_high" makes the first channel the most significant bit (vector-quantize-pytorch),
            "first_is_low" the least significant one (Open-MAGVIT2).
        splits: cut the channels into consecutive groups of these many bits, each with a code of its own: codes
            `(..., len(splits))`. None is one code. (Token factorization: (6, 12) for 18 bits.)
        entropy_weight, sample_weight, batch_weight, commitment_weight: of the loss.
        inverse_temperature: of the soft assignment.
        entropy_group_bits: take H_batch as the sum of the entropies of groups of at most so many consecutive bits. That is
            an upper bound, so it is logged as `batch_entropy_grouped`. None is exact and allowed up to 22 bits.
        log_guard: see `entropy.distribution_entropy`; "exact" for new training.

    Raises:
        ValueError: an argument outside its range.
    """

    _spherical = False
    _places: Tensor
    _group: Tensor

    def __init__(
        self,
        *,
        bits: int,
        scale: float = 1.0,
        soft_clamp: float | None = None,
        bit_order: Literal["first_is_high", "first_is_low"] = "first_is_high",
        splits: Sequence[int] | None = None,
        entropy_weight: float = 0.1,
        sample_weight: float = 1.0,
        batch_weight: float = 1.0,
        commitment_weight: float = 0.25,
        inverse_temperature: float = 100.0,
        entropy_group_bits: int | None = None,
        log_guard: LogGuard = "exact",
    ) -> None:
        owner = type(self).__name__
        check_integer(owner, "bits", bits, low=1, high=62)
        check_number(owner, "scale", scale, low=0, open_low=True)
        if soft_clamp is not None:
            check_number(owner, "soft_clamp", soft_clamp, low=scale)
        check_choice(owner, "bit_order", bit_order, ("first_is_high", "first_is_low"))
        splits = (bits,) if splits is None else tuple(splits)
        if not splits or min(splits) < 1 or sum(splits) != bits:
            raise ValueError(f"{owner}: splits={splits}. Allowed: positive ints that add up to bits={bits}.")
        for name, weight in (
            ("entropy_weight", entropy_weight),
            ("sample_weight", sample_weight),
            ("batch_weight", batch_weight),
            ("commitment_weight", commitment_weight),
        ):
            check_number(owner, name, weight, low=0)
        check_number(owner, "inverse_temperature", inverse_temperature, low=0, open_low=True)
        check_choice(owner, "log_guard", log_guard, ("exact", "clamp", "add"))
        if entropy_group_bits is not None:
            check_integer(owner, "entropy_group_bits", entropy_group_bits, low=1, high=_LARGEST_EXACT_GROUP)
        elif bits > _LARGEST_EXACT_GROUP and entropy_weight:
            raise ValueError(
                f"{owner}: bits={bits} with entropy_group_bits=None. Allowed: up to {_LARGEST_EXACT_GROUP} bits. "
                f"Set entropy_group_bits, for example 9, or entropy_weight=0."
            )
        super().__init__(dim=bits, codebook_sizes=tuple(1 << split for split in splits))
        self.scale, self.soft_clamp, self.bit_order, self.splits = scale, soft_clamp, bit_order, splits
        self.entropy_weight, self.sample_weight, self.batch_weight = entropy_weight, sample_weight, batch_weight
        self.commitment_weight, self.inverse_temperature = commitment_weight, inverse_temperature
        self.entropy_group_bits, self.log_guard = entropy_group_bits, log_guard
        places = [list(range(split)) if bit_order == "first_is_low" else list(range(split))[::-1] for split in splits]
        self.register_constant("_places", torch.tensor([place for own in places for place in own], device="cpu"))
        group = [j for j, split in enumerate(splits) for _ in range(split)]
        self.register_constant("_group", torch.tensor(group, device="cpu"))

    # ------------------------------------------------------------ the verbs
    def forward(self, x: Tensor) -> Quantized:
        self._check_x(x, "forward")
        with exact_math(x.device.type):
            inside = self._to_space(x.to(working_dtype(x.dtype)))
            positive = inside.detach() > 0
            value = torch.where(positive, self.scale, -self.scale).to(inside.dtype)
            codes = self._codes(positive)
            commitment = F.mse_loss(inside, value)
            loss = self.commitment_weight * commitment
            stats = usage_stats(codes, self.codebook_sizes)
            stats["commitment"] = commitment.detach().float().reshape(1)
            if self.entropy_weight:
                sample, batch = self._entropies(inside.reshape(-1, self.dim))
                loss = loss + self.entropy_weight * (self.sample_weight * sample - self.batch_weight * batch)
                stats["sample_entropy"] = sample.detach().float().reshape(1)
                name = "batch_entropy" if self.entropy_group_bits is None else "batch_entropy_grouped"
                stats[name] = batch.detach().float().reshape(1)
            out = straight_through(inside, value)
        return Quantized(out.to(x.dtype), codes, loss.float(), stats)

    def encode(self, x: Tensor) -> Tensor:
        self._check_x(x, "encode", finite=True)
        return self._codes(x.detach() > 0)

    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes, "decode")
        return self.codes_to_bits(codes).float() * (2 * self.scale) - self.scale

    def codes_to_bits(self, codes: Tensor) -> Tensor:
        """Split codes `(..., depth)` into bits, int64 `(..., bits)` of 0 and 1, channel order.

        Raises:
            ValueError: as `decode`.
        """
        self._check_codes(codes, "codes_to_bits")
        return (codes.long()[..., self._group] >> self._places) & 1

    def bits_to_codes(self, bits: Tensor) -> Tensor:
        """Join bits `(..., bits)`, integers 0 and 1 in channel order, into codes, int64 `(..., depth)`.

        Raises:
            ValueError: wrong last axis, not integer, or a value other than 0 and 1.
        """
        self._check_codes(bits, "bits_to_codes", sizes=(2,) * self.dim)
        return self._codes(bits.bool())

    # -------------------------------------------------------------- pieces
    def _to_space(self, x: Tensor) -> Tensor:
        """Where the sign is taken and the losses are computed."""
        if self.soft_clamp is not None:
            x = torch.tanh(x / self.soft_clamp) * self.soft_clamp
        return F.normalize(x, dim=-1) if self._spherical else x

    def _codes(self, positive: Tensor) -> Tensor:
        weighted = positive.long() << self._places
        return torch.stack([part.sum(-1) for part in weighted.split(self.splits, dim=-1)], -1)

    def _entropies(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """H_sample and H_batch of `(n, bits)` rows; the logit of a bit is the difference of its two codes' logits."""
        logits = rows * (4 * self.scale * self.inverse_temperature)
        groups = logits.split(self.entropy_group_bits or self.dim, dim=-1)
        batch = [distribution_entropy(mean_code_distribution(group), self.log_guard) for group in groups]
        return mean_bit_entropy(logits), torch.stack(batch).sum()


class BSQ(LFQ):
    """Binary spherical quantizer: x is put on the unit sphere, then each channel becomes +-1/sqrt(bits).

    As `LFQ` with scale 1/sqrt(bits); the gradient of x contains the normalisation. For long codes the paper uses
    `entropy_group_bits=9` or so.

    Args: as `LFQ`, without `scale`.
    """

    _spherical = True

    def __init__(
        self,
        *,
        bits: int,
        soft_clamp: float | None = None,
        bit_order: Literal["first_is_high", "first_is_low"] = "first_is_high",
        splits: Sequence[int] | None = None,
        entropy_weight: float = 0.1,
        sample_weight: float = 1.0,
        batch_weight: float = 1.0,
        commitment_weight: float = 0.25,
        inverse_temperature: float = 100.0,
        entropy_group_bits: int | None = None,
        log_guard: LogGuard = "exact",
    ) -> None:
        check_integer("BSQ", "bits", bits, low=1, high=62)
        super().__init__(
            bits=bits,
            scale=bits**-0.5,
            soft_clamp=soft_clamp,
            bit_order=bit_order,
            splits=splits,
            entropy_weight=entropy_weight,
            sample_weight=sample_weight,
            batch_weight=batch_weight,
            commitment_weight=commitment_weight,
            inverse_temperature=inverse_temperature,
            entropy_group_bits=entropy_group_bits,
            log_guard=log_guard,
        )
