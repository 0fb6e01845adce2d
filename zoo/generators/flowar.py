"""FlowAR: latents scale after scale, 1 x 1 to the whole grid, each scale by flow matching under an autoregressive condition.

Paper: "FlowAR: Scale-wise Autoregressive Image Generation Meets Flow Matching", arXiv 2412.15205 (ICML 2025). Source repository:
OliverRen/FlowAR, commit 21835c0 (nothing is copied from it). Checked against tests/parity/flowar: conditions, velocities and loss
to 1e-4, sampled latents to 2e-3.

    latents -> area-resized copies X_1, X_2, X_4 .. X_side
    [class, X_1 enlarged to 2x2, X_2 to 4x4, ...] -> transformer, a scale sees itself and coarser ones -> condition z
    noisy X_s, z of its positions -> flow network, inside the scale -> velocity

Scales are resized latents, not residuals: any autoencoder of the zoo serves whose grid is a square of a power of two.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.generators.base import Generator, GeneratorConfig
from zoo.generators.drawing import gaussians
from zoo.generators.registry import GeneratorEntry
from zoo.layers.modulated import EPS, GatedMLP, ModulatedAttention, ModulatedBlock, TimeEmbedding, modulate
from zoo.layers.patches import averaged
from zoo.layers.transformer import KVCache, grid_coordinates, group_mask, rope_table, rotate

__all__ = ["FlowAR", "FlowARConfig", "next_scale_input", "pyramid", "solver_times"]

_FLOW_HEAD = 64


@dataclass(frozen=True, kw_only=True)
class FlowARConfig(GeneratorConfig):
    """Sizes of a FlowAR; the defaults are those of the public S model.

    Attributes:
        width, heads: of the transformer.
        encoder_depth, decoder_depth: its blocks before and after the second table of positions.
        flow_width, flow_depth: of the flow network; its heads have 64 channels.
        flow_head: channels of a head of the flow network.
        cross: the flow network looks at the condition by cross-attention (L, H), not by modulation alone (S).
        dropout: in the attention, in training.
    """

    tokenizer: str = "mar_kl16"
    positions: tuple[int, ...] = (16, 16)
    extent: tuple[int, ...] = (256, 256)
    channels: int | None = 16
    width: int = 768
    heads: int = 12
    encoder_depth: int = 6
    decoder_depth: int = 6
    flow_width: int = 1024
    flow_depth: int = 2
    flow_head: int = _FLOW_HEAD
    cross: bool = False
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.channels is not None, "channels", "a number: this generator makes latents")
        side = self.positions[0]
        square = len(self.positions) == 2 and len(set(self.positions)) == 1 and side & (side - 1) == 0
        self.require(square, "positions", "a square whose side is a power of two")
        for name in ("heads", "encoder_depth", "decoder_depth", "flow_depth"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.width % (4 * self.heads) == 0, "width", "heads times a multiple of 4")
        self.require(self.flow_head >= 4 and self.flow_head % 4 == 0, "flow_head", "a multiple of 4")
        self.require(self.flow_width % self.flow_head == 0, "flow_width", "a multiple of flow_head")
        self.require(0 <= self.dropout < 1, "dropout", "0 to below 1")

    @property
    def scales(self) -> tuple[int, ...]:
        """Sides of the scales, 1 to the side of the grid."""
        return tuple(2**i for i in range(self.positions[0].bit_length()))


def pyramid(latents: Tensor, scales: tuple[int, ...]) -> list[Tensor]:
    """Give copies `(b, s * s, c)` of latents `(b, h, w, c)`, averaged down to each scale s, in raster order."""
    return [averaged(latents, latents.shape[1] // s) for s in scales]


def next_scale_input(latents: Tensor, scale: int, side: int) -> Tensor:
    """Enlarge latents `(b, n, c)` to the next scale, `(b, scale * scale, c)`: bicubic to the whole grid, then averaged down."""
    b, n, c = latents.shape
    x = latents.transpose(1, 2).reshape(b, c, math.isqrt(n), -1)
    x = F.interpolate(x, (side, side), mode="bicubic", align_corners=False)
    return F.interpolate(x, (scale, scale), mode="area").flatten(2).transpose(1, 2)


def solver_times(steps: int) -> list[float]:
    """Noise levels of the Euler solver, 1 to 0, in float32 as published.

    50 levels are even; fewer are half of them between 1 and 0.3 and the others between 0.25 and 0.
    """
    if steps == 50:
        return torch.linspace(1, 0, 51).tolist()
    half = steps // 2
    return [*torch.linspace(1, 0.3, half).tolist(), *torch.linspace(0.25, 0, half + 1).tolist()]


class _CrossAttention(nn.Module):
    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(source, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor, table: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotate(q, table), rotate(k, table), v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _CrossBlock(nn.Module):
    """Self-attention modulated by the noise level, cross-attention to the condition, MLP modulated by both."""

    def __init__(self, width: int, source: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attn = ModulatedAttention(width, heads, bias=False, dropout=dropout)
        self.crossattn = _CrossAttention(width, source, heads)
        self.mlp = GatedMLP(width)
        self.norm2_1 = nn.RMSNorm(width, eps=EPS)
        self.norm2_2 = nn.RMSNorm(source, eps=EPS)
        self.ada_lin_attn = nn.Linear(width, 3 * width)
        self.ada_lin_mlp = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor, z: Tensor, table: Tensor) -> Tensor:
        gate, scale, shift = self.ada_lin_attn(F.silu(time)).chunk(3, -1)
        x = x + gate * self.attn(modulate(x, scale, shift), table, None, None, 0)
        x = x + self.crossattn(self.norm2_1(x), self.norm2_2(z), table)
        gate, scale, shift = self.ada_lin_mlp(F.silu(time + condition)).chunk(3, -1)
        return x + gate * self.mlp(modulate(x, scale, shift))


class _FlowNetwork(nn.Module):
    """Velocity of the positions of one scale, each under its own condition."""

    def __init__(self, config: FlowARConfig) -> None:
        super().__init__()
        width, heads = config.flow_width, config.flow_width // config.flow_head
        self.cross = config.cross
        self.input_proj = nn.Linear(config.depth, width)
        self.cond_embed = nn.Linear(config.width, width)
        self.time_embed = TimeEmbedding(width)
        if config.cross:
            blocks = [_CrossBlock(width, config.width, heads, config.dropout) for _ in range(config.flow_depth)]
        else:
            blocks = [ModulatedBlock(width, heads, bias=False, dropout=config.dropout) for _ in range(config.flow_depth)]
        self.res_blocks = nn.ModuleList(blocks)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.final = nn.Linear(width, config.depth)

    def forward(self, x: Tensor, t: Tensor, z: Tensor, table: Tensor) -> Tensor:
        """Predict noise - latents `(b, n, c)` at noise levels `t (b,)` under conditions `z (b, n, width)`."""
        h = self.input_proj(x)
        time, condition = self.time_embed(t)[:, None], self.cond_embed(z)
        for block in self.res_blocks:
            if self.cross:
                h = block(h, time, condition, z, table)
            else:
                h = block(h, time + condition, table)
        shift, scale = self.final_modulation(F.silu(time + condition)).chunk(2, -1)
        return self.final(modulate(h, scale, shift))


class FlowAR(Generator):
    """Latents `(b, side, side, c)` from a class."""

    family = "flowar"
    Config = FlowARConfig
    facts = {"unit": "scale", "objective": "flow matching", "context": "clean"}

    def __init__(self, config: FlowARConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: FlowARConfig = config
        width, side = config.width, config.positions[0]
        self.sizes = [s * s for s in config.scales]
        self.starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        with torch.device("cpu"):
            where = torch.cat([grid_coordinates((s, s)) / s * side for s in config.scales])
            tables = rope_table(where, width // config.heads), rope_table(where, config.flow_head)
        self.register_buffer("table", tables[0], persistent=False)
        self.register_buffer("flow_table", tables[1], persistent=False)
        total = sum(self.sizes)
        self.class_emb = nn.Embedding(config.classes + 1, width)
        self.z_proj = nn.Linear(config.depth, width)
        self.z_proj_ln = nn.RMSNorm(width, eps=EPS)
        self.encoder_positions = nn.Parameter(torch.empty(total, width))
        self.encoder_blocks = self._blocks(config.encoder_depth)
        self.encoder_norm = nn.RMSNorm(width, eps=EPS)
        self.decoder_embed = nn.Linear(width, width)
        self.decoder_positions = nn.Parameter(torch.empty(total, width))
        self.decoder_blocks = self._blocks(config.decoder_depth)
        self.decoder_norm = nn.RMSNorm(width, eps=EPS)
        self.flow_positions = nn.Parameter(torch.empty(total, width))
        self.flownet = _FlowNetwork(config)
        for parameter in (self.encoder_positions, self.decoder_positions, self.flow_positions, self.class_emb.weight):
            nn.init.normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.flownet.final.weight)

    def _blocks(self, depth: int) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(ModulatedBlock(config.width, config.heads, dropout=config.dropout) for _ in range(depth))

    # -- network -----------------------------------------------------------------------------------------------------------------

    def condition(self, inputs: Tensor | None, labels: Tensor, cache: KVCache | None = None, *, first: int = 0) -> Tensor:
        """Give the condition z `(b, n, width)` of the positions of scales that follow each other.

        Args:
            inputs: `(b, n, c)`, enlarged latents of the scale before each; without the first scale, whose input is the class.
                None where there is nothing but the first scale.
            labels: `(b,)`, the null class included.
            cache: keys and values of coarser scales; given, `inputs` are those of one scale.
            first: number of the first scale that is asked for.
        """
        c = self.class_emb(labels)[:, None]
        parts = [] if inputs is None else [self.z_proj(inputs)]
        h = torch.cat([c, *parts], 1) if first == 0 else parts[0]
        at = slice(self.starts[first], self.starts[first] + h.shape[1])
        mask = group_mask(self.sizes, h.device) if cache is None else None
        if mask is not None:
            mask = mask[: h.shape[1], : h.shape[1]]
        h = self.z_proj_ln(h + self.encoder_positions[at])
        shared = dict(mask=mask, cache=cache)
        for i, block in enumerate(self.encoder_blocks):
            h = block(h, c, self.table[at], block=i, **shared)
        h = self.decoder_embed(self.encoder_norm(h)) + self.decoder_positions[at]
        for i, block in enumerate(self.decoder_blocks, start=len(self.encoder_blocks)):
            h = block(h, c, self.table[at], block=i, **shared)
        if cache is not None:
            cache.keep(h.shape[1])
        return self.decoder_norm(h) + self.flow_positions[at]

    def velocity(self, x: Tensor, t: Tensor, z: Tensor, scale: int) -> Tensor:
        """Predict noise - latents of scale number `scale`: x `(b, n, c)`, t `(b,)`, z `(b, n, width)`."""
        at = slice(self.starts[scale], self.starts[scale] + self.sizes[scale])
        return self.flownet(x, t, z, self.flow_table[at])

    # -- training ----------------------------------------------------------------------------------------------------------------

    def _loss(self, data: Tensor, labels: Tensor, mask: Tensor | None, draws: torch.Generator) -> Tensor:
        b, total = len(data), sum(self.sizes)
        times = torch.rand(b, len(self.sizes), generator=draws, device=draws.device).to(data)
        noise = torch.randn(b, total, self.config.depth, generator=draws, device=draws.device).to(data)
        return self.flow_loss(data, times, noise, labels)[0]

    def flow_loss(self, data: Tensor, times: Tensor, noise: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Give the sum over scales s of s^2 / side^2 times the mean squared error, and the velocities `(b, n, c)` of all scales.

        Args:
            data: latents `(b, side, side, c)`.
            times: `(b, scales)`.
            noise: `(b, n, c)`, n positions of all scales.
            labels: `(b,)`.
        """
        side, scales = self.config.positions[0], self.config.scales
        targets = pyramid(data, scales)
        inputs = self.inputs(targets)
        z = self.condition(inputs, labels)
        loss, velocities = data.new_zeros(()).float(), []
        for k, (x, e) in enumerate(zip(targets, noise.split(self.sizes, 1), strict=True)):
            t = times[:, k, None, None]
            v = self.velocity((1 - t) * x + t * e, times[:, k], z[:, self.starts[k] : self.starts[k] + self.sizes[k]], k)
            loss = loss + scales[k] ** 2 / side**2 * F.mse_loss(v.float(), (e - x).float())
            velocities.append(v)
        return loss, torch.cat(velocities, 1)

    def inputs(self, targets: list[Tensor]) -> Tensor | None:
        """Give the transformer's inputs for every scale but the first, `(b, n - 1, c)`, from the copies of `pyramid`."""
        pairs = zip(targets[:-1], self.config.scales[1:], strict=True)
        parts = [next_scale_input(x, s, self.config.positions[0]) for x, s in pairs]
        return torch.cat(parts, 1) if parts else None

    # -- sampling ----------------------------------------------------------------------------------------------------------------

    def _sample(
        self,
        labels: Tensor,
        seeds: list[int],
        guidance: float,
        *,
        steps: int = 25,
        guidance_from: float = 0.9,
        cache: bool = True,
    ) -> Tensor:
        """Draw latents.

        Args:
            labels, seeds, guidance: of each item; guidance grows from 1 at the first scale to its value at the last.
            steps: of the solver for each scale, 2 or more (`solver_times`).
            guidance_from: the largest noise level at which there is guidance.
            cache: keep keys and values of coarser scales; False runs them again.
        """
        if not isinstance(steps, int) or steps < 2:
            raise ValueError(f"{self.info.name}.sample: steps={steps!r}. Allowed: at least 2.")
        noise = gaussians(seeds, (sum(self.sizes), self.config.depth), device=labels.device)
        noise = noise if guidance == 1 else noise.repeat(2, 1, 1)
        scales, _ = self.solve(labels, noise, steps=steps, guidance=guidance, guidance_from=guidance_from, cache=cache)
        return scales[-1][: len(labels)].unflatten(1, self.config.positions)

    def solve(
        self, labels: Tensor, noise: Tensor, *, steps: int, guidance: float, guidance_from: float, cache: bool = True
    ) -> tuple[list[Tensor], Tensor]:
        """Run the sampler from given noise `(b or 2b, n, c)`; give the latents of each scale and the conditions z.

        Until guidance begins, the rows of the condition and those of the null class are solved apart; then the null rows take over
        the others' state.
        """
        both, side = self.guided_labels(labels, guidance), self.config.positions[0]
        dtype, done, conditions = self.z_proj.weight.dtype, [], []
        kept = self._cache(len(both)) if cache else None
        times = solver_times(steps)
        for k, (size, start) in enumerate(zip(self.sizes, self.starts, strict=True)):
            if kept is None:
                z = self.condition(self._inputs_so_far(done, k), both)[:, start:]
            else:
                new = next_scale_input(done[-1], self.config.scales[k], side) if k else None
                z = self.condition(new, both, kept, first=k)
            conditions.append(z)
            scale = 1 + (guidance - 1) * (k / (len(self.sizes) - 1) if len(self.sizes) > 1 else 1)
            x, guiding = noise[:, start : start + size].double(), False
            for t, after in pairwise(times):
                guided = guidance != 1 and t <= guidance_from
                if guided and not guiding:
                    x = x.chunk(2)[0].repeat(2, 1, 1)
                    guiding = True
                v = self.velocity(x.to(dtype), torch.full((len(x),), t, device=x.device), z, k).double()
                if guided:
                    conditional, null = v.chunk(2)
                    v = (null + scale * (conditional - null)).repeat(2, 1, 1)
                x = x + v * (after - t)
            done.append(x.to(dtype))
        return done, torch.cat(conditions, 1)

    def _inputs_so_far(self, done: list[Tensor], k: int) -> Tensor | None:
        side, scales = self.config.positions[0], self.config.scales
        parts = [next_scale_input(x, s, side) for x, s in zip(done, scales[1 : k + 1], strict=True)]
        return torch.cat(parts, 1) if parts else None

    def _cache(self, batch: int) -> KVCache:
        config = self.config
        return KVCache(
            blocks=config.encoder_depth + config.decoder_depth,
            batch=batch,
            heads=config.heads,
            head=config.width // config.heads,
            length=sum(self.sizes),
            like=self.z_proj.weight,
        )

    # -- the public release --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> FlowARConfig:
        grid = config["img_size"] // config["vae_stride"]
        for key, twin in (("encoder_embed_dim", "decoder_embed_dim"), ("encoder_num_heads", "decoder_num_heads")):
            if config[key] != config[twin]:
                raise ValueError(f"flowar: {key}={config[key]} and {twin}={config[twin]} in config.json. Needed: one size.")
        for key, only in (("patch_size", 1), ("mlp_ratio", 4.0), ("buffer_size", 0)):
            if config.get(key, only) != only:
                raise ValueError(f"flowar: {key}={config[key]!r} in config.json. This implementation knows: {only}.")
        out = FlowARConfig(
            positions=(grid, grid),
            extent=(config["img_size"],) * 2,
            channels=config["vae_embed_dim"],
            classes=config["class_num"],
            label_dropout=config["label_drop_prob"],
            width=config["encoder_embed_dim"],
            heads=config["encoder_num_heads"],
            encoder_depth=config["encoder_depth"],
            decoder_depth=config["decoder_depth"],
            flow_width=config["diffloss_w"],
            flow_depth=config["diffloss_d"],
            cross=config["cross"],
            dropout=config["attn_dropout"],
        )
        if tuple(config["scale"]) != out.scales:
            raise ValueError(f"flowar: scale={config['scale']} in config.json. This implementation knows: {list(out.scales)}.")
        return out

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: FlowARConfig) -> dict[str, Tensor]:
        out = {}
        tables = {"encoder_pos_embed_learned": "encoder_positions", "decoder_pos_embed_learned": "decoder_positions"}
        tables["diffusion_pos_embed_learned"] = "flow_positions"
        for key, value in tensors.items():
            if key == "mask" or ".rope." in key:
                continue  # constants, computed here
            if key in tables:
                key, value = tables[key], value.squeeze(0)
            key = key.replace("flownet.final_layer.linear.", "flownet.final.")
            key = key.replace("flownet.final_layer.adaLN_modulation.1.", "flownet.final_modulation.")
            if key.startswith("flownet.res_blocks.") and ".ada_lin." in key:
                key = key.replace(".ada_lin.", ".ada_lin.1.")
            out[key] = value
        return out
