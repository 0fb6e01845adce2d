"""ResGen: masked diffusion over the depth of residual codes; one vector for all that is masked at a position, not code after code.

Paper: "Efficient Generative Modeling with Residual Vector Quantization-Based Tokens", arXiv 2412.10208 (ICML 2025). No public code
is known; written from the abstract and public summaries. Theirs: the forward process over depths, predicting the SUM of the masked
embeddings by a mixture of Gaussians with a low-rank projection of the means, its split into a classification and a regression part,
re-quantization, confidences. Ours: the exact form of the head and of the loss (Jensen's bound with constant responsibilities), a
cosine schedule, the input (partial sum, count of masked depths), and the draw of what stays masked, which for equal confidences is
the exact posterior of the forward process.

    forward:  of the L x D cells n are masked at random; a position with k masked cells loses its k DEEPEST codes
    network:  sum of the kept embeddings, k, class -> mixture for the sum z of the lost ones
    sampling: draw z, quantize it level by level, keep the most confident cells, again; T calls, whatever the depth

Embeddings are those of the tokenizer's codebooks, `take_codebooks`; fixed random ones stand in until then.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.generators.base import Generator, GeneratorConfig
from zoo.generators.drawing import check_draw_options, draw_codes, gaussians, uniforms
from zoo.generators.registry import GeneratorEntry
from zoo.layers.modulated import ModulatedBlock, plain_rms
from zoo.layers.transformer import grid_coordinates, rope_table
from zoo.quantizers.rvq import RVQ
from zoo.tokenizer import Tokenizer

__all__ = ["Mixture", "MixtureHead", "ResGen", "ResGenConfig", "masked_counts", "masked_share"]


@dataclass(frozen=True, kw_only=True)
class ResGenConfig(GeneratorConfig):
    """Sizes of a ResGen.

    Attributes:
        code_width: length of a codebook vector.
        width, depth_blocks, heads: of the transformer.
        components: of the mixture.
        rank: of the projection of the means.
        least_scale: the smallest standard deviation, for data of unit deviation.
        dropout: in the attention, in training.
    """

    code_width: int = 256
    width: int = 1024
    depth_blocks: int = 24
    heads: int = 16
    components: int = 1024
    rank: int = 16
    least_scale: float = 1e-3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.vocabulary), "vocabulary", "codebook sizes: this generator makes codes")
        for name in ("code_width", "depth_blocks", "heads", "components", "rank"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        least = 2 * len(self.positions)
        even = self.width >= 1 and self.width % (2 * self.heads) == 0 and self.width // self.heads >= least
        self.require(even, "width", f"heads times an even number of at least {least}")
        self.require(self.least_scale > 0, "least_scale", "a positive number")
        self.require(0 <= self.dropout < 1, "dropout", "0 to below 1")


def masked_share(r: float | Tensor) -> Tensor:
    """Share of masked cells at time r in 0..1, 1 at the start of sampling and 0 at its end: cos(pi r / 2)."""
    return torch.cos(torch.as_tensor(r, dtype=torch.float64) * (math.pi / 2))


def _cells(share: Tensor, cells: int) -> Tensor:
    """The share of so many cells, rounded up; a rounding error above a whole number does not count."""
    return (share * cells - 1e-9).ceil().long()


def masked_counts(counts: Tensor, positions: int, depth: int, draws: torch.Generator) -> Tensor:
    """Draw how many cells are masked at each position: choose `counts (b,)` of positions x depth cells, `(b, positions)` int64."""
    rank = torch.rand(len(counts), positions * depth, generator=draws, device=draws.device).argsort(1).argsort(1)
    return (rank < counts.to(rank.device)[:, None]).view(len(counts), positions, depth).sum(-1)


class Mixture(NamedTuple):
    """A mixture of Gaussians for each of n vectors of length h, in float32; component v has the mean shift + scale * (W_v g + b_v).

    Attributes:
        weights: log weights `(n, K)`.
        shift, scale: `(n, h)`.
        code: g with a one appended, `(n, r + 1)`.
        table: W with b appended, `(K, h, r + 1)`.
    """

    weights: Tensor
    shift: Tensor
    scale: Tensor
    code: Tensor
    table: Tensor

    def means(self, component: Tensor) -> Tensor:
        """Mean `(n, h)` of one component `(n,)` each."""
        picked = (self.table[component] @ self.code[..., None])[..., 0]
        return self.shift + self.scale * picked

    def component_likelihoods(self, z: Tensor) -> Tensor:
        """Log density of `z (n, h)` under each component, `(n, K)`, without making the K means.

        With u = (z - shift) / scale: -1/2 (|u|^2 - 2 <u g', W> + <g g', W'W>) - h / 2 log 2 pi - sum log scale.
        """
        u = (z - self.shift) / self.scale
        components, h, r = self.table.shape
        crossed = (u[:, :, None] * self.code[:, None, :]).flatten(1) @ self.table.reshape(components, h * r).T
        gram = (self.table.transpose(1, 2) @ self.table).reshape(components, r * r)
        own = (self.code[:, :, None] * self.code[:, None, :]).flatten(1) @ gram.T
        constant = 0.5 * h * math.log(2 * math.pi) + self.scale.log().sum(-1, keepdim=True)
        return -0.5 * (u.square().sum(-1, keepdim=True) - 2 * crossed + own) - constant

    def log_likelihood(self, z: Tensor) -> Tensor:
        """Log density of `z (n, h)`, `(n,)`."""
        return (self.weights + self.component_likelihoods(z)).logsumexp(-1)

    def bound(self, z: Tensor) -> Tensor:
        """The loss `(n,)`: classification and regression under responsibilities that are constant and ignore the weights.

        Minus the entropy of the responsibilities it is at least the negative log density (Jensen).
        """
        likelihoods = self.component_likelihoods(z)
        share = likelihoods.detach().softmax(-1)
        return -(share * (likelihoods + self.weights)).sum(-1)


def _codebooks(tokenizer: Tokenizer) -> list[Tensor]:
    """The codebooks of a tokenizer that codes residuals, `(k_j, width)` for each depth."""
    quantizer = getattr(tokenizer, "quantizer", None)
    if not isinstance(quantizer, RVQ):
        found = type(quantizer).__name__
        raise ValueError(f"resgen: {tokenizer.info.name} has the quantizer {found}. Needed: residual codebooks, as rvq_nano has.")
    return [quantizer.layer(j).codebook for j in range(len(tokenizer.spec.vocabulary))]


class MixtureHead(nn.Module):
    """Features `(n, width)` to a `Mixture` over vectors of length h."""

    def __init__(self, width: int, h: int, *, components: int, rank: int, least_scale: float) -> None:
        super().__init__()
        self.least_scale = least_scale
        self.code = nn.Linear(width, rank)
        self.weights = nn.Linear(width, components)
        self.shift = nn.Linear(width, h)
        self.scale = nn.Linear(width, h)
        self.table = nn.Parameter(torch.empty(components, h, rank + 1))
        nn.init.normal_(self.table, std=1 / math.sqrt(rank + 1))
        for layer in (self.weights, self.shift, self.scale):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Mixture:
        with torch.autocast(features.device.type, enabled=False):
            x = features.float()

            def apply(layer: nn.Linear) -> Tensor:
                return F.linear(x, layer.weight.float(), layer.bias.float())

            code = apply(self.code)
            return Mixture(
                weights=apply(self.weights).log_softmax(-1),
                shift=apply(self.shift),
                scale=F.softplus(apply(self.scale)) + self.least_scale,
                code=torch.cat([code, torch.ones_like(code[:, :1])], 1),
                table=self.table.float(),
            )


class ResGen(Generator):
    """Codes `(b, *positions, d)` from a class, in a number of calls that does not grow with d."""

    family = "resgen"
    Config = ResGenConfig
    facts = {"unit": "depth stack", "objective": "discrete diffusion", "context": "clean"}

    def __init__(self, config: ResGenConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: ResGenConfig = config
        width, draws = config.width, torch.Generator().manual_seed(0)
        with torch.device("cpu"):
            for j, size in enumerate(config.sizes):
                # Each level a fifth of the energy of the one before, about as residual quantizers have it.
                self.register_buffer(f"book_{j}", torch.randn(size, config.code_width, generator=draws) * 5 ** (-j / 2))
            self.register_buffer("deviation", torch.tensor(1.0))
            table = rope_table(grid_coordinates(config.positions), width // config.heads)
        self.register_buffer("table", table, persistent=False)
        self.input = nn.Linear(config.code_width, width)
        self.masked = nn.Embedding(config.depth + 1, width)
        self.positions = nn.Parameter(torch.empty(config.count, width))
        self.class_embedding = nn.Embedding(config.classes + 1, width)
        blocks = [ModulatedBlock(width, config.heads, dropout=config.dropout) for _ in range(config.depth_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.head = MixtureHead(
            width, config.code_width, components=config.components, rank=config.rank, least_scale=config.least_scale
        )
        for parameter in (self.positions, self.masked.weight, self.class_embedding.weight):
            nn.init.normal_(parameter, std=0.02)
        for block in blocks:
            nn.init.zeros_(block.ada_lin[1].weight)
            nn.init.zeros_(block.ada_lin[1].bias)

    # -- codebooks ---------------------------------------------------------------------------------------------------------------

    @classmethod
    def settings_for(cls, tokenizer: Tokenizer) -> dict[str, Any]:
        """The length of its codebook vectors.

        Raises:
            ValueError: a tokenizer without residual codebooks.
        """
        return {"code_width": _codebooks(tokenizer)[0].shape[1]}

    def take_from(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer's codebooks."""
        self.take_codebooks(_codebooks(tokenizer)[: self.config.depth])

    @property
    def books(self) -> list[Tensor]:
        """The codebooks, `(k_j, code_width)` each."""
        return [getattr(self, f"book_{j}") for j in range(self.config.depth)]

    def take_codebooks(self, books: Sequence[Tensor], *, deviation: float | None = None) -> None:
        """Use the tokenizer's codebooks, `[layer.codebook for each depth]` of a residual quantizer.

        Args:
            books: `(k_j, code_width)` for each depth.
            deviation: standard deviation of the sum of a position's vectors; None takes it from the codebooks, as if all codes were
                equally probable and independent.

        Raises:
            ValueError: another number or shape than the configuration says.
        """
        shapes = [tuple(book.shape) for book in books]
        needed = [(size, self.config.code_width) for size in self.config.sizes]
        if shapes != needed:
            raise ValueError(f"{self.info.name}.take_codebooks: books of shapes {shapes}. Needed: {needed}.")
        with torch.no_grad():
            for mine, book in zip(self.books, books, strict=True):
                mine.copy_(book)
            if deviation is None:
                deviation = math.sqrt(sum(float(book.float().var(0, correction=0).mean()) for book in books))
            if not (math.isfinite(deviation) and deviation > 0):
                raise ValueError(f"{self.info.name}.take_codebooks: deviation={deviation}. Needed: a positive number.")
            self.deviation.fill_(deviation)

    def vectors(self, codes: Tensor) -> Tensor:
        """The codebook vectors `(b, n, d, code_width)` of codes `(b, n, d)`."""
        return torch.stack([F.embedding(codes[..., j], book) for j, book in enumerate(self.books)], 2)

    def quantize(self, z: Tensor, masked: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize `z (b, n, code_width)` by the deepest `masked (b, n)` levels, coarsest first.

        Returns:
            `codes (b, n, d)` with these levels replaced, and the sum of their vectors `(b, n, code_width)`.
        """
        depth, rest, codes = self.config.depth, z.float(), codes.clone()
        for j, book in enumerate(self.books):
            table = book.float()
            distance = table.square().sum(-1) - 2 * rest @ table.T
            nearest = distance.argmin(-1)
            active = masked >= depth - j
            codes[..., j] = torch.where(active, nearest, codes[..., j])
            rest = torch.where(active[..., None], rest - table[nearest], rest)
        return codes, z.float() - rest

    # -- network -----------------------------------------------------------------------------------------------------------------

    def features(self, codes: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
        """Features `(b, n, width)` from the codes `(b, n, d)` that are not masked; `masked (b, n)` counts the deepest that are."""
        kept = torch.arange(self.config.depth, device=codes.device) < self.config.depth - masked[..., None]
        known = (self.vectors(codes) * kept[..., None]).sum(2) / self.deviation
        x = self.input(known.to(self.input.weight.dtype)) + self.masked(masked) + self.positions
        condition = self.class_embedding(labels)[:, None]
        for block in self.blocks:
            x = block(x, condition, self.table)
        return plain_rms(x)

    # -- training ----------------------------------------------------------------------------------------------------------------

    def _loss(self, data: Tensor, labels: Tensor, mask: Tensor | None, draws: torch.Generator) -> Tensor:
        codes, n, depth = data.flatten(1, -2), self.config.count, self.config.depth
        time = torch.rand(len(codes), generator=draws, device=draws.device)
        counts = _cells(masked_share(time), n * depth).clamp(min=1)
        return self.masked_loss(codes, labels, masked_counts(counts, n, depth, draws).to(codes.device))

    def masked_loss(self, codes: Tensor, labels: Tensor, masked: Tensor) -> Tensor:
        """Mean of the mixture's bound over positions with `masked (b, n)` codes or more than none, per number of the vector."""
        lost = torch.arange(self.config.depth, device=codes.device) >= self.config.depth - masked[..., None]
        z = (self.vectors(codes) * lost[..., None]).sum(2) / self.deviation
        hidden = masked > 0
        mixture = self.head(self.features(codes, masked, labels)[hidden])
        return mixture.bound(z[hidden].float()).mean() / self.config.code_width

    # -- sampling ----------------------------------------------------------------------------------------------------------------

    def _sample(
        self,
        labels: Tensor,
        seeds: list[int],
        guidance: float,
        *,
        steps: int = 63,
        temperature: float = 1.0,
        top_p: float | None = None,
        noise: float = 1.0,
        confidence: float = 1.0,
    ) -> Tensor:
        """Draw codes.

        Args:
            labels, seeds, guidance: of each item; guidance acts on the features and grows linearly with the share of known cells.
            steps: calls of the network, whatever the depth; the published image result has 63.
            temperature, top_p: of the draw of a component.
            noise: factor on the components' deviation; the last step has none.
            confidence: how much chance there is in what stays masked, falling linearly over the steps; 0 always keeps the surest.
        """
        name, n, depth = f"{self.info.name}.sample", self.config.count, self.config.depth
        check_draw_options(name, temperature=temperature, top_p=top_p)
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"{name}: steps={steps!r}. Allowed: at least 1.")
        if not (confidence >= 0 and noise >= 0):
            raise ValueError(f"{name}: noise={noise}, confidence={confidence}. Allowed: 0 or more.")
        b, both = len(labels), self.guided_labels(labels, guidance)
        twice, device = len(both) // b, labels.device
        codes = torch.zeros(b, n, depth, dtype=torch.int64, device=device)
        masked = torch.full((b, n), depth, device=device)
        for step in range(1, steps + 1):
            known = 1 - int(masked[0].sum()) / (n * depth)
            features = self.features(codes.repeat(twice, 1, 1), masked.repeat(twice, 1), both)
            if twice == 2:
                conditional, null = features.chunk(2)
                features = null + (1 + (guidance - 1) * known) * (conditional - null)
            mixture = self.head(features.flatten(0, 1))
            u = uniforms(seeds, (n,), stream=3 * step, device=device).flatten()
            component = draw_codes(mixture.weights, u, temperature=temperature, top_p=top_p)
            z = mixture.means(component)
            if step < steps and noise:
                shaken = gaussians(seeds, (n, self.config.code_width), stream=3 * step + 1, device=device).flatten(0, 1)
                z = z + noise * mixture.scale * shaken
            z = z.unflatten(0, (b, n)) * self.deviation
            codes, sums = self.quantize(z, masked, codes)
            if step == steps:
                break
            sure = mixture.log_likelihood((sums / self.deviation).flatten(0, 1)).view(b, n) / self.config.code_width
            count = int(_cells(masked_share(step / steps), n * depth))
            chance = uniforms(seeds, (n, depth), stream=3 * step + 2, device=device)
            masked = self.still_masked(masked, sure, count, chance, confidence * (1 - step / steps))
        return codes.unflatten(1, self.config.positions)

    def still_masked(self, masked: Tensor, sure: Tensor, count: int, chance: Tensor, temperature: float) -> Tensor:
        """Choose which `count` of the masked cells stay masked; give the new counts `(b, n)`.

        Every masked cell of position i has the key -sure_i / temperature + Gumbel noise; the largest keys stay. Equal confidences
        choose without preference, which is the posterior of the forward process; temperature 0 takes the least sure positions.

        Args:
            masked: counts now `(b, n)`.
            sure: confidence of each position `(b, n)`.
            count: cells that stay masked, of each item.
            chance: uniform numbers `(b, n, d)`.
            temperature: weight of chance against confidence.
        """
        cells = torch.arange(self.config.depth, device=masked.device) < masked[..., None]
        gumbel = -torch.log(-torch.log(chance.clamp(1e-12, 1 - 1e-12)))
        keys = (temperature * gumbel - sure[..., None].double()).masked_fill(~cells, -math.inf)
        if temperature == 0:  # equal keys within a position: chance decides among positions of equal confidence only
            keys = keys + 1e-9 * gumbel
        stay = torch.zeros_like(keys.flatten(1), dtype=torch.bool)
        stay.scatter_(1, keys.flatten(1).topk(count, 1).indices, True)
        return (stay.view_as(cells) & cells).sum(-1)
