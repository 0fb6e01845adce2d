"""SEED: pictures as 32 codes with meaning, each depending only on the ones before it; decoded to an image embedding, not to pixels.

Papers: "Planting a SEED of Vision in Large Language Model", arXiv 2307.08041; "Making LLaMA SEE and Draw with SEED Tokenizer",
arXiv 2310.01218 (the version here). Source repository: AILab-CVC/SEED, commit 93b3cf4. Checked against tests/parity/seed: codes
equal, tensors to 1e-4.

    picture -> EVA-CLIP vision transformer (timm) -> norm -> Q-Former: n queries, causal -> linear, tanh, linear -> VQ -> codes
    codes -> linear, tanh, linear -> + positions, blocks       -> the Q-Former's embeddings again            (training target)
                                  -> + positions, image blocks -> head -> embedding of the picture in CLIP   (what `decode` gives)

`decode` gives `(b, features)`, the embedding that an image generator conditioned on CLIP embeddings is driven with; the original
uses stable-diffusion-2-1-unclip. Pixels, PSNR and rFID are not defined for it. The head is a bottleneck of linear layers, or a
reverse Q-Former with one query.

How this differs from the original, with the same numbers: pictures are in [-1, 1] and CLIP's mean and spread are applied inside;
causality is a setting for any number of queries (the original is silently bidirectional unless there are exactly 32); no dropout in
training; files load strictly. The original squeezes pictures to a square with bicubic resampling, `preprocess` cuts the centre.
The text side of the Q-Former (contrastive first stage) is not part of the tokenizer, and its tensors are left out.
"""

import logging
import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config
from zoo.quantizers.vq import VQ
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["QFormer", "Seed", "SeedConfig", "SeedLosses"]

logger = logging.getLogger(__name__)
_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures in [0, 1]
_STD = (0.26862954, 0.26130258, 0.27577711)
_QFORMER_EPS = 1e-12
_VISION_EPS = 1e-6
_BOTTLENECK = (256, 128, 32)  # widths of the linear head, position by position
_CAUSAL_QUERIES = 32  # the one number of queries at which the public code is causal
_SPREAD = 0.02  # of new queries and positions
_AT_LEAST_ONE = (
    *("image_size", "patch", "vision_width", "vision_depth", "vision_heads", "queries", "width", "depth", "heads", "mlp_width"),
    *("cross_every", "channels", "codebook_size", "block_depth", "block_heads", "features"),
)


@dataclass(frozen=True, kw_only=True)
class SeedConfig(Config):
    """Sizes of a SEED tokenizer; the defaults are those of the public SEED-2 model.

    Attributes:
        image_size: side of the pictures.
        patch: side of a patch.
        vision_width, vision_depth, vision_heads, vision_mlp_ratio: of the frozen vision transformer.
        queries: n, the number of codes.
        width, depth, heads, mlp_width: of the Q-Former, and of the reverse one.
        cross_every: blocks 0, k, 2k, ... of the Q-Former look at the picture.
        causal: query i sees queries 0..i only.
        channels: of a code's vector.
        codebook_size: k.
        commitment_weight, codebook_weight: of the VQ's loss; the original puts its 0.25 on the codebook's term.
        block_depth, block_heads: of each of the two decoder branches.
        reverse_qformer: the head is a Q-Former with one query; False for linear layers.
        features: of the embedding that `decode` gives.
    """

    image_size: int = 224
    patch: int = 14
    vision_width: int = 1408
    vision_depth: int = 39
    vision_heads: int = 16
    vision_mlp_ratio: float = 4.3637
    queries: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    cross_every: int = 2
    causal: bool = True
    channels: int = 32
    codebook_size: int = 8192
    commitment_weight: float = 1.0
    codebook_weight: float = 0.25
    block_depth: int = 4
    block_heads: int = 12
    reverse_qformer: bool = False
    features: int = 1024

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.vision_mlp_ratio > 0, "vision_mlp_ratio", "more than 0")
        self.require(self.commitment_weight >= 0, "commitment_weight", "0 or more")
        self.require(self.codebook_weight >= 0, "codebook_weight", "0 or more")
        self.require(self.image_size % self.patch == 0, "image_size", "a multiple of patch")
        self.require(self.vision_width % self.vision_heads == 0, "vision_width", "a multiple of vision_heads")
        self.require(self.width % self.heads == 0, "width", "a multiple of heads")
        self.require(self.width % self.block_heads == 0, "width", "a multiple of block_heads")


