"""The video autoencoders of LTX-Video."""

from typing import Any

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

_095 = dict(
    block_channels=(128, 256, 512, 1024, 2048),
    blocks=(4, 6, 6, 2, 2),
    down=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    decoder_channels=(256, 512, 1024),
    decoder_blocks=(5, 5, 5, 5),
    up=(True, True, True),
    up_residual=(True, True, True),
    up_factor=(2, 2, 2),
    decode_timestep=0.0,
)


def _entry(version: str, repo: str, config: dict[str, Any], lookahead: int, licence: str, terms: str, parameters: int) -> Entry:
    return Entry(
        name=f"ltx_video_{version.replace('.', '')}_vae",
        family="ltx_video_vae",
        modality="video",
        summary=f"Video autoencoder of LTX-Video {version}, 8 x 32 x 32 compression, 128 channels; its decoder looks far ahead.",
        config=config,
        weights=Weights(
            repo=repo,
            file="vae/diffusion_pytorch_model.safetensors",
            layout="public",
            config_file="vae/config.json",
        ),
        layout="3d",
        discrete=False,
        channels=128,
        native_size=(512, 512),
        downsample=(8, 32, 32),
        size_multiple=32,
        streaming=True,
        lookahead_frames=lookahead,
        stochastic_encode=True,
        license_weights=licence,
        notice=f"these weights are under {terms} of their authors, which limits use.",
        paper="LTX-Video: Realtime Video Latent Diffusion, arXiv 2501.00103",
        source="Lightricks/LTX-Video",
        parameters=parameters,
    )


ENTRIES: tuple[Entry, ...] = (
    _entry("0.9.0", "diffusers/LTX-Video-0.9.0", {}, 191, "LicenseRef-ltx-video", "a licence", 419_193_905),
    _entry(
        "0.9.5",
        "Lightricks/LTX-Video-0.9.5",
        _095,
        173,
        "LicenseRef-ltx-video-openrail-m",
        "the Open RAIL-M License",
        1_246_913_778,
    ),
    _entry(
        "0.9.7",
        "Lightricks/LTX-Video-0.9.7-dev",
        _095,
        173,
        "LicenseRef-ltxv-open-weights",
        "the LTXV Open Weights License",
        1_246_913_778,
    ),
)
