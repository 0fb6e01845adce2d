import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from eval.scorers import RECORDS, make_scorers
from eval.scorers.distribution import (
    FrechetDistance,
    KernelDistance,
    Precision,
    Recall,
    covered,
    frechet_distance,
    kernel_distance,
)
from eval.scorers.networks import resized
from zoo.layers.features import load_features


def features(n: int, seed: int, d: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator) @ mixing + 0.3 * seed


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean(0), torch.cov(x.T)


def test_frechet_equals_scipy():
    a, b = features(40, 1).double(), features(30, 2).double()
    (ma, ca), (mb, cb) = moments(a), moments(b)
    root = scipy.linalg.sqrtm(ca.numpy() @ cb.numpy()).real
    expected = float((ma - mb).square().sum()) + np.trace(ca.numpy() + cb.numpy() - 2 * root)
    assert float(frechet_distance(ma, ca, mb, cb)) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_fewer_items_than_dimensions():
    """The trace of the root is the nuclear norm of the product of the centred data, which needs no covariance."""
    a, b = features(6, 1, 30).double(), features(9, 2, 30).double()
    (ma, ca), (mb, cb) = moments(a), moments(b)
    shared = np.linalg.norm((a - ma).numpy() @ (b - mb).numpy().T, "nuc") / np.sqrt(5 * 8)
    expected = float((ma - mb).square().sum() + ca.trace() + cb.trace()) - 2 * shared
    assert float(frechet_distance(ma, ca, mb, cb)) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_equal_sets_is_zero():
    mean, cov = moments(features(20, 3, 30).double())
    assert float(frechet_distance(mean, cov, mean, cov)) == pytest.approx(0, abs=1e-8 * float(cov.trace()))


def test_frechet_of_one_dimension():
    one = torch.ones(1, 1)
    assert float(frechet_distance(torch.zeros(1), 4 * one, torch.full((1,), 3.0), 25 * one)) == pytest.approx(9 + (5 - 2) ** 2)


def test_kernel_distance_equals_a_loop_over_pairs():
    a, b = features(7, 1).double().numpy(), features(5, 2).double().numpy()

    def kernel(x, y):
        return (x @ y / 12 + 1) ** 3

    expected = sum(kernel(a[i], a[j]) for i, j in itertools.permutations(range(7), 2)) / (7 * 6)
    expected += sum(kernel(b[i], b[j]) for i, j in itertools.permutations(range(5), 2)) / (5 * 4)
    expected -= 2 * sum(kernel(x, y) for x in a for y in b) / 35
    assert float(kernel_distance(torch.tensor(a), torch.tensor(b))) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_in_blocks(monkeypatch):
    a, b = features(11, 1).double(), features(9, 2).double()
    whole = float(kernel_distance(a, b))
    monkeypatch.setattr("eval.scorers.distribution._ROWS", 4)
    assert float(kernel_distance(a, b)) == pytest.approx(whole, rel=1e-9)


def test_kernel_distance_equals_torchmetrics():
    a, b = features(11, 1).double(), features(11, 2).double()
    expected = float(poly_mmd(a, b, degree=3, gamma=None, coef=1.0))
    assert float(kernel_distance(a, b)) == pytest.approx(expected, rel=1e-9)


def _covered_by_loops(points: np.ndarray, manifold: np.ndarray, k: int) -> float:
    radii = [sorted(np.linalg.norm(x - y) for j, y in enumerate(manifold) if j != i)[k - 1] for i, x in enumerate(manifold)]
    return float(np.mean([any(np.linalg.norm(p - x) <= r for x, r in zip(manifold, radii, strict=True)) for p in points]))


@pytest.mark.parametrize("rows", [1024, 3])
def test_covered_equals_loops(rows, monkeypatch):
    monkeypatch.setattr("eval.scorers.distribution._ROWS", rows)
    a, b = features(13, 1, 2).double(), features(17, 1, 2).double() + 0.9
    for points, manifold in ((a, b), (b, a)):
        expected = _covered_by_loops(points.numpy(), manifold.numpy(), 3)
        assert 0 < expected < 1
        assert float(covered(points, manifold)) == pytest.approx(expected)


