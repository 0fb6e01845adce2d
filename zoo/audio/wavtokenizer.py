"""WavTokenizer: one code of 4096 for 1/75 or 1/40 of a second of speech, music or any sound, decoded through a spectrum.

Paper: Ji et al., "WavTokenizer: an Efficient Acoustic Discrete Codec Tokenizer for Audio Language Modeling", arXiv 2408.16532; the
decoder is Siuzdak's Vocos, arXiv 2306.00814, behind residual blocks and attention. Written after jishengpeng/WavTokenizer (MIT),
for which no package exists. It was checked in parts (tests/parity/wavtokenizer), never as a whole and never with the public
weights: the encoder with the class of the package speechtokenizer, the decoder without its first blocks with that of the package
vocos, and those blocks with a form written from their formulas.

    sound (b, 1, s) -> convolutions, LSTM -> (b, frames, c) -> nearest code
    -> residual blocks and attention -> ConvNeXt blocks -> magnitude and phase -> inverse Fourier transform -> sound

Differences: `decode` gives exactly the length that came in. The attention and the group norms see the whole signal, so there is no
stream, and the time of a long signal grows with its square.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.mirrored_seanet import SeanetSizes, rename_codebooks, seanet_encoder, seanet_names
from zoo.quantizers import RVQ
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["WavTokenizer", "WavTokenizerConfig"]

_EPS = 1e-6  # of every norm
_LOUDEST = 100.0  # magnitude of a frequency at which it is clipped
_OVERLAP = 4  # hops of a Fourier window


@dataclass(frozen=True, kw_only=True)
class WavTokenizerConfig(Config):
    """Sizes; the defaults are those of the models with 75 codes a second.

    Attributes:
        sample_rate: samples per second.
        width: of the encoder's first convolution; doubled by every stride.
        strides: the encoder has them in reverse.
        channels: of the quantized vectors.
        lstm_layers: of the encoder.
        codebook_size: entries of the codebook.
        decoder_width: channels of the decoder.
        mlp_width: of the ConvNeXt blocks.
        blocks: ConvNeXt blocks.
        norm_groups: of the group norms before them.
        conditions: rows of the conditional norms; in training these were bit rates.
        condition: the row that is used.
    """

    sample_rate: int = 24000
    width: int = 32
    strides: tuple[int, ...] = (8, 5, 4, 2)
    channels: int = 512
    lstm_layers: int = 2
    codebook_size: int = 4096
    decoder_width: int = 768
    mlp_width: int = 2304
    blocks: int = 12
    norm_groups: int = 32
    conditions: int = 4
    condition: int = 0

    def __post_init__(self) -> None:
        for name in ("sample_rate", "channels", "mlp_width", "blocks", "norm_groups", "conditions"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.width >= 2 and self.width % 2 == 0, "width", "an even number")
        self.require(self.codebook_size >= 2, "codebook_size", "at least 2")
        self.require(self.lstm_layers >= 0, "lstm_layers", "at least 0")
        self.require(bool(self.strides) and min(self.strides) >= 1, "strides", "at least one number, all at least 1")
        self.require(self.hop % 2 == 0, "strides", "numbers with an even product")
        self.require(self.decoder_width % self.norm_groups == 0, "decoder_width", f"a multiple of norm_groups={self.norm_groups}")
        self.require(0 <= self.condition < self.conditions, "condition", f"0..{self.conditions - 1}")

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.strides)


# -- modules -----------------------------------------------------------------------------------------------------------------------


def _group_norm(config: WavTokenizerConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_groups, config.decoder_width, eps=_EPS)


class _Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.norm1, self.norm2 = _group_norm(config), _group_norm(config)
        self.conv1, self.conv2 = (nn.Conv1d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class _Attention(nn.Module):
    """One head over all positions; x + out(attention(norm(x)))."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.norm = _group_norm(config)
        self.q, self.k, self.v, self.out = (nn.Conv1d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))


class _ConditionalNorm(nn.Module):
    """Layer norm with a scale and a shift for each condition."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        self.row = config.condition
        self.scale = nn.Parameter(torch.ones(config.conditions, config.decoder_width))
        self.shift = nn.Parameter(torch.zeros(config.conditions, config.decoder_width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(b, t, c)`."""
        return F.layer_norm(x, x.shape[-1:], self.scale[self.row], self.shift[self.row], _EPS)


