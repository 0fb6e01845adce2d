"""The binary autoencoder (BAE) of ELM: pictures as a grid of bits, each of which adds one learned vector.

Paper: "Elucidating the Design Space of Language Models for Image Generation", arXiv 2410.16257 (ICML 2025). Source repository:
Pepper-lll/LMforImageGeneration, commit c2f29f0 (no licence is stated, for the code or the weights: nothing is copied from it).
Checked against tests/parity/elm: bits equal, tensors to 1e-4.

    picture -> VQGAN encoder -> 1x1 -> probability of each bit -> above one half, or drawn -> codes, first channel = highest bit
    codes -> bits -> sum of the vectors of the set bits -> norm -> VQGAN decoder -> picture

How this differs from the original, with the same numbers: pictures are in [-1, 1] as everywhere here, and turned to [0, 1] inside;
the encoder takes the likelier value of each bit unless it is told to draw (`sample=True`); parameters that the original keeps but
never uses are left out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config
from zoo.layers.vqgan import Decoder, Encoder
from zoo.quantizers.base import Quantized, Quantizer, check_number, exact_math, working_dtype
from zoo.quantizers.gradients import straight_through
from zoo.quantizers.lfq import LFQ
from zoo.quantizers.usage import usage_stats
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["BAE", "BAEConfig", "BinaryQuantizer"]


@dataclass(frozen=True, kw_only=True)
class BAEConfig(Config):
    """Sizes of the autoencoder; the defaults are those of the public 20-bit model.

    Attributes:
        bits: of one position, 1..62.
        splits: cut them into consecutive groups of so many bits, codes of their own on the depth axis; None is one code.
        latent_channels: length of the vector that a bit adds.
        width: channels of the finest level before its multiplier.
        multipliers: width of each level over `width`, fine to coarse; the downsampling is 2 ** (len - 1).
        blocks: residual blocks of each encoder level.
        decoder_blocks: residual blocks of each decoder level.
        attention_sides: levels with this side at `image_size` have attention, in encoder and decoder.
        norm_groups: groups of the group norms; divides every width.
        input_norm: the decoder starts with a group norm.
        deterministic: the weights were trained without drawing bits, so the encoder has nothing to sample.
        image_size: side the weights were trained at.
        confidence_weight: of the quantizer's loss in training.
    """

    bits: int = 20
    splits: tuple[int, ...] | None = (10, 10)
    latent_channels: int = 256
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2
    decoder_blocks: int = 2
    attention_sides: tuple[int, ...] = (16,)
    norm_groups: int = 32
    input_norm: bool = True
    deterministic: bool = False
    image_size: int = 256
    confidence_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("latent_channels", "width", "blocks", "decoder_blocks", "norm_groups", "image_size"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(1 <= self.bits <= 62, "bits", "1..62")
        self.require(len(self.multipliers) >= 1, "multipliers", "at least one level")
        self.require(min(self.multipliers) >= 1, "multipliers", "multipliers of at least 1")
        self.require(self.width % self.norm_groups == 0, "width", "a multiple of norm_groups")
        if self.input_norm:
            self.require(self.latent_channels % self.norm_groups == 0, "latent_channels", "a multiple of norm_groups")
        self.require(self.confidence_weight >= 0, "confidence_weight", "0 or more")
        if self.splits is not None:
            fits = min(self.splits, default=0) >= 1 and sum(self.splits) == self.bits
            self.require(fits, "splits", f"positive numbers of bits that add up to bits={self.bits}, or None")

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """Levels with attention, 0 the finest."""
        sides = [self.image_size // 2**level for level in range(len(self.multipliers))]
        return tuple(level for level, side in enumerate(sides) if side in self.attention_sides)


def _bit_codes(bits: int, splits: Sequence[int] | None) -> LFQ:
    """The order of bits in codes: first channel = highest bit, group by group."""
    return LFQ(bits=bits, splits=splits, bit_order="first_is_high", entropy_weight=0.0, commitment_weight=0.0)


class BinaryQuantizer(Quantizer):
    """Bits with learned probabilities; the value is the sum of the vectors of the bits that are set.

    The gradient passes each bit as if it were its probability. Loss: confidence_weight * mean s(p) (1 - s(p)), s the sigmoid; that
    it is applied to the probability p and not to its logit is the original's formula. Statistic beside the common ones:
    `confidence`, that mean, `(1,)`.

    Args:
        dim: channels of `x` and of the vectors.
        bits: of one position.
        splits: see `BAEConfig`; the depth axis.
        confidence_weight: of the loss.

    Raises:
        ValueError: an argument outside its range.

    State dict: `projection.weight (bits, dim)`, `projection.bias (bits,)`, `vectors (bits, dim)`.
    """

    def __init__(self, *, dim: int, bits: int, splits: Sequence[int] | None = None, confidence_weight: float = 0.0) -> None:
        check_number("BinaryQuantizer", "confidence_weight", confidence_weight, low=0)
        order = _bit_codes(bits, splits)
        super().__init__(dim=dim, codebook_sizes=order.codebook_sizes)
        self.order = order
        self.confidence_weight = confidence_weight
        self.projection = nn.Linear(dim, bits)
        self.vectors = nn.Parameter(torch.randn(bits, dim))

    def probabilities(self, x: Tensor) -> Tensor:
        """Give the probability that each bit is set, `(..., bits)`, float32, of `x (..., dim)`.

        Raises:
            ValueError: wrong last axis or not floating point.
        """
        self._check_x(x, "probabilities")
        with exact_math(x.device.type):
            kind = working_dtype(x.dtype)
            return torch.sigmoid(F.linear(x.to(kind), self.projection.weight.to(kind), self.projection.bias.to(kind)))

    def forward(self, x: Tensor, *, generator: torch.Generator | None = None) -> Quantized:
        """Quantize `x (..., dim)` for training; bits are drawn where a generator is given, as the original trains."""
        probability = self.probabilities(x)
        bits = _choose(probability.detach(), generator)
        with exact_math(x.device.type):
            value = straight_through(probability, bits.to(probability.dtype)) @ self.vectors.to(probability.dtype)
            soft = torch.sigmoid(probability)
            confidence = (soft * (1 - soft)).mean()
        codes = self.order.bits_to_codes(bits.long())
        stats = usage_stats(codes, self.codebook_sizes)
        stats["confidence"] = confidence.detach().float().reshape(1)
        return Quantized(value.to(x.dtype), codes, (self.confidence_weight * confidence).float(), stats)

    def encode(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Turn finite vectors `(..., dim)` into codes, int64 `(..., depth)`; bits are drawn where a generator is given.

        Raises:
            ValueError: wrong last axis, not floating point, NaN or infinite values.
        """
        self._check_x(x, "encode", finite=True)
        return self.order.bits_to_codes(_choose(self.probabilities(x.detach()), generator).long())

    def decode(self, codes: Tensor) -> Tensor:
        self._check_codes(codes, "decode")
        with exact_math(codes.device.type):
            return self.order.codes_to_bits(codes).to(self.vectors.dtype) @ self.vectors


