"""VQ: public fixtures, the search, learning the codebook."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from zoo.quantizers import VQ, Grouped, Projected
from zoo.quantizers.gradients import rotate
from zoo.quantizers.learning import kmeans
from zoo.quantizers.search import nearest, search_table

PLAIN = ["plain", "rotation", "cosine", "cosine_rotation", "image_fmap"]


def from_public(case: Any, name: str, **changes: Any) -> VQ:
    kwargs = case.config["subcases"][name]["kwargs"]
    vq = VQ(
        dim=kwargs.get("codebook_dim", kwargs["dim"]),
        codebook_size=kwargs["codebook_size"],
        decay=kwargs.get("decay", 0.8),
        commitment_weight=kwargs.get("commitment_weight", 1.0),
        distance="cosine" if kwargs.get("use_cosine_sim") else "euclidean",
        estimator="rotation" if kwargs["rotation_trick"] else "straight_through",
        **changes,
    )
    head = changes.get("seed", 0)  # the heads case keeps its codebooks along the first axis
    public = {key: case.weights[f"{name}._codebook.{key}"] for key in ("embed", "cluster_size", "embed_avg", "initted")}
    vq.load_state_dict(
        {
            "codebook": public["embed"][head],
            "cluster_size": public["cluster_size"][head],
            "codebook_sum": public["embed_avg"][head],
            "initialized": public["initted"],
            "clock.steps": torch.tensor(0),
        }
    )
    return vq.train()


def channels_last(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.movedim(1, -1) if name == "image_fmap" else tensor


@pytest.mark.parametrize("name", [*PLAIN, "projected", "heads_separate"])
def test_parity(public_case: Callable[[str], Any], name: str) -> None:
    case = public_case("quantizers/vq")
    io = {key: channels_last(name, t) if t.ndim >= 3 else t for key, t in case.sub(name).items()}
    if name == "projected":
        quantizer = Projected(from_public(case, name), dim=16)
        for part in ("project_in", "project_out"):
            layer = getattr(quantizer, part)
            layer.load_state_dict({key: case.weights[f"{name}.{part}.{key}"] for key in ("weight", "bias")})
        books = [quantizer.quantizer]
    elif name == "heads_separate":
        quantizer = Grouped([from_public(case, name, seed=head) for head in range(2)])
        books = list(quantizer.parts)
    else:
        quantizer = from_public(case, name)
        books = [quantizer]
    for book in books:
        book.freeze_codebook()
    x = io["x"].clone().requires_grad_()
    result = quantizer(x)
    codes = case.sub(name)["indices"].reshape(result.codes.shape)
    assert torch.equal(result.codes, codes)
    assert torch.equal(quantizer.encode(x), codes)
    torch.testing.assert_close(result.x, io["train_quantized"], rtol=0, atol=1e-5)
    torch.testing.assert_close(quantizer.decode(codes), io["output_from_indices"], rtol=0, atol=1e-5)
    torch.testing.assert_close(result.loss, io["commit_loss"][0], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad((result.x * io["st_weight"]).sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, io["st_grad"], rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(result.loss, x)
    torch.testing.assert_close(gradient, io["commit_grad"], rtol=0, atol=1e-5)

    for book in books:
        book.freeze_codebook(False)
    quantizer(io["x"])
    for head, book in enumerate(books):
        raw = case.sub(name)
        torch.testing.assert_close(book.codebook, raw["after_step.embed"][head], rtol=0, atol=1e-5)
        torch.testing.assert_close(book.codebook_sum, raw["after_step.embed_avg"][head], rtol=0, atol=1e-5)
        torch.testing.assert_close(book.cluster_size, raw["after_step.cluster_size"][head], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["kmeans", "kmeans_cos"])
def test_kmeans_parity(public_case: Callable[[str], Any], name: str) -> None:
    io = public_case("quantizers/vq").sub(name)
    means, counts = kmeans(io["samples"][0], io["initial_means"][0], iterations=10, cosine=name == "kmeans_cos")
    torch.testing.assert_close(means, io["means_after_10"][0], rtol=0, atol=1e-5)
    assert torch.equal(counts, io["bins"][0].float())


# ------------------------------------------------------------------ search
@pytest.mark.parametrize(("count", "dim", "size"), [(1, 3, 1), (700, 4, 33), (70, 2, 20_000), (2500, 8, 300)])
def test_search_equals_a_table_of_distances(count: int, dim: int, size: int) -> None:
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    codebook = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    assert torch.equal(nearest(rows, search_table(codebook)), torch.cdist(rows, codebook).argmin(-1))
    cosine = (F.normalize(rows, dim=-1) @ F.normalize(codebook, dim=-1).t()).argmax(-1)
    assert torch.equal(nearest(rows, search_table(codebook, "cosine")), cosine)


def test_ties_go_to_the_first_code() -> None:
    codebook = torch.tensor([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]).repeat(300, 1)
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-4.0, 0.0]])
    assert nearest(rows, search_table(codebook)).tolist() == [1, 1, 2]


def test_distances_and_soft_codes() -> None:
    vq = VQ(dim=4, codebook_size=9)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    distances = vq.distances(x)
    torch.testing.assert_close(distances, (x[..., None, :] - vq.codebook).square().sum(-1))
    assert torch.equal(distances.argmin(-1), vq.encode(x)[..., 0])
    torch.softmax(-distances, -1)[..., 0].sum().backward()
    assert x.grad.abs().sum() > 0


# --------------------------------------------------------------- gradients
def test_rotation_is_a_rotation() -> None:
    """The value is q, and the gradient is the transpose of a matrix R with R x = q and R R^T = (|q|/|x|)^2."""
    generator = torch.Generator().manual_seed(4)
    x, q = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    assert torch.equal(rotate(x, q), q)
    rows = [torch.autograd.grad(rotate(x, q)[j], x)[0] for j in range(6)]
    matrix = torch.stack(rows)
    ratio = (q.norm() / x.norm()).item()
    torch.testing.assert_close(matrix @ x.detach(), q)
    torch.testing.assert_close(matrix @ matrix.t(), torch.eye(6, dtype=torch.float64) * ratio**2)
    torch.testing.assert_close(torch.linalg.det(matrix).item(), ratio**6)


def test_rotation_of_opposite_and_zero_vectors_is_finite() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    rotate(x, torch.tensor([[-2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_estimator_works_in_eval_mode() -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    VQ(dim=3, codebook_size=5).eval()(x).x.sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 3))


def test_legacy_loss_is_a_choice_of_weights() -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    usual = VQ(dim=3, codebook_size=5, learning="gradient", kmeans_iterations=0)
    legacy = VQ(dim=3, codebook_size=5, learning="gradient", kmeans_iterations=0, commitment_weight=1.0, codebook_weight=0.25)
    usual(x).loss.backward()
    legacy(x).loss.backward()
    torch.testing.assert_close(legacy.codebook.grad, usual.codebook.grad * 0.25)


def test_codebook_gradient_is_the_pull_of_its_vectors() -> None:
    vq = VQ(dim=3, codebook_size=4, learning="gradient", kmeans_iterations=0)
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    result = vq(x)
    result.loss.backward()
    expected = torch.zeros(4, 3)
    for row, code in zip(x, result.codes[:, 0], strict=True):
        expected[code] += 2 * (vq.codebook.detach()[code] - row) / x.numel()
    torch.testing.assert_close(vq.codebook.grad, expected)


# ------------------------------------------------------------- EMA learning
def blobs(count: int = 400, centres: int = 8, dim: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(centres, dim, generator=generator) * 5
    which = torch.arange(count) % centres
    return middles[which] + torch.randn(count, dim, generator=generator) * 0.01, middles


def test_ema_follows_the_means() -> None:
    x, middles = blobs()
    vq = VQ(dim=3, codebook_size=8, kmeans_iterations=0, decay=0.5)
    vq.set_codebook(middles + 0.3)
    for _ in range(20):
        vq(x)
    assert torch.cdist(middles, vq.codebook).amin(-1).max() < 0.01
    assert vq.cluster_size.sum() == pytest.approx(400, rel=1e-3)


def test_kmeans_start_on_the_first_batch() -> None:
    x, _ = blobs()
    vq = VQ(dim=3, codebook_size=40, decay=1.0)
    assert not vq.initialized
    vq.eval()(x)
    assert not vq.initialized
    result = vq.train()(x)
    assert vq.initialized
    assert (result.x - x).square().mean() < 0.01
    before = vq.codebook.clone()
    vq(x + 100)
    torch.testing.assert_close(vq.codebook, before)  # not started again


def test_kmeans_start_with_fewer_vectors_than_codes_keeps_every_code_in_place() -> None:
    vq = VQ(dim=3, codebook_size=50)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) + 10
    for _ in range(3):
        vq.train()(x)
    assert torch.cdist(vq.codebook, x).amin(-1).max() < 0.1


def test_revival_fills_the_averages_too() -> None:
    """A revived code must not slide back: its running sum agrees with its new place."""
    x, _ = blobs()
    vq = VQ(dim=3, codebook_size=64, kmeans_iterations=0, decay=0.9, revive_below=0.5)
    vq.set_codebook(torch.full((64, 3), 1000.0) + torch.arange(64)[:, None])
    revived = 0.0
    for _ in range(20):
        revived += vq(x).stats["revived_codes"].item()
    assert revived >= 63
    torch.testing.assert_close(vq.codebook_sum / vq.cluster_size[:, None], vq.codebook, rtol=1e-3, atol=1e-3)
    assert vq(x).x.sub(x).square().mean() < 0.05


def test_without_revival_dead_codes_stay_dead() -> None:
    x, _ = blobs()
    vq = VQ(dim=3, codebook_size=64, kmeans_iterations=0, decay=0.9)
    vq.set_codebook(torch.full((64, 3), 1000.0) + torch.arange(64)[:, None])
    for _ in range(20):
        result = vq(x)
    assert result.stats["dead_codes"].item() == 63


def test_gradient_codebook_is_revived_too() -> None:
    x, _ = blobs()
    vq = VQ(dim=3, codebook_size=16, learning="gradient", kmeans_iterations=0, decay=0.5, revive_below=0.5)
    vq.set_codebook(torch.full((16, 3), 1000.0) + torch.arange(16)[:, None])
    for _ in range(15):  # the first winner's count of 400 has to decay
        vq(x)
    assert torch.cdist(vq.codebook.detach(), x).amin(-1).max() < 5


def test_bad_vectors_do_not_enter_the_codebook() -> None:
    x, _ = blobs()
    spoiled = x.clone()
    spoiled[::7] = float("nan")
    spoiled[1::7] = float("inf")
    keep = torch.isfinite(spoiled).all(-1)
    first, second = (VQ(dim=3, codebook_size=8, revive_below=1.0) for _ in range(2))
    for _ in range(3):
        first(spoiled)
        second(x[keep])
    assert torch.isfinite(first.codebook).all()
    torch.testing.assert_close(first.codebook, second.codebook, rtol=1e-3, atol=1e-2)


def test_frozen_codebook_stays_while_x_still_learns() -> None:
    for learning in ("ema", "gradient"):
        vq = VQ(dim=3, codebook_size=5, learning=learning, kmeans_iterations=0).train()
        vq.freeze_codebook()
        before = vq.codebook.clone()
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
        result = vq(x)
        (result.x.sum() + result.loss).backward()
        assert torch.equal(vq.codebook, before)
        assert vq.codebook.grad is None
        assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_statistics_once(reentrant: bool) -> None:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain, checked = (VQ(dim=3, codebook_size=6, kmeans_iterations=0, decay=0.5) for _ in range(2))
    plain(x).x.sum().backward()
    checkpoint(lambda v: checked(v).x, x, use_reentrant=reentrant).sum().backward()
    assert checked.clock.value == 1
    assert torch.equal(checked.cluster_size, plain.cluster_size)


def test_half_precision_codebook_refuses_to_train() -> None:
    vq = VQ(dim=3, codebook_size=6).to(torch.bfloat16)
    assert vq.eval()(torch.randn(2, 3).bfloat16()).x.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="running averages do not move in torch"):
        vq.train()(torch.randn(2, 3).bfloat16())


def test_training_under_autocast_equals_training_without() -> None:
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    plain, cast = (VQ(dim=3, codebook_size=6, revive_below=0.2) for _ in range(2))
    for step in range(3):
        plain(x + step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast(x + step)
    assert torch.equal(plain.codebook, cast.codebook)
    assert cast.codebook.dtype == torch.float32


def test_training_compiles_with_breaks() -> None:
    torch._dynamo.reset()
    plain, fast = (VQ(dim=3, codebook_size=6, revive_below=0.2) for _ in range(2))
    compiled = torch.compile(fast, backend="eager")
    for step in range(2):
        x = torch.randn(60, 3, generator=torch.Generator().manual_seed(step))
        plain(x)
        compiled(x)
    torch.testing.assert_close(fast.codebook, plain.codebook)


def test_cosine_search_returns_the_code_as_stored() -> None:
    vq = VQ(dim=2, codebook_size=3, distance="cosine_search").eval()
    vq.set_codebook(torch.tensor([[10.0, 0.0], [0.0, 0.1], [-1.0, -1.0]]))
    x = torch.tensor([[0.2, 0.1], [1.0, 9.0], [-3.0, -2.0]])
    assert vq.encode(x)[:, 0].tolist() == [0, 1, 2]
    assert torch.equal(vq(x).x, vq.codebook)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim=0"),
        ({"codebook_size": 2.5}, "codebook_size=2.5"),
        ({"learning": "sgd"}, "learning='sgd'. Allowed: 'ema', 'gradient'"),
        ({"decay": 1.5}, "decay=1.5"),
        ({"commitment_weight": -1}, "commitment_weight=-1"),
        ({"distance": "l1"}, "distance='l1'"),
        ({"estimator": "none"}, "estimator='none'"),
        ({"kmeans_iterations": -1}, "kmeans_iterations=-1"),
        ({"revive_below": float("nan")}, "revive_below=nan"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_refuses_arguments(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQ(**{"dim": 3, "codebook_size": 5, **change})


def test_refuses_a_foreign_codebook() -> None:
    with pytest.raises(ValueError, match=r"codebook has shape \(4, 3\). Allowed: \(5, 3\)"):
        VQ(dim=3, codebook_size=5).set_codebook(torch.zeros(4, 3))
