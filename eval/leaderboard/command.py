"""Build the site of all results: tables and plots in index.html, and a page for each tokenizer and codec."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.leaderboard.boards import RESULTS, load_results, make_boards, rank
from eval.leaderboard.index_page import make_index
from eval.results import Result
from zoo.whole_files import whole_folder

__all__ = ["build_site", "main"]


def build_site(results: Sequence[Result], out: str | Path) -> list[Path]:
    """Write the site into a folder; all files are there, or none.

    Args:
        results: measured and reported ones.
        out: folder.

    Returns:
        The files, `index.html` first.
    """
    boards = [(board, [rank(board, column) for column in board.ranked]) for board in make_boards(results)]
    reported = [result for result in results if result.status == "reported"]
    pages: dict[str, str] = {}
    out = Path(out)
    with whole_folder(out) as folder:
        (folder / "index.html").write_text(make_index(boards, reported, pages), encoding="utf-8")
        written = sorted(path.relative_to(folder) for path in folder.rglob("*.html"))
    return [out / path for path in written]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zoo leaderboard", description=__doc__)
    add = parser.add_argument
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="result files (default: those of the project)")
    add("--out", type=Path, default=Path("leaderboard"), metavar="DIR", help="folder to write (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `zoo leaderboard`.

    Raises:
        ValueError, OSError: as `load_results` and `rank`; nothing is written then.
    """
    args = _parser().parse_args(argv)
    for path in build_site(load_results(args.results), args.out):
        sys.stdout.write(f"{path}\n")
    return 0
