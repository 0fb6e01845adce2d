"""Continuous image latents at a 32nd or 64th of the side: the deep compression autoencoder, through diffusers' AutoencoderDC.

Paper: "Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models", arXiv 2410.10733. Original release:
mit-han-lab/efficientvit (Apache-2.0). The network is diffusers' class; this file adds the scale of the latents, any size, a flat
configuration, and the reading of public folders in diffusers' layout. The encoder has no distribution: there is nothing to sample.
"""

import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.config import Config
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["DCAE", "DCAEConfig"]

logger = logging.getLogger(__name__)

Norm = Literal["batch_norm", "rms_norm"]
Activation = Literal["relu", "silu"]


@dataclass(frozen=True, kw_only=True)
class DCAEConfig(Config):
    """Sizes of the autoencoder; tuples go from fine to coarse resolution. Defaults are those of dc-ae-f32c32-in-1.0.

    Attributes:
        latent_channels: channels of the latents.
        scaling_factor: latents leave `encode` multiplied by it; `decode` divides.
        block_channels: width of each resolution; the downsampling is 2 ** (len - 1).
        encoder_layers, decoder_layers: blocks of each resolution. 0 is allowed at the first, which a strided entry then replaces.
        conv_resolutions: so many fine resolutions have residual convolutions, the coarser ones linear attention.
        attention_kernels: side of the kernel that mixes the neighbours' queries, keys and values at each resolution; 0 for none.
        head_width: channels of an attention head.
        decoder_norms, decoder_activations: of the decoder's blocks at each resolution.
        unshuffle: halve the side by moving pixels to channels; False takes strided convolutions.
        shuffle: double the side by moving channels to pixels; False takes nearest neighbours and a convolution.
        encoder_shortcut, decoder_shortcut: add averaged or repeated channels around the convolution next to the latents.
        last_activation: before the convolution that gives the picture.
        image_size: native side.
    """

    latent_channels: int = 32
    scaling_factor: float = 0.3189
    block_channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers: tuple[int, ...] = (0, 4, 8, 2, 2, 2)
    decoder_layers: tuple[int, ...] = (0, 5, 10, 2, 2, 2)
    conv_resolutions: int = 3
    attention_kernels: tuple[int, ...] = (0, 0, 0, 0, 0, 0)
    head_width: int = 32
    decoder_norms: tuple[Norm, ...] = ("batch_norm", "batch_norm", "batch_norm", "rms_norm", "rms_norm", "rms_norm")
    decoder_activations: tuple[Activation, ...] = ("relu", "relu", "relu", "silu", "silu", "silu")
    unshuffle: bool = True
    shuffle: bool = True
    encoder_shortcut: bool = True
    decoder_shortcut: bool = True
    last_activation: Activation = "relu"
    image_size: int = 512

    def __post_init__(self) -> None:
        for name in ("latent_channels", "head_width", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.scaling_factor > 0, "scaling_factor", "a positive number")
        count, widths = len(self.block_channels), self.block_channels
        self.require(count >= 2 and min(widths) >= 1, "block_channels", "at least two widths of at least 1")
        for name in ("encoder_layers", "decoder_layers", "attention_kernels", "decoder_norms", "decoder_activations"):
            self.require(len(getattr(self, name)) == count, name, f"{count} values, as many as block_channels")
        for name in ("encoder_layers", "decoder_layers"):
            first, *rest = getattr(self, name)
            self.require(first >= 0 and min(rest) >= 1, name, "0 or more at the first resolution, at least 1 at the others")
        self.require(0 <= self.conv_resolutions <= count, "conv_resolutions", f"0..{count}")
        self.require(all(k == 0 or k % 2 == 1 for k in self.attention_kernels), "attention_kernels", "0 or odd numbers")
        attended = widths[self.conv_resolutions :]
        self.require(all(c % self.head_width == 0 for c in attended), "head_width", f"a divisor of {attended}")
        fits = all(4 * fine % coarse == 0 and coarse % 4 == 0 for fine, coarse in pairwise(widths))
        self.require(fits, "block_channels", "multiples of 4 after the first, each a divisor of four times the one before")
        shortcut = self.encoder_shortcut or self.decoder_shortcut
        self.require(not shortcut or widths[-1] % self.latent_channels == 0, "latent_channels", f"a divisor of {widths[-1]}")


