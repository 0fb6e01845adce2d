"""Build the site of all results: tables and plots in index.html, and a page for each tokenizer, codec and generator.

The pages open from a disk, without a network. Reconstructions are made of the sample pack; with --data also of the worst items.
"""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.generation_command import class_names
from eval.leaderboard.boards import RESULTS, facts_of, load_results, make_boards, rank, worst_items
from eval.leaderboard.gallery import Gallery, Unavailable, make_gallery
from eval.leaderboard.generation_boards import Generated, GeneratorBoard, load_generations, make_generation_boards
from eval.leaderboard.generation_samples import Strips, make_strips, stored_sheet
from eval.leaderboard.generation_section import generation_titles
from eval.leaderboard.generator_page import Sampled, make_generator_page
from eval.leaderboard.index_page import make_index
from eval.leaderboard.tokenizer_page import Measured, make_page
from eval.leaderboard.words import board_titles, slug
from eval.reconstruction import dataset_of, open_corpus
from eval.reported import Reported, reported_table
from eval.results import Dataset, Result
from zoo import generators
from zoo.registry import find
from zoo.whole_files import whole_folder

__all__ = ["build_site", "main"]

# Split and items of the sample pack.
_PLACES = {"image": (None, range(12)), "video": (None, range(3)), "audio": ("speech", range(0, 6, 2))}


def build_site(
    results: Sequence[Result],
    out: str | Path,
    *,
    generations: Sequence[Generated] = (),
    reported: Sequence[Reported] = (),
    packs: Mapping[str, str] | None = None,
    reconstruct: bool = True,
    between: bool = True,
) -> list[Path]:
    """Write the site into a folder; all files are there, or none.

    Args:
        results: what was measured.
        out: folder.
        generations: what generators made, from `load_generations`.
        reported: figures of others, for tables of their own.
        packs: name of a data set, as results have it -> where it lies; its worst items are shown then.
        reconstruct: show what tokenizers make of the sample pack, and samples of generators.
        between: show the sample pack at every rate that a tokenizer has, not only at those that were measured.

    Returns:
        The files.

    Raises:
        ValueError: a pack that no result is of, or that holds other items than were measured; as `rank`.
    """
    boards = [(board, [rank(board, column) for column in board.ranked]) for board in make_boards(results)]
    packs = dict(packs or {})
    there = sorted({data.name for data in (*(r.dataset for r in results), *(r.dataset for r in generations))})
    if unused := sorted(packs.keys() - set(there)):
        raise ValueError(f"build_site: no result is of data {unused[0]!r}. Data sets there: {', '.join(there)}.")
    made = make_generation_boards(generations)
    pages = _addresses({result.tokenizer for result in results}, "tokenizers")
    makers = _addresses({result.generator for result in generations}, "generators")
    titles = board_titles([board.results[0] for board, _ in boards])
    sources = _Sources(packs)
    out = Path(out)
    with whole_folder(out) as folder:
        index = make_index(boards, reported, pages, generations=made, generator_pages=makers)
        _write(folder / "index.html", index)
        for name, address in pages.items():
            shown: dict[str, str] = {}
            measured = [
                _measured(result, place, titles[place], sources, reconstruct, between, shown)
                for place, (board, _) in enumerate(boards)
                for result in board.results
                if result.tokenizer == name
            ]
            told = [figure for figure in reported if figure.name == name]
            of_its = {result.generator: makers[result.generator] for result in generations if result.tokenizer == name}
            page = make_page(name, _facts(measured[0].result), measured, told, generators=of_its)
            _write(folder / address, page)
        for name, address in makers.items():
            entry = next((entry for entry in generators.find() if entry.name == name), None)
            _write(folder / address, make_generator_page(name, entry, _sampled(name, made, sources, reconstruct), pages))
        written = sorted((path.relative_to(folder) for path in folder.rglob("*.html")), key=lambda path: (len(path.parts), path))
    return [out / path for path in written]


