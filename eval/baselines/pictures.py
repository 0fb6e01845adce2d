"""JPEG, WebP and AVIF through Pillow, JPEG XL through imagecodecs: a picture in, the decoded file and its bits out."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL
from PIL import Image, features

__all__ = ["PICTURE_CODECS", "JpegXlCodec", "PictureCodec", "PillowCodec"]


@dataclass(frozen=True, kw_only=True)
class PictureCodec:
    """A codec of pictures.

    Attributes:
        name: of its rows.
        options: that the encoder is given, beside `quality`.
        ladder: default qualities.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    ladder: tuple[int, ...]

    def facts(self) -> dict[str, str]:
        """What fixes its numbers, for the protocol's `decode`.

        Raises:
            ValueError, ModuleNotFoundError: the library behind it is missing.
        """
        return {
            "encoder": self._encoder(),
            "options": ", ".join(f"{key}={value}" for key, value in self.options.items()),
            "bits": "of the whole file, header and tables included",
        }

    def code(self, picture: np.ndarray, quality: int) -> tuple[np.ndarray, int]:
        """Encode and decode a picture, uint8 `(h, w, 3)`; gives the result, same shape, and the bits of the file.

        Raises:
            ModuleNotFoundError: the library behind it is missing.
        """
        file = self._file(picture, quality)
        return self._read(file), 8 * len(file)

    def _encoder(self) -> str:
        raise NotImplementedError

    def _file(self, picture: np.ndarray, quality: int) -> bytes:
        raise NotImplementedError

    def _read(self, file: bytes) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PillowCodec(PictureCodec):
    """A codec that comes with Pillow.

    Attributes:
        format: Pillow's name of it.
        feature: Pillow's name of the library behind it.
    """

    format: str
    feature: str

    def _encoder(self) -> str:
        if not features.check(self.feature):
            raise ValueError(f"baseline {self.name}: this Pillow {PIL.__version__} has no {self.feature}. Install a wheel of PyPI.")
        library = f"{features.version(self.feature)}"
        if self.feature == "jpg" and (turbo := features.version("libjpeg_turbo")):
            library = f"libjpeg-turbo {turbo}"
        return f"{self.format} of Pillow {PIL.__version__}, library {library}"

    def _file(self, picture: np.ndarray, quality: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, self.format, quality=quality, **self.options)
        return buffer.getvalue()

    def _read(self, file: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(file)) as opened:
            return np.asarray(opened.convert("RGB"))


@dataclass(frozen=True, kw_only=True)
class JpegXlCodec(PictureCodec):
    """JPEG XL through imagecodecs, as a bare codestream; libjxl itself turns a quality into its distance."""

    def _imagecodecs(self) -> Any:
        try:
            import imagecodecs
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"baseline {self.name}: package imagecodecs is not installed. Install it with: pip install 'tokenizer-zoo[codecs]'"
            ) from error
        return imagecodecs

    def _encoder(self) -> str:
        imagecodecs = self._imagecodecs()
        return f"JPEG XL of imagecodecs {imagecodecs.__version__}, library {imagecodecs.jpegxl_version()}"

    def _file(self, picture: np.ndarray, quality: int) -> bytes:
        return bytes(self._imagecodecs().jpegxl_encode(picture, level=quality, **self.options))

    def _read(self, file: bytes) -> np.ndarray:
        return self._imagecodecs().jpegxl_decode(file, numthreads=1)


PICTURE_CODECS = {
    codec.name: codec
    for codec in (
        PillowCodec(
            name="jpeg",
            format="JPEG",
            feature="jpg",
            options={"optimize": True, "subsampling": "4:2:0"},
            ladder=(5, 10, 25, 50, 75, 90),
        ),
        PillowCodec(name="webp", format="WEBP", feature="webp", options={"method": 6}, ladder=(1, 10, 25, 50, 75, 90)),
        PillowCodec(
            name="avif",
            format="AVIF",
            feature="avif",
            options={"speed": 4, "subsampling": "4:2:0", "max_threads": 1},
            ladder=(1, 10, 25, 50, 75, 90),
        ),
        JpegXlCodec(
            name="jpegxl",
            options={"effort": 7, "usecontainer": False, "numthreads": 1},
            ladder=(1, 10, 25, 50, 75, 90),
        ),
    )
}
