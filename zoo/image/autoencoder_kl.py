"""Continuous image latents of the KL autoencoder, through diffusers' AutoencoderKL.

Paper: "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752. The network is diffusers' class; this file
adds the scale of the latents, the mode as default, any size, and the reading of public folders in diffusers' layout.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.config import Config
from zoo.layers.kl_vae import KLAutoencoder, current_attention_name
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["AutoencoderKL", "AutoencoderKLConfig"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(Config):
    """Sizes of the autoencoder; see `zoo.layers.kl_vae.KLAutoencoder`."""

    latent_channels: int = 4
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    quant_convs: bool = True
    image_size: int = 256

    def __post_init__(self) -> None:
        for name in ("latent_channels", "layers_per_block", "norm_groups", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.scaling_factor > 0, "scaling_factor", "a positive number")
        self.require(len(self.block_channels) >= 1, "block_channels", "at least one width")
        self.require(min(self.block_channels) >= 1, "block_channels", "widths of at least 1")
        self.require(all(c % self.norm_groups == 0 for c in self.block_channels), "block_channels", "multiples of norm_groups")


class AutoencoderKL(Tokenizer):
    """Pictures to normalised latents `(b, h / f, w / f, c)` and back; any size."""

    family = "autoencoder_kl"
    Config = AutoencoderKLConfig

    def __init__(self, config: AutoencoderKLConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.autoencoder = KLAutoencoder(
            latent_channels=config.latent_channels,
            scaling_factor=config.scaling_factor,
            shift_factor=config.shift_factor,
            block_channels=config.block_channels,
            layers_per_block=config.layers_per_block,
            norm_groups=config.norm_groups,
            quant_convs=config.quant_convs,
        )

    @classmethod
    def layout_of(cls, config: AutoencoderKLConfig) -> dict[str, Any]:
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
            "stochastic_encode": True,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> AutoencoderKLConfig:
        """Read diffusers' config.json.

        Raises:
            ValueError: another class, or a value that this family does not cover.
        """
        if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
            raise ValueError(f"autoencoder_kl: config.json is of class {config['_class_name']!r}. Needed: 'AutoencoderKL'.")
        missing = [key for key in _NEEDED if key not in config]
        if missing:
            raise ValueError(f"autoencoder_kl: config.json has no {', '.join(missing)}. Is it that of a diffusers AutoencoderKL?")
        for key, block in _BLOCKS.items():
            other = [name for name in config.get(key, []) if name != block]
            if other:
                raise ValueError(f"autoencoder_kl: {key} holds {', '.join(map(str, other))}. Only {block} is known.")
        for key, only in _ONLY.items():
            if config.get(key, only) != only:
                raise ValueError(f"autoencoder_kl: {key}={config[key]!r} in config.json. This implementation knows: {only!r}.")
        quant_convs = config.get("use_quant_conv", True)
        if config.get("use_post_quant_conv", quant_convs) != quant_convs:
            raise ValueError("autoencoder_kl: use_quant_conv and use_post_quant_conv differ in config.json. Needed: both or none.")
        known = {*_NEEDED, *_OPTIONAL, *_ONLY, *_BLOCKS}
        unknown = sorted(key for key in config if key not in known and not key.startswith("_"))
        if unknown:
            logger.warning("autoencoder_kl: keys of config.json that are not used: %s", ", ".join(unknown))
        return AutoencoderKLConfig.from_dict(
            {
                "latent_channels": config["latent_channels"],
                "scaling_factor": config.get("scaling_factor", 0.18215),
                "shift_factor": config.get("shift_factor") or 0.0,
                "block_channels": config["block_out_channels"],
                "layers_per_block": config["layers_per_block"],
                "norm_groups": config.get("norm_num_groups", 32),
                "quant_convs": quant_convs,
                "image_size": config.get("sample_size", 256),
            }
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: AutoencoderKLConfig) -> dict[str, Tensor]:
        return {f"autoencoder.vae.{current_attention_name(key)}": value for key, value in tensors.items()}

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.autoencoder.encode(x, generator).permute(0, 2, 3, 1).contiguous()

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.autoencoder.decode(tokens.data.permute(0, 3, 1, 2).contiguous())


# Keys that are read, keys that change no number, and keys whose only value this family covers.
_NEEDED = ("latent_channels", "block_out_channels", "layers_per_block")
_OPTIONAL = (
    *("norm_num_groups", "sample_size", "scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv"),
    "force_upcast",
)
_ONLY = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
}
_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
