"""Opus and MP3 through the FFmpeg inside PyAV: a recording in, what a player would give back out, and the bits between."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.resampling import resample

__all__ = ["SOUND_CODECS", "Coded", "SoundCodec", "pyav"]

Coded = tuple[Tensor, int]


def pyav(codec: str) -> Any:
    """Import PyAV.

    Raises:
        ModuleNotFoundError: it is missing; the text has the command.
        ValueError: its FFmpeg was built without the encoder.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"baseline {codec}: package av is not installed. Install it with: pip install 'tokenizer-zoo[video]'"
        ) from error
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError as error:
        raise ValueError(
            f"baseline: the FFmpeg in PyAV {av.__version__} has no encoder {codec}. Install a wheel of PyPI."
        ) from error
    return av


@dataclass(frozen=True, kw_only=True)
class SoundCodec:
    """A codec of sound.

    Attributes:
        name: of its rows.
        encoder: FFmpeg's name of it.
        container: in which the packets travel; it keeps the delay of the encoder, so that decoding gives the original's place.
        sample_format: that the encoder takes.
        options: that it is given.
        ladder: default rates in kbit/s asked for.
        rates: samples a second that it takes.
    """

    name: str
    encoder: str
    container: str
    sample_format: str
    options: Mapping[str, str] = field(default_factory=dict)
    ladder: tuple[int, ...]
    rates: tuple[int, ...]

    def facts(self, sample_rate: int) -> dict[str, str]:
        """What fixes its numbers, for the protocol's `decode`."""
        av = pyav(self.encoder)
        told = ", ".join(f"{key}={value}" for key, value in self.options.items()) or "none"
        return {
            "encoder": f"{self.encoder} of FFmpeg {av.ffmpeg_version_info}, PyAV {av.__version__}",
            "options": told,
            "input": f"16 bits, mono, {sample_rate} samples a second",
            "bits": "of the packets, without the container",
        }

    def code(self, wave: Tensor, sample_rate: int, kbps: int) -> Coded:
        """Encode and decode a waveform `(s,)` in [-1, 1]; gives the result, as long as the original, and the bits of its packets.

        Raises:
            ValueError: a rate that the codec does not take.
        """
        if sample_rate not in self.rates:
            raise ValueError(f"baseline {self.name}: {sample_rate} samples a second. Allowed: {', '.join(map(str, self.rates))}.")
        data, bits = self._encode(wave, sample_rate, kbps)
        decoded, rate = self._decode(data)
        y = resample(decoded, rate, sample_rate)[: len(wave)]
        return torch.nn.functional.pad(y, (0, len(wave) - len(y))), bits

    def _encode(self, wave: Tensor, sample_rate: int, kbps: int) -> tuple[bytes, int]:
        av = pyav(self.encoder)
        samples = (wave * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy()[None]
        buffer, bits = io.BytesIO(), 0
        with av.open(buffer, "w", format=self.container) as file:
            stream = file.add_stream(self.encoder, rate=sample_rate, layout="mono", options=dict(self.options))
            stream.bit_rate = 1000 * kbps
            stream.codec_context.format = av.AudioFormat(self.sample_format)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = sample_rate, 0
            to_format = av.AudioResampler(format=self.sample_format, layout="mono", rate=sample_rate)
            queue = av.AudioFifo()
            for part in (*to_format.resample(frame), *to_format.resample(None)):
                queue.write(part)
            stream.codec_context.open(strict=False)
            packets = []
            while (part := queue.read(stream.codec_context.frame_size, partial=True)) is not None:
                packets.extend(stream.encode(part))
            for packet in (*packets, *stream.encode(None)):
                bits += 8 * packet.size
                file.mux(packet)
        return buffer.getvalue(), bits

    def _decode(self, data: bytes) -> tuple[Tensor, int]:
        av = pyav(self.encoder)
        with av.open(io.BytesIO(data)) as file:
            frames = list(file.decode(audio=0))
        samples = np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32)
        scale = 32768 if frames[0].format.name.startswith("s16") else 1
        return torch.from_numpy(samples) / scale, frames[0].sample_rate


SOUND_CODECS = {
    codec.name: codec
    for codec in (
        SoundCodec(
            name="opus",
            encoder="libopus",
            container="ogg",
            sample_format="s16",
            options={"application": "voip", "frame_duration": "20", "vbr": "on"},
            ladder=(6, 9, 12, 16),
            rates=(8000, 12000, 16000, 24000, 48000),
        ),
        SoundCodec(
            name="opus_music",
            encoder="libopus",
            container="ogg",
            sample_format="s16",
            options={"application": "audio", "frame_duration": "20", "vbr": "on"},
            ladder=(6, 12, 24, 48),
            rates=(8000, 12000, 16000, 24000, 48000),
        ),
        SoundCodec(
            name="mp3",
            encoder="libmp3lame",
            container="mp3",
            sample_format="s16p",
            ladder=(8, 16, 24, 32),
            rates=(16000, 22050, 24000, 32000, 44100, 48000),
        ),
    )
}
