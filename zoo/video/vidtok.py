"""VidTok: causal video tokenizers with continuous or discrete latents, in the public releases 1.0 and 1.1.

Paper: "VidTok: A Versatile and Open-Source Video Tokenizer", arXiv 2412.13061. Architecture and behaviour after microsoft/VidTok
(MIT); checked against tests/parity/vidtok. Where we differ:

- One loop of steps gives the whole clip and the stream (`zoo.layers.steps`), so both are equal to the bit.
- Any number of frames: a clip is filled up at its end to 1 + k * factor frames and cut back. Release 1.0 loses frames there, 1.1
  fills up in front, which no stream can do that does not know its length.
- The decoder of 1.1 looks ahead by `factor - 1` frames, because it interpolates in time; `info.lookahead_frames` says so, and the
  stream is behind by exactly as much. The release's own chunked decoding differs from its whole clip.
- The quantizer makes no table of tokens x codebook.

Inside, tensors are `(b, t, h, w, c)`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config
from zoo.layers.causal_conv import CausalConv3d, LinearUpsample, Memory
from zoo.layers.steps import Stepper, StepStream
from zoo.quantizers.fsq import FSQ
from zoo.registry import Entry
from zoo.streaming import Stream
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["VidTok", "VidTokConfig"]

_LOGVAR = (-30.0, 20.0)
_POSITIONS = 1  # in time, a step; more are no faster and take more memory


@dataclass(frozen=True, kw_only=True)
class VidTokConfig(Config):
    """Sizes of VidTok; the defaults are `vidtok_kl_causal_488_4chn`.

    Attributes:
        latent_channels: channels of continuous latents; the number of `levels` where there are some.
        levels: of the finite scalar quantizer; None for continuous latents.
        width: channels of level 0 before its multiplier.
        multipliers: width of each level over `width`, fine to coarse.
        blocks: residual blocks of each level, in space and in time; one more in the decoder.
        space_down: levels after which the encoder halves the sides.
        time_down: levels of them after which it halves the frames.
        space_up: levels after which the decoder doubles the sides.
        time_up: levels of them after which it doubles the frames.
        causal: look back only; else frames see their neighbours on both sides, and the clip is coded as a whole.
        padding: what stands before the first frame: "zeros" (1.0) or its copies ("repeat", 1.1).
        interpolation: of the frames in the decoder: "nearest" (1.0) or "linear" (1.1).
        image_size: side in training.
    """

    latent_channels: int = 4
    levels: tuple[int, ...] | None = None
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    space_down: tuple[int, ...] = (0, 1, 2)
    time_down: tuple[int, ...] = (1, 2)
    space_up: tuple[int, ...] = (1, 2, 3)
    time_up: tuple[int, ...] = (1, 2)
    causal: bool = True
    padding: Literal["zeros", "repeat"] = "zeros"
    interpolation: Literal["nearest", "linear"] = "nearest"
    image_size: int = 256

    def __post_init__(self) -> None:
        for name in ("latent_channels", "width", "blocks", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(len(self.multipliers) >= 1 and min(self.multipliers) >= 1, "multipliers", "at least one, of at least 1")
        levels = tuple(range(len(self.multipliers)))
        inside_of = {"space_down": levels, "space_up": levels, "time_down": self.space_down, "time_up": self.space_up}
        for name, inside in inside_of.items():
            self.require(set(getattr(self, name)) <= set(inside), name, f"levels of {tuple(inside)}")
        self.require(len(self.space_up) == len(self.space_down), "space_up", "as many levels as space_down")
        self.require(len(self.time_up) == len(self.time_down), "time_up", "as many levels as time_down")
        if self.levels is not None:
            self.require(len(self.levels) == self.latent_channels, "levels", "one for each of latent_channels")
        if not self.causal:
            plain = self.padding == "zeros" and self.interpolation == "nearest"
            self.require(plain, "causal", "True with padding='repeat' or interpolation='linear'")

    @property
    def time_factor(self) -> int:
        """Frames of a position."""
        return 2 ** len(self.time_down)

    @property
    def lookahead(self) -> int:
        """Later frames that a decoded one depends on."""
        return self.time_factor - 1 if self.interpolation == "linear" else 0


# -- modules -----------------------------------------------------------------------------------------------------------------------


def _conv(config: VidTokConfig, channels_in: int, channels_out: int, kernel: tuple[int, int, int], **more: Any) -> CausalConv3d:
    """A convolution as the configuration pads it in time."""
    ahead = 0 if config.causal or kernel[0] == 1 else 1
    return CausalConv3d(channels_in, channels_out, kernel, padding=config.padding, ahead=ahead, **more)


def _norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=1e-6)


def _mix(convolved: Tensor, plain: Tensor, factor: Tensor) -> Tensor:
    """Weigh the plain frames by sigmoid(factor); autocast may give the two another type."""
    return torch.lerp(convolved, plain.to(convolved.dtype), factor.sigmoid().to(convolved.dtype))


class _Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), of frames, of places in time, or of both."""

    def __init__(self, config: VidTokConfig, channels_in: int, channels_out: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = _conv(config, channels_in, channels_out, kernel)
        self.norm2 = _norm(channels_out)
        self.conv2 = _conv(config, channels_out, channels_out, kernel)
        same = channels_in == channels_out
        self.nin_shortcut = None if same else _conv(config, channels_in, channels_out, (1, 1, 1))
        if kernel[1:] == (1, 1):  # a block in time begins as the identity
            nn.init.zeros_(self.conv2.weight)
            nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), memory)
        h = self.conv2(F.silu(self.norm2(h)), memory)
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x, memory))


