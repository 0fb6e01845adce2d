"""SEED of Tencent AI Lab."""

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="seed_2",
        family="seed",
        modality="image",
        summary="SEED-2: 32 causal codes with meaning, decoded to a CLIP image embedding instead of pixels.",
        weights=Weights(
            repo="AILab-CVC/seed-tokenizer-2",
            file="seed_quantizer.pt",
            layout="public",
            config_file=None,
            pickle=True,
        ),
        layout="1d",
        discrete=True,
        tokens=32,
        codebook_size=8192,
        vocabulary=(8192,),
        native_size=(224, 224),
        size_multiple=224,
        max_size=224,
        bits_per_pixel=0.00829082,
        paper="Making LLaMA SEE and Draw with SEED Tokenizer, arXiv 2310.01218",
        source="AILab-CVC/SEED@93b3cf4",
        parameters=1_150_006_722,
        tags=("semantic", "causal codes"),
    ),
)