class _Attention(nn.Module):
    """Attention with its residual and the norm after it, as in BERT."""

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_QFORMER_EPS)

    def forward(self, x: Tensor, context: Tensor, causal: bool = False) -> Tensor:
        parts = (self.query(x), self.key(context), self.value(context))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.norm(x + self.out(mixed.transpose(1, 2).flatten(2)))


class _QFormerBlock(nn.Module):
    """Self-attention, attention to the context where there is one, and an MLP, each with the norm after it."""

    def __init__(self, width: int, heads: int, mlp_width: int, context_width: int | None) -> None:
        super().__init__()
        self.attention = _Attention(width, heads, width)
        self.cross_attention = None if context_width is None else _Attention(width, heads, context_width)
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)
        self.norm = nn.LayerNorm(width, eps=_QFORMER_EPS)

    def forward(self, x: Tensor, context: Tensor, causal: bool) -> Tensor:
        x = self.attention(x, x, causal)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context)
        return self.norm(x + self.down(F.gelu(self.up(x))))


class QFormer(nn.Module):
    """Let learned queries `(1, n, c)` read a context `(b, m, context_width)`: `(b, n, c)`."""

    def __init__(self, config: SeedConfig, *, context_width: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm = nn.LayerNorm(config.width, eps=_QFORMER_EPS)
        self.blocks = nn.ModuleList(
            _QFormerBlock(config.width, config.heads, config.mlp_width, None if i % config.cross_every else context_width)
            for i in range(config.depth)
        )

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        x = self.norm(queries).expand(context.shape[0], -1, -1)
        for block in self.blocks:
            x = block(x, context, self.causal)
        return x


class SeedLosses(NamedTuple):
    """Losses of the codebook's training (second stage), each `()`.

    Attributes:
        total: 5 quantizer + 2 reconstruction + 0.5 generation, the original's weights.
        quantizer: of the VQ.
        reconstruction: 1 - cosine of the rebuilt and the causal embeddings, mean over positions.
        generation: mean squared error of the generation embedding.
    """

    total: Tensor
    quantizer: Tensor
    reconstruction: Tensor
    generation: Tensor


def _vision_tower(config: SeedConfig) -> Eva:
    """Build EVA-CLIP's vision transformer without a norm behind its blocks."""
    tower = Eva(
        img_size=config.image_size,
        patch_size=config.patch,
        embed_dim=config.vision_width,
        depth=config.vision_depth,
        num_heads=config.vision_heads,
        mlp_ratio=config.vision_mlp_ratio,
        num_classes=0,
        global_pool="avg",
        use_fc_norm=True,
        norm_layer=partial(nn.LayerNorm, eps=_VISION_EPS),
    )
    tower.fc_norm = nn.Identity()  # the norm of a pooled vector, which is not made here
    return tower


def _blocks(config: SeedConfig) -> nn.Sequential:
    norm = partial(nn.LayerNorm, eps=_VISION_EPS)
    return nn.Sequential(
        *(Block(config.width, config.block_heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm) for _ in range(config.block_depth))
    )


def _table(config: SeedConfig, positions: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(1, positions, config.width).normal_(std=_SPREAD))


class Seed(Tokenizer):
    """Pictures of one size to n causal codes, and these to the picture's embedding `(b, features)`."""

    family = "seed"
    Config = SeedConfig
    config: SeedConfig

    def __init__(self, config: SeedConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        width, channels, n = config.width, config.channels, config.queries
        self.vision = _vision_tower(config)
        self.vision_norm = nn.LayerNorm(config.vision_width)
        self.queries = _table(config, n)
        self.qformer = QFormer(config, context_width=config.vision_width, causal=config.causal)
        self.to_code = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, channels))
        self.quantizer = VQ(
            dim=channels,
            codebook_size=config.codebook_size,
            learning="gradient",
            commitment_weight=config.commitment_weight,
            codebook_weight=config.codebook_weight,
            kmeans_iterations=0,
        )
        nn.init.uniform_(self.quantizer.codebook, -1 / config.codebook_size, 1 / config.codebook_size)
        self.from_code = nn.Sequential(nn.Linear(channels, channels), nn.Tanh(), nn.Linear(channels, width))
        self.positions = _table(config, n)
        self.blocks = _blocks(config)
        self.image_positions = _table(config, n)
        self.image_blocks = _blocks(config)
        if config.reverse_qformer:
            self.reverse_queries = _table(config, 1)
            self.reverse_qformer = QFormer(config, context_width=width, causal=False)
            self.image_head = nn.Linear(width, config.features)
        else:
            first, second, last = _BOTTLENECK
            self.bottleneck = nn.Sequential(
                nn.Linear(width, first, bias=False),
                nn.ReLU(),
                nn.Linear(first, second, bias=False),
                nn.ReLU(),
                nn.Linear(second, last, bias=False),
            )
            self.image_head = nn.Linear(n * last, config.features)

    @classmethod
    def layout_of(cls, config: SeedConfig) -> dict[str, Any]:
        return {
            "modality": "image",
            "layout": "1d",
            "discrete": True,
            "tokens": config.queries,
            "codebook_size": config.codebook_size,
            "vocabulary": (config.codebook_size,),
            "native_size": (config.image_size, config.image_size),
            "size_multiple": config.image_size,
            "max_size": config.image_size,
            "bits_per_pixel": config.queries * math.log2(config.codebook_size) / config.image_size**2,
        }

    # -- steps that recipes and tests look at ------------------------------------------------------------------------------------

    def vision_features(self, x: Tensor) -> Tensor:
        """Give the frozen tower's features `(b, 1 + patches, c)`, class token first, of pictures in [-1, 1] of the native size."""
        mean, std = (x.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        return self.vision_norm(self.vision.forward_features((x * 0.5 + 0.5 - mean) / std))

    def causal_embeddings(self, features: Tensor) -> Tensor:
        """Give what the queries read, `(b, n, width)`, of `vision_features`; position i depends on queries 0..i."""
        return self.qformer(self.queries, features)

    def encode_vectors(self, x: Tensor) -> Tensor:
        """Give what the quantizer gets, `(b, n, channels)`, of pictures `(b, 3, h, w)` in [-1, 1] of the native size."""
        return self.to_code(self.causal_embeddings(self.vision_features(x)))

    def rebuild_embeddings(self, vectors: Tensor) -> Tensor:
        """Rebuild the causal embeddings `(b, n, width)` from vectors of codes `(b, n, channels)`."""
        return self.blocks(self.from_code(vectors) + self.positions)

    def decode_vectors(self, vectors: Tensor) -> Tensor:
        """Give the generation embedding `(b, features)` of vectors of codes `(b, n, channels)`; with gradient to them."""
        y = self.image_blocks(self.from_code(vectors) + self.image_positions)
        if self.config.reverse_qformer:
            return self.image_head(self.reverse_qformer(self.reverse_queries, y)[:, 0])
        return self.image_head(self.bottleneck(y).flatten(1))

    def codebook_losses(self, x: Tensor, target: Tensor) -> SeedLosses:
        """Give the losses of the second stage; no gradient reaches the tower and the Q-Former, which are frozen there.

        Args:
            x: pictures `(b, 3, h, w)` in [-1, 1] of the native size.
            target: embeddings of the same pictures `(b, features)`; in the original of CLIP ViT-H/14.

        Raises:
            ValueError: a target of another shape.
        """
        if target.shape != (len(x), self.config.features):
            found, needed = tuple(target.shape), (len(x), self.config.features)
            raise ValueError(f"{self.info.name}.codebook_losses: target has shape {found}. Needed: {needed}, one for each picture.")
        with torch.no_grad():
            embeddings = self.causal_embeddings(self.vision_features(x))
        quantized = self.quantizer(self.to_code(embeddings))
        rebuilt = self.rebuild_embeddings(quantized.x)
        reconstruction = 1 - F.cosine_similarity(rebuilt, embeddings, dim=-1).mean()
        generation = F.mse_loss(self.decode_vectors(quantized.x), target)
        total = 5 * quantized.loss + 2 * reconstruction + 0.5 * generation
        return SeedLosses(total, quantized.loss, reconstruction, generation)

    # -- the contract ------------------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        return self.quantizer.encode(self.encode_vectors(x))

    def decode(self, tokens: Tokens, **options: Any) -> Tensor:
        """Turn tokens into embeddings of pictures: this tokenizer keeps what is seen, not how it looks.

        Args:
            tokens: made by this tokenizer, or by a generator trained on its tokens.
            options: none.

        Returns:
            `(b, features)` in the space of the image embeddings it was trained on (CLIP ViT-H/14 for the public weights), whatever
            the extent of the items.

        Raises:
            ValueError: as every tokenizer.
        """
        self._check_tokens(tokens)
        self._check_options(options, len(tokens))
        return self._decode(tokens, (self.config.image_size, self.config.image_size))

    def _decode(self, tokens: Tokens, size: tuple[int, ...]) -> Tensor:
        return self.decode_vectors(self.quantizer.decode(tokens.data).to(self.dtype))

    def postprocess(self, x: Tensor) -> list[Any]:
        """Refuse: an embedding is no picture.

        Raises:
            ValueError: always; it says what to do instead.
        """
        raise ValueError(
            f"{self.info.name}.postprocess: decode() gives embeddings, not pictures. Give them to an image generator that is "
            "conditioned on CLIP embeddings, such as stable-diffusion-2-1-unclip."
        )

    # -- the public release's format ---------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> SeedConfig:
        return _config_from_public(config)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: SeedConfig) -> dict[str, Tensor]:
        return _rename_public(tensors, config)


