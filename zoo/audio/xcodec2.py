"""X-Codec2 and NeuCodec: one finite scalar code of 65,536 every 20 ms, from what is said and how it sounds.

Papers: Ye et al., "Llasa: Scaling Train-Time and Inference-Time Compute for Llama-based Speech Synthesis", arXiv 2502.04128; Julian
et al., "Finite Scalar Quantization Enables Redundant and Transmission-Robust Neural Audio Compression at Low Bit-rates",
arXiv 2509.09550 (NeuCodec, which takes 16 kHz and gives 24 kHz). The network is transformers' `NeuCodecModel`, of which its
`Xcodec2Model` is the form with one sample rate; the tests compare everything with both and with their feature extractors.

    sound (b, 1, s) -> convolutions with low-passed Snakes -----------------------+-> 8 numbers, 4 levels each -> one code
                    -> spectrum in pairs of frames -> w2v-BERT -> convolutions ---+
    code -> residual blocks -> transformer -> residual blocks -> magnitude and phase -> inverse Fourier transform -> sound

What is mended here: any length comes back exactly, at the rate it came in (NeuCodec's own output is shorter than its input where
that is no whole number of positions, and at another rate: here its sound comes in at 24 kHz and is resampled for the encoder).
The library adds a position of silence to a signal of whole positions for X-Codec2; here that has no code of its own. One zero
behind such a signal gives the library's codes.

Nothing is cut into pieces and there is no stream: the spectrum is normalised over the whole signal, the group norms and both
transformers look at all of it, so pieces would give other codes and other sound. Memory grows with the square of the length.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.weight_norm import fold_weight_norm
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["XCodec2", "XCodec2Config"]

_BANDS = 80  # of the spectrum
_FRAME_MS, _SHIFT_MS = 25, 10
_STACK = 2  # frames of the spectrum in a position
_LOWEST = 20.0  # Hz
_RAISE, _POVEY = 0.97, 0.85
_FULL_SCALE = 2.0**15  # the spectrum is that of 16-bit samples
_TINY = 1e-7  # of its variance
_GROUPS = 32  # of the group norms


@dataclass(frozen=True, kw_only=True)
class XCodec2Config(Config):
    """Sizes. Defaults are those of X-Codec2.

    Attributes:
        sample_rate: of the sound, in Hz.
        encoder_sample_rate: that the encoder wants, in Hz; sound is resampled to it.
        encoder_channels: width of the acoustic encoder at the full rate; it doubles at each stride.
        strides: of the acoustic encoder, first to last; together one position, two frames of the spectrum.
        padded_spectrum: the spectrum begins and ends half a position outside of the signal (X-Codec2). Without, it lacks one
            position, so the signal gets one more of silence, which is left out (NeuCodec).
        levels: of each number of the code.
        width, layers, heads, head, mlp_width: of the decoder's transformer.
        rope_base: of its rotary positions, which the public models take from the number of the head, not from the time.
        semantic_width, semantic_layers, semantic_heads, semantic_mlp_width: of the speech model.
        semantic_kernel: of its depthwise convolutions.
        semantic_left, semantic_right: the farthest relative positions that it tells apart.
    """

    sample_rate: int = 16_000
    encoder_sample_rate: int = 16_000
    encoder_channels: int = 48
    strides: tuple[int, ...] = (2, 2, 4, 4, 5)
    padded_spectrum: bool = True
    levels: tuple[int, ...] = (4,) * 8
    width: int = 1024
    layers: int = 12
    heads: int = 16
    head: int = 64
    mlp_width: int = 4096
    rope_base: float = 10_000.0
    semantic_width: int = 1024
    semantic_layers: int = 16
    semantic_heads: int = 16
    semantic_mlp_width: int = 4096
    semantic_kernel: int = 31
    semantic_left: int = 64
    semantic_right: int = 8

    def __post_init__(self) -> None:
        for name in ("sample_rate", "encoder_sample_rate", "encoder_channels", "layers", "heads", "mlp_width", "semantic_layers"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("semantic_mlp_width", "semantic_kernel"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("semantic_left", "semantic_right"):
            self.require(getattr(self, name) >= 0, name, "at least 0")
        self.require(bool(self.strides) and min(self.strides) >= 2, "strides", "at least one, each 2 or more")
        position = _STACK * _SHIFT_MS * self.encoder_sample_rate
        whole = position == 1000 * self.encoder_hop
        self.require(whole, "strides", f"numbers of the product {position / 1000:g}, {_STACK} frames of the spectrum")
        exact = self.encoder_hop * self.sample_rate % self.encoder_sample_rate == 0
        self.require(exact, "sample_rate", f"one at which {self.encoder_hop} samples of the encoder are a whole number")
        same = not self.padded_spectrum or self.sample_rate == self.encoder_sample_rate
        self.require(same, "sample_rate", f"encoder_sample_rate={self.encoder_sample_rate} with padded_spectrum")
        self.require(bool(self.levels) and min(self.levels) >= 2, "levels", "at least one number, all at least 2")
        several = self.width > _GROUPS and self.width % _GROUPS == 0  # one number has no variance
        self.require(several and self.width % self.heads == 0, "width", f"a multiple of {_GROUPS}, not {_GROUPS}, and of heads")
        self.require(self.head >= 2 and self.head % 2 == 0, "head", "an even number")
        wide = self.semantic_width >= 1 and self.semantic_width % self.semantic_heads == 0
        self.require(wide, "semantic_width", f"a multiple of semantic_heads={self.semantic_heads}")
        self.require(self.semantic_kernel % 2 == 1, "semantic_kernel", "an odd number")

    @property
    def encoder_hop(self) -> int:
        """Samples of one position for the encoder."""
        return math.prod(self.strides)

    @property
    def hop(self) -> int:
        """Samples of one position."""
        return self.encoder_hop * self.sample_rate // self.encoder_sample_rate

    @property
    def codebook_size(self) -> int:
        """Different codes."""
        return math.prod(self.levels)


def _library_model(config: XCodec2Config) -> Any:
    """Build the library's model without dropout and masking."""
    from transformers import NeuCodecConfig, NeuCodecModel

    semantic = dict(
        model_type="wav2vec2-bert",
        hidden_size=config.semantic_width,
        num_hidden_layers=config.semantic_layers,
        num_attention_heads=config.semantic_heads,
        intermediate_size=config.semantic_mlp_width,
        feature_projection_input_dim=_STACK * _BANDS,
        conv_depthwise_kernel_size=config.semantic_kernel,
        left_max_position_embeddings=config.semantic_left,
        right_max_position_embeddings=config.semantic_right,
        **dict.fromkeys(("mask_time_prob", "mask_feature_prob", "layerdrop", "hidden_dropout", "attention_dropout"), 0.0),
        **dict.fromkeys(("activation_dropout", "feat_proj_dropout", "final_dropout", "conformer_conv_dropout"), 0.0),
        apply_spec_augment=False,
    )
    return NeuCodecModel(
        NeuCodecConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.head,
            rope_parameters={"rope_theta": config.rope_base, "rope_type": "default"},
            encoder_hidden_size=config.encoder_channels,
            downsampling_ratios=list(config.strides),
            semantic_model_config=semantic,
            activation_dropout=0.0,
            quantization_dim=config.width + config.semantic_width,
            quantization_levels=list(config.levels),
            input_sampling_rate=config.encoder_sample_rate,
            output_sampling_rate=config.sample_rate,
        )
    )


