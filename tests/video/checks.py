"""What the tests of several video families ask alike."""

import torch

from zoo.tokens import Tokens


def close(a, b, tolerance=1e-4):
    assert a.shape == b.shape
    scale = max(1.0, float(b.abs().max()))
    assert float((a - b).abs().max()) <= tolerance * scale, f"largest difference {float((a - b).abs().max())} at scale {scale}"


def first(x):
    """Channels in front of frames."""
    return x.permute(0, 4, 1, 2, 3)


def last(x):
    """Channels behind all."""
    return x.permute(0, 2, 3, 4, 1)


def clip(frames, sides, seed=0):
    return torch.rand(1, 3, frames, *sides, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def check_streams(tok, x):
    """Whole, frame by frame and after one frame: the same tokens and frames to the bit. Gives the tokens."""
    frames = x.shape[2]
    whole = tok.encode(x)
    y = tok.decode(whole)
    assert y.shape == x.shape
    for sizes in ([frames], [1] * frames, [1, frames - 1]):
        parts = list(tok.stream().encode_all(x.split([n for n in sizes if n], 2)))
        joined = Tokens.join(parts)
        assert torch.equal(joined.data, whole.data)
        assert torch.equal(joined.extent, whole.extent)
        assert torch.equal(torch.cat(list(tok.stream().decode_all(parts)), 2), y)
    return whole
