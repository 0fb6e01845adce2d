"""BigCodec of Detai Xin and others."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="bigcodec_16khz",
        family="bigcodec",
        modality="audio",
        summary="BigCodec for speech at 16 kHz and 1.04 kbit/s: one code of 8192 every 12.5 ms from 159 million parameters.",
        weights=Weights(
            repo="Alethia/BigCodec",
            file="bigcodec.pt",
            config_file=None,
            layout="public",
            pickle=True,
            key="CodecEnc+generator",
        ),
        layout="1d",
        discrete=True,
        codebook_size=8192,
        vocabulary=(8192,),
        downsample=(200, 1, 1),
        size_multiple=200,
        sample_rate=16000,
        frame_rate=80.0,
        bits_per_second=1040.0,
        audio_channels=1,
        trained_on="LibriSpeech",
        license_code="MIT",
        paper="BigCodec: Pushing the Limits of Low-Bitrate Neural Speech Codec, arXiv 2409.05377",
        source="Aria-K-Alethia/BigCodec@4861968",
        parameters=159_417_035,
        tags=("encoder:cnn+lstm", "quantizer:vq", "training:joint", "streamable:none", "domain:speech"),
    ),
)
