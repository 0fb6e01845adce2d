"""FlexTok: pictures as ordered 1D tokens of any length, decoded by rectified flow.

Paper: "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length", arXiv 2502.13967 (ICML 2025). Source repository:
apple/ml-flextok, commit 87d00cc (code under a non-commercial licence, weights for research only: nothing is copied from it, and its
weights are never re-hosted). Checked against tests/parity/flextok: codes equal, tensors to 1e-4.

    picture -> frozen KL autoencoder -> latents -> [patches | registers] -> encoder -> registers -> FSQ -> codes
    codes[:k] -> registers + one masked register -> flow decoder (noise -> latents, guided) -> autoencoder -> picture

How this differs from the original, with the same numbers: plain tensors; batched SDPA; masked registers are identical, so they
travel as ONE token whose key carries the bias log(n - k); only the first k registers are encoded; the modulation of all steps is
computed before the loop; query, key and value (and the two branches of the gated MLP) are one matrix product.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import Config
from zoo.layers.flow import NoiseSchedule, ProjectedGuidance, euler, euler_times, plain_guidance, start_noise
from zoo.layers.kl_vae import KLAutoencoder, current_attention_name
from zoo.layers.patches import patchify, sincos_table, unpatchify
from zoo.quantizers.fsq import FSQ
from zoo.registry import Entry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens
from zoo.transforms.nested_dropout import KeepSampling

__all__ = ["FlexTok", "FlexTokConfig"]

logger = logging.getLogger(__name__)
_EPS = 1e-5
_AT_LEAST_ONE = (
    *("latent_channels", "vae_layers", "vae_groups", "patch", "grid", "registers", "time_features", "steps"),
    *("encoder_width", "encoder_depth", "encoder_head", "decoder_width", "decoder_depth", "decoder_head"),
)


@dataclass(frozen=True, kw_only=True)
class FlexTokConfig(Config):
    """Sizes of a FlexTok; the defaults are those of the public d18-d28 models.

    Attributes:
        latent_channels: channels of the autoencoder.
        vae: the autoencoder is part of the tokenizer; without it the signal is its scaled latents `(b, c, h, w)`.
        vae_scaling: factor on the latents.
        vae_channels, vae_layers, vae_groups: sizes of the autoencoder (`zoo.layers.kl_vae`).
        patch: side of a patch of latents.
        grid: side of the table of patch positions; smaller pictures use its corner.
        registers: n, the number of tokens.
        levels: of the FSQ.
        encoder_width, encoder_depth, encoder_head: width, blocks and head size of the encoder.
        decoder_width, decoder_depth, decoder_head: the same of the flow decoder.
        time_features: sinusoid features of the noise level.
        max_timestep: scale of those features, 1 or 1000.
        alignment_block: decoder block whose patch features an alignment loss looks at.
        keep_sampling: nested dropout in training, see `zoo.transforms.nested_dropout`.
        null_dropout: share of items trained without condition.
        noise_schedule, mode_scale: noise levels in training, see `zoo.layers.flow`.
        steps, guidance, guidance_mode, temperature: what `decode` uses when it is told nothing.
    """

    latent_channels: int = 16
    vae: bool = True
    vae_scaling: float = 1.0
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    vae_groups: int = 32
    patch: int = 2
    grid: int = 16
    registers: int = 256
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    encoder_width: int = 1152
    encoder_depth: int = 18
    encoder_head: int = 64
    decoder_width: int = 1792
    decoder_depth: int = 28
    decoder_head: int = 64
    time_features: int = 256
    max_timestep: float = 1.0
    alignment_block: int = 1
    keep_sampling: str = "uniform"
    null_dropout: float = 0.2
    noise_schedule: str = "mode"
    mode_scale: float = 0.25
    steps: int = 20
    guidance: float = 7.5
    guidance_mode: str = "projected"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            self.require(getattr(self, name) >= 1, name, "at least 1")
        self.require(self.vae_scaling > 0, "vae_scaling", "a positive number")
        self.require(self.max_timestep > 0, "max_timestep", "a positive number")
        self.require(len(self.vae_channels) >= 1, "vae_channels", "at least one width")
        self.require(len(self.levels) >= 1, "levels", "at least one level")
        self.require(self.encoder_width % self.encoder_head == 0, "encoder_width", "a multiple of encoder_head")
        self.require(self.decoder_width % self.decoder_head == 0, "decoder_width", "a multiple of decoder_head")
        self.require(self.encoder_width % 4 == 0 == self.decoder_width % 4, "decoder_width", "widths that are multiples of 4")
        self.require(self.time_features % 2 == 0, "time_features", "an even number")
        self.require(self.alignment_block >= 0, "alignment_block", "0 or more")
        self.require(self.guidance_mode in ("projected", "plain"), "guidance_mode", "projected, plain")
        self.require(self.temperature >= 0, "temperature", "0 or more")
        self.require(0 <= self.null_dropout < 1, "null_dropout", "0 to below 1")
        self.require(self.keep_sampling in get_args(KeepSampling), "keep_sampling", ", ".join(get_args(KeepSampling)))
        self.require(self.noise_schedule in get_args(NoiseSchedule), "noise_schedule", ", ".join(get_args(NoiseSchedule)))

    @property
    def downsample(self) -> int:
        """Pixels over patches, or latents over patches without an autoencoder."""
        return self.patch * (2 ** (len(self.vae_channels) - 1) if self.vae else 1)


def _norm(x: Tensor) -> Tensor:
    """Layer norm without parameters, in float32, back in the dtype of `x`."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=_EPS).to(x.dtype)


