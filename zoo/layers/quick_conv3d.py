"""3-D convolutions of short steps by oneDNN.

On a CPU torch hands a convolution of one item to oneDNN only where channels x frames x height are above 20480; below, it
takes a slower kernel of its own. Steps of a clip are short, so a narrow network on small frames falls below. oneDNN is the
faster one beyond a few thousand values, unless the channels are so many that putting their weights in its order takes longer; what
it gives differs by rounding. Elsewhere (batches, other devices, other types) nothing changes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["conv3d", "quicken"]

_FEW = 8192  # values; below them a call of oneDNN costs more than it saves
_PLACES = 4  # for each channel; with fewer the order of the weights does


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, ...] = (1, 1, 1),
    padding: tuple[int, ...] = (0, 0, 0),
    dilation: tuple[int, ...] = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv3d` of `x (b, c, t, h, w)`, by oneDNN where torch would take its slow kernel."""
    if _slow(x, groups):
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
    return F.conv3d(x, weight, bias, stride, padding, dilation, groups)


def quicken(network: nn.Module) -> None:
    """Let all 3-D convolutions of a network of another library work by `conv3d`; names and parameters stay.

    Those that pad by another rule than zeros stay as they are.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d) and not isinstance(layer, _Quick) and layer.padding_mode == "zeros":
            kind = type(layer)
            layer.__class__ = _Quick if kind is nn.Conv3d else _with_quick(kind)


class _Quick(nn.Conv3d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.padding, str):
            return super()._conv_forward(x, weight, bias)
        return conv3d(x, weight, bias, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups)


_KINDS: dict[type, Any] = {}


def _with_quick(kind: type[nn.Conv3d]) -> Any:
    """The subclass of a library's convolution that does the same, quickly."""
    if kind not in _KINDS:
        _KINDS[kind] = type(f"Quick{kind.__name__}", (_Quick, kind), {})
    return _KINDS[kind]


def _slow(x: Tensor, groups: int) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape[0] != 1 or groups != 1 or not x.is_contiguous():
        return False
    ready = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled and not torch.compiler.is_compiling()
    return ready and x.numel() > _FEW and x[0, 0].numel() >= _PLACES * x.shape[1]
