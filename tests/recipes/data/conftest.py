"""A small pack of real-looking pictures for the data tests."""

import importlib.util
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

LABELS = ("animal", "plant", "food")


def picture_bytes(number: int, *, size: tuple[int, int] = (48, 40), kind: str = "JPEG") -> bytes:
    """Encode picture `number`: smooth colours of its own and a little structure."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    phase = np.array([0.0, 2.1, 4.2]) + number
    waves = np.sin(phase + (3 + number % 4) * x[..., None] + (2 + number % 3) * y[..., None])
    pixels = (127.5 + 100 * waves).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=90)
    return buffer.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a plain tar file with these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(first: int, count: int) -> dict[str, bytes]:
    """Members of a shard: KEY.jpg and KEY.json of `count` pictures."""
    members = {}
    for number in range(first, first + count):
        record = {"label": LABELS[number % 3], "label_id": number % 3, "package": "odd" if number % 2 else "even"}
        members[f"p{number:03d}.jpg"] = picture_bytes(number)
        members[f"p{number:03d}.json"] = json.dumps(record).encode()
    return members


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 22 training pictures in two shards and 5 validation pictures in one."""
    folder = tmp_path_factory.mktemp("pack")
    write_tar(folder / "train-00000.tar", samples(0, 12))
    write_tar(folder / "train-00001.tar", samples(12, 10))
    write_tar(folder / "val-00000.tar", samples(30, 5))
    return folder


@pytest.fixture(scope="session")
def tar() -> Callable[[Path, Mapping[str, bytes]], Path]:
    return write_tar


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    return picture_bytes


@pytest.fixture(scope="session")
def linear_run() -> ModuleType:
    """The training script `linear_run.py` beside this file, as a module."""
    spec = importlib.util.spec_from_file_location("linear_run", Path(__file__).with_name("linear_run.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
