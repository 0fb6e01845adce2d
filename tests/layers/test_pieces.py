"""Pieces of a signal through every step, against the plain modules on the whole signal."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import zoo.layers.pieces as layers
from zoo.layers import row_products
from zoo.layers.activations import elu, snake
from zoo.layers.pieces import (
    ActivationStep,
    Chain,
    ConvStep,
    LSTMStep,
    ResidualStep,
    SplitStep,
    TransposeStep,
    WindowStep,
    narrowing,
    run,
    same_step,
    widening,
)
from zoo.layers.weight_norm import fold_weight_norm, remove_weight_norm


@pytest.fixture(autouse=True, scope="module", params=["gradients", "products", "products_later"])
def layers_used(request):
    """Every test runs on the layers that gradients need, on the products that are used where none is wanted, and on first
    the ones and then the others within a signal."""
    with torch.set_grad_enabled(request.param == "gradients"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_products, "_REPAYS", 0 if request.param == "products" else 20)
        yield


CUTS = st.lists(st.integers(1, 13), min_size=1, max_size=12)


def signal(length, channels=3, seed=0):
    return torch.randn(2, channels, length, generator=torch.Generator().manual_seed(seed))


def pieces(step, x, cuts):
    """Push pieces of these lengths, over and over, and join what comes out."""
    out, start, i = [], 0, 0
    while start < x.shape[2]:
        end = start + cuts[i % len(cuts)]
        out.append(step.push(x[..., start:end], last=end >= x.shape[2]))
        start, i = end, i + 1
    parts = [part for part in out if part is not None]
    return torch.cat(parts, 2) if parts else None


def close(a, b):
    assert a.shape == b.shape
    torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(1, 60), kernel=st.integers(1, 8), stride=st.integers(1, 4), dilation=st.integers(1, 3),
    left=st.integers(0, 9), right=st.integers(0, 9), mode=st.sampled_from(["constant", "replicate", "reflect"]), cuts=CUTS,
)  # fmt: skip
def test_a_convolution_in_pieces(length, kernel, stride, dilation, left, right, mode, cuts):
    torch.manual_seed(0)
    kernel = max(kernel, stride)
    conv, x = nn.Conv1d(3, 4, kernel, stride, dilation=dilation), signal(length)
    if mode == "reflect" and length <= max(left, right):
        return  # the library refuses; see the test of short signals
    padded = F.pad(x, (left, right), mode=mode)
    span = (kernel - 1) * dilation + 1
    y = pieces(ConvStep(conv, left=left, right=right, mode=mode), x, cuts)
    if padded.shape[2] < span:
        assert y is None
    else:
        close(y, conv(padded))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 40), stride=st.integers(1, 8), cuts=CUTS, causal=st.booleans())
def test_mirrored_ends_of_signals_of_any_length(length, stride, cuts, causal):
    """A signal that is too short is lengthened by zeros, mirrored and cut, as the library of EnCodec does."""
    from transformers import EncodecConfig
    from transformers.models.encodec.modeling_encodec import EncodecConv1d

    torch.manual_seed(0)
    layer = EncodecConv1d(EncodecConfig(use_causal_conv=causal), 3, 4, 2 * stride, stride)
    remove_weight_norm(layer)
    right = 0 if causal else stride // 2
    step = ConvStep(layer.conv, left=stride - right, right=right, mode="reflect", whole_strides=True)
    x = signal(length)
    close(pieces(step, x, cuts), layer(x))


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 30), kernel=st.integers(1, 9), stride=st.integers(1, 4), cuts=CUTS, cut=st.integers(0, 5))
def test_a_transposed_convolution_in_pieces(length, kernel, stride, cuts, cut):
    torch.manual_seed(0)
    kernel = max(kernel, stride)
    cut = min(cut, kernel - stride)
    conv, x = nn.ConvTranspose1d(3, 4, kernel, stride), signal(length)
    whole = conv(x)
    if whole.shape[2] <= 2 * cut:
        return
    close(pieces(TransposeStep(conv, trim_left=cut, trim_right=cut), x, cuts), whole[..., cut : whole.shape[2] - cut])


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 30), stride=st.integers(1, 6), cuts=CUTS, cut=st.integers(0, 3), bias=st.booleans(), grad=st.booleans()
)  # fmt: skip
def test_a_kernel_of_two_strides_as_a_matrix_product(length, stride, cuts, cut, bias, grad):
    torch.manual_seed(0)
    conv, x = nn.ConvTranspose1d(3, 4, 2 * stride, stride, bias=bias).requires_grad_(grad), signal(length)
    cut = min(cut, stride - 1)
    whole = conv(x)
    y = pieces(TransposeStep(conv, trim_left=cut, trim_right=stride - cut), x, cuts)
    close(y, whole[..., cut : whole.shape[2] - stride + cut])


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 40), dilation=st.integers(1, 3), cuts=CUTS, rows=st.booleans(), grad=st.booleans())
def test_layers_between_depthwise_convolutions_take_memory_of_either_order(length, dilation, cuts, rows, grad):
    torch.manual_seed(0)
    conv = nn.Conv1d(4, 4, 5, dilation=dilation, padding=2 * dilation, groups=4).requires_grad_(grad)
    down, up = nn.Conv1d(4, 4, 4, 2, padding=1), nn.ConvTranspose1d(4, 3, 6, 3)
    x, alpha = signal(length - length % 2 + 2, 4), torch.rand(1, 4, 1) + 0.5
    y = F.elu(x + conv(x))
    y = y + torch.sin(alpha * y) ** 2 / alpha
    wanted = up(down(y))[..., 1:-2]
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if rows else x
    activations = [ActivationStep(elu), ActivationStep(lambda z, out=None: snake(z, alpha, out))]
    steps = [ResidualStep(Chain([same_step(conv)])), *activations, same_step(down), TransposeStep(up, trim_left=1, trim_right=2)]
    close(pieces(Chain(steps), x, cuts), wanted)


@settings(max_examples=40, deadline=None)
@given(windows=st.integers(1, 6), size=st.integers(1, 7), cuts=CUTS)
def test_whole_windows_come_together(windows, size, cuts):
    x, seen = signal(windows * size), []

    def mean(part):
        seen.append(part.shape[2])
        return part.unflatten(2, (-1, size)).mean(3)

    step = WindowStep(size, mean, rate=Fraction(1, size))
    close(pieces(step, x, cuts), x.unflatten(2, (-1, size)).mean(3))
    assert all(n % size == 0 for n in seen)
    assert step.later() == size - 1
    if size > 1:
        with pytest.raises(ValueError, match=f"ends 1 positions into a window of {size}"):
            pieces(WindowStep(size, mean), signal(windows * size + 1), cuts)


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 30), cuts=CUTS)
def test_an_lstm_and_branches_in_pieces(length, cuts):
    torch.manual_seed(0)
    lstm, x = nn.LSTM(3, 3, 2), signal(length)
    steps = x.permute(2, 0, 1)
    close(pieces(LSTMStep(lstm), x, cuts), (lstm(steps)[0] + steps).permute(1, 2, 0))
    conv = nn.Conv1d(3, 3, 7, padding=3)
    branch = ResidualStep(Chain([ActivationStep(elu), ConvStep(conv, left=3, right=3)]))
    close(pieces(branch, x, cuts), x + conv(F.elu(x)))


def test_what_is_settled_comes_at_once_and_nothing_before():
    torch.manual_seed(0)
    conv, up = nn.Conv1d(1, 1, 5), nn.ConvTranspose1d(1, 1, 6, 3)
    steps = lambda: [ConvStep(conv, left=2, right=2), TransposeStep(up, trim_left=2, trim_right=1), ConvStep(conv, left=2, right=2)]  # noqa: E731
    chain = Chain(steps())
    assert chain.rate == 3
    assert chain.later() == 2 + Fraction(2, 3) + Fraction(2, 3)
    x = signal(20, 1)
    given = 0
    for i in range(19):
        y = chain.push(x[..., i : i + 1])
        given += 0 if y is None else y.shape[2]
        assert given >= 3 * (i + 1 - math.ceil(chain.later()))
    assert given + chain.push(x[..., 19:], last=True).shape[2] == 60
    close(run(Chain(steps()), x, piece=7), run(Chain(steps()), x, piece=100))


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 60), kernel=st.integers(2, 7), stride=st.integers(1, 2), dilation=st.integers(1, 3),
    left=st.integers(0, 9), right=st.integers(0, 9), mode=st.sampled_from(["constant", "replicate"]), depthwise=st.booleans(),
)  # fmt: skip
def test_a_short_signal_taken_plainly(length, kernel, stride, dilation, left, right, mode, depthwise):
    torch.manual_seed(0)
    conv = nn.Conv1d(4, 4, kernel, stride=stride, dilation=dilation, groups=4 if depthwise else 1)
    inner, last = nn.Conv1d(4, 4, 5, padding=2), nn.Conv1d(4, 2, 1)
    up = nn.ConvTranspose1d(4, 4, 4, 2)

    def chain():
        first = ConvStep(conv, left=left, right=right, mode=mode, whole_strides=True)
        branch = ResidualStep(Chain([ActivationStep(elu), same_step(inner)]))
        split = SplitStep(Chain([branch, ActivationStep(elu), TransposeStep(up, trim_left=1, trim_right=1)]), piece=3)
        return Chain([first, split, same_step(last)])

    x = signal(length, 4)
    span = (kernel - 1) * dilation + 1
    padded = F.pad(x, (left, right + -length % stride), mode=mode)
    assume(padded.shape[2] >= span)
    h = conv(padded)
    wanted = last(up(F.elu(h + inner(F.elu(h))))[..., 1:-1])
    before = x.clone()
    close(run(chain(), x, piece=4, short=2 * length), wanted)
    close(run(chain(), x, piece=4, short=2 * length - 1), wanted)
    assert torch.equal(x, before)


def test_plain_steps_leave_the_weights_in_their_order():
    conv, up = nn.Conv1d(4, 4, 3, padding=1), nn.ConvTranspose1d(4, 4, 4, 2)
    for short in (0, 2 * 300):
        steps = [same_step(conv), TransposeStep(up, trim_right=2)]
        run(Chain([SplitStep(Chain(steps), piece=100)]), signal(300, 4), piece=300, short=short)
        ready = [step.product is not None for step in steps]
        assert ready == [not short and not torch.is_grad_enabled()] * 2


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 90), piece=st.integers(1, 40), cached=st.integers(1, 200), rows=st.booleans(), cuts=CUTS)
def test_memory_that_is_used_again(length, piece, cached, rows, cuts):
    """Stages that split what they are given, inside a run in pieces and in a stream; the end is no whole number of strides."""
    torch.manual_seed(0)
    first, unit, down = nn.Conv1d(3, 8, 7), nn.Conv1d(8, 8, 3), nn.Conv1d(8, 16, 4, 2)
    second, up, last = nn.Conv1d(16, 16, 1), nn.ConvTranspose1d(16, 8, 4, 2), nn.Conv1d(8, 1, 7)

    def steps():
        residual = ResidualStep(Chain([ActivationStep(elu), same(unit)]), Chain([]))
        yield 8, [same(first, mode="reflect"), residual, ActivationStep(elu), ConvStep(down, left=1, right=1, whole_strides=True)]
        yield 16, [ActivationStep(elu), same(second)]
        yield 8, [ActivationStep(elu), TransposeStep(up, trim_left=1, trim_right=1)]
        yield 8, [ActivationStep(elu), same(last)]

    def same(conv, mode="constant"):
        reach = (conv.kernel_size[0] - 1) // 2
        return ConvStep(conv, left=reach, right=reach, mode=mode)

    def chain():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "_CACHED", cached)
            stages = [*steps()]
            return Chain([narrowing(stages[:2]), widening(stages[2:])])

    x = signal(length)
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if rows else x
    wanted = Chain([step for _, stage in steps() for step in stage]).push(x, last=True)
    before = x.clone()
    close(run(chain(), x, piece=piece), wanted)
    close(pieces(chain(), x, cuts), wanted)
    assert torch.equal(x, before)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_long_lstm_in_pieces(batch, monkeypatch):
    monkeypatch.setattr(row_products, "_LARGE", 1)
    torch.manual_seed(0)
    lstm, x = nn.LSTM(6, 6, 2), signal(20, 6)[:batch]
    steps = x.permute(2, 0, 1)
    assert row_products.Recurrence.serves(lstm)
    assert not row_products.Recurrence.serves(nn.LSTM(6, 6, bidirectional=True))
    close(pieces(LSTMStep(lstm), x, [3, 1, 7]), (lstm(steps)[0] + steps).permute(1, 2, 0))


def test_a_stream_may_leave_inference_mode():
    """Memory made there may not be written to outside; a step makes its own again."""
    torch.manual_seed(0)
    conv, up, x = nn.Conv1d(3, 4, 7), nn.ConvTranspose1d(4, 2, 4, 2), signal(30)
    step = SplitStep(Chain([ConvStep(conv, left=6), ActivationStep(elu), TransposeStep(up, trim_right=2)]), piece=4)
    step.reuse()
    with torch.inference_mode():
        first = step.push(x[..., :15], last=False).clone()
    y = torch.cat([first, step.push(x[..., 15:], last=True)], 2)
    close(y, up(F.elu(conv(F.pad(x, (6, 0)))))[..., :-2])


def test_what_no_codec_has_is_refused():
    with pytest.raises(ValueError, match="a kernel of 1 with stride 2"):
        ConvStep(nn.Conv1d(1, 1, 1, 2))
    with pytest.raises(ValueError, match=r"trim_right=3\. Allowed: 0\.\.2"):
        TransposeStep(nn.ConvTranspose1d(1, 1, 4, 2), trim_right=3)


def test_pieces_are_let_go():
    """What a chain keeps does not grow with the pieces."""
    conv = nn.Conv1d(3, 3, 7)
    step = ConvStep(conv, left=3, right=3, mode="reflect")
    step.push(signal(10000), last=False)
    assert sum(t.untyped_storage().size() for t in (step.held, step.recent)) < 1000


@pytest.mark.parametrize("grad", [False, True])
def test_activations(grad):
    x = (signal(50) * 5).requires_grad_(grad)
    alpha = torch.rand(1, 3, 1) + 0.1
    before = x.detach().clone()
    torch.testing.assert_close(elu(x), F.elu(x), rtol=0, atol=2e-7)
    torch.testing.assert_close(snake(x, alpha), x + torch.sin(alpha * x) ** 2 / (alpha + 1e-9), rtol=0, atol=2e-6)
    assert torch.equal(x, before)
    if grad and torch.is_grad_enabled():
        (a,) = torch.autograd.grad(elu(x).sum(), x)
        (b,) = torch.autograd.grad(F.elu(x).sum(), x)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_three_layouts_of_weight_norm_are_one_weight(kind):
    torch.manual_seed(0)
    module = nn.Sequential(weight_norm(kind(3, 4, 5)))
    with torch.no_grad():
        module[0].parametrizations.weight.original0.mul_(torch.rand_like(module[0].parametrizations.weight.original0) + 0.5)
    x = signal(9)
    y = module(x)
    current = dict(module.state_dict())
    old = {
        "0.bias": current["0.bias"],
        "0.weight_g": current["0.parametrizations.weight.original0"],
        "0.weight_v": current["0.parametrizations.weight.original1"],
    }
    plain = nn.Sequential(kind(3, 4, 5))
    for tensors in (current, old, fold_weight_norm(current)):
        plain.load_state_dict(fold_weight_norm(tensors))
        torch.testing.assert_close(plain(x), y, rtol=0, atol=1e-6)
    assert fold_weight_norm({"0.weight_g": old["0.weight_g"]}).keys() == {"0.weight_g"}, "half a pair is left for the loader"
    remove_weight_norm(module)
    assert module.state_dict().keys() == {"0.weight", "0.bias"}
    torch.testing.assert_close(module(x), y, rtol=0, atol=1e-6)
