"""What a tokenizer of clips promises over one of pictures, in one table: fewer tokens at the same PSNR, and less flicker.

Reads result files of clips and writes Markdown. Every tokenizer of clips is held against every rate of every tokenizer of pictures
that saw the same clips frame by frame, clip by clip; codecs stand in the table of scores.

Run: python -m eval.video_claims [--results DIR] [--dataset video128]
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eval.intervals import PairedDifference, paired_difference
from eval.rates import rate_text
from eval.results import Point, Result, comparable, item_scores, load_result

__all__ = ["Claim", "Way", "claims", "main", "page", "read_results"]

Way = Literal["clips", "frame by frame", "codec"]
_PAR_DB = 0.1  # a loss of PSNR that is not counted as one
_PSNR, _FLICKER, _WARPING, _TOKENS = "frame_psnr_db", "flicker_rmse", "warping_error", "tokens_per_second"
_SCORES = ((_PSNR, "PSNR, dB", 2, 1.0), (_WARPING, "warping error, 1/1000", 3, 1000.0), (_FLICKER, "flicker, 1/1000", 1, 1000.0))
_RESULTS = Path(__file__).parent / "results"


def _way(result: Result) -> Way:
    """How a tokenizer sees clips; what the catalog does not know and has no weights is a codec.

    Raises:
        ValueError: neither.
    """
    if result.weights_sha256 is None:
        return "codec"
    import zoo

    return "clips" if zoo.info(result.tokenizer).modality == "video" else "frame by frame"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A tokenizer of clips against one rate of a tokenizer of pictures.

    Attributes:
        clips: name of the tokenizer of clips.
        pictures, rate: name and rate of the tokenizer of pictures.
        tokens: tokens a second of the first over those of the second; None where either counts none.
        psnr: PSNR of the first less that of the second, clip by clip, in dB.
        flicker: the same of the flicker.
    """

    clips: str
    pictures: str
    rate: str
    tokens: float | None
    psnr: PairedDifference
    flicker: PairedDifference

    @property
    def fewer_tokens(self) -> bool:
        """Fewer tokens, and with 95 % confidence less than 0.1 dB lower."""
        return self.tokens is not None and self.tokens < 1 and self.psnr.ci95 is not None and self.psnr.ci95[0] > -_PAR_DB

    @property
    def less_flicker(self) -> bool:
        """Less flicker, with 95 % confidence."""
        return self.flicker.ci95 is not None and self.flicker.ci95[1] < 0


def read_results(folder: Path = _RESULTS, *, dataset: str = "video128") -> list[Result]:
    """Read the results of clips of a data set, by name.

    Raises:
        ValueError: there are none, or two that may not be compared.
    """
    found = [load_result(path) for path in sorted(folder.glob(f"*/{dataset}.video-*.json"))]
    if not found:
        raise ValueError(f"video_claims: no results of clips of {dataset!r} in {folder}. Measure some: zoo eval NAME --data ...")
    for result in found[1:]:
        reason = comparable(found[0], result)
        if reason is not None:
            raise ValueError(f"video_claims: {found[0].tokenizer} and {result.tokenizer} cannot stand in one table: {reason}.")
    return found


def claims(results: Sequence[Result], *, way: Callable[[Result], Way] = _way) -> list[Claim]:
    """Hold every tokenizer of clips, at its full rate, against every rate of every tokenizer of pictures.

    Args:
        results: of the same clips under the same protocol.
        way: how a tokenizer sees clips.
    """
    found = []
    for ours in (result for result in results if way(result) == "clips"):
        for theirs in (result for result in results if way(result) == "frame by frame"):
            for point in theirs.points:
                psnr, flicker = (
                    paired_difference(
                        item_scores(ours.items, name, rate=ours.points[-1].rate),
                        item_scores(theirs.items, name, rate=point.rate),
                        score=name,
                        seed=ours.protocol.seed,
                    )
                    for name in (_PSNR, _FLICKER)
                )
                counts = [_mean(own, _TOKENS) for own in (ours.points[-1], point)]
                ratio = None if None in counts else counts[0] / counts[1]  # type: ignore[operator]
                names = {"clips": ours.tokenizer, "pictures": theirs.tokenizer, "rate": rate_text(point.rate)}
                found.append(Claim(**names, tokens=ratio, psnr=psnr, flicker=flicker))
    return found


