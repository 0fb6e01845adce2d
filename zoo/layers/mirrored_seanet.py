"""SEANet whose convolutions mirror the signal at its ends and see both sides: the networks of SpeechTokenizer and WavTokenizer.

Paper: Tagliasacchi et al., "SEANet: A Multi-modal Speech Enhancement Network", arXiv 2009.02095. The numbers are those of the
public classes (tests/parity/speech_tokenizer), also where a length is no multiple of the hop.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.activations import Snake, elu
from zoo.layers.weight_norm import fold_weight_norm

__all__ = ["SeanetSizes", "rename_codebooks", "seanet_decoder", "seanet_encoder", "seanet_names"]

_KERNEL = 7  # of the first and the last convolution of both networks


@dataclass(frozen=True, kw_only=True)
class SeanetSizes:
    """Sizes of an encoder or decoder.

    Attributes:
        width: channels at the full rate; doubled by every stride.
        strides: of the decoder, from the codes to the sound; the encoder has them in reverse.
        channels: of the vectors.
        lstm_layers: 0 for none.
        residual_kernel: of the residual units.
        residual_layers: residual units at each stride.
        dilation_base: unit j has the dilation `dilation_base ** j`.
        activation: of all convolutions.
    """

    width: int
    strides: tuple[int, ...]
    channels: int
    lstm_layers: int = 2
    residual_kernel: int = 3
    residual_layers: int = 1
    dilation_base: int = 2
    activation: Literal["elu", "snake"] = "elu"


class _Conv(nn.Conv1d):
    """A convolution over a signal that is mirrored at its ends; ceil(t / stride) outputs.

    What the last window lacks is mirrored too; a signal that is shorter than its mirror is filled with zeros for it.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride, dilation = self.kernel_size[0], self.stride[0], self.dilation[0]
        total = (kernel - 1) * dilation - (stride - 1)
        right = total // 2
        left, length = total - right, x.shape[2]
        # The windows are counted as the public class counts them, with the undilated kernel.
        windows = math.ceil((length - kernel + total) / stride)
        right += windows * stride + kernel - total - length
        short = max(0, max(left, right) - length + 1)
        x = F.pad(F.pad(x, (0, short)), (left, right), mode="reflect")
        return super().forward(x[..., : x.shape[2] - short])


class _Transposed(nn.ConvTranspose1d):
    """A transposed convolution of kernel 2s and stride s, cut to s outputs for an input."""

    def forward(self, x: Tensor) -> Tensor:
        stride = self.stride[0]
        left = stride - stride // 2
        return super().forward(x)[..., left : left + stride * x.shape[2]]


class _Elu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return elu(x)


def _activation(sizes: SeanetSizes, channels: int) -> nn.Module:
    return Snake(channels) if sizes.activation == "snake" else _Elu()


class _Unit(nn.Module):
    """Residual unit; the shortcut is a convolution too."""

    def __init__(self, sizes: SeanetSizes, channels: int, dilation: int) -> None:
        super().__init__()
        half = channels // 2
        self.block = nn.Sequential(
            _activation(sizes, channels),
            _Conv(channels, half, sizes.residual_kernel, dilation=dilation),
            _activation(sizes, half),
            _Conv(half, channels, 1),
        )
        self.shortcut = _Conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


class _Lstm(nn.Module):
    """LSTM over time, with its input added (to both directions)."""

    def __init__(self, channels: int, layers: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers, bidirectional=bidirectional, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2).contiguous()
        y = self.lstm(rows)[0]
        return (y + (torch.cat([rows, rows], 2) if self.lstm.bidirectional else rows)).transpose(1, 2)


def _units(sizes: SeanetSizes, width: int) -> list[nn.Module]:
    return [_Unit(sizes, width, sizes.dilation_base**j) for j in range(sizes.residual_layers)]


def seanet_encoder(sizes: SeanetSizes, *, bidirectional: bool = False) -> nn.Sequential:
    """Sound `(b, 1, s)` to vectors `(b, channels, frames)`, frames = s / hop rounded up; the LSTM may read in both directions."""
    width = sizes.width
    layers: list[nn.Module] = [_Conv(1, width, _KERNEL)]
    for stride in reversed(sizes.strides):
        layers += [*_units(sizes, width), _activation(sizes, width), _Conv(width, 2 * width, 2 * stride, stride=stride)]
        width *= 2
    if sizes.lstm_layers:
        layers.append(_Lstm(width, sizes.lstm_layers, bidirectional=bidirectional))
    width *= 2 if bidirectional else 1
    return nn.Sequential(*layers, _activation(sizes, width), _Conv(width, sizes.channels, _KERNEL))


def seanet_decoder(sizes: SeanetSizes) -> nn.Sequential:
    """Vectors `(b, channels, frames)` to sound `(b, 1, frames * hop)`."""
    width = sizes.width * 2 ** len(sizes.strides)
    layers: list[nn.Module] = [_Conv(sizes.channels, width, _KERNEL)]
    if sizes.lstm_layers:
        layers.append(_Lstm(width, sizes.lstm_layers, bidirectional=False))
    for stride in sizes.strides:
        layers += [_activation(sizes, width), _Transposed(width, width // 2, 2 * stride, stride=stride)]
        width //= 2
        layers += _units(sizes, width)
    return nn.Sequential(*layers, _activation(sizes, width), _Conv(width, 1, _KERNEL))


# -- names of the public files -----------------------------------------------------------------------------------------------------

_CODEBOOK = {"embed": "codebook", "embed_avg": "codebook_sum", "cluster_size": "cluster_size", "inited": "initialized"}


def seanet_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold the weight norm and drop the wrappers around convolutions and the `model.` of `encoder.` and `decoder.`."""
    out: dict[str, Tensor] = {}
    for key, value in fold_weight_norm(tensors).items():
        new = key.replace(".conv.conv.", ".").replace(".convtr.convtr.", ".")
        for side in ("encoder.", "decoder."):
            if new.startswith(side + "model."):
                new = side + new.removeprefix(side + "model.")
        out[new] = value
    return out


def rename_codebooks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give `quantizer.vq.layers.{j}._codebook.*` the names of our `RVQ`, `quantizer.layers.{j}.*`, and add its clocks."""
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        start, _, name = key.rpartition("._codebook.")
        if not start.startswith("quantizer.vq.layers."):
            out[key] = value
            continue
        layer = start.replace("quantizer.vq.", "quantizer.")
        out[f"{layer}.{_CODEBOOK.get(name, name)}"] = value.bool().reshape(()) if name == "inited" else value
        out[f"{layer}.clock.steps"] = torch.tensor(0)
        out["quantizer.clock.steps"] = torch.tensor(0)
    return out
