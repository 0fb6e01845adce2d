"""Phenaki's MaskGIT: tokens of a clip by filling masks, from text or a class, and videos of any length with changing prompts.

Papers: Phenaki (arXiv 2210.02399), MaskGIT (arXiv 2202.04200), token critic (arXiv 2209.04439). Behaviour checked against
lucidrains/phenaki-pytorch 0.5.0 (MIT, commit 9415d4e6) through tests/parity/cvivit/maskgit_text: logits to 1e-3, as it suggests for
scores of up to 23, the ids of every step equal.

    ids or mask `(b, t * h * w)` -> position convolution, attention biased by distance, attention to text, gated layer -> scores

The family is named `cvivit`, as the tokenizer it was made for; any video tokenizer with one code for each position will do.

Differences: a class may stand in place of text, as one learned context vector; norms have a learned shift where the original has a
constant zero; a scene longer than the window is continued within the scene, as the paper does between scenes; frames are clamped
to their range before they are encoded again.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.generators.drawing import check_draw_options, uniforms
from zoo.generators.registry import GeneratorEntry
from zoo.generators.text import TextCondition
from zoo.generators.text_conditioned import TextConditioned, TextConfig
from zoo.layers.geglu import GEGLU
from zoo.layers.transformer import grid_coordinates
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

__all__ = ["MaskGITVideo", "MaskGITVideoConfig", "Scene"]

Critic = Literal["none", "shared", "separate"]
_ATTENTION_SCALE = 8.0  # of the cosine between query and key
_NULL_KEYS = 2  # learned keys of the attention to text, all there is without a condition


@dataclass(frozen=True, kw_only=True)
class MaskGITVideoConfig(TextConfig):
    """Sizes of the network.

    Attributes:
        width, depth_blocks, heads, head: of the transformer; `head` is the size of one attention head.
        mlp_ratio: the gated hidden layer has 2/3 of it times the width.
        bias_width: of the network that turns distances into attention biases.
        places: rows of the table of absolute positions; None for as many as `positions` has.
        stages: training draws one of so many mask rates, cos(pi / 2 * r / stages).
        embedding_gradient: factor on the gradient of the embeddings.
        critic: what judges which codes to draw again: "none" the code's own probability, "shared" a head on the same network,
            "separate" a network of its own.
    """

    modality: str = "video"
    classes: int = 0
    label_dropout: float = 0.25
    width: int = 512
    depth_blocks: int = 6
    heads: int = 8
    head: int = 64
    mlp_ratio: float = 4.0
    bias_width: int = 64
    places: int | None = None
    stages: int = 18
    embedding_gradient: float = 0.1
    critic: Critic = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(len(self.sizes) == 1, "vocabulary", "one codebook size: this generator makes one code for each position")
        self.require(len(self.positions) == 3, "positions", "three sides: time, height, width")
        self.require(len(self.extent) == 3, "extent", "three sides: frames, height, width")
        for name in ("width", "depth_blocks", "heads", "head", "bias_width", "stages"):
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(int(self.mlp_ratio * self.width * 2 / 3) >= 1, "mlp_ratio", "large enough for a hidden layer")
        self.require(self.places is None or self.places >= self.count, "places", f"at least {self.count}, or None")
        self.require(0 < self.embedding_gradient <= 1, "embedding_gradient", "above 0, up to 1")
        self.require(self.critic in get_args(Critic), "critic", ", ".join(get_args(Critic)))

    @property
    def step_frames(self) -> int:
        """Frames of one time step after the first, which is one frame alone."""
        steps, frames = self.positions[0] - 1, self.extent[0] - 1
        return max(1, frames // steps) if steps else 1


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A part of a story.

    Attributes:
        frames: new frames: 1 + k * step_frames for the first scene, k * step_frames for each later one.
        condition: a class or text embeddings, as `sample` takes them.
    """

    frames: int
    condition: Any = None


# -- network -----------------------------------------------------------------------------------------------------------------------


