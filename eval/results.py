"""Result files: one JSON for a tokenizer, a data set and a protocol, with the scores of every item in a CSV beside it.

    RESULT.json        points (one for each rate) with mean, interval, n and failed of every score
    RESULT.items.csv   one row for each item and rate; empty where a score failed

Files are written beside their place and renamed, so that a run that is killed leaves the old file or the new one.
"""

import csv
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from eval.protocols import AnyProtocol, read_protocol
from eval.rates import Rate, rate_text

__all__ = [
    "SCHEMA",
    "Dataset",
    "ItemRow",
    "Point",
    "Result",
    "Score",
    "Speed",
    "comparable",
    "environment",
    "item_scores",
    "items_path",
    "load_result",
    "read_items",
    "shared_scores",
    "write_atomic",
]

SCHEMA = 1


# -- the parts of a result -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Score:
    """One score at one rate.

    Attributes:
        mean: over the items that did not fail, or the value for two sets of items; None where nothing could be scored.
        ci95: 95 % interval; None for scores that have none.
        n: items that gave the value.
        failed: items that were left out because they failed.
    """

    mean: float | None
    ci95: tuple[float, float] | None = None
    n: int
    failed: int = 0

    def __post_init__(self) -> None:
        if self.ci95 is not None:
            object.__setattr__(self, "ci95", tuple(self.ci95))
        for value in (self.mean, *(self.ci95 or ())):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"Score: mean={self.mean}, ci95={self.ci95}. Finite numbers only; a score that failed is None.")
        if self.n < 0 or self.failed < 0 or (self.n == 0 and self.mean is not None):
            raise ValueError(f"Score: mean={self.mean} of n={self.n} items with failed={self.failed}. Counts do not fit.")


