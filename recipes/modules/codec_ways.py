"""How the families of audio codecs turn sound into sound with gradient, and how their codebooks learn.

`patch_codec` holds a quantizer of ours. EnCodec's and DAC's networks are transformers' classes. EnCodec's quantizer has no running
averages there: our `RVQ` learns beside it, and its codebooks are copied. The layers of DAC's are walked here, for a depth of each
item. A way is a module because it may hold what the training needs beside the tokenizer.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.pieces import Step
from zoo.quantizers.base import Quantized, exact_math, working_dtype
from zoo.quantizers.rvq import RVQ
from zoo.quantizers.search import nearest, search_table
from zoo.quantizers.usage import usage_stats

__all__ = ["Passed", "Way", "way_of"]


class Passed(NamedTuple):
    """Sound `(b, c, s)` after its way through a codec, as long as it came in, and the quantizer's result with `(b, n, d)` codes."""

    sounds: Tensor
    quantized: Quantized


class Way(nn.Module):
    """The way through a family.

    Args:
        tok: the tokenizer; given to every call, since the recipe owns it.
        dropout: share of the items (where `per_item`) or batches that are cut to fewer levels, evenly drawn. Train mode only.
        seed: of the draws.
    """

    per_item = True

    def __init__(self, tok: Any, *, dropout: float, seed: int) -> None:
        super().__init__()
        self.dropout, self.seed = dropout, seed

    def forward(self, tok: Any, x: Tensor, *, depth: int | None, draws: torch.Generator | None, quantize: bool = True) -> Passed:
        """Send sound `(b, c, s)` of whole hops through.

        Args:
            tok: the tokenizer.
            x: the sound.
            depth: number of levels; None leaves it to the dropout.
            draws: all chance, where the quantizer has none of its own.
            quantize: False passes the latents on as they are.
        """
        raise NotImplementedError

    def sync(self, tok: Any) -> None:
        """Bring the tokenizer's codebooks up to date; called after each step."""


def _whole(chain: Step, x: Tensor) -> Tensor:
    y = chain.push(x, last=True)
    assert y is not None, "a codec gives at least one position"
    return y


def _untouched(vectors: Tensor) -> Quantized:
    return Quantized(vectors, torch.empty(0, dtype=torch.int64), vectors.new_zeros((), dtype=torch.float32), {})


class _PatchCodecWay(Way):
    """The quantizer is ours and learns where it is."""

    def __init__(self, tok: Any, *, dropout: float, seed: int) -> None:
        super().__init__(tok, dropout=dropout, seed=seed)
        if dropout:
            tok.quantizer.dropout, tok.quantizer.dropout_per = dropout, "item"

    def forward(self, tok: Any, x: Tensor, *, depth: int | None, draws: torch.Generator | None, quantize: bool = True) -> Passed:
        vectors = _whole(tok.encoder_chain(), x).transpose(1, 2)
        if not quantize:
            quantized = _untouched(vectors)
        else:
            quantized = tok.quantizer(vectors) if depth is None else tok.quantizer(vectors, depth=depth)
        return Passed(_whole(tok.decoder_chain(), quantized.x.transpose(1, 2)), quantized)


class _EncodecWay(Way):
    """Codebooks of running averages beside the library's, which get a copy after each step."""

    per_item = False

    def __init__(self, tok: Any, *, dropout: float, seed: int) -> None:
        super().__init__(tok, dropout=dropout, seed=seed)
        config = tok.config
        self.quantizer = RVQ(
            dim=config.latent_channels,
            codebook_size=config.codebook_size,
            num_codebooks=config.num_codebooks,
            decay=0.99,
            commitment_weight=1.0,
            kmeans_iterations=50,
            revive_below=2.0,
            dropout=dropout,
            seed=seed,
        )

    def forward(self, tok: Any, x: Tensor, *, depth: int | None, draws: torch.Generator | None, quantize: bool = True) -> Passed:
        if tok.config.normalize:
            scale = x.mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt() + 1e-8
            x = x / scale
        vectors = _whole(tok.encoder_chain(), x).transpose(1, 2)
        quantized = self.quantizer(vectors, depth=depth) if quantize else _untouched(vectors)
        y = _whole(tok.decoder_chain(), quantized.x.transpose(1, 2))
        return Passed(y * scale if tok.config.normalize else y, quantized)

    @torch.no_grad()
    def sync(self, tok: Any) -> None:
        for ours, theirs in zip(self.quantizer.layers, tok.model.quantizer.layers, strict=True):
            theirs.codebook.embed.copy_(ours.codebook)
            theirs.codebook.embed_avg.copy_(ours.codebook_sum)
            theirs.codebook.cluster_size.copy_(ours.cluster_size)


