"""Scores of two sets of pictures: Fréchet distances, kernel distance, precision and recall, on the features of a network.

An item that failed is left out of both sets and counted, so the two always hold the same items.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from eval.results import Score
from eval.scorers.base import Scorer, check_pictures
from eval.scorers.networks import InceptionFeatures, Networks, PictureFeatures
from eval.scorers.records import ScorerRecord

__all__ = [
    "DistributionScorer",
    "FrechetDistance",
    "KeepsFeatures",
    "KernelDistance",
    "Precision",
    "Recall",
    "covered",
    "frechet_distance",
    "kernel_distance",
    "make",
]

Features = Callable[[Tensor], Tensor]
_ROWS = 1024  # rows of a distance matrix held in memory


# -- formulas --------------------------------------------------------------------------------------------------------


def _root(matrix: Tensor) -> Tensor:
    """Symmetric root of a positive semi-definite matrix; eigenvalues that are rounding noise count as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * _clean(values).sqrt()) @ vectors.T


def _clean(values: Tensor) -> Tensor:
    """Zero where an eigenvalue is below the rounding of the largest."""
    noise = len(values) * torch.finfo(values.dtype).eps * values.abs().max()
    return torch.where(values > noise, values, 0)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """Fréchet distance of two Gaussians, float64: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric: no complex
    numbers, and covariances of fewer items than dimensions are no trouble.

    Args:
        mean_a, mean_b: `(d,)`.
        cov_a, cov_b: `(d, d)`.

    Source: Dowson and Landau 1982; checked against scipy.linalg.sqrtm and the torchmetrics FID.
    """
    mean_a, cov_a, mean_b, cov_b = (value.double() for value in (mean_a, cov_a, mean_b, cov_b))
    root = _root(cov_a)
    product = root @ cov_b @ root
    shared = _clean(torch.linalg.eigvalsh((product + product.T) / 2)).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared
    return distance.clamp(min=0)


