"""K-means on the features of a self-supervised speech model: the semantic tokens of textless language models.

Papers: Hsu et al., "HuBERT", arXiv 2106.07447; Chen et al., "WavLM", arXiv 2110.13900; Lakhotia et al., "On Generative Spoken
Language Modeling from Raw Audio", arXiv 2102.01192 (codes = nearest centroid of a layer's features). The network is the library
transformers' `HubertModel` or `WavLMModel`, cut behind the layer that is used; its features are tested against the whole model.

    sound (b, 1, s) -> convolutions -> transformer layers 1..layer -> (b, n, width) -> nearest centroid

The public files hold no centroids (those of others are pickles of foreign classes). So `zoo.load` gives the features, and `fit`
finds the centroids from sound of your own; `encode` refuses until then. A fitted tokenizer is saved and loaded as every other.

`decode` gives what a code stands for, its centroid `(b, n, width)`: meaning, not a waveform. A vocoder of units makes sound of it.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel, WavLMConfig, WavLMModel

from zoo.checkpoint import weight_norm_keys
from zoo.config import Config
from zoo.quantizers import VQ
from zoo.quantizers.learning import kmeans, seeded_generator
from zoo.quantizers.search import squared_distances
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["SslKMeans", "SslKMeansConfig"]

_TINY = 1e-7  # of the variance of a normalised signal


@dataclass(frozen=True, kw_only=True)
class SslKMeansConfig(Config):
    """Sizes; the defaults are HuBERT base with 500 centroids on its ninth layer.

    Attributes:
        model: "hubert" or "wavlm".
        layer: transformer layer whose output is quantized, 1 for the first.
        codebook_size: centroids.
        sample_rate: samples per second.
        width: channels of the features.
        heads: of the attention.
        mlp_width: of the feed-forward layers.
        conv_channels: of each convolution before the transformer.
        conv_kernels: likewise.
        conv_strides: likewise; their product is the hop.
        conv_bias: the convolutions have one.
        conv_norm: "group" normalises the first convolution's output over time, "layer" every one's over channels.
        position_kernel: of the convolution that gives positions.
        position_groups: likewise.
        pre_norm: norms lie before attention and feed-forward (the large models), not after.
        normalise: bring each signal to zero mean and unit variance first, as the large models were trained.
        buckets: WavLM: of relative positions.
        max_distance: WavLM: beyond it all positions share a bucket.
    """

    model: Literal["hubert", "wavlm"] = "hubert"
    layer: int = 9
    codebook_size: int = 500
    sample_rate: int = 16000
    width: int = 768
    heads: int = 12
    mlp_width: int = 3072
    conv_channels: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: Literal["group", "layer"] = "group"
    position_kernel: int = 128
    position_groups: int = 16
    pre_norm: bool = False
    normalise: bool = False
    buckets: int = 320
    max_distance: int = 800

    def __post_init__(self) -> None:
        self.require(self.model in ("hubert", "wavlm"), "model", "hubert, wavlm")
        self.require(self.conv_norm in ("group", "layer"), "conv_norm", "group, layer")
        for name in ("layer", "sample_rate", "mlp_width", "position_kernel", "position_groups", "buckets", "max_distance"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.codebook_size >= 2, "codebook_size", "at least 2")
        self.require(self.heads >= 1 and self.width % self.heads == 0, "width", f"a multiple of heads={self.heads}")
        count = len(self.conv_channels)
        for name in ("conv_channels", "conv_kernels", "conv_strides"):
            values = getattr(self, name)
            self.require(len(values) == count and count > 0 and min(values) >= 1, name, f"{max(count, 1)} numbers, all at least 1")

    @property
    def hop(self) -> int:
        """Samples between two features."""
        return math.prod(self.conv_strides)

    def positions(self, samples: int) -> int:
        """Features of a signal; zero or less where it is too short for one."""
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    @property
    def least(self) -> int:
        """Samples that the first feature sees."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernels), reversed(self.conv_strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples


def _network(config: SslKMeansConfig) -> nn.Module:
    """The library's model, cut behind the layer; what only training draws is off."""
    plain = dict(
        hidden_size=config.width,
        num_hidden_layers=config.layer,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        conv_dim=config.conv_channels,
        conv_kernel=config.conv_kernels,
        conv_stride=config.conv_strides,
        conv_bias=config.conv_bias,
        feat_extract_norm=config.conv_norm,
        num_feat_extract_layers=len(config.conv_channels),
        num_conv_pos_embeddings=config.position_kernel,
        num_conv_pos_embedding_groups=config.position_groups,
        do_stable_layer_norm=config.pre_norm,
        **dict.fromkeys(("mask_time_prob", "mask_feature_prob", "layerdrop", "hidden_dropout", "attention_dropout"), 0.0),
        **dict.fromkeys(("activation_dropout", "feat_proj_dropout", "final_dropout"), 0.0),
        apply_spec_augment=False,
    )
    if config.model == "hubert":
        network: nn.Module = HubertModel(HubertConfig(**plain))
    else:
        network = WavLMModel(WavLMConfig(**plain, num_buckets=config.buckets, max_bucket_distance=config.max_distance))
    if config.pre_norm:  # the norm behind the last layer is no layer's output
        network.encoder.layer_norm = nn.Identity()
    return network


