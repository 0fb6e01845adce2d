"""SNAC: codes at several rates, a coarse one for a long stretch of sound and ever finer ones for its halves.

Paper: Siuzdak, Grötschla, Lanzendörfer, "SNAC: Multi-Scale Neural Audio Codec", arXiv 2410.14411. Behaviour checked against the
class `SNAC` of the package snac 1.2.1 (hubertsiuzdak/snac, MIT) through the tensors of tests/parity/snac and, at the released size,
against the class itself.

    sound (b, 1, s) -> encoder -> (b, c, frames) -> level i: mean over stride_i frames, nearest of a codebook, repeated -> sum
    -> decoder -> sound

One position of the tokens is one code of the coarsest level, and the codes of the finer levels that lie in it follow on the depth
axis, level after level: 1 + 2 + 4 codes for strides 4, 2, 1. `depth=` cuts at the ends of levels. `to_levels` and `from_levels`
speak the public form, a list of `(b, n)` codes for each level.

Differences: `decode` gives exactly the length that came in; the decoder's noise is a function of `seed`, the block and the place in
the signal, so that it is the same however the signal is cut; fewer levels decode; the network runs in pieces
(`zoo.layers.pieces`), so memory does not grow with the length and the numbers are those of the whole; streams give the codes of
the whole, after the stated lookahead.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.activations import Snake, may_overwrite
from zoo.layers.codec_stream import CodecStream
from zoo.layers.pieces import (
    ActivationStep,
    Chain,
    ElementStep,
    ResidualStep,
    Step,
    TransposeStep,
    WindowStep,
    narrowing,
    run,
    same_step,
    widening,
)
from zoo.layers.position_noise import PositionNoise
from zoo.layers.weight_norm import fold_weight_norm
from zoo.quantizers.multi_rate import MultiRateRVQ
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Segment, Tokens, TokenSpec

__all__ = ["Snac", "SnacConfig", "SnacStream"]

_DILATIONS = (1, 3, 9)
_HEAD = 64  # channels of an attention head
_REACH = 3 * sum(_DILATIONS)  # of three residual units, to each side
_PIECE = 64  # frames of a piece of a whole signal

NoiseSource = Callable[[int, tuple[int, int]], Tensor]
"""`(block, (first position, end))` -> `(n, b or 1)` noise of a decoder block."""


@dataclass(frozen=True, kw_only=True)
class SnacConfig(Config):
    """Sizes of SNAC; the defaults are those of the 24 kHz speech model.

    Attributes:
        sample_rate: samples per second.
        encoder_width: channels after the first convolution; doubled by every stride.
        encoder_strides: from the sound down; their product is the hop.
        decoder_width: channels before the first decoder block; halved by every stride.
        decoder_strides: up to the sound, with the same product.
        attention_window: frames of the local attention on both sides of the quantizer, None for none.
        codebook_size: entries of each level's codebook.
        codebook_dim: channels in which codes are compared.
        level_strides: frames that a code of each level stands for, coarse to fine; the first is a multiple of all.
        noise: every decoder block adds noise whose strength depends on the signal.
        depthwise: the inner convolutions have one filter for each channel.
    """

    sample_rate: int = 24000
    encoder_width: int = 48
    encoder_strides: tuple[int, ...] = (2, 4, 8, 8)
    decoder_width: int = 1024
    decoder_strides: tuple[int, ...] = (8, 8, 4, 2)
    attention_window: int | None = None
    codebook_size: int = 4096
    codebook_dim: int = 8
    level_strides: tuple[int, ...] = (4, 2, 1)
    noise: bool = True
    depthwise: bool = True

    def __post_init__(self) -> None:
        for name in ("sample_rate", "encoder_width", "codebook_dim"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.codebook_size >= 2, "codebook_size", "at least 2")
        for name in ("encoder_strides", "decoder_strides", "level_strides"):
            values = getattr(self, name)
            self.require(bool(values) and min(values) >= 1, name, "at least one number, all at least 1")
        self.require(min(self.encoder_strides) > 1, "encoder_strides", "strides of at least 2")
        same = math.prod(self.encoder_strides) == math.prod(self.decoder_strides)
        self.require(same and min(self.decoder_strides) > 1, "decoder_strides", f"strides above 1 with the product {self.hop}")
        divides = all(self.level_strides[0] % stride == 0 for stride in self.level_strides)
        self.require(divides, "level_strides", "numbers that divide the first")
        halvings = 2 ** len(self.decoder_strides)
        self.require(self.decoder_width % halvings == 0, "decoder_width", f"a multiple of {halvings}")
        if self.attention_window is not None:
            self.require(self.attention_window >= 1, "attention_window", "None, or at least 1")
            for name, width in (("encoder_width", self.latent_width), ("decoder_width", self.decoder_width)):
                self.require(width % _HEAD == 0, name, f"with attention, one that gives a multiple of {_HEAD} channels there")

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.encoder_strides)

    @property
    def latent_width(self) -> int:
        """Channels of the quantized vectors."""
        return self.encoder_width * 2 ** len(self.encoder_strides)

    @property
    def rates(self) -> tuple[int, ...]:
        """Codes of each level in one position."""
        return tuple(self.level_strides[0] // stride for stride in self.level_strides)

    @property
    def frame_multiple(self) -> int:
        """Frames come in multiples of whole positions and whole windows."""
        return math.lcm(self.level_strides[0], self.attention_window or 1)

    @property
    def lookahead(self) -> int:
        """Positions after its own that a position's codes, or its sound, may depend on."""
        step, window = self.level_strides[0], self.attention_window or 1
        most = 0
        for end in range(step, self.frame_multiple + step, step):  # where a position ends in its window
            heard = -(-self._heard(-(-(end + 3) // window) * window) // self.hop)
            read = -(-self._read(end * self.hop) // window) * window + 3
            most = max(most, -(-(max(heard, read) - end) // step))
        return most

    def _heard(self, end: int) -> int:
        """Samples that the encoder's blocks hear for the frames before `end`."""
        for stride in reversed(self.encoder_strides):
            end = (end + 1) * stride - -(-stride // 2) + _REACH
        return end + 3

    def _read(self, end: int) -> int:
        """Frames that the decoder's blocks read for the samples before `end`."""
        end += 3
        for stride in reversed(self.decoder_strides):
            end = (end + _REACH - 1 + -(-stride // 2)) // stride + 1
        return end


# -- modules -----------------------------------------------------------------------------------------------------------------------


class _Unit(nn.Module):
    """Residual unit: snake, convolution of kernel 7, snake, mixing of channels."""

    def __init__(self, channels: int, dilation: int, *, depthwise: bool) -> None:
        super().__init__()
        self.snake_in = Snake(channels)
        groups = channels if depthwise else 1
        self.conv = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation, groups=groups)
        self.snake_out = Snake(channels)
        self.mix = nn.Conv1d(channels, channels, 1)

    def step(self) -> Step:
        layers = ((self.snake_in, self.conv), (self.snake_out, self.mix))
        return ResidualStep(Chain([step for bend, conv in layers for step in (ActivationStep(bend), same_step(conv))]))


def _units(channels: int, *, depthwise: bool) -> nn.ModuleList:
    return nn.ModuleList(_Unit(channels, dilation, depthwise=depthwise) for dilation in _DILATIONS)


class _Attention(nn.Module):
    """Attention inside windows, with rotary positions; `x + attention(norm(x))`."""

    def __init__(self, channels: int, window: int) -> None:
        super().__init__()
        self.window, self.heads = window, channels // _HEAD
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over `(b, c, t)`, t a multiple of the window."""
        x = x.transpose(1, 2)
        shape = (len(x), x.shape[1] // self.window, self.window, 3, self.heads, _HEAD)
        parts = self.to_qkv(self.norm(x)).reshape(shape).movedim(3, 0)  # (3, b, windows, window, heads, _HEAD)
        q, k, v = (part.transpose(-2, -3) for part in parts)
        out = F.scaled_dot_product_attention(self._turn(q), self._turn(k), v).transpose(-2, -3)
        return (x + self.to_out(out.reshape(x.shape))).transpose(1, 2)

    def _turn(self, x: Tensor) -> Tensor:
        """Rotate the two halves of a head by the position in the window."""
        frequencies = 10000.0 ** -(torch.arange(0, _HEAD, 2, device=x.device, dtype=torch.float32) / _HEAD)
        angles = torch.arange(self.window, device=x.device, dtype=torch.float32)[:, None] * frequencies
        cos, sin = (f.to(x.dtype).repeat(1, 2) for f in (angles.cos(), angles.sin()))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def step(self) -> Step:
        return WindowStep(self.window, self)


class _EncoderBlock(nn.Module):
    """Three residual units, then half the rate, twice the channels (for stride 2)."""

    def __init__(self, channels: int, stride: int, *, depthwise: bool) -> None:
        super().__init__()
        self.units = _units(channels, depthwise=depthwise)
        self.snake = Snake(channels)
        self.down = nn.Conv1d(channels, 2 * channels, 2 * stride, stride=stride, padding=-(-stride // 2))

    def steps(self) -> list[Step]:
        # The module's padding is one more than odd strides need at the end, where it gives no window.
        return [*(unit.step() for unit in self.units), ActivationStep(self.snake), same_step(self.down)]


class _DecoderBlock(nn.Module):
    """A higher rate and half the channels, noise, three residual units."""

    def __init__(self, channels: int, stride: int, *, depthwise: bool, noise: bool) -> None:
        super().__init__()
        half = channels // 2
        self.snake = Snake(channels)
        self.up = nn.ConvTranspose1d(channels, half, 2 * stride, stride=stride)
        self.strength = nn.Conv1d(half, half, 1, bias=False) if noise else None
        self.units = _units(half, depthwise=depthwise)

    def steps(self, noise: Callable[[int, int], Tensor] | None) -> list[Step]:
        """`noise`: first position and end -> `(b or 1, 1, end - first)`."""
        stride = self.up.stride[0]
        cut = -(-stride // 2)
        added = [_NoiseStep(self.strength, noise)] if noise is not None and self.strength is not None else []
        up = TransposeStep(self.up, trim_left=cut, trim_right=stride - cut)  # exactly `stride` samples for each
        return [ActivationStep(self.snake), up, *added, *(unit.step() for unit in self.units)]


class _NoiseStep(Step):
    """x + noise * strength(x), the noise that of the place in the signal."""

    def __init__(self, strength: nn.Conv1d, noise: Callable[[int, int], Tensor]) -> None:
        self.strength, self.noise, self.position = same_step(strength), noise, 0

    def reuse(self) -> None:
        self.strength.reuse()

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        strength = self.strength.push(x, last=last)
        if x is None or strength is None:
            return None
        start, self.position = self.position, self.position + x.shape[2]
        noise = self.noise(start, self.position).to(x.dtype)
        if may_overwrite(strength, x, noise):
            return strength.mul_(noise).add_(x)
        return torch.addcmul(x, noise, strength)


def _inner(channels: int, *, depthwise: bool) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, 7, padding=3, groups=channels if depthwise else 1)


class SnacEncoder(nn.Module):
    """Sound `(b, 1, s)` to vectors `(b, c, frames)`; s is a multiple of what `SnacConfig` says."""

    def __init__(self, config: SnacConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.conv_in = nn.Conv1d(1, width, 7, padding=3)
        self.blocks = nn.ModuleList(
            _EncoderBlock(width * 2**i, stride, depthwise=config.depthwise) for i, stride in enumerate(config.encoder_strides)
        )
        width = config.latent_width
        self.attention = None if config.attention_window is None else _Attention(width, config.attention_window)
        self.conv_out = _inner(width, depthwise=config.depthwise)

    def chain(self) -> Chain:
        """The network in pieces."""
        first: list[Step] = [same_step(self.conv_in)]
        stages: list[tuple[int, list[Step]]] = []
        for block in cast(Iterable[_EncoderBlock], self.blocks):
            stages.append((block.down.in_channels, [*first, *block.steps()]))
            first = []
        attention = [] if self.attention is None else [self.attention.step()]
        return Chain([narrowing(stages), *attention, same_step(self.conv_out)])


class SnacDecoder(nn.Module):
    """Vectors `(b, c, frames)` to sound `(b, 1, s)`."""

    def __init__(self, config: SnacConfig) -> None:
        super().__init__()
        latent, width, count = config.latent_width, config.decoder_width, len(config.decoder_strides)
        if config.depthwise:
            self.conv_in = nn.Sequential(_inner(latent, depthwise=True), nn.Conv1d(latent, width, 1))
        else:
            self.conv_in = nn.Sequential(nn.Conv1d(latent, width, 7, padding=3))
        self.attention = None if config.attention_window is None else _Attention(width, config.attention_window)
        self.blocks = nn.ModuleList(
            _DecoderBlock(width // 2**i, stride, depthwise=config.depthwise, noise=config.noise)
            for i, stride in enumerate(config.decoder_strides)
        )
        self.snake = Snake(width // 2**count)
        self.conv_out = nn.Conv1d(width // 2**count, 1, 7, padding=3)

    def chain(self, noise: NoiseSource | None) -> Chain:
        """The network in pieces."""
        first, *rest = cast(nn.Sequential, self.conv_in)
        steps: list[Step] = [same_step(first), *map(same_step, rest)]
        if self.attention is not None:
            steps.append(self.attention.step())
        stages: list[tuple[int, list[Step]]] = []
        for i, block in enumerate(cast(Iterable[_DecoderBlock], self.blocks)):
            stages.append((block.up.out_channels, block.steps(None if noise is None else _of_block(noise, i))))
        stages[-1][1].extend([ActivationStep(self.snake), same_step(self.conv_out), ElementStep(torch.tanh)])
        return Chain([*steps, widening(stages)])


def _of_block(noise: NoiseSource, block: int) -> Callable[[int, int], Tensor]:
    return lambda start, end: noise(block, (start, end)).t()[:, None]


class Snac(Tokenizer):
    """Sound of any length to positions of 1 + 2 + 4 (or 1 + 2 + 4 + 8) codes, and back."""

    family = "snac"
    Config = SnacConfig
    config: SnacConfig

    def __init__(self, config: SnacConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.encoder = SnacEncoder(config)
        self.quantizer = MultiRateRVQ(
            dim=config.latent_width,
            codebook_size=config.codebook_size,
            codebook_dim=config.codebook_dim,
            strides=config.level_strides,
        )
        self.decoder = SnacDecoder(config)

    @classmethod
    def layout_of(cls, config: SnacConfig) -> dict[str, Any]:
        depth, step = sum(config.rates), config.hop * config.level_strides[0]
        return {
            "modality": "audio",
            "layout": "1d",
            "discrete": True,
            "residual": True,
            "depth": depth,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,) * depth,
            "downsample": (step, 1, 1),
            "size_multiple": config.hop * config.frame_multiple,
            "sample_rate": config.sample_rate,
            "frame_rate": config.sample_rate / step,
            "bits_per_second": config.sample_rate / step * depth * math.log2(config.codebook_size),
            "audio_channels": 1,
            "causal": False,
            "streaming": True,
            "lookahead_frames": config.lookahead,
            "stochastic_decode": config.noise,
        }

    @property
    def spec(self) -> TokenSpec:
        segments = tuple(
            Segment(length=rate, stride=stride) for rate, stride in zip(self.config.rates, self.config.level_strides, strict=True)
        )
        plain = super().spec
        return TokenSpec(**{**{name: getattr(plain, name) for name in plain.__dataclass_fields__}, "segments": segments})

    # -- the public form of codes --------------------------------------------------------------------------------------------------

    def to_levels(self, tokens: Tokens) -> list[Tensor]:
        """Give the codes as the public class does: for each level int64 `(b, n * rate)`, coarse to fine.

        Raises:
            ValueError: tokens of another tokenizer, or of items of unequal length.
        """
        self._check_tokens(tokens)
        if tokens.lengths is not None:
            raise ValueError(f"{self.info.name}.to_levels: the items have unequal lengths. Give them one by one.")
        ends = [end for end in self.spec.segment_ends if end <= tokens.levels]
        return [tokens.data[..., start:end].flatten(1) for start, end in zip([0, *ends], ends, strict=False)]

    def from_levels(self, levels: Sequence[Tensor], *, samples: int | None = None) -> Tokens:
        """Make tokens of the public class's codes.

        Args:
            levels: int64 `(b, n * rate)` of the first one or more levels, coarse to fine.
            samples: length of the sound; None takes all that the codes stand for, as the public class does.

        Raises:
            ValueError: another number of levels, lengths that do not belong together, codes outside the codebook, or a length
                that does not have so many codes.
        """
        name = f"{self.info.name}.from_levels"
        rates = self.config.rates[: len(levels)]
        if not 1 <= len(levels) <= len(self.config.rates):
            raise ValueError(f"{name}: {len(levels)} levels. Allowed: 1..{len(self.config.rates)}.")
        shapes, n = [tuple(level.shape) for level in levels], levels[0].shape[-1]
        needed_shapes = [(len(levels[0]), n * rate // rates[0]) for rate in rates]
        if n % rates[0] or shapes != needed_shapes:
            raise ValueError(f"{name}: levels have the shapes {shapes}. Needed: {needed_shapes}.")
        data = torch.cat([level.unflatten(1, (-1, rate)) for level, rate in zip(levels, rates, strict=True)], -1)
        step = self.config.hop * self.config.level_strides[0]
        size = data.shape[1] * step if samples is None else samples
        tokens = Tokens(data.long(), self.spec, torch.tensor([[size]] * len(data), device=data.device))
        self._check_tokens(tokens)
        return tokens

    # -- the contract ------------------------------------------------------------------------------------------------------------

    def _pad(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Pad with zeros, as the public class does."""
        return F.pad(x, (0, size[0] - x.shape[2]))

    def _levels_of(self, depth: int | None) -> int | None:
        return None if depth is None else self.spec.segment_ends.index(depth) + 1

    def _coder(self, depth: int | None) -> Chain:
        levels, frames = self._levels_of(depth), self.config.level_strides[0]

        def codes_of(latents: Tensor) -> Tensor:
            return self.quantizer.encode(latents.transpose(1, 2), levels=levels).transpose(1, 2)

        return Chain([self.encoder.chain(), WindowStep(frames, codes_of, rate=Fraction(1, frames))])

    def _decoder(self, noise: NoiseSource | None) -> Chain:
        def vectors_of(codes: Tensor) -> Tensor:
            return self.quantizer.decode(codes.transpose(1, 2)).to(self.dtype).transpose(1, 2)

        return Chain([WindowStep(1, vectors_of, rate=Fraction(self.config.level_strides[0])), self.decoder.chain(noise)])

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return run(self._coder(depth), x, piece=_PIECE * self.config.hop).transpose(1, 2)

    def encode_vectors(self, x: Tensor) -> Tensor:
        """Give what the quantizer gets, `(b, frames, c)`, of sound `(b, 1, s)` of a legal length."""
        return run(self.encoder.chain(), x, piece=x.shape[2]).transpose(1, 2)

    def decode_vectors(self, vectors: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Decode vectors `(b, frames, c)` to sound `(b, 1, frames * hop)`, without noise where none is given."""
        return run(self.decoder.chain(noise), vectors.transpose(1, 2), piece=vectors.shape[1])

    def _decode(
        self,
        tokens: Tokens,
        size: tuple[int, ...],
        *,
        seed: int | list[int] = 0,
        noise: bool | tuple[Tensor, ...] = True,
    ) -> Tensor:
        """Decode tokens.

        Args:
            seed: of the noise; a list holds one for each item.
            noise: False leaves it out; tensors `(b or 1, 1, t)`, one for each decoder block, are used as they are.

        Raises:
            ValueError: a seed that is no int, or noise of other shapes.
        """
        chain = self._decoder(self._noise(tokens, seed, noise))
        return run(chain, tokens.data.transpose(1, 2), piece=_PIECE // self.config.level_strides[0])

    def _noise(self, tokens: Tokens, seed: int | list[int], noise: bool | tuple[Tensor, ...]) -> NoiseSource | None:
        name = f"{self.info.name}.decode"
        if noise is False or not self.config.noise:
            return None
        if noise is not True:
            return _given_noise(name, noise, self.config, len(tokens), tokens.positions[0])
        return PositionNoise(_seeds(name, seed, len(tokens)), device=self.device, dtype=self.dtype)

    def _check_options(self, options: dict[str, Any], batch: int) -> None:
        super()._check_options(options, batch)
        if not self.config.noise:
            for key in ("seed", "noise"):
                if key in options:
                    raise ValueError(f"{self.info.name}.decode: this tokenizer has no option {key!r}: its decoder draws no noise.")

    def _stream(self, *, depth: int | None = None, seed: int | list[int] = 0, noise: bool = True) -> "SnacStream":
        if depth is not None:
            self._check_depth(depth)
        return SnacStream(self, depth=depth, seed=seed, noise=noise)

    # -- the public release's format ---------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> SnacConfig:
        return _config_from_public(config)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: SnacConfig) -> dict[str, Tensor]:
        return _rename_public(tensors, config)


class SnacStream(CodecStream):
    """Codes as soon as what they depend on is there, and sound likewise."""

    tok: Snac

    def __init__(self, tok: Snac, *, depth: int | None, seed: int | list[int], noise: bool) -> None:
        super().__init__(tok, encoder=tok._coder(depth), decoder=Chain([]), multiple=tok.info.size_multiple)
        self.seed, self.noise = seed, noise

    def _decode(self, tokens: Tokens | None, *, last: bool) -> Tensor | None:
        tok, found = self.tok, self.decoded + (0 if tokens is None else tokens.positions[0])
        if tokens is not None and not self.decoded:  # now the number of items is known, each of which may have its seed
            self.decoder = tok._decoder(tok._noise(tokens, self.seed, self.noise))
        multiple = tok.config.frame_multiple // tok.config.level_strides[0]
        if last and found % multiple:
            name = f"{tok.info.name}.stream.decode"
            raise ValueError(f"{name}: {found} positions in all. Needed: a multiple of {multiple}, as encode() gives.")
        return super()._decode(tokens, last=last)


# -- noise -------------------------------------------------------------------------------------------------------------------------


def _seeds(name: str, seed: int | list[int], batch: int) -> list[int]:
    seeds = seed if isinstance(seed, list) else [seed]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in seeds) or len(seeds) not in (1, batch):
        raise ValueError(f"{name}: seed={seed!r}. Needed: an int, or a list of one for each of the {batch} items.")
    return seeds if len(set(seeds)) > 1 else seeds[:1]


def _given_noise(name: str, noise: Any, config: SnacConfig, batch: int, positions: int) -> NoiseSource:
    """Noise that the caller has drawn."""
    lengths, t = [], positions * config.level_strides[0]
    for stride in config.decoder_strides:
        t *= stride
        lengths.append(t)
    if not isinstance(noise, tuple) or not all(isinstance(part, Tensor) for part in noise):
        raise ValueError(f"{name}: noise is a {type(noise).__name__}. Needed: True, False, or a tuple of tensors.")
    shapes = [tuple(part.shape) for part in noise]
    if shapes not in ([(b, 1, t) for t in lengths] for b in (1, batch)):
        raise ValueError(f"{name}: noise has the shapes {shapes}. Needed: {[(batch, 1, t) for t in lengths]}.")
    return lambda block, positions: noise[block][:, 0, positions[0] : positions[1]].t()


# -- reading the public release ----------------------------------------------------------------------------------------------------

_PUBLIC = {
    "sampling_rate": "sample_rate",
    "encoder_dim": "encoder_width",
    "encoder_rates": "encoder_strides",
    "decoder_dim": "decoder_width",
    "decoder_rates": "decoder_strides",
    "attn_window_size": "attention_window",
    "codebook_size": "codebook_size",
    "codebook_dim": "codebook_dim",
    "vq_strides": "level_strides",
    "noise": "noise",
    "depthwise": "depthwise",
}
# What the public class takes where config.json is silent; it is another model than our default.
_PUBLIC_DEFAULTS = {
    "sampling_rate": 44100,
    "encoder_dim": 64,
    "encoder_rates": [3, 3, 7, 7],
    "decoder_dim": 1536,
    "decoder_rates": [7, 7, 3, 3],
    "attn_window_size": 32,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [8, 4, 2, 1],
    "noise": True,
    "depthwise": True,
}


def _config_from_public(config: Mapping[str, Any]) -> SnacConfig:
    """Translate the constructor arguments of the public class.

    Raises:
        ValueError: no known key, an unknown one, or a latent width other than the encoder's.
    """
    unknown = [key for key in config if key not in _PUBLIC and key != "latent_dim"]
    if unknown or not any(key in _PUBLIC for key in config):
        what = f"the unknown keys {', '.join(unknown)}" if unknown else "no known key"
        raise ValueError(f"snac: config.json holds {what}. Known: {', '.join(_PUBLIC)}, latent_dim.")
    out = SnacConfig.from_dict({ours: config.get(key, _PUBLIC_DEFAULTS[key]) for key, ours in _PUBLIC.items()})
    if config.get("latent_dim") not in (None, out.latent_width):
        found, allowed = config["latent_dim"], f"{out.latent_width}, the width of the encoder, or none"
        raise ValueError(f"snac: latent_dim={found!r} in config.json. Allowed: {allowed}.")
    return out


_UNIT = {"block.0.": "snake_in.", "block.1.": "conv.", "block.2.": "snake_out.", "block.3.": "mix."}


def _rename_public(tensors: dict[str, Tensor], config: SnacConfig) -> dict[str, Tensor]:
    """Fold the weight norm and give public tensors our names; a name that is not known stays as it is."""
    names = {**_encoder_names(config), **_decoder_names(config)}
    for level in range(len(config.level_strides)):
        start = f"quantizer.quantizers.{level}."
        names[start + "codebook.weight"] = f"quantizer.levels.{level}.quantizer.codebook"
        names[start + "in_proj."] = f"quantizer.levels.{level}.project_in."
        names[start + "out_proj."] = f"quantizer.levels.{level}.project_out."
    out: dict[str, Tensor] = {}
    for key, value in fold_weight_norm(tensors).items():
        if key.endswith(".rel_pos.inv_freq"):
            continue  # a constant of the rotary positions
        start = max((start for start in names if key.startswith(start)), key=len, default="")
        new = names.get(start, "") + key.removeprefix(start)
        if new.endswith((".project_in.weight", ".project_out.weight")):
            value = value[..., 0]
        out[new] = value
        if new.endswith(".quantizer.codebook"):
            start = new.removesuffix("codebook")
            out[start + "cluster_size"] = torch.ones(len(value))
            out[start + "initialized"] = torch.tensor(True)
            out[start + "clock.steps"] = torch.tensor(0)
    return out


def _encoder_names(config: SnacConfig) -> dict[str, str]:
    names, count = {"encoder.block.0.": "encoder.conv_in."}, len(config.encoder_strides)
    for i in range(count):
        public, ours = f"encoder.block.{i + 1}.block.", f"encoder.blocks.{i}."
        for unit in range(len(_DILATIONS)):
            names |= {f"{public}{unit}.{old}": f"{ours}units.{unit}.{new}" for old, new in _UNIT.items()}
        names[f"{public}{len(_DILATIONS)}."] = ours + "snake."
        names[f"{public}{len(_DILATIONS) + 1}."] = ours + "down."
    if config.attention_window is not None:
        count += 1
        names[f"encoder.block.{count}."] = "encoder.attention."
    names[f"encoder.block.{count + 1}."] = "encoder.conv_out."
    return names


def _decoder_names(config: SnacConfig) -> dict[str, str]:
    convs = 2 if config.depthwise else 1
    names = {f"decoder.model.{i}.": f"decoder.conv_in.{i}." for i in range(convs)}
    at = convs
    if config.attention_window is not None:
        names[f"decoder.model.{at}."] = "decoder.attention."
        at += 1
    for i in range(len(config.decoder_strides)):
        public, ours, first = f"decoder.model.{at + i}.block.", f"decoder.blocks.{i}.", 2
        names[public + "0."], names[public + "1."] = ours + "snake.", ours + "up."
        if config.noise:
            names[public + "2.linear."], first = ours + "strength.", 3
        for unit in range(len(_DILATIONS)):
            names |= {f"{public}{first + unit}.{old}": f"{ours}units.{unit}.{new}" for old, new in _UNIT.items()}
    at += len(config.decoder_strides)
    names[f"decoder.model.{at}."], names[f"decoder.model.{at + 1}."] = "decoder.snake.", "decoder.conv_out."
    return names
