"""Mimi: causal SEANet and transformers, 12.5 positions a second, a semantic codebook and up to 31 acoustic ones beside it.

Paper: Défossez et al., "Moshi: a speech-text foundation model for real-time dialogue", arXiv 2410.00037. Original release:
kyutai-labs/moshi (MIT code), checked against PyPI moshi 0.2.13. The network is transformers' `MimiModel`.

What is mended here: any length comes back exactly; streams give the numbers of the whole signal both ways, also past the window of
the attention, because keys are kept for the window and the piece together (`WindowAttention`); hours run at constant memory. On
signals that are no whole number of frames the original pads the samples and the library pads in every layer, so the last position
differs; `padding` says which, and each public format is read with its own.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.codec_stream import CodecStream
from zoo.layers.pieces import Chain, ElementStep, Step, run
from zoo.layers.seanet import Book, conv_step, prepared, residual_codes, seanet_decoder, seanet_encoder, transpose_step
from zoo.layers.weight_norm import fold_weight_norm
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["Mimi", "MimiConfig"]

_PIECE = 64  # positions of a piece of a whole signal
_SHORT = 3  # positions up to which the modules' own kernels are as fast: measured
_SMALLEST_USAGE = 1e-5


@dataclass(frozen=True, kw_only=True)
class MimiConfig(Config):
    """Sizes of the codec. Defaults are those of the public model.

    Attributes:
        sample_rate: in Hz.
        width: channels at the full rate; it doubles at each stride of the encoder.
        strides: of the decoder, first to last; the encoder has them in reverse. Two of its steps make one position.
        latent_channels: of the transformers and the latents.
        num_codebooks: the semantic ones and the residual acoustic levels.
        num_semantic: codebooks of the semantic quantizer, which come first.
        codebook_size: entries of each.
        codebook_channels: of their vectors.
        residual_layers, residual_kernel, dilation_growth, compress: of the residual blocks.
        kernel, last_kernel: of the first and the last convolution.
        layers, heads, mlp_width: of each transformer.
        window: steps (two a position) that a step attends to, itself included.
        rope_base: of the rotary positions.
        norm_eps: of the layer norms.
        layer_scale: at which a fresh transformer's branches start.
        padding: "layers" fills the end of the signal inside each layer, as transformers does; "frames" fills the last frame with
            silence first, as the original does.
    """

    sample_rate: int = 24_000
    width: int = 64
    strides: tuple[int, ...] = (8, 6, 5, 4)
    latent_channels: int = 512
    num_codebooks: int = 32
    num_semantic: int = 1
    codebook_size: int = 2048
    codebook_channels: int = 256
    residual_layers: int = 1
    residual_kernel: int = 3
    dilation_growth: int = 2
    compress: int = 2
    kernel: int = 7
    last_kernel: int = 3
    layers: int = 8
    heads: int = 8
    mlp_width: int = 2048
    window: int = 250
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    layer_scale: float = 0.01
    padding: Literal["layers", "frames"] = "layers"

    def __post_init__(self) -> None:
        names = ("sample_rate", "width", "latent_channels", "codebook_channels", "residual_layers", "residual_kernel", "compress")
        for name in (*names, "dilation_growth", "kernel", "last_kernel", "layers", "heads", "mlp_width", "window"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(bool(self.strides) and min(self.strides) >= 2, "strides", "at least one, each 2 or more")
        self.require(1 <= self.num_semantic < self.num_codebooks, "num_semantic", "at least 1, less than num_codebooks")
        size = self.codebook_size
        self.require(size >= 2 and size & (size - 1) == 0, "codebook_size", "a power of 2")
        self.require(self.latent_channels % (2 * self.heads) == 0, "latent_channels", f"a multiple of twice {self.heads} heads")
        steps = math.prod(self.strides)
        self.require(self.sample_rate % steps == 0, "sample_rate", f"a multiple of {steps}, the product of the strides")
        self.require(self.codebook_channels != self.latent_channels, "codebook_channels", "another number than latent_channels")
        self.require(self.padding in ("layers", "frames"), "padding", "layers, frames")

    @property
    def hop(self) -> int:
        """Samples of one position."""
        return 2 * math.prod(self.strides)


# -- attention over a window -------------------------------------------------------------------------------------------------------


class _Places(NamedTuple):
    """What the attention needs to know of a piece's positions."""

    cos: Tensor  # (count, head)
    sin: Tensor
    seen: Tensor  # (count, kept + count), bool


