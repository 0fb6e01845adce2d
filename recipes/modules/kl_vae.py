"""Train a KL autoencoder: absolute error, feature distance, a little divergence.

The loss of latent diffusion's first stage (arXiv 2112.10752, section 3.1) without its discriminator. The feature distance runs on
EfficientNet-Lite0, never on the scorer's network.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recipes.modules.base import TokenizerRecipe
from zoo.layers.features import feature_distance, load_features
from zoo.transforms.quality import psnr_db

__all__ = ["KLAutoencoderRecipe", "latent_scale"]


@torch.no_grad()
def latent_scale(encode: Any, batches: Iterable[Tensor]) -> float:
    """Give the factor that brings latents to unit standard deviation, over all channels and positions.

    Args:
        encode: pictures `(b, 3, h, w)` to unscaled latents.
        batches: pictures in [-1, 1].
    """
    count, total, squares = 0, 0.0, 0.0
    for x in batches:
        latents = encode(x).double()
        count += latents.numel()
        total += float(latents.sum())
        squares += float(latents.square().sum())
    return (squares / count - (total / count) ** 2) ** -0.5


class KLAutoencoderRecipe(TokenizerRecipe):
    """Train `autoencoder_kl` tokenizers on batches with `images (b, 3, h, w)` in [-1, 1].

    Args:
        tokenizer: catalog name.
        kl_weight: of the divergence from the unit Gaussian, summed over channels, averaged over positions.
        feature_weight: of the feature distance; 0 leaves the network out.
        options: of `TokenizerRecipe`.
    """

    def __init__(self, tokenizer: str, *, kl_weight: float = 1e-4, feature_weight: float = 0.1, **options: Any) -> None:
        super().__init__(tokenizer, **options)
        self.kl_weight = kl_weight
        self.feature_weight = feature_weight

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch.images
        autoencoder = self.tokenizer.autoencoder
        posterior = autoencoder.posterior(x)
        noise = torch.randn(posterior.mean.shape, generator=self.draws(), device=self.device)
        y = autoencoder.vae.decode(posterior.mean + posterior.std * noise.to(posterior.mean.dtype)).sample
        error = (x - y).abs().mean()
        divergence = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).sum(1).mean()
        loss = error + self.kl_weight * divergence
        values = {"absolute_error": error, "divergence": divergence}
        if self.feature_weight:
            values["feature_distance"] = feature_distance(load_features("efficientnet_lite0").to(self.device), x, y).mean()
            loss = loss + self.feature_weight * values["feature_distance"]
        self.log_scores("train", {"loss": loss, **values}, batch_size=len(x))
        return loss

    def on_train_end(self) -> None:
        """Set the scaling factor from the latents of at most 64 training batches."""
        loader = self.trainer.datamodule.train_dataloader()
        batches = (batch.images.to(self.device) for _, batch in zip(range(64), loader, strict=False))
        tokenizer = self.tokenizer
        factor = latent_scale(lambda x: tokenizer.autoencoder.posterior(x).mean, batches)
        tokenizer.config = replace(tokenizer.config, scaling_factor=factor)
        tokenizer.autoencoder.scaling_factor = factor

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x = batch.images
        latents = self.tokenizer.autoencoder.encode(x)
        y = self.tokenizer.autoencoder.decode(latents)
        values = {"psnr_db": psnr_db(x, y).mean(), "latent_std": latents.float().std()}
        self.log_scores("val", values, batch_size=len(x))