@dataclass(frozen=True, kw_only=True)
class Point:
    """All scores at one rate.

    Attributes:
        rate: `{"tokens": k}`, `{"depth": d}`, a codec's own setting, or `{}` for a tokenizer with one rate.
        bits_per_pixel: mean over the items; latents count the bits of their floating-point type. None for sound.
        bits_per_second: the same for sound.
        tokens_per_item: mean positions that carry codes.
        scores: by name.
        codes: use of the codebook, for each depth and group of positions; empty for latents.
    """

    rate: Mapping[str, Any]
    bits_per_pixel: float | None
    tokens_per_item: float | None = None
    bits_per_second: float | None = None
    scores: Mapping[str, Score]
    codes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The items that were scored.

    Attributes:
        name: for people and file names.
        split: of the source; None where it has none.
        count: items scored, failed ones included.
        total: items of the source before `limit`.
        limit: only the first so many were taken; None for all.
        sha256: content hash of exactly the items scored.
    """

    name: str
    split: str | None = None
    count: int
    total: int
    limit: int | None = None
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Items a second of one process, the first batch left out where there are more. Decoding is that of the full rate.

    For sound and video also the seconds of the signal in a second of time.
    """

    encode_items_per_s: float
    decode_items_per_s: float
    encode_x_realtime: float | None = None
    decode_x_realtime: float | None = None
    device: str
    dtype: str
    batch: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class ItemRow:
    """The scores of one item at one rate; a score that failed is NaN."""

    item: int
    key: str
    rate: str
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a result file holds.

    Attributes:
        tokenizer: catalog name, or the name of a classical codec.
        weights_sha256: of the tokenizer's tensors (`eval.reconstruction.tensors_sha256`); None for a codec.
        dataset: what was scored.
        protocol: how.
        points: one for each rate, rising.
        speed: None where it was not taken.
        environment: versions, commit, date, device.
        items: per-item scores; in the CSV, not in the JSON.
    """

    tokenizer: str
    weights_sha256: str | None = None
    dataset: Dataset
    protocol: AnyProtocol
    points: tuple[Point, ...]
    speed: Speed | None = None
    environment: Mapping[str, Any]
    items: tuple[ItemRow, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        name = f"Result of {self.tokenizer}"
        if not self.points:
            raise ValueError(f"{name}: no points. A result has at least one rate.")
        if self.items and len(self.items) != self.dataset.count * len(self.points):
            raise ValueError(
                f"{name}: {len(self.items)} rows of items for {self.dataset.count} items at {len(self.points)} rates. "
                "The two files do not belong together: measure again."
            )
        for point in self.points:
            for key, score in point.scores.items():
                if score.n + score.failed != self.dataset.count:
                    raise ValueError(
                        f"{name}: {key} at {rate_text(dict(point.rate))} counts {score.n} scored and {score.failed} failed items "
                        f"of {self.dataset.count}. Every item is one or the other."
                    )
                if key not in self.protocol.scorers:
                    raise ValueError(f"{name}: {key} is not defined in protocol.scorers.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values as in the JSON file."""
        out: dict[str, Any] = {"schema": SCHEMA}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "items" or (value is None and f.name == "speed"):
                continue
            if f.name == "protocol":
                value = value.to_dict()
            elif f.name == "points":
                value = [_point_dict(point) for point in value]
            elif f.name == "dataset":
                value = asdict(value)
            elif f.name == "speed":
                value = {key: part for key, part in asdict(value).items() if part is not None}
            elif isinstance(value, Mapping):
                value = dict(value)
            out[f.name] = value
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, items: Sequence[ItemRow] = ()) -> Self:
        """Read what `to_dict` gave.

        Raises:
            ValueError: another schema, unknown or missing keys, or values that do not fit each other.
        """
        if values.get("schema") != SCHEMA:
            raise ValueError(f"Result: schema {values.get('schema')!r}. This version reads schema {SCHEMA}.")
        values = {key: value for key, value in values.items() if key != "schema"}
        parts: dict[str, Any] = dict(values)
        parts["dataset"] = _build(Dataset, values.get("dataset"), "dataset")
        if not isinstance(values.get("protocol"), Mapping):
            raise ValueError("Result: protocol is missing. A number without its protocol cannot be used.")
        parts["protocol"] = read_protocol(values["protocol"])
        parts["points"] = tuple(_point(point) for point in values.get("points") or ())
        if values.get("speed") is not None:
            parts["speed"] = _build(Speed, values["speed"], "speed")
        return _build(cls, {**parts, "items": tuple(items)}, "result")

    def save(self, path: str | Path) -> Path:
        """Write the JSON, and the items beside it where there are any; the JSON comes last."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.items:
            write_atomic(items_path(path), _items_csv(self.items))
        else:
            items_path(path).unlink(missing_ok=True)  # of the result that this one replaces
        write_atomic(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        return path


def _point_dict(point: Point) -> dict[str, Any]:
    scores = {
        name: {**asdict(score), "ci95": None if score.ci95 is None else list(score.ci95)} for name, score in point.scores.items()
    }
    out = {f.name: getattr(point, f.name) for f in fields(point)}
    out.update(rate=dict(point.rate), scores=scores, codes=dict(point.codes))
    if not point.codes:
        del out["codes"]
    if point.bits_per_second is None:
        del out["bits_per_second"]
    return out


def _point(values: Any) -> Point:
    scores = values.get("scores") if isinstance(values, Mapping) else None
    if not isinstance(scores, Mapping):
        raise ValueError("Result: a point has no scores.")
    built = {name: _build(Score, score, f"score {name}") for name, score in scores.items()}
    return _build(Point, {**values, "scores": built}, "point")


def _build(cls: type[Any], values: Any, what: str) -> Any:
    """Build a dataclass from a mapping, naming unknown and missing keys."""
    if not isinstance(values, Mapping):
        raise ValueError(f"Result: {what} is a {type(values).__name__}. Needed: an object.")
    known = {f.name for f in fields(cls)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"Result: {what} has unknown keys {unknown}. Known: {sorted(known)}.")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"Result: {what} does not fit ({error}).") from error


# -- files -----------------------------------------------------------------------------------------------------------


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def items_path(path: str | Path) -> Path:
    """Give the place of the items beside `RESULT.json`."""
    return Path(path).with_suffix(".items.csv")


def _items_csv(items: Sequence[ItemRow]) -> str:
    names = list(dict.fromkeys(name for row in items for name in row.scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["item", "key", "rate", *names])
    for row in items:
        values = [row.scores.get(name, math.nan) for name in names]
        writer.writerow([row.item, row.key, row.rate, *("" if math.isnan(value) else repr(value) for value in values)])
    return text.getvalue()


def read_items(path: str | Path) -> list[ItemRow]:
    """Read `RESULT.items.csv`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another layout.
    """
    with Path(path).open(newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0][:3] != ["item", "key", "rate"]:
        raise ValueError(f"read_items: {path} does not start with item,key,rate. Is it a .items.csv of a result?")
    names = rows[0][3:]
    out = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names) + 3:
            raise ValueError(f"read_items: line {number} of {path} has {len(row)} columns. Needed: {len(names) + 3}.")
        scores = {name: float(text) if text else math.nan for name, text in zip(names, row[3:], strict=True)}
        out.append(ItemRow(item=int(row[0]), key=row[1], rate=row[2], scores=scores))
    return out


def item_scores(items: Sequence[ItemRow], score: str, *, rate: str | Rate | None = None) -> dict[str, float]:
    """Give key -> score at one rate, for `eval.intervals.paired_difference`.

    Args:
        items: of a result.
        score: name of a per-item score.
        rate: `"tokens=4"` or `{"tokens": 4}`; None takes the last, which is the full one.

    Raises:
        ValueError: no such rate or score (those there are listed), or two items with one key.
    """
    wanted = items[-1].rate if rate is None and items else rate_text(rate) if isinstance(rate, Mapping) else rate
    rows = [row for row in items if row.rate == wanted]
    if not rows:
        raise ValueError(f"item_scores: no items at rate {wanted!r}. Rates there: {sorted({row.rate for row in items})}.")
    if score not in rows[0].scores:
        raise ValueError(f"item_scores: no per-item score {score!r}. There: {', '.join(rows[0].scores)}.")
    out = {row.key: row.scores[score] for row in rows}
    if len(out) != len(rows):
        raise ValueError(f"item_scores: {len(rows) - len(out)} keys occur twice, so items cannot be paired.")
    return out


def load_result(path: str | Path) -> Result:
    """Read a result file, and the items beside it where they are there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, another schema, or values that do not fit; the path is named.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text())
        items = read_items(items_path(path)) if items_path(path).is_file() else []
        if not isinstance(values, Mapping):
            raise ValueError(f"it holds a {type(values).__name__}, not an object.")
        return Result.from_dict(values, items=items)
    except ValueError as error:
        raise ValueError(f"load_result: {path}: {error}") from error


