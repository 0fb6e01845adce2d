"""Cosmos tokenizers: causal video to latents or codes through wavelets, factorised convolutions and causal attention.

Paper: "Cosmos World Foundation Model Platform for Physical AI", arXiv 2501.03575. Architecture and behaviour after
NVIDIA/Cosmos-Tokenizer (Apache-2.0); checked against tests/parity/cosmos. Where we differ:

- One loop of steps gives the whole clip and the stream (`zoo.layers.steps`), so both are equal to the bit. The release codes long
  videos in windows of 17 frames that know nothing of each other.
- Any number of frames: a clip is filled up at its end to 1 + k * factor frames and cut back.
- Layers that the release stores and never calls are not built.

The attention in time looks at all frames so far, so a stream keeps two vectors a position (keys and values) in each of two layers;
everything else is constant. Inside, tensors are `(b, t, h, w, c)`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config
from zoo.layers.causal_conv import CausalConv3d, Memory
from zoo.layers.steps import Stepper, StepStream
from zoo.quantizers.fsq import FSQ
from zoo.registry import Entry
from zoo.streaming import Stream
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["Cosmos", "CosmosConfig"]

_PATCH = 4  # two rounds of wavelets


@dataclass(frozen=True, kw_only=True)
class CosmosConfig(Config):
    """Sizes of a Cosmos video tokenizer; the defaults are `cosmos_cv8x8x8`.

    Attributes:
        latent_channels: channels of continuous latents; the number of `levels` where there are some.
        levels: of the finite scalar quantizer; None for continuous latents.
        z_channels: channels between the networks and the latents.
        width: channels of level 0 before its multiplier.
        multipliers: width of each level of the encoder over `width`, fine to coarse.
        decoder_multipliers: the same for the decoder.
        blocks: residual blocks of each level; one more in the decoder.
        space_factor: pixels of a side of a position.
        time_factor: frames of a position.
        image_size: side of training.
    """

    latent_channels: int = 16
    levels: tuple[int, ...] | None = None
    z_channels: int = 16
    width: int = 128
    multipliers: tuple[int, ...] = (2, 4, 4)
    decoder_multipliers: tuple[int, ...] = (2, 4, 4)
    blocks: int = 2
    space_factor: int = 8
    time_factor: int = 8
    image_size: int = 1024

    def __post_init__(self) -> None:
        for name in ("latent_channels", "z_channels", "width", "blocks", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("multipliers", "decoder_multipliers"):
            self.require(len(getattr(self, name)) >= 1 and min(getattr(self, name)) >= 1, name, "at least one, of at least 1")
        most = min(len(self.multipliers), len(self.decoder_multipliers)) - 1
        for name in ("space_factor", "time_factor"):
            allowed = [_PATCH * 2**n for n in range(most + 1)]
            self.require(getattr(self, name) in allowed, name, f"one of {allowed} with so many levels")
        self.require(self.space_factor >= self.time_factor, "space_factor", "at least time_factor")
        if self.levels is not None:
            self.require(len(self.levels) == self.latent_channels, "levels", "one for each of latent_channels")

    @property
    def space_changes(self) -> int:
        """How often the networks halve the sides, after the wavelets."""
        return int(math.log2(self.space_factor // _PATCH))

    @property
    def time_changes(self) -> int:
        """How often they halve the frames."""
        return int(math.log2(self.time_factor // _PATCH))


# -- wavelets ----------------------------------------------------------------------------------------------------------------------


def _signs(like: Tensor) -> Tensor:
    """8 bands of 8 voxels: +1 or -1; time, height, width, low before high."""
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=like.device, dtype=like.dtype)
    return torch.kron(pair, torch.kron(pair, pair))


def wavelets(x: Tensor) -> Tensor:
    """One round of 3-D Haar wavelets, `(b, t, h, w, c)` to `(b, t / 2, h / 2, w / 2, 8 c)`, bands first; low is the mean."""
    voxels = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # b t 2 h 2 w 2 c
    voxels = voxels.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(5)
    return (voxels @ (_signs(x) / 8)).transpose(4, 5).flatten(4)


def inverse_wavelets(y: Tensor) -> Tensor:
    """Undo `wavelets`."""
    bands = y.unflatten(4, (8, -1)).transpose(4, 5)
    voxels = (bands @ _signs(y)).unflatten(5, (2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return voxels.flatten(5, 6).flatten(3, 4).flatten(1, 2)


# -- modules -----------------------------------------------------------------------------------------------------------------------


def _conv(channels_in: int, channels_out: int, kernel: tuple[int, int, int], **more: Any) -> CausalConv3d:
    return CausalConv3d(channels_in, channels_out, kernel, padding="repeat", **more)


class _Norm(nn.Module):
    """Mean and variance of each frame over height, width and channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[2:], eps=1e-6) * self.weight + self.bias