def _write(path: Path, page: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _addresses(names: Collection[str], room: str) -> dict[str, str]:
    """A file of a folder for each name, in the order of the names; two names never share one, on any file system."""
    out: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(names):
        file, number = slug(name), 2
        while file.lower() in taken:
            file, number = f"{slug(name)}-{number}", number + 1
        taken.add(file.lower())
        out[name] = f"{room}/{file}.html"
    return out


def _facts(result: Result) -> Any:
    return facts_of(result, next((entry for entry in find() if entry.name == result.tokenizer), None))


class _Sources:
    """The sample pack and the packs that were given, opened once and checked."""

    def __init__(self, packs: Mapping[str, str]) -> None:
        self.packs = packs
        self._open: dict[tuple[Any, ...], Any] = {}

    def samples(self, modality: str) -> tuple[Any, list[int]]:
        split, numbers = _PLACES[modality]
        key = ("samples", split, modality)
        if key not in self._open:
            self._open[key] = open_corpus("samples", split, modality)
        return self._open[key], list(numbers)

    def items(self, data: Dataset, modality: str, name: str) -> Any:
        """The items that `name` was measured on; None where no pack was given.

        Raises:
            ValueError: the pack holds other items than were measured.
        """
        if data.name not in self.packs:
            return None
        key = (data.name, data.split, modality, data.limit)
        if key not in self._open:
            self._open[key] = open_corpus(self.packs[data.name], data.split, modality)
        corpus, found = dataset_of(self._open[key], data.limit, data.name, data.split)
        if found.sha256 != data.sha256:
            raise ValueError(
                f"build_site: {self.packs[data.name]} is not what {name} was measured on: it has {found.count} items "
                f"with SHA-256 {found.sha256[:12]}, the result {data.count} with {data.sha256[:12]}. Give the same data, or none."
            )
        return corpus


def _measured(
    result: Result, place: int, title: str, sources: _Sources, reconstruct: bool, between: bool, shown: dict[str, str]
) -> Measured:
    """Make what is seen of a result; `shown` keeps what the page has of the sample pack already: protocol and rates -> title."""
    entry = _facts(result).entry
    made: Gallery | str = "This site was built without reconstructions."
    key = f"{replace(result.protocol, scorers={}).fingerprint} {[dict(point.rate) for point in result.points]}"
    if reconstruct and key in shown:
        made = f"The sample pack at these rates is shown above, under {shown[key]}."
    elif reconstruct:
        corpus, numbers = sources.samples(result.protocol.modality)
        try:
            made = make_gallery(result, corpus, numbers, entry=entry, between=between)
            shown[key] = title
        except Unavailable as error:
            made = str(error)
    worst: Gallery | str = f"To see them here, build the site with --data {result.dataset.name}=PLACE."
    corpus = sources.items(result.dataset, result.protocol.modality, result.tokenizer)
    rows = worst_items(result)[1]
    if corpus is None or not rows:
        return Measured(result=result, place=place, title=title, samples=made, worst=worst, records={})
    records = {row.key: corpus.record(row.item) for row in rows}
    try:
        worst = make_gallery(result, corpus, [row.item for row in rows], entry=entry)
    except Unavailable as error:
        worst = str(error)
    return Measured(result=result, place=place, title=title, samples=made, worst=worst, records=records)


def _sampled(name: str, boards: Sequence[GeneratorBoard], sources: _Sources, reconstruct: bool) -> list[Sampled]:
    """The results of a generator with what it makes."""
    out = []
    for place, (board, title) in enumerate(zip(boards, generation_titles(boards), strict=True)):
        for result in board.results:
            if result.generator != name:
                continue
            samples: Strips | str = "This site was built without samples."
            sheet = False
            if reconstruct:
                try:
                    samples = make_strips(result)
                except Unavailable as error:
                    stored = stored_sheet(result)
                    samples, sheet = stored or str(error), stored is not None
            corpus = sources.items(result.dataset, "image", name)
            classes = {} if corpus is None else class_names(corpus)
            out.append(Sampled(result=result, board=board, place=place, title=title, samples=samples, sheet=sheet, classes=classes))
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zoo leaderboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="result files (default: those of the project)")
    add("--out", type=Path, default=Path("leaderboard"), metavar="DIR", help="folder to write (default: %(default)s)")
    add(
        "--data",
        action="append",
        default=[],
        metavar="NAME=PLACE",
        help="where a data set of the results lies, as for zoo eval: its worst items are shown; repeatable",
    )
    add("--tables-only", action="store_true", help="make no reconstructions and no samples")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `zoo leaderboard`.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `load_results`, `load_generations`, `build_site` and `open_corpus`; nothing is
            written then.
    """
    args = _parser().parse_args(argv)
    packs = {}
    for text in args.data:
        name, sign, place = text.partition("=")
        if not (sign and name and place):
            raise ValueError(f"zoo leaderboard: --data {text!r}. Write NAME=PLACE, such as images128_release=packs/images128.")
        packs[name] = place
    results = load_results(args.results)
    own = args.results.resolve() == RESULTS.resolve()
    paths = build_site(
        results,
        args.out,
        generations=load_generations(args.results),
        reported=reported_table() if own else (),
        packs=packs,
        reconstruct=not args.tables_only,
    )
    for path in paths:
        sys.stdout.write(f"{path}\n")
    return 0
