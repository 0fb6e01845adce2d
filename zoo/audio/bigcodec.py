"""BigCodec: one code of 8192 every 12.5 ms from a large network, for speech at about a kilobit per second.

Paper: Xin et al., "BigCodec: Pushing the Limits of Low-Bitrate Neural Speech Codec", arXiv 2409.05377. Behaviour checked against
the networks of the package bigcodec 0.0.3 (a copy of Aria-K-Alethia/BigCodec, MIT) through the tensors of tests/parity/bigcodec,
which they made from random weights.

    sound (b, 1, s) -> convolutions, LSTM -> (b, frames, c) -> 8 channels, nearest direction of a codebook -> LSTM, convolutions

Every activation is a Snake with a magnitude of its own, at twice the rate and low-passed before and after, so that its harmonics do
not fold back.

Differences: a length is filled with zeros to whole hops, where the public script adds a whole hop of zeros even if nothing is
missing (one more code at the end); `decode` gives exactly the length that came in. There is no stream, and memory grows with the
length.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.weight_norm import fold_weight_norm
from zoo.quantizers import VQ, Projected
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["BigCodec", "BigCodecConfig"]

_TAPS = 12  # of the low pass around an activation
_TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class BigCodecConfig(Config):
    """Sizes; the defaults are those of the public model.

    Attributes:
        sample_rate: samples per second.
        width: channels after the encoder's first convolution; doubled by every stride.
        strides: of the encoder; the decoder has them in reverse.
        dilations: of the residual units of a block.
        channels: of the quantized vectors.
        decoder_width: channels after the decoder's first convolution; halved by every stride.
        lstm_layers: of both LSTMs, 0 for none.
        codebook_size: entries of the codebook.
        codebook_dim: channels in which codes are compared.
    """

    sample_rate: int = 16000
    width: int = 48
    strides: tuple[int, ...] = (2, 2, 2, 5, 5)
    dilations: tuple[int, ...] = (1, 3, 9)
    channels: int = 1024
    decoder_width: int = 1536
    lstm_layers: int = 2
    codebook_size: int = 8192
    codebook_dim: int = 8

    def __post_init__(self) -> None:
        for name in ("sample_rate", "width", "channels", "codebook_dim"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.codebook_size >= 2, "codebook_size", "at least 2")
        self.require(self.lstm_layers >= 0, "lstm_layers", "at least 0")
        self.require(bool(self.strides) and min(self.strides) >= 2, "strides", "at least one number, all at least 2")
        self.require(bool(self.dilations) and min(self.dilations) >= 1, "dilations", "at least one number, all at least 1")
        halvings = 2 ** len(self.strides)
        fits = self.decoder_width >= 1 and self.decoder_width % halvings == 0
        self.require(fits, "decoder_width", f"a multiple of {halvings}")

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.strides)


# -- modules -----------------------------------------------------------------------------------------------------------------------


def low_pass() -> Tensor:
    """Half-band low pass `(1, 1, 12)`: a sinc under a Kaiser window for a transition of 0.3 of the sample rate, of sum 1.

    Kaiser's formula gives the window's shape from the attenuation that so many taps reach.
    """
    attenuation = 2.285 * (_TAPS // 2 - 1) * math.pi * 4 * 0.3 + 7.95
    window = torch.kaiser_window(_TAPS, beta=0.1102 * (attenuation - 8.7), periodic=False, device="cpu")
    time = torch.arange(_TAPS, device="cpu") - (_TAPS - 1) / 2
    taps = 0.5 * window * torch.sinc(0.5 * time)
    return (taps / taps.sum()).view(1, 1, _TAPS)


class _Activation(nn.Module):
    """x + sin(exp(alpha) x)^2 / exp(beta), at twice the rate between two low passes."""

    taps: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("taps", low_pass().to(torch.get_default_device()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t = x.shape
        edge = _TAPS // 2 - 1
        rows = F.pad(x.reshape(b * c, 1, t), (edge, edge), mode="replicate")
        twice = F.conv_transpose1d(rows, 2 * self.taps, stride=2)
        cut = 2 * edge + (_TAPS - 2) // 2
        twice = twice[..., cut:-cut].reshape(b, c, 2 * t)
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]
        bent = torch.addcmul(twice, torch.sin(twice * alpha).square(), (beta + _TINY).reciprocal())
        rows = F.pad(bent.reshape(b * c, 1, 2 * t), (edge, edge + 1), mode="replicate")
        return F.conv1d(rows, self.taps, stride=2).reshape(b, c, t)


class _Unit(nn.Module):
    """Residual unit: activation, convolution of kernel 7, activation, mixing of channels."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _Activation(channels),
            nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation),
            _Activation(channels),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class _Block(nn.Module):
    """Residual units at the higher rate, and a change of rate: after them in the encoder, before them in the decoder."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Lstm(nn.Module):
    """LSTM over time, with its input added."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).contiguous()
        return (self.lstm(rows)[0] + rows).transpose(1, 2)


