"""Networks of the MaskGIT-VQGAN: pictures to a grid of vectors and back, by convolutions without attention.

Paper: "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200. The variant of bytedance/1d-tokenizer (Apache-2.0, commit
942a96f), whose encoder makes TiTok's proxy codes and whose decoder paints TiTok's pictures; checked against tests/parity/titok.
Parameter names are those of the public file, so it needs no renaming.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GROUPS", "MaskGITDecoder", "MaskGITEncoder"]

GROUPS = 32  # of every group norm: widths are multiples of it
_EPS = 1e-6


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Where the channels change, the public network's shortcut looks at the block's own OUTPUT and the input is dropped. Its weights
    have the shape of that (out x out), so there is no other way to run them.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels, eps=_EPS)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(GROUPS, out, eps=_EPS)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(out, out, 1, bias=False) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


class _Level(nn.Module):
    """The blocks of one resolution; `upsample_conv` follows the doubling of a decoder's level."""

    def __init__(self, channels: int, out: int, blocks: int, *, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(_Block(channels if i == 0 else out, out) for i in range(blocks))
        self.upsample_conv = nn.Conv2d(out, out, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is not None:
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class MaskGITEncoder(nn.Module):
    """Pictures `(b, 3, h, w)` in [0, 1] to vectors `(b, c, h // f, w // f)`, f = 2 ** (levels - 1).

    Args:
        channels: c.
        width: channels of the first level.
        multipliers: width of each level, fine to coarse, in units of `width`.
        blocks: residual blocks of each level and of the middle.
    """

    def __init__(self, *, channels: int, width: int, multipliers: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        widths = [width * m for m in (1, *multipliers)]
        self.conv_in = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList(_Level(a, b, blocks) for a, b in pairwise(widths))
        self.mid = nn.ModuleList(_Block(widths[-1], widths[-1]) for _ in range(blocks))
        self.norm_out = nn.GroupNorm(GROUPS, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x)
            if i + 1 < len(self.down):
                x = F.avg_pool2d(x, 2)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGITDecoder(nn.Module):
    """Vectors `(b, c, h, w)` to pictures `(b, 3, h * f, w * f)`, about [0, 1]; the arguments are those of the encoder."""

    def __init__(self, *, channels: int, width: int, multipliers: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        widths = [width * m for m in multipliers]
        inputs = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(_Block(widths[-1], widths[-1]) for _ in range(blocks))
        self.up = nn.ModuleList(_Level(inputs[i], widths[i], blocks, upsample=i > 0) for i in range(len(widths)))
        self.norm_out = nn.GroupNorm(GROUPS, widths[0], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))