class _Attention(nn.Module):
    """Cosine attention with learned scales; queries come from the normalised input, keys and values from it as it is."""

    def __init__(self, config: MaskGITVideoConfig, context: int | None = None) -> None:
        super().__init__()
        inner = config.heads * config.head
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.width)
        self.context_norm = None if context is None else nn.LayerNorm(context)
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_kv = nn.Linear(context or config.width, 2 * inner, bias=False)
        self.q_scale, self.k_scale = nn.Parameter(torch.ones(config.head)), nn.Parameter(torch.ones(config.head))
        self.null = None if context is None else nn.Parameter(torch.randn(config.heads, _NULL_KEYS, 2, config.head))
        self.to_out = nn.Linear(inner, config.width, bias=False)

    def forward(self, x: Tensor, mask: Tensor, context: Tensor | None = None) -> Tensor:
        """Attend from `x (b, n, width)`; `mask` is added to the products (floating point) or marks the keys seen (bool)."""
        source = x if self.context_norm is None else self.context_norm(context)
        q = self.to_q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.to_kv(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.null is not None:
            null_k, null_v = self.null.expand(len(x), -1, -1, -1, -1).unbind(3)
            k, v = torch.cat([null_k, k], 2), torch.cat([null_v, v], 2)
        q, k = F.normalize(q, dim=-1) * self.q_scale, F.normalize(k, dim=-1) * self.k_scale
        # Written out: the fused form computes otherwise when the bias needs a gradient.
        products = _ATTENTION_SCALE * q @ k.transpose(2, 3)
        products = products.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else products + mask
        return self.to_out((products.softmax(-1) @ v).transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, config: MaskGITVideoConfig) -> None:
        super().__init__()
        self.position = nn.Conv3d(config.width, config.width, 3, padding=1, groups=config.width)
        self.attention = _Attention(config)
        self.cross = _Attention(config, config.text_width or config.width)
        self.feed_forward = GEGLU(config.width, int(config.mlp_ratio * config.width * 2 / 3))

    def forward(self, x: Tensor, grid: Sequence[int], bias: Tensor, context: Tensor, seen: Tensor) -> Tensor:
        around = self.position(x.transpose(1, 2).unflatten(2, tuple(grid)))
        x = x + around.flatten(2).transpose(1, 2)
        x = x + self.attention(x, bias)
        x = x + self.cross(x, seen, context)
        return x + self.feed_forward(x)


class _Network(nn.Module):
    """Ids `(b, n)`, the mask among them, to features `(b, n, width)`."""

    def __init__(self, config: MaskGITVideoConfig) -> None:
        super().__init__()
        self.share = config.embedding_gradient
        self.embedding = nn.Embedding(config.sizes[0] + 1, config.width)
        self.places = nn.Embedding(config.places or config.count, config.width)
        hidden = config.bias_width
        self.distance = nn.Sequential(
            nn.Linear(3, hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, hidden), nn.LeakyReLU(0.1), nn.Linear(hidden, config.heads)
        )
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth_blocks))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def bias(self, grid: Sequence[int]) -> Tensor:
        """Give the attention bias `(heads, n, n)` from the distances in time, rows and columns."""
        weight = self.distance[0].weight
        at = grid_coordinates(tuple(grid)).to(weight.device).float()
        apart = at[:, None] - at[None, :]
        return self.distance((apart.sign() * (apart.abs() + 1).log()).to(weight.dtype)).permute(2, 0, 1)

    def forward(
        self, ids: Tensor, grid: Sequence[int], context: Tensor, known: Tensor, real: Tensor | None = None
    ) -> Tensor:
        """Run ids of a grid `(t, h, w)` in raster order.

        Args:
            ids: `(b, t * h * w)`; the codebook size stands for the mask.
            grid: t, h, w.
            context: `(b, m, text_width)`, or of the network's width for a class.
            known: `(b, m)`: the rows of the context that are not padding.
            real: `(b, n)`: positions that are no padding; None for all.
        """
        x = self.embedding(ids) + self.places.weight[: ids.shape[1]]
        x = x * self.share + x.detach() * (1 - self.share)
        bias = self.bias(grid)[None]
        if real is not None:
            bias = bias.masked_fill(~real[:, None, None], -math.inf)
        seen = F.pad(known, (_NULL_KEYS, 0), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, grid, bias, context, seen)
        return self.norm(x)


