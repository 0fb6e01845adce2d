"""EnCodec: SEANet with an LSTM and a residual quantizer; 24 kHz causal, 32 kHz for music models, 48 kHz stereo in chunks.

Paper: Défossez et al., "High Fidelity Neural Audio Compression", arXiv 2210.13438. Original release: facebookresearch/encodec
(MIT), checked at 0e2d0ae. The network is transformers' `EncodecModel`, weight normalisation folded.

What is mended here: any length comes back exactly; the 24 kHz model streams both ways with the numbers of the whole signal, as the
paper promises; hours run at constant memory, the LSTM's state going on from piece to piece; every depth of codes can be asked for.
Its layers mirror the start of the signal, so the first six positions wait for the seventh; from there on nothing looks ahead.
The 48 kHz model normalises the loudness of chunks of a second; the scales travel in `Tokens.side["scale"]`. It streams by chunks.
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
from zoo.layers.seanet import prepared, residual_codes, seanet_chain, seanet_decoder, seanet_encoder
from zoo.layers.weight_norm import fold_weight_norm, remove_weight_norm
from zoo.registry import Entry
from zoo.streaming import Stream
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["Encodec", "EncodecChunkStream", "EncodecConfig"]

_PIECE = 600  # positions of a piece of a whole signal: many, since the LSTM and the quantizer are slow on few
_SHORT = 24  # positions up to which the modules' own kernels are as fast: measured at 24 kHz


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
        """Later positions that a code or a sample may depend on; of a causal model only the first of all."""
        if self.chunk_samples is not None:  # the rest of the chunk and of the next one, which a sample may lie in too
            return -(-self.chunk_samples // self.hop) - 1 + -(-(self.chunk_samples - self.chunk_step) // self.hop)
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
            "bits_per_second": frame_rate * config.num_codebooks * math.log2(config.codebook_size),
            "sample_rate": config.sample_rate,
            "frame_rate": frame_rate,
            "audio_channels": config.channels,
            "causal": config.causal and config.chunk_samples is None,
            "streaming": True,
            "lookahead_frames": config.lookahead,
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
        layers = [*self.model.encoder.layers]
        return seanet_encoder(layers) if self.config.norm == "weight" else seanet_chain(layers)

    def decoder_chain(self) -> Chain:
        """Latents to samples, a hop for each position."""
        layers = [*self.model.decoder.layers]
        return seanet_decoder(layers) if self.config.norm == "weight" else seanet_chain(layers)

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

    def _span(self, positions: int) -> int:
        config = self.config
        if config.chunk_samples is None:
            return super()._span(positions)
        whole, rest = divmod(positions, -(-config.chunk_samples // config.hop))
        before = (whole - 1) * config.chunk_step + config.chunk_samples if whole else 0
        return max(before, whole * config.chunk_step + min(rest * config.hop, config.chunk_samples) if rest else 0)

    def _side_bits(self, extent: tuple[int, ...]) -> float:
        return 32.0 * len(self.config.chunks(extent[0])) if self.config.normalize else 0.0

    def _chunks(self, x: Tensor) -> Iterator[Tensor]:
        """Each chunk of a signal."""
        for start, _ in self.config.chunks(x.shape[2]):
            yield x[..., start : start + self.config.chunk_samples]

    def _side(self, x: Tensor) -> dict[str, Tensor]:
        return {"scale": torch.cat([_loudness(chunk) for chunk in self._chunks(x)], 1)} if self.config.normalize else {}

    def _chunk_codes(self, chunk: Tensor, depth: int | None) -> Tensor:
        """Codes `(b, d, n)` of one chunk."""
        if self.config.normalize:
            chunk = chunk / _loudness(chunk)[..., None].to(chunk.dtype)
        return run(self._coder(depth), chunk, piece=chunk.shape[2])

    def _chunk_sound(self, codes: Tensor, scale: Tensor | None) -> Tensor:
        """Sound of one chunk, at its loudness `(b,)`."""
        y = run(self._decoder(), codes, piece=codes.shape[2])
        return y if scale is None else y * scale[:, None, None].to(y.dtype)

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        if self.config.chunk_samples is None:
            hop = self.config.hop
            return run(self._coder(depth), x, piece=_PIECE * hop, short=_SHORT * hop).transpose(1, 2)
        return torch.cat([self._chunk_codes(chunk, depth) for chunk in self._chunks(x)], 2).transpose(1, 2)

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        codes = tokens.data.transpose(1, 2)
        if self.config.chunk_samples is None:
            return run(self._decoder(), codes, piece=_PIECE, short=_SHORT)
        scales, chunks, fade = tokens.side.get("scale"), self.config.chunks(size[0]), _Fade(self.config.chunk_step)
        parts, at = [], 0
        for i, (_, positions) in enumerate(chunks):
            y = self._chunk_sound(codes[..., at : at + positions], None if scales is None else scales[:, i])
            parts.append(fade.push(y, last=i == len(chunks) - 1))
            at += positions
        return torch.cat(parts, 2)

    def _check_tokens(self, tokens: Tokens) -> None:
        super()._check_tokens(tokens)
        name = f"{self.info.name}.decode"
        scales = self._scales(name, tokens)
        most = max(len(self.config.chunks(int(extent))) for extent in tokens.extent[:, 0].tolist())
        if scales is not None and scales.shape[1] < most:
            raise ValueError(f"{name}: side 'scale' holds {scales.shape[1]} numbers an item. Needed: {most}, one for each chunk.")

    def _scales(self, name: str, tokens: Tokens) -> Tensor | None:
        """Loudness `(b, chunks)` of the chunks, None where the model has none.

        Raises:
            ValueError: it is missing, or not finite.
        """
        if not self.config.normalize:
            return None
        scales = tokens.side.get("scale")
        if scales is None or scales.ndim != 2:
            raise ValueError(f"{name}: tokens have no side tensor 'scale' (batch, chunks). Keep `side` of what encode() gives.")
        if not bool(torch.isfinite(scales).all()):
            raise ValueError(f"{name}: side 'scale' holds NaN or infinity.")
        return scales

    def _stream(self, *, depth: int | None = None) -> Stream:
        if depth is not None:
            self._check_depth(depth)
        if self.config.chunk_samples is not None:
            return EncodecChunkStream(self, depth=depth)
        return CodecStream(self, encoder=self._coder(depth), decoder=self._decoder())


# -- chunks ------------------------------------------------------------------------------------------------------------------------


def _loudness(chunk: Tensor) -> Tensor:
    """Root mean square `(b, 1)`, float32, of the mean over channels."""
    return (chunk.mean(1, keepdim=True).square().mean(2, keepdim=True).sqrt() + 1e-8)[:, 0].float()


class _Fade:
    """Chunks `(b, c, t)`, `step` from one to the next, that fade into each other by a triangle as long as the first."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.weight: Tensor | None = None
        self.held: Tensor | None = None  # weighted sum from the beginning of the next chunk on
        self.total: Tensor | None = None  # of the weights

    def push(self, y: Tensor, *, last: bool) -> Tensor:
        """Take the next chunk and give what no later one changes."""
        if self.weight is None:
            middle = torch.linspace(0, 1, y.shape[2] + 2, device=y.device)[1:-1] - 0.5
            self.weight = 0.5 - middle.abs()
        total = self.weight[: y.shape[2]]
        y = y * total.to(y.dtype)
        if self.held is not None and self.total is not None:
            length = max(y.shape[2], self.held.shape[2])
            y, total = _sum(y, self.held, length), _sum(total, self.total, length)
        ready = y.shape[2] if last else self.step
        self.held, self.total = y[..., ready:].clone(), total[ready:]
        return y[..., :ready] / total[:ready].to(y.dtype)


