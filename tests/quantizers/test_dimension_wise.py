"""Dimension-wise quantizer: the public fixture, nearest value, calibration."""

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.quantizers import DimensionWise
from zoo.quantizers.dimension_wise import allocate_bits, calibrate, normal_cells

SETTINGS = [(6, 5.0, 3.0, "b6_r5_s3"), (4, 5.0, 3.0, "b4_r5_s3"), (3, 3.0, 3.0, "b3_r3_s3"), (5, 4.0, 2.5, "b5_r4_s2.5")]


@pytest.mark.parametrize(("bits", "limit", "reach", "prefix"), SETTINGS)
def test_parity(public_case: Callable[[str], Any], bits: int, limit: float, reach: float, prefix: str) -> None:
    io = public_case("tokenbridge/ptq_scalar").io
    quantizer = DimensionWise(dim=16, levels=2**bits, spread=limit / reach, reach=reach)
    edges, values, _ = normal_cells(2**bits, reach)
    torch.testing.assert_close(edges, io[f"{prefix}.boundaries"], rtol=0, atol=2e-6)
    torch.testing.assert_close(values, io[f"{prefix}.reconstruction_values"], rtol=0, atol=2e-6)
    latents = io["latents"].movedim(1, -1)
    result = quantizer(latents)
    assert torch.equal(result.codes, io[f"{prefix}.indices"].movedim(1, -1))
    torch.testing.assert_close(result.x, io[f"{prefix}.dequantized"].movedim(1, -1), rtol=0, atol=1e-5)


def test_cells_are_means_of_equally_probable_pieces() -> None:
    """Against the standard library's normal distribution and a numerical integral."""
    normal = statistics.NormalDist()
    edges, values, thresholds = normal_cells(8, 3.0)
    assert edges[1:-1].tolist() == pytest.approx([normal.inv_cdf(i / 8) for i in range(1, 8)], abs=1e-6)
    assert edges[[0, -1]].tolist() == [-3.0, 3.0]
    for i, value in enumerate(values.tolist()):
        points = torch.linspace(edges[i].item(), edges[i + 1].item(), 20001, dtype=torch.float64)
        density = torch.exp(-points.square() / 2)
        assert value == pytest.approx((torch.trapezoid(points * density) / torch.trapezoid(density)).item(), abs=1e-6)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values.tolist())]
    assert thresholds.tolist() == pytest.approx(middles, abs=1e-6)


@given(
    st.lists(st.tuples(st.integers(1, 70), st.floats(-3, 3), st.floats(0.1, 4)), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
def test_every_channel_takes_its_nearest_value(channels: list[tuple[int, float, float]], seed: int) -> None:
    levels, centres, spreads = zip(*channels, strict=True)
    quantizer = DimensionWise(dim=len(channels), levels=levels, centre=centres, spread=spreads)
    x = torch.randn(2, 20, len(channels), generator=torch.Generator().manual_seed(seed)) * 3
    result = quantizer(x)
    distances = (x[..., None] - quantizer.values).abs().nan_to_num(nan=math.inf)
    taken = distances.gather(-1, result.codes[..., None])[..., 0]
    torch.testing.assert_close(taken, distances.amin(-1), rtol=0, atol=1e-5)
    assert torch.equal(quantizer.decode(result.codes), result.x)
    # encoding a value gives it back
    assert torch.equal(quantizer.encode(result.x), result.codes)


def test_gradient_passes_unchanged() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(DimensionWise(dim=4)(x).x.sum(), x)
    assert torch.equal(gradient, torch.ones(5, 4))


def test_calibration_makes_cells_equally_probable() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(20_000, 3, generator=generator) * torch.tensor([0.2, 1.0, 7.0]) + torch.tensor([5.0, 0.0, -3.0])
    centre, spread = calibrate(latents)
    assert centre == pytest.approx((5, 0, -3), abs=0.15)
    assert spread == pytest.approx((0.2, 1, 7), rel=0.05)
    fitted = DimensionWise(dim=3, levels=16, centre=centre, spread=spread)(latents)
    published = DimensionWise(dim=3, levels=16)(latents)
    assert fitted.stats["perplexity"].min() > 14.5
    assert published.stats["perplexity"].min() < 4
    error = ((fitted.x - latents) / torch.tensor(spread)).square().mean(0)
    assert error.max() < 0.023  # the best 16 levels for a normal variable reach 0.0115, equally probable ones 0.021


def test_calibration_of_a_constant_channel() -> None:
    centre, spread = calibrate(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
    assert centre == (1.0, 3.0)
    assert spread[0] == 1.0


def test_bits_go_where_the_error_is() -> None:
    assert allocate_bits((1.0, 1.0, 1.0), total_bits=9) == (3, 3, 3)
    assert allocate_bits((4.0, 2.0, 1.0), total_bits=9) == (4, 3, 2)
    assert allocate_bits((100.0, 0.01), total_bits=10, max_bits=8) == (8, 2)
    generator = torch.Generator().manual_seed(0)
    spread = (8.0, 1.0, 1.0, 0.1)
    latents = torch.randn(5000, 4, generator=generator) * torch.tensor(spread)
    errors = []
    for bits in (allocate_bits(spread, total_bits=12), (3, 3, 3, 3)):
        quantizer = DimensionWise(dim=4, levels=[2**b for b in bits], spread=spread)
        assert quantizer.bits == 12
        errors.append((quantizer(latents).x - latents).square().sum(-1).mean().item())
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim=0"),
        ({"levels": 0}, "levels=0"),
        ({"levels": (4, 4)}, "levels has 2 entries. Allowed: one number, or dim=3"),
        ({"centre": (0.0,)}, "centre has 1 entries"),
        ({"spread": 0.0}, "spread=0.0"),
        ({"reach": -1}, "reach=-1"),
    ],
)
def test_refuses_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DimensionWise(**{"dim": 3, **change})


def test_refuses_what_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match="two or more vectors of finite values"):
        calibrate(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="two or more vectors of finite values"):
        calibrate(torch.full((4, 3), math.nan))
    with pytest.raises(ValueError, match="total_bits=20"):
        allocate_bits((1.0, 1.0), total_bits=20)
