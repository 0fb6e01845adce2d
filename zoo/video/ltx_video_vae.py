"""LTX-Video: the video autoencoder of the LTX-Video generators, with the layers of diffusers' AutoencoderKLLTXVideo.

Paper: "LTX-Video: Realtime Video Latent Diffusion", arXiv 2501.00103. Layers and parameters are diffusers'; this file runs them on
steps of a clip and adds the statistics of the latents, the mode as default, any size and any number of frames, and the stream. One
position stands for 8 frames of 32 x 32 pixels, the first for one frame.

The encoder is causal. The decoder of the public weights is not: each of its convolutions looks one frame ahead, altogether 173 or
191 frames of the result (`info.lookahead_frames`), which is more than most clips have. No norm and no layer takes more, so a stream
is still exact: a convolution gives a frame when the next one has come, and at the end takes the last frame for the one that is
missing, as the class does. They end one after the other, so that no step is larger than the others. Memory is two frames for each
convolution, whatever the length of the clip.

    convolution that looks ahead     frames in  0 1 2 3 4 end       frames out  - 0 1 2 3 4
    what goes around it              waits for the frames that come out

Newer decoders are told how noisy the latents are; `decode_timestep` is 0, for latents without noise, as in diffusers' pipeline. The
class's own way to save memory (`use_framewise_decoding`) blends pieces that were decoded apart: other numbers, not offered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.causal_conv import Memory
from zoo.layers.gaussian_video import GaussianVideo
from zoo.layers.quick_conv3d import quicken
from zoo.layers.steps import Stepper
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer

__all__ = ["LTXVideoVAE", "LTXVideoVAEConfig"]

_STRIDES = {"none": (1, 1, 1), "conv": (2, 2, 2), "spatial": (1, 2, 2), "temporal": (2, 1, 1), "spatiotemporal": (2, 2, 2)}
_OLD = {"none", "conv"}


@dataclass(frozen=True, kw_only=True)
class LTXVideoVAEConfig(Config):
    """Sizes of the autoencoder; the defaults are those of LTX-Video 0.9.0.

    Attributes:
        latent_channels: channels of the latents.
        scaling_factor: normalised latents are multiplied by it, beside the statistics that lie with the weights.
        block_channels: width of each level of the encoder, fine to coarse; one more where the changes move pixels into channels.
        blocks: residual blocks of each level of the encoder, then of the middle.
        down: how each level of the encoder ends: "none", "conv", or "spatial", "temporal", "spatiotemporal" (pixels to channels).
        decoder_channels: width of each level of the decoder, fine to coarse, times `up_factor`.
        decoder_blocks: residual blocks of each level of the decoder, then of the middle.
        up: for each level of the decoder, fine to coarse, whether it begins with twice the frames and sides.
        up_residual: for each level, whether that change has a shortcut.
        up_factor: for each level, by what that change divides the channels.
        decoder_causal: the decoder looks back only.
        decode_timestep: how noisy the decoder is told that latents are; None where it is not told.
        patch: sides of the squares of pixels that become channels before the network.
        image_size: side that the catalog's numbers are for.
    """

    latent_channels: int = 128
    scaling_factor: float = 1.0
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks: tuple[int, ...] = (4, 3, 3, 3, 4)
    down: tuple[str, ...] = ("conv", "conv", "conv", "none")
    decoder_channels: tuple[int, ...] = (128, 256, 512, 512)
    decoder_blocks: tuple[int, ...] = (4, 3, 3, 3, 4)
    up: tuple[bool, ...] = (True, True, True, False)
    up_residual: tuple[bool, ...] = (False, False, False, False)
    up_factor: tuple[int, ...] = (1, 1, 1, 1)
    decoder_causal: bool = False
    decode_timestep: float | None = None
    patch: int = 4
    image_size: int = 512

    def __post_init__(self) -> None:
        for name in ("latent_channels", "patch", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.scaling_factor > 0, "scaling_factor", "a positive number")
        known = set(self.down) <= _OLD or set(self.down) <= set(_STRIDES) - _OLD
        self.require(known and len(self.down) > 0, "down", "all of none and conv, or all of spatial, temporal and spatiotemporal")
        levels, decoder_levels = len(self.down), len(self.up)
        widths = levels + (not self.old_blocks)
        self.require(len(self.block_channels) == widths, "block_channels", f"{widths} widths for {levels} levels")
        self.require(len(self.blocks) == levels + 1, "blocks", "one for each level and one for the middle")
        for name in ("decoder_channels", "up_residual", "up_factor"):
            self.require(len(getattr(self, name)) == decoder_levels, name, "one for each level, as many as `up`")
        self.require(len(self.decoder_blocks) == decoder_levels + 1, "decoder_blocks", "one for each level and one for the middle")
        told = self.decode_timestep is not None
        self.require(not told or not any(self._widened), "decoder_channels", "one width after up_factor, with decode_timestep")
        self.require(self.factors == (self.up_scale,) * 2, "up", f"changes that undo those of `down`, {self.factors}")

    @property
    def old_blocks(self) -> bool:
        """The encoder gets smaller by convolutions with a stride, as up to 0.9.1."""
        return set(self.down) <= _OLD

    @property
    def factors(self) -> tuple[int, int]:
        """Of frames and of sides, by what the encoder makes them smaller after the squares."""
        time = space = 1
        for kind in self.down:
            time, space = time * _STRIDES[kind][0], space * _STRIDES[kind][1]
        return time, space

    @property
    def up_scale(self) -> int:
        """By what the decoder makes frames and sides larger."""
        return 2 ** sum(self.up)

    @property
    def lookahead(self) -> int:
        """Later frames that a decoded frame depends on: one for each convolution, twice as much after each doubling."""
        if self.decoder_causal:
            return 0
        first, *blocks = self.decoder_blocks[::-1]
        missing = 1 + 2 * first  # frames that are not final when so many positions have come
        for count, widened, scale in zip(blocks, self._widened, self.up[::-1], strict=True):
            missing += 2 * widened
            missing = 2 * (missing + 1) + 1 if scale else missing
            missing += 2 * count
        return missing + 1 - (self.up_scale - 1)

    @property
    def _widened(self) -> list[bool]:
        """For each level of the decoder, coarse to fine, whether it begins with a block from one width to another."""
        widths = [width // factor for width, factor in zip(self.decoder_channels, self.up_factor, strict=True)][::-1]
        before = [self.decoder_channels[-1], *widths[:-1]]
        return [a // factor != b for a, factor, b in zip(before, self.up_factor[::-1], widths, strict=True)]


# -- diffusers' layers on steps ----------------------------------------------------------------------------------------------------
# Shapes: `(b, c, t, h, w)`. A layer gets the frames of a step, keeps what it needs again, and gives the frames that are final.


def _waiting(layer: nn.Module, x: Tensor, memory: Memory, count: int) -> Tensor:
    """Give the first `count` of all frames that went around a layer and were not given yet."""
    held = memory.kept.get(layer)
    x = x if held is None else torch.cat([held, x], 2)
    memory.kept[layer] = x[:, :, count:].clone()
    return x[:, :, :count]


def _conv(layer: Any, x: Tensor, memory: Memory) -> Tensor:
    """A convolution that is causal, or one frame behind."""
    kernel, stride = layer.kernel_size[0], layer.conv.stride
    past = memory.kept.get(layer)
    if past is not None:
        x = torch.cat([past, x], 2)
    elif x.shape[2]:
        x = torch.cat([x[:, :, :1]] * (kernel - 1 if layer.is_causal else kernel // 2) + [x], 2)
    if memory.ends(layer) and not layer.is_causal and x.shape[2]:
        x = torch.cat([x] + [x[:, :, -1:]] * (kernel // 2), 2)
    count = max(0, (x.shape[2] - kernel) // stride[0] + 1)
    if past is not None or x.shape[2]:
        memory.kept[layer] = x[:, :, count * stride[0] :].clone()  # a view would keep the whole step
    if not count:
        return x.new_zeros(x.shape[0], layer.out_channels, 0, x.shape[3] // stride[1], x.shape[4] // stride[2])
    return layer.conv(x[:, :, : (count - 1) * stride[0] + kernel])


def _looks_ahead(layer: nn.Module) -> bool:
    return hasattr(layer, "is_causal") and not layer.is_causal and layer.kernel_size[0] > 1


def _over_channels(norm: nn.Module, x: Tensor) -> Tensor:
    return norm(x.movedim(1, -1)).movedim(-1, 1)


def _embedding(embedder: Any, t: Tensor, parts: int, table: Tensor | None = None) -> Tensor:
    """Shifts and scales `(1, parts, c, 1, 1, 1)` of a timestep `(1,)`."""
    embedded = embedder(timestep=t, resolution=None, aspect_ratio=None, batch_size=1, hidden_dtype=t.dtype)
    embedded = embedded.unflatten(1, (parts, -1))[..., None, None, None]
    return embedded if table is None else embedded + table[None, ..., None, None, None]


def _resnet(block: Any, x: Tensor, memory: Memory, told: Tensor | None) -> Tensor:
    """A residual block; `told` are its shifts and scales."""
    if not x.shape[2] and block.conv_shortcut is None and memory.turn not in (block.conv1, block.conv2):
        return x  # nothing has come, and nothing ends here
    h = _over_channels(block.norm1, x)
    if block.scale_shift_table is not None:
        assert told is not None
        shift1, scale1, shift2, scale2 = (told + block.scale_shift_table[None, ..., None, None, None]).unbind(1)
        h = h * (1 + scale1) + shift1
    h = _over_channels(block.norm2, _conv(block.conv1, block.nonlinearity(h), memory))
    if block.scale_shift_table is not None:
        h = h * (1 + scale2) + shift2
    h = _conv(block.conv2, block.nonlinearity(h), memory)
    x = _waiting(block, x, memory, h.shape[2])
    if block.conv_shortcut is not None:
        x = _conv(block.conv_shortcut, _over_channels(block.norm3, x), memory)
    return h + x


def _to_channels(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Pixels of a tubelet become channels `(c, frame, row, column)`."""
    x = x.unflatten(4, (-1, stride[2])).unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _to_pixels(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """The reverse of `_to_channels`."""
    x = x.unflatten(1, (-1, *stride)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _down(layer: Any, x: Tensor, memory: Memory) -> Tensor:
    if not hasattr(layer, "group_size"):
        return _conv(layer, x, memory)
    if layer.conv not in memory.kept:  # the first frame stands for a whole tubelet
        x = torch.cat([x[:, :, : layer.stride[0] - 1], x], 2)
    around = _to_channels(x, layer.stride).unflatten(1, (-1, layer.group_size)).mean(2)
    return _to_channels(_conv(layer.conv, x, memory), layer.stride) + around


def _up(layer: Any, x: Tensor, memory: Memory) -> Tensor:
    h = _to_pixels(_conv(layer.conv, x, memory), layer.stride)
    if layer.residual:
        around = _to_pixels(_waiting(layer, x, memory, h.shape[2] // layer.stride[0]), layer.stride)
        h = h + around.repeat(1, h.shape[1] // around.shape[1], 1, 1, 1)
    begun = layer.conv.conv  # a key of its own: the convolution keeps its frames under `layer.conv`
    if begun in memory.kept or not h.shape[2]:
        return h
    memory.kept[begun] = h[:, :, :0]
    return h[:, :, layer.stride[0] - 1 :]


class _Encoder:
    """Frames `(b, t, h, w, 3)` to mean and log variance `(b, t', h', w', 2 c)`."""

    def __init__(self, network: Any, patch: int) -> None:
        self.network, self.patch = network, patch

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        net, p = self.network, self.patch
        x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (b, t, h, row, w, column, c)
        h = x.permute(0, 6, 5, 3, 1, 2, 4).flatten(1, 3)  # columns before rows
        h = _conv(net.conv_in, h, memory)
        for block in net.down_blocks:
            for resnet in block.resnets:
                h = _resnet(resnet, h, memory, None)
            for layer in block.downsamplers or ():
                h = _down(layer, h, memory)
            if getattr(block, "conv_out", None) is not None:
                h = _resnet(block.conv_out, h, memory, None)
        for resnet in net.mid_block.resnets:
            h = _resnet(resnet, h, memory, None)
        h = _conv(net.conv_out, net.conv_act(_over_channels(net.norm_out, h)), memory).permute(0, 2, 3, 4, 1)
        return torch.cat([h[..., :-1], h[..., -1:].expand_as(h[..., :-1])], -1)  # one variance for all channels


class _Decoder:
    """Latents `(b, t, h, w, c)` to frames."""

    def __init__(self, network: Any, patch: int, timestep: float | None) -> None:
        self.network, self.patch, self.timestep = network, patch, timestep

    def __call__(self, z: Tensor, memory: Memory) -> Tensor:
        net, p = self.network, self.patch
        t = None if self.timestep is None else z.new_full((1,), self.timestep) * net.timestep_scale_multiplier
        h = _conv(net.conv_in, z.permute(0, 4, 1, 2, 3).contiguous(), memory)  # 3-D convolutions are slow on channels last
        told = None if t is None else _embedding(net.mid_block.time_embedder, t, 4)
        for resnet in net.mid_block.resnets:
            h = _resnet(resnet, h, memory, told)
        for block in net.up_blocks:
            told = None if t is None else _embedding(block.time_embedder, t, 4)
            if block.conv_in is not None:
                h = _resnet(block.conv_in, h, memory, None)
            for layer in block.upsamplers or ():
                h = _up(layer, h, memory)
            for resnet in block.resnets:
                h = _resnet(resnet, h, memory, told)
        h = _over_channels(net.norm_out, h)
        if t is not None:
            shift, scale = _embedding(net.time_embedder, t, 2, net.scale_shift_table).unbind(1)
            h = h * (1 + scale) + shift
        h = _conv(net.conv_out, net.conv_act(h), memory)
        h = h.unflatten(1, (-1, p, p)).permute(0, 4, 5, 3, 6, 2, 1)  # (b, t, h, row, w, column, c)
        return h.flatten(4, 5).flatten(2, 3)


class LTXVideoVAE(GaussianVideo, Tokenizer):
    """Video to normalised latents `(b, 1 + ceil((t - 1) / 8), h / 32, w / 32, c)` and back; any size."""

    family = "ltx_video_vae"
    Config = LTXVideoVAEConfig
    first_frame_alone = True

    def __init__(self, config: LTXVideoVAEConfig, info: Entry | None = None) -> None:
        from diffusers import AutoencoderKLLTXVideo

        super().__init__(config, info)
        block = "LTXVideoDownBlock3D" if config.old_blocks else "LTXVideo095DownBlock3D"
        self.vae = AutoencoderKLLTXVideo(
            latent_channels=config.latent_channels,
            block_out_channels=config.block_channels,
            down_block_types=(block,) * len(config.down),
            decoder_block_out_channels=config.decoder_channels,
            layers_per_block=config.blocks,
            decoder_layers_per_block=config.decoder_blocks,
            spatio_temporal_scaling=tuple(kind != "none" for kind in config.down),
            decoder_spatio_temporal_scaling=config.up,
            decoder_inject_noise=(False,) * (len(config.up) + 1),
            downsample_type=tuple("conv" if kind == "none" else kind for kind in config.down),
            upsample_residual=config.up_residual,
            upsample_factor=config.up_factor,
            timestep_conditioning=config.decode_timestep is not None,
            patch_size=config.patch,
            scaling_factor=config.scaling_factor,
            decoder_causal=config.decoder_causal,
        )
        quicken(self.vae)

    @property
    def latents_mean(self) -> Tensor:  # type: ignore[override]
        """Of each channel, from the weights."""
        return self.vae.latents_mean

    @property
    def latents_std(self) -> Tensor:  # type: ignore[override]
        """Of each channel, from the weights."""
        return self.vae.latents_std / self.config.scaling_factor

    @classmethod
    def layout_of(cls, config: LTXVideoVAEConfig) -> dict[str, Any]:
        time, space = config.factors
        return {
            "modality": "video",
            "layout": "3d",
            "discrete": False,
            "channels": config.latent_channels,
            "native_size": (config.image_size, config.image_size),
            "downsample": (time, space * config.patch, space * config.patch),
            "size_multiple": space * config.patch,
            "causal": config.decoder_causal,
            "streaming": True,
            "lookahead_frames": config.lookahead,
            "stochastic_encode": True,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> LTXVideoVAEConfig:
        """Read diffusers' config.json; a key that is not there has the default of the class (0.9.0).

        Raises:
            ValueError: another class, or a value that this family does not cover: 0.9.1, whose decoder draws noise.
        """
        name = config.get("_class_name")
        if name != "AutoencoderKLLTXVideo":
            raise ValueError(f"ltx_video_vae: config.json is of class {name!r}. Needed: 'AutoencoderKLLTXVideo'.")
        for key, only in _ONLY.items():
            if config.get(key, only) != only:
                raise ValueError(f"ltx_video_vae: {key}={config[key]!r} in config.json. This implementation knows: {only!r}.")
        if any(config.get("decoder_inject_noise", ())):
            raise ValueError("ltx_video_vae: decoder_inject_noise is set in config.json. A decoder that draws noise is not known.")
        values = {ours: config[theirs] for theirs, ours in _KEYS.items() if theirs in config}
        kinds = config.get("downsample_type") or ("conv",) * 4
        scaled = config.get("spatio_temporal_scaling") or (True, True, True, False)
        values["down"] = tuple(kind if on else "none" for kind, on in zip(kinds, scaled, strict=False))
        values["decode_timestep"] = 0.0 if config.get("timestep_conditioning") else None
        found = LTXVideoVAEConfig.from_dict(values)
        block = "LTXVideoDownBlock3D" if found.old_blocks else "LTXVideo095DownBlock3D"
        other = [kind for kind in config.get("down_block_types", ()) if kind != block]
        if other:
            raise ValueError(f"ltx_video_vae: down_block_types holds {', '.join(map(str, other))}. With {found.down}: {block}.")
        return found

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: LTXVideoVAEConfig) -> dict[str, Tensor]:
        return {f"vae.{key}": value for key, value in tensors.items()}

    def encoder_steps(self) -> Stepper:
        time = self.config.factors[0]
        network: Callable[[Tensor, Memory], Tensor] = _Encoder(self.vae.encoder, self.config.patch)
        return Stepper(network, first=1, size=time, multiple=time, alone=1)

    def decoder_steps(self) -> Stepper:
        network = _Decoder(self.vae.decoder, self.config.patch, self.config.decode_timestep)
        return Stepper(network, first=1, size=1, flush=[layer for layer in self.vae.decoder.modules() if _looks_ahead(layer)])


_KEYS = {
    "latent_channels": "latent_channels",
    "scaling_factor": "scaling_factor",
    "block_out_channels": "block_channels",
    "layers_per_block": "blocks",
    "decoder_block_out_channels": "decoder_channels",
    "decoder_layers_per_block": "decoder_blocks",
    "decoder_spatio_temporal_scaling": "up",
    "upsample_residual": "up_residual",
    "upsample_factor": "up_factor",
    "decoder_causal": "decoder_causal",
    "patch_size": "patch",
}
_ONLY = {"in_channels": 3, "out_channels": 3, "encoder_causal": True, "patch_size_t": 1, "resnet_norm_eps": 1e-6}