class _DACWay(Way):
    """Codebooks are parameters, searched by angle in few dimensions; losses 1 for the codes and 0.25 for the latents, as published.

    Losses are summed over levels, an item's over the levels that it has.
    """

    def forward(self, tok: Any, x: Tensor, *, depth: int | None, draws: torch.Generator | None, quantize: bool = True) -> Passed:
        latents = _whole(tok.encoder_chain(), x)
        if not quantize:
            return Passed(self._decode(tok, latents, x.shape[2]), _untouched(latents.transpose(1, 2)))
        layers = tok.model.quantizer.quantizers
        kept = self._kept(len(x), len(layers) if depth is None else depth, draws if depth is None else None, x.device)
        residual, total, loss, codes, errors = latents, torch.zeros_like(latents), 0.0, [], []
        for level, layer in enumerate(layers):
            active = (kept > level).view(-1, 1, 1)
            step = _dac_level(layer, residual)
            residual = residual - step.vectors
            total = total + torch.where(active, step.vectors, 0)
            loss = loss + ((step.codebook + 0.25 * step.commitment) * active[:, 0, 0]).mean()
            codes.append(torch.where(active[:, 0], step.codes, -1))
            errors.append(step.commitment.detach().mean())
        stacked = torch.stack(codes, -1)
        stats = usage_stats(stacked.flatten(0, 1), (tok.config.codebook_size,) * len(layers))
        stats["commitment"] = torch.stack(errors).float()
        y = self._decode(tok, total, x.shape[2])
        return Passed(y, Quantized(total.transpose(1, 2), stacked, torch.as_tensor(loss).float(), stats))

    def _decode(self, tok: Any, latents: Tensor, length: int) -> Tensor:
        y = _whole(tok.decoder_chain(), latents)
        return F.pad(y, (0, length - y.shape[2]))  # odd strides leave the last samples open

    def _kept(self, items: int, most: int, draws: torch.Generator | None, device: torch.device) -> Tensor:
        """Levels of each item, `(b,)`."""
        whole = torch.full((items,), most, device=device)
        if draws is None or not self.training or not self.dropout:
            return whole
        fewer = torch.randint(1, most + 1, (items,), generator=draws, device=device)
        return torch.where(torch.rand(items, generator=draws, device=device) < self.dropout, fewer, whole)


class _Level(NamedTuple):
    """One level of DAC's quantizer: latents `(b, c, n)` of the codes `(b, n)`, and both losses of each item `(b,)`."""

    vectors: Tensor
    codes: Tensor
    codebook: Tensor
    commitment: Tensor


def _dac_level(layer: Any, residual: Tensor) -> _Level:
    projected = layer.in_proj(residual).transpose(1, 2)
    working = working_dtype(projected.dtype)
    projected = projected.to(working)
    with exact_math(residual.device.type):
        rows = F.normalize(projected.detach().flatten(0, 1), dim=-1)
        codes = nearest(rows, search_table(F.normalize(layer.codebook.weight.detach().to(working), dim=-1)))
        codes = codes.view(projected.shape[:2])
    found = layer.codebook(codes).to(working)
    straight = projected + (found - projected).detach()
    codebook = (found - projected.detach()).square().mean((1, 2))
    commitment = (projected - found.detach()).square().mean((1, 2))
    return _Level(layer.out_proj(straight.transpose(1, 2)), codes, codebook, commitment)


_WAYS: dict[str, type[Way]] = {"patch_codec": _PatchCodecWay, "encodec": _EncodecWay, "dac": _DACWay}


def way_of(tok: Any, *, dropout: float, seed: int) -> Way:
    """The way through a tokenizer.

    Raises:
        ValueError: a family that has none, or dropout without residual levels.
    """
    if tok.family not in _WAYS:
        raise ValueError(f"AudioCodecRecipe: {tok.info.name} is of the family {tok.family!r}. Allowed: {', '.join(sorted(_WAYS))}.")
    if dropout and not tok.info.residual:
        raise ValueError(f"AudioCodecRecipe: depth_dropout={dropout}, but {tok.info.name} has no residual levels. Use 0.")
    return _WAYS[tok.family](tok, dropout=dropout, seed=seed)
