"""H.264 and AV1 through the FFmpeg inside PyAV: frames in, the decoded frames out, and the bits between."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from eval.baselines.sounds import pyav

__all__ = ["VIDEO_CODECS", "VideoCodec"]


@dataclass(frozen=True, kw_only=True)
class VideoCodec:
    """A codec of video.

    Attributes:
        name: of its rows.
        encoder: FFmpeg's name of it.
        options: that it is given, beside `crf`, its constant quality.
        ladder: default constant qualities, best first.
    """

    name: str
    encoder: str
    options: Mapping[str, str] = field(default_factory=dict)
    ladder: tuple[int, ...]

    def facts(self) -> dict[str, str]:
        """What fixes its numbers, for a protocol's `decode`."""
        av = pyav(self.encoder)
        return {
            "encoder": f"{self.encoder} of FFmpeg {av.ffmpeg_version_info}, PyAV {av.__version__}",
            "options": ", ".join(f"{key}={value}" for key, value in self.options.items()),
            "input": "8-bit RGB, turned into 4:2:0 and back by swscale",
            "bits": "of the packets and the headers of the stream, without the container",
        }

    def code(self, frames: np.ndarray, fps: float, crf: int) -> tuple[np.ndarray, int]:
        """Encode and decode a clip, uint8 RGB `(t, h, w, 3)`; gives the result, same shape, and the bits of its packets.

        Raises:
            ValueError: another shape or type, or odd sides, which 4:2:0 does not have.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
            raise ValueError(f"baseline {self.name}: frames are {frames.dtype} {frames.shape}. Needed: uint8 (t, h, w, 3).")
        if frames.shape[1] % 2 or frames.shape[2] % 2:
            raise ValueError(f"baseline {self.name}: frames of {frames.shape[1]} x {frames.shape[2]} px. Needed: even sides.")
        data, bits = self._encode(frames, fps, crf)
        av = pyav(self.encoder)
        with av.open(io.BytesIO(data)) as file:
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        if decoded.shape != frames.shape:
            raise ValueError(f"baseline {self.name}: {len(frames)} frames came back as {len(decoded)}. Report the clip.")
        return decoded, bits

    def _encode(self, frames: np.ndarray, fps: float, crf: int) -> tuple[bytes, int]:
        av = pyav(self.encoder)
        buffer, bits = io.BytesIO(), 0
        with av.open(buffer, "w", format="matroska") as file:
            rate = Fraction(fps).limit_denominator(1001)
            stream = file.add_stream(self.encoder, rate=rate, options={**self.options, "crf": str(crf)})
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            packets = []
            for frame in frames:
                packets.extend(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            for packet in (*packets, *stream.encode(None)):
                bits += 8 * packet.size
                file.mux(packet)
            bits += 8 * len(stream.codec_context.extradata or b"")
        return buffer.getvalue(), bits


VIDEO_CODECS = {
    codec.name: codec
    for codec in (
        VideoCodec(
            name="h264",
            encoder="libx264",
            options={"preset": "medium", "threads": "1", "x264-params": "log-level=none"},
            ladder=(18, 23, 28, 33, 38, 43),
        ),
        VideoCodec(
            name="av1",
            encoder="libsvtav1",
            options={"preset": "6", "svtav1-params": "lp=1"},
            ladder=(20, 30, 40, 50, 60),
        ),
    )
}