class _Window:
    """The places of a piece, which all layers of a transformer share: each step sees itself and the `size` - 1 before it.

    Angles of the rotary positions are computed in float64: they stay exact after hours.
    """

    def __init__(self, size: int, rope_base: float) -> None:
        self.size, self.rope_base = size, rope_base
        self.key: tuple[int, int, int] | None = None
        self.places: _Places | None = None

    def at(self, position: int, count: int, kept: int, like: Tensor) -> _Places:
        """The places of `count` steps from a position on, before which so many are kept; for queries `like (b, heads, n, head)`."""
        if self.places is None or self.key != (position, count, kept):
            size, device = like.shape[3], like.device
            rates = self.rope_base ** -(torch.arange(0, size, 2, device=device, dtype=torch.float64) / size)
            angles = torch.arange(position, position + count, device=device, dtype=torch.float64)[:, None] * rates
            angles = torch.cat([angles] * 2, 1)
            distance = torch.arange(count, device=device)[:, None] + kept - torch.arange(kept + count, device=device)
            seen = (distance >= 0) & (distance < self.size)
            self.key = position, count, kept
            self.places = _Places(angles.cos().to(like.dtype), angles.sin().to(like.dtype), seen)
        return self.places


class WindowAttention(Step):
    """One layer of the library's transformer, piece by piece.

    The keys and values of the steps that the window reaches back to are kept beside those of the piece, so that its first steps too
    see all of their window.
    """

    def __init__(self, layer: Any, *, heads: int, window: _Window) -> None:
        self.layer, self.heads, self.window = layer, heads, window
        self.position = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def push(self, x: Tensor | None, *, last: bool) -> Tensor | None:
        if x is None:
            return None
        layer, parts = self.layer, []
        for piece in x.transpose(1, 2).split(max(self.window.size, 64), 1):  # long pieces would make tables of scores for nothing
            h = piece + layer.self_attn_layer_scale(self._attend(layer.input_layernorm(piece)))
            parts.append(h + layer.mlp_layer_scale(layer.mlp(layer.post_attention_layernorm(h))))
        return torch.cat(parts, 1).transpose(1, 2)

    def _attend(self, h: Tensor) -> Tensor:
        attention, count = self.layer.self_attn, h.shape[1]
        rows = [project(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for project in self._projections(attention)]
        kept = 0 if self.keys is None else self.keys.shape[2]
        cos, sin, seen = self.window.at(self.position, count, kept, rows[0])
        q, k, v = _turned(rows[0], cos, sin), _turned(rows[1], cos, sin), rows[2]
        if self.keys is not None and self.values is not None:
            k, v = torch.cat([self.keys, k], 2), torch.cat([self.values, v], 2)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        first = max(0, k.shape[2] - self.window.size + 1)
        self.keys, self.values = k[:, :, first:], v[:, :, first:]
        self.position += count
        return attention.o_proj(y.transpose(1, 2).flatten(2))

    @staticmethod
    def _projections(attention: Any) -> tuple[nn.Module, ...]:
        return attention.q_proj, attention.k_proj, attention.v_proj


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


# -- the public layouts ------------------------------------------------------------------------------------------------------------

_HALVES = (
    (r"^encoder\.layers\.", "encoder.encoder_seanet.layers."),
    (r"^decoder\.layers\.", "decoder.decoder_seanet.layers."),
    (r"^(encoder|decoder)_transformer\.", r"\1.\1_transformer."),
    (r"^downsample\.", "encoder.downsample."),
    (r"^upsample\.", "decoder.upsample."),
)
_ORIGINAL = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(conv|convtr)(\.\1)+\.", ".conv."),
    (r"_transformer\.transformer\.", "_transformer."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.layer_scale_1\.", ".self_attn_layer_scale."),
    (r"\.layer_scale_2\.", ".mlp_layer_scale."),
    (r"\.linear1\.", ".mlp.fc1."),
    (r"\.linear2\.", ".mlp.fc2."),
    (r"\.out_proj\.", ".o_proj."),
    (r"\.rvq_first\.", ".semantic_residual_vector_quantizer."),
    (r"\.rvq_rest\.", ".acoustic_residual_vector_quantizer."),
    (r"\.vq\.layers\.", ".layers."),
    (r"\._codebook\._initialized$", ".codebook.initialized"),
    (r"\._codebook\.embedding_sum$", ".codebook.embed_sum"),
    (r"\._codebook\.", ".codebook."),
)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def _split_rows(fused: Tensor, heads: int) -> dict[str, Tensor]:
    """Queries, keys and values of the original's one matrix; rotary pairs go from neighbours to the two halves of a head."""
    q, k, v = fused.chunk(3)

    def halves(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()

    return {"q_proj": halves(q), "k_proj": halves(k), "v_proj": v.contiguous()}


class Mimi(Tokenizer):
    """Sound `(b, 1, s)` to codes `(b, n, levels)`, the semantic one first, and back."""

    family = "mimi"
    Config = MimiConfig

    def __init__(self, config: MimiConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        from transformers import MimiConfig as LibraryConfig
        from transformers import MimiModel

        self.model = MimiModel(
            LibraryConfig(
                sampling_rate=config.sample_rate,
                hidden_size=config.latent_channels,
                num_filters=config.width,
                num_residual_layers=config.residual_layers,
                upsampling_ratios=list(config.strides),
                kernel_size=config.kernel,
                last_kernel_size=config.last_kernel,
                residual_kernel_size=config.residual_kernel,
                dilation_growth_rate=config.dilation_growth,
                compress=config.compress,
                codebook_size=config.codebook_size,
                codebook_dim=config.codebook_channels,
                num_quantizers=config.num_codebooks,
                vector_quantization_hidden_dimension=config.codebook_channels,
                num_semantic_quantizers=config.num_semantic,
                upsample_groups=config.latent_channels,
                num_hidden_layers=config.layers,
                intermediate_size=config.mlp_width,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                head_dim=config.latent_channels // config.heads,
                norm_eps=config.norm_eps,
                sliding_window=config.window,
                layer_scale_initial_scale=config.layer_scale,
                rope_parameters={"rope_theta": config.rope_base, "rope_type": "default"},
                frame_rate=config.sample_rate / config.hop,
            )
        )
        self._kept: tuple[tuple[Any, ...], list[Book]] | None = None  # codebooks as they were prepared, and their state then
        for codebook in self._codebooks():  # the library leaves fresh codebooks at zero, where all entries are the same
            codebook.embed_sum.normal_()

    def _codebooks(self) -> list[Any]:
        quantizer = self.model.quantizer
        parts = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
        return [layer.codebook for part in parts for layer in part.layers]

    @classmethod
    def layout_of(cls, config: MimiConfig) -> dict[str, Any]:
        frame_rate = config.sample_rate / config.hop
        return {
            "modality": "audio",
            "layout": "1d",
            "discrete": True,
            "residual": True,
            "depth": config.num_codebooks,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,) * config.num_codebooks,
            "downsample": (config.hop, 1, 1),
            "bits_per_second": frame_rate * config.num_codebooks * math.log2(config.codebook_size),
            "sample_rate": config.sample_rate,
            "frame_rate": frame_rate,
            "audio_channels": 1,
            "causal": True,
            "streaming": True,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> MimiConfig:
        """Read transformers' config.json, or the constructor groups of the original release (whose files carry none).

        Raises:
            ValueError: keys are missing, or a value that this family does not cover.
        """
        library = "sampling_rate" in config
        known, only = (_LIBRARY_KEYS, _LIBRARY_ONLY) if library else (_ORIGINAL_KEYS, _ORIGINAL_ONLY)
        missing = [path for path in known.values() if _at(config, path) is None]
        if missing:
            raise ValueError(f"mimi: config.json has no {', '.join(missing)}. Is it of transformers' MimiModel or the original?")
        for path, wanted in only.items():
            if (found := _at(config, path)) not in (None, wanted):
                raise ValueError(f"mimi: {path}={found!r} in config.json. This implementation knows: {wanted!r}.")
        values = {name: _at(config, path) for name, path in known.items()}
        if library:
            values["rope_base"] = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", 10_000.0))
        return MimiConfig.from_dict({**values, "padding": "layers" if library else "frames"})

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: MimiConfig) -> dict[str, Tensor]:
        """Name the tensors of the Hub's file, or of the original release, as the library's modules do."""
        out: dict[str, Tensor] = {}
        for name, value in fold_weight_norm(tensors).items():
            name = _renamed(name, _ORIGINAL) if any(key.startswith("encoder.model.") for key in tensors) else name
            name = f"model.{_renamed(name, _HALVES)}"
            if name.endswith("self_attn.in_proj_weight"):
                for part, rows in _split_rows(value, config.heads).items():
                    out[name.replace("in_proj_weight", f"{part}.weight")] = rows
            else:
                out[name] = value
        return out

    # -- the verbs ---------------------------------------------------------------------------------------------------------------

    def _attention(self, transformer: Any) -> Iterator[Step]:
        window = _Window(self.config.window, self.config.rope_base)
        for layer in transformer.layers:
            yield WindowAttention(layer, heads=self.config.heads, window=window)

    def encoder_chain(self) -> Chain:
        """Samples `(b, 1, s)` to latents `(b, c, n)`, in pieces."""
        net = self.model.encoder
        attention = self._attention(net.encoder_transformer)
        return Chain([seanet_encoder([*net.encoder_seanet.layers]), *attention, conv_step(net.downsample)])

    def decoder_chain(self) -> Chain:
        """Latents to samples, a hop for each position."""
        net = self.model.decoder
        attention = self._attention(net.decoder_transformer)
        return Chain([transpose_step(net.upsample), *attention, seanet_decoder([*net.decoder_seanet.layers])])

    def quantize(self, latents: Tensor, depth: int | None = None) -> Tensor:
        """Codes `(b, d, n)` of latents `(b, c, n)`: both quantizers look at the same latents."""
        return self._quantizer(depth)(latents)

    def lookup(self, codes: Tensor) -> Tensor:
        """Latents `(b, c, n)` of codes `(b, d, n)`."""
        return self._vectors()(codes)

    def _halves(self) -> tuple[tuple[Any, slice], ...]:
        """Both quantizers with their stretch of the levels."""
        quantizer, semantic = self.model.quantizer, self.config.num_semantic
        first, rest = quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer
        return (first, slice(0, semantic)), (rest, slice(semantic, None))

    def _quantizer(self, depth: int | None) -> Callable[[Tensor], Tensor]:
        """`quantize` for many pieces."""
        books = self._books()[:depth]
        parts = [(part.input_proj, books[own]) for part, own in self._halves()]

        def codes_of(latents: Tensor) -> Tensor:
            return torch.stack([code for proj, books in parts if books for code in residual_codes(proj(latents), books)], 1)

        return codes_of

    def _vectors(self) -> Callable[[Tensor], Tensor]:
        """`lookup` for many pieces."""

        def vectors_of(codes: Tensor) -> Tensor:
            total = None
            for part, own in self._halves():
                rows = [_rows(layer.codebook, level) for level, layer in zip(codes[:, own].unbind(1), part.layers, strict=False)]
                if rows:
                    vectors = part.output_proj(functools.reduce(torch.add, rows).transpose(1, 2))
                    total = vectors if total is None else total + vectors
            assert total is not None
            return total

        return vectors_of

    def _books(self) -> list[Book]:
        """The codebooks, prepared; kept until one is written to, since the library stores them as sums and counts."""
        codebooks = self._codebooks()
        buffers = [buffer for codebook in codebooks for buffer in (codebook.embed_sum, codebook.cluster_usage)]
        if torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):  # writes to these are not counted
            return prepared(_entries(codebook) for codebook in codebooks)
        state = (torch.is_inference_mode_enabled(), *((buffer.data_ptr(), buffer._version, buffer.dtype) for buffer in buffers))
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, prepared(_entries(codebook) for codebook in codebooks))
        return self._kept[1]

    def _coder(self, depth: int | None) -> Chain:
        return Chain([self.encoder_chain(), ElementStep(self._quantizer(depth))])

    def _decoder(self) -> Chain:
        return Chain([ElementStep(self._vectors()), self.decoder_chain()])

    def _legal_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return size  # the end is padded in `_encode` or by the layers

    def _grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (-(-size[0] // self.config.hop),)

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        hop = self.config.hop
        if self.config.padding == "frames":
            x = F.pad(x, (0, -x.shape[2] % hop))
        return run(self._coder(depth), x, piece=_PIECE * hop, short=_SHORT * hop).transpose(1, 2)

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return run(self._decoder(), tokens.data.transpose(1, 2), piece=_PIECE, short=_SHORT)

    def _stream(self, *, depth: int | None = None) -> CodecStream:
        if depth is not None:
            self._check_depth(depth)
        multiple = self.config.hop if self.config.padding == "frames" else 1
        return CodecStream(self, encoder=self._coder(depth), decoder=self._decoder(), multiple=multiple)


def _entries(codebook: Any) -> Tensor:
    """A codebook of the library, which stores sums and counts."""
    return codebook.embed_sum / _usage(codebook)


def _rows(codebook: Any, codes: Tensor) -> Tensor:
    """Entries `(b, n, c)` of such a codebook."""
    return F.embedding(codes, codebook.embed_sum) / F.embedding(codes, _usage(codebook))


def _usage(codebook: Any) -> Tensor:
    return codebook.cluster_usage.clamp(min=_SMALLEST_USAGE)[:, None]


def _at(config: dict[str, Any], path: str) -> Any:
    """Value at a path with dots; None where there is none."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


_LIBRARY_KEYS = dict(
    sample_rate="sampling_rate", width="num_filters", strides="upsampling_ratios", latent_channels="hidden_size",
    num_codebooks="num_quantizers", num_semantic="num_semantic_quantizers", codebook_size="codebook_size",
    codebook_channels="codebook_dim", residual_layers="num_residual_layers", residual_kernel="residual_kernel_size",
    dilation_growth="dilation_growth_rate", compress="compress", kernel="kernel_size", last_kernel="last_kernel_size",
    layers="num_hidden_layers", heads="num_attention_heads", mlp_width="intermediate_size", window="sliding_window",
    norm_eps="norm_eps",
)  # fmt: skip
_LIBRARY_ONLY = dict(
    audio_channels=1, use_causal_conv=True, pad_mode="constant", trim_right_ratio=1.0, use_conv_shortcut=False, hidden_act="gelu",
    attention_bias=False,
)  # fmt: skip
_ORIGINAL_KEYS = dict(
    sample_rate="sample_rate", width="seanet.n_filters", strides="seanet.ratios", latent_channels="seanet.dimension",
    num_codebooks="quantizer.n_q", codebook_size="quantizer.bins", codebook_channels="quantizer.dimension",
    residual_layers="seanet.n_residual_layers", residual_kernel="seanet.residual_kernel_size",
    dilation_growth="seanet.dilation_base", compress="seanet.compress", kernel="seanet.kernel_size",
    last_kernel="seanet.last_kernel_size", layers="transformer.num_layers", heads="transformer.num_heads",
    mlp_width="transformer.dim_feedforward", window="transformer.context", layer_scale="transformer.layer_scale",
    rope_base="transformer.max_period",
)  # fmt: skip
_ORIGINAL_ONLY = {
    "channels": 1, "seanet.causal": True, "seanet.pad_mode": "constant", "seanet.true_skip": True, "transformer.gating": "none",
    "transformer.norm": "layer_norm", "transformer.positional_embedding": "rope", "transformer.causal": True,
}  # fmt: skip
