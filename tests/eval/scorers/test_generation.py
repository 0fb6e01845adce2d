"""Scores of samples: the frozen classifier, the accuracy it gives, the inception score, and the official network's absence."""

import math

import pytest
import torch
from torchmetrics.image.inception import InceptionScore as TheirInceptionScore

from eval.scorers.generation import (
    CLASS_ACCURACY,
    INCEPTION_SCORE,
    ClassAccuracy,
    InceptionScore,
    LinearClassifier,
    official_network,
)
from eval.scorers.networks import WeightsUnavailableError


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def clouds():
    """Features of three classes around three centres, on very different scales, and their labels."""
    labels = torch.arange(90) % 3
    centres = torch.randn(3, 8, generator=draws(1)) * 3
    features = centres[labels] + torch.randn(90, 8, generator=draws(2))
    return features * torch.logspace(-3, 3, 8), labels


def test_the_classifier_is_at_the_minimum_of_its_loss(clouds):
    """The gradient of cross entropy plus decay, worked out by hand, is zero on standardised features."""
    features, labels = clouds
    classifier = LinearClassifier.fit(features, labels, classes=3, decay=0.1)
    mean, deviation = features.double().mean(0), features.double().std(0)
    x = (features.double() - mean) / deviation
    weight = classifier.weight.double() * deviation
    bias = classifier.bias.double() + classifier.weight.double() @ mean
    share = (x @ weight.T + bias).softmax(-1) - torch.nn.functional.one_hot(labels, 3)
    assert float((share.T @ x / len(x) + 0.1 * weight).abs().max()) < 1e-3
    assert float(share.mean(0).abs().max()) < 1e-3
    assert float((classifier.predict(features) == labels).double().mean()) > 0.95


def test_the_classifier_repeats_and_has_a_hash(clouds):
    features, labels = clouds
    first, again = (LinearClassifier.fit(features, labels, classes=3) for _ in range(2))
    assert first.sha256 == again.sha256
    assert first.sha256 != LinearClassifier.fit(features[3:], labels[3:], classes=3).sha256
    with pytest.raises(ValueError, match=r"\[30, 30, 30, 0\] items of each class"):
        LinearClassifier.fit(features, labels, classes=4)
    with pytest.raises(ValueError, match=r"labels 0\.\.2"):
        LinearClassifier.fit(features, labels - 1, classes=3)


def test_class_accuracy_counts_items_and_failures():
    classifier = LinearClassifier(torch.eye(3), torch.zeros(3))
    scorer = ClassAccuracy(CLASS_ACCURACY, lambda pictures: pictures[:, :, 0, 0].float(), classifier)
    seen = torch.tensor([0, 1, 2, 2, 0])
    pictures = torch.nn.functional.one_hot(seen, 3).to(torch.uint8)[:, :, None, None]
    scorer.update(pictures[:3], torch.tensor([0, 1, 1]), index=torch.arange(3))
    scorer.update(pictures[3:], torch.tensor([2, 0]), index=torch.arange(3, 5), failed=torch.tensor([False, True]))
    score = scorer.result()
    assert (score.mean, score.n, score.failed) == (0.75, 4, 1)
    by_class = scorer.by_class()
    assert (by_class[1], by_class[2], by_class[0]) == (0.5, 1.0, 1.0)


def test_inception_score_is_that_of_torchmetrics():
    logits = torch.randn(40, 12, generator=draws()) * 2

    class Table(torch.nn.Module):
        num_features = 12

        def forward(self, pictures):
            return logits[pictures[:, 0, 0, 0].long()]

    pictures = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    theirs = TheirInceptionScore(feature=Table(), splits=1)
    theirs.update(pictures)
    ours = InceptionScore(INCEPTION_SCORE, Table())
    for part in pictures.split(16):
        ours.update(part)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()[0]), rel=1e-5)
    failed = torch.zeros(40, dtype=torch.bool)
    failed[3:] = True
    few = InceptionScore(INCEPTION_SCORE, Table())
    few.update(pictures, failed=failed)
    assert (few.result().n, few.result().failed) == (3, 37)
    assert few.result().mean >= 1


def test_inception_score_of_sure_and_of_equal_predictions():
    sure = InceptionScore(INCEPTION_SCORE, lambda pictures: torch.eye(5) * 1e3)
    sure.update(torch.zeros(5, 3, 8, 8, dtype=torch.uint8))
    assert float(sure.compute()) == pytest.approx(5.0)
    equal = InceptionScore(INCEPTION_SCORE, lambda pictures: torch.zeros(5, 4))
    equal.update(torch.zeros(5, 3, 8, 8, dtype=torch.uint8))
    assert float(equal.compute()) == pytest.approx(1.0)
    assert math.isfinite(equal.result().mean)


def test_official_scores_without_their_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsUnavailableError, match=r"scorer fid: .*class_accuracy"):
        official_network()
