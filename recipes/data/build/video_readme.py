"""The README of a rebuilt clip pack: what is in it, from which videos of which packages, under which licences."""

from collections.abc import Mapping

from recipes.data.build.video_manifest import SPLITS, ClipManifest

__all__ = ["render"]


def _video_table(selected: ClipManifest, versions: Mapping[str, str]) -> list[str]:
    head = ("package", "version", "video", "kind", *(f"{split} clips" for split in SPLITS), "licence")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for package in selected.packages:
        for source in (source for source in selected.sources if source.package == package.name):
            own = [clip for clip in selected.clips if clip.source_id == source.source_id]
            told = package.license if source.license is None else f"{source.license} (package: {package.license})"
            cells = [package.name, versions.get(package.name, package.version), source.file.rpartition("/")[2]]
            if source.pattern is not None:
                cells[-1] = "/".join(source.file.split("/")[-2:])
            cells += [own[0].kind, *(str(sum(clip.split == split for clip in own)) for split in SPLITS), told]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def render(selected: ClipManifest, *, shards: Mapping[str, int], versions: Mapping[str, str], failed: Mapping[str, str]) -> str:
    """Return the README in Markdown.

    Args:
        selected: the manifest of this build.
        shards: name -> clips, as found on disk.
        versions: package -> the version that was used.
        failed: id -> reason, for clips that are missing.
    """
    lines = [
        "# video128",
        "",
        f"{sum(shards.values())} clips of 17 or 33 frames, 128 x 128 pixels, rebuilt from public packages by",
        "`zoo data build video128`. H.264 in MP4, 4:2:0, CRF 17. No clip crosses a change of scene.",
        "",
        "| shard | clips |",
        "| --- | ---: |",
        *(f"| {name} | {count} |" for name, count in shards.items()),
        "",
        "Plain tar files in which `KEY.mp4` is followed by `KEY.json`: id, package, file, kind, start_frame, frames, fps, crop,",
        "source_size, motion (mean absolute difference of neighbouring frames, 0-255). `build.json` holds settings, package",
        "versions and checksums.",
        "",
        f"Only {len(selected.sources)} videos: many clips are windows and boxes of the same scene, never the same window and box.",
        "Splits are by video. Some videos are lossy copies already. Good for seeing that a tokenizer of clips learns, and whether",
        "it does better than one of pictures frame by frame; not for the quality of generated video.",
        "",
        "## Sources and licences",
        "",
        *_video_table(selected, versions),
        "",
        "Several licences are copyleft: look at them before you pass the clips, or weights trained on them, on.",
    ]
    if failed:
        lines += ["", "## Missing", "", *(f"- {key}: {reason}" for key, reason in sorted(failed.items()))]
    return "\n".join(lines) + "\n"
