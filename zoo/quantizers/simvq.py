"""SimVQ: a frozen random codebook seen through one learned linear map.

Paper: Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer", arXiv 2411.02038.
Behaviour checked against vector-quantize-pytorch 1.31.0 (MIT) through stored fixtures. Every step moves every code, so no
code dies for want of samples.
"""

from __future__ import annotations

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
from zoo.quantizers.gradients import Estimator, estimate
from zoo.quantizers.learning import seeded_generator
from zoo.quantizers.search import nearest, search_table
from zoo.quantizers.usage import usage_stats

__all__ = ["SimVQ"]


class SimVQ(Quantizer):
    """Nearest code of the effective codebook frozen_codebook @ weight^T; codes `(..., 1)`.

    Loss: codebook_weight * mean |x' - q|^2 + commitment_weight * mean |x - q'|^2, where ' marks a constant.

    Args:
        dim: channels.
        codebook_size: entries.
        frozen_dim: width of the frozen codebook; None is `dim`.
        codebook_weight, commitment_weight: of the loss.
        estimator: "rotation" or "straight_through".
        seed: of the frozen codebook and of the first map.

    Raises:
        ValueError: an argument outside its range.

    State dict: `frozen_codebook (k, frozen_dim)`, `code_transform.weight (dim, frozen_dim)`.
    """

    frozen_codebook: Tensor

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        frozen_dim: int | None = None,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        estimator: Estimator = "rotation",
        seed: int = 0,
    ) -> None:
        frozen_dim = dim if frozen_dim is None else frozen_dim
        check_integer("SimVQ", "dim", dim, low=1)
        check_integer("SimVQ", "codebook_size", codebook_size, low=1)
        check_integer("SimVQ", "frozen_dim", frozen_dim, low=1)
        check_number("SimVQ", "codebook_weight", codebook_weight, low=0)
        check_number("SimVQ", "commitment_weight", commitment_weight, low=0)
        check_choice("SimVQ", "estimator", estimator, ("straight_through", "rotation"))
        check_integer("SimVQ", "seed", seed, low=0)
        super().__init__(dim=dim, codebook_sizes=(codebook_size,))
        self.codebook_weight, self.commitment_weight, self.estimator = codebook_weight, commitment_weight, estimator
        generator = seeded_generator(seed, 0)
        frozen = torch.randn(codebook_size, frozen_dim, generator=generator, device="cpu") * frozen_dim**-0.5
        self.register_buffer("frozen_codebook", frozen.to(torch.get_default_device()))
        self.code_transform = nn.Linear(frozen_dim, dim, bias=False)
        reach = frozen_dim**-0.5
        weight = (torch.rand(dim, frozen_dim, generator=generator, device="cpu") * 2 - 1) * reach
        self.code_transform.weight = nn.Parameter(weight.to(torch.get_default_device()))

    @property
    def codebook(self) -> Tensor:
        """The effective codebook `(k, dim)`, with gradient to the map."""
        return F.linear(self.frozen_codebook, self.code_transform.weight)

    def forward(self, x: Tensor) -> Quantized:
        self._check_x(x, "forward")
        with exact_math(x.device.type):
            rows = x.to(working_dtype(x.dtype)).reshape(-1, self.dim)
            codes = self._search(rows)
            value = self._lookup(codes).to(rows.dtype)
            commitment = F.mse_loss(rows, value.detach())
            loss = self.codebook_weight * F.mse_loss(value, rows.detach()) + self.commitment_weight * commitment
            out = estimate(rows, value.detach(), self.estimator)
        stats = usage_stats(codes[:, None], self.codebook_sizes)
        stats["commitment"] = commitment.detach().float().reshape(1)
        return Quantized(out.reshape(x.shape).to(x.dtype), codes.reshape(*x.shape[:-1], 1), loss.float(), stats)

    def encode(self, x: Tensor) -> Tensor:
        self._check_x(x, "encode", finite=True)
        with exact_math(x.device.type):
            rows = x.detach().to(working_dtype(x.dtype)).reshape(-1, self.dim)
            return self._search(rows).reshape(*x.shape[:-1], 1)

    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes, "decode")
        with exact_math(codes.device.type):
            return self._lookup(codes[..., 0].long())

    def _search(self, rows: Tensor) -> Tensor:
        with torch.no_grad():
            return nearest(rows, search_table(self.codebook.to(rows.dtype)))

    def _lookup(self, codes: Tensor) -> Tensor:
        """Transform only the rows that are used."""
        return F.linear(F.embedding(codes, self.frozen_codebook), self.code_transform.weight)
