"""What is in the speech pack speech16k: recordings, transcripts, speakers, split and order, but no sounds.

Two files beside this module carry it: `speech16k.jsonl.gz`, one utterance a line in the order of the shards, and
`speech16k_sources.json`, the packages with version, checksum and licence. Utterances were chosen by length (1-12 s) and level,
and split so that no sentence of a speaker is on two sides.
"""

import gzip
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from recipes.data.build.manifest import load_packages
from recipes.data.build.packages import Package

__all__ = [
    *("RELEASE_WITHOUT", "SHARD_UTTERANCES", "SPLITS", "SpeechManifest", "SpeechSources", "Utterance", "load", "speech_sources"),
]

SPLITS: tuple["Split", ...] = ("train", "val", "test")
SHARD_UTTERANCES = 620
# Under GPL-2.0 only, which does not combine with the licences of the others in weights that are to be published.
RELEASE_WITHOUT = ("fillets-ng-data-cs", "fillets-ng-data-nl")
_HERE = Path(__file__).parent

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording.

    `file` is a path inside the package. `license` is what the package says of its sounds, in the words of the pack's records.
    `speaker` names a person, a character of a game (fillets) or no more than a language (tuxpaint). `text` is the script, not
    checked by ear. `duration` in seconds; `source_rate` in Hz. `sha256` are the first 16 digits of the file's checksum.
    """

    id: str
    package: str
    file: str
    split: Split
    language: str
    speaker: str
    text: str
    license: str
    duration: float
    source_rate: int
    sha256: str

    @property
    def suffix(self) -> str:
        """How the pack stores it: Vorbis for training, FLAC for the other splits."""
        return "ogg" if self.split == "train" else "flac"

    def record(self) -> dict[str, Any]:
        """Return the JSON record that stands beside the sound in a shard."""
        names = ("id", "package", "file", "language", "speaker", "text", "license", "duration", "source_rate")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class SpeechSources:
    """What the pack takes from one package: for the model card and the README of the pack.

    `minutes` and `utterances` by split; `speakers` and `languages` sorted; `licenses` counts utterances.
    """

    package: Package
    minutes: dict[str, float]
    utterances: dict[str, int]
    speakers: tuple[str, ...]
    languages: tuple[str, ...]
    licenses: dict[str, int]


@dataclass(frozen=True)
class SpeechManifest:
    """The whole pack: `utterances` in the order of the shards, split after split."""

    packages: tuple[Package, ...]
    utterances: tuple[Utterance, ...]

    @cached_property
    def splits(self) -> dict[str, tuple[Utterance, ...]]:
        return {split: tuple(own for own in self.utterances if own.split == split) for split in SPLITS}

    def select(self, *, only: Collection[str] | None = None, without: Collection[str] = ()) -> "SpeechManifest":
        """Return the part that comes from some packages; the order of what stays is kept.

        Args:
            only: packages to take; None takes all.
            without: packages to leave out.

        Raises:
            ValueError: a name that is no package of the pack; nothing is left.
        """
        names = [package.name for package in self.packages]
        for argument, chosen in (("only", only or ()), ("without", without)):
            unknown = [name for name in chosen if name not in names]
            if unknown:
                raise ValueError(
                    f"SpeechManifest.select: {argument} has {unknown[0]!r}, not a package. Allowed: {', '.join(names)}."
                )
        kept = {name for name in names if (only is None or name in only) and name not in without}
        if not kept:
            raise ValueError(
                f"SpeechManifest.select: only={only!r}, without={without!r} leave nothing. Packages: {', '.join(names)}."
            )
        return SpeechManifest(
            tuple(package for package in self.packages if package.name in kept),
            tuple(own for own in self.utterances if own.package in kept),
        )

    def shards(self, utterances: int = SHARD_UTTERANCES) -> dict[str, tuple[Utterance, ...]]:
        """Return file name -> utterances of every shard, at most so many in each; an empty split has no shard."""
        return {
            f"{split}-{start // utterances:05d}.tar": own[start : start + utterances]
            for split, own in self.splits.items()
            for start in range(0, len(own), utterances)
        }

    def digest(self) -> str:
        """Return the SHA-256 of everything that decides the pack: order, records and source checksums."""
        total = hashlib.sha256()
        for own in self.utterances:
            total.update(json.dumps([own.split, own.record(), own.sha256], sort_keys=True).encode("utf-8") + b"\n")
        return total.hexdigest()


def load(
    utterances: Path = _HERE / "speech16k.jsonl.gz", packages: Path = _HERE / "speech16k_sources.json"
) -> SpeechManifest:
    """Read the manifest: 1,276 utterances in some hundredths of a second."""
    with gzip.open(utterances, "rt", encoding="utf-8") as lines:
        rows = tuple(Utterance(**json.loads(line)) for line in lines)
    return SpeechManifest(load_packages(packages), rows)


def dump(manifest: SpeechManifest) -> bytes:
    """Return the utterances as they stand in `speech16k.jsonl.gz`, reproducibly (no date inside)."""
    rows = [json.dumps(vars(own), ensure_ascii=False, separators=(",", ":")) for own in manifest.utterances]
    return gzip.compress(("\n".join(rows) + "\n").encode("utf-8"), 9, mtime=0)


def speech_sources(*, without: Sequence[str] = (), manifest: SpeechManifest | None = None) -> tuple[SpeechSources, ...]:
    """Say what the pack takes from each package.

    Args:
        without: packages to leave out; `RELEASE_WITHOUT` for weights that are to be published.
        manifest: another manifest than the one of the package.
    """
    chosen = (manifest or load()).select(without=without)
    records = []
    for package in chosen.packages:
        own = [utterance for utterance in chosen.utterances if utterance.package == package.name]
        licenses = [utterance.license for utterance in own]
        records.append(
            SpeechSources(
                package=package,
                minutes={split: sum(u.duration for u in own if u.split == split) / 60 for split in SPLITS},
                utterances={split: sum(u.split == split for u in own) for split in SPLITS},
                speakers=tuple(sorted({u.speaker for u in own})),
                languages=tuple(sorted({u.language for u in own})),
                licenses={name: licenses.count(name) for name in sorted(set(licenses))},
            )
        )
    return tuple(records)
