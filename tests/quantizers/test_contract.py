"""What `base.py` promises, for every kind of quantizer."""

import copy
import math

import pytest
import torch

from zoo.quantizers import Quantizer


def test_shapes_ranges_and_the_three_verbs_agree(quantizer: Quantizer, x: torch.Tensor) -> None:
    result = quantizer(x)
    codes = quantizer.encode(x)
    assert codes.dtype == torch.int64
    assert codes.shape == (2, 7, quantizer.depth)
    assert torch.equal(result.codes, codes)
    assert result.x.shape == x.shape
    for j, size in enumerate(quantizer.codebook_sizes):
        assert 0 <= codes[..., j].min() <= codes[..., j].max() < size
    torch.testing.assert_close(quantizer.decode(codes), result.x.detach(), rtol=0, atol=1e-6)
    assert result.loss.shape == ()
    assert result.loss.dtype == torch.float32
    assert quantizer.bits == pytest.approx(sum(math.log2(size) for size in quantizer.codebook_sizes))
    for name in ("used_fraction", "perplexity", "dead_codes"):
        assert result.stats[name].shape == (quantizer.depth,)
    assert not any(value.requires_grad for value in result.stats.values())


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2, 3), (0,)])
def test_any_leading_axes(quantizer: Quantizer, shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, quantizer.dim, generator=torch.Generator().manual_seed(3))
    codes = quantizer.encode(x)
    assert codes.shape == (*shape, quantizer.depth)
    assert quantizer.decode(codes).shape == x.shape


def test_vectors_do_not_depend_on_their_neighbours(quantizer: Quantizer, x: torch.Tensor) -> None:
    alone = torch.stack([quantizer.encode(row) for row in x.reshape(-1, x.shape[-1])])
    assert torch.equal(quantizer.encode(x).reshape(alone.shape), alone)


def test_gradient_reaches_x_and_every_parameter(quantizer: Quantizer, x: torch.Tensor) -> None:
    x = x.clone().requires_grad_()
    result = quantizer.train()(x)
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    ((result.x * weight).sum() + result.loss).backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_only_rounds_the_input(quantizer: Quantizer, x: torch.Tensor, dtype: torch.dtype) -> None:
    half = x.to(dtype)
    expected = quantizer(half.float())
    result = quantizer(half)
    assert result.x.dtype == dtype
    assert torch.equal(result.codes, expected.codes)
    assert result.loss == expected.loss


def test_autocast_and_fast_matmul_change_nothing(quantizer: Quantizer, x: torch.Tensor) -> None:
    expected, loss = quantizer.encode(x), quantizer(x).loss
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = quantizer(x)
            assert torch.equal(quantizer.encode(x), expected)
            torch.testing.assert_close(quantizer.decode(expected), result.x, rtol=0, atol=1e-6)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(result.codes, expected)
    assert result.loss == loss
    assert result.x.dtype == torch.float32


def test_constants_survive_a_cast(quantizer: Quantizer, x: torch.Tensor) -> None:
    """A cast may round learned numbers, but not the levels, places and thresholds that the codes are made of."""
    expected = {name: value.clone() for name, value in quantizer.named_buffers() if name not in quantizer.state_dict()}
    quantizer.to(torch.bfloat16).to(torch.float32)
    for name, value in quantizer.named_buffers():
        if name in expected:
            assert torch.equal(value, expected[name]), name


def test_float64_stays_float64(quantizer: Quantizer, x: torch.Tensor) -> None:
    result = quantizer(x.double())
    assert result.x.dtype == torch.float64
    assert torch.equal(result.codes, quantizer.encode(x))


