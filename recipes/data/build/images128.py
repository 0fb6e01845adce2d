"""Rebuild the picture pack images128 from packages of Debian 12.

Photographs and `alpha` crops are replayed from their recorded boxes; with the locked packages they are the original
pictures byte for byte (JPEG bytes also depend on the JPEG library). Composites are made anew, see `stamps`. The work
can be stopped at any time: packages, unpacked files and finished shards stay and are used by the next run.
"""

import hashlib
import io
import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from recipes.data.build import gcompris, manifest, pack_readme, packages, shardfile, stamps
from recipes.data.build.manifest import Crop, Manifest, Source
from recipes.data.build.pack import get_packages, noted, run_command, what_differs
from recipes.data.build.packages import Package
from recipes.data.build.state import finished, note_packages, note_shard, progress_bar, read_state

__all__ = ["BuildReport", "Replayer", "background_pool", "build", "main", "package_path"]

_log = logging.getLogger(__name__)

_SIZES = (32, 512)
_QUALITY, _SUBSAMPLING = 92, "4:2:0"
_RCC_FOLDER = "usr/share/gcompris-qt/rcc"
# One sample picture of opencv-doc is partly transparent, and the original pack shows it on this grey.
_MATTE = {"opencv-doc": (190, 190, 190)}
_BACKGROUND_LABELS = ("texture", "landscape", "plant")
# Never a background: its pictures must be removable by name, and a composite carries the name of its stamp only.
_NO_BACKGROUND = ("opencv-doc",)


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build gave.

    `counts` (split, label) -> (crops, sources) and `kinds` (split, kind) -> crops are read back from the shards on disk
    and `expected_*` come from the manifest. `failed` maps the key of a crop that could not be made to the reason,
    `changed` lists crops made from a source file that is not the one of the manifest.
    """

    out: Path
    shards: dict[str, int]
    reused: tuple[str, ...]
    counts: dict[tuple[str, str], tuple[int, int]]
    expected_counts: dict[tuple[str, str], tuple[int, int]]
    kinds: dict[tuple[str, str], int]
    expected_kinds: dict[tuple[str, str], int]
    failed: dict[str, str]
    changed: tuple[str, ...]
    versions: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every crop of the manifest is there."""
        return not self.failed and self.counts == self.expected_counts and self.kinds == self.expected_kinds

    def text(self) -> str:
        """Return the report for people: counts by label and kind, then every crop that is missing or may differ."""
        total, shards, reused = sum(self.shards.values()), len(self.shards), len(self.reused)
        lines = [f"{self.out}: {total} pictures in {shards} shards ({reused} were there already)"]
        lines.append(f"{'label':<12}{'train crops':>14}{'(sources)':>12}{'val crops':>12}{'(sources)':>12}")
        for label in manifest.LABELS:
            cells = [self.counts[split, label] for split in manifest.SPLITS]
            wanted = [self.expected_counts[split, label] for split in manifest.SPLITS]
            note = "" if cells == wanted else f"   expected {wanted}"
            lines.append(f"{label:<12}{cells[0][0]:>14}{cells[0][1]:>12}{cells[1][0]:>12}{cells[1][1]:>12}{note}")
        for kind in manifest.KINDS:
            cell = [self.kinds[split, kind] for split in manifest.SPLITS]
            want = [self.expected_kinds[split, kind] for split in manifest.SPLITS]
            lines.append(
                f"{kind:<12}{cell[0]:>14}{'':>12}{cell[1]:>12}" + ("" if cell == want else f"   expected {want}")
            )
        return "\n".join([*lines, *what_differs("crop", self.changed, self.failed, complete=self.complete)])


# -------------------------------------------------------------------------------------------------------------- replay


