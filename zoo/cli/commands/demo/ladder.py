"""A tokenizer on a few pictures, at every rate it has: what the page, the sheet and the table show."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eval.rates import Rate, at_rate, ladder
from eval.scorers import make_scorers
from zoo.cli.progress import progress
from zoo.media import to_uint8
from zoo.registry import Entry

if TYPE_CHECKING:
    from zoo.tokenizer import Tokenizer

__all__ = ["SCORES", "Ladder", "Rung", "Score", "climb"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One column of numbers: a scorer of `eval.scorers`, in words that fit under a picture."""

    scorer: str
    title: str
    meaning: str
    direction: str
    digits: int

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


SCORES = (
    Score(scorer="psnr_db", title="PSNR, dB", meaning="closeness pixel by pixel", direction="higher is closer", digits=1),
    Score(scorer="ssim", title="SSIM", meaning="closeness of local structure", direction="1 is equal", digits=2),
    Score(
        scorer="pdist_mbv2",
        title="feature distance",
        meaning="distance of MobileNetV2 feature maps (pdist_mbv2; not LPIPS)",
        direction="0 is equal",
        digits=2,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One rate.

    Attributes:
        rate: the argument of `encode`, empty for the one rate of a fixed tokenizer.
        count: tokens, or levels of depth, or positions of a fixed tokenizer.
        bits: bits of one picture, mean over the pictures.
        bits_per_pixel: mean over the pictures.
        pictures: uint8 `(b, 3, h, w)`.
        scores: scorer -> one value for each picture, `(b,)`.
    """

    rate: Rate
    count: int
    bits: float
    bits_per_pixel: float
    pictures: Tensor
    scores: dict[str, Tensor]

    def mean(self, score: Score) -> str:
        """Mean over the pictures, in words."""
        return score.text(float(self.scores[score.scorer].mean()))

    def of(self, score: Score, i: int) -> str:
        """Score of picture `i`, in words."""
        return score.text(float(self.scores[score.scorer][i]))


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """All rates of one tokenizer on the same pictures.

    Attributes:
        entry: the tokenizer.
        parameters: counted on the loaded model.
        paths: the pictures.
        originals: what the tokenizer was given, uint8 `(b, 3, h, w)`.
        rungs: from the smallest rate to the full one.
        scores: those that could be computed here.
        missing: why others could not, empty where all could.
        mean_colour: scorer -> mean score of each picture filled with its mean colour: what knowing nothing else gives.
        seconds: for encoding and all decoding.
    """

    entry: Entry
    parameters: int
    paths: tuple[Path, ...]
    originals: Tensor
    rungs: tuple[Rung, ...]
    scores: tuple[Score, ...]
    missing: str
    mean_colour: dict[str, float]
    seconds: float

    @property
    def axis(self) -> str | None:
        """The rate argument: "tokens" or "depth"; None for a tokenizer with one rate only."""
        return next(iter(self.rungs[0].rate), None)


def climb(tokenizer: "Tokenizer", paths: Sequence[Path], *, batch_size: int = 12, options: dict[str, Any] | None = None) -> Ladder:
    """Encode pictures once, and decode them at every rate of the ladder.

    Args:
        tokenizer: for images.
        paths: pictures, cut to the native size.
        batch_size: pictures at a time.
        options: of the decoder.
    """
    info = tokenizer.info
    started = time.perf_counter()
    with torch.inference_mode():
        x = tokenizer.preprocess(list(paths))
        tokens = [tokenizer.encode(part) for part in x.split(batch_size)]
        rates = ladder(info, tokens[0].spec)
        cut = [[at_rate(part, rate) for part in tokens] for rate in rates]
        decoded: list[list[Tensor]] = [[] for _ in rates]
        for i, j in progress([(i, j) for i in range(len(rates)) for j in range(len(tokens))], "decoding"):
            decoded[i].append(to_uint8(tokenizer.decode(cut[i][j], **options or {})).cpu())
    seconds = time.perf_counter() - started
    originals = to_uint8(x).cpu()
    chosen, missing = _usable_scores()
    networks: dict[tuple[str, int], Any] = {}
    rungs = []
    for i, rate in enumerate(progress(rates, "scoring")):
        pictures = torch.cat(decoded[i])
        bits = torch.cat([part.bits() for part in cut[i]])
        rungs.append(
            Rung(
                rate=rate,
                count=next(iter(rate.values()), int(cut[i][0].counts[0])),
                bits=float(bits.mean()),
                bits_per_pixel=float(torch.cat([part.bits_per_pixel() for part in cut[i]]).mean()),
                pictures=pictures,
                scores=_scored(chosen, originals, pictures, networks),
            )
        )
    flat = originals.float().mean((2, 3), keepdim=True).round().to(torch.uint8).expand_as(originals)
    return Ladder(
        entry=info,
        parameters=sum(stored.numel() for stored in tokenizer.state_dict().values()),  # as `zoo show` counts
        paths=tuple(paths),
        originals=originals,
        rungs=tuple(rungs),
        scores=chosen,
        missing=missing,
        mean_colour={name: float(values.mean()) for name, values in _scored(chosen, originals, flat, networks).items()},
        seconds=seconds,
    )


def _usable_scores() -> tuple[tuple[Score, ...], str]:
    """All scores, or those without the feature network where its package is not installed, and why."""
    try:
        make_scorers([score.scorer for score in SCORES])
    except ModuleNotFoundError as error:
        return tuple(score for score in SCORES if not score.scorer.startswith("pdist")), str(error)
    return SCORES, ""


def _scored(
    scores: Sequence[Score], originals: Tensor, pictures: Tensor, networks: dict[tuple[str, int], Any]
) -> dict[str, Tensor]:
    scorers = make_scorers([score.scorer for score in scores], networks=networks)
    index = torch.arange(len(originals))
    values = {}
    with torch.inference_mode():
        for name, scorer in scorers.items():
            scorer.update(originals, pictures, index=index)
            values[name] = scorer.per_item()[1]
    return values
