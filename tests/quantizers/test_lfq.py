"""LFQ and BSQ: fixtures of two libraries, the entropies against a table of all codes, bit orders."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from zoo.quantizers import BSQ, LFQ, Grouped, Projected, Quantizer
from zoo.quantizers.entropy import distribution_entropy, mean_bit_entropy, mean_code_distribution

PUBLIC = ["lfq", "lfq_softclamp", "lfq_projected", "lfq_multi", "bsq", "bsq_projected"]


def build(case: Any, name: str, inverse_temperature: float = 100.0) -> Quantizer:
    kwargs = case.config["subcases"][name]["kwargs"]
    options = {
        "bits": 8,
        "entropy_weight": kwargs["entropy_loss_weight"],
        "batch_weight": kwargs.get("diversity_gamma", 1.0),
        "commitment_weight": kwargs.get("commitment_loss_weight", 0.0),
        "soft_clamp": kwargs.get("soft_clamp_input_value"),
        "inverse_temperature": inverse_temperature,
        "log_guard": "clamp",
    }
    make = BSQ if kwargs.get("spherical") else LFQ
    if name == "lfq_multi":
        return Grouped([make(**options), make(**options)])
    if not name.endswith("projected"):
        return make(**options)
    projected = Projected(make(**options), dim=12)
    state = {key.removeprefix(name + "."): t for key, t in case.weights.items() if key.startswith(f"{name}.project")}
    projected.load_state_dict(state)
    return projected


@pytest.mark.parametrize("name", PUBLIC)
def test_parity(public_case: Callable[[str], Any], name: str) -> None:
    case = public_case("quantizers/lfq_bsq")
    io, quantizer = case.sub(name), build(case, name)
    x = io["x"].clone().requires_grad_()
    result = quantizer(x)
    codes = io["indices"].reshape(result.codes.shape)
    assert torch.equal(result.codes, codes)
    assert torch.equal(quantizer.encode(x), codes)
    torch.testing.assert_close(result.x, io["train_quantized"], rtol=0, atol=1e-5)
    torch.testing.assert_close(quantizer.decode(codes), io["output_from_indices"], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad((result.x * io["st_weight"]).sum(), x)
    torch.testing.assert_close(gradient, io["st_grad"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("inverse_temperature", "loss_tolerance"), [(100, 1e-5), (4, 1e-4)])
@pytest.mark.parametrize("name", PUBLIC)
def test_loss_parity(public_case: Callable[[str], Any], name: str, inverse_temperature: float, loss_tolerance: float) -> None:
    """The library clamps the argument of every logarithm at 1e-5; the factors have no such error, hence the tolerances.

    With that clamp put into the table of all codes the stored gradients come out to 1e-7, without it they are off as here.
    """
    case = public_case("quantizers/lfq_bsq")
    io, quantizer = case.sub(name), build(case, name, inverse_temperature)
    x = io["x"].clone().requires_grad_()
    result = quantizer(x)
    (gradient,) = torch.autograd.grad(result.loss, x)
    expected = {
        key.removeprefix(f"inv{inverse_temperature}."): t for key, t in io.items() if key.startswith(f"inv{inverse_temperature}.")
    }
    stats = {key: value.mean().item() for key, value in result.stats.items()}
    assert stats["sample_entropy"] == pytest.approx(expected["per_sample_entropy"].item(), abs=10 * loss_tolerance)
    assert stats["batch_entropy"] == pytest.approx(expected["batch_entropy"].item(), abs=10 * loss_tolerance)
    if case.config["subcases"][name]["kwargs"].get("commitment_loss_weight"):
        assert stats["commitment"] == pytest.approx(expected["commitment"].item(), abs=1e-5)
    torch.testing.assert_close(result.loss, expected["aux_loss"][0], rtol=0, atol=loss_tolerance)
    largest = expected["aux_grad"].abs().max().item()
    torch.testing.assert_close(gradient, expected["aux_grad"], rtol=0, atol=largest * (2e-2 if inverse_temperature == 4 else 3e-3))


@pytest.mark.parametrize("name", ["plain", "factorised", "weighted"])
def test_parity_with_open_magvit2(public_case: Callable[[str], Any], name: str) -> None:
    case = public_case("open_magvit2/lfq_train")
    io = {key: t.movedim(1, -1) if t.ndim == 4 else t for key, t in case.sub(name).items()}
    kwargs = case.config["subcases"][name]
    lfq = LFQ(
        bits=8,
        bit_order="first_is_low",
        splits=kwargs.get("factorized_bits"),
        entropy_weight=1.0,
        sample_weight=kwargs.get("sample_minimization_weight", 1.0),
        batch_weight=kwargs.get("batch_maximization_weight", 1.0),
        commitment_weight=0.0,
        log_guard="add",
    )
    x = io["x"].clone().requires_grad_()
    result = lfq(x)
    torch.testing.assert_close(result.x, io["quantized"], rtol=0, atol=0)
    if name == "factorised":
        codes = torch.stack([io["indices_pre"], io["indices_post"]], -1)
    else:
        codes = io["indices_flat"][:, None]
    assert torch.equal(result.codes.reshape(codes.shape), codes)
    assert result.stats["sample_entropy"].item() == pytest.approx(io["per_sample_entropy"].item(), abs=1e-5)
    assert result.stats["batch_entropy"].item() == pytest.approx(io["codebook_entropy"].item(), abs=1e-5)
    assert result.stats["commitment"].item() == pytest.approx(io["commitment"].item(), abs=1e-5)
    assert result.loss.item() == pytest.approx(io["entropy_loss"].item(), abs=1e-5)
    (gradient,) = torch.autograd.grad(result.loss, x, retain_graph=True)
    torch.testing.assert_close(gradient, io["entropy_grad"], rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad((result.x * io["st_weight"]).sum(), x)
    assert torch.equal(gradient, io["st_weight"])
    committed = LFQ(bits=8, entropy_weight=0.0, commitment_weight=1.0)(x)
    (gradient,) = torch.autograd.grad(committed.loss, x)
    torch.testing.assert_close(gradient, io["commitment_grad"], rtol=1e-4, atol=1e-7)


# --------------------------------------------------------------- entropies
def table_of_all_codes(x: torch.Tensor, scale: float, inverse_temperature: float) -> torch.Tensor:
    """p(code | x) the naive way, `(n, 2^bits)`."""
    bits = x.shape[-1]
    signs = torch.tensor([[1.0 if code >> j & 1 else -1.0 for j in range(bits)] for code in range(1 << bits)], dtype=x.dtype)
    return torch.softmax(2 * inverse_temperature * scale * (x @ signs.t()), -1)


@pytest.mark.parametrize("bits", [1, 2, 3, 7])
@pytest.mark.parametrize("inverse_temperature", [0.5, 3.0])
def test_entropies_equal_the_table(bits: int, inverse_temperature: float) -> None:
    x = torch.randn(20, bits, generator=torch.Generator().manual_seed(bits), dtype=torch.float64, requires_grad=True)
    lfq = LFQ(
        bits=bits, scale=0.7, inverse_temperature=inverse_temperature, entropy_weight=1.0, commitment_weight=0.0, batch_weight=1.7
    )
    table = table_of_all_codes(x, 0.7, inverse_temperature)
    sample = -(table * table.log()).sum(-1).mean()
    mean = table.mean(0)
    batch = -(mean * mean.log()).sum()
    result = lfq(x)
    assert result.stats["sample_entropy"].item() == pytest.approx(sample.item(), rel=1e-6)
    assert result.stats["batch_entropy"].item() == pytest.approx(batch.item(), rel=1e-6)
    (expected,) = torch.autograd.grad(sample - 1.7 * batch, x)
    (got,) = torch.autograd.grad(result.loss.double(), x)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


def test_saturated_logits_have_finite_gradients() -> None:
    x = torch.tensor([[1e3, -1e3, 0.0], [1e-30, 5.0, -5.0]], requires_grad=True)
    for guard in ("exact", "clamp", "add"):
        result = LFQ(bits=3, log_guard=guard)(x)
        (gradient,) = torch.autograd.grad(result.loss, x)
        assert torch.isfinite(result.loss)
        assert torch.isfinite(gradient).all()


def test_guards_of_a_uniform_distribution() -> None:
    size = 1 << 18
    uniform = torch.full((size,), 1 / size)
    assert distribution_entropy(uniform).item() == pytest.approx(18 * math.log(2), rel=1e-5)
    assert distribution_entropy(uniform, "clamp").item() == pytest.approx(-math.log(1e-5), rel=1e-5)
    assert distribution_entropy(uniform, "add").item() == pytest.approx(-math.log(1 / size + 1e-5), rel=1e-5)


def test_distribution_sums_to_one_at_18_bits_in_little_memory() -> None:
    x = torch.randn(64, 18, generator=torch.Generator().manual_seed(0))
    mean = mean_code_distribution(x)
    assert mean.shape == (1 << 18,)
    assert mean.sum().item() == pytest.approx(1, abs=1e-5)
    result = LFQ(bits=18)(x.requires_grad_())
    result.loss.backward()
    assert result.stats["batch_entropy"].item() <= 18 * math.log(2)


def test_groups_of_bits_bound_the_exact_entropy_from_above() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    x = torch.cat([x, x[:, :2]], -1)  # bits that depend on each other
    exact = LFQ(bits=6)(x).stats["batch_entropy"]
    grouped = LFQ(bits=6, entropy_group_bits=2)(x).stats
    assert "batch_entropy" not in grouped
    assert grouped["batch_entropy_grouped"] > exact + 0.5
    parts = sum(distribution_entropy(mean_code_distribution(400 * x[:, j : j + 2])) for j in (0, 2, 4))
    assert grouped["batch_entropy_grouped"].item() == pytest.approx(parts.item(), rel=1e-5)


def test_bit_entropy_of_known_logits() -> None:
    assert mean_bit_entropy(torch.zeros(3, 5)).item() == pytest.approx(5 * math.log(2))
    p = 0.9
    one = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert mean_bit_entropy(torch.full((2, 1), math.log(p / (1 - p)))).item() == pytest.approx(one, rel=1e-5)


# -------------------------------------------------------------------- codes
splits = st.lists(st.integers(1, 20), min_size=1, max_size=6).filter(lambda s: sum(s) <= 62)


@given(splits, st.sampled_from(["first_is_high", "first_is_low"]), st.data())
def test_bits_and_codes_both_ways(cut: list[int], order: str, data: st.DataObject) -> None:
    lfq = LFQ(bits=sum(cut), splits=cut, bit_order=order, entropy_weight=0.0)
    bits = [data.draw(st.integers(0, 1)) for _ in range(lfq.dim)]
    codes, start = [], 0
    for split in cut:
        own = bits[start : start + split]
        text = "".join(str(bit) for bit in (own if order == "first_is_high" else own[::-1]))
        codes.append(int(text, 2))
        start += split
    assert lfq.codebook_sizes == tuple(2**split for split in cut)
    assert lfq.bits_to_codes(torch.tensor(bits)).tolist() == codes
    assert lfq.codes_to_bits(torch.tensor(codes)).tolist() == bits
    x = torch.tensor(bits) * 2.0 - 1
    assert lfq.encode(x).tolist() == codes
    assert torch.equal(lfq.decode(torch.tensor(codes)), x)


def test_62_bits() -> None:
    lfq = LFQ(bits=62, entropy_group_bits=9)
    assert lfq.encode(torch.ones(62)).tolist() == [2**62 - 1]
    assert torch.equal(lfq.decode(torch.tensor([2**62 - 1])), torch.ones(62))
    assert torch.isfinite(lfq(torch.randn(9, 62, generator=torch.Generator().manual_seed(0))).loss)


def test_zero_is_negative() -> None:
    assert LFQ(bits=3).encode(torch.tensor([0.0, -0.0, 1e-30])).tolist() == [1]
    assert torch.equal(LFQ(bits=2, scale=0.5)(torch.zeros(2)).x, torch.full((2,), -0.5))


def test_bsq_works_on_the_sphere() -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    result = BSQ(bits=5)(x)
    torch.testing.assert_close(result.x.norm(dim=-1), torch.ones(30))
    (got,) = torch.autograd.grad((result.x * weight).sum(), x)
    (expected,) = torch.autograd.grad((F.normalize(x, dim=-1) * weight).sum(), x)
    torch.testing.assert_close(got, expected)
    assert torch.equal(BSQ(bits=5)(x * 37).codes, result.codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 0}, "bits=0"),
        ({"bits": 63}, "bits=63"),
        ({"scale": 0}, "scale=0"),
        ({"soft_clamp": 0.5}, "soft_clamp=0.5"),
        ({"bit_order": "big"}, "bit_order='big'"),
        ({"splits": (4, 5)}, "add up to bits=8"),
        ({"splits": (9, -1)}, "positive ints"),
        ({"entropy_weight": -1}, "entropy_weight=-1"),
        ({"inverse_temperature": 0}, "inverse_temperature=0"),
        ({"log_guard": "none"}, "log_guard='none'"),
        ({"bits": 23}, "Set entropy_group_bits, for example 9"),
        ({"entropy_group_bits": 40}, "entropy_group_bits=40"),
    ],
)
def test_refuses_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LFQ(**{"bits": 8, **change})


def test_refuses_what_is_not_a_bit() -> None:
    with pytest.raises(ValueError, match=r"bits_to_codes: codes run from 0 to 2\. Allowed: 0\.\.1"):
        LFQ(bits=3).bits_to_codes(torch.tensor([0, 1, 2]))
