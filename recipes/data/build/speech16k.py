"""Rebuild the speech pack speech16k from packages of Debian 12.

With the locked packages, validation and test sounds are the original samples, bit for bit; training sounds are Vorbis of the
original settings. The work can be stopped at any time: packages, unpacked files and finished shards stay and are used by the
next run.
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.data.build import packages, shardfile, speech, speech_manifest, speech_readme
from recipes.data.build.speech_manifest import SpeechManifest, Utterance
from recipes.data.build.state import finished, note_shard, progress_bar, read_state, write_state

__all__ = ["SpeechReport", "build", "main"]

_log = logging.getLogger(__name__)
_DURATION_STEP = 1e-4  # seconds: the manifest's durations have four decimals


@dataclass(frozen=True, kw_only=True)
class SpeechReport:
    """What a build gave.

    `shards` and `expected` are utterances by shard, on disk and in the manifest. `failed` maps the id of an utterance that could
    not be made to the reason; `changed` lists those made from a file that is not the one of the manifest.
    """

    out: Path
    shards: dict[str, int]
    expected: dict[str, int]
    reused: tuple[str, ...]
    failed: dict[str, str]
    changed: tuple[str, ...]
    versions: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every utterance of the manifest is there."""
        return not self.failed and self.shards == self.expected

    def text(self) -> str:
        """Return the report for people: utterances by shard, then every one that is missing or may differ."""
        lines = [f"{self.out}: {sum(self.shards.values())} utterances in {len(self.shards)} shards"]
        lines[0] += f" ({len(self.reused)} were there already)"
        for name, count in self.shards.items():
            lines.append(f"{name:<18}{count:>6}" + ("" if count == self.expected[name] else f"   expected {self.expected[name]}"))
        if self.changed:
            lines.append(f"{len(self.changed)} utterances may differ (their source file is not the manifest's):")
            lines += [f"  {name}" for name in self.changed]
        if self.failed:
            lines.append(f"{len(self.failed)} utterances could not be made:")
            lines += [f"  {name}: {reason}" for name, reason in sorted(self.failed.items())]
        lines.append("complete: every utterance of the manifest is there" if self.complete else "INCOMPLETE: see above")
        return "\n".join(lines)


@dataclass
class _Maker:
    """Makes the samples of one shard, and notes what failed and what is made from another file."""

    unpacked: Mapping[str, packages.Unpacked]
    advance: Callable[[], None]
    failed: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)

    def samples(self, utterances: Sequence[Utterance]) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
        for utterance in utterances:
            try:
                sound = self._sound(utterance)
            except ValueError as error:
                self.failed[utterance.id] = f"{utterance.package}: {error}"
            else:
                yield utterance.id, sound, utterance.record()
            self.advance()

    def _sound(self, utterance: Utterance) -> bytes:
        unpacked = self.unpacked[utterance.package]
        if utterance.file in unpacked.missing:
            raise ValueError(f"{utterance.file} is {unpacked.missing[utterance.file]} (version {unpacked.version})")
        data = (unpacked.folder / utterance.file).read_bytes()
        x, rate = speech.decode(data, utterance.file)
        duration = len(x) / speech.SAMPLE_RATE
        if rate != utterance.source_rate or abs(duration - utterance.duration) > _DURATION_STEP:
            raise ValueError(
                f"{utterance.file} is {duration:.4f} s at {rate} Hz, the manifest says "
                f"{utterance.duration} s at {utterance.source_rate} Hz"
            )
        if hashlib.sha256(data).hexdigest()[: len(utterance.sha256)] != utterance.sha256:
            self.changed.append(utterance.id)
        return speech.encode_vorbis(x) if utterance.suffix == "ogg" else speech.encode_flac(x)


def _get_packages(selected: SpeechManifest, cache: Path, say: Callable[[str], None]) -> dict[str, packages.Unpacked]:
    debs = packages.fetch(selected.packages, cache, say=say)
    unpacked = {}
    for package in selected.packages:
        say(f"unpack {package.name}")
        files = {utterance.file for utterance in selected.utterances if utterance.package == package.name}
        deb, version = debs[package.name]
        unpacked[package.name] = packages.unpack(package, deb, version, files, cache)
    return unpacked


