"""What is in the picture pack images128: sources, labels, crop boxes, split and order, but no pictures.

Two files beside this module carry it: `images128.jsonl.gz`, one source picture a line with its crops, and
`sources.json`, the packages with version, checksum and licence. The choice of sources, the labels and the boxes were
made by hand once; everything else follows from them. `recipes/data/build/extract.py` writes both.
"""

import gzip
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from recipes.data.build.packages import Package

__all__ = [
    "KINDS",
    "LABELS",
    "RELEASE_WITHOUT",
    "SHARD_SAMPLES",
    "Crop",
    "Manifest",
    "PackageSources",
    "Source",
    "load",
    "load_packages",
    "source_id",
    "sources",
]

LABELS = ("animal", "plant", "food", "object", "vehicle", "building", "landscape", "astronomy", "painting", "texture")
KINDS = ("photo", "alpha", "stamp", "smallstamp")
SHARD_SAMPLES = 1150
SPLITS: tuple["Split", ...] = ("train", "val")

_HERE = Path(__file__).parent

Split = Literal["train", "val"]
Box = tuple[int, int, int, int]


def source_id(package: str, file: str) -> str:
    """Return the 12 hexadecimal digits that name a source picture: the beginning of SHA-1 of `PACKAGE/FILE`."""
    return hashlib.sha1(f"{package}/{file}".encode()).hexdigest()[:12]

RELEASE_WITHOUT = ("opencv-doc", "0878bf68e727")
"""What weights that are to be published must not be trained on: pictures of undocumented origin, and one (a kangaroo) under
GFDL-1.2, which does not combine with the GPL-3.0-or-later that all other sources allow."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One sample of the pack.

    `position` is its place among all samples of its split; `box` is (x0, y0, x1, y1) in pixels of the source, None for
    a composite, whose `composite` is the sort of its background.
    """

    source: "Source"
    number: int
    position: int
    box: Box | None
    composite: Literal["gradient", "photo"] | None

    @property
    def key(self) -> str:
        return f"{self.source.source_id}_{self.number:03d}"

    def record(self) -> dict[str, Any]:
        """Return the JSON record that stands beside the picture in a shard."""
        source = self.source
        record: dict[str, Any] = {
            "source_id": source.source_id,
            "group": source.group,
            "package": source.package,
            "file": source.file,
            "kind": source.kind,
            "label": source.label,
            "label_id": LABELS.index(source.label),
            "crop": None if self.box is None else list(self.box),
            "source_size": list(source.size),
        }
        if self.composite is not None:
            record["composite"] = self.composite
        return record


@dataclass(frozen=True, kw_only=True)
class Source:
    """One source picture.

    `file` is a path inside the package, or `NAME.rcc@OFFSET` for a picture inside a GCompris resource file, whose path
    there is `title`. `sha256` are the first 16 digits of the picture file's checksum. `size` is (width, height); for
    stamps that of the part that is not fully transparent. `license` and `credit` come from the package's copyright file
    where it speaks of this very picture; None means that the licence of the package holds.
    """

    package: str
    file: str
    group: str
    label: str
    kind: str
    size: tuple[int, int]
    split: Split
    sha256: str
    title: str | None
    license: str | None
    credit: str | None

    @property
    def source_id(self) -> str:
        return source_id(self.package, self.file)


