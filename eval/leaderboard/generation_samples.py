"""Samples of a generator for its page: classes below each other, the same noise in the same column, at every rate of its result.

They are made when the site is built, from weights that ship with the package. Where they do not ship, a sheet that lies beside the
result as `RESULT.sheet.png` (`zoo eval generate --sheet`) is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from eval.leaderboard.gallery import Unavailable, webp_address
from eval.leaderboard.generation_boards import Generated
from eval.protocols import noise_seed
from eval.rates import at_rate
from eval.runner import evaluation_mode, tensors_sha256
from zoo.media import to_uint8

__all__ = ["COLUMNS", "Strips", "make_strips", "stored_sheet"]

COLUMNS = 8
_CLASSES = 20  # shown at most
_QUALITY = 85


@dataclass(frozen=True, kw_only=True)
class Strips:
    """Samples of some classes at every rate.

    Attributes:
        steps: the rates in words.
        classes: numbers, one row each.
        strips: for each class, for each step: data address of the samples beside each other; None where the decoder failed.
        columns: samples in a strip.
        size: height and width of a sample in pixels.
    """

    steps: Sequence[str]
    classes: Sequence[int]
    strips: Sequence[Sequence[str | None]]
    columns: int
    size: tuple[int, int]


def make_strips(result: Generated, *, columns: int = COLUMNS) -> Strips:
    """Sample as the first run of a result did: its seed, guidance and options.

    Args:
        result: of a generator.
        columns: samples of each class.

    Raises:
        Unavailable: generator or tokenizer do not ship with the package, or are others than were measured.
    """
    import zoo
    from zoo import generators

    known = {entry.name: entry for entry in generators.find()}
    entry, values = known.get(result.generator), result.values
    tokenizers = {e.name: e for e in zoo.find()}
    if entry is None or entry.weights is None or entry.weights.repo is not None:
        raise Unavailable(f"The weights of {result.generator} do not ship with the package, so that nothing was sampled here.")
    if result.tokenizer not in tokenizers or not tokenizers[result.tokenizer].embedded:
        raise Unavailable(f"The weights of {result.tokenizer} do not ship with the package, so that nothing was decoded here.")
    generator, tokenizer = generators.load(entry.name), zoo.load(result.tokenizer)
    run, protocol = values["runs"][0], values["protocol"]
    for model, name, sha256 in (
        (generator, result.generator, run["weights_sha256"]),
        (tokenizer, result.tokenizer, values["tokenizer_sha256"]),
    ):
        if tensors_sha256(model) != sha256:
            raise Unavailable(f"The weights of {name} in the package are not those that were measured.")
    classes = list(range(min(generator.config.classes, _CLASSES)))
    seeds = [noise_seed(run["seed"], number) for number in range(columns)]
    decode = dict(protocol["decode"])
    if tokenizer.info.stochastic_decode:
        decode["seed"] = seeds
    rates = [dict(told["rate"]) for told in values["summary"]]
    strips: list[list[str | None]] = []
    with evaluation_mode(tokenizer), torch.inference_mode():
        for label in classes:
            tokens = generator.sample([label] * columns, seed=seeds, guidance=protocol["guidance"], **protocol["sampling"])
            strips.append([_strip(tokenizer.decode(at_rate(tokens, rate), **decode)) for rate in rates])
    size = tuple(protocol["pictures"]["size"])
    return Strips(steps=[p.rate for p in result.points], classes=classes, strips=strips, columns=columns, size=size)


def _strip(y: torch.Tensor) -> str | None:
    """Pictures `(b, 3, h, w)` in [-1, 1] beside each other."""
    if not torch.isfinite(y).all():
        return None
    pictures = to_uint8(y.float()).permute(0, 2, 3, 1).cpu().numpy()
    return webp_address(Image.fromarray(np.concatenate(list(pictures), axis=1)), lossless=False, quality=_QUALITY)


def stored_sheet(result: Generated) -> str | None:
    """Give the sheet that lies beside a result as a data address; None where there is none."""
    path = result.path.with_suffix(".sheet.png")
    if not path.is_file():
        return None
    return webp_address(Image.open(path).convert("RGB"), lossless=False, quality=_QUALITY)
