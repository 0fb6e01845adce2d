"""Mimi, in the format of transformers and in that of Moshi."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

_PAPER = "Moshi: a speech-text foundation model for real-time dialogue, arXiv 2410.00037"
_TAGS = ("encoder:cnn+transformer", "quantizer:split-rvq", "training:joint+distillation", "streamable:causal", "domain:speech")

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="mimi_24khz",
        family="mimi",
        modality="audio",
        summary="Mimi for speech at 24 kHz: one code of meaning and up to 31 of sound every 80 ms; causal, streams both ways.",
        weights=Weights(repo="kyutai/mimi", layout="public"),
        layout="1d",
        discrete=True,
        residual=True,
        depth=32,
        codebook_size=2048,
        vocabulary=(2048,) * 32,
        downsample=(1920, 1, 1),
        bits_per_second=4400.0,
        sample_rate=24_000,
        frame_rate=12.5,
        audio_channels=1,
        causal=True,
        streaming=True,
        trained_on="speech",
        license_code="MIT",
        license_weights="CC-BY-4.0",
        paper=_PAPER,
        source="kyutai-labs/moshi",
        parameters=96_151_393,
        tags=_TAGS,
    ),
    Entry(
        name="mimi_24khz_moshi",
        family="mimi",
        modality="audio",
        summary="The same Mimi in the file that Moshi carries: the last frame is filled with silence first.",
        config=dict(padding="frames"),
        weights=Weights(
            repo="kyutai/moshiko-pytorch-bf16",
            file="tokenizer-e351c8d8-checkpoint125.safetensors",
            layout="public",
            config_file=None,
        ),
        layout="1d",
        discrete=True,
        residual=True,
        depth=32,
        codebook_size=2048,
        vocabulary=(2048,) * 32,
        downsample=(1920, 1, 1),
        bits_per_second=4400.0,
        sample_rate=24_000,
        frame_rate=12.5,
        audio_channels=1,
        causal=True,
        streaming=True,
        trained_on="speech",
        license_code="MIT",
        license_weights="CC-BY-4.0",
        paper=_PAPER,
        source="kyutai-labs/moshi",
        parameters=96_151_393,
        tags=_TAGS,
    ),
)