class _Attention(nn.Module):
    """One head over the places of each frame."""

    def __init__(self, config: VidTokConfig, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (_conv(config, channels, channels, (1, 1, 1)) for _ in range(4))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if not x.shape[1]:
            return x
        b, t, h, w, _ = x.shape
        normed = self.norm(x)
        q, k, v = (part(normed, memory).flatten(2, 3).flatten(0, 1)[:, None] for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].unflatten(0, (b, t)).unflatten(2, (h, w))
        return x + self.proj_out(mixed, memory)


class _Down(nn.Module):
    """Half the sides: zeros at the right and at the bottom, stride 2."""

    def __init__(self, config: VidTokConfig, channels: int) -> None:
        super().__init__()
        self.conv = _conv(config, channels, channels, (1, 3, 3), stride=(1, 2), border=(0, 1))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return self.conv(x, memory)


class _Up(nn.Module):
    """Twice the sides: nearest neighbour, then a convolution."""

    def __init__(self, config: VidTokConfig, channels: int) -> None:
        super().__init__()
        self.conv = _conv(config, channels, channels, (1, 3, 3))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), memory)


class _TimeDown(nn.Module):
    """Half the frames: a learned mixture of the mean of three and a convolution."""

    def __init__(self, config: VidTokConfig, channels: int) -> None:
        super().__init__()
        self.conv = _conv(config, channels, channels, (3, 3, 3), stride=(2, 1))
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        before = memory.kept.get(self.conv)
        convolved = self.conv(x, memory)
        if self.conv.ahead:
            seen = torch.cat([x, x.new_zeros(x[:, :1].shape)], 1)
        else:
            if before is None:
                before = x[:, :1] if self.conv.padding == "repeat" else x.new_zeros(x[:, :1].shape)
            seen = torch.cat([before, x], 1)
        mean = (seen[:, 0:-1:2] + seen[:, 1::2] + seen[:, 2::2]) / 3
        return _mix(convolved, mean, self.mix_factor)


class _TimeUp(nn.Module):
    """Twice the frames, then a learned mixture of them and a convolution."""

    def __init__(self, config: VidTokConfig, channels: int) -> None:
        super().__init__()
        self.linear = LinearUpsample() if config.interpolation == "linear" else None
        self.conv = _conv(config, channels, channels, (3, 3, 3))
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = x.repeat_interleave(2, 1) if self.linear is None else self.linear(x, memory)
        return _mix(self.conv(x, memory), x, self.mix_factor)


class _Level(nn.Module):
    """Blocks of one resolution, and what changes it afterwards."""

    def __init__(self, blocks: list[_Block], change: nn.Module | None = None, name: str = "") -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        if change is not None:
            self.add_module(name, change)