# -- generator ---------------------------------------------------------------------------------------------------------------------


class MaskGITVideo(TextConditioned):
    """Codes `(b, t, h, w, 1)` of clips, from text, from a class, or from nothing."""

    family = "cvivit"
    Config = MaskGITVideoConfig
    facts = {"unit": "token", "objective": "masked", "context": "clean"}

    def __init__(self, config: MaskGITVideoConfig, info: GeneratorEntry | None = None) -> None:
        super().__init__(config, info)
        self.config: MaskGITVideoConfig = config
        self.class_embedding = nn.Embedding(config.classes, config.width) if config.classes else None
        self.network = _Network(config)
        self.head = nn.Linear(config.width, config.sizes[0])
        self.critic_network = _Network(config) if config.critic == "separate" else None
        self.critic_head = None if config.critic == "none" else nn.Linear(config.width, 1)

    # -- condition -----------------------------------------------------------------------------------------------------------------

    def context(self, labels: Tensor | TextCondition) -> tuple[Tensor, Tensor]:
        """Give the context `(b, m, c)` of classes or text, and which of its rows are known, `(b, m)`."""
        like = self.head.weight
        if isinstance(labels, TextCondition):
            return labels.embeddings.to(like), labels.known
        if self.class_embedding is None:
            return like.new_zeros(len(labels), 1, self.config.width), labels.new_zeros(len(labels), 1, dtype=torch.bool)
        known = labels != self.null
        return self.class_embedding(labels.clamp(max=self.config.classes - 1))[:, None], known[:, None]

    # -- network -------------------------------------------------------------------------------------------------------------------

    def logits(self, ids: Tensor, grid: Sequence[int], labels: Tensor | TextCondition, real: Tensor | None = None) -> Tensor:
        """Give the scores `(b, n, k)` of ids `(b, n)`, the codebook size standing for the mask; arguments as of the network."""
        return self.head(self.network(ids, grid, *self.context(labels), real))

    def doubts(self, ids: Tensor, grid: Sequence[int], labels: Tensor | TextCondition) -> Tensor:
        """Give the critic's scores `(b, n)`, high where a code seems to be replaced.

        Raises:
            ValueError: the configuration has no critic.
        """
        if self.critic_head is None:
            raise ValueError(f"{self.info.name}.doubts: critic='none' in the configuration. Needed: 'shared' or 'separate'.")
        network = self.network if self.critic_network is None else self.critic_network
        return self.critic_head(network(ids, grid, *self.context(labels)))[..., 0]

    # -- sizes ---------------------------------------------------------------------------------------------------------------------

    def _fits(self, positions: tuple[int, ...]) -> bool:
        most = self.config.positions
        return len(positions) == 3 and positions[1:] == most[1:] and 1 <= positions[0] <= most[0]

    @property
    def _fitting(self) -> str:
        t, h, w = self.config.positions
        return f"1 to {t} steps of {(h, w)}"

    def _extent(self, positions: Sequence[int]) -> list[int]:
        if tuple(positions) == self.config.positions:
            return list(self.config.extent)
        return [1 + (positions[0] - 1) * self.config.step_frames, *self.config.extent[1:]]

    # -- training ------------------------------------------------------------------------------------------------------------------

    def _loss(self, data: Tensor, labels: Tensor | TextCondition, mask: Tensor | None, draws: torch.Generator) -> Tensor:
        ids, grid, stages = data.flatten(1), data.shape[1:-1], self.config.stages
        b, n = ids.shape
        stage = torch.randint(stages, (b,), generator=draws, device=draws.device)
        count = (n * (math.pi / 2 * stage / stages).cos()).round().clamp(min=1)
        hidden = (torch.rand(b, n, generator=draws, device=draws.device).argsort(1).argsort(1) < count[:, None]).to(ids.device)
        scores = self.logits(ids.masked_fill(hidden, self.config.sizes[0]), grid, labels)[hidden].float()
        loss = F.cross_entropy(scores, ids[hidden])
        if self.critic_head is None:
            return loss
        u = torch.rand(scores.shape, generator=draws, device=draws.device).to(ids.device)
        guess = ids.masked_scatter(hidden, (scores.detach() + _gumbel(u)).argmax(-1))
        doubts = self.doubts(guess, grid, labels).float()
        return loss + F.binary_cross_entropy_with_logits(doubts, (guess != ids).float())

    # -- sampling ------------------------------------------------------------------------------------------------------------------

    def _sample(
        self,
        labels: Tensor | TextCondition,
        seeds: list[int],
        guidance: float,
        *,
        frames: int | None = None,
        prime: Tokens | None = None,
        steps: int = 18,
        temperature: float = 0.9,
        critic_noise: float = 1.0,
    ) -> Tensor:
        """Draw codes.

        Args:
            labels, seeds, guidance: of each item; upstream guides by 3.
            frames: of the whole clip, `prime` included: 1 + k * step_frames, at most as trained; None for that many.
            prime: tokens that the clip begins with, one item or one for each; they are held fixed.
            steps: rounds of filling and masking again.
            temperature: of the first round, falling linearly to 0.
            critic_noise: chance in the critic's judgement at first, falling linearly.
        """
        name, config = f"{self.info.name}.sample", self.config
        check_draw_options(name, temperature=temperature)
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"{name}: steps={steps!r}. Allowed: at least 1.")
        if not (math.isfinite(critic_noise) and critic_noise >= 0):
            raise ValueError(f"{name}: critic_noise={critic_noise}. Allowed: 0 or more.")
        grid = (self._steps_of(frames, name), *config.positions[1:])
        held = torch.zeros(len(seeds), 0, dtype=torch.int64, device=labels.device)
        if prime is not None:
            self._check_tokens(prime, name)
            if len(prime) not in (1, len(seeds)) or prime.positions[0] >= grid[0]:
                found = f"{len(prime)} items of {prime.positions[0]} steps"
                raise ValueError(f"{name}: prime holds {found}. Needed: 1 or {len(seeds)} items of less than {grid[0]} steps.")
            held = prime.data.flatten(1).long().to(labels.device).expand(len(seeds), -1)
        new = (math.prod(grid) - held.shape[1], config.sizes[0])
        drawn = self.fill(
            held,
            grid,
            labels,
            guidance,
            steps=steps,
            temperature=temperature,
            critic_noise=critic_noise,
            noise=lambda step: uniforms(seeds, new, stream=2 * step, device=labels.device),
            shake=lambda step: uniforms(seeds, new[:1], stream=2 * step + 1, device=labels.device),
        )
        return torch.cat([held, drawn], 1).unflatten(1, grid)[..., None]

    def fill(
        self,
        held: Tensor,
        grid: Sequence[int],
        labels: Tensor | TextCondition,
        guidance: float,
        *,
        steps: int,
        temperature: float,
        noise: Callable[[int], Tensor],
        critic_noise: float = 0.0,
        shake: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """Draw what comes after the codes `held (b, p)` in a grid `(t, h, w)`: `(b, n)` with p + n = t * h * w.

        In round s, round(n cos(pi s / (2 steps))) codes are masked, those with the smallest probability in the round before, or
        with the highest score of the critic. Without a critic a code that was kept once stays.

        Args:
            held, grid, labels, guidance, steps, temperature, critic_noise: as `sample` has them.
            noise: uniform numbers `(b, n, k)` of a round.
            shake: uniform numbers `(b, n)` of a round, for the critic; None for no chance.
        """
        b, p = held.shape
        n, size, both = math.prod(grid) - p, self.config.sizes[0], self.guided_labels(labels, guidance)
        codes = torch.full((b, n), size, device=held.device)
        hidden = torch.ones(b, n, dtype=torch.bool, device=held.device)
        for step in range(steps):
            shown = torch.cat([held, codes.masked_fill(hidden, size)], 1)
            logits = self.logits(shown.repeat(len(both) // b, 1), grid, both)[:, p:].float()
            if guidance != 1:
                conditional, null = logits.chunk(2)
                logits = null + guidance * (conditional - null)
            left = (steps - 1 - step) / steps
            chance = temperature * left
            drawn = (logits / chance + _gumbel(noise(step)).float()).argmax(-1) if chance else logits.argmax(-1)
            codes = torch.where(hidden, drawn, codes)
            if step == steps - 1:
                break
            if self.critic_head is None:
                doubt = 1 - logits.softmax(-1).gather(-1, codes[..., None])[..., 0]
                doubt = doubt.masked_fill(~hidden, -1e4)
            else:
                doubt = self.doubts(torch.cat([held, codes], 1), grid, labels)[:, p:].float()
                if shake is not None:
                    doubt = doubt + critic_noise * left * (shake(step).float() - 0.5)
            count = max(1, round(n * math.cos(math.pi / 2 * (step + 1) / steps)))
            hidden = torch.zeros_like(hidden).scatter_(1, doubt.topk(count, 1).indices, True)
        return codes

    def _steps_of(self, frames: int | None, name: str) -> int:
        most, each = self.config.positions[0], self.config.step_frames
        if frames is None:
            return most
        last = self._extent(self.config.positions)[0]
        if not isinstance(frames, int) or not 1 <= frames <= last or (frames - 1) % each:
            raise ValueError(f"{name}: frames={frames!r}. Allowed: 1 + k * {each}, up to {last}.")
        return 1 + (frames - 1) // each

    @torch.no_grad()
    def story(
        self, tokenizer: Tokenizer, scenes: Sequence[Scene], *, n: int = 1, seed: int = 0, overlap: int = 5, **options: Any
    ) -> Tensor:
        """Make videos of any length whose condition changes from scene to scene.

        Past the window of the network the last frames are encoded as a fresh clip, held fixed, and continued; so a video has no
        largest length, and remembers `overlap` frames.

        Args:
            tokenizer: the one whose tokens this generator makes.
            scenes: one after another.
            n: number of videos.
            seed: of all; every piece has draws of its own.
            overlap: frames of the past that are held, 1 + k * step_frames, less than a clip has.
            options: of `sample`: guidance, steps, temperature, critic_noise.

        Returns:
            `(n, 3, frames of all scenes, h, w)` in about [-1, 1].

        Raises:
            ValueError: no scenes, or frames that are not whole time steps.
        """
        name, each, window = f"{self.info.name}.story", self.config.step_frames, self.config.extent[0]
        if not scenes:
            raise ValueError(f"{name}: scenes is empty. Give at least one Scene.")
        if unknown := {"frames", "prime"} & set(options):
            raise ValueError(f"{name}: {', '.join(sorted(unknown))} is set by the scenes. Leave it out.")
        if not isinstance(overlap, int) or overlap < 1 or (overlap - 1) % each or overlap >= window:
            raise ValueError(f"{name}: overlap={overlap!r}. Allowed: 1 + k * {each}, below {window}.")
        for i, scene in enumerate(scenes):
            alone = int(i == 0)
            if not isinstance(scene.frames, int) or scene.frames < 1 or (scene.frames - alone) % each:
                form = f"1 + k * {each}" if alone else f"k * {each}, above 0"
                raise ValueError(f"{name}: scene {i} has frames={scene.frames!r}. Allowed: {form}.")
        video, pieces = None, 0
        for scene in scenes:
            missing = scene.frames
            while missing:
                # A young video may be shorter than the overlap: then all of it is held.
                past = None if video is None else video[:, :, -min(overlap, video.shape[2]) :].clamp(-1, 1)
                held = 0 if past is None else past.shape[2]
                count = min(missing, window - held)
                prime = None if past is None else tokenizer.encode(past)
                seeds = [(seed * n + i) * 0x100000 + pieces for i in range(n)]
                tokens = self.sample(scene.condition, n=n, seed=seeds, prime=prime, frames=held + count, **options)
                new = tokenizer.decode(tokens)[:, :, held:]
                video = new if video is None else torch.cat([video, new], 2)
                missing, pieces = missing - count, pieces + 1
        return video

    # -- the public release --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> MaskGITVideoConfig:
        """Read the keywords of phenaki-pytorch's MaskGit.

        They do not say the grid: it is taken as square and of as many steps as the table of positions allows, 4 x 4 codes of
        8 x 8 pixels and tubelets of 4 frames unless `positions` and `extent` stand beside them.
        """
        if config.get("unconditional", False):
            raise ValueError("cvivit: unconditional=True in config.json. This implementation reads models with attention to text.")
        places = config["max_seq_len"]
        positions = tuple(config.get("positions", (places // 16, 4, 4)))
        t, h, w = positions
        return MaskGITVideoConfig(
            tokenizer=config.get("_tokenizer", "cvivit"),
            positions=positions,
            extent=tuple(config.get("extent", (1 + 4 * (t - 1), 8 * h, 8 * w))),
            vocabulary=(config["num_tokens"],),
            text_width=config.get("dim_context", config["dim"]),
            width=config["dim"],
            depth_blocks=config["depth"],
            heads=config.get("heads", 8),
            head=config.get("dim_head", 64),
            mlp_ratio=float(config.get("ff_mult", 4.0)),
            bias_width=shapes["continuous_pos_bias.net.0.0.weight"][0],
            places=places,
            embedding_gradient=config.get("gradient_shrink_alpha", 0.1),
        )

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: MaskGITVideoConfig) -> dict[str, Tensor]:
        """Give the tensors our names; empty keys and the norm of a context that is not there are left out."""
        out = {}
        for key, value in tensors.items():
            if re.search(r"\.1\.(context_norm\.|null_kv$)", key):
                continue
            if key.endswith(".null_kv"):
                value = value.unflatten(1, (-1, 2))  # key and value of one pair are neighbours
            for pattern, ours in _RENAMES:
                key = re.sub(pattern, ours, key)
            out[key] = value
        return out


def _gumbel(u: Tensor) -> Tensor:
    """-log(-log u) of uniform numbers."""
    return -torch.log(-torch.log(u.double().clamp(1e-20, 1 - 1e-16)))


_RENAMES = (
    (r"^token_emb\.", "network.embedding."),
    (r"^pos_emb\.", "network.places."),
    (r"^to_logits\.", "head."),
    (r"^continuous_pos_bias\.net\.0\.0\.", "network.distance.0."),
    (r"^continuous_pos_bias\.net\.1\.0\.", "network.distance.2."),
    (r"^continuous_pos_bias\.net\.2\.", "network.distance.4."),
    (r"^transformer\.norm_out\.", "network.norm."),
    (r"^transformer\.layers\.(\d+)\.0\.dsconv\.", r"network.blocks.\1.position."),
    (r"^transformer\.layers\.(\d+)\.1\.", r"network.blocks.\1.attention."),
    (r"^transformer\.layers\.(\d+)\.2\.", r"network.blocks.\1.cross."),
    (r"^transformer\.layers\.(\d+)\.3\.0\.", r"network.blocks.\1.feed_forward.norm."),
    (r"^transformer\.layers\.(\d+)\.3\.1\.", r"network.blocks.\1.feed_forward.up."),
    (r"^transformer\.layers\.(\d+)\.3\.4\.", r"network.blocks.\1.feed_forward.down."),
    (r"\.null_kv$", ".null"),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)
