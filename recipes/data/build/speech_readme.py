"""The README of a rebuilt speech pack: what is in it, from which packages, under which licences."""

from collections.abc import Mapping

from recipes.data.build import speech_manifest
from recipes.data.build.speech_manifest import SPLITS, SpeechManifest

__all__ = ["render"]


def _package_table(selected: SpeechManifest, versions: Mapping[str, str]) -> list[str]:
    head = ("package", "version", *(f"{split} minutes" for split in SPLITS), "speakers", "licence")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for record in speech_manifest.speech_sources(manifest=selected):
        package = record.package
        cells = [package.name, versions.get(package.name, package.version)]
        cells += [f"{record.minutes[split]:.2f}" for split in SPLITS]
        cells += [", ".join(record.speakers), f"{package.license}; {package.note}" if package.note else package.license]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def render(
    selected: SpeechManifest, *, shards: Mapping[str, int], versions: Mapping[str, str], failed: Mapping[str, str]
) -> str:
    """Return the README in Markdown.

    Args:
        selected: the manifest of this build.
        shards: name -> utterances, as found on disk.
        versions: package -> the version that was used.
        failed: id -> reason, for utterances that are missing.
    """
    lines = [
        "# speech16k",
        "",
        f"{sum(shards.values())} utterances of speech, 16 kHz mono, rebuilt from public packages by",
        "`zoo data build speech16k`. Train shards hold Ogg Vorbis (about 7 KB/s), the others 16-bit FLAC.",
        "",
        "| shard | utterances |",
        "| --- | ---: |",
        *(f"| {name} | {count} |" for name, count in shards.items()),
        "",
        "Plain tar files in which `KEY.ogg` or `KEY.flac` is followed by `KEY.json`: id, package, file, language, speaker,",
        "text, license, duration (s), source_rate (Hz). `build.json` holds settings, package versions and checksums.",
        "",
        "All sources but festvox-ru were lossy already (G.722 or Vorbis): nothing here measures the last decibel. Channels",
        "were averaged and rates brought to 16 kHz; level (but for peaks above 0.999) and ends are those of the source.",
        "",
        "A speaker of asterisk or festvox is one named person; one of fillets is a character of a game, one of tuxpaint no more",
        "than a language. Texts are the scripts, not checked by ear. No sentence of a speaker is in two splits; speakers are.",
        "",
        "## Sources and licences",
        "",
        *_package_table(selected, versions),
        "",
        "Several licences are copyleft: look at them before you pass the sounds, or weights trained on them, on.",
    ]
    if failed:
        lines += ["", "## Missing", "", *(f"- {key}: {reason}" for key, reason in sorted(failed.items()))]
    return "\n".join(lines) + "\n"
