"""TokenBridge's generator: positions in random order, and at each position its codes one after another.

Paper: "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation", arXiv 2503.16430. Source repository:
YuqingWang1029/TokenBridge, commit 3ede281 (code MIT; the licence of the weights is not stated). The masked transformer is that of
MAR, arXiv 2406.11838. Checked against tests/parity/tokenbridge: activations and logits to 1e-4, codes equal.

    values of the known positions -> encoder -> [known | mask tokens] -> decoder -> z of each position
    z -> dimension head: a small causal transformer over the d codes of one position, modulated by z

How this differs from the original: the dimension head keeps keys and values; any number of dimensions, in any order; codes that are
no rounded numbers get learned embeddings instead (`embed_codes`).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.generators.base import Generator, GeneratorConfig
from zoo.generators.drawing import check_draw_options, draw_codes, uniforms
from zoo.generators.registry import GeneratorEntry
from zoo.layers.transformer import KVCache
from zoo.quantizers.dimension_wise import DimensionWise
from zoo.tokenizer import Tokenizer

__all__ = ["TokenBridge", "TokenBridgeConfig"]

PUBLISHED_ORDER = (8, 1, 10, 9, 6, 12, 4, 0, 3, 11, 7, 14, 2, 15, 13, 5)  # of the 16 channels of MAR's autoencoder
Growth = Literal["linear", "constant"]
_EPS = 1e-6
_MASK_MEAN, _MASK_DEVIATION = 1.0, 0.25


@dataclass(frozen=True, kw_only=True)
class TokenBridgeConfig(GeneratorConfig):
    """Sizes of a TokenBridge generator; the defaults are those of the public L model.

    Attributes:
        order: in which the codes of a position are predicted; None is the published order for 16 codes, else 0, 1, 2 ...
        embed_codes: codes are embedded; otherwise they stand for numbers, as the next three say.
        centre, spread, reach: of the tokenizer's quantizer (`zoo.quantizers.dimension_wise`).
        width, heads: of encoder and decoder.
        encoder_depth, decoder_depth: their blocks.
        head_width, head_depth, head_heads: of the dimension head.
        class_tokens: how many positions the class takes at the front.
        mask_from: the smallest share of positions that is masked in training.
        dropout: in attention and MLP of encoder and decoder, in training.
        quirk_first_slot: sampling adds the embedding of slot 0 to the first element of the dimension sequence, which training does
            not. The public weights are evaluated so.
    """

    tokenizer: str = "tokenbridge_kl16"
    positions: tuple[int, ...] = (16, 16)
    extent: tuple[int, ...] = (256, 256)
    vocabulary: tuple[int, ...] = (64,) * 16
    order: tuple[int, ...] | None = None
    embed_codes: bool = False
    centre: tuple[float, ...] = (0.0,)
    spread: tuple[float, ...] = (5 / 3,)
    reach: float = 3.0
    width: int = 1024
    heads: int = 16
    encoder_depth: int = 16
    decoder_depth: int = 16
    head_width: int = 1024
    head_depth: int = 4
    head_heads: int = 8
    class_tokens: int = 64
    mask_from: float = 0.7
    dropout: float = 0.1
    quirk_first_slot: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.vocabulary), "vocabulary", "codebook sizes: this generator makes codes")
        for name in ("heads", "encoder_depth", "decoder_depth", "head_depth", "head_heads", "class_tokens"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.width >= 1 and self.width % self.heads == 0, "width", "a multiple of heads")
        self.require(self.head_width >= 1 and self.head_width % self.head_heads == 0, "head_width", "a multiple of head_heads")
        complete = self.order is None or sorted(self.order) == list(range(self.depth))
        self.require(complete, "order", f"None, or each of 0..{self.depth - 1} once")
        self.require(0 < self.mask_from <= 1, "mask_from", "above 0, up to 1")
        self.require(0 <= self.dropout < 1, "dropout", "0 to below 1")

    @property
    def code_order(self) -> tuple[int, ...]:
        """The order, spelled out."""
        if self.order is not None:
            return self.order
        return PUBLISHED_ORDER if self.depth == len(PUBLISHED_ORDER) else tuple(range(self.depth))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, normed: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(width // heads, eps=_EPS) if normed else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, eps=_EPS) if normed else nn.Identity()

    def forward(self, x: Tensor, dropout: float = 0.0, *, causal: bool, cache: KVCache | None = None, block: int = 0) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if cache is not None:
            k, v = cache.extend(block, k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal and cache is None)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    """x += attention(norm x); x += mlp(norm x)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = _Attention(width, heads, normed=False)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = _MLP(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        rate = self.dropout.p if self.training else 0.0
        x = x + self.dropout(self.attn(self.norm1(x), rate, causal=False))
        return x + self.dropout(self.mlp(self.norm2(x)))


class _HeadBlock(nn.Module):
    """The same, causal, with shift, scale and gate of the norms from the condition of each slot."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = _Attention(width, heads, normed=True)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = _MLP(width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, cache: KVCache | None, block: int) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition)).chunk(6, -1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, causal=True, cache=cache, block=block)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DimensionHead(nn.Module):
    """The d codes of one position, one after another, from the position's vector z; codes in predicted order."""

    def __init__(self, config: TokenBridgeConfig) -> None:
        super().__init__()
        width, depth = config.head_width, config.depth
        sizes = [config.sizes[channel] for channel in config.code_order]
        self.heads, self.quirk_first_slot = config.head_heads, config.quirk_first_slot
        self.condition = nn.Linear(config.width, width)
        self.positions = nn.Parameter(torch.empty(depth, width))
        self.slots = nn.Parameter(torch.empty(depth, width))
        self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size in sizes[:-1])
        self.blocks = nn.ModuleList(_HeadBlock(width, config.head_heads) for _ in range(config.head_depth))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.outputs = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        for parameter in (self.positions, self.slots, *(table.weight for table in self.embeddings)):
            nn.init.normal_(parameter, std=0.02)
        for module in (self.condition, *self.outputs):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        nn.init.zeros_(self.final_modulation.weight)
        nn.init.zeros_(self.final_modulation.bias)

    def _run(self, x: Tensor, condition: Tensor, cache: KVCache | None = None) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, condition, cache, i)
        scale, shift = self.final_modulation(F.silu(condition)).chunk(2, -1)
        x = self.norm(x)
        return F.layer_norm(x, x.shape[-1:], eps=_EPS) * (1 + scale) + shift

    def forward(self, z: Tensor, codes: Tensor) -> list[Tensor]:
        """Give the scores `(n, k_j)` of each of the codes `(n, d)`, each from those before it."""
        first = self.condition(z)
        parts = [first, *(table(codes[:, j]) for j, table in enumerate(self.embeddings))]
        x = torch.stack(parts, 1) + self.positions
        hidden = self._run(x, first[:, None] + self.slots)
        return [output(hidden[:, j]) for j, output in enumerate(self.outputs)]

    def draw(
        self, z: Tensor, u: Tensor, *, temperature: float, top_k: int | None, top_p: float | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Draw codes `(n, d)` at uniform numbers `u (n, d)`; give them and the scores `(n, k_j)` each was drawn from."""
        first, depth = self.condition(z), len(self.outputs)
        head = first.shape[-1] // self.heads
        cache = KVCache(blocks=len(self.blocks), batch=len(z), heads=self.heads, head=head, length=depth, like=first)
        codes, scores = [], []
        x = first + self.slots[0] if self.quirk_first_slot else first
        for j, output in enumerate(self.outputs):
            hidden = self._run((x + self.positions[j])[:, None], (first + self.slots[j])[:, None], cache)
            cache.keep(1)
            scores.append(output(hidden[:, 0]))
            codes.append(draw_codes(scores[-1], u[:, j], temperature=temperature, top_k=top_k, top_p=top_p))
            if j < depth - 1:
                x = self.embeddings[j](codes[-1])
        return torch.stack(codes, 1), scores


class TokenBridge(Generator):
    """Codes `(b, *positions, d)` from a class."""

    family = "tokenbridge"
    Config = TokenBridgeConfig
    facts = {"unit": "token", "objective": "masked", "context": "clean"}

    def __init__(self, config: TokenBridgeConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: TokenBridgeConfig = config
        width, total = config.width, config.class_tokens + config.count
        if config.embed_codes:
            self.embeddings = nn.ModuleList(nn.Embedding(size, width) for size in config.sizes)
        else:
            self.values = DimensionWise(
                dim=config.depth, levels=config.sizes, centre=_each(config.centre), spread=_each(config.spread), reach=config.reach
            )
            self.input = nn.Linear(config.depth, width)
        self.register_buffer("code_order", torch.tensor(config.code_order, device="cpu"), persistent=False)
        self.class_embedding = nn.Embedding(max(config.classes, 1), width)
        self.null_embedding = nn.Parameter(torch.empty(1, width))
        self.encoder_positions = nn.Parameter(torch.empty(total, width))
        self.input_norm = nn.LayerNorm(width, eps=_EPS)
        self.encoder_blocks = nn.ModuleList(_Block(width, config.heads, config.dropout) for _ in range(config.encoder_depth))
        self.encoder_norm = nn.LayerNorm(width, eps=_EPS)
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.decoder_positions = nn.Parameter(torch.empty(total, width))
        self.decoder_blocks = nn.ModuleList(_Block(width, config.heads, config.dropout) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(width, eps=_EPS)
        self.output_positions = nn.Parameter(torch.empty(config.count, width))
        self.head = DimensionHead(config)
        tables = (self.encoder_positions, self.decoder_positions, self.output_positions)
        for parameter in (self.null_embedding, self.mask_token, *tables):
            nn.init.normal_(parameter, std=0.02)
        for module in (self.class_embedding, *(self.embeddings if config.embed_codes else ())):
            nn.init.normal_(module.weight, std=0.02)

    @classmethod
    def settings_for(cls, tokenizer: Tokenizer) -> dict[str, Any]:
        """The values that codes stand for; codes that are no rounded numbers are embedded."""
        if not isinstance(getattr(tokenizer, "quantizer", None), DimensionWise):
            return {"embed_codes": True}
        config = tokenizer.config
        return {"centre": tuple(config.centre), "spread": tuple(config.spread), "reach": config.reach}

    # -- network -----------------------------------------------------------------------------------------------------------------

    def embed(self, codes: Tensor) -> Tensor:
        """Embed known codes `(b, n, d)` to `(b, n, width)`."""
        if self.config.embed_codes:
            return sum(table(codes[..., j]) for j, table in enumerate(self.embeddings))
        return self.input(self.values.decode(codes).to(self.input.weight.dtype))

    def embed_class(self, labels: Tensor) -> Tensor:
        """Vectors `(b, width)` of classes, or of the null class."""
        if not self.config.classes:
            return self.null_embedding.expand(len(labels), -1)
        known = self.class_embedding(labels.clamp(max=self.config.classes - 1))
        return torch.where(labels[:, None] == self.null, self.null_embedding, known)

    def encode_known(self, codes: Tensor, known: Tensor, labels: Tensor) -> Tensor:
        """Encode the positions `known (b, m)`, ascending, of `codes (b, n, d)` to `(b, class_tokens + m, width)`."""
        front = self.config.class_tokens
        width = known[..., None].expand(-1, -1, self.config.width)
        x = self.embed(codes.gather(1, known[..., None].expand(-1, -1, codes.shape[-1])))
        x = x + self.encoder_positions[front:].expand(len(x), -1, -1).gather(1, width)
        first = self.embed_class(labels)[:, None] + self.encoder_positions[:front]
        x = self.input_norm(torch.cat([first, x], 1))
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def decode_all(self, encoded: Tensor, known: Tensor) -> Tensor:
        """Give z of every position, `(b, n, width)`."""
        front = self.config.class_tokens
        x = self.decoder_embed(encoded)
        everywhere = self.mask_token.to(x.dtype).expand(len(x), self.config.count, -1)
        filled = everywhere.scatter(1, known[..., None].expand(-1, -1, x.shape[-1]), x[:, front:])
        x = torch.cat([x[:, :front], filled], 1) + self.decoder_positions
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, front:] + self.output_positions

    # -- training ----------------------------------------------------------------------------------------------------------------

    def _loss(self, data: Tensor, labels: Tensor, mask: Tensor | None, draws: torch.Generator) -> Tensor:
        codes, n = data.flatten(1, -2), self.config.count
        low = 0.5 * (1 + math.erf((self.config.mask_from - _MASK_MEAN) / _MASK_DEVIATION / math.sqrt(2)))
        share = low + (0.5 - low) * float(torch.rand((), generator=draws, device=draws.device))
        ratio = _MASK_MEAN + _MASK_DEVIATION * float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64, device="cpu")))
        order = torch.rand(len(codes), n, generator=draws, device=draws.device).argsort(1).to(codes.device)
        hidden = order < min(n, math.ceil(n * ratio))
        return self.masked_loss(codes, labels, hidden)

    def masked_loss(self, codes: Tensor, labels: Tensor, hidden: Tensor) -> Tensor:
        """Mean cross entropy over positions and codes; `hidden (b, n)` masks equally many positions of each item."""
        known = (~hidden).nonzero()[:, 1].view(len(codes), -1)
        z = self.decode_all(self.encode_known(codes, known, labels), known)
        target = codes[hidden][:, self.code_order]
        scores = self.head(z[hidden], target)
        return torch.stack([F.cross_entropy(part.float(), target[:, j]) for j, part in enumerate(scores)]).mean()

    # -- sampling ----------------------------------------------------------------------------------------------------------------

    def _sample(
        self,
        labels: Tensor,
        seeds: list[int],
        guidance: float,
        *,
        steps: int | None = None,
        schedule: Growth = "linear",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Draw codes.

        Args:
            labels, seeds, guidance: of each item; guidance acts on z, before the dimension head.
            steps: rounds, up to the number of positions, which is what None takes.
            schedule: guidance grows with the share of known positions ("linear"), or stays ("constant").
            temperature, top_k, top_p: of the draws, see `drawing.draw_codes`.
        """
        n, depth = self.config.count, self.config.depth
        order = uniforms(seeds, (n,), stream=0, device=labels.device).argsort(1)
        u = uniforms(seeds, (n, depth), stream=1, device=labels.device)
        options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
        codes = self.fill(labels, order, u, steps=steps, guidance=guidance, schedule=schedule, **options)
        return codes.unflatten(1, self.config.positions)

    def fill(
        self,
        labels: Tensor,
        order: Tensor,
        u: Tensor,
        *,
        steps: int | None,
        guidance: float,
        schedule: Growth = "linear",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Draw all positions in `steps` rounds, the end of `order (b, n)` first, at uniform numbers `u (b, n, d)`."""
        name, n = f"{self.info.name}.sample", self.config.count
        steps = n if steps is None else steps
        if not isinstance(steps, int) or not 1 <= steps <= n:
            raise ValueError(f"{name}: steps={steps!r}. Allowed: 1..{n}.")
        if schedule not in get_args(Growth):
            raise ValueError(f"{name}: schedule={schedule!r}. Allowed: {', '.join(get_args(Growth))}.")
        check_draw_options(name, temperature=temperature, top_k=top_k, top_p=top_p)
        b, both = len(labels), self.guided_labels(labels, guidance)
        codes = torch.zeros(b, n, self.config.depth, dtype=torch.int64, device=labels.device)
        back, left = self.code_order.argsort(), n
        for step in range(steps):
            masked = max(1, min(math.floor(n * math.cos(math.pi / 2 * (step + 1) / steps)), left - 1))
            after = masked if step < steps - 1 else 0
            known = order[:, left:].sort(1).values
            now = order[:, after:left]
            twice = len(both) // b
            encoded = self.encode_known(codes.repeat(twice, 1, 1), known.repeat(twice, 1), both)
            z = self.decode_all(encoded, known.repeat(twice, 1))
            if twice == 2:
                # As published, guidance counts one masked position in the last round too, where there is none.
                share = (n - masked) / n if schedule == "linear" else 1.0
                conditional, null = z.chunk(2)
                z = null + (1 + (guidance - 1) * share) * (conditional - null)
            picked = z.gather(1, now[..., None].expand(-1, -1, z.shape[-1])).flatten(0, 1)
            at = now[..., None].expand(-1, -1, self.config.depth)
            options = dict(temperature=temperature, top_k=top_k, top_p=top_p)
            drawn, _ = self.head.draw(picked, u.gather(1, at).flatten(0, 1), **options)
            codes = codes.scatter(1, at, drawn[:, back].unflatten(0, now.shape))
            left = after
        return codes

    # -- the public release --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> TokenBridgeConfig:
        args = config.get("model_args", config)
        grid = args["img_size"] // args["vae_stride"]
        for key, twin in (("encoder_embed_dim", "decoder_embed_dim"), ("encoder_num_heads", "decoder_num_heads")):
            if args[key] != args[twin]:
                raise ValueError(f"tokenbridge: {key}={args[key]} and {twin}={args[twin]} in config.json. Needed: one size.")
        for key, only in (("patch_size", 1), ("mlp_ratio", 4)):
            if args.get(key, only) != only:
                raise ValueError(f"tokenbridge: {key}={args[key]!r} in config.json. This implementation knows: {only}.")
        low, high = args["quant_min"], args["quant_max"]
        return TokenBridgeConfig(
            positions=(grid, grid),
            extent=(args["img_size"],) * 2,
            vocabulary=(args["quant_levels"],) * args["vae_embed_dim"],
            classes=args["class_num"],
            label_dropout=args["label_drop_prob"],
            centre=((low + high) / 2,),
            spread=((high - low) / (2 * args["std_range"]),),
            reach=args["std_range"],
            width=args["encoder_embed_dim"],
            heads=args["encoder_num_heads"],
            encoder_depth=args["encoder_depth"],
            decoder_depth=args["decoder_depth"],
            head_width=args["channel_embed_dim"],
            head_depth=args["channel_depth"],
            head_heads=args["channel_heads"],
            class_tokens=args["buffer_size"],
            mask_from=args["mask_ratio_min"],
            dropout=args["attn_dropout"],
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: TokenBridgeConfig) -> dict[str, Tensor]:
        out = {}
        for key, value in tensors.items():
            if key in ("channel_mask", "reconstruction_values", "boundaries"):
                continue  # constants, computed here
            for old, new in _RENAMES.items():
                if key.startswith(old):
                    key = new + key.removeprefix(old)
                    break
            if key.startswith("head.blocks."):
                key = key.replace(".adaLN_modulation.1.", ".modulation.")
            tables = ("encoder_positions", "decoder_positions", "output_positions", "head.positions", "head.slots")
            out[key] = value.squeeze(0) if key in tables else value.flatten() if key == "mask_token" else value
        return out


_RENAMES = {
    "class_emb.": "class_embedding.",
    "fake_latent": "null_embedding",
    "z_proj.": "input.",
    "z_proj_ln.": "input_norm.",
    "encoder_pos_embed_learned": "encoder_positions",
    "decoder_pos_embed_learned": "decoder_positions",
    "output_pos_embed": "output_positions",
    "condition_proj.": "head.condition.",
    "channel_embed": "head.positions",
    "timesteps_embeddings": "head.slots",
    "token_embeddings.": "head.embeddings.",
    "channel_blocks.": "head.blocks.",
    "channel_norm.": "head.norm.",
    "channel_final.adaLN_modulation.1.": "head.final_modulation.",
    "channel_heads.": "head.outputs.",
}


def _each(values: tuple[float, ...]) -> float | tuple[float, ...]:
    """One number for all channels, or one for each, as the quantizer takes them."""
    return values[0] if len(values) == 1 else values
