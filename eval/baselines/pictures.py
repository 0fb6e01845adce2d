"""JPEG, WebP and AVIF through Pillow: a picture in, the decoded file out, and the bits of the whole file."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

__all__ = ["PICTURE_CODECS", "PictureCodec"]


@dataclass(frozen=True, kw_only=True)
class PictureCodec:
    """A codec of pictures.

    Attributes:
        name: of its rows.
        format: Pillow's name of it.
        feature: Pillow's name of the library behind it.
        options: that the encoder is given, beside `quality`.
        ladder: default qualities.
    """

    name: str
    format: str
    feature: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ladder: tuple[int, ...]

    def facts(self) -> dict[str, str]:
        """What fixes its numbers, for the protocol's `decode`.

        Raises:
            ValueError: Pillow was built without it.
        """
        if not features.check(self.feature):
            raise ValueError(f"baseline {self.name}: this Pillow {PIL.__version__} has no {self.feature}. Install a wheel of PyPI.")
        library = f"{features.version(self.feature)}"
        if self.feature == "jpg" and (turbo := features.version("libjpeg_turbo")):
            library = f"libjpeg-turbo {turbo}"
        told = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return {
            "encoder": f"{self.format} of Pillow {PIL.__version__}, library {library}",
            "options": told,
            "bits": "of the whole file, header and tables included",
        }

    def code(self, picture: np.ndarray, quality: int) -> tuple[np.ndarray, int]:
        """Encode and decode a picture, uint8 `(h, w, 3)`; gives the result, same shape, and the bits of the file."""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, self.format, quality=quality, **self.options)
        with Image.open(io.BytesIO(buffer.getvalue())) as opened:
            return np.asarray(opened.convert("RGB")), 8 * len(buffer.getvalue())


PICTURE_CODECS = {
    codec.name: codec
    for codec in (
        PictureCodec(
            name="jpeg",
            format="JPEG",
            feature="jpg",
            options={"optimize": True, "subsampling": "4:2:0"},
            ladder=(5, 10, 25, 50, 75, 90),
        ),
        PictureCodec(name="webp", format="WEBP", feature="webp", options={"method": 6}, ladder=(1, 10, 25, 50, 75, 90)),
        PictureCodec(
            name="avif",
            format="AVIF",
            feature="avif",
            options={"speed": 4, "subsampling": "4:2:0", "max_threads": 1},
            ladder=(1, 10, 25, 50, 75, 90),
        ),
    )
}
