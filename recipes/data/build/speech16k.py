"""Rebuild the speech pack speech16k from packages of Debian 12.

With the locked packages, validation and test sounds are the original samples, bit for bit; training sounds are Vorbis of the
original settings. The work can be stopped at any time: packages, unpacked files and finished shards stay and are used by the
next run.
"""

import hashlib
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.data.build import packages, shardfile, speech, speech_manifest, speech_readme
from recipes.data.build.pack import PackReport, get_packages, noted, run_command
from recipes.data.build.packages import Package
from recipes.data.build.speech_manifest import SpeechManifest, Utterance
from recipes.data.build.state import finished, note_packages, note_shard, progress_bar, read_state

__all__ = ["build", "main"]

_log = logging.getLogger(__name__)
_DURATION_STEP = 1e-4  # seconds: the manifest's durations have four decimals


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


def _wanted(selected: SpeechManifest) -> dict[Package, set[str]]:
    return {
        package: {utterance.file for utterance in selected.utterances if utterance.package == package.name}
        for package in selected.packages
    }


def build(
    out: str | Path = "speech16k",
    *,
    cache: str | Path | None = None,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    overwrite: bool = False,
    progress: bool = True,
    contents: SpeechManifest | None = None,
) -> PackReport:
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
        unpacked = get_packages(_wanted(selected), cache, _log.info if progress else _log.debug)
        done = note_packages(out, state, done, unpacked)
        todo = {name: utterances for name, utterances in shards.items() if name not in done}
        with progress_bar("utterances", sum(map(len, todo.values())), progress) as advance:
            for name, utterances in todo.items():
                maker = _Maker(unpacked, advance)
                samples = list(maker.samples(utterances))
                shardfile.write_shard(out / name, samples, suffix=utterances[0].suffix)
                note_shard(out, state, name, samples=len(samples), failed=maker.failed, changed=maker.changed)
    report = PackReport(
        noun="utterance",
        out=out,
        shards={name: len(list(shardfile.read_shard(out / name, suffix=own[0].suffix))) for name, own in shards.items()},
        expected={name: len(own) for name, own in shards.items()},
        reused=tuple(done),
        **noted(state),
    )
    readme = speech_readme.render(selected, shards=report.shards, versions=report.versions, failed=report.failed)
    shardfile.write_atomic(out / "README.md", readme.encode("utf-8"))
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run `zoo data build speech16k`: 0 if every utterance is there, 1 if some are missing, 2 if nothing could be built."""
    return run_command(
        build,
        argv,
        name="speech16k",
        description="Rebuild the speech pack speech16k (1,276 utterances, 61 minutes, 11 languages) from packages of Debian 12.",
        noun="utterance",
        download="with apt-get on Debian 12: 0.45 GB in all",
        release=speech_manifest.RELEASE_WITHOUT,
    )


if __name__ == "__main__":
    sys.exit(main())
