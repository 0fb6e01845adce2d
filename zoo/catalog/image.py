"""Image tokenizers of the zoo."""

from zoo.registry import Entry

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="kl_vae_nano",
        family="autoencoder_kl",
        modality="image",
        summary="Small KL autoencoder, the continuous front end of the nano tokenizers.",
        config=dict(
            latent_channels=16,
            scaling_factor=1.0,
            block_channels=(24, 48, 64, 96),
            layers_per_block=1,
            norm_groups=8,
            image_size=64,
        ),
        layout="2d",
        discrete=False,
        channels=16,
        tokens=64,
        native_size=(64, 64),
        downsample=(1, 8, 8),
        size_multiple=8,
        stochastic_encode=True,
        license_code="Apache-2.0",
        license_weights="GPL-3.0-or-later",
        paper="High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752",
        recipe="kl_vae_nano",
    ),
)