def page(results: Sequence[Result], *, way: Callable[[Result], Way] = _way) -> str:
    """Write both tables and what they say as Markdown; it says nothing that the result files do not hold."""
    first = results[0]
    heads = ["", "rate", "sees", "tokens a second", "bits per pixel", *(head for _, head, _, _ in _SCORES)]
    lines = [
        f"{first.dataset.count} clips of {first.dataset.name}, split {first.dataset.split}, under `{first.protocol.id}`; means "
        "over clips with 95 % intervals. Flicker is what comes and goes in the error along the motion of the original.",
        "",
        f"| {' | '.join(heads)} |",
        "| --- | --- | --- |" + " ---: |" * (len(heads) - 3),
    ]
    order: tuple[Way, ...] = ("clips", "frame by frame", "codec")
    for kind in order:
        for result in (result for result in results if way(result) == kind):
            for point in result.points:
                tokens = _mean(point, _TOKENS)
                cells = [result.tokenizer, rate_text(point.rate), kind, "-" if tokens is None else f"{tokens:,.0f}"]
                cells.append("-" if point.bits_per_pixel is None else f"{point.bits_per_pixel:.4f}")
                cells += [_interval(point, name, digits, times) for name, _, digits, times in _SCORES]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_verdicts(claims(results, way=way))])


def _verdicts(found: Sequence[Claim]) -> list[str]:
    if not found:
        return ["No tokenizer of clips stands beside one of pictures here: there is nothing to claim yet.", ""]
    lines = [
        f"Same PSNR means: with 95 % confidence less than {_PAR_DB:g} dB lower. Differences are clips less pictures, clip by clip.",
        "",
        "| clips | pictures, frame by frame | tokens | PSNR, dB | fewer tokens at the same PSNR | flicker, 1/1000 | less flicker |",
        "| --- | --- | ---: | ---: | --- | ---: | --- |",
    ]
    for claim in found:
        other = claim.pictures if claim.rate == "full" else f"{claim.pictures}, {claim.rate}"
        ratio = "-" if claim.tokens is None else f"x {claim.tokens:.2f}"
        lines.append(
            f"| {claim.clips} | {other} | {ratio} | {_difference(claim.psnr, 2, 1.0)} | {_yes(claim.fewer_tokens)} | "
            f"{_difference(claim.flicker, 1, 1000.0)} | {_yes(claim.less_flicker)} |"
        )
    return [*lines, ""]


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _mean(point: Point, name: str) -> float | None:
    score = point.scores.get(name)
    return None if score is None else score.mean


def _interval(point: Point, name: str, digits: int, times: float) -> str:
    score = point.scores.get(name)
    if score is None or score.mean is None:
        return "-"
    text = f"{score.mean * times:.{digits}f}"
    if score.ci95 is not None:
        low, high = score.ci95
        text += f" ({low * times:.{digits}f} .. {high * times:.{digits}f})"
    return text + (f", {score.failed} failed" if score.failed else "")


def _difference(difference: PairedDifference, digits: int, times: float) -> str:
    text = f"{difference.mean * times:+.{digits}f}"
    if difference.ci95 is None:
        return text
    low, high = difference.ci95
    return f"{text} ({low * times:+.{digits}f} .. {high * times:+.{digits}f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page to standard output.

    Raises:
        ValueError: as `read_results`.
    """
    parser = argparse.ArgumentParser(prog="python -m eval.video_claims", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=_RESULTS, metavar="DIR", help="result files (default: %(default)s)")
    parser.add_argument("--dataset", default="video128", help="name of the data set in them (default: %(default)s)")
    args = parser.parse_args(argv)
    sys.stdout.write(page(read_results(args.results, dataset=args.dataset)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