class _ConvNext(nn.Module):
    """x + gamma * mlp(norm(depthwise convolution(x)))."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.conv = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = _ConditionalNorm(config)
        self.up = nn.Linear(width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1 / config.blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x).transpose(1, 2))
        return x + (self.gamma * self.down(F.gelu(self.up(h)))).transpose(1, 2)


class SpectrumDecoder(nn.Module):
    """Vectors `(b, channels, frames)` to sound `(b, 1, frames * hop)`."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.conv_in = nn.Conv1d(config.channels, width, 7, padding=3)
        self.mixing = nn.Sequential(
            _Residual(config), _Residual(config), _Attention(config), _Residual(config), _Residual(config), _group_norm(config)
        )
        self.norm_in = _ConditionalNorm(config)
        self.blocks = nn.ModuleList(_ConvNext(config) for _ in range(config.blocks))
        self.norm_out = nn.LayerNorm(width, eps=_EPS)
        self.hop, self.window = config.hop, _OVERLAP * config.hop
        self.to_spectrum = nn.Linear(width, self.window + 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixing(self.conv_in(x))
        x = self.norm_in(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        magnitude, phase = self.to_spectrum(self.norm_out(x.transpose(1, 2))).chunk(2, -1)
        return self.synthesise(magnitude.exp().clamp(max=_LOUDEST), phase)[:, None]

    def synthesise(self, magnitude: Tensor, phase: Tensor) -> Tensor:
        """Turn `(b, frames, window / 2 + 1)` into `(b, frames * hop)`: overlapped windows, divided by the sum of their squares."""
        dtype = magnitude.dtype if magnitude.dtype == torch.float64 else torch.float32
        spectrum = torch.polar(magnitude.to(dtype), phase.to(dtype))
        window = torch.hann_window(self.window, device=phase.device, dtype=dtype)
        pieces = torch.fft.irfft(spectrum, self.window, dim=-1) * window
        total = self._overlap(pieces) / self._overlap((window * window).expand(1, pieces.shape[1], -1))
        return total.to(magnitude.dtype)

    def _overlap(self, pieces: Tensor) -> Tensor:
        """Add windows `(b, frames, window)` a hop apart, and cut what reaches beyond the frames at both ends."""
        b, frames, _ = pieces.shape
        parts = pieces.unflatten(2, (_OVERLAP, self.hop))
        total = pieces.new_zeros(b, frames + _OVERLAP - 1, self.hop)
        for i in range(_OVERLAP):
            total = total + F.pad(parts[:, :, i], (0, 0, i, _OVERLAP - 1 - i))
        edge = (self.window - self.hop) // 2
        return total.flatten(1)[:, edge : edge + frames * self.hop]


class WavTokenizer(Tokenizer):
    """Sound of any length to one code a frame, and back."""

    family = "wavtokenizer"
    Config = WavTokenizerConfig
    config: WavTokenizerConfig

    def __init__(self, config: WavTokenizerConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        sizes = SeanetSizes(
            width=config.width, strides=config.strides, channels=config.channels, lstm_layers=config.lstm_layers
        )
        self.encoder = seanet_encoder(sizes)
        self.quantizer = RVQ(
            dim=config.channels,
            codebook_size=config.codebook_size,
            num_codebooks=1,
            commitment_weight=1.0,
            kmeans_iterations=200,
            revive_below=2.0,
        )
        self.decoder = SpectrumDecoder(config)

    @classmethod
    def layout_of(cls, config: WavTokenizerConfig) -> dict[str, Any]:
        return {
            "modality": "audio",
            "layout": "1d",
            "discrete": True,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,),
            "downsample": (config.hop, 1, 1),
            "sample_rate": config.sample_rate,
            "frame_rate": config.sample_rate / config.hop,
            "bits_per_second": config.sample_rate / config.hop * math.log2(config.codebook_size),
            "audio_channels": 1,
        }

    def encode_vectors(self, x: Tensor) -> Tensor:
        """Give what the quantizer gets, `(b, frames, channels)`, of sound `(b, 1, s)` of any length."""
        return self.encoder(x).transpose(1, 2)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Decode vectors `(b, frames, channels)` to sound `(b, 1, frames * hop)`."""
        return self.decoder(vectors.transpose(1, 2))

    # -- the contract ------------------------------------------------------------------------------------------------------------

    def _grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Every begun hop is a frame: the layers fill it up themselves."""
        return (-(-size[0] // self.config.hop),)

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantizer.encode(self.encode_vectors(x))

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_vectors(self.quantizer.decode(tokens.data).to(self.dtype))

    # -- the public release's format ---------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> WavTokenizerConfig:
        return _config_from_public(config)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: WavTokenizerConfig) -> dict[str, Tensor]:
        return _rename_public(tensors)


# -- reading the public release ----------------------------------------------------------------------------------------------------

_PUBLIC = {
    "feature_extractor": {"dowmsamples": "strides", "vq_bins": "codebook_size"},
    "backbone": {
        "input_channels": "channels",
        "dim": "decoder_width",
        "intermediate_dim": "mlp_width",
        "num_layers": "blocks",
        "adanorm_num_embeddings": "conditions",
    },
}


def _config_from_public(config: Mapping[str, Any]) -> WavTokenizerConfig:
    """Translate the public YAML, given as JSON: its `model.init_args`, or the parts of that.

    Raises:
        ValueError: a part that is missing, several codebooks, or a head with other windows than four hops.
    """
    values = config.get("model", {}).get("init_args", config)
    out: dict[str, Any] = {}
    for part, names in _PUBLIC.items():
        found = values.get(part, {}).get("init_args", {})
        missing = [key for key in names if key not in found]
        if missing:
            raise ValueError(f"wavtokenizer: {part} in config.json lacks {', '.join(missing)}. Is it that of a WavTokenizer?")
        out |= {ours: found[key] for key, ours in names.items()}
    books = values["feature_extractor"]["init_args"].get("num_quantizers", 1)
    if books != 1:
        raise ValueError(f"wavtokenizer: num_quantizers={books!r} in config.json. Known: 1.")
    made = WavTokenizerConfig.from_dict({**out, "sample_rate": values.get("sample_rate", 24000)})
    head = values.get("head", {}).get("init_args", {})
    sizes = {"n_fft": _OVERLAP * made.hop, "hop_length": made.hop, "padding": "same"}
    for key, value in sizes.items():
        if head.get(key, value) != value:
            raise ValueError(f"wavtokenizer: head.{key}={head[key]!r} in config.json. Known for these strides: {value!r}.")
    return made


_STARTS = {
    "backbone.embed.": "decoder.conv_in.",
    "backbone.pos_net.": "decoder.mixing.",
    "backbone.norm.": "decoder.norm_in.",
    "backbone.convnext.": "decoder.blocks.",
    "backbone.final_layer_norm.": "decoder.norm_out.",
    "head.out.": "decoder.to_spectrum.",
}
_INSIDE = {
    ".dwconv.": ".conv.",
    ".pwconv1.": ".up.",
    ".pwconv2.": ".down.",
    ".scale.weight": ".scale",
    ".shift.weight": ".shift",
    ".proj_out.": ".out.",
}
_EXTRACTOR = "feature_extractor.encodec."


def _rename_public(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep encoder, codebook, backbone and head, and give them our names.

    Left out: the discriminators and losses of training, EnCodec's own decoder, which is never used, and the constant window.
    """
    out: dict[str, Tensor] = {}
    extractor: dict[str, Tensor] = {}
    for key, value in tensors.items():
        start = next((start for start in _STARTS if key.startswith(start)), None)
        if start is not None:
            new = _STARTS[start] + key.removeprefix(start)
            for old, ours in _INSIDE.items():
                new = new.replace(old, ours)
            out[new] = value
        elif key.startswith((f"{_EXTRACTOR}encoder.", f"{_EXTRACTOR}quantizer.")):
            extractor[key.removeprefix(_EXTRACTOR)] = value
    return out | rename_codebooks(seanet_names(extractor))
