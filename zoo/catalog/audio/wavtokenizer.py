"""WavTokenizer of Zhejiang University."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

_PAPER = "WavTokenizer: an Efficient Acoustic Discrete Codec Tokenizer for Audio Language Modeling, arXiv 2408.16532"

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="wavtokenizer_large_speech_75",
        family="wavtokenizer",
        modality="audio",
        summary="WavTokenizer for speech at 24 kHz and 0.9 kbit/s: one code of 4096, 75 times a second.",
        weights=Weights(
            repo="novateur/WavTokenizer-large-speech-75token",
            file="wavtokenizer_large_speech_320_v2.ckpt",
            layout="public",
            config_file=None,
            pickle=True,
        ),
        layout="1d",
        discrete=True,
        codebook_size=4096,
        vocabulary=(4096,),
        downsample=(320, 1, 1),
        sample_rate=24000,
        frame_rate=75.0,
        bits_per_second=900.0,
        audio_channels=1,
        license_code="MIT",
        paper=_PAPER,
        source="jishengpeng/WavTokenizer",
        parameters=75_945_845,
        tags=("encoder:cnn+lstm+transformer", "quantizer:vq", "training:joint", "streamable:none", "domain:speech"),
    ),
    Entry(
        name="wavtokenizer_large_unify_40",
        family="wavtokenizer",
        modality="audio",
        summary="WavTokenizer for speech, music and other sound at 24 kHz and 0.48 kbit/s: one code of 4096, 40 times a second.",
        config=dict(strides=(6, 5, 5, 4)),
        weights=Weights(
            repo="novateur/WavTokenizer-large-unify-40token",
            file="wavtokenizer_large_unify_600_24k.ckpt",
            layout="public",
            config_file=None,
            pickle=True,
        ),
        layout="1d",
        discrete=True,
        codebook_size=4096,
        vocabulary=(4096,),
        downsample=(600, 1, 1),
        sample_rate=24000,
        frame_rate=40.0,
        bits_per_second=480.0,
        audio_channels=1,
        license_code="MIT",
        paper=_PAPER,
        source="jishengpeng/WavTokenizer",
        parameters=76_307_413,
        tags=("encoder:cnn+lstm+transformer", "quantizer:vq", "training:joint", "streamable:none", "domain:general"),
    ),
)
