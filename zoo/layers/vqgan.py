"""The convolutional encoder and decoder of VQGAN and latent diffusion, with the parameter names of the public checkpoints.

Papers: "Taming Transformers for High-Resolution Image Synthesis", arXiv 2012.09841; "High-Resolution Image Synthesis with Latent
Diffusion Models", arXiv 2112.10752. Level 0 is the finest resolution. Names: `{down,up}.{level}.{block,attn}.{i}`, `mid`.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Decoder", "Encoder"]


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class _ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); a 1x1 convolution on x where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class _Attention(nn.Module):
    """One head over all positions, with 1x1 convolutions; added to x."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2)[:, None] for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]
        return x + self.proj_out(mixed.transpose(1, 2).view_as(x))


class _Downsample(nn.Module):
    """Halve both sides; zeros are added at the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    """Double both sides: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Blocks of one resolution, each followed by attention where the level has it, then the change of resolution."""

    def __init__(
        self, widths: Sequence[int], *, attention: bool, groups: int, dropout: float, change: str | None = None
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(_ResBlock(before, after, groups, dropout) for before, after in pairs)
        self.attn = nn.ModuleList(_Attention(after, groups) for _, after in pairs if attention)
        if change == "downsample":
            self.downsample = _Downsample(widths[-1])
        elif change == "upsample":
            self.upsample = _Upsample(widths[-1])
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x if self.change is None else getattr(self, self.change)(x)


class _Middle(nn.Module):
    def __init__(self, width: int, *, attention: bool, groups: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = _ResBlock(width, width, groups, dropout)
        self.attn_1 = _Attention(width, groups) if attention else nn.Identity()
        self.block_2 = _ResBlock(width, width, groups, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pictures `(b, channels_in, h, w)` to `(b, channels_out, h / f, w / f)`, f = 2 ** (levels - 1).

    Args:
        channels_out: of the last convolution.
        width: channels of level 0 before its multiplier.
        multipliers: width of each level over `width`, fine to coarse.
        blocks: residual blocks of each level.
        attention: levels with attention after each block.
        middle_attention: attention between the two middle blocks.
        groups: of the group norms; divides every width.
        dropout: inside the residual blocks.
        final_activation: SiLU between the last norm and the last convolution.
        channels_in: of the picture.
    """

    def __init__(
        self,
        *,
        channels_out: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int] = (),
        middle_attention: bool = True,
        groups: int = 32,
        dropout: float = 0.0,
        final_activation: bool = True,
        channels_in: int = 3,
    ) -> None:
        super().__init__()
        widths = [width * m for m in multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(channels_in, width, 3, padding=1)
        self.down = nn.ModuleList(
            _Level(
                [before] + [after] * blocks,
                attention=level in attention,
                groups=groups,
                dropout=dropout,
                change=None if level == last else "downsample",
            )
            for level, (before, after) in enumerate(zip([width, *widths], widths, strict=False))
        )
        self.mid = _Middle(widths[-1], attention=middle_attention, groups=groups, dropout=dropout)
        self.norm_out = _norm(widths[-1], groups)
        self.final_activation = nn.SiLU() if final_activation else nn.Identity()
        self.conv_out = nn.Conv2d(widths[-1], channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(self.final_activation(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents `(b, channels_in, h, w)` to pictures `(b, channels_out, h * f, w * f)`; arguments as of `Encoder`.

    Each level has `blocks` residual blocks, one more than the encoder in all public models: give `blocks + 1`.
    """

    def __init__(
        self,
        *,
        channels_in: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int] = (),
        middle_attention: bool = True,
        groups: int = 32,
        dropout: float = 0.0,
        final_activation: bool = True,
        channels_out: int = 3,
    ) -> None:
        super().__init__()
        widths = [width * m for m in multipliers]
        coarser = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(channels_in, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], attention=middle_attention, groups=groups, dropout=dropout)
        self.up = nn.ModuleList(
            _Level(
                [before] + [after] * blocks,
                attention=level in attention,
                groups=groups,
                dropout=dropout,
                change="upsample" if level else None,
            )
            for level, (before, after) in enumerate(zip(coarser, widths, strict=True))
        )
        self.norm_out = _norm(widths[0], groups)
        self.final_activation = nn.SiLU() if final_activation else nn.Identity()
        self.conv_out = nn.Conv2d(widths[0], channels_out, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where the adaptive weight of adversarial losses is measured."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(self.final_activation(self.norm_out(h)))