def _sum(a: Tensor, b: Tensor, length: int) -> Tensor:
    return F.pad(a, (0, length - a.shape[-1])) + F.pad(b, (0, length - b.shape[-1]))


class EncodecChunkStream(Stream):
    """Codes when a chunk is whole; its sound as far as no later chunk fades into it."""

    tok: Encodec

    def __init__(self, tok: Encodec, *, depth: int | None) -> None:
        super().__init__(tok)
        self.depth, self.fade = depth, _Fade(tok.config.chunk_step)
        self.gathered: list[Tensor] = []  # samples of the chunks to come
        self.loudness: list[Tensor] = []  # of the chunks just given
        self.codes: Tensor | None = None  # of the chunks that are not decoded, with their scales
        self.scales: Tensor | None = None
        self.decoded = 0  # chunks

    def _encode(self, x: Tensor, *, last: bool) -> Tensor | None:
        size, step = self.tok.config.chunk_samples, self.tok.config.chunk_step
        assert size is not None
        self.gathered.append(x)
        if not last and sum(part.shape[2] for part in self.gathered) < size:
            return None
        x, codes, self.loudness = torch.cat(self.gathered, 2), [], []
        while x.shape[2] >= size or (last and x.shape[2]):
            codes.append(self.tok._chunk_codes(x[..., :size], self.depth))
            self.loudness.append(_loudness(x[..., :size]))
            x = x[..., step:]
        self.gathered = [x.clone()]
        return torch.cat(codes, 2).transpose(1, 2) if codes else None

    def _side(self) -> dict[str, Tensor]:
        return {"scale": torch.cat(self.loudness, 1)} if self.tok.config.normalize else {}

    def _decode(self, tokens: Tokens | None, *, last: bool) -> Tensor | None:
        config = self.tok.config
        assert config.chunk_samples is not None
        if tokens is not None:
            codes, scales = tokens.data.transpose(1, 2), self.tok._scales(f"{self.tok.info.name}.stream.decode", tokens)
            self.codes = codes if self.codes is None else torch.cat([self.codes, codes], 2)
            self.scales = scales if self.scales is None or scales is None else torch.cat([self.scales, scales], 1)
        if self.codes is None:
            return None
        chunks, parts = config.chunks(self._promised), []
        for start, positions in chunks[self.decoded :]:
            if not last and self._promised < start + config.chunk_samples:
                break  # more may belong to it
            self._check_chunk(positions)
            y = self.tok._chunk_sound(self.codes[..., :positions], None if self.scales is None else self.scales[:, 0])
            parts.append(self.fade.push(y, last=last and self.decoded == len(chunks) - 1))
            self.codes = self.codes[..., positions:]
            self.scales = None if self.scales is None else self.scales[:, 1:]
            self.decoded += 1
        return torch.cat(parts, 2) if parts else None

    def _check_chunk(self, positions: int) -> None:
        """Refuse tokens that were not cut between chunks.

        Raises:
            ValueError: fewer codes or scales than the extents say.
        """
        assert self.codes is not None
        found = self.codes.shape[2], 1 if self.scales is None else self.scales.shape[1]
        if found[0] < positions or found[1] < 1:
            name, needed = f"{self.tok.info.name}.stream.decode", f"{positions} positions and a scale, as encode() gives"
            raise ValueError(f"{name}: chunk {self.decoded} has {found[0]} positions and {found[1]} scales. Needed: {needed}.")


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
