"""The generation scorer: what is a tokenizer worth to a generative model?

    result = evaluate_generation(tokenizer, [Contender(generator, seed=0)], pictures, train_pictures)
    result.save("eval/results/flextok_ar_nano/images128.generate-64-v1.json")

One sample for each real picture, of that picture's class; both sets have the same size and the same classes. Beside the samples two
anchors are scored in the same way: the tokenizer's reconstructions of the real pictures (no generator can be expected to do
better), and other real pictures of the same classes (what the finite number of pictures leaves). `eval.generation_command` is what
`zoo eval generate` runs.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from eval.measure import PointMeter
from eval.protocols import Protocol, default_protocol, noise_seed
from eval.rates import Rate, at_rate, check_rates, ladder
from eval.reconstruction import dataset_of
from eval.results import Dataset, Point, Score, environment, write_atomic
from eval.runner import Batch, Runner, batches, device_name, evaluation_mode, tensors_sha256
from eval.scorers import RECORDS
from eval.scorers.generation import (
    CLASS_ACCURACY,
    ClassAccuracy,
    LinearClassifier,
    OfficialNetwork,
    official_network,
    official_scorers,
)
from eval.scorers.networks import Networks, PictureFeatures
from recipes.data.sampler import seeded
from zoo.generators.base import Generator
from zoo.generators.sequence import SequenceGenerator
from zoo.tokenizer import Tokenizer

__all__ = [
    "BACKBONE",
    "SETS",
    "Contender",
    "GenerationProtocol",
    "GenerationResult",
    "Run",
    "evaluate_generation",
    "load_generation",
]

SCHEMA = 1
BACKBONE = "mbv2"  # the feature network of the scores; tokenizers of this project are trained with another
SETS = tuple(f"{name}_{BACKBONE}" for name in ("kid", "pfd64", "fd", "precision", "recall"))
RANKING_SEEDS = 3


# -- values ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GenerationProtocol:
    """Everything that fixes a number beside tokenizer, generator and data.

    Attributes:
        id: name with version.
        pictures: the reconstruction protocol by whose rule real pictures are cut and decoded ones become 8 bits.
        samples: how many, and of which classes.
        noise: how the draws of a sample follow from the run's seed.
        guidance: scale of classifier-free guidance.
        sampling: options of the generator's `sample`.
        decode: options of the tokenizer's decoder.
        classifier: name of its network, SHA-256 of its weights, accuracy on the real pictures.
        scorers: name -> definition.
    """

    id: str
    pictures: Mapping[str, Any]
    samples: str = "one for each real picture, of its class"
    noise: str = "sample and decoder of item i: noise_seed(seed of the run, i)"
    guidance: float = 1.0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    decode: Mapping[str, Any] = field(default_factory=dict)
    classifier: Mapping[str, Any] = field(default_factory=dict)
    scorers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Contender:
    """One trained generator.

    Attributes:
        generator: in evaluation mode, on the tokenizer's device.
        seed: of the samples, and of the training where it was trained for this.
        training: how it came to be, for the result.
    """

    generator: Generator
    seed: int
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one generator reached.

    Attributes:
        seed: of samples and, where `training` says so, of the training.
        weights_sha256: of the generator's tensors.
        training: how it came to be.
        nll_bits_per_picture: bits that the generator needs for a real picture's tokens, the class given; None where its
            objective gives no likelihood.
        points: scores at each rate.
        class_accuracy_by_class: at the last rate.
        speed: seconds for a sample's tokens and for its picture, batch, device, threads.
    """

    seed: int
    weights_sha256: str
    training: Mapping[str, Any]
    nll_bits_per_picture: float | None
    points: tuple[Point, ...]
    class_accuracy_by_class: Mapping[str, float]
    speed: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What a result file holds.

    Attributes:
        tokenizer, tokenizer_sha256: whose tokens were made.
        generator: name, family, configuration, parameters, unit and objective.
        dataset: the real pictures.
        train_dataset: those that the classifier was fitted to, and the generator trained on where it was trained for this.
        protocol: how.
        bits_per_picture: length of a sample's tokens at each rate.
        runs: one for each seed.
        anchors: scores of reconstructions and of other real pictures.
        environment: versions, commit, date.
    """

    tokenizer: str
    tokenizer_sha256: str
    generator: Mapping[str, Any]
    dataset: Dataset
    train_dataset: Dataset
    protocol: GenerationProtocol
    bits_per_picture: tuple[float, ...]
    runs: tuple[Run, ...]
    anchors: Mapping[str, Mapping[str, Score]]
    environment: Mapping[str, Any]

    @property
    def summary(self) -> list[dict[str, Any]]:
        """For each rate and score: mean, deviation, least and largest over the seeds."""
        rows = []
        for i, bits in enumerate(self.bits_per_picture):
            points = [run.points[i] for run in self.runs]
            scores = {}
            for name in points[0].scores:
                values = [point.scores[name].mean for point in points if point.scores[name].mean is not None]
                if values:
                    spread = {"std": stdev(values) if len(values) > 1 else None, "min": min(values), "max": max(values)}
                    scores[name] = {"mean": fmean(values), **spread, "seeds": len(values)}
            rows.append({"rate": dict(points[0].rate), "bits_per_picture": bits, "scores": scores})
        return rows

    @property
    def ranked(self) -> bool:
        """There are seeds enough, each trained by itself, to say that one row is better than another."""
        hashes = {run.weights_sha256 for run in self.runs}
        return len(hashes) == len(self.runs) >= RANKING_SEEDS

    def to_dict(self) -> dict[str, Any]:
        """Plain values as in the JSON file."""
        out: dict[str, Any] = {"schema": SCHEMA, "kind": "generation"}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "runs":
                value = [_plain(run) for run in value]
            elif f.name == "protocol":
                value = {**asdict(value), "fingerprint": value.fingerprint}
            elif f.name == "anchors":
                value = {what: {name: asdict(score) for name, score in scores.items()} for what, scores in value.items()}
            elif f.name in ("dataset", "train_dataset"):
                value = asdict(value)
            out[f.name] = value
        return {**out, "summary": self.summary, "seeds_enough_for_a_ranking": self.ranked}

    def save(self, path: str | Path) -> Path:
        """Write the JSON, beside its place and then renamed."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        return path


