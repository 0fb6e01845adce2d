"""X-Codec with five speech models behind it, and the tokenizer of Higgs Audio 2, in the files that transformers reads."""

from typing import Any

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

_PAPER = "Codec Does Matter: Exploring the Semantic Shortcoming of Codec for Audio Language Model, arXiv 2408.17175"
_TAGS = ("encoder:cnn+transformer", "quantizer:rvq", "training:joint", "streamable:none")


def _entry(name: str, repo: str, summary: str, *, domain: str, **more: Any) -> Entry:
    """X-Codec at 16 kHz; the five public files differ in the speech model and the data."""
    return Entry(
        name=name,
        family="xcodec",
        modality="audio",
        summary=summary,
        weights=Weights(repo=repo, layout="public"),
        layout="1d",
        discrete=True,
        residual=True,
        depth=8,
        codebook_size=1024,
        vocabulary=(1024,) * 8,
        downsample=(320, 1, 1),
        size_multiple=320,
        bits_per_second=4000.0,
        sample_rate=16_000,
        frame_rate=50.0,
        audio_channels=1,
        license_code="MIT",
        paper=_PAPER,
        source="zhenye234/xcodec",
        tags=(*_TAGS, f"domain:{domain}", "semantic"),
        **more,
    )


_WAVLM = dict(semantic_model="wavlm")

ENTRIES: tuple[Entry, ...] = (
    _entry(
        "xcodec_hubert_librispeech",
        "hf-audio/xcodec-hubert-librispeech",
        "X-Codec for speech at 16 kHz with HuBERT's features in its codes, up to 8 for 20 ms.",
        domain="speech",
        trained_on="LibriSpeech",
        parameters=177_483_273,
    ),
    _entry(
        "xcodec_wavlm_mls",
        "hf-audio/xcodec-wavlm-mls",
        "X-Codec for speech at 16 kHz with WavLM's features in its codes, up to 8 for 20 ms.",
        domain="speech",
        config=_WAVLM,
        trained_on="Multilingual LibriSpeech, English",
        parameters=177_493_497,
    ),
    _entry(
        "xcodec_wavlm_more_data",
        "hf-audio/xcodec-wavlm-more-data",
        "X-Codec for speech at 16 kHz with WavLM's features in its codes, trained on more data.",
        domain="speech",
        config=_WAVLM,
        trained_on="Multilingual LibriSpeech, English, and internal data of the authors",
        license_weights="CC-BY-4.0",
        parameters=177_493_497,
    ),
    _entry(
        "xcodec_hubert_general",
        "hf-audio/xcodec-hubert-general",
        "X-Codec for sound of any kind at 16 kHz, with the features of a HuBERT trained on such sound.",
        domain="general",
        trained_on="200,000 hours of internal data of the authors",
        parameters=177_483_273,
    ),
    _entry(
        "xcodec_hubert_general_balanced",
        "hf-audio/xcodec-hubert-general-balanced",
        "X-Codec for sound of any kind at 16 kHz, trained on more balanced data.",
        domain="general",
        parameters=177_483_273,
    ),
    Entry(
        name="higgs_audio_v2_tokenizer",
        family="xcodec",
        modality="audio",
        summary="Tokenizer of Higgs Audio 2 for speech, music and other sound at 24 kHz and 2 kbit/s: 8 codes for 40 ms.",
        config=dict(
            sample_rate=24_000,
            strides=(8, 5, 4, 2, 3),
            decoder_strides=(8, 5, 4, 2, 3),
            codebook_channels=64,
        ),
        weights=Weights(repo="bosonai/higgs-audio-v2-tokenizer", layout="public"),
        layout="1d",
        discrete=True,
        residual=True,
        depth=8,
        codebook_size=1024,
        vocabulary=(1024,) * 8,
        downsample=(960, 1, 1),
        size_multiple=960,
        bits_per_second=2000.0,
        sample_rate=24_000,
        frame_rate=25.0,
        audio_channels=1,
        license_weights="LicenseRef-boson-higgs-audio-2-community",
        notice="The weights have a licence of their own, which asks large services for another one. Read it before you use them.",
        paper="Higgs Audio V2 (no paper; the release's technical notes)",
        source="boson-ai/higgs-audio",
        parameters=201_400_553,
        tags=(*_TAGS, "domain:general", "semantic"),
    ),
)
