"""KL-16 of MAR."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="mar_kl16",
        family="mar_kl",
        modality="image",
        summary="KL-16 autoencoder of MAR, 16 channels at a 16th of the side: the latents of MAR, xAR and FlowAR.",
        weights=Weights(
            repo="Epiphqny/TokenBridge",
            file="vae/kl16.ckpt",
            layout="public",
            config_file=None,
            pickle=True,
            key="model",
        ),
        layout="2d",
        discrete=False,
        channels=16,
        tokens=256,
        native_size=(256, 256),
        downsample=(1, 16, 16),
        size_multiple=16,
        stochastic_encode=True,
        license_code="MIT",
        paper="Autoregressive Image Generation without Vector Quantization, arXiv 2406.11838",
        source="YuqingWang1029/TokenBridge@3ede281",
        parameters=66_456_019,
    ),
)
