"""Pictures, sounds and clips as people have them, to tensors and back.

`image` holds the resize rule of the project, `audio` reads and writes through soundfile, `video` through PyAV; the last two are
imported by those who need them, because their packages are extras.
"""

from zoo.media.image import from_pil, read_images, resize_crop, to_pil, to_uint8

__all__ = ["from_pil", "read_images", "resize_crop", "to_pil", "to_uint8"]
