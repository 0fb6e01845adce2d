"""Decode the videos of the packages frame by frame, cut windows to small squares, and encode them as the clip pack stores them.

Checked against the pack: with PyAV 18.1.0, whose FFmpeg and x264 it was made with, clips come out equal byte for byte.
"""

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["SIDE", "X264", "VideoError", "encode", "frames", "square"]

SIDE = 128
X264 = {"crf": "17", "preset": "slow", "g": "33", "sc_threshold": "0", "threads": "2"}
"""Of the pack. x264 cuts a frame into as many slices as it has threads, so their number is part of the result."""
_PICTURES = (".pgm", ".ppm", ".png")


class VideoError(ValueError):
    """A video that cannot be decoded."""


def frames(paths: Sequence[Path]) -> Iterator[Image.Image]:
    """Yield the RGB frames of a video file, or of numbered pictures, in order.

    Raises:
        VideoError: not a video, or a damaged one.
        ModuleNotFoundError: PyAV is missing.
    """
    if paths[0].suffix in _PICTURES:
        for path in paths:
            try:
                yield Image.open(path).convert("RGB")
            except (OSError, SyntaxError, ValueError) as error:  # Pillow says each of some broken file
                raise VideoError(f"frames: {path.name} is no picture ({error}).") from error
        return
    import av

    try:
        with av.open(str(paths[0])) as container:
            for frame in container.decode(video=0):
                yield Image.fromarray(frame.to_ndarray(format="rgb24"))
    except (av.error.FFmpegError, IndexError) as error:
        raise VideoError(f"frames: {paths[0].name} is no video, or a damaged one ({error}).") from error


def square(frame: Image.Image, box: tuple[int, int, int, int], side: int = SIDE) -> np.ndarray:
    """Cut a box from a frame and resize it by Lanczos: `(side, side, 3)` uint8."""
    return np.asarray(frame.crop(box).resize((side, side), Image.Resampling.LANCZOS))


def encode(pictures: Sequence[np.ndarray], fps: float) -> bytes:
    """Encode frames `(h, w, 3)` uint8 as H.264 4:2:0 in MP4; equal frames give equal bytes with the same version of PyAV.

    Raises:
        ModuleNotFoundError: PyAV is missing.
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=dict(X264))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()
