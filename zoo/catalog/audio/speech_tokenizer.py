"""SpeechTokenizer of Fudan University."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="speech_tokenizer_hubert_avg",
        family="speech_tokenizer",
        modality="audio",
        summary="SpeechTokenizer at 16 kHz: eight codes every 20 ms, the first with the meaning of HuBERT's mean over all layers.",
        weights=Weights(
            repo="fnlp/SpeechTokenizer",
            file="speechtokenizer_hubert_avg/SpeechTokenizer.pt",
            config_file="speechtokenizer_hubert_avg/config.json",
            layout="public",
            pickle=True,
        ),
        layout="1d",
        discrete=True,
        residual=True,
        depth=8,
        codebook_size=1024,
        vocabulary=(1024,) * 8,
        downsample=(320, 1, 1),
        sample_rate=16000,
        frame_rate=50.0,
        bits_per_second=4000.0,
        audio_channels=1,
        trained_on="LibriSpeech",
        license_code="Apache-2.0",
        paper="SpeechTokenizer: Unified Speech Tokenizer for Speech Language Models, arXiv 2308.16692",
        source="ZhangXInFD/SpeechTokenizer",
        parameters=120_450_258,
        tags=("encoder:cnn+lstm", "quantizer:rvq", "training:joint+distillation", "streamable:none", "domain:speech", "semantic"),
    ),
)
