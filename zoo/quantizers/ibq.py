"""Index-backpropagation quantization: the gradient reaches the whole codebook through the softmax of the scores.

Paper: Shi et al., "Scalable Image Tokenization with Index Backpropagation Quantization", arXiv 2412.02692. Behaviour
checked against TencentARC/SEED-Voken (Apache-2.0) through stored fixtures. Difference: scores, softmax and one-hot table,
vectors x codes each, exist for a few hundred vectors at a time and are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.quantizers.base import Quantized, Quantizer, check_integer, check_number, exact_math, working_dtype
from zoo.quantizers.distributed import differentiable_mean
from zoo.quantizers.entropy import distribution_entropy
from zoo.quantizers.learning import seeded_generator
from zoo.quantizers.search import SearchTable, nearest, rows_at_once
from zoo.quantizers.usage import usage_stats

__all__ = ["IBQ"]


def _pieces(rows: Tensor, codebook: Tensor) -> Iterator[slice]:
    step = rows_at_once(len(codebook), rows.device)
    return (slice(start, start + step) for start in range(0, len(rows), step))


class _IndexBackpropagation(torch.autograd.Function):
    """Value codebook[codes]; gradient of (hard - soft' + soft) @ codebook, soft = softmax(rows @ codebook^T)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(rows, codebook, codes)
        return F.embedding(codes, codebook)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, codebook, codes = ctx.saved_tensors
        with exact_math(rows.device.type):
            grad_rows = torch.empty_like(rows)
            grad_codebook = torch.zeros_like(codebook).index_add_(0, codes, grad)
            for here in _pieces(rows, codebook):
                soft = torch.softmax(rows[here] @ codebook.t(), -1)
                pull = grad[here] @ codebook.t()
                pull = soft * (pull - (soft * pull).sum(-1, keepdim=True))
                grad_rows[here] = pull @ codebook
                grad_codebook.addmm_(pull.t(), rows[here])
        return grad_rows, grad_codebook, None


class _SoftAssignment(torch.autograd.Function):
    """Mean entropy of softmax(scale * rows @ codebook^T), and that softmax averaged over the rows `(k,)`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, codebook: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(rows, codebook)
        ctx.scale = scale
        entropy, mean = rows.new_zeros(()), rows.new_zeros(len(codebook))
        for here in _pieces(rows, codebook):
            logs = torch.log_softmax(scale * (rows[here] @ codebook.t()), -1)
            soft = logs.exp()
            entropy -= (soft * logs).sum()
            mean += soft.sum(0)
        return entropy / len(rows), mean / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_entropy: Tensor, grad_mean: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, codebook = ctx.saved_tensors
        with exact_math(rows.device.type):
            grad_rows, grad_codebook = torch.empty_like(rows), torch.zeros_like(codebook)
            for here in _pieces(rows, codebook):
                logs = torch.log_softmax(ctx.scale * (rows[here] @ codebook.t()), -1)
                soft = logs.exp()
                pull = grad_mean - grad_entropy * logs
                pull = soft * (pull - (soft * pull).sum(-1, keepdim=True)) * (ctx.scale / len(rows))
                grad_rows[here] = pull @ codebook
                grad_codebook.addmm_(pull.t(), rows[here])
        return grad_rows, grad_codebook, None


class IBQ(Quantizer):
    """Code with the largest inner product; codes `(..., 1)`.

    With q the value that carries the index gradient and c the chosen code as stored:
    loss = mean |q - x|^2 + mean |c' - x|^2 + commitment_weight * mean |c - x'|^2
    + entropy_weight * (sample_weight * H_sample - batch_weight * H_batch), where ' marks a constant, H_sample is the mean
    entropy of softmax(x.codes / temperature) and H_batch that of its average over the batch and all ranks, in nats.

    Statistics beside the common ones, `(1,)` each: `commitment` (mean |c - x|^2), `sample_entropy`, `batch_entropy`.

    Args:
        dim: channels.
        codebook_size: entries.
        commitment_weight, entropy_weight, sample_weight, batch_weight: of the loss.
        temperature: of the softmax in the entropies.
        seed: of the first codebook, uniform in +-1/codebook_size.

    Raises:
        ValueError: an argument outside its range.

    State dict: `codebook (k, dim)`, a parameter.
    """

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.05,
        sample_weight: float = 1.0,
        batch_weight: float = 1.0,
        temperature: float = 0.01,
        seed: int = 0,
    ) -> None:
        check_integer("IBQ", "dim", dim, low=1)
        check_integer("IBQ", "codebook_size", codebook_size, low=1)
        for name, weight in (
            ("commitment_weight", commitment_weight),
            ("entropy_weight", entropy_weight),
            ("sample_weight", sample_weight),
            ("batch_weight", batch_weight),
        ):
            check_number("IBQ", name, weight, low=0)
        check_number("IBQ", "temperature", temperature, low=0, open_low=True)
        check_integer("IBQ", "seed", seed, low=0)
        super().__init__(dim=dim, codebook_sizes=(codebook_size,))
        self.commitment_weight, self.entropy_weight = commitment_weight, entropy_weight
        self.sample_weight, self.batch_weight, self.temperature = sample_weight, batch_weight, temperature
        start = torch.rand(codebook_size, dim, generator=seeded_generator(seed, 0), device="cpu") * 2 - 1
        self.codebook = nn.Parameter((start / codebook_size).to(torch.get_default_device()))

    def forward(self, x: Tensor) -> Quantized:
        self._check_x(x, "forward")
        with exact_math(x.device.type):
            rows = x.to(working_dtype(x.dtype)).reshape(-1, self.dim)
            codebook = self.codebook.to(rows.dtype)
            codes = self._search(rows)
            chosen = F.embedding(codes, codebook)
            value = _IndexBackpropagation.apply(rows, codebook, codes) if torch.is_grad_enabled() else chosen
            commitment = F.mse_loss(chosen, rows.detach())
            loss = F.mse_loss(value, rows) + F.mse_loss(rows, chosen.detach()) + self.commitment_weight * commitment
            stats = usage_stats(codes[:, None], self.codebook_sizes)
            stats["commitment"] = commitment.detach().float().reshape(1)
            if self.entropy_weight:
                sample, batch = self._entropies(rows, codebook)
                loss = loss + self.entropy_weight * (self.sample_weight * sample - self.batch_weight * batch)
                stats["sample_entropy"] = sample.detach().float().reshape(1)
                stats["batch_entropy"] = batch.detach().float().reshape(1)
        return Quantized(value.reshape(x.shape).to(x.dtype), codes.reshape(*x.shape[:-1], 1), loss.float(), stats)

    def encode(self, x: Tensor) -> Tensor:
        self._check_x(x, "encode", finite=True)
        with exact_math(x.device.type):
            rows = x.detach().to(working_dtype(x.dtype)).reshape(-1, self.dim)
            return self._search(rows).reshape(*x.shape[:-1], 1)

    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes, "decode")
        return F.embedding(codes[..., 0].long(), self.codebook)

    def _search(self, rows: Tensor) -> Tensor:
        codebook = self.codebook.detach().to(rows.dtype)
        return nearest(rows, SearchTable(codebook.new_zeros(len(codebook)), codebook.t()))

    def _entropies(self, rows: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        sample, mean = _SoftAssignment.apply(rows, codebook, 1 / self.temperature)
        return sample, distribution_entropy(differentiable_mean(mean), "add")
