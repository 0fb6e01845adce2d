"""Mochi 1: the causal video autoencoder of the Mochi generator, with the layers of diffusers' AutoencoderKLMochi.

Layers and parameters are diffusers'; this file runs them on steps of a clip (one frame, then six; one position) and adds the
statistics of the latents, the mode as default, any size and any number of frames, and the stream. One position stands for 6 frames
of 8 x 8 pixels, the first for one frame: of the 6 frames that the decoder makes of it, the first 5 are dropped.

Convolutions look back only, norms take one frame, and the attention of the encoder (over time, for each place) is causal, so whole
clips and streams are equal to the bit. The decoder keeps two frames for each convolution. The encoder keeps keys and values of all
frames so far in each of its attention layers, so its memory grows with the length of the clip, more slowly than that of the class,
which keeps all activations.

The class's `use_framewise_encoding` refuses to work, and its `use_framewise_decoding` fails, because the convolutions then have no
border. Where the input of a convolution is above 2 GB, the class cuts it into pieces that overlap, also where a stride leaves no
overlap; here a convolution is never cut, since steps are short.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config
from zoo.layers.causal_conv import Memory
from zoo.layers.gaussian_video import GaussianVideo
from zoo.layers.quick_conv3d import conv3d
from zoo.layers.steps import Stepper
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer

__all__ = ["MochiVAE", "MochiVAEConfig"]

_GROUPS = 32  # of all norms; attention heads have as many channels
_PLACES = 2**15  # more in one attention are too many for CUDA


@dataclass(frozen=True, kw_only=True)
class MochiVAEConfig(Config):
    """Sizes of the autoencoder; the defaults are those of Mochi 1 preview.

    Attributes:
        latents_mean: of each channel of the latents.
        latents_std: of each channel.
        scaling_factor: normalised latents are multiplied by it.
        encoder_channels: width of each level of the encoder, fine to coarse.
        decoder_channels: the same for the decoder.
        blocks: residual blocks of each level, fine to coarse, then of the coarsest once more.
        time_down: by what each change of resolution divides the frames, fine to coarse.
        space_down: by what it divides the sides.
        attention: for each of `blocks`, whether the encoder's blocks have attention over time.
        image_size: side that the catalog's numbers are for.
    """

    latents_mean: tuple[float, ...] = (
        *(-0.06730895953510081, -0.038011381506090416, -0.07477820912866141, -0.05565264470995561),
        *(0.012767231469026969, -0.04703542746246419, 0.043896967884726704, -0.09346305707025976),
        *(-0.09918314763016893, -0.008729793427399178, -0.011931556316503654, -0.0321993391887285),
    )
    latents_std: tuple[float, ...] = (
        *(0.9263795028493863, 0.9248894543193766, 0.9393059390890617, 0.959253732819592),
        *(0.8244560132752793, 0.917259975397747, 0.9294154431013696, 1.3720942357788521),
        *(0.881393668867029, 0.9168315692124348, 0.9185249279345552, 0.9274757570805041),
    )
    scaling_factor: float = 1.0
    encoder_channels: tuple[int, ...] = (64, 128, 256, 384)
    decoder_channels: tuple[int, ...] = (128, 256, 512, 768)
    blocks: tuple[int, ...] = (3, 3, 4, 6, 3)
    time_down: tuple[int, ...] = (1, 2, 3)
    space_down: tuple[int, ...] = (2, 2, 2)
    attention: tuple[bool, ...] = (False, True, True, True, True)
    image_size: int = 480

    def __post_init__(self) -> None:
        self.require(self.image_size >= 1, "image_size", "at least 1")
        self.require(self.scaling_factor > 0, "scaling_factor", "a positive number")
        self.require(len(self.latents_mean) >= 1, "latents_mean", "a number for each channel")
        self.require(len(self.latents_std) == len(self.latents_mean), "latents_std", "as many as latents_mean")
        self.require(min(self.latents_std) > 0, "latents_std", "positive numbers")
        changes = len(self.time_down)
        self.require(changes >= 1 and min(self.time_down) >= 1, "time_down", "one or more of at least 1")
        self.require(len(self.space_down) == changes, "space_down", "as many as time_down")
        self.require(set(self.space_down) <= {1, 2}, "space_down", "1 or 2: no other change keeps the grid")
        for name in ("encoder_channels", "decoder_channels"):
            widths = getattr(self, name)
            self.require(len(widths) == changes + 1, name, f"{changes + 1} widths for {changes} changes of resolution")
            self.require(all(c > 0 and c % _GROUPS == 0 for c in widths), name, f"multiples of {_GROUPS}")
        for name in ("blocks", "attention"):
            self.require(len(getattr(self, name)) == changes + 2, name, f"{changes + 2} values for {changes} changes of resolution")
        self.require(min(self.blocks) >= 1, "blocks", "at least 1 each")

    @property
    def time_factor(self) -> int:
        """Frames of a position."""
        return prod(self.time_down)

    @property
    def space_factor(self) -> int:
        """Pixels of a side of a position."""
        return prod(self.space_down)


# -- diffusers' layers on steps ----------------------------------------------------------------------------------------------------
# Shapes: `(b, c, t, h, w)`. A layer gets the frames of a step and keeps what it needs again.


def _conv(layer: Any, x: Tensor, memory: Memory) -> Tensor:
    """A causal convolution; edges and the first frame are repeated."""
    conv, past, w, h = layer.conv, memory.kept.get(layer), layer.width_pad, layer.height_pad
    before = layer.time_kernel_size - 1 if past is None else past.shape[2]
    x = F.pad(x.contiguous(), (w, w, h, h, before, 0), mode="replicate")  # 3-D convolutions are slow on channels last
    if past is not None:
        x[:, :, :before] = past
    count = (x.shape[2] - layer.time_kernel_size) // conv.stride[0] + 1
    memory.kept[layer] = x[:, :, count * conv.stride[0] :].clone()  # a view would keep the whole step
    return conv3d(x, conv.weight, conv.bias, stride=conv.stride)


def _norm(layer: Any, x: Tensor) -> Tensor:
    """A group norm of each frame."""
    y = layer.norm_layer(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


def _over_channels(linear: nn.Module, x: Tensor) -> Tensor:
    return linear(x.movedim(1, -1)).movedim(-1, 1)


def _resnet(block: Any, x: Tensor, memory: Memory) -> Tensor:
    h = _conv(block.conv1, block.nonlinearity(_norm(block.norm1, x)), memory)
    return x + _conv(block.conv2, block.nonlinearity(_norm(block.norm2, h)), memory)


def _attention(layer: Any, x: Tensor, memory: Memory) -> Tensor:
    """Attention over time of each place: queries of this step, keys and values of all steps so far, which the memory keeps."""
    b, _, t, h, w = x.shape
    rows = x.permute(0, 3, 4, 2, 1).flatten(0, 2).contiguous()  # else a product for each place
    q, k, v = (part(rows).unflatten(2, (layer.heads, -1)).transpose(1, 2) for part in (layer.to_q, layer.to_k, layer.to_v))
    now, past = torch.stack([layer.norm_k(k), v]), memory.kept.get(layer)
    seen = now if past is None else torch.cat([past, now], 3)
    memory.kept[layer] = seen
    total = seen.shape[3]
    mask = torch.ones(t, total, dtype=torch.bool, device=x.device).tril(total - t) if t > 1 else None
    q = layer.norm_q(q)
    if q.shape[0] <= _PLACES:
        y = F.scaled_dot_product_attention(q, seen[0], seen[1], attn_mask=mask)
    else:
        parts = zip(q.split(_PLACES), seen.split(_PLACES, 1), strict=True)
        y = torch.cat([F.scaled_dot_product_attention(some, kv[0], kv[1], attn_mask=mask) for some, kv in parts])
    y = layer.to_out[0](y.transpose(1, 2).flatten(2))
    return y.unflatten(0, (b, h, w)).permute(0, 4, 3, 1, 2)


def _blocks(part: Any, x: Tensor, memory: Memory) -> Tensor:
    """Residual blocks, each with or without attention."""
    for resnet, norm, attention in zip(part.resnets, part.norms, part.attentions, strict=True):
        x = _resnet(resnet, x, memory)
        if attention is not None:
            x = x + _attention(attention, _norm(norm, x), memory)
    return x


class _Encoder:
    """Frames `(b, t, h, w, 3)` to mean and log variance `(b, t', h', w', 2 c)`."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        net = self.network
        h = _over_channels(net.proj_in, net.fourier_features(x.permute(0, 4, 1, 2, 3))).contiguous()
        h = _blocks(net.block_in, h, memory)
        for block in net.down_blocks:
            h = _blocks(block, _conv(block.conv_in, h, memory), memory)
        h = _blocks(net.block_out, h, memory)
        return net.proj_out(net.nonlinearity(_norm(net.norm_out, h)).permute(0, 2, 3, 4, 1))


