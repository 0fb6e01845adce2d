"""EnCodec: SEANet with an LSTM and a residual quantizer; 24 kHz causal, 32 kHz for music models, 48 kHz stereo in chunks.

Paper: Défossez et al., "High Fidelity Neural Audio Compression", arXiv 2210.13438. Original release: facebookresearch/encodec
(MIT), checked at 0e2d0ae. The network is transformers' `EncodecModel`, weight normalisation folded.

What is mended here: any length comes back exactly; the 24 kHz model streams both ways with the numbers of the whole signal, as the
paper promises; hours run at constant memory, the LSTM's state going on from piece to piece; every depth of codes can be asked for.
Its layers mirror the start of the signal, so the first six positions wait for the seventh; from there on nothing looks ahead.
The 48 kHz model normalises the loudness of chunks of a second; the scales travel in `Tokens.side["scale"]`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.config import Config
from zoo.layers.codec_stream import CodecStream
from zoo.layers.pieces import Chain, ElementStep, run
from zoo.layers.seanet import prepared, residual_codes, seanet_chain
from zoo.layers.weight_norm import fold_weight_norm, remove_weight_norm
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["Encodec", "EncodecConfig"]

_PIECE = 150  # positions of a piece of a whole signal


@dataclass(frozen=True, kw_only=True)
class EncodecConfig(Config):
    """Sizes of the codec. Defaults are those of the 24 kHz model.

    Attributes:
        sample_rate: in Hz.
        channels: of the sound, 1 or 2.
        width: channels at the full rate; it doubles at each stride of the encoder.
        strides: of the decoder, first to last; the encoder has them in reverse.
        latent_channels: between encoder and quantizer, and of a codebook's vectors.
        num_codebooks: residual levels.
        codebook_size: entries of each.
        residual_layers, residual_kernel, dilation_growth, compress: of the residual blocks.
        kernel, last_kernel: of the first and the last convolution.
        lstm_layers: of the LSTM next to the latents.
        conv_shortcut: the residual blocks' shortcut is a convolution.
        causal: nothing looks ahead.
        pad_mode: how the ends of the signal are padded.
        norm: of the convolutions: "weight" (folded), or "time_group", which needs the whole chunk.
        normalize: divide each chunk by its loudness.
        chunk_samples: length of a chunk; None runs on the signal as one.
        overlap: share of a chunk that the next one repeats.
    """

    sample_rate: int = 24_000
    channels: int = 1
    width: int = 32
    strides: tuple[int, ...] = (8, 5, 4, 2)
    latent_channels: int = 128
    num_codebooks: int = 32
    codebook_size: int = 1024
    residual_layers: int = 1
    residual_kernel: int = 3
    dilation_growth: int = 2
    compress: int = 2
    kernel: int = 7
    last_kernel: int = 7
    lstm_layers: int = 2
    conv_shortcut: bool = True
    causal: bool = True
    pad_mode: Literal["constant", "reflect", "replicate"] = "reflect"
    norm: Literal["weight", "time_group"] = "weight"
    normalize: bool = False
    chunk_samples: int | None = None
    overlap: float = 0.0

    def __post_init__(self) -> None:
        names = ("sample_rate", "width", "latent_channels", "num_codebooks", "residual_layers", "residual_kernel", "compress")
        for name in (*names, "dilation_growth", "kernel", "last_kernel", "lstm_layers"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.channels in (1, 2), "channels", "1 or 2")
        self.require(bool(self.strides) and min(self.strides) >= 2, "strides", "at least one, each 2 or more")
        size = self.codebook_size
        self.require(size >= 2 and size & (size - 1) == 0, "codebook_size", "a power of 2")
        self.require(self.norm in ("weight", "time_group"), "norm", "weight, time_group")
        self.require(self.pad_mode in ("constant", "reflect", "replicate"), "pad_mode", "constant, reflect, replicate")
        self.require(0 <= self.overlap < 0.5, "overlap", "0 up to a half")
        chunked = self.chunk_samples is not None
        self.require(not chunked or self.chunk_samples >= self.hop, "chunk_samples", f"None, or at least {self.hop}")
        self.require(chunked or self.norm == "weight", "norm", "weight where there are no chunks")
        self.require(chunked or not self.normalize, "normalize", "False where there are no chunks")

    @property
    def hop(self) -> int:
        """Samples of one position."""
        return math.prod(self.strides)

    @property
    def chunk_step(self) -> int:
        """Samples from one chunk to the next."""
        assert self.chunk_samples is not None
        return max(1, int((1 - self.overlap) * self.chunk_samples))

    def chunks(self, length: int) -> list[tuple[int, int]]:
        """First sample and number of positions of each chunk of a signal."""
        if self.chunk_samples is None:
            return [(0, -(-length // self.hop))]
        starts = range(0, length, self.chunk_step)
        return [(start, -(-min(self.chunk_samples, length - start) // self.hop)) for start in starts]

    @property
    def lookahead(self) -> int:
        """Later positions that a code or a sample may depend on, without chunks; of a causal model only the first of all."""
        if self.causal:
            return max(self.kernel, self.last_kernel) - 1 if self.pad_mode == "reflect" else 0
        unit = sum((self.residual_kernel - 1) * self.dilation_growth**j // 2 for j in range(self.residual_layers))
        encoder, rate = (self.kernel - 1) // 2, 1
        for stride in reversed(self.strides):
            encoder += (unit + stride // 2 + stride - 1) * rate
            rate *= stride
        encoder += (self.last_kernel - 1) // 2 * rate
        decoder, rate = Fraction((self.kernel - 1) // 2), 1
        for stride in self.strides:
            decoder += Fraction(stride - stride // 2, rate * stride)
            rate *= stride
            decoder += Fraction(unit, rate)
        decoder += Fraction((self.last_kernel - 1) // 2, rate)
        return math.ceil(max(decoder, Fraction(encoder - rate + 1, rate)))


class Encodec(Tokenizer):
    """Sound `(b, channels, s)` to codes `(b, n, levels)` and back."""

    family = "encodec"
    Config = EncodecConfig

    def __init__(self, config: EncodecConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        from transformers import EncodecConfig as LibraryConfig
        from transformers import EncodecModel

        kbps = (config.num_codebooks + 0.5) * math.ceil(config.sample_rate / config.hop) * math.log2(config.codebook_size) / 1000
        self.model = EncodecModel(
            LibraryConfig(
                target_bandwidths=[kbps],  # the library derives the number of codebooks from it, rounding down
                sampling_rate=config.sample_rate,
                audio_channels=config.channels,
                normalize=config.normalize,
                chunk_length_s=None if config.chunk_samples is None else config.chunk_samples / config.sample_rate,
                overlap=None if config.chunk_samples is None else config.overlap,
                hidden_size=config.latent_channels,
                num_filters=config.width,
                num_residual_layers=config.residual_layers,
                upsampling_ratios=list(config.strides),
                norm_type="weight_norm" if config.norm == "weight" else "time_group_norm",
                kernel_size=config.kernel,
                last_kernel_size=config.last_kernel,
                residual_kernel_size=config.residual_kernel,
                dilation_growth_rate=config.dilation_growth,
                use_causal_conv=config.causal,
                pad_mode=config.pad_mode,
                compress=config.compress,
                num_lstm_layers=config.lstm_layers,
                codebook_size=config.codebook_size,
                use_conv_shortcut=config.conv_shortcut,
            )
        )
        remove_weight_norm(self.model)
        for layer in self.model.quantizer.layers:  # the library leaves fresh codebooks at zero, where all entries are the same
            layer.codebook.embed.normal_()
            layer.codebook.inited = torch.ones(1)  # the library's is on the CPU whatever device was asked for

    @classmethod
    def layout_of(cls, config: EncodecConfig) -> dict[str, Any]:
        frame_rate, streaming = config.sample_rate / config.hop, config.chunk_samples is None
        return {
            "modality": "audio",
            "layout": "1d",
            "discrete": True,
            "residual": config.num_codebooks > 1,
            "depth": config.num_codebooks,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,) * config.num_codebooks,
            "downsample": (config.hop, 1, 1),
            "bits_per_second": frame_rate * config.num_codebooks * math.log2(config.codebook_size),
            "sample_rate": config.sample_rate,
            "frame_rate": frame_rate,
            "audio_channels": config.channels,
            "causal": config.causal and streaming,
            "streaming": streaming,
            "lookahead_frames": config.lookahead if streaming else None,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> EncodecConfig:
        """Read transformers' config.json, or the constructor values of the original release (whose files carry none).

        Raises:
            ValueError: keys are missing, or a value that this family does not cover.
        """
        library = "sampling_rate" in config
        names = _LIBRARY_KEYS if library else _ORIGINAL_KEYS
        missing = [key for key in names.values() if key not in config]
        if missing:
            known = "transformers' EncodecModel or the original release"
            raise ValueError(f"encodec: config.json has no {', '.join(missing)}. Is it of {known}?")
        if config.get("trim_right_ratio", 1.0) != 1.0:
            raise ValueError(f"encodec: trim_right_ratio={config['trim_right_ratio']} in config.json. Known: 1.0.")
        values = {ours: config[theirs] for ours, theirs in names.items()}
        norm = config["norm_type" if library else "norm"]
        if norm not in ("weight_norm", "time_group_norm"):
            raise ValueError(f"encodec: the norm {norm!r} in config.json. Known: weight_norm, time_group_norm.")
        seconds = config.get("chunk_length_s" if library else "segment")
        values |= {
            "norm": norm.removesuffix("_norm"),
            "conv_shortcut": config["use_conv_shortcut"] if library else not config["true_skip"],
            "chunk_samples": None if seconds is None else int(seconds * values["sample_rate"]),
            "overlap": config.get("overlap") or 0.0,
        }
        if library:
            if config.get("codebook_dim") not in (None, values["latent_channels"]):
                raise ValueError(f"encodec: codebook_dim={config['codebook_dim']} in config.json. Known: that of the latents.")
            frames, bits = math.ceil(values["sample_rate"] / math.prod(values["strides"])), math.log2(values["codebook_size"])
            values["num_codebooks"] = int(1000 * config["target_bandwidths"][-1] / (frames * bits) + 1e-6)
        return EncodecConfig.from_dict(values)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: EncodecConfig) -> dict[str, Tensor]:
        """Fold weight normalisation in any of its layouts; rename the original release's layers to the library's."""
        out = {}
        for name, value in fold_weight_norm(tensors).items():
            for old, new in _RENAMED:
                name = name.replace(old, new)
            out[f"model.{name}"] = value
        return out

    # -- the verbs ---------------------------------------------------------------------------------------------------------------

    def encoder_chain(self) -> Chain:
        """Samples `(b, channels, s)` to latents `(b, c, n)`, in pieces (with a norm over time: in one)."""
        return seanet_chain(self.model.encoder.layers)

    def decoder_chain(self) -> Chain:
        """Latents to samples, a hop for each position."""
        return seanet_chain(self.model.decoder.layers)

    def quantize(self, latents: Tensor, depth: int | None = None) -> Tensor:
        """Codes `(b, d, n)` of latents `(b, c, n)`."""
        return self._quantizer(depth)(latents)

    def _quantizer(self, depth: int | None) -> Callable[[Tensor], Tensor]:
        """`quantize` for many pieces."""
        books = prepared(layer.codebook.embed for layer in self.model.quantizer.layers[:depth])
        return lambda latents: torch.stack(residual_codes(latents, books), 1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Latents `(b, c, n)` of codes `(b, d, n)`."""
        total = None
        for level, layer in zip(codes.unbind(1), self.model.quantizer.layers, strict=False):
            vectors = F.embedding(level, layer.codebook.embed)
            total = vectors if total is None else total + vectors
        assert total is not None
        return total.transpose(1, 2)

    def _coder(self, depth: int | None) -> Chain:
        return Chain([self.encoder_chain(), ElementStep(self._quantizer(depth))])

    def _decoder(self) -> Chain:
        return Chain([ElementStep(self.lookup), self.decoder_chain()])

    def _legal_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return size  # the layers pad their own ends

    def _grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (sum(positions for _, positions in self.config.chunks(size[0])),)

    def _side_bits(self, extent: tuple[int, ...]) -> float:
        return 32.0 * len(self.config.chunks(extent[0])) if self.config.normalize else 0.0

    def _chunks(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each chunk of a signal with its loudness `(b, 1, 1)`: the root mean square of its mean over channels."""
        for start, _ in self.config.chunks(x.shape[2]):
            chunk = x[..., start : start + self.config.chunk_samples]
            yield chunk, chunk.mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt() + 1e-8

    def _side(self, x: Tensor) -> dict[str, Tensor]:
        if not self.config.normalize:
            return {}
        return {"scale": torch.cat([scale[:, 0].float() for _, scale in self._chunks(x)], 1)}

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        if self.config.chunk_samples is None:
            return run(self._coder(depth), x, piece=_PIECE * self.config.hop).transpose(1, 2)
        codes = [
            run(self._coder(depth), chunk / scale if self.config.normalize else chunk, piece=self.config.chunk_samples)
            for chunk, scale in self._chunks(x)
        ]
        return torch.cat(codes, 2).transpose(1, 2)

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        codes = tokens.data.transpose(1, 2)
        if self.config.chunk_samples is None:
            return run(self._decoder(), codes, piece=_PIECE)
        parts = list(self._decoded_chunks(codes, tokens.side.get("scale"), size[0]))
        if len(parts) == 1:
            return parts[0][1]
        # Chunks fade into each other with weights of a triangle as long as the first; where one stands alone it is as it was.
        longest = parts[0][1].shape[2]
        weight = 0.5 - (torch.linspace(0, 1, longest + 2, device=codes.device)[1:-1] - 0.5).abs()
        end = max(start + y.shape[2] for start, y in parts)
        out = parts[0][1].new_zeros(*parts[0][1].shape[:2], end)
        total = weight.new_zeros(end)
        for start, y in parts:
            stop, part = start + y.shape[2], weight[: y.shape[2]]
            out[..., start:stop] += y * part.to(y.dtype)
            total[start:stop] += part
        return out / total.to(out.dtype)

    def _decoded_chunks(self, codes: Tensor, scales: Tensor | None, length: int) -> Iterator[tuple[int, Tensor]]:
        """First sample and signal of each chunk."""
        at = 0
        for i, (start, positions) in enumerate(self.config.chunks(length)):
            y = run(self._decoder(), codes[..., at : at + positions], piece=positions)
            at += positions
            yield start, y if scales is None else y * scales[:, i, None, None].to(y.dtype)

    def _check_tokens(self, tokens: Tokens) -> None:
        super()._check_tokens(tokens)
        if not self.config.normalize:
            return
        name, scale = f"{self.info.name}.decode", tokens.side.get("scale")
        if scale is None or scale.ndim != 2:
            raise ValueError(f"{name}: tokens have no side tensor 'scale' (batch, chunks). Keep `side` of what encode() gives.")
        most = max(len(self.config.chunks(int(extent))) for extent in tokens.extent[:, 0].tolist())
        if scale.shape[1] < most:
            raise ValueError(f"{name}: side 'scale' holds {scale.shape[1]} numbers an item. Needed: {most}, one for each chunk.")
        if not bool(torch.isfinite(scale).all()):
            raise ValueError(f"{name}: side 'scale' holds NaN or infinity.")

    def _stream(self, *, depth: int | None = None) -> CodecStream:
        if depth is not None:
            self._check_depth(depth)
        return CodecStream(self, encoder=self._coder(depth), decoder=self._decoder())


_SHARED = dict(kernel="kernel_size", last_kernel="last_kernel_size", residual_kernel="residual_kernel_size", compress="compress")
_LIBRARY_KEYS = dict(
    _SHARED, sample_rate="sampling_rate", channels="audio_channels", width="num_filters", strides="upsampling_ratios",
    latent_channels="hidden_size", codebook_size="codebook_size", residual_layers="num_residual_layers",
    dilation_growth="dilation_growth_rate", lstm_layers="num_lstm_layers", causal="use_causal_conv", pad_mode="pad_mode",
    normalize="normalize",
)  # fmt: skip
_ORIGINAL_KEYS = dict(
    _SHARED, sample_rate="sample_rate", channels="channels", width="n_filters", strides="ratios", latent_channels="dimension",
    codebook_size="bins", num_codebooks="n_q", residual_layers="n_residual_layers", dilation_growth="dilation_base",
    lstm_layers="lstm", causal="causal", pad_mode="pad_mode", normalize="normalize",
)  # fmt: skip
_RENAMED = (
    ("encoder.model.", "encoder.layers."), ("decoder.model.", "decoder.layers."), (".conv.conv.", ".conv."),
    (".convtr.convtr.", ".conv."), ("quantizer.vq.layers.", "quantizer.layers."), ("._codebook.", ".codebook."),
    (".conv.norm.", ".norm."), (".convtr.norm.", ".norm."),
)  # fmt: skip