class _Attention(nn.Module):
    """Multi-head attention with normalised queries and keys; scale 8 / head (the usual one at head 64)."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries, keys and values `(b, heads, n, head)`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head)).permute(2, 0, 3, 1, 4)
        return _norm(q), _norm(k), v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Give `(b, n, width)`; `mask` is boolean (True = may attend) or an additive bias on the scores."""
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=8 / self.head)
        return mixed.transpose(1, 2).flatten(2)


class _MLP(nn.Module):
    """Gated MLP: down(silu(gate x) * up x), gate and up in one product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(2 * 4 * width / 3)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        if torch.is_grad_enabled():
            return self.down(F.silu(gate) * up)
        return self.down(F.silu(gate, inplace=True).mul_(up))


class _EncoderBlock(nn.Module):
    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.attention = _Attention(width, head)
        self.mlp = _MLP(width)

    def forward(self, x: Tensor, patches: int, mask: Tensor) -> Tensor:
        """Patches see all patches and no register; registers see all patches and, by `mask`, the registers before them."""
        attention = self.attention
        q, k, v = attention.project(_norm(x))
        of_patches = attention.attend(q[:, :, :patches], k[:, :, :patches], v[:, :, :patches])
        of_registers = attention.attend(q[:, :, patches:], k, v, mask)
        x = x + attention.out(torch.cat([of_patches, of_registers], 1))
        return x + self.mlp(_norm(x))


class FlexTokEncoder(nn.Module):
    """Latents to the bounded numbers that FSQ rounds."""

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        width = config.encoder_width
        self.patch_size = config.patch
        self.patch = nn.Linear(config.patch**2 * config.latent_channels, width)
        self.register_buffer("positions", sincos_table(width, config.grid, config.grid))
        self.registers = nn.Parameter(torch.empty(config.registers, width))
        self.blocks = nn.ModuleList(_EncoderBlock(width, config.encoder_head) for _ in range(config.encoder_depth))
        self.head = nn.Linear(width, len(config.levels))
        nn.init.trunc_normal_(self.registers, std=0.02)
        _init_linears(self)

    def embed(self, latents: Tensor) -> Tensor:
        """Give patches with positions `(b, h, w, width)` of latents `(b, c, H, W)`."""
        patches = self.patch(patchify(latents.permute(0, 2, 3, 1), self.patch_size))
        h, w = patches.shape[1:3]
        return patches + self.positions[:, :, :h, :w].permute(0, 2, 3, 1).to(patches.dtype)

    def forward(self, latents: Tensor, count: int) -> Tensor:
        """Give the first `count` registers before quantization, `(b, count, len(levels))`; later ones do not change them."""
        patches = self.embed(latents).flatten(1, 2)
        n = patches.shape[1]
        registers = self.registers[:count].to(patches.dtype).expand(patches.shape[0], -1, -1)
        x = torch.cat([patches, registers], 1)
        mask = torch.ones(count, n + count, dtype=torch.bool, device=x.device).tril(n)
        for block in self.blocks:
            x = block(x, n, mask)
        return self.head(_norm(x[:, n:]))


class _DecoderBlock(nn.Module):
    """Block modulated by the noise level, patches and registers each with their own six pieces."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.attention = _Attention(width, head)
        self.mlp = _MLP(width)
        self.modulation = nn.Linear(width, 2 * 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, pieces: Tensor, patches: int, bias: Tensor | None, *, last: bool = False) -> Tensor:
        """Update `(b, n, width)`; without gradients `x` itself is changed.

        Args:
            x: patches, then registers.
            pieces: `(b or 1, 2, 6, width)`: row 0 for patches, row 1 for registers; attention gate, MLP gate, attention shift and
                scale, MLP shift and scale.
            patches: how many positions are patches.
            bias: on the scores, by key, `(b, 1, 1, n)`.
            last: give the patches only; nobody looks at the registers any more.
        """
        attention_gate, mlp_gate, attention_shift, attention_scale, mlp_shift, mlp_scale = pieces.to(x.dtype).unbind(2)
        q, k, v = self.attention.project(_modulate(x, attention_scale, attention_shift, patches))
        if last:
            q, x = q[:, :, :patches], x[:, :patches]
        x = _add(x, self.attention.out(self.attention.attend(q, k, v, bias)), attention_gate, patches)
        return _add(x, self.mlp(_modulate(x, mlp_scale, mlp_shift, patches)), mlp_gate, patches)


