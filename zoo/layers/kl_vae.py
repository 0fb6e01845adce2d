"""Continuous front end: diffusers' AutoencoderKL with the latent scale inside, tensors in and out.

Architecture: the KL autoencoder of latent diffusion (arXiv 2112.10752), as diffusers implements it. Parameter names are
`vae.<diffusers name>`.
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["KLAutoencoder", "current_attention_name"]


class KLAutoencoder(nn.Module):
    """Pictures `(b, 3, h, w)` in [-1, 1] to latents `(b, c, h / f, w / f)` of about unit variance, and back.

    Args:
        latent_channels: c.
        scaling_factor: latents leave `encode` multiplied by it; `decode` divides.
        shift_factor: subtracted before the multiplication.
        block_channels: width of each resolution, fine to coarse; the downsampling is 2 ** (len - 1).
        layers_per_block: residual blocks of each resolution.
        norm_groups: groups of the group norms.
        quant_convs: 1x1 convolutions around the latents.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        scaling_factor: float,
        shift_factor: float = 0.0,
        block_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_groups: int = 32,
        quant_convs: bool = True,
    ) -> None:
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        blocks = len(block_channels)
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=tuple(block_channels),
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=norm_groups,
            scaling_factor=scaling_factor,
            use_quant_conv=quant_convs,
            use_post_quant_conv=quant_convs,
        )
        self.scaling_factor = scaling_factor
        self.shift_factor = shift_factor
        self.downsample = 2 ** (blocks - 1)

    def posterior(self, x: Tensor) -> Any:
        """Distribution of the unscaled latents, with `mean`, `logvar`, `kl()` and `sample(generator)`."""
        return self.vae.encode(x).latent_dist

    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Give scaled latents: the mean, or a sample where a generator is given."""
        posterior = self.posterior(x)
        latents = posterior.mean if generator is None else posterior.sample(generator)
        return (latents - self.shift_factor) * self.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Give pictures of scaled latents; values may overshoot [-1, 1]."""
        return self.vae.decode(latents / self.scaling_factor + self.shift_factor).sample
def current_attention_name(key: str) -> str:
    """Rename the attention of checkpoints older than diffusers 0.18 (`query`, `key`, `value`, `proj_attn`)."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return key
