"""HunyuanVideo: the video autoencoder of the HunyuanVideo generator, through diffusers' AutoencoderKLHunyuanVideo.

Paper: "HunyuanVideo: A Systematic Framework For Large Video Generative Models", arXiv 2412.03603. The network is diffusers' class;
this file adds the scale of the latents, the mode as default, any size and any number of frames, and the stream.

Its convolutions and its attention are causal, its group norms are not: they take their statistics over all frames of a call. As the
class does by default, a clip is therefore coded in windows of 1 + 16 frames that begin 12 frames apart:

    frames    0 . . . . . . . 12 . . 16 . . . . . . . 24 . . 28 . . .
    windows   |-------- first -------|
                               |------- second -------|
                                                       |--- third ...

A window starts like a clip of its own, so its first position (one frame) only prepares the others and is dropped, and what two
windows share is blended from one to the other. The lengths of the windows are part of the function. A frame depends on up to 16
later ones (`info.lookahead_frames`), and memory is that of one window. The class cuts a clip off at the last whole step of four
frames; here it is filled up and cut back. The class's whole-clip function, with `use_framewise_encoding` switched off, has other
numbers from the second window on, and memory that grows with length: it is not offered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.config import Config
from zoo.layers.causal_conv import Memory
from zoo.layers.gaussian_video import GaussianVideo
from zoo.layers.quick_conv3d import quicken
from zoo.layers.steps import Stepper
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer

__all__ = ["HunyuanVideoVAE", "HunyuanVideoVAEConfig"]

_FACTOR = 4  # frames of a position


@dataclass(frozen=True, kw_only=True)
class HunyuanVideoVAEConfig(Config):
    """Sizes of the autoencoder; the defaults are those of HunyuanVideo.

    Attributes:
        latent_channels: channels of the latents.
        scaling_factor: latents leave `encode` multiplied by it.
        block_channels: width of each level, fine to coarse; the sides are divided by 2 ** (len - 1).
        layers_per_block: residual blocks of each level; one more in the decoder.
        norm_groups: groups of the norms.
        attention: causal attention between the two residual blocks of the coarsest level.
        window: frames of a window, beside its first.
        window_stride: frames from the beginning of a window to that of the next.
        image_size: side that the catalog's numbers are for.
    """

    latent_channels: int = 16
    scaling_factor: float = 0.476986
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    attention: bool = True
    window: int = 16
    window_stride: int = 12
    image_size: int = 720

    def __post_init__(self) -> None:
        for name in ("latent_channels", "layers_per_block", "norm_groups", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.scaling_factor > 0, "scaling_factor", "a positive number")
        self.require(len(self.block_channels) >= 3, "block_channels", "at least three widths, for four frames a position")
        self.require(all(c % self.norm_groups == 0 for c in self.block_channels), "block_channels", "multiples of norm_groups")
        self.require(self.window >= _FACTOR and self.window % _FACTOR == 0, "window", "a multiple of 4")
        self.require(self.window_stride % _FACTOR == 0, "window_stride", "a multiple of 4")
        self.require(self.window <= 2 * self.window_stride <= 2 * self.window, "window_stride", "from half of window to window")

    @property
    def space_factor(self) -> int:
        """Pixels of a side of a position."""
        return 2 ** (len(self.block_channels) - 1)


class _Windows:
    """A network on one signal, window by window.

    Args:
        network: `network(window)`, frames or positions `(b, t, ...)` in, positions or frames out.
        window: of the input, what a window holds beside its first; a signal that is not longer is one window.
        stride: of the input, from one window to the next.
        given: of the output, what a window settles: as much as `stride` stands for.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], *, window: int, stride: int, given: int) -> None:
        self.network, self.window, self.stride, self.given = network, window, stride, given
        self.past: Tensor | None = None  # of the input, what the next window begins with
        self.held: Tensor | None = None  # of the output, what the next window is blended with

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        if self.past is None or self.held is None:
            window, y = x, self.network(x)
            given = self.given + 1 if x.shape[1] > self.window else y.shape[1]
        elif memory.ending and self.held.shape[1] <= 1:  # one position: a blend of one step is the earlier window's
            return self.held
        else:
            window = torch.cat([self.past, x], 1)
            y, given = _blend(self.held, self.network(window)[:, 1:]), self.given
        self.past = window[:, self.stride :].clone()
        settled, self.held = y.split([min(given, y.shape[1]), max(0, y.shape[1] - given)], 1)
        return settled


def _blend(held: Tensor, y: Tensor) -> Tensor:
    """Go over from the earlier window to the later one, in steps of equal height from weight 0 on."""
    count = held.shape[1]
    weights = (torch.arange(count, device=y.device) / max(1, count)).to(y.dtype).view(-1, 1, 1, 1)
    return torch.cat([held * (1 - weights) + y[:, :count] * weights, y[:, count:]], 1)


