"""Clips as people have them, to tensors and back: files through PyAV, every frame by the project's resize rule.

Whole clips (`read_videos`, `write_video`) and endless ones at constant memory (`ClipReader`, `VideoWriter`) give equal values.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.media.containers import check_complete
from zoo.media.image import from_pil, open_picture, resize_crop, to_uint8
from zoo.whole_files import whole_file

__all__ = ["VIDEO_ENDINGS", "ClipReader", "VideoWriter", "read_videos", "to_frames", "write_video"]

VIDEO_ENDINGS = (".mp4", ".mkv", ".mov", ".avi")
"""Endings of the names of files that can be written."""

_MATRIX = 6  # BT.601, the matrix that the conversion from RGB uses; players guess another for large frames where nothing is said
_FRAMES = 8


# -- reading -----------------------------------------------------------------------------------------------------------------------


def read_videos(source: Any, *, size: int | tuple[int, int] | None, crop: bool = True) -> Tensor:
    """Turn a clip or a list of clips into `(b, 3, t, h, w)` float32 in [-1, 1].

    Args:
        source: path (a still picture is a clip of one frame); uint8 array `(t, h, w, 3)`; tensor `(3, t, h, w)` in [-1, 1] or
            uint8; a list of frames (PIL images, arrays `(h, w, 3)`, tensors `(3, h, w)`); a batch of arrays or tensors; or a list
            of clips.
        size: `(h, w)`, or one number for both; None keeps the size.
        crop: cut the centre; False keeps the aspect ratio, with the short side at the size.

    Raises:
        TypeError: something that is no clip.
        ValueError: no such file, a damaged or cut one, no frame, values or shapes that are not those of a clip, frames of unequal
            size in a clip, or clips that do not fit one batch.
    """
    clips = [_read(item, size, crop) for item in _clips(source)]
    shapes = {tuple(clip.shape) for clip in clips}
    if len(shapes) > 1:
        found = ", ".join(f"{t} x {h} x {w}" for _, t, h, w in sorted(shapes))
        advice = "Give encode() a list: [tok.preprocess(clip)[0] for clip in clips]"
        raise ValueError(f"preprocess: clips of {found} (frames, height, width) do not fit one batch. {advice}.")
    return torch.stack(clips)


def _clips(source: Any) -> list[Any]:
    """Split what was given into clips."""
    if isinstance(source, Tensor | np.ndarray) and source.ndim == 5:
        items = list(source)
    elif isinstance(source, list | tuple):
        items = list(source)
        if items and all(_is_frame(item) for item in items):
            return [items]
    else:
        return [source]
    if not items:
        raise ValueError("preprocess: the list of clips or frames is empty. Give at least one.")
    return items


def _is_frame(item: Any) -> bool:
    return isinstance(item, Image.Image) or (isinstance(item, Tensor | np.ndarray) and item.ndim <= 3)


def _read(source: Any, size: int | tuple[int, int] | None, crop: bool) -> Tensor:
    """One clip, `(3, t, h, w)`."""
    if isinstance(source, str | Path):
        with ClipReader(source, size=size, crop=crop) as reader:
            return torch.cat(list(reader), 2)[0]
    if isinstance(source, list | tuple):
        frames = list(source)
    elif isinstance(source, np.ndarray | Tensor):
        frames = _frames_of(source)
    else:
        raise TypeError(f"preprocess: {type(source).__name__} is no clip. Give a path, an array, a tensor or a list of frames.")
    if not frames:
        raise ValueError("preprocess: a clip without frames. Give at least one.")
    return _stacked([open_picture(frame) for frame in frames], size, crop)


def _frames_of(source: np.ndarray | Tensor) -> list[Any]:
    shape = tuple(source.shape)
    if isinstance(source, np.ndarray):
        if source.ndim != 4 or shape[3] != 3:
            raise ValueError(f"preprocess: array of shape {shape}. Needed: uint8 (t, h, w, 3), or a list of frames (h, w, 3).")
        return list(source)
    if source.ndim != 4 or shape[0] != 3:
        raise ValueError(f"preprocess: tensor of shape {shape}. Needed: (3, t, h, w), or a list of frames (3, h, w).")
    return list(source.unbind(1))


def _stacked(pictures: list[Image.Image], size: int | tuple[int, int] | None, crop: bool) -> Tensor:
    """Resize frames that must be of one size, and give `(3, t, h, w)`."""
    first = pictures[0].size
    for i, picture in enumerate(pictures):
        if picture.size != first:
            found = f"frame {i} is {_sides(picture.size)}, the first is {_sides(first)}"
            raise ValueError(f"preprocess: {found}. Frames have one size.")
    return from_pil([resize_crop(picture, size, crop=crop) for picture in pictures]).transpose(0, 1)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


class ClipReader:
    """Read a file in chunks `(1, 3, n, h, w)` in [-1, 1]: a context to walk through; memory is that of one chunk.

    Args:
        path: any file that FFmpeg reads; a still picture is a clip of one frame.
        size, crop: as for `read_videos`.
        frames: of a chunk.

    Attributes:
        frame_rate: frames per second, the average where it varies; None for a still picture.
        length: frames by the header; None where it does not say. A hint for progress.

    Raises:
        ValueError: no such file, or a damaged or cut one; on the way also frames of unequal size, damaged ones, or none at all.
    """

    frame_rate: float | None
    length: int | None

    def __init__(
        self, path: str | Path, *, size: int | tuple[int, int] | None = None, crop: bool = True, frames: int = _FRAMES
    ) -> None:
        if not isinstance(frames, int) or frames < 1:
            raise ValueError(f"ClipReader: frames={frames!r}. Allowed: at least 1.")
        self.path, self.size, self.crop, self.frames = Path(path), size, crop, frames
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        import av

        if not self.path.is_file():
            raise ValueError(f"preprocess: no file {self.path}. Give a clip, or a list of clips.")
        try:
            self._container = self._stack.enter_context(av.open(str(self.path)))
        except (av.error.FFmpegError, EOFError, OSError) as error:
            raise ValueError(f"preprocess: {self.path} is not a readable video ({error}).") from error
        try:
            check_complete(self.path)
            if not self._container.streams.video:
                raise ValueError(f"preprocess: {self.path} holds no pictures. Give a file with a video track.")
        except ValueError:
            self._stack.close()
            raise
        self._video = self._container.streams.video[0]
        rate = self._video.average_rate
        still = self._container.format.name.startswith("image2") or self._container.format.name.endswith("_pipe")
        self.frame_rate = float(rate) if rate and not still else None
        self.length = self._video.frames or (1 if still else self._guess())
        return self

    def _guess(self) -> int | None:
        """Frames by duration, for containers that do not count them."""
        import av

        if self.frame_rate is None or self._container.duration is None:
            return None
        return max(1, round(self._container.duration / av.time_base * self.frame_rate))

    def __iter__(self) -> Iterator[Tensor]:
        held: list[Image.Image] = []
        first: tuple[int, int] | None = None
        count = 0
        for picture in self._pictures():
            if first is not None and picture.size != first:
                found = f"frame {count} of {self.path} is {_sides(picture.size)}, the first is {_sides(first)}"
                raise ValueError(f"preprocess: {found}. Frames have one size.")
            first = picture.size
            count += 1
            held.append(resize_crop(picture, self.size, crop=self.crop))
            if len(held) == self.frames:
                yield from_pil(held).transpose(0, 1)[None]
                held = []
        if held:
            yield from_pil(held).transpose(0, 1)[None]
        if not count:
            raise ValueError(f"preprocess: {self.path} holds no frame. Give a clip with at least one.")

    def _pictures(self) -> Iterator[Image.Image]:
        """Frames in RGB, turned as the file says."""
        import av

        count = 0
        frames = self._container.decode(self._video)
        while True:
            try:
                frame = next(frames, None)
            except (av.error.FFmpegError, EOFError, OSError) as error:
                raise ValueError(f"preprocess: {self.path} is damaged after {count} frames ({error}).") from error
            if frame is None:
                return
            if frame.is_corrupt:
                raise ValueError(f"preprocess: {self.path} is damaged: frame {count} is not whole.")
            pixels = frame.to_ndarray(format="rgb24")
            turns = round(frame.rotation / 90) % 4
            count += 1
            yield Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)


# -- writing -----------------------------------------------------------------------------------------------------------------------


def to_frames(x: Tensor) -> list[np.ndarray]:
    """Turn `(b, 3, t, h, w)` into uint8 arrays `(t, h, w, 3)`, clamped to [-1, 1] and rounded.

    Raises:
        ValueError: another shape, or NaN.
    """
    if x.ndim != 5 or x.shape[1] != 3 or 0 in x.shape:
        raise ValueError(f"postprocess: tensor of shape {tuple(x.shape)}. Needed: (b, 3, t, h, w), each at least 1.")
    if bool(x.isnan().any()):
        raise ValueError("postprocess: the tensor holds NaN, so it is no clip.")
    return [to_uint8(item).permute(1, 2, 3, 0).cpu().numpy() for item in x]


class VideoWriter:
    """Write chunks `(1, 3, n, h, w)` as H.264 into a file that is there only when all is written: a context.

    Even sides are stored with half the colour resolution, which every player shows; odd ones with all of it.

    Args:
        path: ends in one of `VIDEO_ENDINGS`.
        frame_rate: frames per second.
        crf: quality of libx264, from 0 (no loss but the conversion of colours) to 51.

    Raises:
        ValueError: another ending, rate or quality.
    """

    def __init__(self, path: str | Path, *, frame_rate: float, crf: int = 18) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in VIDEO_ENDINGS:
            endings = ", ".join(VIDEO_ENDINGS)
            raise ValueError(f"VideoWriter: {self.path} ends in {self.path.suffix or 'nothing'}. Allowed: {endings}.")
        if not 0.01 <= frame_rate <= 1000:
            raise ValueError(f"VideoWriter: frame_rate={frame_rate!r}. Allowed: 0.01..1000 frames per second.")
        if crf not in range(52):
            raise ValueError(f"VideoWriter: crf={crf!r}. Allowed: 0..51.")
        self.frame_rate, self.crf = Fraction(frame_rate).limit_denominator(1001), crf
        self._stack = ExitStack()
        self._sides: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        import av

        temporary = self._stack.enter_context(whole_file(self.path))
        self._container = self._stack.enter_context(av.open(str(temporary), "w"))
        return self

    def _begin(self, height: int, width: int) -> None:
        options = {"crf": str(self.crf)}
        self._video = self._container.add_stream("libx264", rate=self.frame_rate, options=options)
        self._video.width, self._video.height = width, height
        self._video.pix_fmt = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
        self._video.codec_context.colorspace = _MATRIX
        self._video.codec_context.color_range = 1  # the limited range of television
        self._sides = (height, width)

    def write(self, x: Tensor) -> None:
        """Append a chunk.

        Raises:
            ValueError: another shape than `(1, 3, n, h, w)`, other sides than before, or NaN.
        """
        import av

        if x.ndim != 5 or len(x) != 1:
            raise ValueError(f"VideoWriter.write: chunk of shape {tuple(x.shape)}. Needed: (1, 3, n, h, w).")
        (frames,) = to_frames(x)
        sides = (frames.shape[1], frames.shape[2])
        if self._sides is None:
            self._begin(*sides)
        elif self._sides != sides:
            raise ValueError(f"VideoWriter.write: frames of {sides} after {self._sides}. A file has one size.")
        for pixels in frames:
            self._container.mux(self._video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self._sides is None:
            error = ValueError(f"VideoWriter: nothing was written to {self.path}. Write at least one frame.")
            self._stack.__exit__(ValueError, error, None)
            raise error
        if kind is None:
            self._container.mux(self._video.encode(None))
        self._stack.__exit__(kind, error, trace)


def write_video(x: Tensor, path: str | Path, *, frame_rate: float, crf: int = 18) -> None:
    """Write `(1, 3, t, h, w)` in [-1, 1] to a file that is whole or not there; see `VideoWriter`.

    Raises:
        ValueError: another shape, NaN, an ending that is none of `VIDEO_ENDINGS`, or a rate or quality that is none.
    """
    if x.ndim != 5 or len(x) != 1:
        raise ValueError(f"postprocess: {len(x) if x.ndim else 0} clips for one file {path}. Give one item, such as x[:1].")
    with VideoWriter(path, frame_rate=frame_rate, crf=crf) as writer:
        for chunk in x.split(_FRAMES, 2):
            writer.write(chunk)
