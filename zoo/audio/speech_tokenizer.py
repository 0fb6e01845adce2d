"""SpeechTokenizer: eight residual codes every 20 ms, the first of which was taught what is said and the others how.

Paper: Zhang et al., "SpeechTokenizer: Unified Speech Tokenizer for Speech Language Models", arXiv 2308.16692. Behaviour checked
against the class of the package speechtokenizer 1.0.1 (ZhangXInFD/SpeechTokenizer, Apache-2.0) through the tensors of
tests/parity/speech_tokenizer, which that class made from random weights.

    sound (b, 1, s) -> convolutions, LSTM in both directions -> (b, frames, c) -> RVQ -> convolutions, LSTM -> sound

`depth=1` keeps the codes of meaning alone; `semantic_features` are what training compares with HuBERT's.

Differences: `decode` gives exactly the length that came in; items of unequal length give each what it gives alone. The LSTM of the
encoder reads backwards too, so there is no stream, and memory grows with the length.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.mirrored_seanet import SeanetSizes, rename_codebooks, seanet_decoder, seanet_encoder, seanet_names
from zoo.quantizers import RVQ
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["SpeechTokenizer", "SpeechTokenizerConfig"]

@dataclass(frozen=True, kw_only=True)
class SpeechTokenizerConfig(Config):
    """Sizes; the defaults are those of the public model.

    Attributes:
        sample_rate: samples per second.
        width: channels after the first convolution; doubled by every stride.
        strides: of the decoder, from the codes to the sound; the encoder has them in reverse.
        channels: of the quantized vectors.
        semantic_channels: of the teacher's features; equal to `channels` there is no layer between.
        bidirectional: the encoder's LSTM reads in both directions.
        lstm_layers: of both LSTMs, 0 for none.
        residual_kernel: of the residual units.
        residual_layers: residual units before each stride.
        dilation_base: unit j has the dilation `dilation_base ** j`.
        activation: of all convolutions.
        codebook_size: of every level.
        num_codebooks: levels.
    """

    sample_rate: int = 16000
    width: int = 64
    strides: tuple[int, ...] = (8, 5, 4, 2)
    channels: int = 1024
    semantic_channels: int = 768
    bidirectional: bool = True
    lstm_layers: int = 2
    residual_kernel: int = 3
    residual_layers: int = 1
    dilation_base: int = 2
    activation: Literal["elu", "snake"] = "elu"
    codebook_size: int = 1024
    num_codebooks: int = 8

    def __post_init__(self) -> None:
        for name in ("sample_rate", "channels", "semantic_channels", "residual_kernel", "dilation_base", "num_codebooks"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.width >= 2 and self.width % 2 == 0, "width", "an even number")
        self.require(self.codebook_size >= 2, "codebook_size", "at least 2")
        self.require(bool(self.strides) and min(self.strides) >= 1, "strides", "at least one number, all at least 1")
        for name in ("lstm_layers", "residual_layers"):
            self.require(getattr(self, name) >= 0, name, "at least 0")
        self.require(self.activation in ("elu", "snake"), "activation", "elu, snake")

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.strides)

    def seanet(self) -> SeanetSizes:
        """Sizes of both networks."""
        return SeanetSizes(**{f.name: getattr(self, f.name) for f in fields(SeanetSizes)})


class SpeechTokenizer(Tokenizer):
    """Speech of any length to frames of residual codes, and back."""

    family = "speech_tokenizer"
    Config = SpeechTokenizerConfig
    config: SpeechTokenizerConfig

    def __init__(self, config: SpeechTokenizerConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        sizes = config.seanet()
        self.encoder = seanet_encoder(sizes, bidirectional=config.bidirectional)
        self.quantizer = RVQ(
            dim=config.channels,
            codebook_size=config.codebook_size,
            num_codebooks=config.num_codebooks,
            commitment_weight=1.0,
            kmeans_iterations=50,
            revive_below=2.0,
        )
        same = config.channels == config.semantic_channels
        self.semantic = nn.Identity() if same else nn.Linear(config.channels, config.semantic_channels)
        self.decoder = seanet_decoder(sizes)

    @classmethod
    def layout_of(cls, config: SpeechTokenizerConfig) -> dict[str, Any]:
        return {
            "modality": "audio",
            "layout": "1d",
            "discrete": True,
            "residual": True,
            "depth": config.num_codebooks,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,) * config.num_codebooks,
            "downsample": (config.hop, 1, 1),
            "sample_rate": config.sample_rate,
            "frame_rate": config.sample_rate / config.hop,
            "bits_per_second": config.sample_rate / config.hop * config.num_codebooks * math.log2(config.codebook_size),
            "audio_channels": 1,
        }

    def encode_vectors(self, x: Tensor) -> Tensor:
        """Give what the quantizer gets, `(b, frames, channels)`, of sound `(b, 1, s)` of any length."""
        return self.encoder(x).transpose(1, 2)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Decode vectors `(b, frames, channels)` to sound `(b, 1, frames * hop)`."""
        return self.decoder(vectors.transpose(1, 2))

    def semantic_features(self, x: Tensor) -> Tensor:
        """Give the first level's vectors in the space of the teacher, `(b, frames, semantic_channels)`, of sound `(b, 1, s)`.

        The gradient passes the codebook straight through, so training can pull them to HuBERT's features.
        """
        vectors = self.encode_vectors(x)
        first = self.quantizer.decode(self.quantizer.encode(vectors, depth=1))
        return self.semantic(vectors + (first - vectors).detach())

    # -- the contract ------------------------------------------------------------------------------------------------------------

    def _grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Every begun hop is a frame: the layers fill it up themselves."""
        return (-(-size[0] // self.config.hop),)

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantizer.encode(self.encode_vectors(x), depth=depth)

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_vectors(self.quantizer.decode(tokens.data).to(self.dtype))

    # -- the public release's format ---------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> SpeechTokenizerConfig:
        return _config_from_public(config)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: SpeechTokenizerConfig) -> dict[str, Tensor]:
        return _rename_public(tensors)


# -- reading the public release ----------------------------------------------------------------------------------------------------

_PUBLIC = {
    "sample_rate": "sample_rate",
    "n_filters": "width",
    "strides": "strides",
    "dimension": "channels",
    "semantic_dimension": "semantic_channels",
    "bidirectional": "bidirectional",
    "lstm_layers": "lstm_layers",
    "residual_kernel_size": "residual_kernel",
    "n_residual_layers": "residual_layers",
    "dilation_base": "dilation_base",
    "activation": "activation",
    "codebook_size": "codebook_size",
    "n_q": "num_codebooks",
}


def _config_from_public(config: Mapping[str, Any]) -> SpeechTokenizerConfig:
    """Translate the public configuration, which also holds settings of training; those are left out.

    Raises:
        ValueError: a size of the network is missing, or an activation that is not known.
    """
    missing = [key for key in _PUBLIC if key not in config]
    if missing:
        raise ValueError(f"speech_tokenizer: config.json lacks {', '.join(missing)}. Is it that of a SpeechTokenizer?")
    values = {ours: config[key] for key, ours in _PUBLIC.items()}
    values["activation"] = str(values["activation"]).lower()
    return SpeechTokenizerConfig.from_dict(values)


def _rename_public(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold the weight norm and give public tensors our names; a name that is not known stays as it is."""
    out = rename_codebooks(seanet_names(tensors))
    return {key.replace("transform.", "semantic.") if key.startswith("transform.") else key: value for key, value in out.items()}
