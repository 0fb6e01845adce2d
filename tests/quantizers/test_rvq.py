"""RVQ: public fixtures of two libraries, depths, dropout, learning."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from zoo.quantizers import RVQ, VQ, Grouped, Projected


def load(quantizer: RVQ, case: Any, prefix: str) -> RVQ:
    state: dict[str, torch.Tensor] = {"clock.steps": torch.tensor(0)}
    for j in range(len(quantizer.layers)):
        public = f"{prefix}.layers.{j}._codebook."
        state |= {
            f"layers.{j}.codebook": case.weights[public + "embed"][0],
            f"layers.{j}.cluster_size": case.weights[public + "cluster_size"][0],
            f"layers.{j}.codebook_sum": case.weights[public + "embed_avg"][0],
            f"layers.{j}.initialized": case.weights[public + "initted"],
            f"layers.{j}.clock.steps": torch.tensor(0),
        }
    quantizer.load_state_dict(state)
    return quantizer


def from_public(case: Any, name: str) -> RVQ:
    kwargs = case.config["subcases"][name]["kwargs"]
    quantizer = RVQ(
        dim=kwargs.get("codebook_dim", kwargs["dim"]),
        codebook_size=kwargs["codebook_size"],
        num_codebooks=kwargs["num_quantizers"],
        decay=kwargs.get("decay", 0.8),
        commitment_weight=1.0,
        estimator="rotation" if kwargs.get("rotation_trick", True) else "straight_through",
        shared=kwargs.get("shared_codebook", False),
        gradient_scale="per_depth",
    )
    return load(quantizer, case, name).train()


@pytest.mark.parametrize("name", ["plain", "default_rotation", "projected", "shared"])
def test_parity(public_case: Callable[[str], Any], name: str) -> None:
    case = public_case("quantizers/rvq")
    io, rvq = case.sub(name), from_public(case, name)
    quantizer: Projected | RVQ = rvq
    if name == "projected":
        quantizer = Projected(rvq, dim=16)
        for part in ("project_in", "project_out"):
            layer = getattr(quantizer, part)
            layer.load_state_dict({key: case.weights[f"{name}.{part}.{key}"] for key in ("weight", "bias")})
    x = io["x"].clone().requires_grad_()
    codes = quantizer.encode(x)
    assert torch.equal(codes, io["indices"])
    torch.testing.assert_close(quantizer.decode(codes), io["quantized"], rtol=0, atol=1e-5)
    torch.testing.assert_close(rvq.vectors(codes).movedim(-2, 0), io["all_codes"], rtol=0, atol=1e-5)

    rvq.freeze_codebook()
    result = quantizer(x)
    torch.testing.assert_close(result.x, io["train_quantized"], rtol=0, atol=1e-5)
    torch.testing.assert_close(result.stats["commitment"], io["commit_losses"], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad((result.x * io["st_weight"]).sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, io["st_grad"], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(result.loss * rvq.depth, x)  # upstream adds the depths up, we average them
    torch.testing.assert_close(gradient, io["commit_grad"], rtol=0, atol=1e-5)

    rvq.freeze_codebook(False)
    assert torch.equal(quantizer(x).codes, io["train_step_indices"])
    for j, layer in enumerate(rvq.layers):
        torch.testing.assert_close(layer.codebook, io[f"after_step.{j}.embed"][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.codebook_sum, io[f"after_step.{j}.embed_avg"][0], rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.cluster_size, io[f"after_step.{j}.cluster_size"][0], rtol=0, atol=1e-5)


def test_parity_of_dropped_and_short_codes(public_case: Callable[[str], Any]) -> None:
    case = public_case("quantizers/rvq")
    io, rvq = case.sub("dropout_capable"), from_public(case, "dropout_capable")
    torch.testing.assert_close(rvq.decode(io["indices"][..., :2]), io["output_from_short"], rtol=0, atol=1e-5)
    torch.testing.assert_close(rvq.decode(io["indices_dropped"]), io["output_from_dropped"], rtol=0, atol=1e-5)
    rvq.freeze_codebook()
    kept = random.Random(5).randrange(1, 4) + 1
    result = rvq(io["x"], depth=kept)
    assert torch.equal(result.codes, io["train_fixedseed5_indices"])
    torch.testing.assert_close(result.x, io["train_fixedseed5_quantized"], rtol=0, atol=1e-5)
    torch.testing.assert_close(result.stats["commitment"], io["train_fixedseed5_losses"], rtol=0, atol=1e-5)


def test_parity_of_groups(public_case: Callable[[str], Any]) -> None:
    case = public_case("quantizers/rvq")
    io = case.sub("grouped")
    parts = [load(RVQ(dim=8, codebook_size=24, num_codebooks=2), case, f"grouped.rvqs.{g}") for g in range(2)]
    quantizer = Grouped(parts).eval()
    codes = quantizer.encode(io["x"])
    assert torch.equal(codes, torch.cat(list(io["indices"]), -1))
    torch.testing.assert_close(quantizer.decode(codes), io["output_from_indices"], rtol=0, atol=1e-5)


# ------------------------------------------------------------------- RQ-VAE
@pytest.mark.parametrize("name", ["rqvae_shared", "rqvae_separate"])
def test_parity_with_rqvae(public_case: Callable[[str], Any], name: str) -> None:
    case = public_case(f"quantizers/{name}")
    io, public, shared = case.io, case.weights, name == "rqvae_shared"
    depth = io["codes"].shape[-1]
    sizes = [len(public[f"quantizer.codebooks.{j}.cluster_size_ema"]) for j in range(depth)]
    rvq = RVQ(
        dim=io["z_e_code_shape"].shape[-1],
        codebook_size=sizes,
        num_codebooks=depth,
        shared=shared,
        update_order="per_depth",
        commitment_weight=1.0,
    )
    for j, layer in enumerate(rvq.layers):
        names = f"quantizer.codebooks.{j}."
        layer.set_codebook(public[names + "weight"][:-1], cluster_size=public[names + "cluster_size_ema"])
        layer.codebook_sum.copy_(public[names + "embed_ema"])
    z = io["z_e_code_shape"].clone().requires_grad_()
    codes = rvq.encode(z)
    assert torch.equal(codes, io["codes"])
    torch.testing.assert_close(rvq.vectors(codes), io["code_embeddings_per_depth"], rtol=0, atol=1e-5)
    torch.testing.assert_close(rvq.distances(z)[0], io["distances_depth0"], rtol=0, atol=1e-4)
    if "soft_codes_temp0.5" in io:
        soft = torch.stack([torch.softmax(-distance / 0.5, -1) for distance in rvq.distances(z[:1])], -2)
        torch.testing.assert_close(soft, io["soft_codes_temp0.5"], rtol=0, atol=1e-4)
    result = rvq.eval()(z)
    torch.testing.assert_close(result.loss, io["commitment_loss"][0], rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(result.x.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))  # once, not once per depth

    assert torch.equal(rvq.train()(z).codes, io["train_step_codes"])
    for j, layer in enumerate(rvq.layers):
        names = f"after_train_step.quantizer.codebooks.{j}."
        torch.testing.assert_close(layer.codebook, io[names + "weight"][:-1], rtol=0, atol=1e-4)
        torch.testing.assert_close(layer.codebook_sum, io[names + "embed_ema"], rtol=0, atol=1e-4)
        torch.testing.assert_close(layer.cluster_size, io[names + "cluster_size_ema"], rtol=0, atol=1e-4)


def test_update_order_matters_for_a_shared_codebook() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"dim": 4, "codebook_size": 8, "num_codebooks": 3, "shared": True, "decay": 0.1}
    together, stepwise = RVQ(**options, kmeans_iterations=0), RVQ(**options, kmeans_iterations=0, update_order="per_depth")
    assert torch.equal(together(x).codes[:, 0], stepwise(x).codes[:, 0])
    assert not torch.equal(together.layers[0].codebook, stepwise.layers[0].codebook)


# ------------------------------------------------------- against plain loops
@pytest.mark.parametrize("per_item", [False, True])
@pytest.mark.parametrize("scale", ["once", "per_depth"])
@pytest.mark.parametrize("learning", ["ema", "gradient"])
@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
def test_forward_equals_a_loop_over_vq(per_item: bool, scale: str, learning: str, estimator: str) -> None:
    rvq = RVQ(
        dim=4,
        codebook_size=(9, 7, 11),
        num_codebooks=3,
        gradient_scale=scale,
        estimator=estimator,
        learning=learning,
        dropout=0.7 if per_item else 0.0,
        dropout_per="item",
        kmeans_iterations=0,
    ).double()
    rvq.freeze_codebook()
    x = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = rvq.train()(x)
    kept = (result.codes >= 0).sum(-1)  # (6, 5)
    assert (kept.unique().numel() > 1) == per_item
    assert torch.equal(kept, kept[:, :1].expand_as(kept))

    y = x.detach().clone().requires_grad_()
    residual, total, out, losses = y, torch.zeros_like(y), torch.zeros_like(y), []
    for j, layer in enumerate(rvq.layers):
        single = VQ(dim=4, codebook_size=layer.codebook_size, estimator=estimator, kmeans_iterations=0).double().eval()
        single.set_codebook(layer.codebook.detach())
        active = (kept > j)[..., None]
        step = single(residual)
        assert torch.equal(torch.where(active, step.codes, -1), result.codes[..., j : j + 1])
        value = step.x.detach() * active
        losses.append(((residual - step.x.detach()) * active).square().mean())
        out = out + step.x * active
        total = total + value
        residual = residual - value
    if scale == "once":
        from zoo.quantizers.gradients import estimate

        out = estimate(y, total, estimator)
    torch.testing.assert_close(result.x, out)
    factor = 0.25 if learning == "ema" else 1.25
    torch.testing.assert_close(result.loss.double(), factor * torch.stack(losses).mean(), rtol=1e-6, atol=1e-6)
    (got,) = torch.autograd.grad((result.x * weight).sum() + result.loss, x)
    (expected,) = torch.autograd.grad((out * weight).sum() + 0.25 * torch.stack(losses).mean(), y)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_codebook_gradients_equal_those_of_a_loop() -> None:
    rvq = RVQ(dim=4, codebook_size=9, num_codebooks=3, learning="gradient", kmeans_iterations=0)
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    rvq(x).loss.backward()
    residual = x
    for layer in rvq.layers:
        single = VQ(dim=4, codebook_size=9, learning="gradient", kmeans_iterations=0)
        single.set_codebook(layer.codebook.detach())
        result = single(residual)
        result.loss.backward()
        torch.testing.assert_close(layer.codebook.grad, single.codebook.grad / 3)
        residual = residual - result.x.detach()


def test_learning_equals_a_loop_over_vq() -> None:
    options: dict[str, Any] = {"decay": 0.7, "revive_below": 0.3}
    rvq = RVQ(dim=4, codebook_size=9, num_codebooks=3, seed=2, **options)
    singles = [VQ(dim=4, codebook_size=9, seed=2 * 1024 + j, **options) for j in range(3)]
    for step in range(4):
        x = torch.randn(80, 4, generator=torch.Generator().manual_seed(step))
        rvq(x)
        residual = x
        for single in singles:
            residual = residual - single(residual).x
    for layer, single in zip(rvq.layers, singles, strict=True):
        torch.testing.assert_close(layer.codebook, single.codebook)
        torch.testing.assert_close(layer.cluster_size, single.cluster_size)


# -------------------------------------------------------------------- depth
def test_a_prefix_of_depths_is_the_coarser_code() -> None:
    rvq = RVQ(dim=6, codebook_size=32, num_codebooks=5, decay=0.0)
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    rvq.train()(x)
    rvq.eval()
    codes = rvq.encode(x)
    errors = []
    for depth in range(1, 6):
        assert torch.equal(rvq.encode(x, depth=depth), codes[:, :depth])
        result = rvq(x, depth=depth)
        assert (result.codes[:, depth:] == -1).all()
        assert torch.equal(result.x, rvq.decode(codes[:, :depth]))
        assert torch.equal(rvq.decode(result.codes), result.x)
        errors.append((result.x - x).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4


@pytest.mark.parametrize("per", ["batch", "item"])
def test_dropout_draws_every_depth_and_resumes(per: str) -> None:
    rvq = RVQ(dim=3, codebook_size=8, num_codebooks=4, dropout=0.8, dropout_per=per, dropout_min_depth=2)
    rvq.freeze_codebook()
    x = torch.randn(10, 6, 3, generator=torch.Generator().manual_seed(0))
    drawn = [(rvq.train()(x).codes >= 0).sum(-1)[:, 0] for _ in range(60)]
    counts = torch.stack(drawn).flatten().bincount(minlength=5) / (60 * 10)
    # 0.8 of the draws are uniform over 2, 3, 4 and the others keep all
    torch.testing.assert_close(counts, torch.tensor([0, 0, 0.8 / 3, 0.8 / 3, 0.2 + 0.8 / 3]), rtol=0, atol=0.12)
    assert (torch.stack(drawn).float().std(1).max() > 0) == (per == "item")
    state = rvq.state_dict()
    again = RVQ(dim=3, codebook_size=8, num_codebooks=4, dropout=0.8, dropout_per=per, dropout_min_depth=2).train()
    again.freeze_codebook()
    again.load_state_dict(state)
    assert torch.equal(again(x).codes, rvq(x).codes)
    assert (rvq.eval()(x).codes >= 0).all()


def test_traced_walk_equals_the_eager_one() -> None:
    rvq = RVQ(dim=3, codebook_size=8, num_codebooks=4)
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    for kept in (4, 2, torch.arange(40) % 5):
        eager, traced = rvq._descend(rows, kept, slope=True), rvq._descend_whole(rows, kept, slope=True)
        assert torch.equal(eager.codes, traced.codes)
        for one, other in zip(eager[1:], traced[1:], strict=True):
            torch.testing.assert_close(one, other)


def test_dropped_depths_learn_nothing() -> None:
    rvq = RVQ(dim=3, codebook_size=8, num_codebooks=3, kmeans_iterations=0, decay=0.5)
    before = [layer.codebook.clone() for layer in rvq.layers]
    rvq.train()(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), depth=2)
    moved = [not torch.equal(layer.codebook, old) for layer, old in zip(rvq.layers, before, strict=True)]
    assert moved == [True, True, False]
    assert [layer.clock.value for layer in rvq.layers] == [1, 1, 0]


def test_one_bad_vector_spoils_only_itself() -> None:
    rvq = RVQ(dim=3, codebook_size=8, num_codebooks=3, revive_below=0.5)
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    x[5] = float("nan")
    for _ in range(3):
        result = rvq.train()(x)
    good = torch.arange(40) != 5
    assert torch.isfinite(result.x[good]).all()
    assert all(torch.isfinite(layer.codebook).all() for layer in rvq.layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_codebooks": 0}, "num_codebooks=0"),
        ({"codebook_size": (8, 8)}, "one number, or one per depth"),
        ({"codebook_size": (8, 8, 9), "shared": True}, "equal numbers if shared"),
        ({"gradient_scale": "twice"}, "gradient_scale='twice'"),
        ({"dropout": 2}, "dropout=2"),
        ({"dropout_min_depth": 4}, "dropout_min_depth=4"),
        ({"distance": "cosine"}, "distance='cosine'. Allowed: 'euclidean', 'cosine_search'"),
        ({"update_order": "per_depth", "learning": "gradient"}, "running averages"),
        ({"decay": 3}, "decay=3"),
    ],
)
def test_refuses_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RVQ(**{"dim": 3, "codebook_size": 8, "num_codebooks": 3, **change})


@pytest.mark.parametrize("depth", [0, 4, 1.0, True])
def test_refuses_depths(depth: Any) -> None:
    rvq = RVQ(dim=3, codebook_size=8, num_codebooks=3)
    for call in (rvq, rvq.encode):
        with pytest.raises(ValueError, match=r"Allowed: an int in 1\.\.3"):
            call(torch.zeros(2, 3), depth=depth)
