"""What is known of each scorer of clips, as plain data: no torch.

A scorer of frames is a scorer of pictures, its mean over the frames of a clip, then over clips; so clips of unequal length weigh
the same.
"""

from dataclasses import replace
from typing import Any

from eval.scorers.records import RECORDS as PICTURE_RECORDS
from eval.scorers.records import ScorerRecord

__all__ = ["DEFAULT_VIDEO", "VIDEO_RECORDS"]

_POOLED = "each frame, mean over the frames of a clip, mean over clips"
_FRAME_SCORERS = ("psnr_db", "ssim", "ssim_valid", "pdist_mbv2", "pdist_lite0", "lpips", "lpips_vgg")


def _on_frames(name: str) -> ScorerRecord:
    """The record of a scorer of pictures, applied to the frames of a clip."""
    of_pictures = PICTURE_RECORDS[name]
    return replace(
        of_pictures, name=f"frame_{name}", modality="video", protocol={**of_pictures.protocol, "frames": _POOLED, "scorer": name}
    )


_MOTION: dict[str, Any] = {"modality": "video", "kind": "item", "unit": "1", "better": "lower"}
_SCALE = "values v / 255 in [0, 1]"
_ONE_FRAME = "a clip of one frame has no value: it counts as failed"
_FLOW: dict[str, Any] = {
    "flow": "of the original, from each frame to the one before: pyramid of halves to 16 px, 5 steps of Lucas and Kanade a level, "
    "Gaussian window of sigma 2 px, then a median of 5 x 5",
    "occlusion": "forward-backward check, |f + b|^2 <= 0.01 (|f|^2 + |b|^2) + 0.5, and inside the frame; the rest is left out",
    "scale": _SCALE,
    "one_frame": _ONE_FRAME,
}

_MOTION_SCORERS = [
    ScorerRecord(
        name="temporal_difference_rmse",
        range=(0.0, 2.0),
        source="root of the mean square, over a clip, of the frame-to-frame change of the reconstruction minus the original's",
        protocol={"scale": _SCALE, "one_frame": _ONE_FRAME},
        **_MOTION,
    ),
    ScorerRecord(
        name="warping_error",
        range=(0.0, 1.0),
        source="the form of Lai et al., arXiv 1808.00449, equation 8, on another flow: mean squared difference of a frame of the "
        "reconstruction and the one before, moved by the flow of the original. A clip that is blurred or stands still has little "
        "of it: read it with frame_psnr_db",
        protocol=_FLOW,
        **_MOTION,
    ),
    ScorerRecord(
        name="flicker_rmse",
        range=(0.0, 2.0),
        source="root of the mean square of the change of the error (reconstruction minus original) along the original's motion: "
        "an error that travels with the things it belongs to counts nothing, one that comes and goes does. 0 for the original",
        protocol=_FLOW,
        **_MOTION,
    ),
]

_RATE = ScorerRecord(
    name="tokens_per_second",
    unit="1/s",
    better="lower",
    kind="tokens",
    modality="video",
    needs_reference=False,
    range=(0.0, None),
    source="positions that carry codes over the seconds of the clip (frames / frame rate of its file)",
    protocol={"depth": "all codes of one position are one token"},
)


def _on_clips(short: str) -> list[ScorerRecord]:
    """Scorers of two sets of clips, on the features of a network of pictures."""
    pooled = {
        **{key: PICTURE_RECORDS[f"kid_{short}"].protocol[key] for key in ("network", "input_side", "input")},
        "features": "last maps of each frame, mean over positions; of a clip: their mean over frames, and the root of the mean "
        "square of their change from frame to frame, one after the other",
    }
    other = "the features are those of a network of pictures, so this is not the FVD of papers"
    return [
        ScorerRecord(
            name=f"video_fd_{short}",
            unit="1",
            better="lower",
            kind="distribution",
            modality="video",
            range=(0.0, None),
            source=f"the distance of arXiv 1812.01717; {other}. With fewer than some 5,000 clips it mostly depends on n: read "
            f"video_kid_{short} first",
            protocol={**pooled, "covariance": "divided by n - 1"},
            min_items=2,
        ),
        ScorerRecord(
            name=f"video_kid_{short}",
            unit="1/1000",
            better="lower",
            kind="distribution",
            modality="video",
            range=(None, None),
            source=f"Binkowski et al., arXiv 1801.01401; {other}. Copies of the same clips can give less than 0",
            protocol={**pooled, "kernel": "(x.y / d + 1)^3", "estimate": "unbiased, all pairs, no subsets", "times": 1000},
            min_items=2,
        ),
    ]


VIDEO_RECORDS = [
    *(_on_frames(name) for name in _FRAME_SCORERS),
    *_MOTION_SCORERS,
    *_on_clips("mbv2"),
    _RATE,
]

DEFAULT_VIDEO: tuple[str, ...] = (
    "frame_psnr_db",
    "frame_ssim",
    "frame_pdist_mbv2",
    "temporal_difference_rmse",
    "warping_error",
    "flicker_rmse",
    "video_kid_mbv2",
    "video_fd_mbv2",
    "bits_per_pixel",
    "tokens_per_second",
    "codebook_use",
    "code_perplexity",
)
