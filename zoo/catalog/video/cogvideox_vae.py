"""The video autoencoders of CogVideoX."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]


def _entry(size: str, config: dict[str, float], license_weights: str, notice: str | None) -> Entry:
    return Entry(
        name=f"cogvideox_{size}_vae",
        family="cogvideox_vae",
        modality="video",
        summary=f"Video autoencoder of CogVideoX-{size}, 4 x 8 x 8 compression, 16 channels, 8 frames of lookahead.",
        config=config,
        weights=Weights(
            repo=f"THUDM/CogVideoX-{size}",
            file="vae/diffusion_pytorch_model.safetensors",
            layout="public",
            config_file="vae/config.json",
        ),
        layout="3d",
        discrete=False,
        channels=16,
        native_size=(480, 480),
        downsample=(4, 8, 8),
        size_multiple=8,
        streaming=True,
        lookahead_frames=8,
        stochastic_encode=True,
        license_weights=license_weights,
        notice=notice,
        paper="CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer, arXiv 2408.06072",
        parameters=215_583_907,
    )


ENTRIES: tuple[Entry, ...] = (
    _entry("2b", {}, "Apache-2.0", None),
    _entry(
        "5b",
        {"scaling_factor": 0.7},
        "LicenseRef-cogvideox",
        "these weights are under the CogVideoX License of their authors, which limits commercial use.",
    ),
)