class _Features(nn.Module):
    """The toy features as torchmetrics wants them."""

    num_features = 12

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def test_frechet_scorer_equals_torchmetrics_fid(toys, pair):
    a, b = (part.repeat(4, 1, 1, 1).roll(k, 3) for k, part in enumerate(pair))
    a = torch.cat([a[:12], a[12:].flip(2)])
    ours = FrechetDistance(RECORDS["fd_mbv2"], toys.twelve_features, dimensions=12)
    theirs = FrechetInceptionDistance(feature=_Features(toys.twelve_features)).set_dtype(torch.float64)
    for first in range(0, 24, 5):
        part = slice(first, first + 5)
        ours.update(a[part], b[part])
        theirs.update(a[part], real=True)
        theirs.update(b[part], real=False)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_projection_on_the_originals_axes(toys, pair):
    """With as many axes as dimensions nothing is lost; with fewer it equals projecting the features first."""
    a, b = (part.repeat(4, 1, 1, 1) for part in pair)
    a, b = a.roll(3, 3), b.flip(3)
    whole, all_axes, three = (
        FrechetDistance(RECORDS["pfd64_mbv2"], toys.twelve_features, dimensions=12, axes=axes) for axes in (None, 12, 3)
    )
    for scorer in (whole, all_axes, three):
        scorer.update(a, b)
    assert float(all_axes._value()) == pytest.approx(float(whole._value()), rel=1e-6)
    x, y = (toys.twelve_features(part).double().numpy() for part in (a, b))
    axes = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:3].T
    x, y = x @ axes, y @ axes
    ca, cb = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * scipy.linalg.sqrtm(ca @ cb).real)
    assert float(three._value()) == pytest.approx(expected, rel=1e-4)


def test_failed_items_leave_both_sets(toys, pair):
    a, b = pair
    failed = torch.tensor([False, True, False, False, False, True])
    for kind in (KernelDistance, Precision, Recall):
        record = RECORDS[{"KernelDistance": "kid_mbv2", "Precision": "precision_mbv2", "Recall": "recall_mbv2"}[kind.__name__]]
        some, rest = kind(record, toys.twelve_features), kind(record, toys.twelve_features)
        some.update(a, b, failed=failed)
        rest.update(a[~failed], b[~failed])
        assert (some.result().n, some.result().failed) == (4, 2)
        assert some.result().mean == pytest.approx(rest.result().mean, rel=1e-9)


def test_too_few_items_are_refused(toys, pair):
    scorer = FrechetDistance(RECORDS["fd_mbv2"], toys.twelve_features, dimensions=12)
    scorer.update(pair[0][:2], pair[1][:2], failed=torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"fd_mbv2: 1 items \(1 failed\). Needed: at least 2"):
        scorer.compute()
    assert scorer.result().mean is None


def test_named_scorers_use_the_stated_network_and_size(toys):
    """pfd64 needs 65 pictures, so only those of small sets are run; the features come from the network at 128 px."""
    a = torch.stack([torch.from_numpy(toys.waves(i, 32)) for i in range(4)]).permute(0, 3, 1, 2).contiguous()
    b = 255 - a
    networks = {}
    made = make_scorers(["fd_mbv2", "kid_mbv2", "precision_mbv2"], networks=networks)
    for scorer in made.values():
        scorer.update(a, b)
    with torch.no_grad():
        x, y = (load_features("mobilenet_v2")(resized(part, 128))[1] for part in (a, b))
    assert float(made["kid_mbv2"].compute()) == pytest.approx(1000 * float(kernel_distance(x, y)), rel=1e-6)
    centred = [(part - part.mean(0)).double().numpy() for part in (x, y)]
    shared = np.linalg.norm(centred[0] @ centred[1].T, "nuc") / 3
    spread = sum((part**2).sum() / 3 for part in centred)
    expected = float((x.mean(0) - y.mean(0)).double().square().sum()) + spread - 2 * shared
    assert float(made["fd_mbv2"].compute()) == pytest.approx(expected, rel=1e-4)
    assert list(networks) == [("mobilenet_v2", 128)]
    held = [made[name].a[0].data_ptr() for name in ("kid_mbv2", "precision_mbv2")]
    assert held[0] == held[1], "features of a batch are computed and held once"
    assert make_scorers(["pfd64_mbv2"], networks=networks)["pfd64_mbv2"].axes == 64
    lite0 = make_scorers(["kid_lite0"], networks=networks)["kid_lite0"]
    assert lite0.record.protocol["input_side"] == 224
    assert lite0.record.protocol["sha256"] == load_features("efficientnet_lite0").sha256


def test_input_is_resized_as_stated(toys):
    """Pillow's antialiased bicubic filter gives the same picture up to its rounding to 8 bits."""
    from PIL import Image

    image = torch.from_numpy(toys.waves(2, 48) // 2 + 60)[None, :, :40].permute(0, 3, 1, 2).contiguous()
    pil = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1).float()
    assert float((((resized(image, 32)[0] + 1) * 127.5) - expected).abs().max()) < 1.01
    same = resized(image[:, :, :40], 40)
    torch.testing.assert_close(same, image[:, :, :40].float() / 127.5 - 1)
