"""Scores of two sets of clips: Fréchet and kernel distances of the features of clips."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from eval.clips import Clips
from eval.scorers.distribution import DistributionScorer, KeepsFeatures, KernelDistance, frechet_distance
from eval.scorers.networks import Networks, PictureFeatures
from eval.scorers.records import ScorerRecord
from eval.scorers.video.base import check_clips, stretches

__all__ = ["ClipFeatures", "VideoFrechetDistance", "VideoKernelDistance", "frechet_of_features", "make"]

Covariance = Literal["n", "n - 1"]
_RULES: dict[str, Covariance] = {"divided by n": "n", "divided by n - 1": "n - 1"}


def frechet_of_features(a: Tensor, b: Tensor, *, covariance: Covariance) -> Tensor:
    """Fréchet distance of two sets of features `(n, d)` and `(m, d)`, float64.

    Args:
        a, b: features of at least two items each.
        covariance: what it is divided by: "n" (StyleGAN-V, cd-fvd) or "n - 1" (VideoGPT, MCVD). With few clips the two differ by
            several percent, so a number without its rule cannot be compared.

    Source: checked against tests/parity/video_metrics.
    """
    correction = int(covariance == "n - 1")
    a, b = a.double(), b.double()
    mean_a, mean_b = a.mean(0), b.mean(0)
    if max(len(a), len(b)) > a.shape[1]:
        cov_a, cov_b = (torch.cov(features.T, correction=correction) for features in (a, b))
        return frechet_distance(mean_a, cov_a, mean_b, cov_b)
    rows_a, rows_b = (a - mean_a) / (len(a) - correction) ** 0.5, (b - mean_b) / (len(b) - correction) ** 0.5
    # C_a C_b has the squared singular values of this product as eigenvalues: fewer items than dimensions need no large matrix
    shared = torch.linalg.svdvals(rows_a @ rows_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + rows_a.square().sum() + rows_b.square().sum() - 2 * shared
    return distance.clamp(min=0)


class ClipFeatures:
    """Features of clips by a network of pictures: mean over frames, and root mean square of the change from frame to frame."""

    def __init__(self, network: PictureFeatures) -> None:
        self.network = network
        self.sha256 = network.sha256

    def __call__(self, clips: Clips) -> Tensor:
        """Give `(b, d)` float32; computed once for a batch of clips."""
        key = ("features", self.network.sha256, self.network.side)
        return clips.once(key, lambda: torch.stack([self._of(frames) for frames in clips.frames]))

    def _of(self, frames: Tensor) -> Tensor:
        """Features `(d,)` of one clip, uint8 `(t, 3, h, w)`."""
        pooled = torch.cat([self.network.pooled(part) for part in stretches(frames)])
        change = pooled.diff(dim=0).square().mean(0).sqrt() if len(pooled) > 1 else torch.zeros_like(pooled[0])
        return torch.cat([pooled.mean(0), change])


class _OfClips(DistributionScorer):
    """A scorer of two sets whose features are those of clips: `features` takes `Clips`."""

    def update(self, reference: Clips, reconstruction: Clips, *, index: Tensor | None = None, failed: Tensor | None = None) -> None:
        """Add a batch of originals and reconstructions; clips that `failed` `(b,)` are counted only.

        Raises:
            TypeError: no `Clips`.
            ValueError: other sizes.
        """
        check_clips(self.record, reference, reconstruction)
        self._add(self.features(reference), self.features(reconstruction), failed)


class VideoFrechetDistance(_OfClips, KeepsFeatures):
    """Fréchet distance of features of clips, by the covariance rule that its record states.

    Args:
        record: of the scorer, with `covariance` in its protocol: "divided by n" or "divided by n - 1".
        features: `Clips` to `(b, d)`, of any network.
        sha256: of the network, for the protocol.

    Raises:
        ValueError: no such rule.
    """

    def __init__(self, record: ScorerRecord, features: Callable[[Clips], Tensor], *, sha256: str | None = None) -> None:
        rule = record.protocol.get("covariance")
        if rule not in _RULES:
            raise ValueError(f"scorer {record.name}: covariance {rule!r} in the protocol. Allowed: {', '.join(_RULES)}.")
        super().__init__(record, features, sha256=sha256)  # type: ignore[arg-type]  # features of clips
        self.covariance: Covariance = _RULES[rule]

    def _value(self) -> Tensor:
        a, b = (dim_zero_cat(features).cpu() for features in (self.a, self.b))
        return frechet_of_features(a, b, covariance=self.covariance)


class VideoKernelDistance(_OfClips, KernelDistance):
    """Kernel distance of features of clips, times 1,000."""


def make(record: ScorerRecord, networks: Networks) -> DistributionScorer:
    """Build the scorer of a record; networks are taken from, and put into, `networks`."""
    features = ClipFeatures(PictureFeatures.shared(record, networks))
    if record.name.startswith("video_fd"):
        return VideoFrechetDistance(record, features, sha256=features.sha256)
    return VideoKernelDistance(record, features, sha256=features.sha256)  # type: ignore[arg-type]  # features of clips