class DCAE(Tokenizer):
    """Pictures to normalised latents `(b, h / f, w / f, c)` and back; any size."""

    family = "dc_ae"
    Config = DCAEConfig

    def __init__(self, config: DCAEConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

        count, widths = len(config.block_channels), tuple(config.block_channels)
        kinds = tuple("ResBlock" if i < config.conv_resolutions else "EfficientViTBlock" for i in range(count))
        kernels = tuple((kernel,) if kernel else () for kernel in config.attention_kernels)
        self.autoencoder = AutoencoderDC(
            latent_channels=config.latent_channels,
            attention_head_dim=config.head_width,
            encoder_block_types=kinds,
            decoder_block_types=kinds,
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            encoder_layers_per_block=tuple(config.encoder_layers),
            decoder_layers_per_block=tuple(config.decoder_layers),
            encoder_qkv_multiscales=kernels,
            decoder_qkv_multiscales=kernels,
            upsample_block_type="pixel_shuffle" if config.shuffle else "interpolate",
            downsample_block_type="pixel_unshuffle" if config.unshuffle else "conv",
            decoder_norm_types=tuple(config.decoder_norms),
            decoder_act_fns=tuple(config.decoder_activations),
            encoder_out_shortcut=config.encoder_shortcut,
            decoder_in_shortcut=config.decoder_shortcut,
            decoder_conv_act_fn=config.last_activation,
            scaling_factor=config.scaling_factor,
        )

    @classmethod
    def layout_of(cls, config: DCAEConfig) -> dict[str, Any]:
        factor = 2 ** (len(config.block_channels) - 1)
        return {
            "modality": "image",
            "layout": "2d",
            "discrete": False,
            "channels": config.latent_channels,
            "tokens": (-(-config.image_size // factor)) ** 2,
            "native_size": (config.image_size, config.image_size),
            "downsample": (1, factor, factor),
            "size_multiple": factor,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> DCAEConfig:
        """Read diffusers' config.json.

        Raises:
            ValueError: another class, or a value that this family does not cover.
        """
        if config.get("_class_name", "AutoencoderDC") != "AutoencoderDC":
            raise ValueError(f"dc_ae: config.json is of class {config['_class_name']!r}. Needed: 'AutoencoderDC'.")
        missing = [key for key in _NEEDED if key not in config]
        if missing:
            raise ValueError(f"dc_ae: config.json has no {', '.join(missing)}. Is it that of a diffusers AutoencoderDC?")
        if config.get("in_channels", 3) != 3:
            raise ValueError(f"dc_ae: in_channels={config['in_channels']!r} in config.json. This implementation knows: 3.")
        unknown = sorted(key for key in config if key not in (*_NEEDED, *_OPTIONAL) and not key.startswith("_"))
        if unknown:
            logger.warning("dc_ae: keys of config.json that are not used: %s", ", ".join(unknown))
        count = len(_same(config, "block_out_channels"))
        kinds = _each(_same(config, "block_types"), count)
        convolutions = kinds.count("ResBlock")
        if kinds != ["ResBlock"] * convolutions + ["EfficientViTBlock"] * (count - convolutions):
            raise ValueError(f"dc_ae: block types {kinds} in config.json. Known: ResBlock, then EfficientViTBlock.")
        kernels = _same(config, "qkv_multiscales")
        if any(len(scales) > 1 for scales in kernels):
            raise ValueError(f"dc_ae: qkv_multiscales {kernels} in config.json. Known: at most one kernel at each resolution.")
        return DCAEConfig.from_dict(
            {
                "latent_channels": config["latent_channels"],
                "scaling_factor": config.get("scaling_factor", 1.0),
                "block_channels": _same(config, "block_out_channels"),
                "encoder_layers": config["encoder_layers_per_block"],
                "decoder_layers": config["decoder_layers_per_block"],
                "conv_resolutions": convolutions,
                "attention_kernels": [scales[0] if scales else 0 for scales in kernels],
                "head_width": config.get("attention_head_dim", 32),
                "decoder_norms": _each(config.get("decoder_norm_types", "rms_norm"), count),
                "decoder_activations": _each(config.get("decoder_act_fns", "silu"), count),
                "unshuffle": _choice(config, "downsample_block_type", "pixel_unshuffle", "conv"),
                "shuffle": _choice(config, "upsample_block_type", "pixel_shuffle", "interpolate"),
                "encoder_shortcut": config.get("encoder_out_shortcut", True),
                "decoder_shortcut": config.get("decoder_in_shortcut", True),
                "last_activation": config.get("decoder_conv_act_fn", "relu"),
            }
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: DCAEConfig) -> dict[str, Tensor]:
        return {f"autoencoder.{key}": value for key, value in tensors.items()}

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        latents = self.autoencoder.encode(x).latent * self.config.scaling_factor
        return latents.permute(0, 2, 3, 1).contiguous()

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.autoencoder.decode(tokens.data.permute(0, 3, 1, 2).contiguous() / self.config.scaling_factor).sample


def _same(config: dict[str, Any], name: str) -> Any:
    """Value that the encoder and the decoder must share."""
    encoder, decoder = config[f"encoder_{name}"], config[f"decoder_{name}"]
    if encoder != decoder:
        raise ValueError(f"dc_ae: encoder_{name}={encoder} and decoder_{name}={decoder} in config.json. Needed: the same.")
    return encoder


def _each(value: Any, count: int) -> list[Any]:
    """One value for each resolution; the public format writes a single word where all are the same."""
    return [value] * count if isinstance(value, str) else list(value)


def _choice(config: dict[str, Any], key: str, yes: str, no: str) -> bool:
    value = str(config.get(key, yes)).lower()
    if value not in (yes, no):
        raise ValueError(f"dc_ae: {key}={config[key]!r} in config.json. Known: {yes}, {no}.")
    return value == yes


# Keys of config.json that must be there, and keys that the public class has defaults for.
_NEEDED = (
    "latent_channels",
    *(f"{side}_{name}" for side in ("encoder", "decoder") for name in ("block_types", "block_out_channels")),
    *(f"{side}_{name}" for side in ("encoder", "decoder") for name in ("layers_per_block", "qkv_multiscales")),
)
_OPTIONAL = (
    *("in_channels", "scaling_factor", "attention_head_dim", "decoder_norm_types", "decoder_act_fns", "decoder_conv_act_fn"),
    *("downsample_block_type", "upsample_block_type", "encoder_out_shortcut", "decoder_in_shortcut"),
)