@dataclass(frozen=True, kw_only=True)
class PackageSources:
    """What the pack takes from one package: for the model card and the README of the pack."""

    package: Package
    sources: dict[str, int]
    crops: dict[str, int]
    licenses: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """The whole pack: `crops[split]` in the order of the shards."""

    packages: tuple[Package, ...]
    crops: dict[str, tuple[Crop, ...]]

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """Every source once, in the order of package and file."""
        unique = {crop.source.source_id: crop.source for split in SPLITS for crop in self.crops[split]}
        return tuple(sorted(unique.values(), key=lambda source: (source.package, source.file)))

    def select(self, *, only: Collection[str] | None = None, without: Collection[str] = ()) -> "Manifest":
        """Return the part that comes from some packages; the order of what stays is kept.

        Args:
            only: packages to take; None takes all.
            without: packages and single sources (their source_id) to leave out.

        Raises:
            ValueError: a name that is no package (or source) of the pack; nothing is left.
        """
        names = [package.name for package in self.packages]
        single = {source.source_id for source in self.sources}
        for argument, chosen, known in (("only", only or (), set(names)), ("without", without, single.union(names))):
            unknown = [name for name in chosen if name not in known]
            if unknown:
                raise ValueError(
                    f"Manifest.select: {argument} has {unknown[0]!r}, not a package. Allowed: {', '.join(names)}"
                    + (", or a source_id of the records." if argument == "without" else ".")
                )
        kept = {name for name in names if (only is None or name in only) and name not in without}
        if not kept:
            raise ValueError(
                f"Manifest.select: only={only!r}, without={without!r} leave nothing. Packages: {', '.join(names)}."
            )
        return Manifest(
            tuple(package for package in self.packages if package.name in kept),
            {
                split: tuple(
                    crop for crop in self.crops[split] if crop.source.package in kept and crop.source.source_id not in without
                )
                for split in SPLITS
            },
        )

    def shards(self, samples: int = SHARD_SAMPLES) -> dict[str, tuple[Crop, ...]]:
        """Return file name -> crops of every shard, at most `samples` in each; a split without crops has no shard."""
        return {
            f"{split}-{start // samples:05d}.tar": self.crops[split][start : start + samples]
            for split in SPLITS
            for start in range(0, len(self.crops[split]), samples)
        }

    def digest(self) -> str:
        """Return the SHA-256 of everything that decides the pictures: order, records and source checksums."""
        total = hashlib.sha256()
        for split in SPLITS:
            for crop in self.crops[split]:
                line = [split, crop.key, crop.record(), crop.source.sha256]
                total.update(json.dumps(line, sort_keys=True).encode("utf-8") + b"\n")
        return total.hexdigest()

    def counts(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return (split, label) -> (crops, source pictures)."""
        return {
            (split, label): (len(crops), len({crop.source.source_id for crop in crops}))
            for split in SPLITS
            for label in LABELS
            for crops in [[crop for crop in self.crops[split] if crop.source.label == label]]
        }

    def kinds(self) -> dict[tuple[str, str], int]:
        """Return (split, kind) -> crops."""
        return {
            (split, kind): sum(crop.source.kind == kind for crop in self.crops[split])
            for split in SPLITS
            for kind in KINDS
        }


def _parse(line: str) -> tuple[Source, list[list[Any]]]:
    row = json.loads(line)
    crops = row.pop("crops")
    row["size"] = tuple(row["size"])
    for name in ("title", "license", "credit"):
        row.setdefault(name, None)
    row.setdefault("group", source_id(row["package"], row["file"]))
    return Source(**row), crops


def load_packages(path: Path = _HERE / "sources.json") -> tuple[Package, ...]:
    """Read the lock list: the packages of the pack, in the order of their names."""
    return tuple(Package(**row) for row in json.loads(path.read_text(encoding="utf-8"))["packages"])


def load(pictures: Path = _HERE / "images128.jsonl.gz", packages: Path = _HERE / "sources.json") -> Manifest:
    """Read the manifest: about 6,000 crops in a tenth of a second."""
    crops: dict[str, list[Crop]] = {split: [] for split in SPLITS}
    with gzip.open(pictures, "rt", encoding="utf-8") as lines:
        for line in lines:
            source, rows = _parse(line)
            for number, (position, *rest) in enumerate(rows):
                box: Box | None = None
                composite: Literal["gradient", "photo"] | None = None
                if rest in (["gradient"], ["photo"]):
                    composite = rest[0]
                else:
                    x, y, side = rest
                    box = (x, y, x + side, y + side)
                crops[source.split].append(
                    Crop(source=source, number=number, position=position, box=box, composite=composite)
                )
    ordered = {split: tuple(sorted(rows, key=lambda crop: crop.position)) for split, rows in crops.items()}
    return Manifest(load_packages(packages), ordered)


def dump(manifest: Manifest) -> bytes:
    """Return the picture part of a manifest as it stands in `images128.jsonl.gz`, reproducibly (no date inside)."""
    rows: dict[str, list[Crop]] = {}
    for split in SPLITS:
        for crop in manifest.crops[split]:
            rows.setdefault(crop.source.source_id, []).append(crop)
    lines = []
    for source in manifest.sources:
        row: dict[str, Any] = {"package": source.package, "file": source.file}
        if source.group != source.source_id:
            row["group"] = source.group
        row |= {
            "label": source.label,
            "kind": source.kind,
            "size": source.size,
            "split": source.split,
            "sha256": source.sha256,
        }
        row |= {name: value for name in ("title", "license", "credit") if (value := getattr(source, name)) is not None}
        row["crops"] = [
            [crop.position, crop.composite]
            if crop.box is None
            else [crop.position, crop.box[0], crop.box[1], crop.box[2] - crop.box[0]]
            for crop in sorted(rows[source.source_id], key=lambda crop: crop.number)
        ]
        lines.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
    return gzip.compress(("\n".join(lines) + "\n").encode("utf-8"), 9, mtime=0)


def sources(*, without: Sequence[str] = (), manifest: Manifest | None = None) -> tuple[PackageSources, ...]:
    """Say what the pack takes from each package.

    Args:
        without: packages and sources to leave out; `RELEASE_WITHOUT` for weights that are to be published.
        manifest: another manifest than the one of the package.

    Returns:
        One record a package: `sources` and `crops` by split; `licenses` counts source pictures by the licence that the
        copyright file gives to the single picture, or by the package's licence where it gives none.
    """
    chosen = (manifest or load()).select(without=without)
    records = []
    for package in chosen.packages:
        own = [source for source in chosen.sources if source.package == package.name]
        licenses: dict[str, int] = {}
        for source in own:
            name = source.license or f"{package.license} (package)"
            licenses[name] = licenses.get(name, 0) + 1
        records.append(
            PackageSources(
                package=package,
                sources={split: sum(source.split == split for source in own) for split in SPLITS},
                crops={
                    split: sum(crop.source.package == package.name for crop in chosen.crops[split]) for split in SPLITS
                },
                licenses=dict(sorted(licenses.items())),
            )
        )
    return tuple(records)
