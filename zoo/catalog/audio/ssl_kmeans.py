"""K-means on self-supervised speech features; the networks are public, the centroids are found with `fit`."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

_NOTICE = "The public file holds the features only. Find the centroids with fit(sounds) before you encode."
_TAGS = (
    *("encoder:cnn+transformer", "quantizer:kmeans", "training:separate", "streamable:none", "domain:speech"),
    "semantic",
)

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="hubert_base_kmeans_500",
        family="ssl_kmeans",
        modality="audio",
        summary="Semantic codes: the nearest of 500 centroids of HuBERT base's ninth layer, 50 a second; decodes to features.",
        weights=Weights(
            repo="facebook/hubert-base-ls960", file="pytorch_model.bin", layout="public", config_file=None, pickle=True
        ),
        layout="1d",
        discrete=True,
        codebook_size=500,
        vocabulary=(500,),
        downsample=(320, 1, 1),
        sample_rate=16000,
        frame_rate=50.0,
        bits_per_second=448.2892142331043,
        audio_channels=1,
        trained_on="LibriSpeech (the features)",
        notice=_NOTICE,
        paper="HuBERT: Self-Supervised Speech Representation Learning by Masked Prediction of Hidden Units, arXiv 2106.07447",
        source="facebookresearch/fairseq",
        parameters=73_491_830,
        tags=_TAGS,
    ),
    Entry(
        name="wavlm_large_kmeans_1000",
        family="ssl_kmeans",
        modality="audio",
        summary="Semantic codes: the nearest of 1000 centroids of WavLM large's sixth layer, 50 a second; decodes to features.",
        config=dict(
            model="wavlm",
            layer=6,
            codebook_size=1000,
            width=1024,
            heads=16,
            mlp_width=4096,
            conv_norm="layer",
            pre_norm=True,
            normalise=True,
        ),
        weights=Weights(repo="microsoft/wavlm-large", file="pytorch_model.bin", layout="public", config_file=None, pickle=True),
        layout="1d",
        discrete=True,
        codebook_size=1000,
        vocabulary=(1000,),
        downsample=(320, 1, 1),
        sample_rate=16000,
        frame_rate=50.0,
        bits_per_second=498.28921423310433,
        audio_channels=1,
        trained_on="Libri-Light, GigaSpeech and VoxPopuli (the features)",
        notice=_NOTICE,
        paper="WavLM: Large-Scale Self-Supervised Pre-Training for Full Stack Speech Processing, arXiv 2110.13900",
        source="microsoft/unilm",
        parameters=89_733_370,
        tags=_TAGS,
    ),
)
