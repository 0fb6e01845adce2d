"""FlexAR: FlexTok's autoregressive generator over its ordered codes (GridAR: over a grid), from a class or text.

Papers: FlexTok (arXiv 2502.13967); (1D) Ordered Tokens Enable Efficient Test-Time Search (arXiv 2604.15453). Checked against
EPFL-VILAB/search-over-tokens (Apache-2.0, commit e7564c5) on the library it is built of, apple/ml-l3m (commit e6376a3), through
tests/parity/flexar: scores to 1e-4, codes equal.

    [start + class, code_1 .. code_{n-1}] + places -> blocks: causal attention, attention to text, gated layer -> code_1 .. code_n

Any prefix decodes, so sampling stops anywhere. Text goes through a frozen FLAN-T5-XL (`zoo.generators.text`) and two layers; the
text "" is the condition left out. The release guides by 3.0 (text) and 1.5 (class), at temperature 1 over all codes.

Differences: keys and values are kept, those of the text made once; an item draws from its own seed; the text is padded to the
longest of a batch, not to a fixed length, which the mask makes the same; the null class stays the null class, where the released
loop writes 0 over it after the first code and so guides by class 0.

No released config.yaml was at hand when this was written: `from_public` reads the sizes off the tensors, the rest off the file, and
refuses what it does not know by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.generators.registry import GeneratorEntry
from zoo.generators.sequence import SequenceConfig, SequenceGenerator
from zoo.generators.text import TextCondition, TextProjection
from zoo.layers.transformer import ContextKeys, CrossAttention, GatedFeedForward, KVCache

__all__ = ["FlexAR", "FlexARConfig"]

Norm = Literal["rms", "layer"]
_PREFIX = "models.ar_image_model."
_TEXT = "models.text_encoder."
_NORMS: dict[str, tuple[Norm, float]] = {  # class named by the public file -> ours, and its epsilon where none is given
    "RMSNorm": ("rms", 1e-6),
    "LayerNormFP32": ("layer", 1e-5),
    "LayerNorm": ("layer", 1e-5),
    "LPLayerNorm": ("layer", 1e-5),
}


@dataclass(frozen=True, kw_only=True)
class FlexARConfig(SequenceConfig):
    """Sizes of the transformer; what differs between releases of one library has a field of its own.

    Attributes:
        hidden: feed-forward width; None for 8 / 3 of the width, rounded up to a multiple of `hidden_multiple`.
        text_hidden: width between the two layers that the text goes through.
        text_gelu: their activation, "tanh" for the approximation.
        norm, norm_bias, eps: kind of the norms before every part, whether layer norms have a shift, and their epsilon.
        qk_norm, qk_eps: norm of queries and keys within a head; None for none.
        scale: of the causal attention; None for one over the root of the head.
        qkv_bias, bias: on queries, keys and values; on what follows them and in the gated layer.
        final_norm: a norm behind the last block.
        score_norm, score_bias: a layer norm before the scores, and a bias on them.
    """

    hidden_multiple: int = 256
    hidden: int | None = None
    text_hidden: int = 2048
    text_gelu: Literal["tanh", "exact"] = "tanh"
    norm: Norm = "rms"
    norm_bias: bool = False
    eps: float = 1e-5
    qk_norm: Norm | None = None
    qk_eps: float = 1e-5
    scale: float | None = None
    qkv_bias: bool = False
    bias: bool = False
    final_norm: bool = True
    score_norm: bool = False
    score_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.hidden is None or self.hidden >= 1, "hidden", "at least 1, or None")
        self.require(self.text_hidden >= 1, "text_hidden", "at least 1")
        for name in ("norm", "qk_norm"):
            self.require(getattr(self, name) in ("rms", "layer", *([None] if name == "qk_norm" else [])), name, "rms, layer")
        self.require(self.text_gelu in ("tanh", "exact"), "text_gelu", "tanh, exact")
        self.require(self.eps > 0 and self.qk_eps > 0, "eps", "above 0, as qk_eps")
        self.require(self.scale is None or self.scale > 0, "scale", "above 0, or None")

    @property
    def feed_forward_width(self) -> int:
        """Width of the gated layer."""
        return self.hidden or -(-int(8 * self.width / 3) // self.hidden_multiple) * self.hidden_multiple

    def make_norm(self, size: int) -> nn.Module:
        """One of the norms before a part."""
        return _norm(self.norm, size, eps=self.eps, bias=self.norm_bias)


def _norm(kind: Norm, size: int, *, eps: float, bias: bool = False) -> nn.Module:
    return nn.RMSNorm(size, eps=eps) if kind == "rms" else nn.LayerNorm(size, eps=eps, bias=bias)


# -- network -----------------------------------------------------------------------------------------------------------------------


class _Attention(nn.Module):
    """Causal attention without rotation; places are added to the input of the first block."""

    def __init__(self, config: FlexARConfig) -> None:
        super().__init__()
        head = config.width // config.heads
        self.heads, self.scale = config.heads, config.scale
        self.wqkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.wo = nn.Linear(config.width, config.width, bias=config.bias)
        self.q_norm = nn.Identity() if config.qk_norm is None else _norm(config.qk_norm, head, eps=config.qk_eps)
        self.k_norm = nn.Identity() if config.qk_norm is None else _norm(config.qk_norm, head, eps=config.qk_eps)

    def forward(self, x: Tensor, cache: KVCache | None, block: int) -> Tensor:
        n = x.shape[1]
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, mask = self.q_norm(q), self.k_norm(k), None
        if cache is not None:
            k, v = cache.extend(block, k, v)
            if n > 1 and cache.kept:
                mask = torch.ones(n, k.shape[2], dtype=torch.bool, device=x.device).tril(cache.kept)
        causal = n > 1 and mask is None
        return self.wo(
            F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale).transpose(1, 2).flatten(2)
        )


class _Block(nn.Module):
    """x += attention(norm x); x += cross(norm x) where there is text; x += feed_forward(norm x)."""

    def __init__(self, config: FlexARConfig) -> None:
        super().__init__()
        width, text = config.width, config.text_width is not None
        self.attention = _Attention(config)
        self.attention_norm = config.make_norm(width)
        inside = None if config.qk_norm is None else partial(_norm, config.qk_norm, eps=config.qk_eps)
        self.cross = None
        if text:
            self.cross = CrossAttention(width, width, config.heads, bias=config.qkv_bias, out_bias=config.bias, head_norm=inside)
        self.cross_norm = config.make_norm(width) if text else None
        self.feed_forward = GatedFeedForward(width, config.feed_forward_width, bias=config.bias)
        self.ffn_norm = config.make_norm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None, block: int, context: ContextKeys | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), cache, block))
        if self.cross is not None and self.cross_norm is not None and context is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), *context.blocks[block], context.known))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class _Trunk(nn.Module):
    """Blocks over vectors `(b, n, width)`, and a last norm where the configuration has one."""

    def __init__(self, config: FlexARConfig) -> None:
        super().__init__()
        self.heads, self.head = config.heads, config.width // config.heads
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.depth_blocks))
        self.norm = config.make_norm(config.width) if config.final_norm else nn.Identity()
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def cache(self, batch: int, length: int) -> KVCache:
        """Give an empty cache for `batch` sequences of at most `length` positions."""
        like = self.layers[0].attention.wqkv.weight
        return KVCache(blocks=len(self.layers), batch=batch, heads=self.heads, head=self.head, length=length, like=like)

    def read(self, context: Tensor, known: Tensor) -> ContextKeys:
        """Make the keys of a context `(b, m, width)` whose real rows `known (b, m)` marks."""
        return ContextKeys(tuple(block.cross.read(context) for block in self.layers), known)

    def forward(self, x: Tensor, cache: KVCache | None, context: ContextKeys | None) -> Tensor:
        for i, block in enumerate(self.layers):
            x = block(x, cache, i, context)
        if cache is not None:
            cache.keep(x.shape[1])
        return self.norm(x)


class FlexAR(SequenceGenerator):
    """Codes `(b, *positions, d)` from a class or text."""

    family = "flexar"
    Config = FlexARConfig
    config_file: ClassVar[str] = "config.yaml"
    learns_no_text: ClassVar[bool] = False
    facts = {"unit": "token", "objective": "cross-entropy", "context": "clean"}

    def __init__(self, config: FlexARConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: FlexARConfig = config
        self._build(None)
        self.places = nn.Parameter(torch.randn(config.count, config.width) * 0.02)
        self.head = nn.Linear(config.width, sum(self.columns), bias=config.score_bias)
        self.head_norm = nn.LayerNorm(config.width, eps=1e-5) if config.score_norm else nn.Identity()
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def _make_trunk(self) -> nn.Module:
        return _Trunk(self.config)

    def _make_text_projection(self, channels: int) -> TextProjection:
        config = self.config
        return TextProjection(channels, config.text_hidden, config.width, exact=config.text_gelu == "exact")

    # -- the text that stands for none ---------------------------------------------------------------------------------------------

    def use_empty_text(self, condition: TextCondition | Tensor) -> Self:
        """Give the embeddings of the text "", for who has embeddings and no tower; `(1, m, c)`.

        Raises:
            ValueError: a generator that takes no text, or embeddings of another shape.
        """
        name = f"{self.info.name}.use_empty_text"
        if self.config.text_width is None:
            raise ValueError(f"{name}: this generator takes no text. Its condition is {self._takes}.")
        condition = condition if isinstance(condition, TextCondition) else TextCondition(condition)
        if len(condition) != 1 or condition.embeddings.shape[2] != self.config.text_width or not bool(condition.known.any()):
            found = tuple(condition.embeddings.shape)
            raise ValueError(
                f"{name}: embeddings of shape {found}. Needed: (1, m, {self.config.text_width}), one real row or more."
            )
        self._empty = condition
        return self

    def no_text(self, n: int) -> TextCondition:
        """The text "" for n items, by the tower unless `use_empty_text` gave it."""
        if self._empty is None:
            self._empty = self.encode_text("")
        return self._empty.expand(n)

    # -- codes and steps -----------------------------------------------------------------------------------------------------------

    def to_steps(self, data: Tensor) -> Tensor:
        return data.flatten(1, -2)

    def from_steps(self, steps: Tensor) -> Tensor:
        return steps if len(self.config.positions) == 1 else steps.unflatten(1, self.config.positions)

    def step_count(self, positions: tuple[int, ...]) -> int:
        n = 1
        for side in positions:
            n *= side
        return n

    def hidden(
        self, steps: Tensor, labels: Tensor | TextCondition, cache: KVCache | None = None, context: ContextKeys | None = None
    ) -> Tensor:
        first, x = self.inputs(steps, labels, cache)
        context = self.context(labels) if context is None else context
        return self.trunk(self.dropout(x + self.places[first : first + x.shape[1]]), cache, context)

    def scores(self, hidden: Tensor, first: int) -> list[Tensor]:
        return super().scores(self.head_norm(hidden), first)

    # -- the public release --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> FlexARConfig:
        """Read config.yaml: sizes from the tensors beside it, the rest from the parts it names.

        Raises:
            KeyError: a part that is not there.
            ValueError: a part of a kind that this implementation does not know.
        """
        parts = _resolved(config, config)["model"]["meta_model"]["models"]
        image = parts["ar_image_model"]
        trunk, text = image["trunk"], parts.get("text_encoder")
        start = _PREFIX + "preprocessor."
        codebook, width = shapes[start + "embedding.weight"]
        count, classes = shapes[start + "positional_embedding"][0], shapes.get(start + "cls_embedding.weight", (0,))[0]
        block, crossed = _PREFIX + "trunk.blocks.0.", text is not None
        _must(trunk, "trunk", "TransformerDecoder" if crossed else "Transformer")
        _must(image["preprocessor"], "preprocessor", "ARImageEmbedPreprocessor")
        _must(image["head"], "head", "LinearClassifier")
        own = trunk["self_attn_target" if crossed else "attn_target"]
        _must(own, "attention", "EfficientAttention", "GenericAttention")
        _must(trunk.get("ffn_target", {}), "ffn_target", "SwiGLUFFN")
        _plain(own, "attention", causal=True)
        if crossed:
            _must(trunk["cross_attn_target"], "cross attention", "GeneralizedAttentionWithMask")
            _plain(trunk["cross_attn_target"], "cross attention", causal=False)
            for key in ("num_heads", "qk_norm"):
                if trunk["cross_attn_target"].get(key) != own.get(key):
                    raise ValueError(f"flexar: {key} of the two attentions in config.yaml differs. This implementation has one.")
        norm, eps = _norm_of(trunk.get("norm_layer") or {"_target_": "LayerNorm", "eps": 1e-6}, "norm_layer")
        inside = own.get("qk_norm")
        qk_norm, qk_eps = (None, 1e-5) if inside is None else _norm_of(inside, "qk_norm")
        attention = block + ("self_attn." if crossed else "attn.")
        qkv = attention + ("qkv" if attention + "qkv.weight" in shapes else "q_proj")
        picture = parts.get("image_tokenizer") or {}
        grid = image["preprocessor"].get("token_grid_size") or [count, 1]
        positions = (count,) if count in grid else tuple(grid)
        embedder = (text or {}).get("t5_embedder", {})
        dropped = embedder.get("cond_dropout_p", 0.0) if crossed else image["preprocessor"].get("cond_dropout_prob", 0.0)
        default = "flextok_d18_d28_dfn" if len(positions) == 1 else "flextok_grid"
        return FlexARConfig(
            tokenizer=str(picture.get("model_id") or default).rstrip("/").rpartition("/")[2],
            positions=positions,
            extent=tuple(picture.get("image_dims") or (256, 256)),
            vocabulary=(codebook,),
            ordered=len(positions) == 1,
            classes=classes,
            label_dropout=float(dropped),
            text_width=shapes[_TEXT + "mlp.fc1.weight"][1] if crossed else None,
            text_encoder=embedder.get("hf_hub_path", "google/flan-t5-xl") if crossed else None,
            text_length=embedder.get("encoder_seqlen_max"),
            text_hidden=shapes[_TEXT + "mlp.fc1.weight"][0] if crossed else 2048,
            text_gelu=_gelu((text or {}).get("mlp", {}).get("act_layer")),
            width=width,
            depth_blocks=1 + max(int(found[1]) for key in shapes if (found := re.match(_PREFIX + r"trunk\.blocks\.(\d+)\.", key))),
            heads=int(own.get("num_heads", 8)),
            hidden=shapes[block + "mlp.fc1.weight"][0],
            dropout=0.0,
            norm=norm,
            norm_bias=block + "norm_1.bias" in shapes,
            eps=eps,
            qk_norm=qk_norm,
            qk_eps=qk_eps,
            scale=own.get("qk_scale") if own["_target_"].endswith("EfficientAttention") else None,
            qkv_bias=qkv + ".bias" in shapes,
            bias=attention + "proj.bias" in shapes,
            final_norm=_PREFIX + "trunk.post_trunk_norm.weight" in shapes,
            score_norm=_PREFIX + "head.norm.weight" in shapes,
            score_bias=_PREFIX + "head.linear.bias" in shapes,
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: FlexARConfig) -> dict[str, Tensor]:
        """Give the tensors our names; those of the picture's tokenizer and of the text tower are left out."""
        out: dict[str, Tensor] = {}
        for key, value in tensors.items():
            if "image_tokenizer" in key or "t5_embedder" in key:
                continue
            ours = key
            for pattern, new in _RENAMES:
                ours = re.sub(pattern, new, ours)
            if ours.endswith("norm_2.weight") or ours.endswith("norm_2.bias"):
                ours = ours.replace("norm_2", "ffn_norm" if config.text_width is None else "cross_norm")
            out[ours] = value.flatten() if ours == "start" else value
        for key in [key for key in out if ".attention.q_proj." in key]:
            rows = [out.pop(key.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")]
            out[key.replace("q_proj", "wqkv")] = torch.cat(rows)
        return out


_RENAMES = (
    (r"^models\.text_encoder\.mlp\.", "text_projection."),
    (r"^models\.ar_image_model\.preprocessor\.embedding\.", "embedding."),
    (r"^models\.ar_image_model\.preprocessor\.cls_embedding\.", "class_embedding."),
    (r"^models\.ar_image_model\.preprocessor\.sos_token_embed$", "start"),
    (r"^models\.ar_image_model\.preprocessor\.positional_embedding$", "places"),
    (r"^models\.ar_image_model\.head\.linear\.", "head."),
    (r"^models\.ar_image_model\.head\.norm\.", "head_norm."),
    (r"^models\.ar_image_model\.trunk\.post_trunk_norm\.", "trunk.norm."),
    (r"^models\.ar_image_model\.trunk\.blocks\.(\d+)\.", r"trunk.layers.\1."),
    (r"^(trunk\.layers\.\d+)\.(self_)?attn\.", r"\1.attention."),
    (r"^(trunk\.layers\.\d+\.attention)\.qkv\.", r"\1.wqkv."),
    (r"^(trunk\.layers\.\d+)\.cross_attn\.W([qkv])\.", r"\1.cross.w\2."),
    (r"^(trunk\.layers\.\d+)\.cross_attn\.", r"\1.cross."),
    (r"^(trunk\.layers\.\d+\.(?:attention|cross))\.proj\.", r"\1.wo."),
    (r"^(trunk\.layers\.\d+)\.mlp\.fc([123])\.", r"\1.feed_forward.w\2."),
    (r"^(trunk\.layers\.\d+)\.norm_1\.", r"\1.attention_norm."),
    (r"^(trunk\.layers\.\d+)\.norm_3\.", r"\1.ffn_norm."),
)


# -- config.yaml -------------------------------------------------------------------------------------------------------------------


def _resolved(node: Any, root: Mapping[str, Any], depth: int = 0) -> Any:
    """Put values in place of `${a.b}`; a value that cannot be found stays as it is written."""
    if isinstance(node, Mapping):
        return {key: _resolved(value, root, depth) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(value, root, depth) for value in node]
    found = re.fullmatch(r"\$\{([\w.]+)\}", node) if isinstance(node, str) and depth < 20 else None
    if found is None:
        return node
    at: Any = root
    for key in found[1].split("."):
        if not isinstance(at, Mapping) or key not in at:
            return node
        at = at[key]
    return _resolved(at, root, depth + 1)


def _leaf(part: Any) -> str:
    """Last word of the class that a part names; it is compared with our own tables and never imported."""
    return str(part.get("_target_", "")).rpartition(".")[2] if isinstance(part, Mapping) else ""


def _must(part: Any, what: str, *known: str) -> None:
    if _leaf(part) not in known:
        found = _leaf(part) or "nothing"
        raise ValueError(f"flexar: {what} in config.yaml is {found}. This implementation knows: {', '.join(known)}.")


def _plain(attention: Mapping[str, Any], what: str, *, causal: bool) -> None:
    """Refuse forms of attention that the module above does not have."""
    for key in ("rope", "rope_pos_embed", "relative_pos_embed", "num_kv_heads", "head_dim"):
        if attention.get(key) is not None:
            raise ValueError(f"flexar: {what} in config.yaml has {key}={attention[key]!r}. This implementation knows none.")
    if bool(attention.get("is_causal", False)) != causal:
        raise ValueError(f"flexar: {what} in config.yaml has is_causal={not causal}. Needed: {causal}.")


def _norm_of(part: Any, what: str) -> tuple[Norm, float]:
    _must(part, what, *_NORMS)
    kind, eps = _NORMS[_leaf(part)]
    return kind, float(part.get("eps", eps))


def _gelu(part: Any) -> Literal["tanh", "exact"]:
    """Activation between the text's two layers; the release's own default is the approximation by tanh."""
    if part is None:
        return "tanh"
    _must(part, "activation of the text's layers", "GELU")
    return "tanh" if part.get("approximate", "none") == "tanh" else "exact"
