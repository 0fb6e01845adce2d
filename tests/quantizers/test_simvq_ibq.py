"""SimVQ and IBQ: public fixtures, gradients against the plain formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from zoo.quantizers import IBQ, SimVQ


@pytest.mark.parametrize("name", ["simvq_rotation", "simvq_ste"])
def test_simvq_parity(public_case: Callable[[str], Any], name: str) -> None:
    case = public_case("quantizers/simvq")
    io, kwargs = case.sub(name), case.config["subcases"][name]["kwargs"]
    weight = kwargs.get("commitment_weight", 1.0)
    simvq = SimVQ(
        dim=kwargs["dim"],
        codebook_size=kwargs["codebook_size"],
        frozen_dim=kwargs.get("frozen_codebook_dim"),
        codebook_weight=weight,
        commitment_weight=0.25 * weight,
        estimator="rotation" if kwargs["rotation_trick"] else "straight_through",
    )
    # the public names are ours
    simvq.load_state_dict({key.removeprefix(name + "."): t for key, t in case.weights.items() if key.startswith(name)})
    torch.testing.assert_close(simvq.codebook, io["effective_codebook"], rtol=0, atol=1e-5)
    x = io["x"].clone().requires_grad_()
    result = simvq(x)
    assert torch.equal(result.codes[..., 0], io["indices"])
    torch.testing.assert_close(result.x, io["quantized"], rtol=0, atol=1e-5)
    torch.testing.assert_close(result.loss, io["loss"][0], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad((result.x * io["st_weight"]).sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, io["st_grad"], rtol=0, atol=1e-5)
    gradient, of_weight = torch.autograd.grad(result.loss, (x, simvq.code_transform.weight))
    torch.testing.assert_close(gradient, io["loss_grad"], rtol=0, atol=1e-5)
    torch.testing.assert_close(of_weight, io["loss_grad_transform_weight"], rtol=0, atol=1e-5)


def test_simvq_moves_every_code_and_keeps_the_frozen_ones() -> None:
    simvq = SimVQ(dim=4, codebook_size=50)
    frozen, before = simvq.frozen_codebook.clone(), simvq.codebook.detach().clone()
    optimizer = torch.optim.SGD(simvq.parameters(), lr=0.5)
    simvq(torch.randn(3, 4, generator=torch.Generator().manual_seed(0))).loss.backward()
    optimizer.step()
    assert torch.equal(simvq.frozen_codebook, frozen)
    assert (simvq.codebook - before).abs().amax(-1).min() > 0


def from_public(case: Any) -> IBQ:
    ibq = IBQ(dim=16, codebook_size=64, entropy_weight=0.0)
    ibq.load_state_dict({"codebook": case.weights["quantize.embedding.weight"]})
    return ibq


def test_ibq_parity(public_case: Callable[[str], Any]) -> None:
    case = public_case("quantizers/ibq")
    io = {key: t.movedim(1, -1) if t.ndim == 4 else t for key, t in case.io.items()}
    ibq = from_public(case)
    z = io["z"].clone().requires_grad_()
    result = ibq(z)
    assert torch.equal(result.codes.flatten(), io["indices_flat"])
    torch.testing.assert_close(result.x, io["quantized"], rtol=0, atol=1e-5)
    torch.testing.assert_close(result.loss, io["quant_loss"][0], rtol=0, atol=1e-4)
    of_z, of_codes = torch.autograd.grad((result.x * io["st_weight"]).sum(), (z, ibq.codebook), retain_graph=True)
    torch.testing.assert_close(of_z, io["st_grad_z"], rtol=0, atol=1e-4)
    torch.testing.assert_close(of_codes, io["st_grad_embedding"], rtol=0, atol=1e-4)
    of_z, of_codes = torch.autograd.grad(result.loss, (z, ibq.codebook))
    torch.testing.assert_close(of_z, io["quant_loss_grad_z"], rtol=0, atol=1e-5)
    torch.testing.assert_close(of_codes, io["quant_loss_grad_embedding"], rtol=0, atol=1e-5)


def test_ibq_entropy_parity(public_case: Callable[[str], Any]) -> None:
    case = public_case("quantizers/ibq")
    io = {key: t.movedim(1, -1) if t.ndim == 4 else t for key, t in case.io.items()}
    ibq = from_public(case)
    z = io["z"].clone().requires_grad_()
    plain = ibq(z).loss
    ibq.entropy_weight = 1.0
    result = ibq(z)
    assert result.stats["sample_entropy"].item() == pytest.approx(io["sample_entropy"].item(), abs=1e-5)
    assert result.stats["batch_entropy"].item() == pytest.approx(io["avg_entropy"].item(), abs=1e-4)
    torch.testing.assert_close(result.loss - plain, io["entropy_loss"][0], rtol=0, atol=1e-4)
    of_z, of_codes = torch.autograd.grad(result.loss - plain, (z, ibq.codebook))
    torch.testing.assert_close(of_z, io["entropy_loss_grad_z"], rtol=0, atol=1e-4)
    torch.testing.assert_close(of_codes, io["entropy_loss_grad_embedding"], rtol=0, atol=1e-4)


def test_ibq_in_pieces_equals_the_formula_on_the_whole_table() -> None:
    """More vectors than one piece holds; the reference keeps the full tables that the class avoids."""
    generator = torch.Generator().manual_seed(0)
    ibq = IBQ(dim=3, codebook_size=8, temperature=0.5, entropy_weight=0.3, batch_weight=1.5).double()
    with torch.no_grad():
        ibq.codebook.copy_(torch.randn(8, 3, generator=generator))
    x = torch.randn(2500, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2500, 3, generator=generator, dtype=torch.float64)
    logits = x @ ibq.codebook.t()
    soft, hard = torch.softmax(logits, -1), F.one_hot(logits.argmax(-1), 8).double()
    q = (hard - soft.detach() + soft) @ ibq.codebook
    chosen = ibq.codebook[logits.argmax(-1)]
    loss = F.mse_loss(q, x) + F.mse_loss(chosen.detach(), x) + 0.25 * F.mse_loss(chosen, x.detach())
    cold = torch.softmax(logits / 0.5, -1)
    mean = cold.mean(0)
    loss = loss + 0.3 * (-(cold * cold.log()).sum(-1).mean() + 1.5 * (mean * (mean + 1e-5).log()).sum())
    expected = torch.autograd.grad((q * weight).sum() + loss, (x, ibq.codebook))
    result = ibq(x)
    assert result.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    got = torch.autograd.grad((result.x * weight).sum() + result.loss, (x, ibq.codebook))
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (SimVQ, {"dim": 0}, "dim=0"),
        (SimVQ, {"frozen_dim": 0}, "frozen_dim=0"),
        (SimVQ, {"estimator": "x"}, "estimator='x'"),
        (SimVQ, {"commitment_weight": -1}, "commitment_weight=-1"),
        (IBQ, {"codebook_size": 0}, "codebook_size=0"),
        (IBQ, {"temperature": 0}, "temperature=0"),
        (IBQ, {"batch_weight": "much"}, "batch_weight='much'"),
    ],
)
def test_refuses_arguments(make: type, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**{"dim": 4, "codebook_size": 8, **change})
