"""Scores of what changes from frame to frame: the change itself, and what is left of it along the motion of the original."""

from collections.abc import Callable

import torch
from torch import Tensor

from eval.clips import Clips
from eval.scorers.records import ScorerRecord
from eval.scorers.video.base import ClipScorer
from eval.scorers.video.flow import moved, optical_flow, visible

__all__ = ["SCORERS", "FlickerRMSE", "TemporalDifferenceRMSE", "WarpingError", "along_motion", "temporal_difference_rmse"]

_PAIRS = 32  # pairs of frames at once
_MOST_KEPT = 2**24  # values of flow that a batch of clips remembers for each clip

Motion = list[tuple[Tensor, Tensor]]


def temporal_difference_rmse(reference: Tensor, reconstruction: Tensor) -> float:
    """Root of the mean square of the change of the error from frame to frame, of uint8 `(t, 3, h, w)`; NaN for one frame."""
    total, count = 0, 0
    for first in range(0, len(reference) - 1, _PAIRS):
        rows = slice(first, first + _PAIRS + 1)
        change = (reconstruction[rows].int() - reference[rows].int()).diff(dim=0)
        total += int(change.square().sum(dtype=torch.int64))
        count += change.numel()
    return (total / count) ** 0.5 / 255 if count else torch.nan


def _motion(frames: Tensor) -> Motion:
    """Flow from each frame to the one before, and where it can be trusted, of uint8 `(t, 3, h, w)`, in stretches."""
    out = []
    for first in range(0, len(frames) - 1, _PAIRS):
        before, after = frames[first:-1][:_PAIRS], frames[first + 1 :][:_PAIRS]
        flow = optical_flow(after, before)
        out.append((flow, visible(flow, optical_flow(before, after))))
    return out


def along_motion(reference: Clips, i: int, signal: Callable[[slice], Tensor]) -> float:
    """Mean square of the change of a signal along the motion of original i, over the places that are seen in both frames.

    Args:
        reference: originals; the motion is computed once for each.
        i: number of the clip in the batch.
        signal: gives `(n, c, h, w)` float32 of a range of frames.

    Returns:
        NaN where nothing can be followed, as in a clip of one frame.
    """
    frames = reference.frames[i]
    if frames.numel() <= _MOST_KEPT:
        motion = reference.once(("motion", i), lambda: _motion(frames))
    else:
        motion = _motion(frames)
    total, count, first = 0.0, 0, 0
    for flow, seen in motion:
        values = signal(slice(first, first + len(flow) + 1))
        change = values[1:] - moved(values[:-1], flow)
        total += float((change.square() * seen[:, None]).sum(dtype=torch.float64))
        count += int(seen.sum()) * values.shape[1]
        first += len(flow)
    return total / count if count else torch.nan


class TemporalDifferenceRMSE(ClipScorer):
    """`temporal_difference_rmse`."""

    def score(self, reference: Clips, reconstruction: Clips, i: int) -> float:
        return temporal_difference_rmse(reference.frames[i], reconstruction.frames[i])


class WarpingError(ClipScorer):
    """What changes in the reconstruction along the motion of the original, mean square."""

    def score(self, reference: Clips, reconstruction: Clips, i: int) -> float:
        frames = reconstruction.frames[i]
        return along_motion(reference, i, lambda rows: frames[rows].float() / 255)


class FlickerRMSE(ClipScorer):
    """What changes in the error along the motion of the original, root of the mean square."""

    def score(self, reference: Clips, reconstruction: Clips, i: int) -> float:
        a, b = reference.frames[i], reconstruction.frames[i]
        return along_motion(reference, i, lambda rows: (b[rows].float() - a[rows].float()) / 255) ** 0.5


SCORERS: dict[str, Callable[[ScorerRecord], ClipScorer]] = {
    "temporal_difference_rmse": TemporalDifferenceRMSE,
    "warping_error": WarpingError,
    "flicker_rmse": FlickerRMSE,
}
