"""Convolutions in time that look back only, and what they keep between two steps of a signal.

A causal layer needs, of all that came before, its last few input frames. It keeps them in a `Memory`, so a long signal can be given
in steps and the result does not depend on the frames that follow:

    step 1   [first frame(s) of the padding] + frames 1..4   -> out 1..4,  memory: frames 3, 4
    step 2   [3, 4 from the memory]          + frames 5..8   -> out 5..8,  memory: frames 7, 8

Shapes: `(b, t, h, w, c)`, channels last, which keeps norms over the channels and 2-D convolutions fast. Parameters are those of
`torch.nn.Conv3d`, `(out, in, kt, kh, kw)`. A 3-D kernel is computed as the sum of its 2-D slices: on a CPU that takes as long as a
3-D convolution where channels are many, and a tenth of it where they are few.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CausalConv3d", "LinearUpsample", "Memory", "take_past"]

Padding = Literal["zeros", "repeat"]


class Memory:
    """What the layers of one network keep of one signal, by layer.

    Attributes:
        kept: frames, keys and values that a layer needs again; empty before the first step.
        ending: the signal has ended, and a layer that holds something back gives it now.
        turn: the layer that does so in this call, where they do so one after the other; None: all of them.
    """

    def __init__(self) -> None:
        self.kept: dict[nn.Module, Tensor] = {}
        self.ending = False
        self.turn: nn.Module | None = None

    def ends(self, layer: nn.Module) -> bool:
        """Tell whether `layer` gives what it holds back in this call."""
        return self.ending and self.turn in (None, layer)

    def size(self) -> int:
        """Bytes that are kept."""
        return sum(value.numel() * value.element_size() for value in self.kept.values())


def take_past(layer: nn.Module, x: Tensor, memory: Memory, *, frames: int, padding: Padding) -> Tensor:
    """Put the `frames` last frames before `x (b, t, ...)` in front of it, and keep those of now.

    Before the first step they are zeros, or copies of the first frame.
    """
    if not frames:
        return x
    past = memory.kept.get(layer)
    if past is None:
        shape = (x.shape[0], frames, *x.shape[2:])
        past = x.new_zeros(shape) if padding == "zeros" else x[:, :1].expand(shape)
    x = torch.cat([past, x], 1)
    memory.kept[layer] = x[:, x.shape[1] - frames :].clone()  # a view would keep the whole step
    return x


class CausalConv3d(nn.Module):
    """A convolution over time, height and width whose output never depends on later frames.

    Args:
        channels_in: of `(b, t, h, w, channels_in)`.
        channels_out: of the output.
        kernel: `(kt, kh, kw)`.
        stride: in time and in space; a step must hold a multiple of the stride in time.
        padding: what stands before the first frame.
        border: zeros before and after the sides; half the kernel where it is None.
        ahead: frames of zeros after the last frame. Not causal: with it only whole signals can be given.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: Padding = "zeros",
        border: tuple[int, int] | None = None,
        ahead: int = 0,
    ) -> None:
        super().__init__()
        whole = nn.Conv3d(channels_in, channels_out, kernel)  # torch's own initial values
        self.weight, self.bias = whole.weight, whole.bias
        self.kernel, self.stride, self.padding, self.ahead = kernel, stride, padding, ahead
        self.border = (kernel[1] // 2, kernel[1] // 2) if border is None else border
        self.past = kernel[0] - stride[0] - ahead

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Convolve the next step `(b, t, h, w, c)`; t = 0 gives nothing.

        Raises:
            ValueError: a second step where `ahead` frames are looked at, or a step that the stride in time does not divide.
        """
        if self.ahead:
            if self in memory.kept:
                raise ValueError("CausalConv3d: ahead > 0 takes the signal in one step, and this is the second.")
            x = torch.cat([x, x.new_zeros(x.shape[0], self.ahead, *x.shape[2:])], 1)
        elif x.shape[1] % self.stride[0]:
            raise ValueError(f"CausalConv3d: a step of {x.shape[1]} frames. Needed: a multiple of the stride {self.stride[0]}.")
        x = take_past(self, x, memory, frames=self.past, padding=self.padding)
        if x.shape[1] < self.kernel[0]:
            return self._nothing(x)
        if self.kernel[1:] == (1, 1) and self.stride[1] == 1:
            return self._in_time(x)
        first, *others = range(self.kernel[0])
        y = self._in_space(x, first, self.bias)
        for tap in others:
            y = y.add_(self._in_space(x, tap, None))
        return y

    def _in_time(self, x: Tensor) -> Tensor:
        if self.kernel[0] == 1:
            return F.linear(x, self.weight.flatten(1), self.bias)
        h, w = x.shape[2:4]
        rows = x.flatten(2, 3).permute(0, 3, 1, 2)
        y = F.conv2d(rows, self.weight.flatten(3), self.bias, stride=(self.stride[0], 1))
        return y.permute(0, 2, 3, 1).unflatten(2, (h, w))

    def _in_space(self, x: Tensor, tap: int, bias: Tensor | None) -> Tensor:
        """One slice of the kernel over the frames that it sees."""
        count = (x.shape[1] - self.kernel[0]) // self.stride[0] + 1
        seen = x[:, tap : tap + (count - 1) * self.stride[0] + 1 : self.stride[0]]
        before, after = self.border
        if before != after:
            seen = F.pad(seen, (0, 0, before, after, before, after))
        b = seen.shape[0]
        pictures = seen.flatten(0, 1).permute(0, 3, 1, 2)
        border = before if before == after else 0
        y = F.conv2d(pictures, self.weight[:, :, tap], bias, stride=self.stride[1], padding=border)
        return y.permute(0, 2, 3, 1).unflatten(0, (b, count))

    def _nothing(self, x: Tensor) -> Tensor:
        sides = [(side + sum(self.border) - k) // self.stride[1] + 1 for side, k in zip(x.shape[2:4], self.kernel[1:], strict=True)]
        return x.new_zeros(x.shape[0], 0, *sides, self.weight.shape[0])


class LinearUpsample(nn.Module):
    """Twice the frames by linear interpolation, the frames of the first step on their own.

    Frame i of a stretch becomes `(x[i-1] + 3 x[i]) / 4` and `(3 x[i] + x[i+1]) / 4`, with the ends repeated. The second waits
    for the next frame, so the output is one frame behind until it ends.
    """

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        """Give `(b, 2 t, ...)` for the first step, then all that the frames `(b, t, ...)` settle."""
        before = memory.kept.get(self)
        if before is None:
            memory.kept[self] = x[:, :0]
            return self._whole(x)
        frames = torch.cat([before, x], 1)
        if not frames.shape[1]:
            return frames
        left, right = frames[:, :-1], frames[:, 1:]
        between = torch.stack([torch.lerp(left, right, 0.25), torch.lerp(left, right, 0.75)], 2).flatten(1, 2)
        parts = [between] if before.shape[1] else [x[:, :1], between]
        memory.kept[self] = frames[:, -1:].clone()
        if memory.ends(self):
            parts.append(frames[:, -1:])
            memory.kept[self] = x[:, :0]
        return torch.cat(parts, 1)

    @staticmethod
    def _whole(x: Tensor) -> Tensor:
        left = torch.cat([x[:, :1], x[:, :-1]], 1)
        right = torch.cat([x[:, 1:], x[:, -1:]], 1)
        return torch.stack([torch.lerp(x, left, 0.25), torch.lerp(x, right, 0.25)], 2).flatten(1, 2)