class _Middle(nn.Module):
    def __init__(self, config: VidTokConfig, width: int) -> None:
        super().__init__()
        self.block_1 = _Block(config, width, width, (3, 3, 3))
        self.attn_1 = _Attention(config, width)
        self.block_2 = _Block(config, width, width, (3, 3, 3))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, memory), memory), memory)


class _Encoder(nn.Module):
    """Frames `(b, t, h, w, 3)` to vectors `(b, t / f, h / s, w / s, c)`; t a multiple of f."""

    def __init__(self, config: VidTokConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = _conv(config, 3, config.width, (3, 3, 3))
        self.down, self.down_temporal = nn.ModuleList(), nn.ModuleList()
        for level, (before, after) in enumerate(zip([config.width, *widths], widths, strict=False)):
            inputs = [before] + [after] * (config.blocks - 1)
            space = [_Block(config, width, after, (1, 3, 3)) for width in inputs]
            time = [_Block(config, after, after, (3, 1, 1)) for _ in inputs]
            self.down.append(_Level(space, _Down(config, after) if level in config.space_down else None, "downsample"))
            self.down_temporal.append(_Level(time, _TimeDown(config, after) if level in config.time_down else None, "downsample"))
        self.mid = _Middle(config, widths[-1])
        self.norm_out = _norm(widths[-1])
        channels = config.latent_channels * (2 if config.levels is None else 1)
        self.conv_out = _conv(config, widths[-1], channels, (3, 3, 3))

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        h = self.conv_in(x, memory)
        for space, time in zip(self.down, self.down_temporal, strict=True):
            for in_space, in_time in zip(space.block, time.block, strict=True):
                h = in_time(in_space(h, memory), memory)
            for level in (space, time):
                if hasattr(level, "downsample"):
                    h = level.downsample(h, memory)
        return self.conv_out(F.silu(self.norm_out(self.mid(h, memory))), memory)


class _Decoder(nn.Module):
    """Vectors `(b, t, h, w, c)` to frames `(b, t * f, h * s, w * s, 3)`, the first f - 1 of which belong to the padding."""

    def __init__(self, config: VidTokConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        self.conv_in = _conv(config, config.latent_channels, widths[-1], (3, 3, 3))
        self.mid = _Middle(config, widths[-1])
        self.up, self.up_temporal = nn.ModuleList(), nn.ModuleList()
        for level, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            inputs = [before] + [after] * config.blocks
            space = [_Block(config, width, after, (1, 3, 3)) for width in inputs]
            time = [_Block(config, after, after, (3, 1, 1)) for _ in inputs]
            self.up.append(_Level(space, _Up(config, after) if level in config.space_up else None, "upsample"))
            self.up_temporal.append(_Level(time, _TimeUp(config, after) if level in config.time_up else None, "upsample"))
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv(config, widths[0], 3, (3, 3, 3))

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where the adaptive weight of adversarial losses is measured."""
        return self.conv_out.weight

    def forward(self, z: Tensor, memory: Memory) -> Tensor:
        h = self.mid(self.conv_in(z, memory), memory)
        for space, time in zip(reversed(self.up), reversed(self.up_temporal), strict=True):
            for in_space, in_time in zip(space.block, time.block, strict=True):
                h = in_time(in_space(h, memory), memory)
            for level in (space, time):
                if hasattr(level, "upsample"):
                    h = level.upsample(h, memory)
        return self.conv_out(F.silu(self.norm_out(h)), memory)


# -- the tokenizer -----------------------------------------------------------------------------------------------------------------


class VidTok(Tokenizer):
    """Video to codes `(b, t', h / s, w / s, 1)` or latents `(..., c)`; t' = 1 + ceil((t - 1) / f), t / f where not causal."""

    family = "vidtok"
    Config = VidTokConfig

    def __init__(self, config: VidTokConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantizer = None if config.levels is None else FSQ(levels=config.levels)

    @property
    def first_frame_alone(self) -> bool:  # type: ignore[override] - it follows from the configuration
        return self.config.causal

    @classmethod
    def layout_of(cls, config: VidTokConfig) -> dict[str, Any]:
        side = 2 ** len(config.space_down)
        codes = None if config.levels is None else math.prod(config.levels)
        return {
            "modality": "video",
            "layout": "3d",
            "discrete": codes is not None,
            "channels": config.latent_channels if codes is None else None,
            "codebook_size": codes,
            "vocabulary": () if codes is None else (codes,),
            "native_size": (config.image_size, config.image_size),
            "downsample": (config.time_factor, side, side),
            "size_multiple": side,
            "causal": config.causal and not config.lookahead,
            "streaming": config.causal,
            "lookahead_frames": config.lookahead if config.causal else None,
            "stochastic_encode": codes is None,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> VidTokConfig:
        """Read the model section of the release's YAML, as JSON.

        Raises:
            ValueError: another class, or a value that this family does not cover.
        """
        try:
            parts = config["model"]["params"]
            encoder, quantizer = parts["encoder_config"], parts["regularizer_config"]
            values, kind = encoder["params"], _ENCODERS.get(encoder["target"])
            levels = len(values["ch_mult"])
            latent_channels, width, blocks = values["z_channels"], values["ch"], values["num_res_blocks"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"vidtok: config.json lacks {error}. Needed: the model section of a VidTok configuration.") from error
        if kind is None:
            raise ValueError(f"vidtok: the encoder is a {encoder['target']!r}. Known: {', '.join(_ENCODERS)}.")
        if quantizer["target"] not in _QUANTIZERS:
            raise ValueError(f"vidtok: the regularizer is a {quantizer['target']!r}. Known: {', '.join(_QUANTIZERS)}.")
        discrete = quantizer["target"] == _QUANTIZERS[1]
        for key, only in {**_ONLY, "double_z": not discrete}.items():
            if values.get(key, only) != only:
                raise ValueError(f"vidtok: {key}={values[key]!r} in config.json. This implementation knows: {only!r}.")
        if values.get("norm_type", "groupnorm") != "layernorm":
            raise ValueError("vidtok: norm_type is not 'layernorm'. Every released model has layer norms, and only they are known.")
        mode = values.get("interpolation_mode", "nearest")
        if mode not in _INTERPOLATIONS:
            raise ValueError(f"vidtok: interpolation_mode={mode!r} in config.json. Known: {', '.join(_INTERPOLATIONS)}.")
        return VidTokConfig.from_dict(
            {
                **kind,
                "latent_channels": latent_channels,
                "levels": quantizer["params"]["levels"] if discrete else None,
                "width": width,
                "multipliers": values["ch_mult"],
                "blocks": blocks,
                "space_down": values.get("spatial_ds", list(range(levels - 1))),
                "time_down": sorted(values.get("tempo_ds", [levels - 3, levels - 2])),
                "space_up": values.get("spatial_us", list(range(1, levels))),
                "time_up": sorted(values.get("tempo_us", [1, 2])),
                "interpolation": _INTERPOLATIONS[mode] if kind["padding"] == "repeat" else "nearest",
            }
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: VidTokConfig) -> dict[str, Tensor]:
        """Drop the training losses and the names of wrappers; kernels of 1-D and 2-D convolutions get the axes that they lack."""
        renamed = {}
        for key, value in tensors.items():
            if key.startswith("loss."):
                continue
            name = re.sub(r"\.(\w*norm\w*)\.norm\.", r".\1.", key)
            name = re.sub(r"\.(conv|conv_in|conv_out|conv1|conv2|nin_shortcut|q|k|v|proj_out)\.conv\.", r".\1.", name)
            if name.endswith(".weight") and value.ndim == 3:
                value = value[..., None, None]
            elif name.endswith(".weight") and value.ndim == 4:
                value = value[:, :, None]
            renamed[name] = value
        return renamed

    # -- steps ---------------------------------------------------------------------------------------------------------------------

    def encode_step(self, x: Tensor, memory: Memory) -> Tensor:
        """Give codes, or mean and log variance, of the next frames `(b, t, h, w, 3)`; the first step is one frame."""
        h = self.encoder(self._led(x) if self.config.causal and not memory.kept else x, memory)
        return h if self.quantizer is None else self.quantizer.encode(h)

    def decode_step(self, data: Tensor, memory: Memory) -> Tensor:
        """Give the frames that became final with the next tokens `(b, t, h, w, d)`."""
        if self.quantizer is None:
            return self.frames_step(data, memory)
        if not data.shape[1]:
            return self.frames_step(data.new_zeros(*data.shape[:-1], self.config.latent_channels, dtype=self.dtype), memory)
        return self.frames_step(self.quantizer.decode(data).to(self.dtype), memory)

    def frames_step(self, z: Tensor, memory: Memory) -> Tensor:
        """Give the frames that became final with the next vectors `(b, t, h, w, c)`."""
        first = not memory.kept
        y = self.decoder(z, memory)
        return y[:, self.config.time_factor - 1 :] if first and self.config.causal else y

    def moments(self, x: Tensor) -> Tensor:
        """Output of the encoder for whole clips of a legal size: mean and log variance, or what is quantized, `(b, t, h, w, c)`.

        In one piece, for training.
        """
        x = x.permute(0, 2, 3, 4, 1)
        return self.encoder(self._led(x) if self.config.causal else x, Memory())

    def decode_vectors(self, z: Tensor) -> Tensor:
        """Give frames `(b, 3, t, h, w)` of all vectors `(b, t, h, w, c)` of a clip."""
        y = self._decoder_steps(self.frames_step, z).push(z, last=True)
        assert y is not None
        return y.permute(0, 4, 1, 2, 3)

    def _led(self, x: Tensor) -> Tensor:
        """Put the copies of the first frame before it."""
        return torch.cat([x[:, :1].expand(-1, self.config.time_factor - 1, -1, -1, -1), x], 1)

    def _encoder_steps(self, x: Tensor | None = None) -> Stepper:
        if not self.config.causal:
            assert x is not None
            return Stepper(self.encode_step, first=x.shape[1], size=x.shape[1])
        f = self.config.time_factor
        return Stepper(self.encode_step, first=1, size=_POSITIONS * f, multiple=f)

    def _decoder_steps(self, network: Callable[[Tensor, Memory], Tensor], data: Tensor | None = None) -> Stepper:
        if not self.config.causal:
            assert data is not None
            return Stepper(network, first=data.shape[1], size=data.shape[1])
        return Stepper(network, first=1, size=_POSITIONS, flush=self.config.lookahead > 0)

    # -- the contract --------------------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        x = x.permute(0, 2, 3, 4, 1)
        data = self._encoder_steps(x).push(x, last=True)
        assert data is not None
        if self.quantizer is not None:
            return data
        mean = self._final(data)
        if generator is None:
            return mean
        std = (data[..., self.config.latent_channels :].clamp(*_LOGVAR) / 2).exp()
        return mean + std * torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)

    def _final(self, data: Tensor) -> Tensor:
        """Codes as they are; of mean and log variance the mean."""
        return data if self.quantizer is not None else data[..., : self.config.latent_channels].contiguous()

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        y = self._decoder_steps(self.decode_step, tokens.data).push(tokens.data, last=True)
        assert y is not None
        return y.permute(0, 4, 1, 2, 3)

    def _stream(self) -> Stream:
        return StepStream(self, self._encoder_steps(), self._decoder_steps(self.decode_step), final=self._final)


# What the release's configurations name, and the values that only one implementation is known for.
_ENCODERS: dict[str, dict[str, Any]] = {
    "vidtok.modules.model_3dcausal.EncoderCausal3DPadding": {"causal": True, "padding": "zeros"},
    "vidtok.modules.model_3dcausal_v1_1.EncoderCausal3DPadding": {"causal": True, "padding": "repeat"},
    "vidtok.modules.model_3dnoncausal.Encoder3D": {"causal": False, "padding": "zeros"},
}
_QUANTIZERS = ("vidtok.modules.regularizers.DiagonalGaussianRegularizer", "vidtok.modules.regularizers.FSQRegularizer")
_INTERPOLATIONS = {"nearest": "nearest", "trilinear": "linear"}
_ONLY = {"in_channels": 3, "out_ch": 3, "init_pad_mode": "replicate", "resamp_with_conv": True, "tanh_out": False}