def kernel_distance(a: Tensor, b: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3, of features `(n, d)` and `(m, d)`, float64."""
    a, b = a.double(), b.double()
    total_a, total_b, total_ab = (a.new_zeros(()) for _ in range(3))
    for x, y, total, same in ((a, a, total_a, True), (b, b, total_b, True), (a, b, total_ab, False)):
        for first in range(0, len(x), _ROWS):
            rows = x[first : first + _ROWS]
            total += _cubic(rows @ y.T, a.shape[1]).sum()
            if same:
                total -= _cubic(rows.square().sum(1), a.shape[1]).sum()
    n, m = len(a), len(b)
    return total_a / (n * (n - 1)) + total_b / (m * (m - 1)) - 2 * total_ab / (n * m)


def _cubic(products: Tensor, dimensions: int) -> Tensor:
    return (products / dimensions + 1) ** 3


def _squared_distances(rows: Tensor, others: Tensor) -> Tensor:
    products = rows @ others.T
    return (rows.square().sum(1)[:, None] + others.square().sum(1)[None] - 2 * products).clamp(min=0)


def covered(points: Tensor, manifold: Tensor, *, neighbours: int = 3) -> Tensor:
    """Share of `points` `(n, d)` within the k-th neighbour's distance of at least one item of `manifold` `(m, d)`, float64.

    Source: Kynkaanniemi et al., arXiv 1904.06991, equations 1 and 2; an item is not its own neighbour.
    """
    points, manifold = points.double(), manifold.double()
    radii = []
    for first in range(0, len(manifold), _ROWS):
        distances = _squared_distances(manifold[first : first + _ROWS], manifold)
        own = torch.arange(len(distances), device=distances.device)
        distances[own, own + first] = torch.inf
        radii.append(distances.kthvalue(neighbours, dim=1).values)
    reach = torch.cat(radii)
    inside = points.new_zeros(())
    for first in range(0, len(points), _ROWS):
        inside += (_squared_distances(points[first : first + _ROWS], manifold) <= reach).any(1).sum()
    return inside / len(points)


# -- metrics ---------------------------------------------------------------------------------------------------------


class DistributionScorer(Scorer):
    """Two sets of features; a subclass keeps what it needs of them in `_keep` and gives the value in `_value`.

    Args:
        record: of the scorer.
        features: uint8 pictures `(b, 3, h, w)` to `(b, d)`.
        sha256: of the network behind them, for the protocol.
    """

    count: Tensor
    failures: Tensor

    def __init__(self, record: ScorerRecord, features: Features, *, sha256: str | None = None) -> None:
        super().__init__(record if sha256 is None else record.with_protocol(sha256=sha256))
        self.features = features
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("failures", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self, reference: Tensor, reconstruction: Tensor, *, index: Tensor | None = None, failed: Tensor | None = None
    ) -> None:
        """Add a batch of originals and reconstructions, uint8 `(b, 3, h, w)`; items that `failed` `(b,)` are counted only.

        Raises:
            ValueError: a wrong dtype, shape or side.
        """
        check_pictures(self.record, reference, reconstruction)
        self._add(self.features(reference), self.features(reconstruction), failed)

    def _add(self, a: Tensor, b: Tensor, failed: Tensor | None) -> None:
        """Add features `(b, d)` of originals and reconstructions."""
        if failed is not None and bool(failed.any()):
            good = ~failed.to(a.device)
            a, b = a[good], b[good]
            self.failures += len(good) - len(a)
        self.count += len(a)
        self._keep(a.detach(), b.detach())

    def _keep(self, a: Tensor, b: Tensor) -> None:
        raise NotImplementedError

    def _value(self) -> Tensor:
        raise NotImplementedError

    def compute(self) -> Tensor:
        """Give the value, float64.

        Raises:
            ValueError: fewer items than this score needs.
        """
        if int(self.count) < self.record.min_items:
            raise ValueError(
                f"{self.record.name}: {int(self.count)} items ({int(self.failures)} failed). "
                f"Needed: at least {self.record.min_items}."
            )
        return self._value()

    def result(self, *, seed: int = 0) -> Score:
        """Give the value; it has no confidence interval."""
        with self.sync_context():
            n, failed = int(self.count), int(self.failures)
        value = float(self.compute()) if n >= self.record.min_items else None
        return Score(mean=value, ci95=None, n=n, failed=failed)


class FrechetDistance(DistributionScorer):
    """Fréchet distance of the features; `axes` projects on the originals' leading principal axes first.

    Only sums are kept, so the memory does not grow with the number of pictures.
    """

    def __init__(
        self, record: ScorerRecord, features: Features, *, dimensions: int, axes: int | None = None, sha256: str | None = None
    ) -> None:
        super().__init__(record, features, sha256=sha256)
        self.axes = axes
        for side in ("a", "b"):
            self.add_state(f"sum_{side}", default=torch.zeros(dimensions, dtype=torch.float64), dist_reduce_fx="sum")
            square = torch.zeros(dimensions, dimensions, dtype=torch.float64)
            self.add_state(f"product_{side}", default=square, dist_reduce_fx="sum")

    def _keep(self, a: Tensor, b: Tensor) -> None:
        for side, features in (("a", a.double()), ("b", b.double())):
            getattr(self, f"sum_{side}").add_(features.sum(0))
            getattr(self, f"product_{side}").add_(features.T @ features)

    def _moments(self, side: str) -> tuple[Tensor, Tensor]:
        """Mean and covariance (divided by n - 1), on the CPU: eigenvalues there do not depend on the device."""
        n = int(self.count)
        mean = getattr(self, f"sum_{side}").cpu() / n
        cov = (getattr(self, f"product_{side}").cpu() - n * torch.outer(mean, mean)) / (n - 1)
        return mean, (cov + cov.T) / 2

    def _value(self) -> Tensor:
        (mean_a, cov_a), (mean_b, cov_b) = self._moments("a"), self._moments("b")
        if self.axes is None:
            return frechet_distance(mean_a, cov_a, mean_b, cov_b)
        leading = torch.linalg.eigh(cov_a).eigenvectors[:, -self.axes :]
        a, b = leading.T @ mean_a, leading.T @ mean_b
        return frechet_distance(a, leading.T @ cov_a @ leading, b, leading.T @ cov_b @ leading)


class KeepsFeatures(DistributionScorer):
    """Keeps the features of all items; batches of one network share their memory between scorers."""

    a: list[Tensor]
    b: list[Tensor]

    def __init__(self, record: ScorerRecord, features: Features, *, sha256: str | None = None) -> None:
        super().__init__(record, features, sha256=sha256)
        self.add_state("a", default=[], dist_reduce_fx="cat")
        self.add_state("b", default=[], dist_reduce_fx="cat")

    def _keep(self, a: Tensor, b: Tensor) -> None:
        self.a.append(a)
        self.b.append(b)


class KernelDistance(KeepsFeatures):
    """Kernel distance times 1,000."""

    def _value(self) -> Tensor:
        return 1000 * kernel_distance(dim_zero_cat(self.a), dim_zero_cat(self.b))


class Precision(KeepsFeatures):
    """Share of the reconstructions that lie in the neighbourhood of an original."""

    def _value(self) -> Tensor:
        return covered(dim_zero_cat(self.b), dim_zero_cat(self.a), neighbours=self.record.protocol["neighbours"])


class Recall(KeepsFeatures):
    """Share of the originals that lie in the neighbourhood of a reconstruction."""

    def _value(self) -> Tensor:
        return covered(dim_zero_cat(self.a), dim_zero_cat(self.b), neighbours=self.record.protocol["neighbours"])


def make(record: ScorerRecord, networks: Networks) -> DistributionScorer:
    """Build the scorer of a record; networks are taken from, and put into, `networks`."""
    if record.name == "rfid":
        if ("inception", 299) not in networks:
            networks["inception", 299] = InceptionFeatures(record.name)
        inception = networks["inception", 299]
        return FrechetDistance(record, inception.pooled, dimensions=inception.dimensions, sha256=inception.sha256)
    network = PictureFeatures.shared(record, networks)
    kind = record.name.partition("_")[0]
    if kind in ("fd", "pfd64"):
        axes = 64 if kind == "pfd64" else None
        return FrechetDistance(record, network.pooled, dimensions=network.dimensions, axes=axes, sha256=network.sha256)
    return _KINDS[kind](record, network.pooled, sha256=network.sha256)


_KINDS: dict[str, type[KeepsFeatures]] = {"kid": KernelDistance, "precision": Precision, "recall": Recall}
