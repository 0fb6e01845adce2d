"""The README of a rebuilt pack: what is in it, from which packages, under which licences."""

from collections.abc import Mapping
from typing import Any

from recipes.data.build import manifest
from recipes.data.build.manifest import Manifest

__all__ = ["render"]

_ATTRIBUTION = ("CC-BY", "GFDL")


def _count_table(counts: Mapping[tuple[str, str], tuple[int, int]], kinds: Mapping[tuple[str, str], int]) -> list[str]:
    lines = ["| label | train crops (sources) | val crops (sources) |", "| --- | --- | --- |"]
    for label in manifest.LABELS:
        cells = [counts[split, label] for split in manifest.SPLITS]
        lines.append(f"| {label} | " + " | ".join(f"{crops} ({sources})" for crops, sources in cells) + " |")
    lines += ["", "| kind | train | val |", "| --- | --- | --- |"]
    lines += [f"| {kind} | {kinds['train', kind]} | {kinds['val', kind]} |" for kind in manifest.KINDS]
    return lines


def _package_table(selected: Manifest, used: Mapping[str, Mapping[str, str]]) -> list[str]:
    head = ("package", "version", "train crops (sources)", "val crops (sources)", "licence")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for record in manifest.sources(manifest=selected):
        package = record.package
        version = used.get(package.name, {}).get("version", package.version)
        cells = [f"{record.crops[split]} ({record.sources[split]})" for split in manifest.SPLITS]
        note = f"; {package.note}" if package.note else ""
        lines.append(f"| {package.name} | {version} | {cells[0]} | {cells[1]} | {package.license}{note} |")
    lines += ["", "Licences of single source pictures, as the packages' copyright files give them:", ""]
    for record in manifest.sources(manifest=selected):
        if any(not name.endswith("(package)") for name in record.licenses):
            listed = ", ".join(f"{name} {count}" for name, count in record.licenses.items())
            lines.append(f"- {record.package.name}: {listed}")
    return lines


def _attribution(selected: Manifest) -> list[str]:
    rows = [
        f"- {source.package}: {source.title or source.file}: {source.credit or 'no name given'}; {source.license}"
        for source in selected.sources
        if source.license is not None and source.license.startswith(_ATTRIBUTION)
    ]
    if not rows:
        return []
    told = "Source pictures whose licence asks for the author's name. All were cropped and scaled."
    return ["", "## Attribution", "", told, "", *rows]


def render(
    selected: Manifest,
    state: Mapping[str, Any],
    *,
    counts: Mapping[tuple[str, str], tuple[int, int]],
    kinds: Mapping[tuple[str, str], int],
    failed: Mapping[str, str],
) -> str:
    """Return the README in Markdown.

    Args:
        selected: the manifest of this build.
        state: the content of `build.json`: settings, package versions, shards.
        counts: (split, label) -> (crops, sources), as found in the shards.
        kinds: (split, kind) -> crops, as found in the shards.
        failed: key -> reason, for crops that are missing.
    """
    size, seed, quality = (state["settings"][name] for name in ("size", "seed", "quality"))
    shards = state["shards"]
    total = sum(noted["samples"] for noted in shards.values())
    lines = [
        "# images128" if size == 128 else f"# images128 at {size} pixels",
        "",
        f"{total} RGB pictures of {size}x{size} pixels (JPEG, quality {quality}, 4:2:0) with {len(manifest.LABELS)}",
        "coarse labels, rebuilt from public packages by `zoo data build images128`.",
        "",
        f"{len(shards)} shards of at most {manifest.SHARD_SAMPLES} samples: plain tar files in which `KEY.jpg` is",
        "followed by `KEY.json`. `build.json` holds settings, package versions and checksums.",
        "",
        *_count_table(counts, kinds),
        "",
        "The label belongs to the source picture and was given by eye; a tight crop may show only sky or grass.",
        "Near-duplicate sources form one `group`, and no group is in both splits.",
        "",
        "- `photo`: a plain crop. `alpha`: a crop of a partly transparent picture, taken where it is opaque.",
        "- `stamp`, `smallstamp`: a photographed object, cut out, on a gradient or on a blurred photograph of the same",
        f"  split (`composite`), made anew with seed {seed}; `background` (a key) and `pastes` say how.",
        "- JSON: source_id, group, package, file, kind, label, label_id, source_size, and crop: [x0, y0, x1, y1] in",
        "  source pixels, null for composites.",
        "",
        "## Sources and licences",
        "",
        *_package_table(selected, state["packages"]),
        "",
        "These pictures serve training, regression tests and relative comparison of small models; they stand in for",
        "no public benchmark. Several licences are copyleft: look at them before you pass the pictures, or weights",
        "trained on them, on. Pictures behind stamps are never from opencv-doc: who leaves out what has it as",
        "`package` leaves out all of it.",
    ]
    lines += _attribution(selected)
    if failed:
        lines += ["", "## Missing", "", *(f"- {key}: {reason}" for key, reason in sorted(failed.items()))]
    return "\n".join(lines) + "\n"
