"""A few pictures, sounds and clips that ship with the package, each with its licence. Imports no torch.

`index.json` holds one record a file; LICENSES.md holds the notices that must travel with the files.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["LICENSE_NAMES", "Sample", "credit", "folder", "images", "info", "music", "speech", "video"]

LICENSE_NAMES = {
    "CC0-1.0": "CC0 1.0",
    "CC-BY-2.0": "CC BY 2.0",
    "CC-BY-3.0": "CC BY 3.0",
    "LicenseRef-public-domain": "public domain",
    "LicenseRef-no-known-restrictions": "no known restrictions",
    "LicenseRef-festvox-ru": "licence of festvox-ru (in LICENSES.md)",
}
_ADDRESSES = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Origin and terms of one file.

    Attributes:
        file: path inside the pack, such as `images/cat.jpg`.
        title: what it shows or says.
        license: SPDX id, or `LicenseRef-...` explained in LICENSES.md.
        package, source: where the file was taken from.
        changes: what was done to it.
        sha256: of the file.
        author: None where the source names nobody.
        note: a doubt about the terms, in words.
        text, language: of speech.
    """

    file: str
    title: str
    license: str
    package: str
    source: str
    changes: str
    sha256: str
    author: str | None = None
    note: str | None = None
    text: str | None = None
    language: str | None = None

    @property
    def path(self) -> Path:
        """The file on this disk."""
        return folder() / self.file

    @property
    def license_url(self) -> str | None:
        """Where the licence can be read; None for those that LICENSES.md explains."""
        return _ADDRESSES.get(self.license)

    @property
    def attribution_required(self) -> bool:
        """The author must be named wherever the file or something made from it is shown."""
        return self.license.startswith("CC-BY") or self.license == "LicenseRef-festvox-ru"

    @property
    def credit(self) -> str:
        """One line to print beside the file: title, source, author, licence and what was changed."""
        by = f" by {self.author}" if self.author else ""
        doubt = f" ({self.note})" if self.note else ""
        licence = LICENSE_NAMES[self.license] + (f", {self.license_url}" if self.attribution_required and self.license_url else "")
        return f'{self.title}: "{self.source}"{by}, {licence}{doubt}, from {self.package}; {self.changes}.'


def folder() -> Path:
    """The folder of the pack."""
    return Path(__file__).parent


@cache
def _records() -> tuple[Sample, ...]:
    known = Sample.__dataclass_fields__
    rows = json.loads((folder() / "index.json").read_text(encoding="utf-8"))
    return tuple(Sample(**{key: value for key, value in row.items() if key in known}) for row in rows)


def _files(kind: str) -> list[Path]:
    return [record.path for record in _records() if record.file.startswith(f"{kind}/")]


def images() -> list[Path]:
    """Twelve pictures, 256 x 256 JPEG."""
    return _files("images")


def speech() -> list[Path]:
    """Six utterances in three languages, 24 kHz mono FLAC (made from 16 kHz: nothing above 8 kHz)."""
    return _files("speech")


def music() -> list[Path]:
    """Three loops of music: two of 24 kHz mono, one of 44.1 kHz stereo, FLAC."""
    return _files("music")


def video() -> list[Path]:
    """Three clips of 33 frames, 256 x 256 H.264."""
    return _files("video")


def info(path: str | Path) -> Sample:
    """Give the record of a file of the pack.

    Raises:
        ValueError: the file is not one of the pack.
    """
    path = Path(path)
    for record in _records():
        if record.path == path or record.file == path.as_posix():
            return record
    names = ", ".join(record.file for record in _records())
    raise ValueError(f"zoo.samples.info: {path} is not a file of the sample pack. There: {names}.")


def credit(path: str | Path) -> str:
    """Give the line to print beside a file of the pack.

    Raises:
        ValueError: the file is not one of the pack.
    """
    return info(path).credit
