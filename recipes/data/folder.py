"""Pictures in a folder, with class sub-folders as labels."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.data.corpus import IMAGE_SUFFIXES, ImageCorpus

__all__ = ["ImageFolder"]


class ImageFolder(ImageCorpus):
    """Every picture below a folder, ordered by path; the first sub-folder is the label.

    Labels are numbered in the alphabetic order of the sub-folders that hold pictures; pictures that lie directly in the
    folder have none. Hidden files and folders are left out. The key is the path below the folder, with `/`.
    Other kinds of file are listed by `suffixes`; `read` is for pictures only.

    Raises:
        NotADirectoryError: the folder is missing.
        ValueError: it holds no picture.
    """

    def __init__(self, folder: str | Path, *, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> None:
        self.folder = Path(folder)
        self.source = os.fspath(folder)
        if not self.folder.is_dir():
            raise NotADirectoryError(f"ImageFolder: {self.source} is not a folder. Give a folder of pictures.")
        pictures = (path for path in self.folder.rglob("*") if path.suffix.lower() in suffixes)
        found = [path.relative_to(self.folder) for path in pictures]
        self._paths = sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))
        if not self._paths:
            raise ValueError(
                f"ImageFolder: no picture in {self.source}. Names must end in {', '.join(suffixes)}."
            )
        classes = sorted({path.split("/", 1)[0] for path in self._paths if "/" in path})
        self.classes = {name: number for number, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, i: int) -> str:
        return self._paths[i]

    def read_bytes(self, i: int) -> bytes:
        return (self.folder / self._paths[i]).read_bytes()

    def record(self, i: int) -> dict[str, Any]:
        path = self._paths[i]
        if "/" not in path:
            return {"key": path}
        label = path.split("/", 1)[0]
        return {"key": path, "label": label, "label_id": self.classes[label]}
