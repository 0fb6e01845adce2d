"""Results with known numbers for the tests of the leaderboard."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eval.leaderboard.generation_boards import DISTANCE
from eval.protocols import get_protocol
from eval.reported import Reported
from eval.results import Dataset, ItemRow, Point, Result, Score, Speed

PSNR = {"unit": "dB", "better": "higher", "data_range": 255}
KID = {"unit": "1/1000", "better": "lower", "sha256": "aa"}


def rows_of(values: Mapping[str, list[float]]) -> tuple[ItemRow, ...]:
    """Items of each rate, from its PSNR values; NaN failed."""
    return tuple(
        ItemRow(item=i, key=f"picture_{i}", rate=rate, scores={"psnr_db": value})
        for rate, column in values.items()
        for i, value in enumerate(column)
    )


def _measured(name: str, values: Mapping[str, list[float]], *, bits: Mapping[str, float], **changes: Any) -> Result:
    """A result with the given PSNR of every item at each rate, and a KID that is -PSNR."""
    points = []
    for rate, column in values.items():
        good = [value for value in column if not math.isnan(value)]
        mean = float(np.mean(good))
        scores = {
            "psnr_db": Score(mean=mean, ci95=(mean - 1, mean + 1), n=len(good), failed=len(column) - len(good)),
            "kid_mbv2": Score(mean=-mean, n=len(column)),
        }
        key, _, number_of = rate.partition("=")
        points.append(Point(rate={key: int(number_of)} if number_of else {}, bits_per_pixel=bits[rate], scores=scores))
    facts: dict[str, Any] = {
        "tokenizer": name,
        "weights_sha256": "00",
        "dataset": Dataset(name="pack", split="val", count=len(next(iter(values.values()))), total=99, sha256="dd"),
        "protocol": replace(get_protocol("image-64-v1"), scorers={"psnr_db": PSNR, "kid_mbv2": KID}),
        "points": tuple(points),
        "speed": Speed(encode_items_per_s=30.0, decode_items_per_s=60.0, device="cpu", dtype="float32", batch=8, threads=1),
        "environment": {"torch": "2", "date": "2026-01-01"},
        "items": rows_of(values),
    }
    return Result(**{**facts, **changes})


def noisy(mean: float, seed: int, *, spread: float = 1.0, count: int = 40) -> list[float]:
    return (mean + spread * np.random.default_rng(seed).standard_normal(count)).tolist()


PICTURES = noisy(0, 1, spread=5)  # how hard each picture is, shared by all tokenizers


def on_pictures(mean: float, seed: int) -> list[float]:
    return [mean + hard + own for hard, own in zip(PICTURES, noisy(0, seed, spread=0.3), strict=True)]


@pytest.fixture(scope="session")
def results() -> list[Result]:
    flexible = {"tokens=1": noisy(12.0, 4), "tokens=32": on_pictures(28.0, 4)}
    codec = {"quality=10": on_pictures(24.0, 5), "quality=90": on_pictures(36.0, 6)}
    return [
        _measured("near", {"full": on_pictures(25.0, 2)}, bits={"full": 1.0}),
        _measured("same", {"full": on_pictures(25.0, 3)}, bits={"full": 1.0}),
        _measured("flextok_nano", flexible, bits={"tokens=1": 0.1, "tokens=32": 0.5}),
        _measured("jpeg", codec, bits={"quality=10": 0.6, "quality=90": 3.0}, weights_sha256=None),
    ]


@pytest.fixture(scope="session")
def measured() -> Callable[..., Result]:
    """`measured(name, rate -> PSNR of every item, bits=rate -> bits per pixel)` makes a result."""
    return _measured


@pytest.fixture(scope="session")
def figures() -> list[Reported]:
    """What others published."""
    told = {"name": "paper_model", "data": "Some <data>", "source": "https://example.org/paper, table 3"}
    return [Reported(rate="", score="psnr_db", value=99.0, **told), Reported(rate="tokens=8", score="rfid", value=2.0, **told)]


# -- generators ------------------------------------------------------------------------------------------------------

_MADE = {
    DISTANCE: {"unit": "1", "better": "lower"},
    "precision_mbv2": {"unit": "1", "better": "higher"},
    "class_accuracy": {"unit": "1", "better": "higher"},
}


def _score(value):
    return {"mean": value, "ci95": None, "n": 9, "failed": 0}


def _generation(name, distances, *, seeds=3, trainings=3, budget="given", tokenizer="toy", protocol=None, data="dd"):
    """A result file: distances of each seed at each rate, as `eval.generation` writes it."""
    rates = [{"tokens": k} for k in distances]
    runs = [
        {
            "seed": seed,
            "weights_sha256": f"w{name}{min(seed, trainings - 1)}",
            "training": {"trained_for_this": True, **({"budget": {"steps": 2000}} if budget == "given" else {})},
            "nll_bits_per_picture": 40.0 + seed,
            "points": [{"rate": rate, "tokens_per_item": float(rate["tokens"])} for rate in rates],
            "class_accuracy_by_class": {"0": 0.25, "1": 0.5},
            "speed": {"sample_seconds_per_picture": 0.5, "decode_seconds_per_picture": 0.25},
        }
        for seed in range(seeds)
    ]
    summary = []
    for rate in rates:
        values = distances[rate["tokens"]][:seeds]
        spread = {"std": float(np.std(values, ddof=1)) if seeds > 1 else None, "min": min(values), "max": max(values)}
        told = {"mean": float(np.mean(values)), **spread, "seeds": seeds}
        summary.append({"rate": rate, "bits_per_picture": 10.0 * rate["tokens"], "scores": {DISTANCE: told}})
    fixed = {"id": "generate-64-v1", "pictures": {"size": [64, 64]}, "guidance": 1.0, "sampling": {}, "decode": {}}
    dataset = {"name": "pack", "split": "val", "count": 9, "total": 9, "limit": None, "sha256": data}
    return {
        "schema": 1,
        "kind": "generation",
        "tokenizer": tokenizer,
        "tokenizer_sha256": f"t{tokenizer}",
        "generator": {"name": name, "family": "autoregressive", "config": {"classes": 2}, "parameters": 5},
        "dataset": dataset,
        "train_dataset": {**dataset, "split": "train", "sha256": "tt"},
        "protocol": {**fixed, "scorers": _MADE, "fingerprint": "ff", **(protocol or {})},
        "runs": runs,
        "anchors": {
            "reconstructions": {DISTANCE: _score(30.0)},
            "other_real_pictures": {DISTANCE: _score(20.0)},
            "the_real_pictures": {"class_accuracy": _score(0.75)},
        },
        "environment": {"torch": "2"},
        "summary": summary,
    }


@pytest.fixture(scope="session")
def generation() -> Callable[..., dict[str, Any]]:
    """`generation(name, tokens -> distance of each seed)` gives the values of a result file."""
    return _generation
