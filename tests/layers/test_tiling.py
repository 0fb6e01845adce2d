"""Tiles: a network of convolutions gives what it gives for the whole picture, wherever its reach is inside the overlap."""

import random
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.layers.tiling import Tiling, decode_tiles, encode_tiles, windows

F8 = (8, 8)


def weights(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[1] / 4


class Encoder(nn.Module):
    """Strided blocks, then `reach` positions to each side."""

    def __init__(self, reach):
        super().__init__()
        self.first, self.second = weights(5, 3, 8, 8), weights(6, 5, 2 * reach + 1, 2 * reach + 1, seed=1)

    def forward(self, x):
        y = F.conv2d(x, self.first, stride=8).tanh()
        return F.conv2d(y, self.second, padding="same").permute(0, 2, 3, 1)


class Decoder(nn.Module):
    """Pixels of the nearest position, then `reach` pixels to each side."""

    def __init__(self, reach):
        super().__init__()
        self.weight = weights(3, 6, 2 * reach + 1, 2 * reach + 1)

    def forward(self, data):
        y = F.interpolate(data.permute(0, 3, 1, 2), scale_factor=8.0, mode="nearest")
        return F.conv2d(y, self.weight, padding="same")


def signal(b, c, h, w, seed=0):
    return torch.rand(b, c, h, w, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def grids(count=6):
    draws = random.Random(0)
    return [(1, 1), (4, 30), *((draws.randint(1, 24), draws.randint(1, 24)) for _ in range(count))]


@pytest.mark.parametrize("grid", grids())
def test_an_encoder_of_convolutions_is_exact(grid):
    x, encode = signal(2, 3, 8 * grid[0], 8 * grid[1]), Encoder(reach=2)
    tiled = encode_tiles(encode, x, Tiling(64, 32), downsample=F8)
    torch.testing.assert_close(tiled, encode(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", grids())
def test_a_decoder_of_convolutions_is_exact(grid):
    data, decode = signal(2, grid[0], grid[1], 6), Decoder(reach=8)
    tiled = decode_tiles(decode, data, Tiling(64, 32), downsample=F8)
    assert tiled.shape == (2, 3, 8 * grid[0], 8 * grid[1])
    torch.testing.assert_close(tiled, decode(data), rtol=0, atol=1e-6)


def test_what_reaches_further_than_the_overlap_is_not_exact():
    x, encode = signal(1, 3, 160, 160), Encoder(reach=3)
    assert (encode_tiles(encode, x, Tiling(64, 32), downsample=F8) - encode(x)).abs().max() > 1e-3
    data, decode = signal(1, 20, 20, 6), Decoder(reach=12)
    assert (decode_tiles(decode, data, Tiling(64, 32), downsample=F8) - decode(data)).abs().max() > 1e-3


@pytest.mark.parametrize("overlap", [0, 2, 4])
@pytest.mark.parametrize("length", [1, 8, 9, 13, 21, 64])
def test_windows_cover_the_axis_and_share_what_they_must(length, overlap):
    found = windows(length, 8, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert {stop - start for start, stop in found} == {min(8, length)}
    assert all(a[1] - b[0] >= overlap for a, b in pairwise(found))
    fewer = len(found) - 1
    assert fewer * 8 - max(fewer - 1, 0) * overlap < length, "as few as cover it"


@pytest.mark.parametrize("overlap", [None, 0, 20, 32])
def test_blending_leaves_equal_tiles_as_they_are(overlap):
    for grid in grids():
        data = torch.ones(1, *grid, 3)
        out = decode_tiles(lambda d: d.permute(0, 3, 1, 2).repeat(1, 1, 8, 8), data, Tiling(64, overlap), downsample=F8)
        torch.testing.assert_close(out, torch.ones(1, 3, 8 * grid[0], 8 * grid[1]), rtol=0, atol=1e-6)


def test_no_step_shows_where_tiles_disagree():
    """Tiles that differ by 1 are joined by a ramp over half of what they share."""
    number = iter(range(100))
    tile, data = torch.ones(1, 1, 64, 64), torch.zeros(1, 8, 12, 1)
    out = decode_tiles(lambda _: tile * next(number), data, Tiling(64, 32), downsample=F8)
    row = out[0, 0, 0]
    assert row[:32].eq(0).all()
    assert row[-32:].eq(1).all()
    assert row.diff().abs().max() <= 1 / 16 + 1e-6


def test_gradients_pass():
    x, encode, decode = signal(1, 3, 96, 96).requires_grad_(), Encoder(1), Decoder(2)
    z = encode_tiles(encode, x, Tiling(64, 32), downsample=F8)
    decode_tiles(decode, z, Tiling(64, 32), downsample=F8).square().sum().backward()
    tiled, x.grad = x.grad, None
    decode(encode(x)).square().sum().backward()
    torch.testing.assert_close(tiled, x.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("side", "overlap", "words"),
    [
        (0, None, r"side=0\. Needed: a whole number of pixels, at least 1"),
        (64.0, None, r"side=64\.0"),
        (True, None, "side=True"),
        (64, -1, r"overlap=-1\. .*at least 0"),
        (64, 33, r"overlap=33 is more than half of side=64\. Allowed: 0\.\.32"),
    ],
)
def test_tilings_that_are_none(side, overlap, words):
    with pytest.raises(ValueError, match=words):
        Tiling(side, overlap)


def test_a_tile_holds_four_positions():
    with pytest.raises(ValueError, match=r"side=31 holds 3 positions of 8 pixels\. Allowed: 32 or more"):
        Tiling(31).positions(8)
    assert Tiling(32).positions(8) == (4, 2)
    assert Tiling(1024).positions(8) == (128, 32)
    assert Tiling(1024).positions(64) == (16, 4)