def log_bands(x: Tensor, sample_rate: int) -> Tensor:
    """Logarithms `(b, frames, 80)` of the power in mel bands of signals `(b, s)` in the scale of 16-bit samples.

    Frames of 25 ms each 10 ms, none beyond the ends; each of zero mean, with its high tones raised and under Povey's window, as in
    Kaldi. Checked against torchaudio's `kaldi.fbank`, which takes one signal at a time.
    """
    from torchaudio.compliance.kaldi import get_mel_banks

    size, shift = (sample_rate * ms // 1000 for ms in (_FRAME_MS, _SHIFT_MS))
    padded = 1 << (size - 1).bit_length()
    frames = x.unfold(1, size, shift)
    frames = frames - frames.mean(2, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], 2)
    window = torch.hann_window(size, periodic=False, device=x.device, dtype=x.dtype) ** _POVEY
    power = torch.fft.rfft((frames - _RAISE * before) * window, padded).abs().square()
    bands = get_mel_banks(_BANDS, padded, float(sample_rate), _LOWEST, 0.0, 100.0, -500.0, 1.0)[0]  # no warping of the axis
    return (power[..., :-1] @ bands.to(x).t()).clamp(min=torch.finfo(torch.float32).eps).log()


class XCodec2(Tokenizer):
    """Sound `(b, 1, s)` to one code a position that holds meaning and sound, and back."""

    family = "xcodec2"
    Config = XCodec2Config
    config: XCodec2Config

    def __init__(self, config: XCodec2Config, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.model = model = _library_model(config)
        for part in (model.acoustic_encoder, model.semantic_adapter, model.fc_encoder, model.quantizer):
            for layer in part.modules():  # the library's fresh weights are so small that all sound has the same code
                if isinstance(layer, nn.Linear | nn.Conv1d):
                    nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)

    @classmethod
    def layout_of(cls, config: XCodec2Config) -> dict[str, Any]:
        frame_rate = config.sample_rate / config.hop
        return {
            "modality": "audio",
            "layout": "1d",
            "discrete": True,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,),
            "downsample": (config.hop, 1, 1),
            "size_multiple": config.hop,
            "bits_per_second": frame_rate * math.log2(config.codebook_size),
            "sample_rate": config.sample_rate,
            "frame_rate": frame_rate,
            "audio_channels": 1,
        }

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> XCodec2Config:
        return _config_from_public(config)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: XCodec2Config) -> dict[str, Tensor]:
        """Fold weight norm where there is any, and leave out what only masked training needs."""
        kept = {name: value for name, value in tensors.items() if name != "semantic_encoder.masked_spec_embed"}
        return {f"model.{name}": value for name, value in fold_weight_norm(kept).items()}

    # -- the parts ---------------------------------------------------------------------------------------------------------------

    def spectrum(self, x: Tensor) -> Tensor:
        """Give what the speech model sees, `(b, n, 160)`, of the encoder's signal `(b, s)` of whole positions.

        Logarithms of 80 bands each 10 ms, of zero mean and unit variance over the time, two frames side by side.
        """
        edge = self.config.encoder_hop // 2 if self.config.padded_spectrum else 0
        frames = log_bands(F.pad(x.float(), (edge, edge)) * _FULL_SCALE, self.config.encoder_sample_rate)
        frames = (frames - frames.mean(1, keepdim=True)) / (frames.var(1, keepdim=True) + _TINY).sqrt()
        return frames.unflatten(1, (-1, _STACK)).flatten(2).to(x.dtype)

    def encode_vectors(self, x: Tensor) -> Tensor:
        """Give what is quantized, `(b, n, c)`, of sound `(b, 1, s)` of a legal length."""
        config, model = self.config, self.model
        if config.sample_rate != config.encoder_sample_rate:
            from torchaudio.functional import resample

            x = resample(x, config.sample_rate, config.encoder_sample_rate)
        if not config.padded_spectrum:
            x = F.pad(x, (0, config.encoder_hop))  # a position of silence, so that only this one is left out
        features = model.semantic_encoder(self.spectrum(x[:, 0])).last_hidden_state
        semantic = model.semantic_adapter(features.transpose(1, 2))
        acoustic = model.acoustic_encoder(x)[..., : semantic.shape[2]]
        return model.fc_encoder(torch.cat([semantic, acoustic], 1).transpose(1, 2))

    def quantize(self, vectors: Tensor) -> Tensor:
        """Codes `(b, n, 1)` of vectors `(b, n, c)`."""
        return self.model.quantizer(vectors)[1].long()

    def lookup(self, codes: Tensor) -> Tensor:
        """Vectors `(b, n, c)` of codes `(b, n, 1)`."""
        quantizer = self.model.quantizer
        return quantizer.project_out(quantizer.quantizer.codebook[codes[..., 0]].to(self.dtype))

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Decode vectors `(b, n, c)` to sound `(b, 1, n * hop)`."""
        return self.model.acoustic_decoder(vectors).to(vectors.dtype)

    # -- the contract ------------------------------------------------------------------------------------------------------------

    def _pad(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Zeros up to whole positions, as the library's feature extractors do."""
        return F.pad(x, (0, size[0] - x.shape[2]))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantize(self.encode_vectors(x))

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_vectors(self.lookup(tokens.data))


