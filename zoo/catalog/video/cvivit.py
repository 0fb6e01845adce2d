"""C-ViViT: the causal model of Phenaki, and the only public weights, which are not causal.

The release of the public weights names a repository and a configuration, but no file: `pytorch_model.bin` is what its training code
writes and reads, in the folder that its users fetch.
"""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

_PAPER = "Phenaki: Variable Length Video Generation From Open Domain Textual Description, arXiv 2210.02399"

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="cvivit_nano",
        family="cvivit",
        modality="video",
        summary="Small C-ViViT at 128 px for a laptop-class CPU: 256 codes a picture and for every two later frames, any length.",
        config=dict(
            width=160,
            codebook_size=4096,
            codebook_channels=8,
            image_size=(128, 128),
            temporal_patch=2,
            spatial_depth=3,
            temporal_depth=2,
            heads=4,
            head=40,
            time_window=5,
        ),
        layout="3d",
        discrete=True,
        codebook_size=4096,
        vocabulary=(4096,),
        native_size=(128, 128),
        downsample=(2, 8, 8),
        size_multiple=8,
        causal=True,
        streaming=True,
        lookahead_frames=0,
        license_code="Apache-2.0",
        paper=_PAPER,
        parameters=3_380_302,
        recipe="cvivit_nano",
    ),
    Entry(
        name="cvivit_phenaki_128",
        family="cvivit",
        modality="video",
        summary="C-ViViT of Phenaki at 128 px, exactly causal: 256 codes a picture and for every two later frames, any length.",
        config=dict(time_window=6),
        layout="3d",
        discrete=True,
        codebook_size=8192,
        vocabulary=(8192,),
        native_size=(128, 128),
        downsample=(2, 8, 8),
        size_multiple=8,
        causal=True,
        streaming=True,
        lookahead_frames=0,
        license_code="Apache-2.0",
        paper=_PAPER,
        parameters=51_904_618,
        recipe="cvivit_phenaki_128",
    ),
    Entry(
        name="cvivit_webvid10m",
        family="cvivit",
        modality="video",
        summary="The only public C-ViViT, trained on clips of 11 frames at 128 px; its attention over time sees the whole clip.",
        config=dict(spatial_position_conv=True, quirk_position_layout=True, quirk_unmasked_time=True, quirk_normed_patches=True),
        weights=Weights(
            repo="obvious-research/phenaki-cvivit",
            file="frozen_models/pytorch_model.bin",
            layout="public",
            config_file=None,
            pickle=True,
        ),
        layout="3d",
        discrete=True,
        codebook_size=8192,
        vocabulary=(8192,),
        native_size=(128, 128),
        downsample=(2, 8, 8),
        size_multiple=8,
        trained_on="WebVid-10M, 8 frames a second",
        license_code="Unlicense",
        notice="The licence of these weights is not stated, and WebVid-10M may not be used commercially.",
        paper=_PAPER,
        source="obvious-research/phenaki-cvivit@e93f1c2e",
        parameters=52_020_458,
    ),
)
