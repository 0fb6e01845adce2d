"""What the scorers of clips share: checks, and clips cut into stretches so that memory does not grow with their length."""

from collections.abc import Iterator

import torch
from torch import Tensor

from eval.clips import Clips
from eval.scorers.base import ItemScorer
from eval.scorers.records import ScorerRecord

__all__ = ["ClipScorer", "check_clips", "stretches"]

_FRAMES = 64  # a network looks at so many at once


def stretches(frames: Tensor) -> Iterator[Tensor]:
    """Cut `(t, ...)` into parts of at most 64 frames; one that is no longer is given as it is, so that caches know it."""
    if len(frames) <= _FRAMES:
        yield frames
    else:
        yield from frames.split(_FRAMES)


def check_clips(record: ScorerRecord, reference: Clips, reconstruction: Clips) -> None:
    """Refuse what is not a pair of batches of clips of the same sizes."""
    for name, clips in (("reference", reference), ("reconstruction", reconstruction)):
        if not isinstance(clips, Clips):
            raise TypeError(f"{record.name}.update: {name} is a {type(clips).__name__}. Needed: eval.clips.Clips.")
    sizes = [[tuple(clip.shape) for clip in clips.frames] for clips in (reference, reconstruction)]
    if sizes[0] != sizes[1]:
        wrong = next(((a, b) for a, b in zip(*sizes, strict=False) if a != b), None)
        told = (
            f"{len(sizes[0])} and {len(sizes[1])} clips" if wrong is None else f"a clip is {wrong[0]} and {wrong[1]}, (t, 3, h, w)"
        )
        raise ValueError(f"{record.name}.update: {told}. Needed: the same clips, frame by frame.")
    side = min(min(clip.shape[2:]) for clip in reference.frames)
    if side < record.min_side:
        raise ValueError(f"{record.name}.update: a side of {side} px is too small. Needed: at least {record.min_side} px.")


class ClipScorer(ItemScorer):
    """An item scorer of originals and reconstructions; a subclass implements `score` for one clip."""

    def score(self, reference: Clips, reconstruction: Clips, i: int) -> float:
        """Score clip i of the batches."""
        raise NotImplementedError

    def update(self, reference: Clips, reconstruction: Clips, *, index: Tensor | None = None, failed: Tensor | None = None) -> None:
        """Score a batch.

        Args:
            reference: originals.
            reconstruction: the same clips after the tokenizer, frame by frame.
            index: `(b,)` number of each clip in its data set; None for clips without numbers.
            failed: `(b,)` boolean, True where there is no original or no reconstruction: the clip is NaN and counted, and its
                frames are not looked at.

        Raises:
            TypeError: no `Clips`.
            ValueError: other sizes, or frames that are too small.
        """
        check_clips(self.record, reference, reconstruction)
        bad = [False] * len(reference) if failed is None else failed.tolist()
        values = [torch.nan if skip else self.score(reference, reconstruction, i) for i, skip in enumerate(bad)]
        self._add(torch.tensor(values, dtype=torch.float64, device=self.device), index, failed)
