"""Causal convolutions and linear interpolation against torch's whole-signal functions, in one step and in many."""

import pytest
import torch
from torch.nn import functional as F

from zoo.layers.causal_conv import CausalConv3d, LinearUpsample, Memory
from zoo.layers.steps import Stepper


def frames(t=8, c=3, b=2, seed=0):
    return torch.rand(b, t, 6, 5, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5


@pytest.mark.parametrize("padding", ["zeros", "repeat"])
@pytest.mark.parametrize(
    ("kernel", "stride", "border"),
    [((3, 3, 3), (1, 1), None), ((3, 1, 1), (1, 1), None), ((3, 3, 3), (2, 1), None), ((3, 1, 1), (2, 1), None),
     ((1, 3, 3), (1, 2), (0, 1)), ((1, 1, 1), (1, 1), None), ((2, 3, 3), (1, 1), None)],
)  # fmt: skip
def test_it_is_torchs_convolution_with_the_padding_in_front(kernel, stride, border, padding):
    conv = CausalConv3d(3, 4, kernel, stride=stride, padding=padding, border=border).double()
    x = frames()
    before, after = border or (kernel[1] // 2,) * 2
    padded = x.permute(0, 4, 1, 2, 3)
    past = kernel[0] - stride[0]
    first = padded[:, :, :1].expand(-1, -1, past, -1, -1)
    padded = torch.cat([first if padding == "repeat" else torch.zeros_like(first), padded], 2)
    padded = F.pad(padded, (before, after, before, after))
    wanted = F.conv3d(padded, conv.weight, conv.bias, stride=(stride[0], stride[1], stride[1])).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(conv(x, Memory()), wanted)
    memory = Memory()
    parts = [conv(part, memory) for part in (x[:, :2], x[:, 2:2], x[:, 2:6], x[:, 6:])]
    torch.testing.assert_close(torch.cat(parts, 1), wanted)
    assert memory.size() == (2 * past * 6 * 5 * 3 * 8 if past else 0)


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"a step of 3 frames. Needed: a multiple of the stride 2"):
        CausalConv3d(3, 4, (3, 3, 3), stride=(2, 1))(frames(3).float(), Memory())
    conv, memory = CausalConv3d(3, 4, (3, 3, 3), ahead=1), Memory()
    conv(frames().float(), memory)
    with pytest.raises(ValueError, match="takes the signal in one step"):
        conv(frames().float(), memory)


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("cuts", [[8], [1] * 8, [3, 0, 5], []])
def test_linear_upsampling_is_torchs_with_the_first_step_on_its_own(first, cuts):
    x = frames(first + sum(cuts))

    def wanted(part):
        return F.interpolate(part.permute(0, 4, 1, 2, 3), scale_factor=(2.0, 1.0, 1.0), mode="trilinear").permute(0, 2, 3, 4, 1)

    up, memory, parts = LinearUpsample(), Memory(), []
    for part in x.split([first, *cuts], 1):
        parts.append(up(part, memory))
    given = sum(part.shape[1] for part in parts)
    assert given == 2 * x.shape[1] - (1 if cuts else 0), "one frame waits for the next"
    memory.ending = True
    parts.append(up(x[:, :0], memory))
    whole = [wanted(x[:, :first]), *([wanted(x[:, first:])] if cuts else [])]
    torch.testing.assert_close(torch.cat(parts, 1), torch.cat(whole, 1))


def test_steps_do_not_depend_on_the_chunks():
    seen = []

    def network(x, memory):
        seen[-1].append((x.shape[1], memory.ending))
        return x

    x = frames(10)
    for cuts in ([10], [1] * 10, [4, 0, 6], [9, 1]):
        seen.append([])
        stepper = Stepper(network, first=1, size=4, multiple=2, flush=True)
        parts = [stepper.push(part, last=False) for part in x.split(cuts, 1)]
        parts.append(stepper.push(x[:, :0], last=True))
        y = torch.cat([part for part in parts if part is not None], 1)
        assert torch.equal(y, torch.cat([x, x[:, -1:]], 1)), "the end is filled up with the last frame"
    assert seen == [[(1, False), (4, False), (4, False), (2, False), (0, True)]] * 4
