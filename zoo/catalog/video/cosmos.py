"""Cosmos video tokenizers: continuous (CV) and discrete (DV), by compression in time, height and width."""

import re

from zoo.registry import Entry, Weights

__all__ = ["ENTRIES"]

# Repository of nvidia -> numbers in the weights.
_PARAMETERS = {
    "Cosmos-0.1-Tokenizer-CV4x8x8": 85_783_232,
    "Cosmos-0.1-Tokenizer-CV8x8x8": 105_653_696,
    "Cosmos-0.1-Tokenizer-CV8x16x16": 110_898_624,
    "Cosmos-0.1-Tokenizer-DV4x8x8": 104_669_558,
    "Cosmos-0.1-Tokenizer-DV8x8x8": 105_653_366,
    "Cosmos-0.1-Tokenizer-DV8x16x16": 110_898_294,
    "Cosmos-1.0-Tokenizer-CV8x8x8": 105_653_696,
    "Cosmos-1.0-Tokenizer-DV8x16x16": 110_898_294,
}
_LEVELS = (8, 8, 8, 5, 5, 5)


def _entry(repo: str, parameters: int) -> Entry:
    """The entry of one release; everything follows from its name."""
    match = re.fullmatch(r"Cosmos-(\d)\.(\d)-Tokenizer-([CD]V)(\d+)x(\d+)x(\d+)", repo)
    assert match is not None
    kind, time, side = match[3], int(match[4]), int(match[5])
    discrete, version = kind == "DV", f"{match[1]}.{match[2]}"
    config = dict(space_factor=side, time_factor=time)
    if discrete:
        config |= dict(latent_channels=6, levels=_LEVELS)
    elif time == 4:
        config |= dict(decoder_multipliers=(2, 4))
    what = "64,000 codes" if discrete else "16 channels"
    return Entry(
        name=f"cosmos_{'1_' if version == '1.0' else ''}{kind.lower()}{time}x{side}x{side}",
        family="cosmos",
        modality="video",
        summary=f"Cosmos {version} causal video tokenizer, {time} x {side} x {side} compression, {what}.",
        config=config,
        weights=Weights(repo=f"nvidia/{repo}", file="autoencoder.jit", layout="public", config_file=None),
        layout="3d",
        discrete=discrete,
        channels=None if discrete else 16,
        codebook_size=64000 if discrete else None,
        vocabulary=(64000,) if discrete else (),
        native_size=(1024, 1024),
        downsample=(time, side, side),
        size_multiple=side,
        causal=True,
        streaming=True,
        lookahead_frames=0,
        license_code="Apache-2.0",
        license_weights="LicenseRef-nvidia-open-model-license",
        notice="these weights are under the NVIDIA Open Model License, which allows commercial use under its terms.",
        paper="Cosmos World Foundation Model Platform for Physical AI, arXiv 2501.03575",
        source="NVIDIA/Cosmos-Tokenizer@3584ae75",
        parameters=parameters,
    )


ENTRIES: tuple[Entry, ...] = tuple(_entry(repo, parameters) for repo, parameters in _PARAMETERS.items())
