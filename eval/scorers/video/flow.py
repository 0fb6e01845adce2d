"""Dense optical flow without weights, and what is done with it: moving frames, and telling where that is meaningful.

A flow `(n, 2, h, w)` holds the displacement in pixels, x first: `b` at `x + flow(x)` is what `a` shows at `x`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["moved", "optical_flow", "visible"]

_COARSEST = 16  # px
_STEPS = 5
_SIGMA = 2.0
_FLAT = 1e-4  # added to the structure tensor of values in [0, 1]: places without texture do not move of themselves
_MEDIAN = 5


def moved(frames: Tensor, flow: Tensor) -> Tensor:
    """Read frames `(n, c, h, w)` at the places a flow `(n, 2, h, w)` points to, bilinearly; the border is continued."""
    h, w = flow.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(h, device=flow.device, dtype=flow.dtype), torch.arange(w, device=flow.device, dtype=flow.dtype), indexing="ij"
    )
    scale = flow.new_tensor([2 / max(w - 1, 1), 2 / max(h - 1, 1)])
    places = (torch.stack([x, y]) + flow).permute(0, 2, 3, 1) * scale - 1
    return F.grid_sample(frames, places, mode="bilinear", padding_mode="border", align_corners=True)


def visible(flow: Tensor, back: Tensor) -> Tensor:
    """Tell which pixels `(n, h, w)` have a counterpart: the flow leads inside, and the other flow leads back.

    Source: the check of Sundaram, Brox and Keutzer, ECCV 2010, equation 5.
    """
    h, w = flow.shape[2:]
    returned = moved(back, flow)
    error = (flow + returned).square().sum(1)
    close = error <= 0.01 * (flow.square().sum(1) + returned.square().sum(1)) + 0.5
    y = torch.arange(h, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    x = torch.arange(w, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    return close & (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)


def _band(size: int, like: Tensor) -> Tensor:
    """Matrix `(size, size)` that weighs an axis by a Gaussian from the right; the border is continued."""
    radius = round(3 * _SIGMA)
    offset = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    kernel = torch.exp(-offset.square() / (2 * _SIGMA**2))
    ones = torch.eye(size, device=like.device, dtype=like.dtype)[:, None]
    return F.conv1d(F.pad(ones, (radius, radius), mode="replicate"), (kernel / kernel.sum()).view(1, 1, -1))[:, 0]


def _window(x: Tensor) -> Tensor:
    """Weigh `(n, c, h, w)` by a Gaussian; the border is continued. Products with bands are faster than a filter of one channel."""
    h, w = x.shape[2:]
    return _band(h, x).T @ (x @ _band(w, x))


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of `(n, 1, h, w)` along x and y; the border is continued."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    return (p[..., 1:-1, 2:] - p[..., 1:-1, :-2]) / 2, (p[..., 2:, 1:-1] - p[..., :-2, 1:-1]) / 2


def _median(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    radius = _MEDIAN // 2
    p = F.pad(x, (radius,) * 4, mode="replicate")
    return F.unfold(p.reshape(n * c, 1, h + 2 * radius, w + 2 * radius), _MEDIAN).median(1).values.view(n, c, h, w)


def _refined(a: Tensor, b: Tensor, flow: Tensor) -> Tensor:
    """Improve a flow between grey `(n, 1, h, w)` at one size."""
    ax, ay = _gradients(a)
    for _ in range(_STEPS):
        there = moved(b, flow)
        bx, by = _gradients(there)
        gx, gy, gt = (ax + bx) / 2, (ay + by) / 2, there - a
        xx, xy, yy, xt, yt = _window(torch.cat([gx * gx, gx * gy, gy * gy, gx * gt, gy * gt], 1)).split(1, 1)
        xx, yy = xx + _FLAT, yy + _FLAT
        determinant = xx * yy - xy * xy
        step = torch.cat([xy * yt - yy * xt, xy * xt - xx * yt], 1) / determinant
        flow = flow + step.clamp(-1, 1)
    return _median(flow)


def optical_flow(a: Tensor, b: Tensor) -> Tensor:
    """Flow `(n, 2, h, w)` from pictures `a` to pictures `b`, `(n, 3, h, w)` uint8.

    Motions of up to about a fourth of the side are found where there is texture.

    Source: Lucas and Kanade 1981, with the pyramid of Bouguet 2000 on every pixel; checked against motions that are known.
    """
    weights = torch.tensor([0.299, 0.587, 0.114], device=a.device).view(1, 3, 1, 1)
    greys = [((frames.float() / 255) * weights).sum(1, keepdim=True) for frames in (a, b)]
    pyramid = [greys]
    while min(pyramid[-1][0].shape[2:]) >= 2 * _COARSEST:
        h, w = pyramid[-1][0].shape[2:]
        pyramid.append([F.interpolate(x, (h // 2, w // 2), mode="bilinear", antialias=True) for x in pyramid[-1]])
    flow = a.new_zeros(len(a), 2, *pyramid[-1][0].shape[2:], dtype=torch.float32)
    for grey_a, grey_b in reversed(pyramid):
        h, w = grey_a.shape[2:]
        if flow.shape[2:] != (h, w):
            scale = flow.new_tensor([w / flow.shape[3], h / flow.shape[2]]).view(1, 2, 1, 1)
            flow = F.interpolate(flow, (h, w), mode="bilinear") * scale
        flow = _refined(grey_a, grey_b, flow)
    return flow
