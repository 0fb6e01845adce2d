"""Pictures of a Hugging Face data set, read with the optional `datasets` library."""

from pathlib import Path
from typing import Any

from recipes.data.corpus import ImageCorpus

__all__ = ["HuggingFaceImages"]


class HuggingFaceImages(ImageCorpus):
    """Pictures of one split of a Hugging Face data set.

    The first column of type Image holds the pictures, the first column of type ClassLabel (if any) the labels. The key
    is the row number, nine digits. `datasets` downloads and caches; offline it reads its cache or a local folder.

    Args:
        name: `ORG/NAME`, `ORG/NAME:CONFIG`, or a local folder that `datasets.load_dataset` understands.
        split: name of the split.

    Raises:
        ImportError: the library is not installed; says which extra brings it.
        ValueError: the split has no column of type Image.
    """

    def __init__(self, name: str, *, split: str = "train") -> None:
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                f"HuggingFaceImages: reading 'hf:{name}' needs the `datasets` library, which is not installed. "
                "Install it with: pip install 'tokenizer-zoo[data]'."
            ) from error
        self.source = f"hf:{name} ({split})"
        path, _, config = name.partition(":")
        rows = datasets.load_dataset(path, config or None, split=split)
        images = [column for column, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        labels = [column for column, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
        if not images:
            raise ValueError(
                f"HuggingFaceImages: {self.source} has no column of type Image. Columns: {dict(rows.features)}."
            )
        self._image = images[0]
        self._label = labels[0] if labels else None
        self._names = rows.features[self._label].names if labels else []
        self._rows = rows.cast_column(self._image, datasets.Image(decode=False))
        self._plain = self._rows.remove_columns(images)

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, i: int) -> str:
        return f"{i:09d}"

    def read_bytes(self, i: int) -> bytes:
        cell = self._rows[i][self._image]
        return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()

    def record(self, i: int) -> dict[str, Any]:
        record: dict[str, Any] = dict(self._plain[i]) if self._plain.column_names else {}
        if self._label is not None:
            number = record[self._label]
            record["label_id"] = number
            record["label"] = None if number is None or number < 0 else self._names[number]
        record["key"] = self.key(i)
        return record