def build(
    out: str | Path = "speech16k",
    *,
    cache: str | Path | None = None,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    overwrite: bool = False,
    progress: bool = True,
    contents: SpeechManifest | None = None,
) -> SpeechReport:
    """Rebuild the pack in a folder.

    Utterances keep the order of the original pack; with packages left out the shards are filled up again to 620.

    Args:
        out: folder for `train-0000N.tar` (Vorbis), `val-00000.tar`, `test-00000.tar` (FLAC), `README.md` and `build.json`; made
            if missing.
        cache: folder for packages and their unpacked files, about 0.6 GB; None is `packages.default_cache()`. Packages (.deb
            files) that are there are not downloaded.
        only: build from these packages only.
        without: leave these packages out.
        overwrite: replace a build with other settings that is in `out`.
        progress: draw a progress bar on a terminal and log what is being done.
        contents: another manifest than the one of the package.

    Raises:
        ValueError: unknown package, nothing left, `out` holds something else.
        PackageError: a package cannot be had or is damaged; the message says what to do.
        ModuleNotFoundError: soundfile or PyAV is missing.
    """
    out, cache = Path(out), Path(cache) if cache is not None else packages.default_cache()
    selected = (contents or speech_manifest.load()).select(only=only, without=without)
    names = [package.name for package in selected.packages]
    settings = {"vorbis_level": speech.VORBIS_LEVEL, "packages": names, "manifest": selected.digest()}
    state = read_state(out, settings, overwrite)
    shards, done = selected.shards(), finished(out, state)
    if set(shards) - set(done):
        unpacked = _get_packages(selected, cache, _log.info if progress else _log.debug)
        used = {name: {"version": item.version, "sha256": item.sha256} for name, item in unpacked.items()}
        if state["packages"] not in ({}, used):
            _log.warning("%s was begun with other package versions: all its shards are built again", out)
            done, state["shards"] = [], {}
        state["packages"] = used
        out.mkdir(parents=True, exist_ok=True)
        write_state(out, state)
        todo = {name: utterances for name, utterances in shards.items() if name not in done}
        with progress_bar("utterances", sum(map(len, todo.values())), progress) as advance:
            for name, utterances in todo.items():
                maker = _Maker(unpacked, advance)
                samples = list(maker.samples(utterances))
                shardfile.write_shard(out / name, samples, suffix=utterances[0].suffix)
                note_shard(out, state, name, samples=len(samples), failed=maker.failed, changed=maker.changed)
    report = SpeechReport(
        out=out,
        shards={name: len(list(shardfile.read_shard(out / name, suffix=own[0].suffix))) for name, own in shards.items()},
        expected={name: len(own) for name, own in shards.items()},
        reused=tuple(done),
        failed={key: reason for noted in state["shards"].values() for key, reason in noted["failed"].items()},
        changed=tuple(key for noted in state["shards"].values() for key in noted["changed"]),
        versions={name: noted["version"] for name, noted in state["packages"].items()},
    )
    readme = speech_readme.render(selected, shards=report.shards, versions=report.versions, failed=report.failed)
    shardfile.write_atomic(out / "README.md", readme.encode("utf-8"))
    return report


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `zoo data build speech16k`: 0 if every utterance is there, 1 if some are missing, 2 if nothing could be built."""
    parser = argparse.ArgumentParser(
        prog="zoo data build speech16k",
        description="Rebuild the speech pack speech16k (1,276 utterances, 61 minutes, 11 languages) from packages of Debian 12.",
        epilog="Packages are taken from the cache folder if their .deb files are there (no network then), else "
        "downloaded with apt-get on Debian 12: 0.45 GB in all. A run that was stopped goes on where it was. "
        "Exit status: 0 complete, 1 some utterances could not be made, 2 nothing was built.",
    )
    parser.add_argument("out", nargs="?", default="speech16k", metavar="OUT", help="folder for the shards (default: %(default)s)")
    parser.add_argument("--only", type=_names, metavar="PACKAGE,...", help="take these packages only")
    parser.add_argument(
        "--release", action="store_true", help="leave out what weights that are to be published must not be trained on"
    )
    parser.add_argument("--without", type=_names, default=[], metavar="PACKAGE,...", help="leave these packages out")
    parser.add_argument("--cache", metavar="DIR", help=f"folder of .deb files (default: {packages.default_cache()})")
    parser.add_argument("--overwrite", action="store_true", help="replace a build with other settings in OUT")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    arguments = parser.parse_args(argv)
    if not arguments.quiet and not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        report = build(
            arguments.out,
            cache=arguments.cache,
            only=arguments.only,
            without=[*arguments.without, *(speech_manifest.RELEASE_WITHOUT if arguments.release else ())],
            overwrite=arguments.overwrite,
            progress=not arguments.quiet,
        )
    except (ValueError, packages.PackageError, ModuleNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(report.text() + "\n")
    return 0 if report.complete else 1


if __name__ == "__main__":
    sys.exit(main())