class HunyuanVideoVAE(GaussianVideo, Tokenizer):
    """Video to scaled latents `(b, 1 + ceil((t - 1) / 4), h / s, w / s, c)` and back; any size."""

    family = "hunyuan_video_vae"
    Config = HunyuanVideoVAEConfig
    first_frame_alone = True

    def __init__(self, config: HunyuanVideoVAEConfig, info: Entry | None = None) -> None:
        from diffusers import AutoencoderKLHunyuanVideo

        super().__init__(config, info)
        levels = len(config.block_channels)
        self.vae = AutoencoderKLHunyuanVideo(
            latent_channels=config.latent_channels,
            down_block_types=("HunyuanVideoDownBlock3D",) * levels,
            up_block_types=("HunyuanVideoUpBlock3D",) * levels,
            block_out_channels=tuple(config.block_channels),
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_groups,
            scaling_factor=config.scaling_factor,
            spatial_compression_ratio=config.space_factor,
            temporal_compression_ratio=_FACTOR,
            mid_block_add_attention=config.attention,
        )
        quicken(self.vae)
        self.set_statistics([0.0] * config.latent_channels, [1 / config.scaling_factor] * config.latent_channels)

    @classmethod
    def layout_of(cls, config: HunyuanVideoVAEConfig) -> dict[str, Any]:
        return {
            "modality": "video",
            "layout": "3d",
            "discrete": False,
            "channels": config.latent_channels,
            "native_size": (config.image_size, config.image_size),
            "downsample": (_FACTOR, config.space_factor, config.space_factor),
            "size_multiple": config.space_factor,
            "streaming": True,
            "lookahead_frames": config.window,
            "stochastic_encode": True,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> HunyuanVideoVAEConfig:
        """Read diffusers' config.json; a key that is not there has the default of the class.

        Raises:
            ValueError: another class, or a value that this family does not cover.
        """
        name = config.get("_class_name")
        if name != "AutoencoderKLHunyuanVideo":
            raise ValueError(f"hunyuan_video_vae: config.json is of class {name!r}. Needed: 'AutoencoderKLHunyuanVideo'.")
        for key, block in _BLOCKS.items():
            other = [kind for kind in config.get(key, []) if kind != block]
            if other:
                raise ValueError(f"hunyuan_video_vae: {key} holds {', '.join(map(str, other))}. Only {block} is known.")
        found = HunyuanVideoVAEConfig.from_dict({ours: config[theirs] for theirs, ours in _KEYS.items() if theirs in config})
        for key, only in {**_ONLY, "spatial_compression_ratio": found.space_factor}.items():
            if config.get(key, only) != only:
                raise ValueError(f"hunyuan_video_vae: {key}={config[key]!r} in config.json. This implementation knows: {only!r}.")
        return found

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: HunyuanVideoVAEConfig) -> dict[str, Tensor]:
        return {f"vae.{key}": value for key, value in tensors.items()}

    def _encode_window(self, x: Tensor) -> Tensor:
        x = x.permute(0, 4, 1, 2, 3).contiguous()  # 3-D convolutions are slow on channels last
        return self.vae.quant_conv(self.vae.encoder(x)).permute(0, 2, 3, 4, 1)

    def _decode_window(self, z: Tensor) -> Tensor:
        z = z.permute(0, 4, 1, 2, 3).contiguous()
        return self.vae.decoder(self.vae.post_quant_conv(z)).permute(0, 2, 3, 4, 1)

    def encoder_steps(self) -> Stepper:
        window, stride = self.config.window, self.config.window_stride
        network = _Windows(self._encode_window, window=window, stride=stride, given=stride // _FACTOR)
        return Stepper(network, first=1 + window, size=stride, multiple=_FACTOR, alone=1, flush=True)

    def decoder_steps(self) -> Stepper:
        window, stride = self.config.window // _FACTOR, self.config.window_stride // _FACTOR
        network = _Windows(self._decode_window, window=window, stride=stride, given=self.config.window_stride)
        return Stepper(network, first=1 + window, size=stride, flush=True)


_KEYS = {
    "latent_channels": "latent_channels",
    "scaling_factor": "scaling_factor",
    "block_out_channels": "block_channels",
    "layers_per_block": "layers_per_block",
    "norm_num_groups": "norm_groups",
    "mid_block_add_attention": "attention",
}
_BLOCKS = {"down_block_types": "HunyuanVideoDownBlock3D", "up_block_types": "HunyuanVideoUpBlock3D"}
_ONLY = {"act_fn": "silu", "in_channels": 3, "out_channels": 3, "temporal_compression_ratio": _FACTOR}
