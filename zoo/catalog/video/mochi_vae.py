"""The causal video autoencoder of Mochi 1."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="mochi_1_vae",
        family="mochi_vae",
        modality="video",
        summary="Causal video autoencoder of Mochi 1, 6 x 8 x 8 compression, 12 channels.",
        weights=Weights(
            repo="genmo/mochi-1-preview",
            file="vae/diffusion_pytorch_model.safetensors",
            layout="public",
            config_file="vae/config.json",
        ),
        layout="3d",
        discrete=False,
        channels=12,
        native_size=(480, 480),
        downsample=(6, 8, 8),
        size_multiple=8,
        causal=True,
        streaming=True,
        lookahead_frames=0,
        stochastic_encode=True,
        license_code="Apache-2.0",
        license_weights="Apache-2.0",
        source="genmoai/mochi",
        parameters=459_748_611,
    ),
)
