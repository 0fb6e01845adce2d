"""FSQ and residual FSQ: public fixtures, formulas from the paper, index arithmetic."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.quantizers import FSQ, Grouped, Projected, Quantizer, ResidualFSQ

SUBCASES = ["L8_5_5_5", "L8_8_8_6_5", "L7_5_5_5_5", "L4_4_4", "L3_3", "sym_L2_2_2_2", "sym_L5_4_3", "projected", "two_codebooks"]


def build(case: Any, name: str) -> Quantizer:
    kwargs = case.config["subcases"][name]["kwargs"]
    fsq = FSQ(levels=kwargs["levels"], symmetric=kwargs.get("preserve_symmetry", False))
    if name == "two_codebooks":
        return Grouped([fsq, FSQ(levels=kwargs["levels"])])
    if name != "projected":
        return fsq
    projected = Projected(fsq, dim=12)
    projected.load_state_dict(
        {name.removeprefix("projected."): t for name, t in case.weights.items() if name.startswith("projected.")}
    )
    return projected


@pytest.mark.parametrize("name", SUBCASES)
def test_parity(public_case: Callable[[str], Any], name: str) -> None:
    case = public_case("quantizers/fsq")
    io, quantizer = case.sub(name), build(case, name)
    x = io["x"].clone().requires_grad_()
    result = quantizer(x)
    codes = io["indices"].long().reshape(result.codes.shape)
    assert torch.equal(result.codes, codes)
    torch.testing.assert_close(result.x, io["quantized"], rtol=0, atol=1e-5)
    torch.testing.assert_close(quantizer.decode(codes), io["output_from_indices"], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad((result.x * io["st_weight"]).sum(), x)
    torch.testing.assert_close(gradient, io["st_grad"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SUBCASES if name not in ("projected", "two_codebooks")])
def test_digits_and_the_whole_codebook(public_case: Callable[[str], Any], name: str) -> None:
    case = public_case("quantizers/fsq")
    io, fsq = case.sub(name), build(case, name)
    codes = io["indices"].long()[..., None]
    assert torch.equal(fsq.codes_to_digits(codes), io["level_indices"].long())
    assert torch.equal(fsq.digits_to_codes(io["level_indices"]), codes)
    if "codebook" in io:
        every = torch.arange(fsq.codebook_size)[:, None]
        torch.testing.assert_close(fsq.decode(every), io["codebook"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("prefix", ["fsq888555", "fsq_other"])
def test_parity_with_flextok(public_case: Callable[[str], Any], prefix: str) -> None:
    io = public_case("flextok/units").io
    fsq = FSQ(levels=io[f"{prefix}_levels"].tolist())
    result = fsq(io[f"{prefix}_z"])
    torch.testing.assert_close(fsq.bound(io[f"{prefix}_z"]), io[f"{prefix}_bounded"], rtol=0, atol=1e-6)
    torch.testing.assert_close(result.x, io[f"{prefix}_quant"], rtol=0, atol=1e-6)
    assert torch.equal(result.codes[:, 0], io[f"{prefix}_tokens"])
    torch.testing.assert_close(fsq.decode(io[f"{prefix}_idx"][:, None]), io[f"{prefix}_idx_to_code"], rtol=0, atol=1e-6)


def test_parity_of_residual_fsq(public_case: Callable[[str], Any]) -> None:
    case = public_case("quantizers/fsq")
    io = case.sub("residual")
    kwargs = case.config["subcases"]["residual"]["kwargs"]
    inner = ResidualFSQ(levels=kwargs["levels"], num_codebooks=kwargs["num_quantizers"])
    quantizer = Projected(inner, dim=kwargs["dim"])
    weights = {name.removeprefix("residual."): t for name, t in case.weights.items() if name.startswith("residual.")}
    quantizer.load_state_dict(weights)
    result = quantizer(io["x"])
    assert torch.equal(result.codes, io["indices"].long())
    torch.testing.assert_close(result.x, io["quantized"], rtol=0, atol=1e-5)
    torch.testing.assert_close(inner.decode(result.codes), io["all_codes"].sum(0), rtol=0, atol=1e-5)
    inside = torch.nn.functional.linear(io["x"], weights["project_in.weight"], weights["project_in.bias"])
    assert torch.equal(inner.encode(inside, depth=2), result.codes[..., :2])


def test_every_depth_of_residual_fsq_comes_closer() -> None:
    quantizer = ResidualFSQ(levels=(4, 4), num_codebooks=4)
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * 0.5
    squashed, codes = quantizer.squash(x), quantizer.encode(x)
    for depth in range(1, 5):
        inside = squashed.abs().amax(-1) <= 1
        error = (quantizer.decode(codes[:, :depth]) - squashed)[inside].abs().max()
        assert error <= 4.0 ** -(depth - 1) / 3 + 1e-6  # half a step of the grid at that depth


levels_of_default = st.lists(st.integers(3, 1000), min_size=1, max_size=5)
levels_of_symmetric = st.lists(st.integers(2, 3000), min_size=1, max_size=5)


@given(st.one_of(levels_of_default.map(lambda v: (v, False)), levels_of_symmetric.map(lambda v: (v, True))), st.data())
def test_digits_and_codes_both_ways(case: tuple[list[int], bool], data: st.DataObject) -> None:
    levels, symmetric = case
    fsq = FSQ(levels=levels, symmetric=symmetric)
    digits = [data.draw(st.integers(0, level - 1)) for level in levels]
    code = 0
    for digit, level in zip(reversed(digits), reversed(levels), strict=True):  # Horner: the first channel varies fastest
        code = code * level + digit
    assert fsq.digits_to_codes(torch.tensor(digits)).tolist() == [code]
    assert fsq.codes_to_digits(torch.tensor([code])).tolist() == digits


@given(st.one_of(levels_of_default.map(lambda v: (v, False)), levels_of_symmetric.map(lambda v: (v, True))), st.integers(0, 2**31))
def test_codes_of_any_input_are_in_range_and_decode_to_themselves(case: tuple[list[int], bool], seed: int) -> None:
    levels, symmetric = case
    fsq = FSQ(levels=levels, symmetric=symmetric)
    x = torch.randn(64, len(levels), generator=torch.Generator().manual_seed(seed)) * 3
    x[0], x[1], x[2] = 1e4, -1e4, 0.0
    result = fsq(x)
    assert torch.equal(fsq.decode(result.codes), result.x)
    digits = fsq.codes_to_digits(result.codes)
    top = torch.tensor(levels) - 1
    assert torch.equal(digits[0], top)
    assert torch.equal(digits[1], torch.zeros_like(top))
    if not symmetric:
        assert torch.equal(result.x[2], torch.zeros(len(levels)))


def test_values_are_the_papers_grid() -> None:
    """Against a loop in double precision, far from rounding borders."""
    levels = (7, 6, 3)
    fsq = FSQ(levels=levels)
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    result = fsq(x.float())
    for row, value in zip(x.tolist(), result.x.tolist(), strict=True):
        for z, level, got in zip(row, levels, value, strict=True):
            half = (level - 1) * 1.001 / 2
            offset = 0.0 if level % 2 else 0.5
            bounded = math.tanh(z + math.atanh(offset / half)) * half - offset
            if abs(bounded - math.floor(bounded) - 0.5) > 1e-4:
                assert got == pytest.approx(round(bounded) / (level // 2))


def test_gradient_is_that_of_the_squashing() -> None:
    fsq = FSQ(levels=(8, 5))
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(fsq(x).x.sum(), x)
    (expected,) = torch.autograd.grad((fsq.bound(x) / torch.tensor([4.0, 2.0])).sum(), x)
    torch.testing.assert_close(got, expected)


def test_large_codebooks_are_exact() -> None:
    """Above 2^24 codes float32 sums go wrong, above 2^31 so do 32-bit integers."""
    fsq = FSQ(levels=(8,) * 14)
    assert fsq.codebook_size == 2**42
    top = fsq.encode(torch.full((1, 14), 50.0))
    assert top.tolist() == [[2**42 - 1]]
    stats = fsq(torch.randn(100, 14, generator=torch.Generator().manual_seed(0))).stats
    assert stats["perplexity"].item() == pytest.approx(100, rel=1e-4)
    assert stats["used_fraction"].item() == pytest.approx(100 / 2**42)


def test_bfloat16_input_uses_the_whole_codebook() -> None:
    """Upstream once computed the code in bfloat16, where 1001 becomes 1000 and half the codes are never used."""
    fsq = FSQ(levels=(8, 5, 5, 5))
    x = fsq.decode(torch.arange(1000)[:, None])
    x = torch.atanh((x * torch.tensor([4, 2, 2, 2]) + torch.tensor([0.5, 0, 0, 0])) / torch.tensor([3.5035, 2.002, 2.002, 2.002]))
    x -= torch.atanh(torch.tensor([0.5 / 3.5035, 0, 0, 0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fsq(x.bfloat16()).codes[:, 0], torch.arange(1000))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"levels": ()}, "at least one level"),
        ({"levels": (8, 2)}, "Two levels need symmetric=True"),
        ({"levels": (8, 1001)}, r"3\.\.1000"),
        ({"levels": (8, 5.0)}, "ints in"),
        ({"levels": (True, 5)}, "ints in"),
        ({"levels": (1, 4), "symmetric": True}, "ints in 2"),
        ({"levels": (1000,) * 7}, "below 2\\^63"),
    ],
)
def test_refuses_levels(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FSQ(**kwargs)


def test_refuses_digits_and_depths() -> None:
    with pytest.raises(ValueError, match=r"digits_to_codes: codes at depth 1 run from 5 to 5\. Allowed: 0\.\.4"):
        FSQ(levels=(8, 5)).digits_to_codes(torch.tensor([[3, 5]]))
    with pytest.raises(ValueError, match="below 2\\^24"):
        ResidualFSQ(levels=(8,), num_codebooks=8)
    with pytest.raises(ValueError, match=r"depth=4\. Allowed: an int in 1\.\.3"):
        ResidualFSQ(levels=(8,), num_codebooks=3).encode(torch.zeros(1, 1), depth=4)