class _Pair(nn.ModuleList):
    """A convolution in space, then one in time."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__([_conv(channels_in, channels_out, (1, 3, 3)), _conv(channels_out, channels_out, (3, 1, 1))])

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return self[1](self[0](x, memory), memory)


class _Block(nn.Module):
    """x + pair(silu(norm(pair(silu(norm(x))))))."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = _Norm(channels_in)
        self.conv1 = _Pair(channels_in, channels_out)
        self.norm2 = _Norm(channels_out)
        self.conv2 = _Pair(channels_out, channels_out)
        self.nin_shortcut = None if channels_in == channels_out else _conv(channels_in, channels_out, (1, 1, 1))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), memory)
        h = self.conv2(F.silu(self.norm2(h)), memory)
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x, memory))


class _Attention(nn.Module):
    """One head, over the places of a frame, or over the frames so far of a place."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.time = time
        self.norm = _Norm(channels)
        self.q, self.k, self.v, self.proj_out = (_conv(channels, channels, (1, 1, 1)) for _ in range(4))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed, memory).flatten(2, 3) for part in (self.q, self.k, self.v))
        mixed = self._over_time(q, k, v, memory) if self.time else F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(mixed.unflatten(2, x.shape[2:4]), memory)

    def _over_time(self, q: Tensor, k: Tensor, v: Tensor, memory: Memory) -> Tensor:
        """Queries of this step on the keys and values of all steps so far, which the memory keeps."""
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # b places t c
        now, past = torch.stack([k, v]), memory.kept.get(self)
        seen = now if past is None else torch.cat([past, now], 3)
        memory.kept[self] = seen
        t, total = q.shape[2], seen.shape[3]
        mask = torch.ones(t, total, dtype=torch.bool, device=q.device).tril(total - t) if t > 1 else None
        return F.scaled_dot_product_attention(q, seen[0], seen[1], attn_mask=mask).transpose(1, 2)


class _Middle(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = _Block(width, width)
        self.attn_1 = nn.ModuleList([_Attention(width, time=False), _Attention(width, time=True)])
        self.block_2 = _Block(width, width)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = self.block_1(x, memory)
        for attention in self.attn_1:
            x = attention(x, memory)
        return self.block_2(x, memory)


class _Down(nn.Module):
    """Half the sides, then half the frames, each a convolution plus the mean; the first frame stands alone."""

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, (1, 3, 3), stride=(1, 2), border=(0, 1)) if space else None
        self.conv2 = _conv(channels, channels, (3, 1, 1), stride=(2, 1)) if time else None
        self.conv3 = _conv(channels, channels, (1, 1, 1))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if self.conv1 is not None:
            mean = (x[:, :, ::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, ::2] + x[:, :, 1::2, 1::2]) / 4
            x = self.conv1(x, memory) + mean
        if self.conv2 is not None:
            if self.conv2 not in memory.kept:
                x = torch.cat([x[:, :1], x], 1)
            x = self.conv2(x, memory) + (x[:, ::2] + x[:, 1::2]) / 2
        return self.conv3(x, memory)


class _Up(nn.Module):
    """Twice the frames, then twice the sides, each repeated and added to its convolution; the first frame stays alone."""

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, (3, 1, 1)) if time else None
        self.conv2 = _conv(channels, channels, (1, 3, 3)) if space else None
        self.conv3 = _conv(channels, channels, (1, 1, 1))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if self.conv1 is not None:
            first = self.conv1 not in memory.kept
            x = x.repeat_interleave(2, 1)[:, int(first) :]
            x = self.conv1(x, memory) + x
        if self.conv2 is not None:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = self.conv2(x, memory) + x
        return self.conv3(x, memory)


class _Level(nn.Module):
    """Blocks of one resolution, and what changes it afterwards."""

    def __init__(self, widths: list[int], change: nn.Module | None, name: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(before, widths[-1]) for before in widths[:-1])
        self.change = name if change is not None else ""
        if change is not None:
            self.add_module(name, change)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        for block in self.block:
            x = block(x, memory)
        return getattr(self, self.change)(x, memory) if self.change else x


class _Encoder(nn.Module):
    """Frames `(b, t, h, w, 3)` to vectors; the first step begins with one frame, all others hold a multiple of the factor."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = _Pair(3 * _PATCH**3, config.width)
        self.down = nn.ModuleList()
        for level, (before, after) in enumerate(zip([config.width, *widths], widths, strict=False)):
            space, time = level < config.space_changes, level < config.time_changes
            change = _Down(after, space=space, time=time) if level < len(widths) - 1 and (space or time) else None
            self.down.append(_Level([before] + [after] * config.blocks, change, "downsample"))
        self.mid = _Middle(widths[-1])
        self.norm_out = _Norm(widths[-1])
        self.conv_out = _Pair(widths[-1], config.z_channels)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if not memory.kept:
            x = torch.cat([x[:, :1].expand(-1, _PATCH - 1, -1, -1, -1), x], 1)
        h = self.conv_in(wavelets(wavelets(x)), memory)
        for level in self.down:
            h = level(h, memory)
        return self.conv_out(F.silu(self.norm_out(self.mid(h, memory))), memory)