class Replayer:
    """Makes the samples of a pack from unpacked packages.

    Args:
        unpacked: package name -> its files.
        size: side of the pictures, in pixels.
        seed: for the composites.
        pool: split -> crops that may be the background of a composite.
    """

    def __init__(
        self, unpacked: Mapping[str, packages.Unpacked], *, size: int, seed: int, pool: Mapping[str, Sequence[Crop]]
    ) -> None:
        self._unpacked, self._size, self._seed, self._pool = unpacked, size, seed, pool
        self._resource: tuple[Path, bytes] | None = None
        self.failed: dict[str, str] = {}
        self.changed: list[str] = []
        self.made: dict[str, tuple[bytes, dict[str, Any]]] = {}

    def background(self, crop: Crop) -> Crop | None:
        """Return the crop behind a composite, None for a gradient (also where the pool has nothing to offer)."""
        pool = self._pool.get(crop.source.split, ())
        if crop.composite != "photo" or not pool:
            return None
        return stamps.Draws(self._seed, f"{crop.key}/background").choice(pool)

    def run(self, crops: Sequence[Crop], advance: Callable[[], None]) -> None:
        """Make these crops, and the backgrounds that they need, into `made`; what fails goes to `failed`."""
        plain = {crop.key: crop for crop in crops if crop.composite is None}
        composites = [crop for crop in crops if crop.composite is not None]
        for crop in composites:
            behind = self.background(crop)
            if behind is not None:
                plain[behind.key] = behind
        for group in (list(plain.values()), composites):
            for source, own in _by_source(group).items():
                picture = self._open(source, own)
                for crop in own:
                    if picture is not None:
                        self._make(crop, picture)
                    advance()

    def _open(self, source: Source, crops: Sequence[Crop]) -> Image.Image | None:
        """Decode a source to RGB (RGBA, trimmed, for stamps); None, with a reason noted, if it cannot be used."""
        try:
            data = self._bytes(source)
            encoded = Image.open(io.BytesIO(data))
            cut_out = source.kind in ("stamp", "smallstamp")
            picture = stamps.trim(encoded) if cut_out else _flatten(encoded, _MATTE.get(source.package))
            if picture.size != source.size:
                raise ValueError(f"{source.file} has the size {picture.size}, the manifest says {source.size}")
        except (OSError, SyntaxError, ValueError) as error:  # Pillow says SyntaxError for some broken PNG files
            self.failed.update({crop.key: f"{source.package}: {error}" for crop in crops})
            return None
        if hashlib.sha256(data).hexdigest()[: len(source.sha256)] != source.sha256:
            self.changed += [crop.key for crop in crops]
        return picture

    def _bytes(self, source: Source) -> bytes:
        unpacked = self._unpacked[source.package]
        path, _, offset = package_path(source.file).partition("@")
        if path in unpacked.missing:
            raise ValueError(f"{path} is {unpacked.missing[path]} (version {unpacked.version})")
        if not offset:
            return (unpacked.folder / path).read_bytes()
        if self._resource is None or self._resource[0] != unpacked.folder / path:
            self._resource = (unpacked.folder / path, (unpacked.folder / path).read_bytes())
        return gcompris.picture_at(self._resource[1], int(offset))

    def _make(self, crop: Crop, picture: Image.Image) -> None:
        record = crop.record()
        if crop.box is not None:
            side = crop.box[2] - crop.box[0]
            square = picture.crop(crop.box).resize((self._size, self._size), stamps.resample(side, self._size))
        else:
            draws = stamps.Draws(self._seed, crop.key)
            behind = self.background(crop)
            if behind is None:
                ground = stamps.gradient(draws, self._size)
            elif behind.key in self.made:
                ground = stamps.backdrop(draws, Image.open(io.BytesIO(self.made[behind.key][0])))
            else:
                self.failed[crop.key] = f"its background {behind.key} could not be made"
                return
            square, pastes = stamps.compose(draws, picture, ground, small=crop.source.kind == "smallstamp")
            record["composite"] = "gradient" if behind is None else "photo"
            record["background"] = None if behind is None else behind.key
            record["pastes"] = [{"box": list(paste.box), "flip": paste.flip} for paste in pastes]
        self.made[crop.key] = (_jpeg(square), record)


def package_path(file: str) -> str:
    """Return the path inside the package of what a record calls `file`; `@OFFSET` stays where it has one."""
    return f"{_RCC_FOLDER}/{file}" if ".rcc@" in file else file


def _by_source(crops: Sequence[Crop]) -> dict[Source, list[Crop]]:
    grouped: dict[Source, list[Crop]] = {}
    for crop in sorted(crops, key=lambda crop: (crop.source.package, crop.source.file, crop.number)):
        grouped.setdefault(crop.source, []).append(crop)
    return grouped


def _flatten(picture: Image.Image, matte: tuple[int, int, int] | None) -> Image.Image:
    """Return RGB: on the matte colour if the package has one, else with transparency ignored."""
    if matte is None or picture.mode != "RGBA":
        return picture.convert("RGB")
    ground = Image.new("RGBA", picture.size, (*matte, 255))
    ground.alpha_composite(picture)
    return ground.convert("RGB")


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=_SUBSAMPLING)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------------------- build


def background_pool(selected: Manifest) -> dict[str, list[Crop]]:
    """Return split -> the photographs of that split that may stand behind a stamp, in the order of their keys."""
    return {
        split: sorted(
            (
                crop
                for crop in selected.crops[split]
                if crop.source.kind == "photo"
                and crop.source.label in _BACKGROUND_LABELS
                and crop.source.package not in _NO_BACKGROUND
            ),
            key=lambda crop: crop.key,
        )
        for split in manifest.SPLITS
    }


def _wanted(selected: Manifest) -> dict[Package, set[str]]:
    return {
        package: {package_path(source.file).partition("@")[0] for source in selected.sources if source.package == package.name}
        for package in selected.packages
    }


