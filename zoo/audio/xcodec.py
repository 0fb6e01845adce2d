"""X-Codec and the Higgs audio tokenizer: a DAC network and a speech model, quantized as one, so that codes hold meaning too.

Papers: Ye et al., "Codec Does Matter: Exploring the Semantic Shortcoming of Codec for Audio Language Model", arXiv 2408.17175
(zhenye234/xcodec, MIT); Boson AI, "Higgs Audio V2" (boson-ai/higgs-audio), which adds the resampling and projected codebooks. The
network is transformers' `XcodecModel` or `HiggsAudioV2TokenizerModel`, against which the tests compare everything.

    sound (b, 1, s) -> DAC encoder ------------------------------------------+-> one vector a position -> RVQ
                    -> HuBERT or WavLM, mean of all layers -> convolutions --+
    codes -> vectors -> DAC decoder -> sound

What is mended here: any length comes back exactly, and every depth of codes is allowed, not only those of a list of bandwidths.
Decoding runs in pieces with the numbers of the whole signal at constant memory. Encoding does not: the speech model normalises and
attends over the whole signal, so its pieces would give other codes. There is no stream for the same reason.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.checkpoint import weight_norm_keys
from zoo.config import Config
from zoo.layers.dac_steps import dac_decoder_steps, dac_encoder_steps
from zoo.layers.pieces import Chain, ElementStep, run
from zoo.layers.weight_norm import fold_weight_norm
from zoo.quantizers.base import exact_math, working_dtype
from zoo.quantizers.search import nearest, search_table
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["XCodec", "XCodecConfig"]

_PIECE = 128  # positions of a piece of a whole signal


@dataclass(frozen=True, kw_only=True)
class XCodecConfig(Config):
    """Sizes. Defaults are those of X-Codec with HuBERT at 16 kHz.

    Attributes:
        sample_rate: in Hz.
        encoder_channels: width of the acoustic encoder at the full rate; it doubles at each stride.
        strides: of the acoustic encoder, first to last.
        decoder_channels: width of the decoder at the frame rate; it halves at each stride.
        decoder_strides: likewise, first to last; the public models have them in the encoder's order.
        latent_channels: of the acoustic latents.
        num_codebooks: residual levels.
        codebook_size: entries of each.
        codebook_channels: dimensions in which the nearest entry is looked for; None for those of the joined vectors.
        semantic_model: "hubert" or "wavlm".
        semantic_sample_rate: in Hz, that the speech model wants; the signal is resampled to it.
        semantic_padding: zeros on both sides of its signal, so that it gives a whole number of features for each position.
        width, layers, heads, mlp_width: of its transformer.
        conv_channels, conv_kernels, conv_strides: of its convolutions.
        position_kernel, position_groups: of the convolution that gives positions.
        buckets, max_distance: WavLM: of relative positions.
        adapter_blocks: blocks of convolutions behind the speech model.
        adapter_dilations: of the residual units of each block.
        adapter_kernel, unit_kernel: of the first convolution and of the units.
    """

    sample_rate: int = 16_000
    encoder_channels: int = 64
    strides: tuple[int, ...] = (8, 5, 4, 2)
    decoder_channels: int = 1024
    decoder_strides: tuple[int, ...] = (8, 5, 4, 2)
    latent_channels: int = 256
    num_codebooks: int = 8
    codebook_size: int = 1024
    codebook_channels: int | None = None
    semantic_model: Literal["hubert", "wavlm"] = "hubert"
    semantic_sample_rate: int = 16_000
    semantic_padding: int = 160
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    position_kernel: int = 128
    position_groups: int = 16
    buckets: int = 320
    max_distance: int = 800
    adapter_blocks: int = 2
    adapter_dilations: tuple[int, ...] = (1, 1)
    adapter_kernel: int = 3
    unit_kernel: int = 3

    def __post_init__(self) -> None:
        for name in ("sample_rate", "encoder_channels", "latent_channels", "num_codebooks", "semantic_sample_rate", "layers"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("mlp_width", "position_kernel", "position_groups", "buckets", "max_distance", "adapter_blocks"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.semantic_model in ("hubert", "wavlm"), "semantic_model", "hubert, wavlm")
        self.require(self.codebook_size >= 2, "codebook_size", "at least 2")
        self.require(self.codebook_channels is None or self.codebook_channels >= 1, "codebook_channels", "None, or at least 1")
        self.require(self.semantic_padding >= 0, "semantic_padding", "at least 0")
        self.require(self.heads >= 1 and self.width % self.heads == 0, "width", f"a multiple of heads={self.heads}")
        for name in ("strides", "decoder_strides"):
            self.require(bool(getattr(self, name)) and min(getattr(self, name)) >= 2, name, "at least one, each 2 or more")
        self.require(math.prod(self.decoder_strides) == self.hop, "decoder_strides", f"numbers of the product {self.hop}")
        halvings = 2 ** len(self.decoder_strides)
        fits = self.decoder_channels >= 1 and self.decoder_channels % halvings == 0
        self.require(fits, "decoder_channels", f"a multiple of {halvings}")
        for name in ("adapter_kernel", "unit_kernel"):
            self.require(getattr(self, name) >= 1 and getattr(self, name) % 2 == 1, name, "an odd number")
        self.require(bool(self.adapter_dilations) and min(self.adapter_dilations) >= 1, "adapter_dilations", "numbers of 1 or more")
        count = len(self.conv_channels)
        for name in ("conv_channels", "conv_kernels", "conv_strides"):
            values = getattr(self, name)
            self.require(len(values) == count and count > 0 and min(values) >= 1, name, f"{max(count, 1)} numbers, all at least 1")
        lengths = (1, 2, 3, 10)
        one_each = self.every >= 1 and all(self.semantic_positions(n * self.hop) == n for n in lengths)
        self.require(one_each, "conv_strides", f"such that {self.hop} samples of {self.sample_rate} Hz give one semantic feature")

    @property
    def hop(self) -> int:
        """Samples of one position."""
        return math.prod(self.strides)

    @property
    def every(self) -> int:
        """Features of the speech model for one position, of which the first is kept."""
        return self.hop * self.semantic_sample_rate // (self.sample_rate * math.prod(self.conv_strides))

    def semantic_positions(self, samples: int) -> int:
        """Features that are kept of a signal."""
        count = -(-samples * self.semantic_sample_rate // self.sample_rate) + 2 * self.semantic_padding
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            count = (count - kernel) // stride + 1
        return -(-count // self.every)


def _library_model(config: XCodecConfig) -> Any:
    """Build the library's model; what only training draws inside the speech model is off."""
    from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel, XcodecConfig, XcodecModel

    acoustic = dict(
        model_type="dac",
        encoder_hidden_size=config.encoder_channels,
        downsampling_ratios=list(config.strides),
        decoder_hidden_size=config.decoder_channels,
        upsampling_ratios=list(config.decoder_strides),
        hidden_size=config.latent_channels,
        sampling_rate=config.sample_rate,
    )
    semantic = dict(
        model_type=config.semantic_model,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        conv_dim=list(config.conv_channels),
        conv_kernel=list(config.conv_kernels),
        conv_stride=list(config.conv_strides),
        num_feat_extract_layers=len(config.conv_channels),
        num_conv_pos_embeddings=config.position_kernel,
        num_conv_pos_embedding_groups=config.position_groups,
        **dict.fromkeys(("mask_time_prob", "mask_feature_prob", "layerdrop", "hidden_dropout", "attention_dropout"), 0.0),
        **dict.fromkeys(("activation_dropout", "feat_proj_dropout", "final_dropout"), 0.0),
        apply_spec_augment=False,
    )
    if config.semantic_model == "wavlm":
        semantic |= dict(num_buckets=config.buckets, max_bucket_distance=config.max_distance)
    level = math.ceil(config.sample_rate / config.hop) * math.ceil(math.log2(config.codebook_size)) / 1000
    values = dict(
        target_bandwidths=[(config.num_codebooks + 0.5) * level],  # how the library is told the number of levels: it rounds down
        sample_rate=config.sample_rate,
        kernel_size=config.adapter_kernel,
        channel_ratios=[1] * config.adapter_blocks,
        strides=[1] * config.adapter_blocks,
        block_dilations=list(config.adapter_dilations),
        unit_kernel_size=config.unit_kernel,
        codebook_size=config.codebook_size,
        acoustic_model_config=acoustic,
        semantic_model_config=semantic,
    )
    if config.codebook_channels is None:
        return XcodecModel(XcodecConfig(**values))
    projected = dict(codebook_dim=config.codebook_channels, semantic_sample_rate=config.semantic_sample_rate)
    downsample = dict(downsample_factor=math.prod(config.conv_strides))
    return HiggsAudioV2TokenizerModel(HiggsAudioV2TokenizerConfig(**values, **projected, **downsample))


