"""Scorers of pictures on the frames of clips: the mean over the frames of a clip is its value."""

import torch

from eval.clips import Clips
from eval.scorers import image
from eval.scorers.base import PictureScorer
from eval.scorers.networks import Networks
from eval.scorers.records import RECORDS, ScorerRecord
from eval.scorers.video.base import ClipScorer, stretches

__all__ = ["FrameScorer", "make"]


class FrameScorer(ClipScorer):
    """The mean of a scorer of pictures over the frames of each clip.

    Args:
        record: of this scorer.
        of_pictures: scores the frames; what its record knows beside the registry's (the hash of its network) is taken over.
    """

    def __init__(self, record: ScorerRecord, of_pictures: PictureScorer) -> None:
        known = {key: value for key, value in of_pictures.record.protocol.items() if key not in record.protocol}
        super().__init__(record.with_protocol(**known))
        self._of_pictures = [of_pictures]  # in a list: its states are not those of this metric

    def score(self, reference: Clips, reconstruction: Clips, i: int) -> float:
        pairs = zip(stretches(reference.frames[i]), stretches(reconstruction.frames[i]), strict=True)
        return float(torch.cat([self._of_pictures[0].score(a, b) for a, b in pairs]).double().mean())


def make(record: ScorerRecord, networks: Networks) -> FrameScorer:
    """Build the scorer of a record; networks are taken from, and put into, `networks`."""
    return FrameScorer(record, image.make(RECORDS[record.protocol["scorer"]], networks))
