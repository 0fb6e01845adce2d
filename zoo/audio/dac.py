"""Descript Audio Codec: convolutions with Snake activations and a residual quantizer in 8 dimensions, 16, 24 and 44.1 kHz.

Paper: Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", arXiv 2306.06546. Original release:
descriptinc/descript-audio-codec (MIT), checked at c7cfc5d. The network is transformers' `DacModel`, weight normalisation folded.

What is mended here: any length comes back exactly (the last hop is filled with zeros, and where odd strides leave the decoder 8
samples short and these are wanted, it gets its last position twice); whole signals and streams run in pieces with the same numbers
at constant memory, where the release's own chunks give other codes; the depth of codes to decode is free.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.config import Config
from zoo.layers.codec_stream import CodecStream
from zoo.layers.dac_steps import dac_decoder_steps, dac_encoder_steps
from zoo.layers.pieces import Chain, ElementStep, run
from zoo.layers.weight_norm import fold_weight_norm
from zoo.quantizers.base import exact_math, working_dtype
from zoo.quantizers.search import nearest, search_table
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["DAC", "DACConfig"]

_DILATIONS = (1, 3, 9)
_PIECE = 128  # positions of a piece of a whole signal: more cost memory, fewer cost time
_SHORT = 160, 96  # positions, to encode and to decode, up to which the modules' own kernels are as fast: measured, 16 to 44.1 kHz


@dataclass(frozen=True, kw_only=True)
class DACConfig(Config):
    """Sizes of the codec. Defaults are those of the 44.1 kHz model at 8 kbps.

    Attributes:
        sample_rate: in Hz.
        encoder_channels: width at the full rate; it doubles at each stride.
        strides: of the encoder, first to last; the decoder has them in reverse.
        latent_channels: between encoder, quantizer and decoder.
        decoder_channels: width at the frame rate; it halves at each stride.
        num_codebooks: residual levels.
        codebook_size: entries of each.
        codebook_channels: dimensions in which the nearest entry is looked for.
    """

    sample_rate: int = 44_100
    encoder_channels: int = 64
    strides: tuple[int, ...] = (2, 4, 8, 8)
    latent_channels: int = 1024
    decoder_channels: int = 1536
    num_codebooks: int = 9
    codebook_size: int = 1024
    codebook_channels: int = 8

    def __post_init__(self) -> None:
        for name in ("sample_rate", "encoder_channels", "latent_channels", "num_codebooks", "codebook_channels"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(bool(self.strides) and min(self.strides) >= 2, "strides", "at least one, each 2 or more")
        halvings = len(self.strides)
        self.require(self.decoder_channels % 2**halvings == 0, "decoder_channels", f"a multiple of 2^{halvings}")
        size = self.codebook_size
        self.require(size >= 2 and size & (size - 1) == 0, "codebook_size", "a power of 2")

    @property
    def hop(self) -> int:
        """Samples of one position."""
        return math.prod(self.strides)

    @property
    def short(self) -> int:
        """Samples that the decoder lacks at the end: an odd stride cuts one more than it should."""
        lack = 0
        for stride in reversed(self.strides):
            lack = lack * stride + stride % 2
        return lack

    @property
    def lookahead(self) -> int:
        """Later positions that a code or a sample may depend on."""
        inside = 3 * sum(_DILATIONS)
        decoder, rate = Fraction(3), 1
        for stride in reversed(self.strides):
            decoder += Fraction(-(-stride // 2), rate * stride)
            rate *= stride
            decoder += Fraction(inside, rate)
        encoder, rate = 3, 1
        for stride in self.strides:
            encoder += (inside + 2 * stride - 1 - -(-stride // 2)) * rate
            rate *= stride
        return math.ceil(max(decoder + Fraction(3, rate), Fraction(encoder + 1, rate)))


# -- the public layout -------------------------------------------------------------------------------------------------------------

_UNIT = {"0": "snake1", "1": "conv1", "2": "snake2", "3": "conv2"}


def _library_name(name: str, count: int) -> str:
    """Name in the library of a tensor of the original release, whose network is numbered lists; `count` is that of the strides."""
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    words = rest.split(".")
    if words[0] != ("block" if side == "encoder" else "model"):
        return name
    place, words = int(words[1]), words[2:]
    if place == 0:
        return ".".join([side, "conv1", *words])
    if place > count:
        return ".".join([side, ("snake1", "conv2")[place - count - 1], *words])
    inner, words = int(words[1]), words[2:]
    units = 0 if side == "encoder" else 2
    if units <= inner < units + 3:
        return ".".join([side, "block", str(place - 1), f"res_unit{inner - units + 1}", _UNIT[words[1]], *words[2:]])
    part = {"encoder": {3: "snake1", 4: "conv1"}, "decoder": {0: "snake1", 1: "conv_t1"}}[side][inner]
    return ".".join([side, "block", str(place - 1), part, *words])


class DAC(Tokenizer):
    """Sound `(b, 1, s)` to codes `(b, n, levels)` and back."""

    family = "dac"
    Config = DACConfig

    def __init__(self, config: DACConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        from transformers import DacConfig, DacModel

        values = DacConfig(
            encoder_hidden_size=config.encoder_channels,
            downsampling_ratios=list(config.strides),
            decoder_hidden_size=config.decoder_channels,
            n_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
            codebook_dim=config.codebook_channels,
            sampling_rate=config.sample_rate,
        )
        values.hidden_size = config.latent_channels  # the library's configuration derives it, which the 16 kbps model does not
        self.model = DacModel(values)

    @classmethod
    def layout_of(cls, config: DACConfig) -> dict[str, Any]:
        frame_rate = config.sample_rate / config.hop
        return {
            "modality": "audio",
            "layout": "1d",
            "discrete": True,
            "residual": config.num_codebooks > 1,
            "depth": config.num_codebooks,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,) * config.num_codebooks,
            "downsample": (config.hop, 1, 1),
            "size_multiple": config.hop,
            "bits_per_second": frame_rate * config.num_codebooks * math.log2(config.codebook_size),
            "sample_rate": config.sample_rate,
            "frame_rate": frame_rate,
            "audio_channels": 1,
            "streaming": True,
            "lookahead_frames": config.lookahead,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> DACConfig:
        """Read transformers' config.json, or the constructor keywords of the original release.

        Raises:
            ValueError: keys are missing, or the decoder does not mirror the encoder.
        """
        library = "encoder_hidden_size" in config
        names = _LIBRARY_KEYS if library else _ORIGINAL_KEYS
        missing = [key for key in names.values() if key not in config]
        if missing:
            raise ValueError(f"dac: config.json has no {', '.join(missing)}. Is it of transformers' DacModel or of dac.DAC?")
        values = {ours: config[theirs] for ours, theirs in names.items()}
        back = config.get("upsampling_ratios" if library else "decoder_rates")
        if back is not None and list(back) != list(values["strides"])[::-1]:
            raise ValueError(f"dac: strides {values['strides']} and {back} back in config.json. Needed: the same, reversed.")
        latent = config.get("hidden_size" if library else "latent_dim")
        values["latent_channels"] = latent or values["encoder_channels"] * 2 ** len(values["strides"])
        return DACConfig.from_dict(values)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: DACConfig) -> dict[str, Tensor]:
        """Fold weight normalisation in any of its layouts; rename the original release's layers to the library's."""
        folded = fold_weight_norm(tensors)
        original = any(name.startswith("decoder.model.") for name in folded)
        count = len(config.strides)
        return {f"model.{_library_name(name, count) if original else name}": value for name, value in folded.items()}

    # -- the verbs ---------------------------------------------------------------------------------------------------------------

    def encoder_chain(self) -> Chain:
        """Samples `(b, 1, s)` to latents `(b, c, n)`, in pieces."""
        return Chain([*dac_encoder_steps(self.model.encoder)])

    def decoder_chain(self) -> Chain:
        """Latents to samples, `short` less than a hop for each position."""
        return Chain([*dac_decoder_steps(self.model.decoder)])

    def quantize(self, latents: Tensor, depth: int | None = None) -> Tensor:
        """Codes `(b, d, n)` of latents `(b, c, n)`: the entry of the smallest angle, level by level."""
        codes, residual, layers = [], latents, self.model.quantizer.quantizers[:depth]
        for layer in layers:
            projected = layer.in_proj(residual).transpose(1, 2)
            working = working_dtype(projected.dtype)
            with exact_math(latents.device.type):
                rows = F.normalize(projected.to(working).flatten(0, 1))
                table = search_table(F.normalize(layer.codebook.weight.to(working)))
                codes.append(nearest(rows, table).view(projected.shape[:2]))
            if len(codes) < len(layers):
                residual = residual - layer.out_proj(layer.codebook(codes[-1]).transpose(1, 2))
        return torch.stack(codes, 1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Latents `(b, c, n)` of codes `(b, d, n)`."""
        layers = self.model.quantizer.quantizers
        parts = [layers[i].out_proj(layers[i].codebook(level).transpose(1, 2)) for i, level in enumerate(codes.unbind(1))]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def _coder(self, depth: int | None) -> Chain:
        return Chain([self.encoder_chain(), ElementStep(lambda latents: self.quantize(latents, depth))])

    def _decoder(self) -> Chain:
        return Chain([ElementStep(self.lookup), self.decoder_chain()])

    def _pad(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Zeros up to a legal size, as the release does."""
        return F.pad(x, (0, size[0] - x.shape[2]))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        hop = self.config.hop
        return run(self._coder(depth), x, piece=_PIECE * hop, short=_SHORT[0] * hop).transpose(1, 2)

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        codes = tokens.data.transpose(1, 2)
        if self._lacks(codes.shape[2], int(tokens.extent[0, 0])):
            codes = torch.cat([codes, codes[..., -1:]], 2)
        return run(self._decoder(), codes, piece=_PIECE, short=_SHORT[1])

    def _lacks(self, positions: int, extent: int) -> bool:
        """So many positions give less than the extent."""
        return extent > positions * self.config.hop - self.config.short

    def _stream(self, *, depth: int | None = None) -> CodecStream:
        if depth is not None:
            self._check_depth(depth)
        return CodecStream(
            self,
            encoder=self._coder(depth),
            decoder=self._decoder(),
            multiple=self.config.hop,
            ending=self._lacks,
        )


_SHARED = dict(num_codebooks="n_codebooks", codebook_size="codebook_size", codebook_channels="codebook_dim")
_LIBRARY_KEYS = dict(
    _SHARED, sample_rate="sampling_rate", encoder_channels="encoder_hidden_size", strides="downsampling_ratios",
    decoder_channels="decoder_hidden_size",
)  # fmt: skip
_ORIGINAL_KEYS = dict(
    _SHARED, sample_rate="sample_rate", encoder_channels="encoder_dim", strides="encoder_rates", decoder_channels="decoder_dim"
)