def _by_part(base: Tensor, x: Tensor, scale: Tensor, patches: int, out: Tensor) -> Tensor:
    """Give base + x * scale; the first `patches` positions use row 0 of `scale (b or 1, 2, width)`, the others row 1.

    `base` is `(b, n, width)`, or has rows like `scale`. Without gradients the result is written over `out`: fresh memory costs as
    much as the arithmetic here.
    """
    rows = ((slice(None, patches), 0), (slice(patches, None), 1))
    parts = [(base[:, part] if base is out else base[:, row, None], x[:, part], scale[:, row, None]) for part, row in rows]
    if torch.is_grad_enabled():
        return torch.cat([torch.addcmul(*part) for part in parts], 1)
    for (part, _), values in zip(rows, parts, strict=True):
        torch.addcmul(*values, out=out[:, part])
    return out


def _modulate(x: Tensor, scale: Tensor, shift: Tensor, patches: int) -> Tensor:
    """Give norm(x) * (1 + scale) + shift."""
    normed = _norm(x)
    return _by_part(shift, normed, 1 + scale, patches, normed)


def _add(x: Tensor, change: Tensor, gate: Tensor, patches: int) -> Tensor:
    """Give x + gate * change."""
    return _by_part(x, change, gate, patches, x)


class Modulation(list[Tensor]):
    """Modulation of one noise level: one tensor `(b or 1, 2, 6, width)` for each block, then the head's `(b or 1, 2, width)`."""


