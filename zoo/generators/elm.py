"""ELM's language models of pictures: a Llama over split codes, one position after another or by filling masks.

Paper: "Elucidating the Design Space of Language Models for Image Generation", arXiv 2410.16257 (ICML 2025). Source repository:
Pepper-lll/LMforImageGeneration, commit c2f29f0 (no licence is stated, for the code or the weights: nothing is copied from it).
Checked against tests/parity/elm: logits to 1e-4, greedy samples equal.

    [class, code_1 .. code_{n-1}] -> blocks -> the sub-codes of each position, in parallel from one hidden state
    [class, codes or mask]        -> blocks without a causal mask -> the codes of masked positions        (order "masked")

How this differs from the original: sampling keeps keys and values; a grid need not be square; any vocabularies; the masked order
takes several sub-codes as well, as one masked position (the public masked models have one). Parameters that the original keeps but
never uses are left out.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.generators.base import Generator, GeneratorConfig
from zoo.generators.drawing import Schedule, check_draw_options, draw_codes, draw_sequence, guidance_at, uniforms
from zoo.generators.registry import GeneratorEntry
from zoo.layers.transformer import CausalTransformer, KVCache, grid_coordinates, rope_table

__all__ = ["ELM", "ELMConfig"]

Order = Literal["causal", "masked"]
_MASK_STAGES = 10  # training draws one of so many mask rates


@dataclass(frozen=True, kw_only=True)
class ELMConfig(GeneratorConfig):
    """Sizes of an ELM; the defaults are those of the public L 2-10 model.

    Attributes:
        order: "causal" (raster order) or "masked".
        width, depth_blocks, heads: of the transformer.
        hidden_multiple: the feed-forward width is rounded up to a multiple of it.
        eps: of the norms.
        dropout: on embeddings, attention and feed-forward outputs, in training.
        label_smoothing: of the masked order's loss.
        quirk_blind_class: the class token has no rotary position but zeros, so its query and key are zero and every position sees
            it with the same score. The public weights were trained so.
    """

    tokenizer: str = "elm_bae_20bit"
    positions: tuple[int, ...] = (16, 16)
    extent: tuple[int, ...] = (256, 256)
    vocabulary: tuple[int, ...] = (1024, 1024)
    order: Order = "causal"
    width: int = 1024
    depth_blocks: int = 24
    heads: int = 16
    hidden_multiple: int = 256
    eps: float = 1e-5
    dropout: float = 0.1
    label_smoothing: float = 0.1
    quirk_blind_class: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.vocabulary), "vocabulary", "codebook sizes: this generator makes codes")
        self.require(self.order in get_args(Order), "order", ", ".join(get_args(Order)))
        for name in ("depth_blocks", "heads", "hidden_multiple"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        least = 2 * len(self.positions)
        even = self.width % (2 * self.heads) == 0 and self.width // self.heads >= least
        self.require(even, "width", f"heads times an even number of at least {least}")
        self.require(self.eps > 0, "eps", "a positive number")
        self.require(0 <= self.dropout < 1, "dropout", "0 to below 1")
        self.require(0 <= self.label_smoothing < 1, "label_smoothing", "0 to below 1")


class _MaskedHead(nn.Module):
    """Scores of one sub-code: layer_norm(gelu(fc h)) times its (constant) embedding table, plus a bias; no score for the mask."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.ln = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(codes + 1))

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        return (self.ln(F.gelu(self.fc(hidden))) @ table.detach().T + self.bias)[..., :-1]


