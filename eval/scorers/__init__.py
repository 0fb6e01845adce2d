"""Scorers by name: `torchmetrics.Metric` objects that add up over batches and devices. Listing them loads no torch."""

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from eval.scorers import records
from eval.scorers.audio.records import AUDIO_RECORDS, DEFAULT_AUDIO
from eval.scorers.records import DEFAULT_IMAGE, ScorerRecord
from eval.scorers.video.records import DEFAULT_VIDEO, VIDEO_RECORDS

if TYPE_CHECKING:
    from eval.scorers.base import Scorer
    from zoo.tokens import TokenSpec

__all__ = ["DEFAULT_AUDIO", "DEFAULT_IMAGE", "DEFAULT_VIDEO", "RECORDS", "ScorerRecord", "check_names", "make_scorers"]

RECORDS: dict[str, ScorerRecord] = {**records.RECORDS, **{record.name: record for record in (*VIDEO_RECORDS, *AUDIO_RECORDS)}}


def check_names(names: Iterable[str]) -> list[str]:
    """Give the names without repetition, in the order given.

    Raises:
        ValueError: no such scorer, with near matches; or none at all.
    """
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in RECORDS:
            near = difflib.get_close_matches(name, RECORDS, n=3, cutoff=0.4)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"scorers: there is no scorer {name!r}.{hint} Known: {', '.join(RECORDS)}.")
    if not chosen:
        raise ValueError(f"scorers: none was named. Known: {', '.join(RECORDS)}.")
    return chosen


def make_scorers(
    names: Iterable[str],
    *,
    spec: "TokenSpec | None" = None,
    positions: int | None = None,
    networks: dict[tuple[str, int], Any] | None = None,
) -> dict[str, "Scorer"]:
    """Build fresh scorers.

    Args:
        names: keys of `RECORDS`.
        spec: of the tokens, for scorers that count codes.
        positions: token positions of the longest item, for scorers that count codes of an ordered tokenizer.
        networks: feature networks that were already loaded; new ones are put in. Give the same dict again to share them, and their
            features of the batch in hand, between the scorers of several rates.

    Returns:
        name -> scorer, in the order of `names`.

    Raises:
        ValueError: an unknown name, or a scorer of codes without codes.
        ModuleNotFoundError: a package is missing; the text has the command.
        WeightsUnavailableError: official weights are neither on this machine nor to be had.
    """
    from eval.scorers import audio, distribution, image, tokens, video

    networks = {} if networks is None else networks
    made: dict[str, Scorer] = {}
    for name in check_names(names):
        record = RECORDS[name]
        if record.kind != "tokens" and record.modality == "audio":
            made[name] = audio.make(record, networks)
        elif record.kind != "tokens" and record.modality == "video":
            made[name] = video.make(record, networks)
        elif record.kind == "item":
            made[name] = image.make(record, networks)
        elif record.kind == "distribution":
            made[name] = distribution.make(record, networks)
        else:
            made[name] = tokens.make(record, spec, positions)
    return made