class FlexTokDecoder(nn.Module):
    """Rectified-flow transformer over latents, conditioned by any prefix of the registers."""

    def __init__(self, config: FlexTokConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.config = config
        self.project = nn.Linear(len(config.levels), width)
        self.register_positions = nn.Parameter(torch.empty(config.registers, width))
        self.mask_token = nn.Parameter(torch.empty(width))
        self.null_token = nn.Parameter(torch.empty(width))
        self.patch = nn.Linear(config.patch**2 * config.latent_channels, width)
        self.register_buffer("positions", sincos_table(width, config.grid, config.grid))
        self.time = nn.Sequential(nn.Linear(config.time_features, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_DecoderBlock(width, config.decoder_head) for _ in range(config.decoder_depth))
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.patch**2 * config.latent_channels)
        for token in (self.register_positions, self.mask_token, self.null_token):
            nn.init.trunc_normal_(token, std=0.02)
        _init_linears(self)
        for block in self.blocks:
            nn.init.zeros_(block.modulation.weight)
        for linear in (self.head_modulation, self.head):
            nn.init.zeros_(linear.weight)

    def embed_time(self, t: Tensor) -> Tensor:
        """Embed noise levels `(b,)` in 0..1 to `(b, width)`; frequencies have the base 256, cosines come first."""
        half = self.config.time_features // 2
        exponents = -math.log(256) * torch.arange(half, device=t.device).float() / half
        frequencies = (1000 / self.config.max_timestep) * exponents.exp()
        angles = t.float()[:, None] * frequencies
        return self.time(torch.cat([angles.cos(), angles.sin()], 1).to(self.time[0].weight.dtype))

    def modulate(self, t: Tensor) -> list[Modulation]:
        """Give the modulation of each noise level of `t (s,)`; it depends on nothing else, so a sampler asks once."""
        features = F.silu(self.embed_time(t))
        blocks = [block.modulation(features).unflatten(1, (2, 6, -1)) for block in self.blocks]
        head = self.head_modulation(features).unflatten(1, (2, -1))
        return [Modulation([*(piece[i : i + 1] for piece in blocks), head[i : i + 1]]) for i in range(len(t))]

    def modulate_items(self, t: Tensor) -> Modulation:
        """Give one modulation in which every item has its own noise level, `t (b,)`."""
        features = F.silu(self.embed_time(t))
        blocks = [block.modulation(features).unflatten(1, (2, 6, -1)) for block in self.blocks]
        return Modulation([*blocks, self.head_modulation(features).unflatten(1, (2, -1))])

    def condition(self, values: Tensor, keep: Tensor, null: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Turn quantized registers into the positions that condition the flow.

        Args:
            values: `(b, k, len(levels))`, the kept registers; k may be below n.
            keep: `(b,)` int64, how many of them are real.
            null: `(b,)` boolean, True where an item has no condition at all.

        Returns:
            registers `(b, k + 1, width)`, the last standing for all masked ones, and a bias on keys `(b, k + 1)`; or
            `(b, n, width)` and None where every register of every item is kept.
        """
        n, k = self.config.registers, values.shape[1]
        x = self.project(values.to(self.project.weight.dtype)) + self.register_positions[:k]
        if null is None and k == n and bool((keep == n).all()):
            return x, None
        count = keep if null is None else keep.masked_fill(null, 0)
        rest = self.mask_token.expand(x.shape[0], 1, -1)
        if null is not None:
            rest = torch.where(null[:, None, None], self.null_token, rest)
        real = torch.arange(k, device=x.device) < count[:, None]
        bias = torch.zeros(real.shape, device=x.device).masked_fill(~real, -math.inf)
        masked = (n - count).float().log()[:, None]
        return torch.cat([x, rest.to(x.dtype)], 1), torch.cat([bias, masked], 1)

    def null_condition(self, batch: int) -> tuple[Tensor, Tensor]:
        """Give what `condition` gives for items without any condition: one token that stands for all n."""
        bias = torch.full((batch, 1), math.log(self.config.registers), device=self.null_token.device)
        return self.null_token.expand(batch, 1, -1), bias

    def forward(
        self, x: Tensor, registers: Tensor, bias: Tensor | None, modulation: Modulation, *, tap: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict the velocity of noised latents.

        Args:
            x: `(b, c, h, w)` at the noise levels of `modulation`.
            registers, bias: from `condition`.
            modulation: one for all items, or with a row for each.
            tap: also give the patch features `(b, h / patch, w / patch, width)` after this block.
        """
        patches = self.patch(patchify(x.permute(0, 2, 3, 1), self.config.patch))
        h, w = patches.shape[1:3]
        patches = (patches + self.positions[:, :, :h, :w].permute(0, 2, 3, 1).to(patches.dtype)).flatten(1, 2)
        n = h * w
        sequence = torch.cat([patches, registers.to(patches.dtype)], 1)
        if bias is not None:
            bias = F.pad(bias, (n, 0)).to(sequence.dtype)[:, None, None]
        tapped = None
        for i, block in enumerate(self.blocks):
            sequence = block(sequence, modulation[i], n, bias, last=i == len(self.blocks) - 1)
            if i == tap:
                tapped = sequence[:, :n].unflatten(1, (h, w)).clone()
        shift, scale = modulation[-1].to(sequence.dtype).unbind(1)
        out = _norm(sequence) * (1 + scale[:, None]) + shift[:, None]
        velocity = unpatchify(self.head(out).unflatten(1, (h, w)), self.config.patch).permute(0, 3, 1, 2)
        return velocity if tap is None else (velocity, tapped)


def _init_linears(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class FlexTok(Tokenizer):
    """Pictures to 1..n ordered codes and back, by a generative decoder.

    Low PSNR is by design of a generative decoder: compare with other tokenizers by what a reader sees (feature distance, Fréchet
    distance), not by PSNR against regression decoders.
    """

    family = "flextok"
    Config = FlexTokConfig

    def __init__(self, config: FlexTokConfig, info: Entry | None = None) -> None:
        super().__init__(config, info)
        self.vae = None
        if config.vae:
            self.vae = KLAutoencoder(
                latent_channels=config.latent_channels,
                scaling_factor=config.vae_scaling,
                block_channels=config.vae_channels,
                layers_per_block=config.vae_layers,
                norm_groups=config.vae_groups,
            )
        self.encoder = FlexTokEncoder(config)
        self.quantizer = FSQ(levels=config.levels)
        self.decoder = FlexTokDecoder(config)

    @classmethod
    def layout_of(cls, config: FlexTokConfig) -> dict[str, Any]:
        size = config.grid * config.downsample
        codes = math.prod(config.levels)
        return {
            "modality": "image",
            "layout": "1d",
            "discrete": True,
            "ordered": True,
            "tokens": config.registers,
            "codebook_size": codes,
            "vocabulary": (codes,),
            "native_size": (size, size),
            "size_multiple": config.downsample,
            "max_size": size,
            "bits_per_pixel": config.registers * math.log2(codes) / size**2,
            "stochastic_encode": config.vae,
            "stochastic_decode": True,
        }

    @property
    def in_channels(self) -> int:
        return 3 if self.vae is not None else self.config.latent_channels

    @property
    def _bounded(self) -> bool:
        return self.vae is not None

    # -- pieces for training and research ----------------------------------------------------------------------------------------

    def encode_latents(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Give the autoencoder's scaled latents `(b, c, h / 8, w / 8)` of pictures; the mean where no generator is given."""
        return x if self.vae is None else self.vae.encode(x, generator)

    def velocity(self, x: Tensor, t: Tensor, codes: Tensor, *, keep: Tensor | None = None, null: Tensor | None = None) -> Tensor:
        """Give one decoder call: the velocity `(b, c, h, w)` of noised latents.

        Args:
            x: noised latents `(b, c, h, w)`.
            t: noise level of each item, `(b,)` in 0..1.
            codes: `(b, k, 1)`.
            keep: `(b,)` how many codes are real; None for all k.
            null: `(b,)` boolean, True for no condition.
        """
        keep = torch.full((x.shape[0],), codes.shape[1], device=x.device) if keep is None else keep
        registers, bias = self.decoder.condition(self.quantizer.decode(codes), keep, null)
        return self.decoder(x, registers, bias, self.decoder.modulate_items(t))

    # -- the contract --------------------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, *, tokens: int | None, depth: int | None, generator: torch.Generator | None) -> Tensor:
        latents = self.encode_latents(x, generator)
        return self.quantizer.encode(self.encoder(latents, tokens or self.config.registers))

    def _decode(
        self,
        tokens: Tokens,
        size: tuple[int, ...],
        *,
        steps: int | None = None,
        guidance: float | Callable[[float], float] | None = None,
        guidance_mode: Literal["projected", "plain"] | None = None,
        temperature: float | None = None,
        seed: int | list[int] = 0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Decode by `steps` Euler steps from noise.

        Args:
            tokens: 1..n codes for each item.
            size: sides of the picture.
            steps: of the flow; None takes the configuration's.
            guidance: scale, 1 for none, or a function of the noise level; None takes the configuration's.
            guidance_mode: "projected" (momentum -0.5, norm limit 2.5, no parallel part) or "plain"; None takes the configuration's.
            temperature: spread of the drawn noise. Below 1 the picture comes nearer to the mean of all that the tokens allow:
                smoother, and closer to the original where the decoder is small; 1 is what it is trained for. None takes the
                configuration's.
            seed: the same noise for every item, or a list with one for each.
            generator: draws the noise of one item after another instead.
            noise: start latents `(b, c, h, w)` instead of these three.
        """
        latents = self.decode_latents(
            tokens,
            size,
            steps=steps,
            guidance=guidance,
            guidance_mode=guidance_mode,
            temperature=temperature,
            seed=seed,
            generator=generator,
            noise=noise,
        )
        return latents if self.vae is None else self.vae.decode(latents)

    def decode_latents(
        self,
        tokens: Tokens,
        size: tuple[int, ...],
        *,
        steps: int | None = None,
        guidance: float | Callable[[float], float] | None = None,
        guidance_mode: Literal["projected", "plain"] | None = None,
        temperature: float | None = None,
        seed: int | list[int] = 0,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Decode to the autoencoder's scaled latents `(b, c, h, w)`; arguments as for `decode`."""
        name = f"{self.info.name}.decode"
        steps = self.config.steps if steps is None else steps
        guidance = self.config.guidance if guidance is None else guidance
        guidance_mode = self.config.guidance_mode if guidance_mode is None else guidance_mode
        temperature = self.config.temperature if temperature is None else temperature
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"{name}: steps={steps!r}. Allowed: 1 or more.")
        if guidance_mode not in ("projected", "plain"):
            raise ValueError(f"{name}: guidance_mode={guidance_mode!r}. Allowed: projected, plain.")
        if not isinstance(temperature, int | float) or not 0 <= temperature < math.inf:
            raise ValueError(f"{name}: temperature={temperature!r}. Allowed: a finite number, 0 or more.")
        side = self.vae.downsample if self.vae is not None else 1
        shape = (self.config.latent_channels, size[0] // side, size[1] // side)
        if noise is None:
            noise = temperature * start_noise(len(tokens), shape, seed=seed, generator=generator)
        elif not isinstance(noise, Tensor) or tuple(noise.shape) != (len(tokens), *shape):
            found = f"has shape {tuple(noise.shape)}" if isinstance(noise, Tensor) else f"is a {type(noise).__name__}"
            raise ValueError(f"{name}: noise {found}. Needed: a tensor {(len(tokens), *shape)}.")
        x = noise.to(self.device, self.dtype)
        keep = tokens.lengths if tokens.lengths is not None else tokens.counts
        registers, bias = self.decoder.condition(self.quantizer.decode(tokens.data), keep)
        times = euler_times(steps)
        modulations = self.decoder.modulate(times.to(x.device))
        scales = [guidance(float(t)) if callable(guidance) else guidance for t in times]
        if not all(isinstance(scale, int | float) and math.isfinite(scale) for scale in scales):
            raise ValueError(f"{name}: guidance={guidance!r} gives {scales}. Needed: a finite number, or a function of t to one.")
        if all(scale == 1.0 for scale in scales):
            return euler(lambda x, i: self.decoder(x, registers, bias, modulations[i]), x, steps)
        guide = ProjectedGuidance() if guidance_mode == "projected" else plain_guidance
        both = self._with_null(registers, bias)

        def velocity(x: Tensor, i: int) -> Tensor:
            if scales[i] == 1.0:
                return self.decoder(x, registers, bias, modulations[i])
            if both is not None:
                conditional, unconditional = self.decoder(torch.cat([x, x]), *both, modulations[i]).chunk(2)
            else:
                conditional = self.decoder(x, registers, bias, modulations[i])
                unconditional = self.decoder(x, *self.decoder.null_condition(len(x)), modulations[i])
            return guide(conditional, unconditional, scales[i])

        return euler(velocity, x, steps)

    def _with_null(self, registers: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Join conditional and unconditional items in one batch, unless padding the latter would cost more than a second call."""
        width = registers.shape[1]
        if bias is None or width > max(32, self.config.grid**2 // 4):
            return None
        null, null_bias = self.decoder.null_condition(len(registers))
        padding = registers.new_zeros(len(registers), width - 1, registers.shape[2])
        null = torch.cat([padding, null.to(registers.dtype)], 1)
        return torch.cat([registers, null]), torch.cat([bias, F.pad(null_bias, (width - 1, 0), value=-math.inf)])

    # -- the public release's format -----------------------------------------------------------------------------------------------

    @classmethod
    def from_public(cls, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> FlexTokConfig:
        return _config_from_public(config, shapes)

    @classmethod
    def rename_public(cls, tensors: dict[str, Tensor], config: FlexTokConfig) -> dict[str, Tensor]:
        return _rename_public(tensors)


# -- reading the public release ----------------------------------------------------------------------------------------------------
# The file's config is a tree of class paths and arguments. Nothing in it is ever imported: a path is looked up in this table, which
# names the arguments that matter (with the values this implementation covers, None for any).

_MODULES: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "flextok.model.utils.dict_ops.PerSampleOp": {"per_sample_op": None},
    "flextok.model.preprocessors.patching.PatchEmbedder": {
        "channels_in": None, "dim": None, "patch_sizes": None, "flatten_patches": (False,)
    },
    "flextok.model.utils.posembs.PositionalEmbeddingAdder": {
        "dim": None, "max_sizes": None, "posemb_type": ("sincos", "learnable_sum"), "posemb_scaling": ("absolute",)
    },
    "flextok.model.preprocessors.registers.Registers1D": {
        "dim": None, "n_min": None, "n_max": None, "size_sampling_mode": None, "ordering_mode": ("nested",)
    },
    "flextok.model.preprocessors.flex_seq_packing.BlockWiseSequencePacker": {
        "mask_mode": ("causal_last", "full"), "pad_to_multiple": None, "per_subseq_embs": None
    },
    "flextok.model.trunks.transformers.FlexTransformer": {
        "dim": None, "depth": None, "head_dim": None, "use_act_checkpoint": None, "adaLN_expansion": (2,),
        "intermediate_layers": None, "mlp_ratio": (4, 4.0)
    },
    "flextok.model.postprocessors.seq_unpacking.SequenceUnpacker": {},
    "flextok.model.postprocessors.heads.LinearHead": {
        "dim": None, "dim_out": None, "use_mup_readout": (False,), "weight_init_style": None, "dtype_override": None
    },
    "flextok.model.preprocessors.linear.LinearLayer": {"dim_in": None, "dim": None},
    "flextok.model.preprocessors.token_dropout.MaskedNestedDropout": {"dim": None, "size_sampling_mode": None},
    "flextok.model.preprocessors.nullcond.LearnedNullCond": {"dim": None, "dropout_prob": None},
    "flextok.model.preprocessors.time_embedding.TimestepEmbedder": {
        "dim": None, "frequency_embedding_size": None, "max_timestep": None
    },
    "flextok.model.postprocessors.heads.ToPatchesLinearHead": {
        "dim": None, "channels_out": None, "patch_sizes": None, "use_mup_readout": (False,), "weight_init_style": None,
        "dtype_override": None
    },
}  # fmt: skip
_PARTS: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "vae": {
        "latent_channels": None, "scaling_factor": None, "dtype_override": None, "sample_posterior": None, "frozen": None,
        "force_vae_encode": None, "hf_hub_path": None, "autoencoder_kl_overrides": None
    },
    "regularizer": {"levels": None, "drop_quant_p": None, "packed_call": None},
    "flow_matching_noise_module": {"ln": None, "stratisfied": None, "mode_scale": None},
    "pipeline": {"out_channels": None},
}  # fmt: skip
_PART_CLASSES = {
    "config.json": "flextok.flextok_wrapper.FlexTok",
    "vae": "flextok.vae_wrapper.StableDiffusionVAE",
    "regularizer": "flextok.regularizers.quantize_fsq.FSQ",
    "flow_matching_noise_module": "flextok.flow_matching.noise_modules.MinRFNoiseModule",
    "pipeline": "flextok.flow_matching.pipelines.MinRFPipeline",
    "encoder": "flextok.model.utils.wrappers.SequentialModuleDictWrapper",
    "decoder": "flextok.model.utils.wrappers.SequentialModuleDictWrapper",
}
_TO_LAST = "flextok.model.utils.dict_ops.channels_first_to_last"
_TO_FIRST = "flextok.model.utils.dict_ops.channels_last_to_first"
_IN_PLACE: dict[str, tuple[str, Any]] = {
    "enc_channels_to_last": ("per_sample_op", _TO_LAST),
    "enc_posemb_module": ("posemb_type", "sincos"),
    "enc_seq_packer": ("mask_mode", "causal_last"),
    "dec_registers_posemb_module": ("posemb_type", "learnable_sum"),
    "dec_noise_channels_to_last": ("per_sample_op", _TO_LAST),
    "dec_patches_posemb_module": ("posemb_type", "sincos"),
    "dec_seq_packer": ("mask_mode", "full"),
    "dec_channels_to_first": ("per_sample_op", _TO_FIRST),
}
_ENCODER_KEYS = [
    "enc_channels_to_last", "enc_patch_emb", "enc_posemb_module", "enc_register_module", "enc_seq_packer",
    "enc_transformer", "enc_unpacker", "enc_to_latents",
]  # fmt: skip
_DECODER_KEYS = [
    "dec_from_latents", "dec_registers_posemb_module", "dec_nested_dropout", "dec_latent_dropout",
    "dec_noise_channels_to_last", "dec_noise_patch_emb", "dec_patches_posemb_module", "dec_seq_packer",
    "dec_time_embedder", "dec_transformer", "dec_unpacker", "dec_repa_unpacker", "dec_to_patches", "dec_channels_to_first",
]  # fmt: skip


def _arguments(where: str, tree: Any, table: dict[str, tuple[Any, ...] | None], unknown: list[str]) -> dict[str, Any]:
    """Give the arguments of one node that `table` knows; names of shared tensors are left out, other keys go to `unknown`."""
    if not isinstance(tree, dict):
        raise ValueError(f"flextok: {where} in config.json is a {type(tree).__name__}. Needed: an object.")
    found = {}
    for key, value in tree.items():
        if key in ("_target_", "_partial_") or key.endswith(("_key", "_keys")):
            continue
        if key not in table:
            unknown.append(f"{where}.{key}")
            continue
        allowed = table[key]
        if allowed is not None and value not in allowed:
            raise ValueError(f"flextok: {where}.{key}={value!r} in config.json. This implementation knows: {allowed}.")
        found[key] = value
    return found


def _check_class(where: str, tree: Any) -> None:
    """Refuse a part of another class; a part that names none is taken."""
    target = tree.get("_target_") if isinstance(tree, dict) else None
    if target not in (None, _PART_CLASSES[where]):
        raise ValueError(f"flextok: {where} is of class {target!r} in config.json. Known: {_PART_CLASSES[where]}.")


def _need(where: str, arguments: dict[str, Any], key: str) -> Any:
    if key not in arguments:
        raise ValueError(f"flextok: {where}.{key} is missing in config.json.")
    return arguments[key]


def _side(where: str, sides: Any) -> Any:
    """The one number of a square."""
    if not isinstance(sides, list | tuple) or not sides or any(side != sides[0] for side in sides):
        raise ValueError(f"flextok: {where}={sides!r} in config.json. Needed: a square, such as [2, 2].")
    return sides[0]


def _module_dict(part: str, config: dict[str, Any], expected: list[str], unknown: list[str]) -> dict[str, dict[str, Any]]:
    """Read the modules of the encoder or decoder; their order is their order of execution."""
    modules = config.get(part, {}).get("module_dict") if isinstance(config.get(part), dict) else None
    if not isinstance(modules, dict):
        raise ValueError(f"flextok: config.json has no {part}.module_dict. Is it the configuration of a FlexTok?")
    out = {}
    for key, tree in modules.items():
        target = tree.get("_target_") if isinstance(tree, dict) else None
        if not isinstance(target, str) or target not in _MODULES:
            raise ValueError(f"flextok: {part}.{key} is of class {target!r}. Known: {', '.join(_MODULES)}.")
        out[key] = _arguments(f"{part}.{key}", tree, _MODULES[target], unknown)
        argument, only = _IN_PLACE.get(key, ("", None))
        value = out[key].get(argument, only)
        if (value.get("_target_") if isinstance(value, dict) else value) != only:
            raise ValueError(f"flextok: {part}.{key}.{argument}={value!r} in config.json. This implementation knows: {only}.")
    optional = {"dec_repa_unpacker"}
    if [key for key in out if key not in optional] != [key for key in expected if key not in optional]:
        raise ValueError(
            f"flextok: {part} has the modules {', '.join(out)}. This implementation runs {', '.join(expected)}, in this order."
        )
    return out


def _config_from_public(config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> FlexTokConfig:
    """Translate the public config.json; keys that are not known are reported in a warning.

    Raises:
        ValueError: a module, an order or a value that this implementation does not cover.
    """
    unknown = [key for key in config if key not in (*_PARTS, "encoder", "decoder", "_target_")]
    for where in _PART_CLASSES:
        _check_class(where, config if where == "config.json" else config.get(where))
    parts = {name: _arguments(name, config.get(name, {}), table, unknown) for name, table in _PARTS.items()}
    encoder = _module_dict("encoder", config, _ENCODER_KEYS, unknown)
    decoder = _module_dict("decoder", config, _DECODER_KEYS, unknown)
    if unknown:
        logger.warning("flextok: keys of config.json that are not known and not used: %s", ", ".join(unknown))

    def needed(key: str, argument: str) -> Any:
        part = "encoder" if key in encoder else "decoder"
        return _need(f"{part}.{key}", {**encoder, **decoder}[key], argument)

    patch = _side("patch_sizes", needed("enc_patch_emb", "patch_sizes"))
    if patch != _side("patch_sizes", needed("dec_noise_patch_emb", "patch_sizes")):
        raise ValueError("flextok: the encoder and the decoder have different patch_sizes in config.json. Needed: one size.")
    trunk_in, trunk_out = encoder["enc_transformer"], decoder["dec_transformer"]
    tapped = trunk_out.get("intermediate_layers") or [1]
    vae, noise = parts["vae"], parts["flow_matching_noise_module"]
    sizes = vae.get("autoencoder_kl_overrides") or {}
    if not isinstance(sizes, dict) or not isinstance(tapped, list | tuple):
        raise ValueError("flextok: autoencoder_kl_overrides must be an object and intermediate_layers a list in config.json.")
    values = {
        "latent_channels": needed("enc_patch_emb", "channels_in"),
        "vae": any(key.startswith("vae.") for key in shapes) or not shapes,
        "vae_scaling": vae.get("scaling_factor") or 0.18215,
        "vae_channels": sizes.get("block_out_channels", (128, 256, 512, 512)),
        "vae_layers": sizes.get("layers_per_block", 2),
        "vae_groups": sizes.get("norm_num_groups", 32),
        "patch": patch,
        "grid": _side("max_sizes", needed("enc_posemb_module", "max_sizes")),
        "registers": needed("enc_register_module", "n_max"),
        "levels": parts["regularizer"].get("levels", (8, 8, 8, 5, 5, 5)),
        "encoder_width": needed("enc_transformer", "dim"),
        "encoder_depth": needed("enc_transformer", "depth"),
        "encoder_head": trunk_in.get("head_dim", 64),
        "decoder_width": needed("dec_transformer", "dim"),
        "decoder_depth": needed("dec_transformer", "depth"),
        "decoder_head": trunk_out.get("head_dim", 64),
        "time_features": decoder["dec_time_embedder"].get("frequency_embedding_size", 256),
        "max_timestep": decoder["dec_time_embedder"].get("max_timestep", 1.0),
        "alignment_block": tapped[0],
        "keep_sampling": decoder["dec_nested_dropout"].get("size_sampling_mode", "uniform"),
        "null_dropout": decoder["dec_latent_dropout"].get("dropout_prob", 0.2),
        "noise_schedule": "mode" if not noise.get("ln") else "stratified" if noise.get("stratisfied") else "logit_normal",
        "mode_scale": noise.get("mode_scale", 0.25),
    }
    return FlexTokConfig.from_dict(values)


_RENAMES = {
    "encoder.module_dict.enc_patch_emb.patch_proj": "encoder.patch",
    "encoder.module_dict.enc_posemb_module.posembs": "encoder.positions",
    "encoder.module_dict.enc_register_module.registers": "encoder.registers",
    "encoder.module_dict.enc_transformer.blocks": "encoder.blocks",
    "encoder.module_dict.enc_to_latents.proj": "encoder.head",
    "decoder.module_dict.dec_from_latents.proj": "decoder.project",
    "decoder.module_dict.dec_registers_posemb_module.posembs": "decoder.register_positions",
    "decoder.module_dict.dec_nested_dropout.dropout_mask_token": "decoder.mask_token",
    "decoder.module_dict.dec_latent_dropout.nullcond": "decoder.null_token",
    "decoder.module_dict.dec_noise_patch_emb.patch_proj": "decoder.patch",
    "decoder.module_dict.dec_patches_posemb_module.posembs": "decoder.positions",
    "decoder.module_dict.dec_time_embedder.mlp": "decoder.time",
    "decoder.module_dict.dec_transformer.blocks": "decoder.blocks",
    "decoder.module_dict.dec_to_patches.adaLN_modulation.1": "decoder.head_modulation",
    "decoder.module_dict.dec_to_patches.proj": "decoder.head",
    ".attn.proj.": ".attention.out.",
    ".mlp.fc2.": ".mlp.down.",
    ".adaLN_modulation.1.": ".modulation.",
}
_FUSED = {".attn.wq.": (".attention.qkv.", ("wq", "wk", "wv")), ".mlp.fc1.": (".mlp.gate_up.", ("fc1", "fc3"))}


def _rename_public(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give public tensors our names; matrices that we run as one are joined. A name that is not known stays as it is."""
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if any(part in key for part in (".attn.wk.", ".attn.wv.", ".mlp.fc3.")):
            first = key.replace(".wk.", ".wq.").replace(".wv.", ".wq.").replace(".fc3.", ".fc1.")
            if first in tensors:
                continue
        new = current_attention_name(key)
        for old, fused in _FUSED.items():
            if old in new:
                names = [key.replace(f".{fused[1][0]}.", f".{name}.") for name in fused[1]]
                if all(name in tensors and tensors[name].shape[1:] == value.shape[1:] for name in names) and value.ndim:
                    value = torch.cat([tensors[name] for name in names])
                    new = new.replace(old, fused[0])
        for old, ours in _RENAMES.items():
            new = new.replace(old, ours)
        if new == "decoder.register_positions" and value.ndim >= 3:
            value = value.flatten(0, -3).squeeze(0).T.contiguous()
        out[new] = value
    return out
