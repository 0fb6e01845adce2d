"""Short 3-D convolutions: the numbers of torch's own, and which of them go to oneDNN."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.layers.quick_conv3d import conv3d, quicken

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


def values(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def calls(monkeypatch):
    """Shapes that went to oneDNN directly."""
    seen, real = [], torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda x, *rest: seen.append(tuple(x.shape)) or real(x, *rest))
    return seen


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (1, 1, 1)])
def test_values_and_gradients_are_those_of_torch(calls, kernel, stride):
    x, weight, bias = values(1, 8, 5, 16, 20).requires_grad_(), values(6, 8, *kernel, seed=1).requires_grad_(), values(6, seed=2)
    padding = (0, kernel[1] // 2, kernel[2] // 2)
    y = conv3d(x, weight, bias, stride=stride, padding=padding)
    assert calls == [(1, 8, 5, 16, 20)]
    wanted = F.conv3d(x, weight, bias, stride, padding)
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)
    for got, right in zip(*(torch.autograd.grad(z.square().sum(), (x, weight)) for z in (y, wanted)), strict=True):
        torch.testing.assert_close(got, right, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("x", "groups"),
    [
        (values(2, 8, 5, 16, 20), 1),
        (values(1, 8, 5, 16, 20, dtype=torch.float64), 1),
        (values(1, 8, 5, 16, 20), 2),
        (values(1, 8, 3, 4, 4), 1),
        (values(1, 128, 3, 8, 8), 1),
        (values(1, 8, 5, 16, 20).to(memory_format=torch.channels_last_3d), 1),
    ],
    ids=["batch", "double", "groups", "few", "wide", "channels last"],
)
def test_all_others_are_left_to_torch(calls, x, groups):
    weight = values(4, x.shape[1] // groups, 3, 3, 3, seed=1, dtype=x.dtype)
    assert torch.equal(conv3d(x, weight, groups=groups), F.conv3d(x, weight, groups=groups))
    assert not calls


class _Padded(nn.Conv3d):
    """A library's convolution with a rule of its own, as some have."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1, 2, 0))) + 1


def test_a_network_of_another_library_keeps_its_names_and_rules(calls):
    plain = nn.Sequential(_Padded(8, 8, 3), nn.Conv3d(8, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate"))
    quick = copy.deepcopy(plain)
    quicken(quick)
    quicken(quick)
    assert list(quick.state_dict()) == list(plain.state_dict())
    assert isinstance(quick[0], _Padded)
    assert type(quick[2]) is nn.Conv3d
    x = values(1, 8, 5, 16, 20)
    torch.testing.assert_close(quick(x), plain(x), atol=1e-5, rtol=1e-5)
    assert calls == [(1, 8, 7, 18, 22), (1, 8, 5, 16, 20)]
    torch.testing.assert_close(copy.deepcopy(quick)(x), plain(x), atol=1e-5, rtol=1e-5)