def _plain(run: Run) -> dict[str, Any]:
    points = [
        {"rate": dict(point.rate), "bits_per_pixel": point.bits_per_pixel, "tokens_per_item": point.tokens_per_item}
        | {"scores": {name: asdict(score) for name, score in point.scores.items()}}
        for point in run.points
    ]
    return {**{f.name: getattr(run, f.name) for f in fields(run)}, "points": points}


def load_generation(path: str | Path) -> dict[str, Any]:
    """Read a result file as plain values.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no result of a generation.
    """
    values = json.loads(Path(path).read_text())
    if not isinstance(values, dict) or values.get("kind") != "generation" or values.get("schema") != SCHEMA:
        raise ValueError(f"load_generation: {path} is no generation result of schema {SCHEMA}. Measure again: zoo eval generate.")
    return values


# -- the evaluation --------------------------------------------------------------------------------------------------


def evaluate_generation(
    tokenizer: Tokenizer,
    contenders: Sequence[Contender],
    corpus: Any,
    train_corpus: Any,
    *,
    rates: Sequence[int | Rate] | None = None,
    guidance: float = 1.0,
    sampling: Mapping[str, Any] | None = None,
    decode: Mapping[str, Any] | None = None,
    limit: int | None = None,
    official: bool = False,
    batch_size: int = 32,
    dataset_name: str | None = None,
    split: str | None = "val",
    train_split: str | None = "train",
) -> GenerationResult:
    """Sample, decode and score.

    Args:
        tokenizer: of pictures, that the generators are for.
        contenders: the same generator trained with several seeds; one is enough, but ranks nothing.
        corpus: real pictures with class numbers.
        train_corpus: pictures to fit the classifier to, with all classes.
        rates: numbers of tokens or levels to decode; None takes powers of two up to all.
        guidance: scale of classifier-free guidance.
        sampling: options of the generator's `sample`, such as `{"temperature": 0.9}`.
        decode: options of the tokenizer's decoder.
        limit: only the first so many real pictures.
        official: also FID and inception score on the published network.
        batch_size: items at once; up to rounding, results do not depend on it.
        dataset_name, split, train_split: for the result.

    Raises:
        ValueError: no contenders, generators of other tokens, pictures without a class, or as `zoo` for options and rates.
        ModuleNotFoundError, WeightsUnavailableError: a network of a scorer is missing.
    """
    if not contenders:
        raise ValueError("evaluate_generation: there are no contenders. Give at least one.")
    for contender in contenders:
        _check_pair(tokenizer, contender.generator)
    classes = contenders[0].generator.config.classes
    pictures = default_protocol(tokenizer.info.name, tokenizer.info.native_size)
    corpus, dataset = dataset_of(corpus, limit, dataset_name, split)
    train_corpus, train_dataset = dataset_of(train_corpus, None, dataset_name, train_split)
    labels = _labels(corpus, classes)
    info, spec = tokenizer.info, tokenizer.spec
    chosen = ladder(info, spec) if rates is None else check_rates(rates, info, spec)
    runner = Runner(tokenizer, pictures.varied(decode=dict(decode or {})))
    networks: Networks = {}
    features = PictureFeatures.shared(RECORDS[f"kid_{BACKBONE}"], networks)
    device = torch.device("cpu") if tokenizer.device.type == "mps" else tokenizer.device  # scores need float64
    real = [
        replace(batch, pictures=batch.pictures.to(device))
        for batch in batches(corpus, pictures, range(len(corpus)), batch_size, 0)
    ]
    _refuse_unreadable(real, corpus)
    with evaluation_mode(tokenizer):
        classifier = _fit_classifier(train_corpus, pictures, features, classes, batch_size, device)
        scoring = _Scoring(tokenizer, classifier, features, networks, official_network() if official else None, device)
        anchors = {
            "reconstructions": scoring.anchor(real, labels, _reconstructed(runner, real)),
            "other_real_pictures": scoring.anchor(real, labels, _others(train_corpus, pictures, labels, classes, batch_size)),
            "the_real_pictures": {CLASS_ACCURACY.name: scoring.accuracy_on((b.pictures for b in real), labels)},
        }
        del anchors["other_real_pictures"][CLASS_ACCURACY.name]  # the classifier was fitted to them
        runs = tuple(
            _run(contender, tokenizer, runner, real, labels, chosen, scoring, guidance, dict(sampling or {}))
            for contender in contenders
        )
    protocol = GenerationProtocol(
        id=f"generate-{'x'.join(map(str, pictures.size)) if len(set(pictures.size)) > 1 else pictures.size[0]}-v1",
        pictures=pictures.to_dict(),
        guidance=guidance,
        sampling=dict(sampling or {}),
        decode=dict(decode or {}),
        classifier={
            "network": RECORDS[f"kid_{BACKBONE}"].protocol["network"],
            "network_sha256": features.sha256,
            "sha256": classifier.sha256,
            "fitted_to": train_dataset.sha256,
            "accuracy_on_real": anchors["the_real_pictures"][CLASS_ACCURACY.name].mean,
        },
        scorers=scoring.definitions,
    )
    pixels = math.prod(pictures.size)
    return GenerationResult(
        tokenizer=info.name,
        tokenizer_sha256=tensors_sha256(tokenizer),
        generator=_facts(contenders[0].generator),
        dataset=dataset,
        train_dataset=train_dataset,
        protocol=protocol,
        bits_per_picture=tuple(float(point.bits_per_pixel or 0) * pixels for point in runs[0].points),
        runs=runs,
        anchors=anchors,
        environment=environment(),
    )