def _choose(probability: Tensor, generator: torch.Generator | None) -> Tensor:
    """Boolean bits: the likelier value, or drawn."""
    if generator is None:
        return probability > 0.5
    return torch.rand(probability.shape, generator=generator, device=probability.device, dtype=probability.dtype) < probability


class BAE(Tokenizer):
    """Pictures to codes `(b, h / f, w / f, len(splits))` and back; any size."""

    family = "elm"
    Config = BAEConfig

    def __init__(self, config: BAEConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        sizes = {
            "width": config.width,
            "multipliers": config.multipliers,
            "attention": config.attention_levels,
            "groups": config.norm_groups,
            "final_activation": False,
        }
        self.encoder = Encoder(channels_out=config.latent_channels, blocks=config.blocks, **sizes)
        self.quantizer = BinaryQuantizer(
            dim=config.latent_channels, bits=config.bits, splits=config.splits, confidence_weight=config.confidence_weight
        )
        self.input_norm = nn.GroupNorm(config.norm_groups, config.latent_channels, eps=1e-6) if config.input_norm else nn.Identity()
        self.decoder = Decoder(channels_in=config.latent_channels, blocks=config.decoder_blocks, **sizes)

    @classmethod
    def layout_of(cls, config: BAEConfig) -> dict[str, Any]:
        factor = 2 ** (len(config.multipliers) - 1)
        grid = -(-config.image_size // factor)
        vocabulary = tuple(2**bits for bits in config.splits or (config.bits,))
        return {
            "modality": "image",
            "layout": "2d",
            "discrete": True,
            "tokens": grid**2,
            "depth": len(vocabulary),
            "codebook_size": max(vocabulary),
            "vocabulary": vocabulary,
            "native_size": (config.image_size, config.image_size),
            "downsample": (1, factor, factor),
            "size_multiple": factor,
            "bits_per_pixel": grid**2 * config.bits / config.image_size**2,
            "stochastic_encode": not config.deterministic,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> BAEConfig:
        """Read the release's hyper-parameters: under `hparams`, with `token_each` codes of `code_dim` bits beside them.

        Raises:
            ValueError: a key that is missing, or a value that this family does not cover.
        """
        values = config.get("hparams")
        if not isinstance(values, dict):
            raise ValueError("elm: the configuration has no 'hparams'. Is it that of ELM's binary autoencoder?")
        needed = ("nf", "res_blocks", "codebook_size", "emb_dim", "ch_mult", "img_size", "attn_resolutions")
        missing = [key for key in needed if key not in values]
        if missing:
            raise ValueError(f"elm: 'hparams' has no {', '.join(missing)}. Is it that of ELM's binary autoencoder?")
        for key, only in (("n_channels", 3), ("quantizer", "binary"), ("use_tanh", False)):
            if values.get(key, only) != only:
                raise ValueError(f"elm: {key}={values[key]!r} in the configuration. This implementation knows: {only!r}.")
        splits = None
        if "token_each" in config or "code_dim" in config:
            splits = [config.get("code_dim", values["codebook_size"])] * config.get("token_each", 1)
        return BAEConfig.from_dict(
            {
                "bits": values["codebook_size"],
                "splits": splits,
                "latent_channels": values["emb_dim"],
                "width": values["nf"],
                "multipliers": values["ch_mult"],
                "blocks": values["res_blocks"],
                "decoder_blocks": int(values["res_blocks"] * values.get("gen_mul", 1.0)),
                "attention_sides": values["attn_resolutions"],
                "input_norm": values.get("norm_first", True),
                "deterministic": values.get("deterministic", False),
                "image_size": values["img_size"],
            }
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: BAEConfig) -> dict[str, Tensor]:
        """Name the autoencoder's tensors as here; the discriminator's, and those that are never used, are left out.

        Names that are not known pass unchanged, so that the strict load lists them.
        """
        own = {key.removeprefix("ae."): value for key, value in tensors.items() if key.startswith("ae.")}
        own = own or dict(tensors)
        places = {"encoder": list(_encoder_places(config)), "generator": list(_decoder_places(config))}
        out = {}
        for key, value in own.items():
            if key.startswith("generator.logsigma."):
                continue
            if key.startswith("quantize.proj.0."):
                out["quantizer.projection." + key.rpartition(".")[2]] = value.flatten(1) if value.ndim == 4 else value
                continue
            if key == "quantize.embed.weight":
                out["quantizer.vectors"] = value
                continue
            match = re.fullmatch(r"(encoder|generator)\.blocks\.(\d+)\.(.+)", key)
            if match is None or int(match[2]) >= len(places[match[1]]):
                out[key] = value
                continue
            part = match[3]
            if part.startswith("conv_out."):
                if _same_width(own, key.rpartition(".conv_out.")[0]):
                    continue
                part = part.replace("conv_out.", "nin_shortcut.")
            out[f"{places[match[1]][int(match[2])]}.{part}"] = value
        return out

    # -- pieces for training and research ----------------------------------------------------------------------------------------

    def encode_latents(self, x: Tensor) -> Tensor:
        """Give the vectors before the bits, `(b, latent_channels, h / f, w / f)`, of pictures in [-1, 1]."""
        return self.encoder((x + 1) / 2)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Give pictures about [-1, 1] of sums of vectors `(b, latent_channels, h, w)`."""
        return self.decoder(self.input_norm(latents)) * 2 - 1

    def split_codes(self, codes: Tensor, splits: Sequence[int]) -> Tensor:
        """Cut codes into other sub-codes: `(..., depth)` of this tokenizer to int64 `(..., len(splits))`.

        Part 0 holds the first `splits[0]` channels, the highest bits of an undivided code.

        Raises:
            ValueError: codes outside the vocabulary, or splits that do not add up to the bits.
        """
        return _bit_codes(self.config.bits, tuple(splits)).bits_to_codes(self.quantizer.order.codes_to_bits(codes))

    def join_codes(self, codes: Tensor, splits: Sequence[int]) -> Tensor:
        """Undo `split_codes`: `(..., len(splits))` to int64 `(..., depth)` of this tokenizer.

        Raises:
            ValueError: as `split_codes`.
        """
        return self.quantizer.order.bits_to_codes(_bit_codes(self.config.bits, tuple(splits)).codes_to_bits(codes))

    # -- the contract --------------------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantizer.encode(self.encode_latents(x).permute(0, 2, 3, 1), generator=generator)

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_latents(self.quantizer.decode(tokens.data).permute(0, 3, 1, 2).contiguous())


# -- reading the public release ----------------------------------------------------------------------------------------------------
# The original keeps each network as one flat list; these give our name of each of its members, in order.


def _encoder_places(config: BAEConfig) -> Iterator[str]:
    levels = len(config.multipliers)
    yield "encoder.conv_in"
    for level in range(levels):
        yield from _level_places(f"encoder.down.{level}", config.blocks, level in config.attention_levels)
        if level < levels - 1:
            yield f"encoder.down.{level}.downsample"
    yield from ("encoder.mid.block_1", "encoder.mid.attn_1", "encoder.mid.block_2", "encoder.norm_out", "encoder.conv_out")


def _decoder_places(config: BAEConfig) -> Iterator[str]:
    if config.input_norm:
        yield "input_norm"
    yield from ("decoder.conv_in", "decoder.mid.block_1", "decoder.mid.attn_1", "decoder.mid.block_2")
    for level in reversed(range(len(config.multipliers))):
        yield from _level_places(f"decoder.up.{level}", config.decoder_blocks, level in config.attention_levels)
        if level:
            yield f"decoder.up.{level}.upsample"
    yield from ("decoder.norm_out", "decoder.conv_out")


def _level_places(name: str, blocks: int, attention: bool) -> Iterator[str]:
    for i in range(blocks):
        yield f"{name}.block.{i}"
        if attention:
            yield f"{name}.attn.{i}"


def _same_width(tensors: Mapping[str, Tensor], block: str) -> bool:
    """A block that keeps its width never uses its 1x1 convolution."""
    first = tensors.get(f"{block}.conv1.weight")
    return first is not None and first.shape[0] == first.shape[1]