# -- reading the public release ----------------------------------------------------------------------------------------------------

_SIZES = {
    "img_size": "image_size",
    "num_query_token": "queries",
    "cross_attention_freq": "cross_every",
    "codebook_embed_dim": "channels",
    "n_embed": "codebook_size",
    "decode_depth": "block_depth",
    "block_num_heads": "block_heads",
    "use_qformer_image": "reverse_qformer",
    "image_features_dim": "features",
}
_VISION_SIZES = {
    "patch_size": "patch",
    "embed_dim": "vision_width",
    "depth": "vision_depth",
    "num_heads": "vision_heads",
    "mlp_ratio": "vision_mlp_ratio",
}
_BERT_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
}
# What the public code can be told, but only this value is covered.
_FIXED = {
    "": {"recon_s": True, "blocks_for_image": True},
    "vit": {"qkv_bias": True, "norm_eps": _VISION_EPS},
    "bert": {"hidden_act": "gelu", "layer_norm_eps": _QFORMER_EPS},
}
_UNUSED = ("hidden_dropout_prob", "attention_probs_dropout_prob", "vocab_size", "max_position_embeddings", "pad_token_id")


def _config_from_public(config: dict[str, Any]) -> SeedConfig:
    """Translate the constructor arguments of the public class, with those of its tower under `vit` and of BERT under `bert`.

    A key that is absent means the public model's size; keys that begin with `_` are remarks. A public model with any other number
    of queries than 32 was trained without the causal mask, so it gets none here.

    Raises:
        ValueError: no known key at all, a part that is no object, or a value that this family does not cover.
    """
    out: dict[str, Any] = {}
    unknown: list[str] = []
    for part, sizes in (("", _SIZES), ("vit", _VISION_SIZES), ("bert", _BERT_SIZES)):
        values = config.get(part, {}) if part else config
        if not isinstance(values, dict):
            raise ValueError(f"seed: {part} in config.json is a {type(values).__name__}. Needed: an object.")
        for key, value in values.items():
            where = f"{part}.{key}" if part else key
            if key in sizes:
                out[sizes[key]] = value
            elif key in _FIXED[part]:
                if value != _FIXED[part][key]:
                    raise ValueError(f"seed: {where}={value!r} in config.json. Known: {_FIXED[part][key]!r}.")
            elif not key.startswith("_") and key not in _UNUSED and (part or key not in ("vit", "bert")):
                unknown.append(where)
    if not out:
        raise ValueError(f"seed: config.json holds none of {', '.join(_SIZES)}. Is it that of a SEED tokenizer?")
    if unknown:
        logger.warning("seed: keys of config.json that are not known and not used: %s", ", ".join(unknown))
    return SeedConfig.from_dict({**out, "causal": out.get("queries", _CAUSAL_QUERIES) == _CAUSAL_QUERIES})


