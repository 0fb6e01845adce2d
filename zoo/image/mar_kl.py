"""Continuous image latents of MAR's KL-16: 16 channels at a 16th of the side, the tokens of MAR, xAR and FlowAR.

Paper: "Autoregressive Image Generation without Vector Quantization", arXiv 2406.11838. Checked against the copy of the network in
YuqingWang1029/TokenBridge, commit 3ede281 (code MIT), through tests/parity/tokenbridge/kl_vae: tensors to 1e-4. The licence of the
weights is not stated.

    picture -> encoder -> 1x1 -> mean, log variance -> mean or sample, x 0.2325
    latents -> / 0.2325 -> 1x1 -> decoder -> picture

`zoo/image/tokenbridge.py` rounds the same latents to codes.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.kl16_sizes import kl16_sizes
from zoo.layers.vqgan import Decoder, Encoder
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["MarKL", "MarKLConfig"]

logger = logging.getLogger(__name__)
_LOGVAR = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class MarKLConfig(Config):
    """Sizes of the autoencoder; the defaults are the published ones.

    Attributes:
        latent_channels: channels of the latents.
        scaling_factor: latents leave `encode` multiplied by it, so that their deviation is about 1; `decode` divides.
        width: channels of the finest level before its multiplier.
        multipliers: width of each level over `width`, fine to coarse; the encoder divides sides by 2 ** (levels - 1).
        blocks: residual blocks of each encoder level; the decoder has one more.
        encoder_attention: levels of the encoder with attention, 0 is the finest.
        decoder_attention: levels of the decoder with attention.
        norm_groups: groups of the group norms.
        image_size: side the model was trained at; others work too.
    """

    latent_channels: int = 16
    scaling_factor: float = 0.2325
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    encoder_attention: tuple[int, ...] = (4,)
    decoder_attention: tuple[int, ...] = ()
    norm_groups: int = 32
    image_size: int = 256

    def __post_init__(self) -> None:
        for name in ("latent_channels", "width", "blocks", "norm_groups", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.scaling_factor > 0, "scaling_factor", "a positive number")
        self.require(len(self.multipliers) >= 1 and min(self.multipliers) >= 1, "multipliers", "one or more numbers of at least 1")
        fitting = all(self.width * m % self.norm_groups == 0 for m in (1, *self.multipliers))
        self.require(fitting, "width", "multiples of norm_groups")
        for name in ("encoder_attention", "decoder_attention"):
            known = range(len(self.multipliers))
            self.require(all(level in known for level in getattr(self, name)), name, f"levels in 0..{len(known) - 1}")
        self.require(self.image_size % self.downsample == 0, "image_size", f"a multiple of {self.downsample}")

    @property
    def downsample(self) -> int:
        """Pixels over positions."""
        return 2 ** (len(self.multipliers) - 1)


class MarKL(Tokenizer):
    """Pictures to normalised latents `(b, h / f, w / f, c)` and back; any size."""

    family = "mar_kl"
    Config = MarKLConfig

    def __init__(self, config: MarKLConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        channels = config.latent_channels
        sizes: dict[str, Any] = dict(width=config.width, multipliers=config.multipliers, groups=config.norm_groups)
        self.encoder = Encoder(channels_out=2 * channels, blocks=config.blocks, attention=config.encoder_attention, **sizes)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.decoder = Decoder(channels_in=channels, blocks=config.blocks + 1, attention=config.decoder_attention, **sizes)

    @classmethod
    def layout_of(cls, config: MarKLConfig) -> dict[str, Any]:
        factor, side = config.downsample, config.image_size
        return {
            "modality": "image",
            "layout": "2d",
            "discrete": False,
            "channels": config.latent_channels,
            "tokens": (side // factor) ** 2,
            "native_size": (side, side),
            "downsample": (1, factor, factor),
            "size_multiple": factor,
            "stochastic_encode": True,
        }

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance `(b, c, h / f, w / f)` of the unscaled latents of `x (b, 3, h, w)`."""
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, 1)
        return mean, logvar.clamp(*_LOGVAR)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Pictures `(b, 3, h, w)` of scaled latents `(b, h / f, w / f, c)`."""
        latents = z.permute(0, 3, 1, 2).contiguous()
        return self.decoder(self.post_quant_conv(latents / self.config.scaling_factor))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        mean, logvar = self.posterior(x)
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=torch.float32)
            mean = mean + (logvar / 2).exp() * noise.to(mean.dtype)
        return (mean * self.config.scaling_factor).permute(0, 2, 3, 1).contiguous()

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_latents(tokens.data)

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> MarKLConfig:
        """Read the sizes in the tensors; the release has no configuration file, so every key of `config` is optional.

        `latent_scale` and `resolution` have the published values where they are missing; `fixture_extra_scale` multiplies the
        first, and `tiny_overrides` may hold the last.

        Raises:
            ValueError: tensors of another network, or an autoencoder without a posterior.
        """
        if config.get("use_variational", True) is not True:
            raise ValueError(f"mar_kl: use_variational={config['use_variational']!r}. This implementation knows: True.")
        unknown = sorted(key for key in config if key not in _KEYS)
        if unknown:
            logger.warning("mar_kl: keys of the configuration that are not known and not used: %s", ", ".join(unknown))
        sizes = {**config, **(config.get("tiny_overrides") or {})}
        return MarKLConfig.from_dict(
            {
                **kl16_sizes(shapes, family="mar_kl"),
                "scaling_factor": config.get("latent_scale", 0.2325) * config.get("fixture_extra_scale", 1.0),
                "image_size": sizes.get("resolution", 256),
            }
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: MarKLConfig) -> dict[str, Tensor]:
        """Names are the same; what belongs to the loss of the autoencoder's training is left out."""
        return {key: value for key, value in tensors.items() if not key.startswith("loss.")}


# Keys that are read, that the tensors tell as well, and that belong to TokenBridge's rounding.
_KEYS = (
    *("latent_scale", "fixture_extra_scale", "resolution", "tiny_overrides", "use_variational"),
    *("embed_dim", "ch_mult", "source", "commit", "quant_bits", "quant_min", "quant_max", "std_range"),
)
