"""The `zoo` command. One sub-command, one module of the same name in `zoo.cli.commands`; none is imported before it is asked for.

A module has `configure(parser)` and `run(arguments) -> int`; one that hands its arguments to another program of the project has
`pass_on(argv) -> int` instead.
"""

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "list": "list and filter the zoo",
    "show": "everything about one tokenizer",
    "encode": "pictures, sounds or clips to tokens",
    "decode": "tokens to pictures, sounds or clips",
    "tokenize": "whole data sets to shards of tokens",
    "demo": "a page that shows what a tokenizer keeps at every rate",
    "train": "run a recipe",
    "eval": "score reconstructions, or what a generator makes of the tokens, and write the result as JSON",
    "leaderboard": "a site of all results: tables, plots, a page for each tokenizer",
    "bench": "measure speed and memory of a tokenizer, or of the quantizers",
    "data": "build a data pack",
    "push": "publish a tokenizer with its card on the Hub",
    "samples": "the pictures, sounds and clips that ship with the package",
}
_EPILOG = """examples:
  zoo list --modality image --where bits_per_pixel__lt=0.1
  zoo encode flextok_nano photos/ tokens.safetensors --tokens 8
  zoo decode flextok_nano tokens.safetensors pictures/
  zoo encode mimi_24khz talk.wav talk.safetensors --depth 8
  zoo decode mimi_24khz talk.safetensors talk_again.wav
"""
USERS_ERROR = 2
STOPPED = 130


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="zoo",
        usage="zoo [--version] [--traceback] COMMAND ...",
        description=f"Tokenizers for pictures, video and sound, by name.\n\ncommands (zoo COMMAND --help):\n{table}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: words after `zoo`; None takes those of the process.

    Returns:
        0 for success, 1 for "nothing found" or a check that failed, 2 for a mistake of the user (told in one line on the standard
        error output), 130 when stopped by Ctrl-C. An error that nobody foresaw keeps its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    first = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    parser = _parser()
    options = parser.parse_args(words[:first])
    if options.version:
        from zoo import __version__

        sys.stdout.write(f"zoo {__version__}\n")
        return 0
    if first == len(words):
        parser.print_help()
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # notices, such as the terms of weights, on stderr
    try:
        code = _run(words[first], words[first + 1 :])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        sys.stderr.write("\nzoo: stopped.\n")
        return STOPPED
    except BrokenPipeError:  # `zoo list | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        from zoo.cli.errors import users_error

        text = None if options.traceback else users_error(error)
        if text is None:
            raise
        sys.stderr.write(f"{text}\n")
        return USERS_ERROR


def _run(command: str, words: list[str]) -> int:
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        guess = f" Did you mean `zoo {near[0]}`?" if near else ""
        raise ValueError(f"zoo: no command {command!r}.{guess} Commands: {', '.join(COMMANDS)}.")
    module = import_module(f"zoo.cli.commands.{command}")
    if hasattr(module, "pass_on"):
        return module.pass_on(words)
    parser = argparse.ArgumentParser(
        prog=f"zoo {command}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.configure(parser)
    return module.run(parser.parse_args(words))
