"""Sizes of the KL-16 autoencoder of MAR, read in its tensors: the release has no configuration file."""

import re
from typing import Any

__all__ = ["kl16_sizes"]

_NEEDED = ("encoder.conv_in.weight", "post_quant_conv.weight", "quant_conv.weight")


def kl16_sizes(shapes: dict[str, tuple[int, ...]], *, family: str) -> dict[str, Any]:
    """Give `latent_channels`, `width`, `multipliers`, `blocks`, `encoder_attention` and `decoder_attention`.

    Args:
        shapes: of the tensors, by the release's names.
        family: for the errors.

    Raises:
        ValueError: tensors of another network, or without two numbers (mean and log variance) for each latent.
    """
    missing = [key for key in _NEEDED if key not in shapes]
    if missing:
        raise ValueError(f"{family}: the weights have no {', '.join(missing)}. Are they those of the KL-16 autoencoder of MAR?")
    width, channels = shapes["encoder.conv_in.weight"][0], shapes["post_quant_conv.weight"][0]
    if shapes["quant_conv.weight"][0] != 2 * channels:
        found = shapes["quant_conv.weight"][0]
        raise ValueError(f"{family}: quant_conv has {found} channels for {channels} latents. Needed: {2 * channels}.")
    first = re.compile(r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    levels = {int(match[1]): shape[0] for key, shape in shapes.items() if (match := first.fullmatch(key))}
    return {
        "latent_channels": channels,
        "width": width,
        "multipliers": [levels[level] // width for level in sorted(levels)],
        "blocks": sum(bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", key)) for key in shapes),
        "encoder_attention": _with_attention(shapes, "encoder.down"),
        "decoder_attention": _with_attention(shapes, "decoder.up"),
    }


def _with_attention(shapes: dict[str, tuple[int, ...]], part: str) -> list[int]:
    pattern = re.compile(rf"{re.escape(part)}\.(\d+)\.attn\.0\.q\.weight")
    return sorted(int(match[1]) for key in shapes if (match := pattern.fullmatch(key)))
