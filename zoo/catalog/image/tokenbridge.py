"""TokenBridge on MAR's KL-16."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="tokenbridge_kl16",
        family="tokenbridge",
        modality="image",
        summary="TokenBridge on MAR's KL-16 autoencoder: 256 positions of 16 channels, each channel rounded to 6 bits.",
        weights=Weights(
            repo="Epiphqny/TokenBridge",
            file="vae/kl16.ckpt",
            layout="public",
            config_file=None,
            pickle=True,
            key="model",
        ),
        layout="2d",
        discrete=True,
        tokens=256,
        depth=16,
        codebook_size=64,
        vocabulary=(64,) * 16,
        native_size=(256, 256),
        downsample=(1, 16, 16),
        size_multiple=16,
        bits_per_pixel=0.375,
        stochastic_encode=True,
        license_code="MIT",
        paper="Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation, arXiv 2503.16430",
        source="YuqingWang1029/TokenBridge@3ede281",
        parameters=66_456_019,
    ),
)
