"""Grids to patches and back or averaged down, and the sin-cos table of their positions."""

import torch
from torch import Tensor

__all__ = ["averaged", "patchify", "sincos_table", "unpatchify"]


def patchify(x: Tensor, size: int) -> Tensor:
    """Cut `(b, h, w, c)` into patches `(b, h / size, w / size, size * size * c)`, each in the order row, column, channel."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(2, 3)
    return x.reshape(b, h // size, w // size, size * size * c)


def unpatchify(x: Tensor, size: int) -> Tensor:
    """Undo `patchify`."""
    b, h, w, width = x.shape
    c = width // (size * size)
    x = x.reshape(b, h, w, size, size, c).transpose(2, 3)
    return x.reshape(b, h * size, w * size, c)


def averaged(latents: Tensor, factor: int) -> Tensor:
    """Average latents `(b, *positions, c)` over blocks of `factor` along each axis, `(b, n, c)` in raster order."""
    axes = latents.ndim - 2
    split = latents.reshape(len(latents), *(size for n in latents.shape[1:-1] for size in (n // factor, factor)), -1)
    return split.mean([2 + 2 * axis for axis in range(axes)]).flatten(1, -2)


def sincos_table(width: int, height: int, breadth: int) -> Tensor:
    """Give fixed positions `(1, width, height, breadth)`: sines and cosines of the row, then of the column.

    Frequencies are 10000 ** (-i / (width / 4)). For squares this is FlexTok's table (checked against tests/parity/flextok/units).
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows = torch.arange(height, dtype=torch.float64)[:, None] * frequencies
    columns = torch.arange(breadth, dtype=torch.float64)[:, None] * frequencies
    rows = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(height, breadth, -1)
    columns = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(height, breadth, -1)
    return torch.cat([rows, columns], -1).permute(2, 0, 1)[None].float().contiguous()
