"""Wan 2.1 and 2.2: causal video autoencoders of the Wan generators, through diffusers' AutoencoderKLWan.

Paper: "Wan: Open and Advanced Large-Scale Video Generative Models", arXiv 2503.20314. The network is diffusers' class; this file
adds the statistics of the latents, the mode as default, any size and any number of frames, and the stream. The class itself works
in steps (one frame, then four; one latent), with two frames kept for each convolution, so the whole clip and the stream are equal
to the bit. Checked against tests/parity/wan_vae.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.causal_conv import Memory
from zoo.layers.gaussian_video import GaussianVideo
from zoo.layers.quick_conv3d import quicken
from zoo.layers.steps import Stepper
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer

__all__ = ["WanVAE", "WanVAEConfig"]


@dataclass(frozen=True, kw_only=True)
class WanVAEConfig(Config):
    """Sizes of a Wan autoencoder; the defaults are those of Wan 2.1.

    Attributes:
        latents_mean: of each channel of the latents.
        latents_std: of each channel.
        width: channels of the finest level before its multiplier.
        decoder_width: the same for the decoder; None for the encoder's.
        multipliers: width of each level over `width`, fine to coarse.
        blocks: residual blocks of each level; one more in the decoder.
        time_down: for each change of resolution, fine to coarse, whether it also halves the frames.
        shortcuts: changes of resolution with shortcuts that have no parameters (Wan 2.2).
        patch: sides of the squares of pixels that become channels before the network.
        image_size: side that the catalog's numbers are for.
    """

    latents_mean: tuple[float, ...] = (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    )
    latents_std: tuple[float, ...] = (
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    )
    width: int = 96
    decoder_width: int | None = None
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    time_down: tuple[bool, ...] = (False, True, True)
    shortcuts: bool = False
    patch: int = 1
    image_size: int = 480

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "patch", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.decoder_width is None or self.decoder_width >= 1, "decoder_width", "at least 1, or None")
        self.require(len(self.multipliers) >= 2 and min(self.multipliers) >= 1, "multipliers", "at least two, of at least 1")
        self.require(len(self.time_down) == len(self.multipliers) - 1, "time_down", "one for each change of resolution")
        self.require(sum(self.time_down) == 2, "time_down", "two of True: the class takes four frames a step")
        self.require(len(self.latents_mean) >= 1, "latents_mean", "a number for each channel")
        self.require(len(self.latents_std) == len(self.latents_mean), "latents_std", "as many as latents_mean")
        self.require(min(self.latents_std) > 0, "latents_std", "positive numbers")

    @property
    def space_factor(self) -> int:
        """Pixels of a side of a position."""
        return 2 ** len(self.time_down) * self.patch


_FRAMES = 4


class _Running:
    """diffusers' encoder or decoder on one signal, with the cache that it fills in place."""

    def __init__(self, vae: nn.Module, part: str, patch: int) -> None:
        self.vae, self.part, self.patch = vae, part, patch
        self.cache: list[Any] = [None] * vae._cached_conv_counts[part]  # type: ignore[operator,index]
        self.first = True

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify

        x, vae = x.permute(0, 4, 1, 2, 3).contiguous(), self.vae  # 3-D convolutions are slow on channels last
        if self.part == "encoder":
            y = vae.quant_conv(vae.encoder(patchify(x, self.patch), feat_cache=self.cache, feat_idx=[0]))
        else:
            y = vae.decoder(vae.post_quant_conv(x), feat_cache=self.cache, feat_idx=[0], first_chunk=self.first)
            y = unpatchify(y, self.patch).clamp(-1, 1)
        self.first = False
        return y.permute(0, 2, 3, 4, 1)


class WanVAE(GaussianVideo, Tokenizer):
    """Video to normalised latents `(b, 1 + ceil((t - 1) / 4), h / s, w / s, c)` and back; any size."""

    family = "wan_vae"
    Config = WanVAEConfig
    first_frame_alone = True

    def __init__(self, config: WanVAEConfig, info: Entry | None = None) -> None:
        from diffusers import AutoencoderKLWan

        super().__init__(config, info)
        self.vae = AutoencoderKLWan(
            base_dim=config.width,
            decoder_base_dim=config.decoder_width,
            z_dim=len(config.latents_mean),
            dim_mult=list(config.multipliers),
            num_res_blocks=config.blocks,
            temperal_downsample=list(config.time_down),
            is_residual=config.shortcuts,
            in_channels=3 * config.patch**2,
            out_channels=3 * config.patch**2,
            patch_size=config.patch if config.patch > 1 else None,
            scale_factor_spatial=config.space_factor,
        )
        quicken(self.vae)
        self.set_statistics(config.latents_mean, config.latents_std)

    @classmethod
    def layout_of(cls, config: WanVAEConfig) -> dict[str, Any]:
        return {
            "modality": "video",
            "layout": "3d",
            "discrete": False,
            "channels": len(config.latents_mean),
            "native_size": (config.image_size, config.image_size),
            "downsample": (_FRAMES, config.space_factor, config.space_factor),
            "size_multiple": config.space_factor,
            "causal": True,
            "streaming": True,
            "lookahead_frames": 0,
            "stochastic_encode": True,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> WanVAEConfig:
        """Read diffusers' config.json; a key that is not there has the default of the class (Wan 2.1).

        Raises:
            ValueError: another class, or a value that this family does not cover.
        """
        if config.get("_class_name") != "AutoencoderKLWan":
            raise ValueError(f"wan_vae: config.json is of class {config.get('_class_name')!r}. Needed: 'AutoencoderKLWan'.")
        patch = config.get("patch_size") or 1
        only = {"attn_scales": [], "in_channels": 3 * patch**2, "out_channels": 3 * patch**2, "scale_factor_temporal": _FRAMES}
        for key, value in only.items():
            if config.get(key, value) != value:
                raise ValueError(f"wan_vae: {key}={config[key]!r} in config.json. This implementation knows: {value!r}.")
        values = {ours: config[theirs] for theirs, ours in _KEYS.items() if theirs in config}
        found = WanVAEConfig.from_dict({**values, "patch": patch})
        if config.get("z_dim", len(found.latents_mean)) != len(found.latents_mean):
            raise ValueError(f"wan_vae: z_dim={config['z_dim']} in config.json, but latents_mean has {len(found.latents_mean)}.")
        return found

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: WanVAEConfig) -> dict[str, Tensor]:
        return {f"vae.{key}": value for key, value in tensors.items()}

    def encoder_steps(self) -> Stepper:
        return Stepper(_Running(self.vae, "encoder", self.config.patch), first=1, size=_FRAMES, multiple=_FRAMES)

    def decoder_steps(self) -> Stepper:
        return Stepper(_Running(self.vae, "decoder", self.config.patch), first=1, size=1)


_KEYS = {
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
    "base_dim": "width",
    "decoder_base_dim": "decoder_width",
    "dim_mult": "multipliers",
    "num_res_blocks": "blocks",
    "temperal_downsample": "time_down",
    "is_residual": "shortcuts",
}