class XCodec(Tokenizer):
    """Sound `(b, 1, s)` to codes `(b, n, levels)` that hold its meaning and its waveform, and back."""

    family = "xcodec"
    Config = XCodecConfig
    config: XCodecConfig

    def __init__(self, config: XCodecConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.model = _library_model(config)
        for layer in self.model.quantizer.quantizers:
            book = layer.codebook
            book.embed.normal_()  # the library leaves fresh codebooks at zero, where all entries are the same
            book.inited = torch.ones(1, device=book.embed.device)  # and makes this one on the CPU, whatever it is told

    @classmethod
    def layout_of(cls, config: XCodecConfig) -> dict[str, Any]:
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
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> XCodecConfig:
        return _config_from_public(config)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: XCodecConfig) -> dict[str, Tensor]:
        """Fold the weight norm of the acoustic networks, in any of its layouts, and leave out what only masked training needs."""
        speech = {name: value for name, value in tensors.items() if name.startswith("semantic_model.")}
        rest = {name: value for name, value in tensors.items() if name not in speech}
        speech.pop("semantic_model.masked_spec_embed", None)
        return {f"model.{name}": value for name, value in {**fold_weight_norm(rest), **weight_norm_keys(speech)}.items()}

    # -- the parts ---------------------------------------------------------------------------------------------------------------

    def encoder_chain(self) -> Chain:
        """Samples `(b, 1, s)` to acoustic latents `(b, c, n)`, in pieces."""
        return Chain([*dac_encoder_steps(self.model.acoustic_encoder)])

    def decoder_chain(self) -> Chain:
        """Joined vectors `(b, c, n)` to samples, a hop for each, in pieces."""
        narrow = ElementStep(lambda vectors: self.model.fc2(vectors.transpose(1, 2)).transpose(1, 2))
        return Chain([narrow, *dac_decoder_steps(self.model.acoustic_decoder)])

    def semantic_features(self, x: Tensor) -> Tensor:
        """Give the speech model's features, the mean of all its layers, `(b, n, width)`, of sound `(b, 1, s)` of whole hops."""
        config, signal = self.config, x[:, 0]
        if config.sample_rate != config.semantic_sample_rate:
            from torchaudio.functional import resample

            signal = resample(signal, config.sample_rate, config.semantic_sample_rate)
        signal = F.pad(signal, (config.semantic_padding, config.semantic_padding))
        layers = self.model.semantic_model(signal, output_hidden_states=True).hidden_states
        return torch.stack(layers, 1).mean(1)[:, :: config.every]

    def encode_vectors(self, x: Tensor) -> Tensor:
        """Give what is quantized, `(b, n, c)`, of sound `(b, 1, s)` of whole hops."""
        acoustic = run(self.encoder_chain(), x, piece=_PIECE * self.config.hop)
        semantic = self.model.encoder_semantic(self.semantic_features(x).transpose(1, 2))
        return self.model.fc(torch.cat([acoustic, semantic], 1).transpose(1, 2))

    def quantize(self, vectors: Tensor, depth: int | None = None) -> Tensor:
        """Codes `(b, n, d)` of joined vectors `(b, n, c)`: the nearest entry of what the levels before left."""
        codes, residual = [], vectors
        for layer in self.model.quantizer.quantizers[:depth]:
            rows = residual if self.config.codebook_channels is None else layer.project_in(residual)
            working = working_dtype(rows.dtype)
            with exact_math(rows.device.type):
                found = nearest(rows.to(working).flatten(0, 1), search_table(layer.codebook.embed.to(working)))
            codes.append(found.view(rows.shape[:2]))
            residual = residual - self._entries(layer, codes[-1])
        return torch.stack(codes, 2)

    def lookup(self, codes: Tensor) -> Tensor:
        """Joined vectors `(b, n, c)` of codes `(b, n, d)`."""
        layers = self.model.quantizer.quantizers
        vectors = self._entries(layers[0], codes[..., 0])
        for i in range(1, codes.shape[2]):
            vectors = vectors + self._entries(layers[i], codes[..., i])
        return vectors

    def _entries(self, layer: Any, codes: Tensor) -> Tensor:
        entries = F.embedding(codes, layer.codebook.embed)
        return entries if self.config.codebook_channels is None else layer.project_out(entries)

    # -- the contract ------------------------------------------------------------------------------------------------------------

    def _pad(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Zeros up to whole hops, as the library's feature extractor does."""
        return F.pad(x, (0, size[0] - x.shape[2]))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantize(self.encode_vectors(x), depth)

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        vectors = ElementStep(lambda codes: self.lookup(codes.transpose(1, 2)).transpose(1, 2))
        return run(Chain([vectors, self.decoder_chain()]), tokens.data.transpose(1, 2), piece=_PIECE)


# -- reading the public release ----------------------------------------------------------------------------------------------------

_KINDS = ("xcodec", "higgs_audio_v2_tokenizer")
_ACOUSTIC = dict(
    encoder_channels="encoder_hidden_size", strides="downsampling_ratios", decoder_channels="decoder_hidden_size",
    decoder_strides="upsampling_ratios", latent_channels="hidden_size",
)  # fmt: skip
_SEMANTIC = dict(
    width="hidden_size", layers="num_hidden_layers", heads="num_attention_heads", mlp_width="intermediate_size",
    conv_channels="conv_dim", conv_kernels="conv_kernel", conv_strides="conv_stride", position_kernel="num_conv_pos_embeddings",
    position_groups="num_conv_pos_embedding_groups",
)  # fmt: skip
# What the library can be told about the speech model, but only this value is covered.
_SEMANTIC_ONLY = dict(
    feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False, hidden_act="gelu", feat_extract_activation="gelu",
    feat_proj_layer_norm=True, conv_pos_batch_norm=False, add_adapter=False, layer_norm_eps=1e-5,
)  # fmt: skip
_HIGGS_PADDING = 160  # fixed in the library


def _config_from_public(config: dict[str, Any]) -> XCodecConfig:
    """Translate transformers' config.json of `XcodecModel` or `HiggsAudioV2TokenizerModel`; what is absent has the library's value.

    Raises:
        ValueError: another kind of model, or a value that this family does not cover.
    """
    kind = config.get("model_type")
    if kind not in _KINDS:
        raise ValueError(f"xcodec: model_type={kind!r} in config.json. Allowed: {', '.join(_KINDS)}.")
    for part, allowed in (("acoustic_model_config", ("dac",)), ("semantic_model_config", ("hubert", "wavlm"))):
        found = (config.get(part) or {}).get("model_type", allowed[0])
        if found not in allowed:
            raise ValueError(f"xcodec: {part}.model_type={found!r} in config.json. Allowed: {', '.join(allowed)}.")
    from transformers import HiggsAudioV2TokenizerConfig, XcodecConfig

    higgs = kind == _KINDS[1]
    library = (HiggsAudioV2TokenizerConfig if higgs else XcodecConfig).from_dict(config)
    acoustic, semantic = library.acoustic_model_config, library.semantic_model_config
    ones = [1] * len(library.strides)
    fixed = {"strides": (list(library.strides), ones), "channel_ratios": (list(library.channel_ratios), ones)}
    for key, value in _SEMANTIC_ONLY.items():
        fixed[f"semantic_model_config.{key}"] = (getattr(semantic, key, value), value)
    if not higgs:
        fixed["codebook_dim"] = (library.codebook_dim, acoustic.hidden_size + semantic.hidden_size)
    for key, (found, value) in fixed.items():
        if found != value:
            raise ValueError(f"xcodec: {key}={found!r} in config.json. This implementation knows: {value!r}.")
    values = {ours: getattr(acoustic, key) for ours, key in _ACOUSTIC.items()}
    values |= {ours: getattr(semantic, key) for ours, key in _SEMANTIC.items()}
    if semantic.model_type == "wavlm":
        values |= {"buckets": semantic.num_buckets, "max_distance": semantic.max_bucket_distance}
    return XCodecConfig.from_dict(
        {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
            "sample_rate": library.sample_rate,
            "num_codebooks": library.num_quantizers,
            "codebook_size": library.codebook_size,
            "codebook_channels": library.codebook_dim if higgs else None,
            "semantic_model": semantic.model_type,
            "semantic_sample_rate": library.semantic_sample_rate if higgs else library.sample_rate,
            "semantic_padding": _HIGGS_PADDING if higgs else library.hop_length // 2,
            "adapter_blocks": len(library.strides),
            "adapter_dilations": list(library.block_dilations),
            "adapter_kernel": library.kernel_size,
            "unit_kernel": library.unit_kernel_size,
        }
    )