# Tensors of the text side, which encoding and decoding pictures never use.
_TEXT_SIDE = re.compile(
    r"(Reverse_)?Qformer\.(cls\.|bert\.embeddings\.(word_embeddings|position_embeddings|position_ids)"
    r"|bert\.encoder\.layer\.\d+\.(intermediate|output)\.)|(vision_proj|text_proj|itm_head)\.|temp$"
)
_LINEAR_HEAD, _REVERSE_HEAD = "image_down.", ("Reverse_Qformer.", "reverse_tokens")
_STARTS = {
    "visual_encoder.": "vision.",
    "ln_vision.": "vision_norm.",
    "query_tokens": "queries",
    "Qformer.bert.": "qformer.",
    "encode_task_layer.": "to_code.",
    "quantize.embedding.weight": "quantizer.codebook",
    "decode_task_layer.": "from_code.",
    "pos_embed_image": "image_positions",
    "pos_embed": "positions",
    "blocks_image.": "image_blocks.",
    "image_down.": "bottleneck.",
    "distill_image_proj.": "image_head.",
    "reverse_tokens": "reverse_queries",
    "Reverse_Qformer.bert.": "reverse_qformer.",
}
_INSIDE_QFORMER = {
    "embeddings.LayerNorm.": "norm.",
    "encoder.layer.": "blocks.",
    ".crossattention.": ".cross_attention.",
    ".self.": ".",
    ".output.dense.": ".out.",
    ".output.LayerNorm.": ".norm.",
    ".intermediate_query.dense.": ".up.",
    ".output_query.dense.": ".down.",
    ".output_query.LayerNorm.": ".norm.",
}