class _Decoder:
    """Latents `(b, t, h, w, c)` to frames."""

    def __init__(self, network: Any, factor: int) -> None:
        self.network, self.factor = network, factor

    def __call__(self, z: Tensor, memory: Memory) -> Tensor:
        net, first = self.network, not memory.kept
        h = _blocks(net.block_in, net.conv_in(z.permute(0, 4, 1, 2, 3)), memory)
        for block in net.up_blocks:
            for resnet in block.resnets:
                h = _resnet(resnet, h, memory)
            time, space = block.temporal_expansion, block.spatial_expansion
            h = _over_channels(block.proj, h).unflatten(1, (-1, time, space, space))
            h = h.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        h = _blocks(net.block_out, h, memory)
        y = net.proj_out(net.nonlinearity(h).permute(0, 2, 3, 4, 1))
        return y[:, self.factor - 1 :] if first else y


class MochiVAE(GaussianVideo, Tokenizer):
    """Video to normalised latents `(b, 1 + ceil((t - 1) / 6), h / 8, w / 8, c)` and back; any size."""

    family = "mochi_vae"
    Config = MochiVAEConfig
    first_frame_alone = True

    def __init__(self, config: MochiVAEConfig, info: Entry | None = None) -> None:
        from diffusers import AutoencoderKLMochi

        super().__init__(config, info)
        self.vae = AutoencoderKLMochi(
            encoder_block_out_channels=config.encoder_channels,
            decoder_block_out_channels=config.decoder_channels,
            latent_channels=len(config.latents_mean),
            layers_per_block=config.blocks,
            temporal_expansions=config.time_down,
            spatial_expansions=config.space_down,
            add_attention_block=config.attention,
            latents_mean=config.latents_mean,
            latents_std=config.latents_std,
            scaling_factor=config.scaling_factor,
        )
        self.set_statistics(config.latents_mean, [std / config.scaling_factor for std in config.latents_std])

    @classmethod
    def layout_of(cls, config: MochiVAEConfig) -> dict[str, Any]:
        return {
            "modality": "video",
            "layout": "3d",
            "discrete": False,
            "channels": len(config.latents_mean),
            "native_size": (config.image_size, config.image_size),
            "downsample": (config.time_factor, config.space_factor, config.space_factor),
            "size_multiple": config.space_factor,
            "causal": True,
            "streaming": True,
            "lookahead_frames": 0,
            "stochastic_encode": True,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> MochiVAEConfig:
        """Read diffusers' config.json; a key that is not there has the default of the class.

        Raises:
            ValueError: another class, or a value that this family does not cover.
        """
        if config.get("_class_name") != "AutoencoderKLMochi":
            raise ValueError(f"mochi_vae: config.json is of class {config.get('_class_name')!r}. Needed: 'AutoencoderKLMochi'.")
        for key, only in _ONLY.items():
            if config.get(key, only) != only:
                raise ValueError(f"mochi_vae: {key}={config[key]!r} in config.json. This implementation knows: {only!r}.")
        found = MochiVAEConfig.from_dict({ours: config[theirs] for theirs, ours in _KEYS.items() if theirs in config})
        channels = len(found.latents_mean)
        if config.get("latent_channels", channels) != channels:
            raise ValueError(
                f"mochi_vae: latent_channels={config['latent_channels']} in config.json, but latents_mean has {channels}."
            )
        return found

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: MochiVAEConfig) -> dict[str, Tensor]:
        return {f"vae.{key}": value for key, value in tensors.items()}

    def encoder_steps(self) -> Stepper:
        factor = self.config.time_factor
        return Stepper(_Encoder(self.vae.encoder), first=1, size=factor, multiple=factor, alone=1)

    def decoder_steps(self) -> Stepper:
        return Stepper(_Decoder(self.vae.decoder, self.config.time_factor), first=1, size=1)


_KEYS = {
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
    "scaling_factor": "scaling_factor",
    "encoder_block_out_channels": "encoder_channels",
    "decoder_block_out_channels": "decoder_channels",
    "layers_per_block": "blocks",
    "temporal_expansions": "time_down",
    "spatial_expansions": "space_down",
    "add_attention_block": "attention",
}
_ONLY = {"in_channels": 15, "out_channels": 3, "act_fn": "silu"}
