"""Write the manifest `images128.jsonl.gz` from an existing pack and its packages.

Run: python -m recipes.data.build.extract PACK --cache DIR [--to FILE]

For maintainers: after a change of sources, labels or boxes in a pack, or of package versions in `sources.json`. Titles
and licences of single pictures are read from the packages (names in .rcc files; stanzas of debian/copyright,
machine-readable format 1.0, where the last stanza that matches wins).
"""

import argparse
import fnmatch
import hashlib
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.data.build import gcompris, images128, manifest, packages, shardfile
from recipes.data.build.manifest import Crop, Manifest, Source
from recipes.data.build.packages import Package, Unpacked

__all__ = ["Stanza", "extract", "main", "match", "read_copyright"]

# Package -> (part of a path that the copyright file leaves out, what it has instead). Others name no single picture.
_PATHS = {
    "gcompris-qt-data": ("gcompris/", ""),
    "lomiri-wallpapers-16.04": ("usr/share/backgrounds/", "16.04/"),
    "supertuxkart-data": ("usr/share/games/supertuxkart/", ""),
}
# GCompris' pictures were converted to WebP when it was built; the copyright file has the names before that.
_BEFORE_WEBP = (".jpg", ".jpeg", ".png", ".JPG", ".svg")


@dataclass(frozen=True)
class Stanza:
    """One `Files:` paragraph of a copyright file."""

    patterns: tuple[str, ...]
    license: str
    copyright: str


def read_copyright(text: str) -> tuple[Stanza, ...]:
    """Return the `Files:` paragraphs of a machine-readable debian/copyright, in order."""
    stanzas = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, list[str]] = {}
        current: list[str] = []
        for line in paragraph.splitlines():
            field = re.match(r"([A-Za-z-]+):[ \t]*(.*)", line)
            if field:
                current = fields.setdefault(field[1], [])
                current.append(field[2])
            else:
                current.append(line)
        if "Files" in fields:
            patterns = tuple(" ".join(fields["Files"]).split())
            holder = " ".join(" ".join(fields.get("Copyright", [])).split())
            stanzas.append(Stanza(patterns, (fields.get("License") or [""])[0].strip(), holder))
    return tuple(stanzas)


def match(stanzas: Iterable[Stanza], path: str) -> Stanza | None:
    """Return the last stanza that speaks of this path in particular; None if only `*` covers it."""
    stem, dot, suffix = path.rpartition(".")
    paths = [path] if f"{dot}{suffix}" != ".webp" else [path, *(stem + other for other in _BEFORE_WEBP)]
    found = None
    for stanza in stanzas:
        if any(pattern != "*" and fnmatch.fnmatchcase(name, pattern) for pattern in stanza.patterns for name in paths):
            found = stanza
    return found


def _copyright_path(package: Package) -> str:
    return f"usr/share/doc/{package.name}/copyright"


def _files(package: Package, records: Iterable[dict[str, Any]]) -> set[str]:
    own = {
        images128.package_path(record["file"]).partition("@")[0]
        for record in records
        if record["package"] == package.name
    }
    return own | {_copyright_path(package)}


def _source(record: dict[str, Any], split: manifest.Split, unpacked: Unpacked, stanzas: Sequence[Stanza]) -> Source:
    path, _, offset = images128.package_path(record["file"]).partition("@")
    data = (unpacked.folder / path).read_bytes()
    name, title = record["file"], None
    if offset:
        title = name = gcompris.resource_names(data)[int(offset)]
        data = gcompris.picture_at(data, int(offset))
    stanza = None
    if record["package"] in _PATHS:
        before, after = _PATHS[record["package"]]
        stanza = match(stanzas, after + name.removeprefix(before))
    return Source(
        package=record["package"],
        file=record["file"],
        group=record["group"],
        label=record["label"],
        kind=record["kind"],
        size=(record["source_size"][0], record["source_size"][1]),
        split=split,
        sha256=hashlib.sha256(data).hexdigest()[:16],
        title=title,
        license=stanza.license if stanza else None,
        credit=(stanza.copyright or None) if stanza else None,
    )


def extract(pack: Path, cache: Path, locked: Sequence[Package]) -> Manifest:
    """Read a pack and its packages.

    Args:
        pack: folder with `train-*.tar` and `val-*.tar`.
        cache: folder of .deb files, see `packages.fetch`.
        locked: the packages that the pack names, and possibly more.

    Raises:
        ValueError: a shard that is not whole; a package that is not in `locked`; a file that is not in its package.
        PackageError: a package cannot be had.
    """
    samples: dict[str, list[tuple[str, dict[str, Any]]]] = {split: [] for split in manifest.SPLITS}
    for split in manifest.SPLITS:
        for path in sorted(pack.glob(f"{split}-*.tar")):
            samples[split] += [(key, record) for key, _, record in shardfile.read_shard(path)]
    records = [record for split in manifest.SPLITS for _, record in samples[split]]
    named = {record["package"] for record in records}
    used = tuple(package for package in locked if package.name in named)
    if len(used) != len(named):
        raise ValueError(
            f"extract: {sorted(named - {p.name for p in used})} are not in the lock list. Add them to sources.json."
        )
    debs = packages.fetch(used, cache)
    unpacked = {
        package.name: packages.unpack(package, *debs[package.name], _files(package, records), cache) for package in used
    }
    stanzas = {}
    for package in used:
        if unpacked[package.name].missing:
            raise ValueError(
                f"extract: {package.name} {unpacked[package.name].version} lacks {unpacked[package.name].missing}"
            )
        text = (unpacked[package.name].folder / _copyright_path(package)).read_text(encoding="utf-8")
        stanzas[package.name] = read_copyright(text)
    made: dict[str, Source] = {}
    crops: dict[str, tuple[Crop, ...]] = {}
    for split in manifest.SPLITS:
        row = []
        for position, (key, record) in enumerate(samples[split]):
            name = record["source_id"]
            if name not in made:
                made[name] = _source(record, split, unpacked[record["package"]], stanzas[record["package"]])
            box = record["crop"] and (record["crop"][0], record["crop"][1], record["crop"][2], record["crop"][3])
            number = int(key.rpartition("_")[2])
            row.append(
                Crop(source=made[name], number=number, position=position, box=box, composite=record.get("composite"))
            )
        crops[split] = tuple(row)
    return Manifest(used, crops)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.data.build.extract", description="Write the manifest of a pack."
    )
    parser.add_argument("pack", type=Path, help="folder with the shards")
    parser.add_argument(
        "--cache", type=Path, default=packages.default_cache(), help="folder of .deb files (default: %(default)s)"
    )
    parser.add_argument(
        "--to", type=Path, default=Path(__file__).with_name("images128.jsonl.gz"), help="default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    found = extract(arguments.pack, arguments.cache, manifest.load_packages())
    shardfile.write_atomic(arguments.to, manifest.dump(found))
    sys.stdout.write(f"{arguments.to}: {len(found.sources)} sources, {sum(map(len, found.crops.values()))} crops\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
