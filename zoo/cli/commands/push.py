"""Publish a tokenizer with its card on the Hub.

A folder is made first (weights, config.json, README.md) and checked; `--out` keeps it and `--dry-run` stops there. Publishing needs
a token that may write (`hf auth login`, or HF_TOKEN).
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from zoo.cli.progress import waiting
from zoo.registry import info

__all__ = ["configure", "run"]

CARD = "README.md"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="NAME|FOLDER", help="a name that `zoo list` shows, or a folder such as <run>/tokenizer")
    parser.add_argument("--repo", metavar="ORG/NAME", help="repository on the Hub; made where it does not exist")
    parser.add_argument("--private", action="store_true", help="make it private")
    parser.add_argument("--tag", help="tag of the new commit, such as v1")
    parser.add_argument("--message", help="summary of the commit")
    parser.add_argument("--dry-run", action="store_true", help="make and check the folder, send nothing")
    parser.add_argument("--out", metavar="DIR", help="keep the folder here")


def run(arguments: argparse.Namespace) -> int:
    if arguments.repo is None and not arguments.dry_run:
        raise ValueError("zoo push: --repo is missing. Say where to publish, such as --repo me/my-tokenizer, or use --dry-run.")
    if arguments.repo is not None:
        from zoo.hub import check_repo_id

        check_repo_id(arguments.repo, function="push")
    folder = Path(arguments.source)
    name = folder.resolve().name if folder.is_dir() else info(arguments.source).name
    with tempfile.TemporaryDirectory(prefix="zoo-push-") as temporary:
        target = Path(arguments.out) if arguments.out else Path(temporary) / name
        with waiting(f"making the folder of {name}"):
            _make(arguments.source, folder if folder.is_dir() else None, target)
        sys.stdout.write(f"{target if arguments.out else name}\n{_listing(target)}")
        if arguments.dry_run:
            sys.stdout.write("nothing was sent (--dry-run)\n")
            return 0
        from zoo.hub import push

        logging.getLogger("zoo").setLevel(logging.INFO)
        commit = push(target, arguments.repo, private=arguments.private, tag=arguments.tag, message=arguments.message)
    sys.stdout.write(f"published as {arguments.repo} at {commit}\n")
    return 0


def _make(source: str, folder: Path | None, target: Path) -> None:
    """Write weights, config.json and card; a card that the source folder has is kept as it is."""
    import zoo
    from zoo.checkpoint import write_folder
    from zoo.hub_push import check_card
    from zoo.publishing import folder_config

    tokenizer = zoo.load(folder if folder is not None else source)
    card = folder / CARD if folder is not None else None
    if card is not None and card.is_file():
        text = card.read_text(encoding="utf-8")
    else:
        from eval.cards import card as make_card

        text = make_card(tokenizer.info)
    write_folder(target, config=folder_config(tokenizer), tensors=tokenizer.state_dict(), readme=text, overwrite=True)
    check_card(target / CARD)


def _listing(folder: Path) -> str:
    width = max(len(path.name) for path in folder.iterdir())
    lines = [f"  {path.name:{width}}  {path.stat().st_size:>12,} bytes" for path in sorted(folder.iterdir())]
    return "\n".join(lines) + "\n"