def _rename_public(tensors: dict[str, Tensor], config: SeedConfig) -> dict[str, Tensor]:
    """Give public tensors our names; leave out the text side and, in a file with both heads, the one that is not configured.

    A name that is not known stays as it is.

    Raises:
        ValueError: the file has the other head than the configuration asks for.
    """
    linear = any(key.startswith(_LINEAR_HEAD) for key in tensors)
    reverse = any(key.startswith(_REVERSE_HEAD) for key in tensors)
    if linear != reverse and reverse != config.reverse_qformer:
        found = "a reverse Q-Former" if reverse else "linear layers"
        raise ValueError(
            f"seed: the head of this file is {found}, but the configuration has reverse_qformer={config.reverse_qformer} "
            f"(public name: use_qformer_image). Use {reverse}."
        )
    idle_head = _LINEAR_HEAD if config.reverse_qformer else _REVERSE_HEAD
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if _TEXT_SIDE.match(key) or key.startswith(idle_head):
            continue
        start = next((start for start in _STARTS if key.startswith(start)), "")
        new = _STARTS.get(start, "") + key.removeprefix(start)
        if new.startswith(("qformer.", "reverse_qformer.")):
            for old, ours in _INSIDE_QFORMER.items():
                new = new.replace(old, ours)
        out[new] = value
    codebook = out.get("quantizer.codebook")
    if codebook is not None:
        out["quantizer.cluster_size"] = torch.ones(len(codebook))
        out["quantizer.initialized"] = torch.tensor(True)
        out["quantizer.clock.steps"] = torch.tensor(0)
    return out
