"""Composites: a cut-out object ("stamp") on a gradient or on a blurred photograph.

Where the stamps of the original pack stood was not recorded, so composites are made anew by the same rule: the longest
side of a stamp becomes 80 to 124 pixels of 128, but no stamp grows above 1.2 times its size; it is flipped or not; it
stands anywhere inside the picture. A stamp too small for that (`smallstamp`) is pasted one to three times.

All chance comes from a seed and the key of the sample, drawn from SHA-256: the same pair gives the same picture with
any Python and in any order of work.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFilter, ImageOps

__all__ = ["Draws", "Paste", "backdrop", "compose", "gradient", "resample", "trim"]

_Item = TypeVar("_Item")

_REFERENCE = 128  # the rule is written for pictures of this side; other sizes scale it
_LONGEST = (80.0, 124.0)
_GROWTH = 1.2
_SMALL_SHRINK = 0.8  # copies of a small stamp differ in size: 0.8 to 1 times the largest allowed
_COPIES = (1, 2, 3)
_BLUR = (0.0, 4.0)
_COLOUR = (60.0, 238.0)
_SLOPE = (15.0, 60.0)


class Draws:
    """An endless sequence of numbers that depends on nothing but a seed and a key."""

    def __init__(self, seed: int, key: str) -> None:
        self._prefix, self._count = f"{seed}/{key}/", 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number in [low, high)."""
        digest = hashlib.sha256(f"{self._prefix}{self._count}".encode()).digest()
        self._count += 1
        return low + (high - low) * (int.from_bytes(digest[:6], "big") / 2**48)

    def integer(self, low: int, high: int) -> int:
        """Return an integer in [low, high], both included."""
        return low + int(self.uniform() * (high - low + 1))

    def choice(self, items: Sequence[_Item]) -> _Item:
        return items[self.integer(0, len(items) - 1)]


@dataclass(frozen=True)
class Paste:
    """Where one copy of a stamp stands: (x0, y0, x1, y1) in the picture, and whether it is mirrored."""

    box: tuple[int, int, int, int]
    flip: bool


def resample(before: int, after: int) -> Image.Resampling:
    """Return Lanczos for shrinking and bicubic for enlarging, as the original pack has it."""
    return Image.Resampling.LANCZOS if before >= after else Image.Resampling.BICUBIC


def trim(stamp: Image.Image) -> Image.Image:
    """Cut the fully transparent margin off; the result is RGBA.

    Raises:
        ValueError: every pixel is transparent.
    """
    rgba = stamp.convert("RGBA")
    box = rgba.getchannel("A").getbbox()
    if box is None:
        width, height = stamp.size
        raise ValueError(
            f"trim: stamp of {width}x{height} pixels is fully transparent. Allowed: at least one visible pixel."
        )
    return rgba.crop(box)


def gradient(draws: Draws, size: int) -> Image.Image:
    """Return an RGB square that runs from one muted colour at the top to a lighter or darker one at the bottom."""
    top = np.array([draws.uniform(*_COLOUR) for _ in range(3)])
    top = top.mean() + 0.5 * (top - top.mean())  # half the saturation: muted, as a studio wall
    step = draws.uniform(*_SLOPE) * (1.0 if draws.uniform() < 0.5 else -1.0)
    ramp = np.linspace(-0.5, 0.5, size)[:, None, None] * step
    rows = np.clip(np.rint(top + ramp), 0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(rows, (size, size, 3))))


def backdrop(draws: Draws, photo: Image.Image) -> Image.Image:
    """Return a photograph blurred by a Gaussian whose radius is drawn between 0 and 4 pixels of 128."""
    radius = draws.uniform(*_BLUR) * photo.size[0] / _REFERENCE
    return photo.convert("RGB").filter(ImageFilter.GaussianBlur(radius))


def _scaled(draws: Draws, stamp: Image.Image, size: int, small: bool) -> Image.Image:
    unit = size / _REFERENCE
    longest = max(stamp.size)
    if small:
        scale = min(_GROWTH * unit, _LONGEST[1] * unit / longest) * draws.uniform(_SMALL_SHRINK, 1.0)
    else:
        scale = min(draws.uniform(*_LONGEST) / longest, _GROWTH) * unit
    target = (max(1, round(stamp.size[0] * scale)), max(1, round(stamp.size[1] * scale)))
    return stamp.resize(target, resample(longest, max(target)))


def compose(
    draws: Draws, stamp: Image.Image, background: Image.Image, *, small: bool = False
) -> tuple[Image.Image, tuple[Paste, ...]]:
    """Paste a stamp on a background.

    Args:
        draws: chance for size, flip and place.
        stamp: RGBA, trimmed.
        background: RGB square; not changed.
        small: paste one to three copies of different size, as for stamps that stay small.

    Returns:
        The RGB picture, and where each copy stands; every copy lies wholly inside.
    """
    size = background.size[0]
    picture = background.copy()
    pastes = []
    for _ in range(draws.choice(_COPIES) if small else 1):
        flip = draws.uniform() < 0.5
        cut = _scaled(draws, ImageOps.mirror(stamp) if flip else stamp, size, small)
        x, y = draws.integer(0, size - cut.size[0]), draws.integer(0, size - cut.size[1])
        picture.paste(cut, (x, y), cut)
        pastes.append(Paste(box=(x, y, x + cut.size[0], y + cut.size[1]), flip=flip))
    return picture, tuple(pastes)
