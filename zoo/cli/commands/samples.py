"""Print where the sample pack is, and what is in it."""

import argparse
import sys

from zoo import samples

__all__ = ["configure", "run"]

_KINDS = {"images": samples.images, "speech": samples.speech, "music": samples.music, "video": samples.video}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=_KINDS, help="paths of one kind, one a line")
    parser.add_argument("--credits", action="store_true", help="origin, licence and changes of every file")


def run(arguments: argparse.Namespace) -> int:
    kinds = [arguments.kind] if arguments.kind else list(_KINDS)
    paths = [path for kind in kinds for path in _KINDS[kind]()]
    if arguments.credits:
        lines = [f"{samples.info(path).file}  {samples.credit(path)}" for path in paths]
    elif arguments.kind:
        lines = [str(path) for path in paths]
    else:
        lines = [str(samples.folder())]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