class ELM(Generator):
    """Codes `(b, h, w, d)` from a class."""

    family = "elm"
    Config = ELMConfig
    facts = {"unit": "token", "objective": "cross-entropy", "context": "clean"}

    def __init__(self, config: ELMConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: ELMConfig = config
        width, masked = config.width, config.order == "masked"
        self.class_embedding = nn.Embedding(config.classes + 1, width)
        self.embeddings = nn.ModuleList(nn.Embedding(size + masked, width) for size in config.sizes)
        self.project = nn.Linear(width * config.depth, width, bias=False) if config.depth > 1 else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.trunk = CausalTransformer(
            width=width,
            depth=config.depth_blocks,
            heads=config.heads,
            hidden_multiple=config.hidden_multiple,
            eps=config.eps,
            dropout=config.dropout,
            causal=not masked,
        )
        if masked:
            self.heads = nn.ModuleList(_MaskedHead(width, size) for size in config.sizes)
        else:
            self.heads = nn.ModuleList(nn.Linear(width, size, bias=False) for size in config.sizes)
        table = rope_table(grid_coordinates(config.positions), self.trunk.head)
        first = torch.zeros_like(table[:1])
        if not config.quirk_blind_class:
            first[..., 0] = 1  # the angle zero
        self.register_buffer("table", torch.cat([first, table]), persistent=False)
        for module in (self.class_embedding, *self.embeddings):
            nn.init.normal_(module.weight, std=0.02)
        for head in self.heads:
            nn.init.zeros_(head.bias if masked else head.weight)

    # -- network -----------------------------------------------------------------------------------------------------------------

    def _embed(self, codes: Tensor) -> Tensor:
        """Embed `(b, t, d)` to `(b, t, width)`."""
        parts = [table(codes[..., j]) for j, table in enumerate(self.embeddings)]
        return self.project(torch.cat(parts, -1))

    def logits(self, codes: Tensor, labels: Tensor, cache: KVCache | None = None) -> list[Tensor]:
        """Give the scores `(b, t, k_j)` of each sub-code.

        Args:
            codes: `(b, n, d)` in raster order. Causal: the codes before, t is one more than they are; with a cache only the last
                hidden state is new, and t is 1. Masked: all positions, masked ones hold the codebook size; t is n.
            labels: `(b,)`, the null class included.
            cache: keys and values of the positions seen before.
        """
        if cache is not None and cache.kept:
            x, at = self._embed(codes[:, cache.kept - 1 :]), slice(cache.kept, codes.shape[1] + 1)
        else:
            first = self.class_embedding(labels)[:, None]
            x, at = torch.cat([first, self._embed(codes)], 1), slice(0, codes.shape[1] + 1)
        hidden = self.trunk(self.dropout(x), self.table[at], cache)
        if self.config.order == "masked":
            pairs = zip(self.heads, self.embeddings, strict=True)
            return [head(hidden[:, 1:], table.weight) for head, table in pairs]
        return [head(hidden) for head in self.heads]

    # -- training ----------------------------------------------------------------------------------------------------------------

    def _loss(self, data: Tensor, labels: Tensor, mask: Tensor | None, draws: torch.Generator) -> Tensor:
        codes = data.flatten(1, -2)
        if self.config.order == "masked":
            stage = int(torch.randint(_MASK_STAGES, (), generator=draws, device=draws.device))
            share = math.cos(math.pi / 2 * stage / _MASK_STAGES)
            order = torch.rand(codes.shape[:2], generator=draws, device=draws.device).argsort(1).to(codes.device)
            hidden = order < max(1, round(share * codes.shape[1]))
            return self.masked_loss(codes, labels, hidden)
        logits = self.logits(codes[:, :-1], labels)
        parts = [F.cross_entropy(part.flatten(0, 1).float(), codes[..., j].flatten()) for j, part in enumerate(logits)]
        return torch.stack(parts).mean()

    def masked_loss(self, codes: Tensor, labels: Tensor, hidden: Tensor) -> Tensor:
        """Mean cross entropy over the positions `hidden (b, n)` of `codes (b, n, d)`, which the network does not see."""
        logits = self.logits(torch.where(hidden[..., None], self._mask_codes(codes), codes), labels)
        smooth = self.config.label_smoothing
        parts = [
            F.cross_entropy(part[hidden].float(), codes[..., j][hidden], label_smoothing=smooth) for j, part in enumerate(logits)
        ]
        return torch.stack(parts).mean()

    def _mask_codes(self, codes: Tensor) -> Tensor:
        return torch.tensor(self.config.sizes, device=codes.device).expand_as(codes)

    # -- sampling ----------------------------------------------------------------------------------------------------------------

    def _sample(
        self,
        labels: Tensor,
        seeds: list[int],
        guidance: float,
        *,
        schedule: Schedule = "linear",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: int | None = None,
        cache: bool = True,
    ) -> Tensor:
        """Draw codes.

        Args:
            labels, seeds, guidance: of each item, as `sample` gives them.
            schedule: how guidance grows (`drawing.guidance_at`).
            temperature: causal: divides the scores. Masked: weighs the noise of the confidence only, as upstream does.
            top_k, top_p: of the draws, see `drawing.draw_codes`.
            steps: masked order: rounds, 10 where None. The causal order has one step for each position.
            cache: causal order: keep keys and values; False runs everything again at each step.
        """
        config = self.config
        check_draw_options(f"{self.info.name}.sample", temperature=temperature, top_k=top_k, top_p=top_p)
        both = self.guided_labels(labels, guidance)
        if config.order == "masked":
            codes = self._fill_masks(both, seeds, guidance, schedule, temperature, top_k, top_p, 10 if steps is None else steps)
        else:
            if steps is not None:
                raise ValueError(f"{self.info.name}.sample: steps={steps}, but the causal order has {config.count}. Leave it out.")
            kept = self.trunk.cache(len(both), config.count) if cache else None
            u = uniforms(seeds, (config.count, config.depth), device=labels.device)
            scale = partial(guidance_at, schedule, guidance, steps=config.count) if guidance != 1 else None

            def predict(so_far: Tensor) -> list[Tensor]:
                return [part[:, -1] for part in self.logits(so_far, both, kept)]

            codes = draw_sequence(predict, u, guidance=scale, temperature=temperature, top_k=top_k, top_p=top_p)
        return codes.unflatten(1, config.positions)

    def _fill_masks(
        self,
        both: Tensor,
        seeds: list[int],
        guidance: float,
        schedule: Schedule,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        steps: int,
    ) -> Tensor:
        """Draw all masked positions in each round and mask the least confident again."""
        config, n, b = self.config, self.config.count, len(seeds)
        if not 1 <= steps <= n:
            raise ValueError(f"{self.info.name}.sample: steps={steps}. Allowed: 1..{n}.")
        u = uniforms(seeds, (steps, 2, n, config.depth), device=both.device)
        codes = self._mask_codes(torch.zeros(b, n, config.depth, dtype=torch.int64, device=both.device)).clone()
        hidden = torch.ones(b, n, dtype=torch.bool, device=both.device)
        for step in range(steps):
            ratio = (step + 1) / steps
            confidence = torch.zeros(b, n, device=both.device)
            drawn = codes.clone()
            for j, logits in enumerate(self.logits(codes if guidance == 1 else codes.repeat(2, 1, 1), both)):
                if guidance != 1:
                    conditional, null = logits.chunk(2)
                    logits = null + guidance_at(schedule, guidance, step, steps) * (conditional - null)
                drawn[..., j] = draw_codes(logits, u[:, step, 0, :, j], top_k=top_k, top_p=top_p)
                chance = logits.float().log_softmax(-1).gather(-1, drawn[..., j, None])[..., 0]
                noise = -torch.log(-torch.log(u[:, step, 1, :, j].clamp(1e-12, 1 - 1e-12))).float()
                confidence += (chance + temperature * (1 - ratio) * noise) / config.depth
            codes = torch.where(hidden[..., None], drawn, codes)
            left = int(hidden[0].sum())
            remaining = max(1, min(math.floor(n * math.cos(math.pi / 2 * ratio)), left - 1))
            if step == steps - 1 or left == 1:
                break
            rank = confidence.masked_fill(~hidden, math.inf).argsort(1).argsort(1)
            hidden = rank < remaining
            codes = torch.where(hidden[..., None], self._mask_codes(codes), codes)
        return codes

    # -- the public release --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> ELMConfig:
        args = config.get("model_args", config)
        known = {"use_adaLN": False, "pause": False, "cls_row": False, "split_embder": False, "pos_type": "rope2d"}
        for key, only in known.items():
            if args.get(key, only) != only:
                raise ValueError(f"elm: {key}={args[key]!r} in config.json. This implementation knows: {only!r}.")
        if args.get("n_kv_head") not in (None, args["n_head"]) or args.get("cls_token_num", 1) != 1:
            raise ValueError("elm: grouped keys or several class tokens in config.json. This implementation knows neither.")
        side = math.isqrt(args["block_size"])
        if side * side != args["block_size"]:
            raise ValueError(f"elm: block_size={args['block_size']} in config.json is no square grid.")
        parts, bits = args["token_each"], args["code_dim"]
        masked = "mlm_layer.fc.weight" in shapes or (not shapes and "mask_schtype" in args)
        return ELMConfig(
            tokenizer=f"elm_bae_{parts * bits}bit",
            positions=(side, side),
            extent=(16 * side, 16 * side),
            vocabulary=(2**bits,) * parts,
            classes=args["num_classes"],
            label_dropout=args.get("class_dropout_prob", 0.1),
            order="masked" if masked else "causal",
            width=args["dim"],
            depth_blocks=args["n_layer"],
            heads=args["n_head"],
            hidden_multiple=args.get("multiple_of", 256),
            eps=args.get("norm_eps", 1e-5),
            dropout=args.get("resid_dropout_p", 0.1),
            label_smoothing=args.get("smoothing", 0.1),
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: ELMConfig) -> dict[str, Tensor]:
        out, several = {}, config.depth > 1
        for key, value in tensors.items():
            if config.order == "masked" and key in ("output.weight", "pos_embed.weight"):
                continue  # the public masked model holds them and never uses them
            for old, new in (
                ("cls_embedding.embedding_table.", "class_embedding."),
                ("tok_embedder.", "embeddings." if several else "embeddings.0."),
                ("output.", "heads." if several else "heads.0."),
                ("mlm_layer.", "heads." if several else "heads.0."),
                ("proj.", "project."),
                ("layers.", "trunk.layers."),
                ("norm.", "trunk.norm."),
            ):
                if key.startswith(old):
                    key = new + key.removeprefix(old)
                    break
            out[key] = value.flatten() if key == "heads.0.bias" else value
        return out
