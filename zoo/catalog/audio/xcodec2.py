"""X-Codec2 and NeuCodec, in the files that transformers reads."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

_TAGS = ("encoder:cnn+transformer", "quantizer:fsq", "training:joint", "streamable:none", "domain:speech", "semantic")

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="xcodec2",
        family="xcodec2",
        modality="audio",
        summary="X-Codec2 for speech at 16 kHz and 0.8 kbit/s: one code of 65,536, 50 times a second, that holds meaning too.",
        weights=Weights(repo="HKUSTAudio/xcodec2-hf", layout="public"),
        layout="1d",
        discrete=True,
        codebook_size=65_536,
        vocabulary=(65_536,),
        downsample=(320, 1, 1),
        size_multiple=320,
        bits_per_second=800.0,
        sample_rate=16_000,
        frame_rate=50.0,
        audio_channels=1,
        license_weights="CC-BY-NC-4.0",
        notice="The weights may not be used commercially (CC-BY-NC-4.0).",
        paper="Llasa: Scaling Train-Time and Inference-Time Compute for Llama-based Speech Synthesis, arXiv 2502.04128",
        source="zhenye234/X-Codec-2.0",
        parameters=629_280_682,
        tags=_TAGS,
    ),
    Entry(
        name="neucodec",
        family="xcodec2",
        modality="audio",
        summary="NeuCodec for speech at 0.8 kbit/s: encoded at 16 kHz, decoded at 24 kHz; one code of 65,536 for 20 ms.",
        config=dict(sample_rate=24_000, padded_spectrum=False),
        weights=Weights(repo="neuphonic/neucodec", layout="public"),
        layout="1d",
        discrete=True,
        codebook_size=65_536,
        vocabulary=(65_536,),
        downsample=(480, 1, 1),
        size_multiple=480,
        bits_per_second=800.0,
        sample_rate=24_000,
        frame_rate=50.0,
        audio_channels=1,
        trained_on="Emilia, Multilingual LibriSpeech, VCTK, FLEURS, Common Voice and LibriTTS-R",
        license_weights="Apache-2.0",
        paper=(
            "Finite Scalar Quantization Enables Redundant and Transmission-Robust Neural Audio Compression at Low Bit-rates, "
            "arXiv 2509.09550"
        ),
        source="neuphonic/neucodec",
        parameters=629_936_682,
        tags=_TAGS,
    ),
)
