"""CogVideoX: the video autoencoder of the CogVideoX generators, through diffusers' AutoencoderKLCogVideoX.

Paper: "CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer", arXiv 2408.06072. The network is diffusers' class;
this file adds the scale of the latents, the mode as default, any size and any number of frames, and the stream. Checked against
tests/parity/cogvideox_vae.

Its convolutions are causal, its group norms are not: they take their statistics over all frames of a step (9 frames, then 8; 3
latents, then 2). So the lengths of the steps are part of the function, and a frame depends on up to 8 later ones
(`info.lookahead_frames`). A clip is filled up to 1 + 8 k frames, so that every step has its length; the class itself puts what is
left over into its first step, which then depends on the length of the clip. A clip of one frame is a step of its own: its latents
are not those of the first frame of a longer clip.
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

__all__ = ["CogVideoXVAE", "CogVideoXVAEConfig"]

_FACTOR = 4  # frames of a position
_FRAMES, _POSITIONS = 8, 2  # of a step; the first has one more


@dataclass(frozen=True, kw_only=True)
class CogVideoXVAEConfig(Config):
    """Sizes of the autoencoder; the defaults are those of CogVideoX-2b.

    Attributes:
        latent_channels: channels of the latents.
        scaling_factor: latents leave `encode` multiplied by it.
        block_channels: width of each level, fine to coarse; the sides are divided by 2 ** (len - 1).
        layers_per_block: residual blocks of each level; one more in the decoder.
        norm_groups: groups of the norms.
        image_size: side that the catalog's numbers are for.
    """

    latent_channels: int = 16
    scaling_factor: float = 1.15258426
    block_channels: tuple[int, ...] = (128, 256, 256, 512)
    layers_per_block: int = 3
    norm_groups: int = 32
    image_size: int = 480

    def __post_init__(self) -> None:
        for name in ("latent_channels", "layers_per_block", "norm_groups", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.scaling_factor > 0, "scaling_factor", "a positive number")
        self.require(len(self.block_channels) >= 3, "block_channels", "at least three widths, for four frames a position")
        self.require(all(c % self.norm_groups == 0 for c in self.block_channels), "block_channels", "multiples of norm_groups")

    @property
    def space_factor(self) -> int:
        """Pixels of a side of a position."""
        return 2 ** (len(self.block_channels) - 1)


class _Running:
    """diffusers' encoder or decoder on one signal, with what its convolutions keep."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.cache: Any = None

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        x = x.permute(0, 4, 1, 2, 3).contiguous()  # 3-D convolutions are slow on channels last
        y, self.cache = self.network(x, conv_cache=self.cache)
        return y.permute(0, 2, 3, 4, 1)


class CogVideoXVAE(GaussianVideo, Tokenizer):
    """Video to scaled latents `(b, t', h / s, w / s, c)` and back; t' is 1 for one frame, else 1 + 2 ceil((t - 1) / 8)."""

    family = "cogvideox_vae"
    Config = CogVideoXVAEConfig
    first_frame_alone = True

    def __init__(self, config: CogVideoXVAEConfig, info: Entry | None = None) -> None:
        from diffusers import AutoencoderKLCogVideoX

        super().__init__(config, info)
        levels = len(config.block_channels)
        self.vae = AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * levels,
            up_block_types=("CogVideoXUpBlock3D",) * levels,
            block_out_channels=tuple(config.block_channels),
            latent_channels=config.latent_channels,
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_groups,
            temporal_compression_ratio=_FACTOR,
            scaling_factor=config.scaling_factor,
        )
        quicken(self.vae)
        self.set_statistics([0.0] * config.latent_channels, [1 / config.scaling_factor] * config.latent_channels)

    @classmethod
    def layout_of(cls, config: CogVideoXVAEConfig) -> dict[str, Any]:
        return {
            "modality": "video",
            "layout": "3d",
            "discrete": False,
            "channels": config.latent_channels,
            "native_size": (config.image_size, config.image_size),
            "downsample": (_FACTOR, config.space_factor, config.space_factor),
            "size_multiple": config.space_factor,
            "streaming": True,
            "lookahead_frames": _FRAMES,
            "stochastic_encode": True,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> CogVideoXVAEConfig:
        """Read diffusers' config.json; a key that is not there has the default of the class.

        Raises:
            ValueError: another class, or a value that this family does not cover.
        """
        name = config.get("_class_name")
        if name != "AutoencoderKLCogVideoX":
            raise ValueError(f"cogvideox_vae: config.json is of class {name!r}. Needed: 'AutoencoderKLCogVideoX'.")
        for key, block in _BLOCKS.items():
            other = [kind for kind in config.get(key, []) if kind != block]
            if other:
                raise ValueError(f"cogvideox_vae: {key} holds {', '.join(map(str, other))}. Only {block} is known.")
        for key, only in _ONLY.items():
            if config.get(key, only) != only:
                raise ValueError(f"cogvideox_vae: {key}={config[key]!r} in config.json. This implementation knows: {only!r}.")
        return CogVideoXVAEConfig.from_dict({ours: config[theirs] for theirs, ours in _KEYS.items() if theirs in config})

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: CogVideoXVAEConfig) -> dict[str, Tensor]:
        return {f"vae.{key}": value for key, value in tensors.items()}

    def _legal_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        frames = 1 + -(-(size[0] - 1) // _FRAMES) * _FRAMES
        return (frames, *super()._legal_size(size)[1:])

    def encoder_steps(self) -> Stepper:
        return Stepper(_Running(self.vae.encoder), first=1 + _FRAMES, size=_FRAMES, multiple=_FRAMES, alone=1)

    def decoder_steps(self) -> Stepper:
        return Stepper(_Running(self.vae.decoder), first=1 + _POSITIONS, size=_POSITIONS)


_KEYS = {
    "latent_channels": "latent_channels",
    "scaling_factor": "scaling_factor",
    "block_out_channels": "block_channels",
    "layers_per_block": "layers_per_block",
    "norm_num_groups": "norm_groups",
    "sample_height": "image_size",
}
_BLOCKS = {"down_block_types": "CogVideoXDownBlock3D", "up_block_types": "CogVideoXUpBlock3D"}
_ONLY = {
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
    "norm_eps": 1e-6,
    "temporal_compression_ratio": _FACTOR,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "invert_scale_latents": False,
}