def _write_shards(out: Path, shards: Mapping[str, Sequence[Crop]], state: dict[str, Any], replayer: Replayer) -> None:
    """Write shards from what was made, noting each in `build.json` as soon as it is whole."""
    changed = set(replayer.changed)
    for name, crops in shards.items():
        samples = [(crop.key, *replayer.made[crop.key]) for crop in crops if crop.key in replayer.made]
        shardfile.write_shard(out / name, samples)
        note_shard(
            out,
            state,
            name,
            samples=len(samples),
            failed={crop.key: replayer.failed[crop.key] for crop in crops if crop.key in replayer.failed},
            changed=[crop.key for crop in crops if crop.key in changed and crop.key in replayer.made],
        )


def _report(out: Path, selected: Manifest, state: dict[str, Any], reused: Sequence[str]) -> BuildReport:
    """Count what is on disk."""
    crops: dict[tuple[str, str], int] = {}
    sources: dict[tuple[str, str], set[str]] = {}
    kinds = dict.fromkeys(selected.kinds(), 0)
    for name in selected.shards():
        split = name.partition("-")[0]
        for _, _, record in shardfile.read_shard(out / name):
            cell = (split, record["label"])
            crops[cell] = crops.get(cell, 0) + 1
            sources.setdefault(cell, set()).add(record["source_id"])
            kinds[split, record["kind"]] += 1
    return BuildReport(
        out=out,
        shards={name: state["shards"][name]["samples"] for name in selected.shards()},
        reused=tuple(reused),
        counts={cell: (crops.get(cell, 0), len(sources.get(cell, ()))) for cell in selected.counts()},
        expected_counts=selected.counts(),
        kinds=kinds,
        expected_kinds=selected.kinds(),
        **noted(state),
    )


def build(
    out: str | Path = "images128",
    *,
    cache: str | Path | None = None,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    size: int = 128,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
    contents: Manifest | None = None,
) -> BuildReport:
    """Rebuild the pack in a folder.

    Samples keep the order of the original pack; with packages left out the shards are filled up again to 1,150 samples.

    Args:
        out: folder for `train-0000N.tar`, `val-00000.tar`, `README.md` and `build.json`; made if missing.
        cache: folder for packages and their unpacked files, about 1.5 GB; None is `packages.default_cache()`. Packages
            (.deb files) that are there are not downloaded.
        only: build from these packages only. Composites then have only their photographs as backgrounds, and a
            gradient where there are none.
        without: leave these packages and sources (their source_id) out.
        size: side of the pictures in pixels, 32..512. The original pack has 128; smaller crops are enlarged.
        seed: for the composites.
        overwrite: replace a build with other settings that is in `out`.
        progress: draw a progress bar on a terminal and log what is being done.
        contents: another manifest than the one of the package.

    Raises:
        ValueError: unknown package, nothing left, size out of range, `out` holds something else.
        PackageError: a package cannot be had or is damaged; the message says what to do.
    """
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise ValueError(
            f"build: size={size} is out of range. Allowed: {_SIZES[0]}..{_SIZES[1]}; the original pack has 128."
        )
    out, cache = Path(out), Path(cache) if cache is not None else packages.default_cache()
    selected = (contents or manifest.load()).select(only=only, without=without)
    names = [package.name for package in selected.packages]
    settings = {"size": size, "seed": seed, "quality": _QUALITY, "packages": names, "manifest": selected.digest()}
    state = read_state(out, settings, overwrite)
    done = finished(out, state)
    if set(selected.shards()) - set(done):
        unpacked = get_packages(_wanted(selected), cache, _log.info if progress else _log.debug)
        done = note_packages(out, state, done, unpacked, pillow=PIL.__version__)
        todo = {name: crops for name, crops in selected.shards().items() if name not in done}
        crops = [crop for shard in todo.values() for crop in shard]
        replayer = Replayer(unpacked, size=size, seed=seed, pool=background_pool(selected))
        with progress_bar("pictures", len(crops), progress) as advance:
            replayer.run(crops, advance)
        _write_shards(out, todo, state, replayer)
    report = _report(out, selected, state, done)
    readme = pack_readme.render(selected, state, counts=report.counts, kinds=report.kinds, failed=report.failed)
    shardfile.write_atomic(out / "README.md", readme.encode("utf-8"))
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run `zoo data build images128`: 0 if every crop is there, 1 if some are missing, 2 if nothing could be built."""
    return run_command(
        build,
        argv,
        name="images128",
        description="Rebuild the picture pack images128 (5,892 small pictures, 10 labels) from packages of Debian 12.",
        noun="crop",
        download="with apt-get on Debian 12: 1.3 GB in all",
        release=manifest.RELEASE_WITHOUT,
        single=True,
        numbers={"size": (128, "side of the pictures in pixels"), "seed": (0, "for the composites")},
    )


if __name__ == "__main__":
    sys.exit(main())