class SslKMeans(Tokenizer):
    """Speech of any length to one code of meaning a feature."""

    family = "ssl_kmeans"
    Config = SslKMeansConfig
    config: SslKMeansConfig

    def __init__(self, config: SslKMeansConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.network = _network(config)
        self.quantizer = VQ(
            dim=config.width, codebook_size=config.codebook_size, learning="gradient", commitment_weight=0.0, kmeans_iterations=0
        )

    @classmethod
    def layout_of(cls, config: SslKMeansConfig) -> dict[str, Any]:
        rate = config.sample_rate / config.hop
        return {
            "modality": "audio",
            "layout": "1d",
            "discrete": True,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,),
            "downsample": (config.hop, 1, 1),
            "sample_rate": config.sample_rate,
            "frame_rate": rate,
            "bits_per_second": rate * math.log2(config.codebook_size),
            "audio_channels": 1,
        }

    def features(self, x: Tensor) -> Tensor:
        """Give what is quantized, `(b, n, width)`, of sound `(b, 1, s)` that is long enough for one feature."""
        signal = x[:, 0]
        if self.config.normalise:
            mean = signal.mean(1, keepdim=True)
            signal = (signal - mean) * (signal.var(1, correction=0, keepdim=True) + _TINY).rsqrt()
        return self.network(signal).last_hidden_state

    def fit(self, sounds: Iterable[Tensor], *, start_iterations: int = 20, seed: int = 0) -> list[float]:
        """Find the centroids by k-means in batches, in one walk over the data.

        The first batches that together hold four features a centroid start them: drawn features, then Lloyd's steps. After that
        each batch moves every centroid to the mean of all features that it has been nearest to (Sculley, "Web-scale k-means
        clustering", 2010).

        Args:
            sounds: batches `(b, 1, s)` of equal length each, in [-1, 1], on the device of the weights.
            start_iterations: Lloyd's steps at the start.
            seed: of the features that are drawn at the start.

        Returns:
            Mean squared distance of the features to their centroids, batch by batch, before the batch moved them.

        Raises:
            ValueError: a batch that `encode` would refuse, or fewer features than centroids in all.
        """
        name, k = f"{self.info.name}.fit", self.config.codebook_size
        held: list[Tensor] = []
        counts: Tensor | None = None
        means, errors = self.quantizer.codebook.detach(), []
        for x in sounds:
            self._check_signal(x)
            with torch.no_grad():
                padded = self._pad(x.to(self.dtype), self._legal_size(tuple(x.shape[2:])))
                rows = self.features(padded).flatten(0, 1).to(means.dtype)
            if counts is None:
                held.append(rows)
                if sum(map(len, held)) >= 4 * k:
                    means, counts = _start(torch.cat(held), k, start_iterations, seed)
                    held = []
                continue
            distances = squared_distances(rows, means)
            least, codes = distances.min(1)
            errors.append(float(least.clamp_min(0).mean()))
            new = torch.zeros_like(counts).index_add_(0, codes, torch.ones_like(least))
            sums = torch.zeros_like(means).index_add_(0, codes, rows)
            counts = counts + new
            means = means + (sums - new[:, None] * means) / counts.clamp_min(1)[:, None]
        if counts is None:
            found = sum(map(len, held))
            if found < k:
                raise ValueError(f"{name}: the sounds have {found} features. Needed: at least {k}, one for each centroid.")
            means, _ = _start(torch.cat(held), k, start_iterations, seed)
        self.quantizer.set_codebook(means)
        return errors

    # -- the contract ------------------------------------------------------------------------------------------------------------

    def _legal_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Any length that gives a feature; a shorter one is filled with zeros to it."""
        return (max(size[0], self.config.least),)

    def _grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.positions(size[0]),)

    def _pad(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        return nn.functional.pad(x, (0, size[0] - x.shape[2]))

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        if not torch.compiler.is_compiling() and not self.quantizer.is_started():
            raise ValueError(f"{self.info.name}.encode: no centroids are there yet. Find them with fit(sounds).")
        return self.quantizer.encode(self.features(x))

    def decode(self, tokens: Tokens, **options: Any) -> Tensor:
        """Turn tokens into the features that they stand for: this tokenizer keeps what is said, not how it sounds.

        Args:
            tokens: made by this tokenizer, or by a generator trained on its tokens.
            options: none.

        Returns:
            `(b, n, width)` centroids; zero where an item has no position.

        Raises:
            ValueError: as every tokenizer.
        """
        self._check_tokens(tokens)
        self._check_options(options, len(tokens))
        vectors = self._decode(tokens, tuple(tokens.extent[0].tolist()))
        return vectors if tokens.lengths is None else vectors * tokens.mask[..., None]

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.quantizer.decode(tokens.data).to(self.dtype)

    def postprocess(self, x: Tensor, **options: Any) -> list[Any]:
        """Refuse: features are no sound.

        Raises:
            ValueError: always; it says what to do instead.
        """
        raise ValueError(
            f"{self.info.name}.postprocess: decode() gives features, not sound. Give them, or the codes, to a vocoder of units."
        )

    # -- the public release's format ---------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> SslKMeansConfig:
        return _config_from_public(config)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: SslKMeansConfig) -> dict[str, Tensor]:
        return _rename_public(tensors, config)


def _start(rows: Tensor, k: int, iterations: int, seed: int) -> tuple[Tensor, Tensor]:
    """Centroids and counts of the first features."""
    picks = torch.randperm(len(rows), generator=seeded_generator(seed, 1))[:k].to(rows.device)
    return kmeans(rows, rows[picks], iterations=iterations, cosine=False)


# -- reading the public release ----------------------------------------------------------------------------------------------------

_PUBLIC = {
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "conv_dim": "conv_channels",
    "conv_kernel": "conv_kernels",
    "conv_stride": "conv_strides",
    "conv_bias": "conv_bias",
    "feat_extract_norm": "conv_norm",
    "num_conv_pos_embeddings": "position_kernel",
    "num_conv_pos_embedding_groups": "position_groups",
    "do_stable_layer_norm": "pre_norm",
    "num_buckets": "buckets",
    "max_bucket_distance": "max_distance",
}
# What the library can be told, but only this value is covered.
_FIXED = {"hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5, "feat_proj_layer_norm": True}
_FIXED |= {"conv_pos_batch_norm": False, "add_adapter": False}
_SHARE = 0.75  # of the layers, where nobody says which one; HuBERT's own units come from 9 of 12


def _config_from_public(config: Mapping[str, Any]) -> SslKMeansConfig:
    """Translate the library's configuration of HuBERT or WavLM.

    It does not say which layer is quantized: `kmeans_layer` and `kmeans_codes` may be added to it; else it is three quarters of the
    layers, and 500.

    Raises:
        ValueError: another kind of model, a layer that it does not have, or a value that this family does not cover.
    """
    kind, layers = config.get("model_type"), config.get("num_hidden_layers", 12)
    if kind not in ("hubert", "wavlm"):
        raise ValueError(f"ssl_kmeans: model_type={kind!r} in config.json. Allowed: hubert, wavlm.")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise ValueError(f"ssl_kmeans: {key}={config[key]!r} in config.json. Known: {value!r}.")
    layer = config.get("kmeans_layer", round(layers * _SHARE))
    if not isinstance(layer, int) or not 1 <= layer <= layers:
        raise ValueError(f"ssl_kmeans: kmeans_layer={layer!r} in config.json. Allowed: 1..{layers}.")
    values = {ours: config[key] for key, ours in _PUBLIC.items() if key in config}
    return SslKMeansConfig.from_dict(
        {
            **values,
            "model": kind,
            "layer": layer,
            "codebook_size": config.get("kmeans_codes", 500),
            "normalise": values.get("conv_norm", "group") == "layer",
        }
    )


_UNUSED = re.compile(r"masked_spec_embed$|label_embs|project_|(lm_head|final_proj|quantizer|adapter|classifier|projector)\.")


def _rename_public(tensors: dict[str, Tensor], config: SslKMeansConfig) -> dict[str, Tensor]:
    """Keep the layers that are used; the centroids are left to `fit`, and `initialized` says that they are not there."""
    out: dict[str, Tensor] = {}
    for key, value in weight_norm_keys(tensors).items():
        name = key.removeprefix("hubert.").removeprefix("wavlm.")
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        if _UNUSED.match(name) or (layer is not None and int(layer[1]) >= config.layer):
            continue
        if config.pre_norm and name.startswith("encoder.layer_norm."):
            continue
        out[f"network.{name}"] = value
    out["quantizer.codebook"] = torch.zeros(config.codebook_size, config.width)
    out["quantizer.cluster_size"] = torch.ones(config.codebook_size)
    out["quantizer.initialized"] = torch.tensor(False)
    out["quantizer.clock.steps"] = torch.tensor(0)
    return out
