"""Train a convolutional autoencoder with codes or latents on a grid: pixels, features, a discriminator, the quantizer's own loss.

Serves the families `rqvae` (RQ-VAE), `ibq` (IBQ), `open_magvit2`, `elm` (the binary autoencoder), and the continuous `tokenbridge`
(the KL-16 autoencoder below its rounding), `autoencoder_kl` and `dc_ae`. What differs between them is one function each, below.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from recipes.modules.adversarial import AdversarialRecipe, Reconstruction
from zoo.quantizers.base import Quantized
from zoo.transforms.nested_dropout import powers_of_two
from zoo.transforms.quality import psnr_db

__all__ = ["AutoencoderRecipe", "Passed", "Way", "sampled"]


class Passed(NamedTuple):
    """Pictures or clips after their way through a tokenizer, with the quantizer's result or the divergence of the latents."""

    images: Tensor
    quantized: Quantized | None = None
    divergence: Tensor | None = None


def _grid(tok: Any, x: Tensor, draws: torch.Generator | None) -> Passed:
    """Channels first around the quantizer."""
    latents = tok.encode_latents(x) if hasattr(tok, "encode_latents") else tok.encoder(x)
    quantized = tok.quantizer(latents.permute(0, 2, 3, 1))
    vectors = quantized.x.permute(0, 3, 1, 2)
    return Passed(tok.decode_latents(vectors) if hasattr(tok, "decode_latents") else tok.decoder(vectors), quantized)


def _rqvae(tok: Any, x: Tensor, draws: torch.Generator | None) -> Passed:
    quantized = tok.quantizer(tok.encode_latents(x))
    return Passed(tok.decode_latents(quantized.x), quantized)


def _elm(tok: Any, x: Tensor, draws: torch.Generator | None) -> Passed:
    """Bits are drawn in training, unless the model is deterministic."""
    latents = tok.encode_latents(x).permute(0, 2, 3, 1)
    quantized = tok.quantizer(latents, generator=None if tok.config.deterministic else draws)
    return Passed(tok.decode_latents(quantized.x.permute(0, 3, 1, 2)), quantized)


def sampled(mean: Tensor, logvar: Tensor, draws: torch.Generator | None, *, axis: int = 1) -> tuple[Tensor, Tensor]:
    """Latents of a Gaussian (the mean without `draws`) and its divergence, summed over channels, averaged over positions."""
    mean, logvar = mean.float(), logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(axis).mean()
    if draws is None:
        return mean, divergence
    return mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=draws, device=mean.device), divergence


def _kl(tok: Any, x: Tensor, draws: torch.Generator | None) -> Passed:
    posterior = tok.autoencoder.posterior(x)
    latents, divergence = sampled(posterior.mean, posterior.logvar, draws)
    return Passed(tok.autoencoder.vae.decode(latents).sample, divergence=divergence)


def _kl16(tok: Any, x: Tensor, draws: torch.Generator | None) -> Passed:
    latents, divergence = sampled(*tok.posterior(x), draws)
    scaled = (latents - tok.config.shift_factor) * tok.config.scaling_factor
    return Passed(tok.decode_latents(scaled.permute(0, 2, 3, 1)), divergence=divergence)


def _plain(tok: Any, x: Tensor, draws: torch.Generator | None) -> Passed:
    return Passed(tok.autoencoder.decode(tok.autoencoder.encode(x).latent).sample)


class Way(NamedTuple):
    """How a family turns pictures into pictures, and where its decoder ends."""

    through: Callable[[Any, Tensor, torch.Generator | None], Passed]
    last_layer: Callable[[Any], Tensor]


def _own(tok: Any) -> Tensor:
    return tok.decoder.last_layer


_WAYS: dict[str, Way] = {
    "rqvae": Way(_rqvae, _own),
    "ibq": Way(_grid, _own),
    "open_magvit2": Way(_grid, _own),
    "elm": Way(_elm, _own),
    "tokenbridge": Way(_kl16, _own),
    "autoencoder_kl": Way(_kl, lambda tok: tok.autoencoder.vae.decoder.conv_out.weight),
    "dc_ae": Way(_plain, lambda tok: tok.autoencoder.decoder.conv_out.weight),
}


class AutoencoderRecipe(AdversarialRecipe):
    """Train on batches with `images (b, 3, h, w)` in [-1, 1].

    Args:
        tokenizer: catalog name of one of the families above.
        quantizer_weight: of the quantizer's own loss (commitment, entropy).
        kl_weight: of the divergence from the unit Gaussian, summed over channels, averaged over positions; continuous families.
        depth_dropout: share of the pictures that are cut to fewer residual levels, evenly drawn, so that few levels decode
            well too. Of `rqvae` only; the original has none.
        options: of `AdversarialRecipe`, and of `TokenizerRecipe` below it.

    Raises:
        ValueError: a family that this recipe does not train, or depth_dropout without residual levels.
    """

    ways: ClassVar[Mapping[str, Way]] = _WAYS

    def __init__(
        self,
        tokenizer: str,
        *,
        quantizer_weight: float = 1.0,
        kl_weight: float = 0.0,
        depth_dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        family = self.tokenizer.family
        name = type(self).__name__
        if family not in self.ways:
            raise ValueError(f"{name}: {tokenizer} is of the family {family!r}. Allowed: {', '.join(sorted(self.ways))}.")
        if depth_dropout and not self.tokenizer.info.residual:
            raise ValueError(f"{name}: depth_dropout={depth_dropout}, but {tokenizer} has no residual levels. Use 0.")
        self.way = self.ways[family]
        self.quantizer_weight, self.kl_weight = quantizer_weight, kl_weight
        if depth_dropout:
            self.tokenizer.quantizer.dropout, self.tokenizer.quantizer.dropout_per = depth_dropout, "item"

    def last_layer(self) -> Tensor:
        return self.way.last_layer(self.tokenizer)

    def reconstruct(self, x: Tensor, draws: torch.Generator) -> Reconstruction:
        passed = self.way.through(self.tokenizer, x, draws)
        loss, values = passed.images.new_zeros((), dtype=torch.float32), {}
        if passed.quantized is not None:
            loss = loss + self.quantizer_weight * passed.quantized.loss
            stats = passed.quantized.stats
            values = {"quantizer": passed.quantized.loss.detach()} | {name: stats[name].mean() for name in _LOGGED if name in stats}
        if passed.divergence is not None:
            loss = loss + self.kl_weight * passed.divergence
            values["divergence"] = passed.divergence.detach()
        return Reconstruction(passed.images, loss, values)

    # -- validation ------------------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """PSNR of the likeliest codes (of each power of two of residual levels), and which codes are used at all."""
        x, tok = batch.images, self.tokenizer
        passed = self.way.through(tok, x, None)
        values = {"psnr_db": psnr_db(x, passed.images).mean()}
        if passed.quantized is not None:
            self.count_codes(passed.quantized.codes)
        if tok.info.residual:
            for depth in powers_of_two(tok.info.depth):
                y = tok.decode_latents(tok.quantizer.decode(passed.quantized.codes[..., :depth]))
                values[f"psnr_db_d{depth}"] = psnr_db(x, y).mean()
        self.log_scores("val", values, batch_size=len(x))


_LOGGED = ("used_fraction", "perplexity", "revived_codes", "commitment", "confidence", "sample_entropy", "batch_entropy")
