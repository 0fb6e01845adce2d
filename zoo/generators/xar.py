"""xAR: latents in entities (cells, subsamples, scales, single positions, the whole), each by flow matching, in a noisy context.

Paper: "Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation", arXiv 2502.20388. Source repository:
OliverRen/xAR, commit 121e9c9 (nothing is copied from it). Checked against tests/parity/xar: velocities and loss to 1e-4, sampled
latents to 1e-3.

    training: every entity gets its own noise level; ONE pass with a mask by which an entity sees itself and those before it
    sampling: entity after entity by a stochastic solver; the finished ones are context at noise level 0, kept as keys and values

The public code knows cells of a 16 x 16 grid only; here any partition of any grid of latents works. Scales are no partition: they
are copies of the whole, averaged down (FlowAR's targets), the coarsest first, and the last is the result; a copy's positions are
placed on the grid as FlowAR places them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.generators.base import Generator, GeneratorConfig
from zoo.generators.drawing import gaussians
from zoo.generators.registry import GeneratorEntry
from zoo.layers.modulated import EPS, ModulatedBlock, TimeEmbedding
from zoo.layers.patches import averaged
from zoo.layers.transformer import KVCache, grid_coordinates, group_mask, rope_table

__all__ = ["XAR", "XARConfig", "partition", "scale_factors"]

Entity = Literal["cell", "subsample", "scale", "token", "whole"]
_LAST_NOISE = 0.04  # the solver's last level before 0


@dataclass(frozen=True, kw_only=True)
class XARConfig(GeneratorConfig):
    """Sizes of an xAR; the defaults are those of the public B model.

    Attributes:
        entity: "cell" (blocks of `side` positions along each axis), "subsample" (every `side`-th position), "scale" (the
            grid and its halves, as long as all sides are even), "token", "whole".
        side: of "cell" and "subsample"; divides every side of the grid.
        width, heads: of the transformer.
        encoder_depth, decoder_depth: its blocks before and after the second table of positions.
        dropout: in the attention, in training.
    """

    tokenizer: str = "mar_kl16"
    positions: tuple[int, ...] = (16, 16)
    extent: tuple[int, ...] = (256, 256)
    channels: int | None = 16
    entity: Entity = "cell"
    side: int = 8
    width: int = 768
    heads: int = 12
    encoder_depth: int = 8
    decoder_depth: int = 8
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.channels is not None, "channels", "a number: this generator makes latents")
        self.require(self.entity in get_args(Entity), "entity", ", ".join(get_args(Entity)))
        cut = self.entity in ("cell", "subsample")
        fits = self.side >= 1 and (not cut or all(n % self.side == 0 for n in self.positions))
        self.require(fits, "side", f"a divisor of every side of {self.positions}")
        halved = self.entity != "scale" or all(n % 2 == 0 for n in self.positions)
        self.require(halved, "positions", "even sides, with entity='scale'")
        for name in ("heads", "encoder_depth", "decoder_depth"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        least = 2 * len(self.positions)
        even = self.width % (2 * self.heads) == 0 and self.width // self.heads >= least
        self.require(even, "width", f"heads times an even number of at least {least}")
        self.require(0 <= self.dropout < 1, "dropout", "0 to below 1")


def scale_factors(positions: tuple[int, ...]) -> tuple[int, ...]:
    """How many positions of the grid one of a scale stands for along each axis, the coarsest scale first, 1 for the grid."""
    factors = [1]
    while all(n % (2 * factors[-1]) == 0 for n in positions):
        factors.append(2 * factors[-1])
    return tuple(factors[::-1])


def partition(entity: Entity, positions: tuple[int, ...], side: int) -> Tensor:
    """Cut a grid into entities: int64 `(entities, positions of each)`, raster indices in order.

    Args:
        entity: see `XARConfig`; not "scale", which is no partition.
        positions: sides of the grid.
        side: of a cell, or the stride of a subsample.
    """
    grid = torch.arange(math.prod(positions)).reshape(positions)
    if entity == "token":
        return grid.reshape(-1, 1)
    if entity == "whole":
        return grid.reshape(1, -1)
    axes = len(positions)
    split = grid.reshape([size for n in positions for size in (n // side, side)])
    outer, inner = list(range(0, 2 * axes, 2)), list(range(1, 2 * axes, 2))
    if entity == "cell":
        return split.permute(*outer, *inner).reshape(-1, side**axes)
    return split.permute(*inner, *outer).reshape(side**axes, -1)


class XAR(Generator):
    """Latents `(b, *positions, c)` from a class."""

    family = "xar"
    Config = XARConfig
    facts = {"unit": "cell", "objective": "flow matching", "context": "noisy"}

    def __init__(self, config: XARConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: XARConfig = config
        width, channels = config.width, config.depth
        with torch.device("cpu"):
            at = grid_coordinates(config.positions)
            if config.entity == "scale":
                factors = scale_factors(config.positions)
                at = [grid_coordinates([n // f for n in config.positions]) * f for f in factors]
                self.sizes, order, at = tuple(len(part) for part in at), torch.arange(config.count), torch.cat(at)
            else:
                parts = partition(config.entity, config.positions, config.side)
                self.sizes, order = (parts.shape[1],) * len(parts), parts.flatten()
                at = at[order]
            table = rope_table(at, width // config.heads)
        self.starts = tuple(sum(self.sizes[:i]) for i in range(len(self.sizes) + 1))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("table", table, persistent=False)
        self.class_emb = nn.Embedding(config.classes + 1, width)
        self.time_embed = TimeEmbedding(width)
        self.z_proj = nn.Linear(channels, width)
        self.encoder_positions = nn.Parameter(torch.empty(self.starts[-1], width))
        self.z_proj_ln = nn.RMSNorm(width, eps=EPS)
        self.encoder_blocks = self._blocks(config.encoder_depth)
        self.encoder_norm = nn.RMSNorm(width, eps=EPS)
        self.decoder_embed = nn.Linear(width, width)
        self.decoder_positions = nn.Parameter(torch.empty(self.starts[-1], width))
        self.decoder_blocks = self._blocks(config.decoder_depth)
        self.decoder_norm = nn.RMSNorm(width, eps=EPS)
        self.pred = nn.Linear(width, channels)
        for parameter in (self.encoder_positions, self.decoder_positions, self.class_emb.weight):
            nn.init.normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _blocks(self, depth: int) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(ModulatedBlock(config.width, config.heads, dropout=config.dropout) for _ in range(depth))

    @property
    def entities(self) -> int:
        """How many entities there are; `sizes` are their positions, `starts` where each begins."""
        return len(self.sizes)

    # -- network -----------------------------------------------------------------------------------------------------------------

    def velocity(
        self, x: Tensor, times: Tensor, labels: Tensor, cache: KVCache | None = None, *, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Predict noise - latents of entities that follow each other.

        Args:
            x: `(b, n, c)`, noisy latents in the order of the entities.
            times: `(b, entities)` noise levels.
            labels: `(b,)`, the null class included.
            cache: keys and values of the entities before; they see nothing of `x`.
            first: number of the first entity in `x`.

        Returns:
            velocities like `x`, and what leaves the encoder's norm, `(b, n, width)`.
        """
        entities = times.shape[1]
        at, sizes = slice(self.starts[first], self.starts[first + entities]), self.sizes[first : first + entities]
        groups = torch.arange(entities, device=x.device).repeat_interleave(torch.tensor(sizes, device=x.device))
        mask = group_mask(sizes, x.device) if entities > 1 else None
        condition = self.class_emb(labels)[:, None] + self.time_embed(times)
        shared = dict(groups=groups, mask=mask, cache=cache)
        h = self.z_proj_ln(self.z_proj(x) + self.encoder_positions[at])
        for i, block in enumerate(self.encoder_blocks):
            h = block(h, condition, self.table[at], block=i, **shared)
        encoded = self.encoder_norm(h)
        h = self.decoder_embed(encoded) + self.decoder_positions[at]
        for i, block in enumerate(self.decoder_blocks, start=len(self.encoder_blocks)):
            h = block(h, condition, self.table[at], block=i, **shared)
        return self.pred(self.decoder_norm(h)), encoded

    def _cache(self, batch: int) -> KVCache:
        blocks = len(self.encoder_blocks) + len(self.decoder_blocks)
        head = self.config.width // self.config.heads
        return KVCache(
            blocks=blocks, batch=batch, heads=self.config.heads, head=head, length=self.starts[-1], like=self.pred.weight
        )

    def entity_order(self, data: Tensor) -> Tensor:
        """Latents `(b, *positions, c)` in the order of the entities, `(b, n, c)`; with scales each position is in several."""
        if self.config.entity == "scale":
            return torch.cat([averaged(data, factor) for factor in scale_factors(self.config.positions)], 1)
        return data.flatten(1, -2)[:, self.order]

    # -- training ----------------------------------------------------------------------------------------------------------------

    def _loss(self, data: Tensor, labels: Tensor, mask: Tensor | None, draws: torch.Generator) -> Tensor:
        x = self.entity_order(data)
        times = torch.randn(len(x), self.entities, generator=draws, device=draws.device).sigmoid().to(x)
        noise = torch.randn(x.shape, generator=draws, device=draws.device).to(x)
        return self.flow_loss(x, times, noise, labels)

    def flow_loss(self, x: Tensor, times: Tensor, noise: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error of the velocity of latents `(b, n, c)` in entity order, at noise levels `(b, entities)`."""
        t = times.repeat_interleave(torch.tensor(self.sizes, device=times.device), 1)[..., None]
        velocity, _ = self.velocity((1 - t) * x + t * noise, times, labels)
        return F.mse_loss(velocity.float(), (noise - x).float())

    # -- sampling ----------------------------------------------------------------------------------------------------------------

    def _sample(self, labels: Tensor, seeds: list[int], guidance: float, *, steps: int = 40, cache: bool = True) -> Tensor:
        """Draw latents.

        Args:
            labels, seeds, guidance: of each item; guidance grows from 1 at the first entity to its value at the last.
            steps: calls of the network for each entity, at least 2; the published settings are 40 or 50.
            cache: keep keys and values of finished entities; False runs them again at each call.
        """
        if not isinstance(steps, int) or steps < 2:
            raise ValueError(f"{self.info.name}.sample: steps={steps!r}. Allowed: at least 2.")
        depth, rest = self.config.depth, steps - 1
        start = gaussians(seeds, (self.starts[-1], depth), stream=0, device=labels.device).split(self.sizes, 1)
        noise = gaussians(seeds, (self.starts[-1] * rest, depth), stream=1, device=labels.device)
        by_entity = noise.split([size * rest for size in self.sizes], 1)
        x = self.solve(labels, start, [part.unflatten(1, (rest, -1)) for part in by_entity], guidance=guidance, cache=cache)
        if self.config.entity == "scale":
            return x[:, self.starts[-2] :].unflatten(1, self.config.positions)
        out = torch.empty_like(x)
        out[:, self.order] = x
        return out.unflatten(1, self.config.positions)

    def solve(
        self, labels: Tensor, start: Sequence[Tensor], noise: Sequence[Tensor], *, guidance: float, cache: bool = True
    ) -> Tensor:
        """Run the stochastic solver from given draws to latents `(b, n, c)` in entity order.

        x <- x + d (t' - t) + sqrt(2 t |t' - t|) noise with the drift d = (2 - t) v + x; the last step has no noise.

        Args:
            labels: `(b,)`.
            start: of each entity `(b, size, c)`.
            noise: of each entity `(b, steps - 1, size, c)`.
            guidance: scale at the last entity.
            cache: see `_sample`.
        """
        both, twice = self.guided_labels(labels, guidance), 1 if guidance == 1 else 2
        steps = noise[0].shape[1] + 1
        # Even in float64: a float32 grid falls below 0.36 where the network must see 360.
        times = [*torch.linspace(1, _LAST_NOISE, steps, dtype=torch.float64).tolist(), 0.0]
        kept, done = self._cache(len(both)) if cache else None, []
        dtype = self.pred.weight.dtype

        def call(parts: list[Tensor], levels: list[float], first: int) -> Tensor:
            x = torch.cat(parts, 1).to(dtype).repeat(twice, 1, 1)
            t = torch.tensor(levels, device=x.device).expand(len(x), -1)
            return self.velocity(x, t, both, kept, first=first)[0][:, -parts[-1].shape[1] :]

        for entity in range(self.entities):
            if entity and kept is not None:
                call([done[-1]], [0.0], entity - 1)
                kept.keep(self.sizes[entity - 1])
            scale = 1 + (guidance - 1) * (entity / (self.entities - 1) if self.entities > 1 else 1)
            x = start[entity].double()
            for step in range(steps):
                t, after = times[step], times[step + 1]
                if kept is None:
                    v = call([*done, x], [0.0] * entity + [t], 0)
                else:
                    v = call([x], [t], entity)
                if twice == 2:
                    conditional, null = v.chunk(2)
                    v = null + scale * (conditional - null)
                x = x + ((2 - t) * v.double() + x) * (after - t)
                if step < steps - 1:
                    x = x + math.sqrt(2 * t * abs(after - t)) * noise[entity][:, step].double()
            done.append(x)
        return torch.cat(done, 1).to(dtype)

    # -- the public release --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> XARConfig:
        grid = config["img_size"] // config["vae_stride"]
        cells = math.isqrt(config.get("clusters", 4))
        for key, twin in (("encoder_embed_dim", "decoder_embed_dim"), ("encoder_num_heads", "decoder_num_heads")):
            if config[key] != config[twin]:
                raise ValueError(f"xar: {key}={config[key]} and {twin}={config[twin]} in config.json. Needed: one size.")
        for key, only in (("patch_size", 1), ("mlp_ratio", 4.0)):
            if config.get(key, only) != only:
                raise ValueError(f"xar: {key}={config[key]!r} in config.json. This implementation knows: {only}.")
        return XARConfig(
            positions=(grid, grid),
            extent=(config["img_size"],) * 2,
            channels=config["vae_embed_dim"],
            classes=config["class_num"],
            label_dropout=config["label_drop_prob"],
            side=grid // cells,
            width=config["encoder_embed_dim"],
            heads=config["encoder_num_heads"],
            encoder_depth=config["encoder_depth"],
            decoder_depth=config["decoder_depth"],
            dropout=config["attn_dropout"],
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: XARConfig) -> dict[str, Tensor]:
        out = {}
        for key, value in tensors.items():
            if key == "mask" or ".rope." in key:
                continue  # constants, computed here
            for part in ("encoder", "decoder"):
                if key == f"{part}_pos_embed_learned":
                    key, value = f"{part}_positions", value.squeeze(0)
            out[key] = value
        return out
