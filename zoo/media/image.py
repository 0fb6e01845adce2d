"""Pictures as people have them, to tensors and back.

The resize rule is one for the whole project: Pillow's antialiased filter on 8-bit pictures (short side to size, then the centre),
because its results do not depend on the version of a tensor library.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from zoo.whole_files import whole_file

__all__ = ["from_pil", "open_picture", "read_images", "resize_crop", "to_pil", "to_uint8", "write_picture"]

_OVERSHOOT = 1e-3
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def open_picture(source: Any) -> Image.Image:
    """Give an RGB picture; transparency is laid on white, and the orientation in the file is applied."""
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise ValueError(f"preprocess: no file {source}. Give a picture, or a list of pictures.")
        try:
            with Image.open(source) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened)
        except _UNREADABLE as error:
            raise ValueError(f"preprocess: {source} is not a readable picture ({error}).") from error
    elif isinstance(source, Image.Image):
        image = source
    elif isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] not in (1, 3, 4)):
            raise ValueError(
                f"preprocess: array of shape {source.shape} and dtype {source.dtype}. Needed: uint8 (h, w), (h, w, 3) or (h, w, 4)."
            )
        if not source.size:
            raise ValueError(f"preprocess: array of shape {source.shape}. Every side must be at least 1.")
        image = Image.fromarray(source.squeeze(2) if source.ndim == 3 and source.shape[2] == 1 else source)
    elif isinstance(source, Tensor):
        return open_picture(_tensor_to_array(source))
    else:
        raise TypeError(f"preprocess: {type(source).__name__} is no picture. Give a path, a PIL image, an array or a tensor.")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"preprocess: picture of mode {image.mode}, whose range is not known. Needed: 8 or 16 bits.")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _tensor_to_array(source: Tensor) -> np.ndarray:
    """Turn `(3 or 1, h, w)` in [-1, 1] or uint8 into a uint8 array, channels last."""
    shape = tuple(source.shape)
    if source.ndim != 3 or shape[0] not in (1, 3):
        raise ValueError(f"preprocess: tensor of shape {shape}. Needed: (3, h, w) or (1, h, w).")
    if 0 in shape:
        raise ValueError(f"preprocess: tensor of shape {shape}. Every side must be at least 1.")
    if source.is_floating_point():
        low, high = (float(value) for value in torch.aminmax(source.detach()))
        if not (low >= -1 - _OVERSHOOT and high <= 1 + _OVERSHOOT):
            raise ValueError(
                f"preprocess: tensor that reaches from {low:.4g} to {high:.4g}. Allowed: [-1, 1], no NaN; 8-bit values v become "
                "v / 127.5 - 1, a decoded batch is clamped."
            )
        source = to_uint8(source[None])[0]
    if source.dtype != torch.uint8:
        raise ValueError(f"preprocess: tensor of dtype {source.dtype}. Needed: floating point in [-1, 1] or uint8.")
    return source.permute(1, 2, 0).cpu().numpy()


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of a size."""
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(hasattr(side, "__index__") and not isinstance(side, bool) and side >= 1 for side in sides):
        raise ValueError(f"preprocess: size={size!r}. Needed: one number or (h, w), each at least 1.")
    return int(sides[0]), int(sides[1])


def resize_crop(image: Image.Image, size: int | tuple[int, int] | None, *, crop: bool = True) -> Image.Image:
    """Resize (antialiased bicubic) and cut the centre to `size` `(h, w)`, or keep the aspect ratio, the short side at `size`."""
    if size is None:
        return image
    height, width = _sides(size)
    if crop:
        return ImageOps.fit(image, (width, height), method=Image.Resampling.BICUBIC, centering=(0.5, 0.5))
    scale = min(height, width) / min(image.size)
    sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(sides, Image.Resampling.BICUBIC)


def from_pil(images: Sequence[Image.Image]) -> Tensor:
    """Stack RGB pictures of one size to `(b, 3, h, w)` float32 in [-1, 1]."""
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"preprocess: pictures of {len(sizes)} sizes do not fit one batch. Use crop=True, or one at a time.")
    array = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def read_images(source: Any, *, size: int | tuple[int, int] | None, crop: bool = True) -> Tensor:
    """Turn a picture or a list of pictures into `(b, 3, h, w)` float32 in [-1, 1].

    Args:
        source: path, PIL image of 8 or 16 bits, uint8 array `(h, w[, c])`, tensor `(3 or 1, h, w)` in [-1, 1] or uint8; or a list
            of them, or a batch.
        size: `(h, w)`, or one number for both; None keeps the size.
        crop: cut the centre; False keeps the aspect ratio.

    Raises:
        TypeError: something that is no picture.
        ValueError: no such file, a damaged one, values or shapes that are not those of a picture, a size that is none, or pictures
            whose sizes do not fit one batch.
    """
    if isinstance(source, list | tuple) or (isinstance(source, Tensor | np.ndarray) and source.ndim == 4):
        items = list(source)
    else:
        items = [source]
    if not items:
        raise ValueError("preprocess: the list of pictures is empty. Give at least one.")
    return from_pil([resize_crop(open_picture(item), size, crop=crop) for item in items])


def to_uint8(x: Tensor) -> Tensor:
    """Clamp `(b, c, h, w)` in [-1, 1] and round to 8 bits, same shape."""
    return ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_pil(x: Tensor) -> list[Image.Image]:
    """Turn `(b, 3, h, w)` in [-1, 1] into PIL images, clamped and rounded.

    Raises:
        ValueError: another shape, or NaN.
    """
    if x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(f"postprocess: tensor of shape {tuple(x.shape)}. Needed: (b, 3, h, w).")
    if bool(x.isnan().any()):
        raise ValueError("postprocess: the tensor holds NaN, so it is no picture.")
    return [Image.fromarray(item) for item in to_uint8(x).permute(0, 2, 3, 1).cpu().numpy()]


def write_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture to a file that is whole or not there; the ending chooses the format.

    Raises:
        ValueError: an ending that is none of a picture.
    """
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"postprocess: {path} ends in {path.suffix or 'nothing'}, which is no format of pictures. Use .png.")
    with whole_file(path) as temporary:
        picture.save(temporary)