# -- comparing -------------------------------------------------------------------------------------------------------


def comparable(a: Result, b: Result) -> str | None:
    """Say why two results must not stand in one table; None where they may.

    Data and protocol have to be equal in every field but `decode`, which belongs to the tokenizer. Of the scores only those that
    both define alike may be compared: `shared_scores`.
    """
    if a.dataset.sha256 != b.dataset.sha256:
        return (
            f"other data: {a.dataset.name} ({a.dataset.count} items, {a.dataset.sha256[:12]}) and "
            f"{b.dataset.name} ({b.dataset.count} items, {b.dataset.sha256[:12]})"
        )
    if a.protocol.modality != b.protocol.modality:
        return f"other protocol: modality is {a.protocol.modality} for {a.tokenizer} and {b.protocol.modality} for {b.tokenizer}"
    for f in fields(a.protocol):
        if f.name in ("decode", "scorers"):
            continue
        ours, theirs = getattr(a.protocol, f.name), getattr(b.protocol, f.name)
        if ours != theirs:
            return f"other protocol: {f.name} is {ours} for {a.tokenizer} and {theirs} for {b.tokenizer}"
    if not shared_scores(a, b):
        common = sorted(a.protocol.scorers.keys() & b.protocol.scorers.keys())
        return f"no score in common that is defined alike (same names: {', '.join(common) or 'none'})"
    return None


def shared_scores(a: Result, b: Result) -> list[str]:
    """Give the names of the scores that both results define alike."""
    return [name for name, definition in a.protocol.scorers.items() if b.protocol.scorers.get(name) == definition]


# -- environment -----------------------------------------------------------------------------------------------------

_PACKAGES = ("torch", "torchvision", "torchaudio", "torchmetrics", "timm", "pillow", "numpy", "soundfile", "av")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Run git where this package lies; None where there is no git or no repository, or another one around an installed package."""
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def environment() -> dict[str, Any]:
    """Give versions, commit, date and machine; `commit` ends in `+changes` where tracked files differ from it."""
    import zoo

    commit = _git("rev-parse", "HEAD") if _git("ls-files", "results.py") else None
    if commit and _git("status", "--porcelain", "--untracked-files=no"):
        commit += "+changes"
    return {
        "zoo": zoo.__version__,
        **{package: _version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
