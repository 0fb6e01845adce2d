"""What kind of signal a file holds, by the ending of its name. Imports no torch."""

from pathlib import PurePath

__all__ = ["kind_of"]

_KINDS = {
    "image": [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2"],
    "audio": [".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aiff", ".aif"],
    "video": [".mp4", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".m4v"],
}


def kind_of(path: PurePath) -> str | None:
    """Modality by the ending of the name; None for one that is none of ours."""
    return next((kind for kind, endings in _KINDS.items() if path.suffix.lower() in endings), None)