# -- reading the public release ----------------------------------------------------------------------------------------------------

_KINDS = ("xcodec2", "neucodec")
_PUBLIC = dict(
    encoder_channels="encoder_hidden_size", strides="downsampling_ratios", levels="quantization_levels", width="hidden_size",
    layers="num_hidden_layers", heads="num_attention_heads", head="head_dim", mlp_width="intermediate_size",
)  # fmt: skip
_SEMANTIC = dict(
    semantic_width="hidden_size", semantic_layers="num_hidden_layers", semantic_heads="num_attention_heads",
    semantic_mlp_width="intermediate_size", semantic_kernel="conv_depthwise_kernel_size",
    semantic_left="left_max_position_embeddings", semantic_right="right_max_position_embeddings",
)  # fmt: skip
# What the library can be told, but only this value is covered.
_ONLY = dict(hidden_act="silu", attention_bias=False, rms_norm_eps=1e-6)
_SEMANTIC_ONLY = dict(
    hidden_act="swish", feature_projection_input_dim=_STACK * _BANDS, position_embeddings_type="relative_key", add_adapter=False,
    use_intermediate_ffn_before_adapter=False, layer_norm_eps=1e-5,
)  # fmt: skip


def _config_from_public(config: dict[str, Any]) -> XCodec2Config:
    """Translate transformers' config.json of `Xcodec2Model` or `NeuCodecModel`; what is absent has the library's value.

    Raises:
        ValueError: another kind of model, or a value that this family does not cover.
    """
    kind = config.get("model_type")
    if kind not in _KINDS:
        raise ValueError(f"xcodec2: model_type={kind!r} in config.json. Allowed: {', '.join(_KINDS)}.")
    found = (config.get("semantic_model_config") or {}).get("model_type", "wav2vec2-bert")
    if found != "wav2vec2-bert":
        raise ValueError(f"xcodec2: semantic_model_config.model_type={found!r} in config.json. Allowed: wav2vec2-bert.")
    from transformers import NeuCodecConfig, Xcodec2Config

    neucodec = kind == _KINDS[1]
    library = (NeuCodecConfig if neucodec else Xcodec2Config).from_dict(config)
    semantic = library.semantic_model_config
    rope = library.rope_parameters or {}
    fixed = {key: (getattr(library, key), value) for key, value in _ONLY.items()}
    fixed |= {f"semantic_model_config.{key}": (getattr(semantic, key), value) for key, value in _SEMANTIC_ONLY.items()}
    fixed["num_key_value_heads"] = (library.num_key_value_heads, library.num_attention_heads)
    fixed["quantization_dim"] = (library.quantization_dim, library.hidden_size + semantic.hidden_size)
    fixed["rope_parameters.rope_type"] = (rope.get("rope_type", "default"), "default")
    for key, (value, wanted) in fixed.items():
        if value != wanted:
            raise ValueError(f"xcodec2: {key}={value!r} in config.json. This implementation knows: {wanted!r}.")
    values = {ours: getattr(library, key) for ours, key in _PUBLIC.items()}
    values |= {ours: getattr(semantic, key) for ours, key in _SEMANTIC.items()}
    rates = (library.output_sampling_rate, library.input_sampling_rate) if neucodec else (library.sampling_rate,) * 2
    return XCodec2Config.from_dict(
        {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in values.items()},
            "sample_rate": rates[0],
            "encoder_sample_rate": rates[1],
            "padded_spectrum": not neucodec,
            "rope_base": rope.get("rope_theta", 10_000.0),
        }
    )