class _Decoder(nn.Module):
    """Vectors to frames `(b, t, h, w, 3)`; the first vector gives one frame, each other as many as the factor."""

    def __init__(self, config: CosmosConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.decoder_multipliers]
        self.conv_in = _Pair(config.z_channels, widths[-1])
        self.mid = _Middle(widths[-1])
        self.up = nn.ModuleList()
        for level, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            turn = len(widths) - 1 - level
            time = 0 < turn <= config.time_changes
            space = time or (turn < config.space_changes and config.space_changes > config.time_changes)
            change = _Up(after, space=space, time=time) if level and (space or time) else None
            self.up.append(_Level([before] + [after] * (config.blocks + 1), change, "upsample"))
        self.norm_out = _Norm(widths[0])
        self.conv_out = _Pair(widths[0], 3 * _PATCH**3)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where the adaptive weight of adversarial losses is measured."""
        return self.conv_out[1].weight

    def forward(self, z: Tensor, memory: Memory) -> Tensor:
        first = not memory.kept
        h = self.mid(self.conv_in(z, memory), memory)
        for level in reversed(self.up):
            h = level(h, memory)
        y = inverse_wavelets(inverse_wavelets(self.conv_out(F.silu(self.norm_out(h)), memory)))
        return y[:, _PATCH - 1 :] if first else y


# -- the tokenizer -----------------------------------------------------------------------------------------------------------------


class Cosmos(Tokenizer):
    """Video to codes `(b, 1 + ceil((t - 1) / f), h / s, w / s, 1)` or latents `(..., c)`, and back."""

    family = "cosmos"
    Config = CosmosConfig
    first_frame_alone = True

    def __init__(self, config: CosmosConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.encoder = _Encoder(config)
        self.quant_conv = _conv(config.z_channels, config.latent_channels, (1, 1, 1))
        self.quantizer = None if config.levels is None else FSQ(levels=config.levels)
        self.post_quant_conv = _conv(config.latent_channels, config.z_channels, (1, 1, 1))
        self.decoder = _Decoder(config)

    @classmethod
    def layout_of(cls, config: CosmosConfig) -> dict[str, Any]:
        codes = None if config.levels is None else math.prod(config.levels)
        return {
            "modality": "video",
            "layout": "3d",
            "discrete": codes is not None,
            "channels": config.latent_channels if codes is None else None,
            "codebook_size": codes,
            "vocabulary": () if codes is None else (codes,),
            "native_size": (config.image_size, config.image_size),
            "downsample": (config.time_factor, config.space_factor, config.space_factor),
            "size_multiple": config.space_factor,
            "causal": True,
            "streaming": True,
            "lookahead_frames": 0,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> CosmosConfig:
        """Read the constructor's keywords; the levels of the decoder are counted in `shapes` where tensors are there.

        Raises:
            ValueError: a key is missing, or a value that this family does not cover.
        """
        missing = [key for key in _NEEDED if key not in config]
        if missing:
            raise ValueError(f"cosmos: config.json has no {', '.join(missing)}. Is it that of a Cosmos video tokenizer?")
        for key, only in _ONLY.items():
            if config.get(key, only) != only:
                raise ValueError(f"cosmos: {key}={config[key]!r} in config.json. This implementation knows: {only!r}.")
        multipliers, side = list(config["channels_mult"]), config.get("resolution", 1024)
        inside = [side // _PATCH // 2**i for i in range(len(multipliers))]
        if set(inside) & set(config.get("attn_resolutions", [])):
            raise ValueError(f"cosmos: attn_resolutions={config['attn_resolutions']} asks for attention in the levels {inside}.")
        continuous = "levels" not in config
        short = continuous and config["temporal_compression"] == 4
        return CosmosConfig.from_dict(
            {
                "latent_channels": config["latent_channels"] if continuous else config["embedding_dim"],
                "levels": None if continuous else config["levels"],
                "z_channels": config["z_channels"],
                "width": config["channels"],
                "multipliers": multipliers,
                "decoder_multipliers": multipliers[:2] if short else multipliers,
                "blocks": config["num_res_blocks"],
                "space_factor": config["spatial_compression"],
                "time_factor": config["temporal_compression"],
                "image_size": side,
            }
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: CosmosConfig) -> dict[str, Tensor]:
        """Drop the names of wrappers, the constants, and the changes of resolution that are stored and not used."""
        with torch.device("meta"):
            used = {key for key in cls(config).state_dict() if ".downsample." in key or ".upsample." in key}
        renamed = {}
        for key, value in tensors.items():
            name = re.sub(r"\.conv3d\.", ".", re.sub(r"\.(\w*norm\w*)\.norm\.", r".\1.", key))
            change = re.search(r"\.(down|up)sample\.conv[123]\.(weight|bias)$", name)
            if (change and name not in used) or re.search(r"(patcher3d|^quantizer)\.", name):
                continue
            renamed[name] = value
        return renamed

    # -- steps ---------------------------------------------------------------------------------------------------------------------

    def latents_step(self, x: Tensor, memory: Memory) -> Tensor:
        """Give latents, or what is quantized, `(b, t, h, w, c)` of the next frames; the first step begins with one frame alone."""
        return self.quant_conv(self.encoder(x, memory), memory)

    def encode_step(self, x: Tensor, memory: Memory) -> Tensor:
        """Give codes or latents of the next frames `(b, t, h, w, 3)`."""
        z = self.latents_step(x, memory)
        return z if self.quantizer is None else self.quantizer.encode(z)

    def frames_step(self, z: Tensor, memory: Memory) -> Tensor:
        """Give the frames of the next vectors `(b, t, h, w, c)`."""
        return self.decoder(self.post_quant_conv(z, memory), memory)

    def decode_step(self, data: Tensor, memory: Memory) -> Tensor:
        """Give the frames of the next tokens."""
        return self.frames_step(data if self.quantizer is None else self.quantizer.decode(data).to(self.dtype), memory)

    def encode_latents(self, x: Tensor) -> Tensor:
        """Latents, or what is quantized, `(b, t, h, w, c)` of whole clips of a legal size, in one piece, for training."""
        return self.latents_step(x.permute(0, 2, 3, 4, 1), Memory())

    def decode_latents(self, z: Tensor) -> Tensor:
        """Give frames `(b, 3, t, h, w)` of all vectors `(b, t, h, w, c)` of a clip, in steps."""
        y = self._decoder_steps(self.frames_step).push(z, last=True)
        assert y is not None
        return y.permute(0, 4, 1, 2, 3)

    def _encoder_steps(self) -> Stepper:
        f = self.config.time_factor
        return Stepper(self.encode_step, first=1, size=f, multiple=f)

    def _decoder_steps(self, network: Callable[[Tensor, Memory], Tensor]) -> Stepper:
        return Stepper(network, first=1, size=1)

    # -- the contract --------------------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        data = self._encoder_steps().push(x.permute(0, 2, 3, 4, 1), last=True)
        assert data is not None
        return data

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        y = self._decoder_steps(self.decode_step).push(tokens.data, last=True)
        assert y is not None
        return y.permute(0, 4, 1, 2, 3)

    def _stream(self) -> Stream:
        return StepStream(self, self._encoder_steps(), self._decoder_steps(self.decode_step))


_NEEDED = ("channels", "channels_mult", "num_res_blocks", "z_channels", "spatial_compression", "temporal_compression")
_ONLY = {
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": _PATCH,
    "patch_method": "haar",
    "num_groups": 1,
    "z_factor": 1,
    "legacy_mode": False,
    "encoder": "FACTORIZED",
    "decoder": "FACTORIZED",
    "formulation": "AE",
    "quantizer": "FSQ",
}