class _Scoring:
    """Fresh scorers for every set, sharing the networks."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        classifier: LinearClassifier,
        features: PictureFeatures,
        networks: Networks,
        official: OfficialNetwork | None,
        device: torch.device,
    ) -> None:
        self.tokenizer, self.classifier, self.features, self.networks = tokenizer, classifier, features, networks
        self.official, self.device = official, device
        self.record = CLASS_ACCURACY.with_protocol(network_sha256=features.sha256, sha256=classifier.sha256)
        self.definitions: dict[str, Any] = {}

    def meter(self, rate: Rate, count: int, *, tokens: bool) -> "_Meter":
        sets = [name for name in SETS if count >= RECORDS[name].min_items]
        codes = ["bits_per_pixel", *(["codebook_use"] if self.tokenizer.info.discrete else [])] if tokens else []
        meter = _Meter(self, rate, [*sets, *codes])
        self.definitions = {**self.definitions, **meter.definitions}
        return meter

    def anchor(self, real: list[Batch], labels: Tensor, others: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Score]:
        """Score pictures `(b, 3, h, w)` with `failed (b,)` that come in the order of the real batches."""
        meter = self.meter({}, len(labels), tokens=False)
        for batch, (pictures, failed) in zip(real, others, strict=True):
            meter.update(batch, pictures, failed, labels[batch.index], None)
        return meter.scores()

    def accuracy_on(self, pictures: Iterator[Tensor], labels: Tensor) -> Score:
        scorer = ClassAccuracy(self.record, self.features.pooled, self.classifier)
        start = 0
        for part in pictures:
            scorer.update(part, labels[start : start + len(part)], index=torch.arange(start, start + len(part)))
            start += len(part)
        return scorer.result()


class _Meter:
    """The scorers of one set at one rate."""

    def __init__(self, scoring: _Scoring, rate: Rate, names: list[str]) -> None:
        tokenizer = scoring.tokenizer
        facts = dict(spec=tokenizer.spec, positions=tokenizer.info.tokens, networks=scoring.networks, device=scoring.device)
        self.device = scoring.device
        self.points = PointMeter(rate, names, **facts)
        self.accuracy = ClassAccuracy(scoring.record, scoring.features.pooled, scoring.classifier).to(scoring.device)
        self.official = () if scoring.official is None else official_scorers(scoring.official)
        for scorer in self.official:
            scorer.to(scoring.device)

    @property
    def definitions(self) -> dict[str, Any]:
        own = {scorer.record.name: scorer.record.definition() for scorer in (self.accuracy, *self.official)}
        return {**self.points.definitions, **own}

    def update(self, real: Batch, pictures: Tensor, failed: Tensor, labels: Tensor, tokens: Any) -> None:
        pictures = pictures.to(self.device)
        self.points.update(real.pictures, pictures, index=real.index, failed=failed.to(self.device), tokens=tokens)
        self.accuracy.update(pictures, labels, index=real.index, failed=failed)
        if self.official:
            distance, inception = self.official
            distance.update(real.pictures, pictures, failed=failed)
            inception.update(pictures, failed=failed)

    def scores(self) -> dict[str, Score]:
        own = {scorer.record.name: scorer.result() for scorer in (self.accuracy, *self.official)}
        return {**self.points.point().scores, **own}

    def point(self) -> Point:
        return replace(self.points.point(), scores=self.scores(), codes={})


def _check_pair(tokenizer: Tokenizer, generator: Generator) -> None:
    name = f"evaluate_generation: {generator.info.name} for {tokenizer.info.name}"
    if tokenizer.info.modality != "image":
        raise ValueError(f"{name}: a tokenizer of {tokenizer.info.modality}. Needed: one of pictures.")
    for what in ("tokenizer", "vocabulary", "channels"):
        found, needed = getattr(generator.spec, what), getattr(tokenizer.spec, what)
        if found != needed:
            raise ValueError(f"{name}: the generator makes tokens with {what} {found!r}, the tokenizer reads {needed!r}.")
    if not generator.config.classes:
        raise ValueError(f"{name}: the generator has no classes. Needed: a class-conditional one.")


def _labels(corpus: Any, classes: int) -> Tensor:
    labels = torch.tensor([corpus.label_id(i) for i in range(len(corpus))])
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"evaluate_generation: {corpus.source} holds classes {int(labels.min())}..{int(labels.max())} (-1: unknown), "
            f"but the generator knows 0..{classes - 1}. Give pictures with these classes."
        )
    return labels


def _refuse_unreadable(real: list[Batch], corpus: Any) -> None:
    count = sum(int(batch.unreadable.sum()) for batch in real)
    if count:
        raise ValueError(f"evaluate_generation: {count} pictures of {corpus.source} cannot be read; the log names them.")


def _fit_classifier(
    corpus: Any, protocol: Protocol, features: PictureFeatures, classes: int, batch_size: int, device: torch.device
) -> LinearClassifier:
    labels = _labels(corpus, classes)
    parts = [
        (features.pooled(batch.pictures.to(device)).cpu(), labels[batch.index], ~batch.unreadable)
        for batch in batches(corpus, protocol, range(len(corpus)), batch_size, 0)
    ]
    good = torch.cat([part[2] for part in parts])
    return LinearClassifier.fit(torch.cat([p[0] for p in parts])[good], torch.cat([p[1] for p in parts])[good], classes=classes)


def _reconstructed(runner: Runner, real: list[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in real:
        tokens, failed = runner.encode(batch)
        pictures, broken = runner.decode(tokens, batch)
        yield pictures, failed | broken


def _others(corpus: Any, protocol: Protocol, labels: Tensor, classes: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Other pictures of the same classes, drawn without repetition as long as there are any."""
    own = torch.tensor([corpus.label_id(i) for i in range(len(corpus))])
    queues = {c: (own == c).nonzero()[:, 0] for c in range(classes)}
    order = {c: queue[torch.randperm(len(queue), generator=seeded("other pictures", c))].tolist() for c, queue in queues.items()}
    taken = dict.fromkeys(order, 0)
    numbers = []
    for label in labels.tolist():
        numbers.append(order[label][taken[label] % len(order[label])])
        taken[label] += 1
    for batch in batches(corpus, protocol, numbers, batch_size, 0):
        yield batch.pictures, batch.unreadable


