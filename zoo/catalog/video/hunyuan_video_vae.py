"""The video autoencoder of HunyuanVideo."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="hunyuan_video_vae",
        family="hunyuan_video_vae",
        modality="video",
        summary="Video autoencoder of HunyuanVideo, 4 x 8 x 8 compression, 16 channels, 16 frames of lookahead.",
        weights=Weights(
            repo="hunyuanvideo-community/HunyuanVideo",
            file="vae/diffusion_pytorch_model.safetensors",
            layout="public",
            config_file="vae/config.json",
        ),
        layout="3d",
        discrete=False,
        channels=16,
        native_size=(720, 720),
        downsample=(4, 8, 8),
        size_multiple=8,
        streaming=True,
        lookahead_frames=16,
        stochastic_encode=True,
        license_code="LicenseRef-tencent-hunyuan-community",
        license_weights="LicenseRef-tencent-hunyuan-community",
        notice=(
            "these weights are under the Tencent Hunyuan Community License of their authors, which limits use and does not apply "
            "in the European Union, the United Kingdom and South Korea."
        ),
        paper="HunyuanVideo: A Systematic Framework For Large Video Generative Models, arXiv 2412.03603",
        source="Tencent/HunyuanVideo",
        parameters=246_478_803,
    ),
)