def test_state_round_trip(quantizer: Quantizer, x: torch.Tensor) -> None:
    quantizer.train()
    quantizer(x)
    other = copy.deepcopy(quantizer)
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    for name, value in other.state_dict().items():
        value.copy_(torch.zeros_like(value)) if "steps" not in name else value.fill_(7)
    other.load_state_dict(state)
    # not only the same answers but the same future: the next training step is equal too
    first, second = quantizer(x), other(x)
    assert torch.equal(first.codes, second.codes)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_encode_and_decode_change_nothing(quantizer: Quantizer, x: torch.Tensor) -> None:
    quantizer.train()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.decode(quantizer.encode(x))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_the_global_generator_is_left_alone(quantizer: Quantizer, x: torch.Tensor) -> None:
    before = torch.get_rng_state()
    quantizer.train()(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_refuses_wrong_vectors(quantizer: Quantizer, x: torch.Tensor) -> None:
    for call in (quantizer, quantizer.encode):
        with pytest.raises(ValueError, match=rf"\(\.\.\., {quantizer.dim}\), channels last"):
            call(x[..., :-1])
        with pytest.raises(ValueError, match="floating-point"):
            call(torch.zeros(2, quantizer.dim, dtype=torch.int64))
    for bad in (math.nan, math.inf):
        spoiled = x.clone()
        spoiled[0, 3, 1] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            quantizer.encode(spoiled)


def test_refuses_wrong_codes(quantizer: Quantizer, x: torch.Tensor) -> None:
    codes = quantizer.encode(x)
    with pytest.raises(ValueError, match="integer dtype"):
        quantizer.decode(codes.float())
    with pytest.raises(ValueError, match="last axis is the depth"):
        quantizer.decode(torch.cat([codes, codes], -1))
    for depth, size in enumerate(quantizer.codebook_sizes):
        for bad in (size, -2):
            spoiled = codes.clone()
            spoiled[1, 2, depth] = bad
            with pytest.raises(ValueError, match=r"\.\.\d+\. They were not made by this quantizer"):
                quantizer.decode(spoiled)


def test_decode_takes_narrow_integers(quantizer: Quantizer, x: torch.Tensor) -> None:
    codes = quantizer.encode(x)
    narrow = torch.int16 if max(quantizer.codebook_sizes) < 1 << 15 else torch.int32
    assert torch.equal(quantizer.decode(codes.to(narrow)), quantizer.decode(codes))


class _EncodeDecode(torch.nn.Module):
    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = self.quantizer.encode(x)
        return codes, self.quantizer.decode(codes)


def test_export_with_a_free_batch(quantizer: Quantizer, x: torch.Tensor) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(_EncodeDecode(quantizer), (x,), dynamic_shapes=((batch, None, None),), strict=False)
    other = torch.randn(5, 7, quantizer.dim, generator=torch.Generator().manual_seed(8))
    codes, value = program.module()(other)
    assert torch.equal(codes, quantizer.encode(other))
    torch.testing.assert_close(value, quantizer.decode(codes), rtol=0, atol=1e-6)


def test_compile_without_graph_breaks(quantizer: Quantizer, x: torch.Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
    with torch.no_grad():
        result = compiled(x)
    assert torch.equal(result.codes, quantizer.encode(x))
    torch.testing.assert_close(result.loss, quantizer(x).loss.detach(), rtol=1e-5, atol=1e-6)


def test_no_two_quantizers_of_one_seed_differ(quantizer: Quantizer, x: torch.Tensor) -> None:
    """Training is a function of the data: two copies that see the same batches stay equal."""
    other = copy.deepcopy(quantizer).train()
    quantizer.train()
    for step in range(3):
        batch = torch.randn(40, quantizer.dim, generator=torch.Generator().manual_seed(step))
        assert torch.equal(quantizer(batch).codes, other(batch).codes)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.slow
def test_compile_with_gradient(quantizer: Quantizer, x: torch.Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(quantizer, backend="aot_eager")
    gradients = []
    for call in (quantizer, compiled):
        leaf = x.clone().requires_grad_()
        result = call(leaf)
        ((result.x * torch.arange(x.shape[-1])).sum() + result.loss).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