@torch.inference_mode()
def _run(
    contender: Contender,
    tokenizer: Tokenizer,
    runner: Runner,
    real: list[Batch],
    labels: Tensor,
    rates: Sequence[Rate],
    scoring: _Scoring,
    guidance: float,
    sampling: dict[str, Any],
) -> Run:
    gen, seed = contender.generator.eval(), contender.seed
    own = Runner(tokenizer, runner.protocol.varied(seed=seed))
    meters = [scoring.meter(rate, len(labels), tokens=True) for rate in rates]
    sample_seconds, nats, count = 0.0, 0.0, 0
    for batch in real:
        asked = labels[batch.index]
        seeds = [noise_seed(seed, number) for number in batch.index.tolist()]
        start = time.perf_counter()
        tokens = gen.sample(asked, seed=seeds, guidance=guidance, **sampling)
        sample_seconds += time.perf_counter() - start
        for meter, rate in zip(meters, rates, strict=True):
            part = at_rate(tokens, rate)
            pictures, failed = own.decode(part, batch, timed=meter is meters[-1])
            meter.update(batch, pictures, failed, asked, part)
        if isinstance(gen, SequenceGenerator):
            nats += float(gen.nats(runner.encode(batch)[0], asked.to(gen.device)).sum())
        count += len(asked)
    decode_seconds = sum(seconds for seconds, _ in own.decode_times)
    return Run(
        seed=seed,
        weights_sha256=tensors_sha256(gen),
        training=dict(contender.training),
        nll_bits_per_picture=nats / count / math.log(2) if isinstance(gen, SequenceGenerator) else None,
        points=tuple(meter.point() for meter in meters),
        class_accuracy_by_class={str(label): value for label, value in meters[-1].accuracy.by_class().items()},
        speed={
            "sample_seconds_per_picture": sample_seconds / count,
            "decode_seconds_per_picture": decode_seconds / count,
            "batch": len(real[0].index),
            "device": device_name(tokenizer.device),
            "threads": torch.get_num_threads(),
        },
    )


def _facts(generator: Generator) -> dict[str, Any]:
    info = generator.info
    return {
        "name": info.name,
        "family": generator.family,
        "config": generator.config.to_dict(),
        "parameters": sum(p.numel() for p in generator.parameters()),
        "unit": info.unit,
        "objective": info.objective,
    }
