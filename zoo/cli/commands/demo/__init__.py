"""Show what a tokenizer keeps of a picture at every rate it has.

Writes OUT/index.html, one page that needs nothing else, and OUT/sheet.png, and prints the same as a table.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zoo import samples
from zoo.cli.files import expand_inputs
from zoo.cli.models import add_tokenizer_arguments, decode_options, load_tokenizer, only_pictures
from zoo.cli.progress import waiting
from zoo.cli.text import columns
from zoo.whole_files import whole_folder

if TYPE_CHECKING:
    from zoo.cli.commands.demo.ladder import Ladder

__all__ = ["configure", "run"]

_MOST = 100


def configure(parser: argparse.ArgumentParser) -> None:
    add_tokenizer_arguments(parser, default="flextok_nano")
    parser.add_argument("--out", default="demo", metavar="DIR", help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--pictures", nargs="+", metavar="PATH", help="pictures, or folders of them; the sample pack where nothing is said"
    )
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the decoder; repeatable")


def run(arguments: argparse.Namespace) -> int:
    paths = samples.images()
    if arguments.pictures:
        paths = [path for path, _ in expand_inputs(arguments.pictures, command="zoo demo", kind="image")]
    if len(paths) > _MOST:
        raise ValueError(f"zoo demo: {len(paths)} pictures make a page nobody can open. Allowed: up to {_MOST}.")
    tokenizer = load_tokenizer(arguments, "zoo demo")
    only_pictures(tokenizer, "zoo demo")
    options = decode_options(tokenizer, arguments.option)
    with waiting("loading scorers"):
        from zoo.cli.commands.demo.ladder import climb
        from zoo.cli.commands.demo.page import make_page
        from zoo.cli.commands.demo.sheet import draw_sheet

    ladder = climb(tokenizer, paths, batch_size=arguments.batch_size, options=options)
    out = Path(arguments.out)
    with whole_folder(out) as folder:
        (folder / "index.html").write_text(make_page(ladder, options=", ".join(arguments.option)), encoding="utf-8")
        draw_sheet(ladder).save(folder / "sheet.png")
    sys.stdout.write(f"{_table(ladder)}\n{out / 'index.html'}\n{out / 'sheet.png'}\n")
    return 0


def _table(ladder: "Ladder") -> str:
    """Means over the pictures at every rate, then PSNR of every picture."""
    from zoo.cli.commands.demo.words import axis_text, bytes_text, heading, picture_name

    axis, scores, rungs = axis_text(ladder), ladder.scores, ladder.rungs
    head = [axis, "bytes", "bits per pixel", *[score.title for score in scores]]
    rows = [
        [str(rung.count), bytes_text(rung), f"{rung.bits_per_pixel:.3g}", *[rung.mean(score) for score in scores]]
        for rung in rungs
    ]
    rows.append(["mean colour", "", "", *[score.text(ladder.mean_colour[score.scorer]) for score in scores]])
    each = [[picture_name(path), *[rung.of(scores[0], i) for rung in rungs]] for i, path in enumerate(ladder.paths)]
    single_head = [f"{scores[0].title}, by {axis}", *[str(rung.count) for rung in rungs]]
    missing = f"\n{ladder.missing}\n" if ladder.missing else ""
    means, single = columns(head, rows, width=100), columns(single_head, each, width=100, flexible=(0,))
    return f"{heading(ladder)}\n\n{means}\n{single}{missing}"
