"""Scores of generated pictures that need more than two sets: the class that a frozen classifier sees, FID and inception score.

The classifier is a linear layer on the pooled features of a frozen network, fitted to the training pictures of the very data set.
Its hash goes into the protocol, and its accuracy on real pictures beside the score: that is the most a generator can reach.
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities import dim_zero_cat

from eval.results import Score
from eval.scorers.base import ItemScorer, Scorer
from eval.scorers.distribution import FrechetDistance
from eval.scorers.networks import InceptionFeatures, PublishedWeights
from eval.scorers.records import RECORDS, ScorerRecord

__all__ = [
    "CLASS_ACCURACY",
    "FID",
    "INCEPTION_SCORE",
    "ClassAccuracy",
    "InceptionScore",
    "LinearClassifier",
    "OfficialNetwork",
    "official_network",
    "official_scorers",
]

CLASS_ACCURACY = ScorerRecord(
    name="class_accuracy",
    unit="1",
    better="higher",
    kind="item",
    needs_reference=False,
    range=(0.0, 1.0),
    source="share of the pictures in which a frozen classifier sees the class that was asked for",
    protocol={"classifier": "linear, on pooled features of the network, fitted to the training pictures of the data set"},
)
FID = ScorerRecord(
    name="fid",
    unit="1",
    better="lower",
    kind="distribution",
    range=(0.0, None),
    source="Heusel et al., arXiv 1706.08500; network and resize of package torch-fidelity. Published figures have 50,000 samples",
    protocol=RECORDS["rfid"].protocol,
    min_items=2,
    download=True,
)
INCEPTION_SCORE = ScorerRecord(
    name="inception_score",
    unit="1",
    better="higher",
    kind="distribution",
    needs_reference=False,
    range=(1.0, 1008.0),
    source="Salimans et al., arXiv 1606.03498; network and resize of package torch-fidelity",
    protocol={"network": RECORDS["rfid"].protocol["network"], "logits": "without bias, 1008", "splits": 1},
    min_items=2,
    download=True,
)


class LinearClassifier(NamedTuple):
    """A linear classifier of features.

    Attributes:
        weight: `(classes, d)` float32, for features as they are.
        bias: `(classes,)` float32.
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, *, classes: int, decay: float = 1e-2, steps: int = 200) -> Self:
        """Fit softmax regression by L-BFGS from zero, in float64, on standardised features; nothing is drawn.

        Args:
            features: `(n, d)`.
            labels: `(n,)` in 0..classes-1.
            classes: how many there are; each needs at least one item.
            decay: half the squared norm of the weights counts so much beside the mean cross entropy.
            steps: of the optimizer, at most.

        Raises:
            ValueError: a class without items, or labels outside the range.
        """
        counts = torch.bincount(labels[labels >= 0], minlength=classes)
        if int(labels.min()) < 0 or len(counts) != classes or int(counts.min()) < 1:
            raise ValueError(
                f"LinearClassifier.fit: {counts.tolist()} items of each class for classes={classes}. "
                f"Needed: labels 0..{classes - 1}, each at least once."
            )
        x, y = features.double().cpu(), labels.cpu()
        mean, deviation = x.mean(0), x.std(0).clamp(min=1e-6)
        x = (x - mean) / deviation
        weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-5)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(x @ weight.T + bias, y) + decay / 2 * weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        plain = weight.detach() / deviation
        return cls(plain.float(), (bias.detach() - plain @ mean).float())

    def predict(self, features: Tensor) -> Tensor:
        """Give the class of features `(n, d)`, int64 `(n,)`."""
        weight, bias = self.weight.to(features.device), self.bias.to(features.device)
        return F.linear(features.float(), weight, bias).argmax(-1)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of weight and bias, as little-endian float32."""
        digest = hashlib.sha256()
        for tensor in (self.weight, self.bias):
            digest.update(tensor.cpu().contiguous().numpy().astype("<f4").tobytes())
        return digest.hexdigest()


class ClassAccuracy(ItemScorer):
    """1 for a picture whose class the classifier sees, 0 for another.

    Args:
        record: of the scorer.
        features: uint8 pictures `(b, 3, h, w)` to `(b, d)`.
        classifier: of these features.
    """

    labels: list[Tensor]

    def __init__(self, record: ScorerRecord, features: Callable[[Tensor], Tensor], classifier: LinearClassifier) -> None:
        super().__init__(record)
        self.features = features
        self.classifier = classifier
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(
        self, pictures: Tensor, labels: Tensor, *, index: Tensor | None = None, failed: Tensor | None = None
    ) -> None:
        """Add pictures, uint8 `(b, 3, h, w)`, and the classes `(b,)` that were asked for."""
        seen = self.classifier.predict(self.features(pictures))
        self._add((seen == labels.to(seen.device)).double(), index, failed)
        self.labels.append(labels.to(seen.device))

    def by_class(self) -> dict[int, float]:
        """Give the accuracy of each class that was asked for, failed items left out."""
        with self.sync_context():
            values, labels = dim_zero_cat(self.values).cpu(), dim_zero_cat(self.labels).cpu()
        return {int(label): float(values[labels == label].nanmean()) for label in labels.unique()}


class InceptionScore(Scorer):
    """exp of the mean divergence of each picture's class probabilities from their mean.

    Args:
        record: of the scorer.
        logits: uint8 pictures `(b, 3, h, w)` to `(b, k)`.
    """

    probabilities: list[Tensor]
    failures: Tensor

    def __init__(self, record: ScorerRecord, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__(record)
        self.logits = logits
        self.add_state("probabilities", default=[], dist_reduce_fx="cat")
        self.add_state("failures", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, pictures: Tensor, *, failed: Tensor | None = None) -> None:
        """Add pictures; those that `failed` `(b,)` are counted only."""
        found = self.logits(pictures).double().softmax(-1)
        if failed is not None:
            good = ~failed.to(found.device)
            self.failures += int((~good).sum())
            found = found[good]
        self.probabilities.append(found)

    def compute(self) -> Tensor:
        found = dim_zero_cat(self.probabilities)
        tiny = torch.finfo(found.dtype).tiny
        divergence = found * (found.clamp(min=tiny).log() - found.mean(0, keepdim=True).clamp(min=tiny).log())
        return divergence.sum(1).mean().exp()

    def result(self, *, seed: int = 0) -> Score:
        with self.sync_context():
            n, failed = len(dim_zero_cat(self.probabilities)), int(self.failures)
        return Score(mean=float(self.compute()) if n >= self.record.min_items else None, n=n, failed=failed)


class OfficialNetwork(InceptionFeatures):
    """The network of FID, giving class scores too; one run of it serves both scores."""

    weights = PublishedWeights(InceptionFeatures.weights.url, "kid_mbv2, pfd64_mbv2, class_accuracy")
    outputs = ("2048", "logits_unbiased")

    def logits(self, pictures: Tensor) -> Tensor:
        """Give class scores without bias `(b, 1008)` of uint8 pictures."""
        return self._once(pictures)[1]


def official_network() -> OfficialNetwork:
    """Give the published network.

    Raises:
        ModuleNotFoundError: package torch-fidelity is not installed.
        WeightsUnavailableError: the weights are neither on this machine nor to be had.
    """
    return OfficialNetwork("fid")


def official_scorers(network: OfficialNetwork) -> tuple[FrechetDistance, InceptionScore]:
    """Give fresh scorers for FID and inception score."""
    distance = FrechetDistance(FID, network.pooled, dimensions=network.dimensions, sha256=network.sha256)
    return distance, InceptionScore(INCEPTION_SCORE.with_protocol(sha256=network.sha256), network.logits)