def _encoder(config: BigCodecConfig) -> nn.Sequential:
    """Sound `(b, 1, s)` to vectors `(b, channels, frames)`; s is a multiple of the hop."""
    width = config.width
    layers: list[nn.Module] = [nn.Conv1d(1, width, 7, padding=3)]
    for stride in config.strides:
        units = [_Unit(width, dilation) for dilation in config.dilations]
        down = nn.Conv1d(width, 2 * width, 2 * stride, stride=stride, padding=-(-stride // 2))
        layers.append(_Block(*units, _Activation(width), down))
        width *= 2
    if config.lstm_layers:
        layers.append(_Lstm(width, config.lstm_layers))
    return nn.Sequential(*layers, _Activation(width), nn.Conv1d(width, config.channels, 3, padding=1))


def _decoder(config: BigCodecConfig) -> nn.Sequential:
    """Vectors `(b, channels, frames)` to sound `(b, 1, frames * hop)`."""
    width = config.decoder_width
    layers: list[nn.Module] = [nn.Conv1d(config.channels, width, 7, padding=3)]
    if config.lstm_layers:
        layers.append(_Lstm(width, config.lstm_layers))
    for stride in reversed(config.strides):
        half, pad = width // 2, -(-stride // 2)
        up = nn.ConvTranspose1d(width, half, 2 * stride, stride=stride, padding=pad, output_padding=stride % 2)
        layers.append(_Block(_Activation(width), up, *(_Unit(half, dilation) for dilation in config.dilations)))
        width = half
    return nn.Sequential(*layers, _Activation(width), nn.Conv1d(width, 1, 7, padding=3), nn.Tanh())


class BigCodec(Tokenizer):
    """Speech of any length to one code a frame, and back."""

    family = "bigcodec"
    Config = BigCodecConfig
    config: BigCodecConfig

    def __init__(self, config: BigCodecConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.encoder = _encoder(config)
        inner = VQ(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            learning="gradient",
            distance="cosine_search",
            commitment_weight=0.25,
            codebook_weight=1.0,
            kmeans_iterations=0,
        )
        self.quantizer = Projected(inner, dim=config.channels)
        self.decoder = _decoder(config)

    @classmethod
    def layout_of(cls, config: BigCodecConfig) -> dict[str, Any]:
        return {
            "modality": "audio",
            "layout": "1d",
            "discrete": True,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,),
            "downsample": (config.hop, 1, 1),
            "size_multiple": config.hop,
            "sample_rate": config.sample_rate,
            "frame_rate": config.sample_rate / config.hop,
            "bits_per_second": config.sample_rate / config.hop * math.log2(config.codebook_size),
            "audio_channels": 1,
        }

    def encode_vectors(self, x: Tensor) -> Tensor:
        """Give what the quantizer gets, `(b, frames, channels)`, of sound `(b, 1, s)` of whole hops."""
        return self.encoder(x).transpose(1, 2)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Decode vectors `(b, frames, channels)` to sound `(b, 1, frames * hop)`."""
        return self.decoder(vectors.transpose(1, 2))

    # -- the contract ------------------------------------------------------------------------------------------------------------

    def _pad(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Pad with zeros, as the public script does."""
        return F.pad(x, (0, size[0] - x.shape[2]))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantizer.encode(self.encode_vectors(x))

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_vectors(self.quantizer.decode(tokens.data).to(self.dtype))

    # -- the public release's format ---------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> BigCodecConfig:
        return _config_from_public(config)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: BigCodecConfig) -> dict[str, Tensor]:
        return _rename_public(tensors)


# -- reading the public release ----------------------------------------------------------------------------------------------------

_PUBLIC = {
    "ngf": "width",
    "up_ratios": "strides",
    "dilations": "dilations",
    "out_channels": "channels",
    "upsample_initial_channel": "decoder_width",
    "rnn_num_layers": "lstm_layers",
    "codebook_size": "codebook_size",
    "codebook_dim": "codebook_dim",
}
_FIXED = {"rnn_bidirectional": False, "vq_num_quantizers": 1}


def _config_from_public(config: Mapping[str, Any]) -> BigCodecConfig:
    """Translate the constructor arguments of the public networks; one that is absent has the public model's value.

    Raises:
        ValueError: an unknown key, no known one, or a value that this family does not cover.
    """
    known = (*_PUBLIC, *_FIXED, "use_rnn")
    unknown = [key for key in config if key not in known]
    if unknown or not config:
        what = f"the unknown keys {', '.join(unknown)}" if unknown else "no key"
        raise ValueError(f"bigcodec: config.json holds {what}. Known: {', '.join(known)}.")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise ValueError(f"bigcodec: {key}={config[key]!r} in config.json. Known: {value!r}.")
    values = {ours: config[key] for key, ours in _PUBLIC.items() if key in config}
    if not config.get("use_rnn", True):
        values["lstm_layers"] = 0
    return BigCodecConfig.from_dict(values)


# The released pickle holds one dictionary for each network; the package's file has both in one.
_STARTS = {
    "CodecEnc.block.": "encoder.",
    "encoder.block.": "encoder.",
    "generator.model.": "decoder.",
    "decoder.model.": "decoder.",
    "generator.quantizer.layers.0.": "quantizer.",
    "decoder.quantizer.layers.0.": "quantizer.",
}
_QUANTIZER = {
    "quantizer.in_proj.": "quantizer.project_in.",
    "quantizer.out_proj.": "quantizer.project_out.",
    "quantizer._codebook.weight": "quantizer.quantizer.codebook",
}


def _rename_public(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold the weight norm, leave the fixed low passes out and give public tensors our names; unknown names stay as they are."""
    out: dict[str, Tensor] = {}
    for key, value in fold_weight_norm(tensors).items():
        if key.endswith((".upsample.filter", ".downsample.lowpass.filter")):
            continue
        new = key.replace(".act.alpha", ".alpha").replace(".act.beta", ".beta")
        for table in (_STARTS, _QUANTIZER):
            start = next((start for start in table if new.startswith(start)), "")
            new = table.get(start, "") + new.removeprefix(start)
        out[new] = value
    codebook = out.get("quantizer.quantizer.codebook")
    if codebook is not None:
        out["quantizer.quantizer.cluster_size"] = torch.ones(len(codebook))
        out["quantizer.quantizer.initialized"] = torch.tensor(True)
        out["quantizer.quantizer.clock.steps"] = torch.tensor(0)
    return out
