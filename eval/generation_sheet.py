"""A sheet of samples: one row for each class, the same noise for the same column."""

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image

from eval.generation import Contender
from eval.protocols import noise_seed
from eval.sheet import SheetRow, draw_sheet
from zoo.media import to_uint8
from zoo.tokenizer import Tokenizer

__all__ = ["class_sheet"]


@torch.inference_mode()
def class_sheet(
    tokenizer: Tokenizer,
    contender: Contender,
    names: Mapping[int, str],
    *,
    columns: int = 8,
    guidance: float = 1.0,
    sampling: Mapping[str, Any] | None = None,
    decode: Mapping[str, Any] | None = None,
) -> Image.Image:
    """Draw samples at the full rate.

    Args:
        tokenizer: that decodes.
        contender: generator and seed.
        names: class number -> name, one row each.
        columns: samples of each class; the same column starts from the same noise.
        guidance, sampling, decode: as in `eval.generation.evaluate_generation`.
    """
    seeds = [noise_seed(contender.seed, number) for number in range(columns)]
    options: dict[str, Any] = dict(decode or {})
    if tokenizer.info.stochastic_decode:
        options["seed"] = seeds
    rows = []
    for label, name in names.items():
        tokens = contender.generator.sample([label] * columns, seed=seeds, guidance=guidance, **(sampling or {}))
        y = tokenizer.decode(tokens, **options).float()
        failed = ~torch.isfinite(y).flatten(1).all(1)
        pictures = to_uint8(torch.nan_to_num(y)).permute(0, 2, 3, 1).cpu().numpy()
        drawn = [None if bad else Image.fromarray(p) for p, bad in zip(pictures, failed.tolist(), strict=True)]
        rows.append(SheetRow(label=f"{label}: {name}", pictures=drawn))
    return draw_sheet([f"noise {i}" for i in range(columns)], rows)
