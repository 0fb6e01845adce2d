"""Data sets of small pictures, and the toy tokenizers."""

import importlib.util
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

TOYS = Path(__file__).with_name("toys.py")


def _toys() -> ModuleType:
    if "toys_of_data_sets" not in sys.modules:
        spec = importlib.util.spec_from_file_location("toys_of_data_sets", TOYS)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["toys_of_data_sets"] = module
        spec.loader.exec_module(module)
    return sys.modules["toys_of_data_sets"]


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    return _toys()


def _picture(number: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A PNG of one grey, `number` of 255."""
    out = io.BytesIO()
    Image.new("RGB", size, (number, number, number)).save(out, "png")
    return out.getvalue()


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    return _picture


@pytest.fixture(scope="session")
def code_of(toys: ModuleType) -> Callable[[int], int]:
    """The code that a picture of one grey must have, by a formula of its own."""
    return lambda number: int(torch.tensor(number / 255 * 299).round())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """23 pictures in folders; number 7 is a broken file, number 12 is of a size that the network refuses when not cropped."""
    folder = tmp_path / "pictures"
    for number in range(23):
        path = folder / f"part{number // 10}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no picture" if number == 7 else _picture(number * 10))
    (folder / "part0" / "notes.txt").write_text("nothing to encode")
    return folder


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A WebDataset shard of six samples with captions; one has no picture."""
    path = tmp_path / "shards" / "a-000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for number in range(6):
            members = {"txt": f"grey {number}".encode()} if number == 4 else {
                "png": _picture(number * 20), "txt": f"grey {number}".encode(), "json": b'{"own": 1}',
            }  # fmt: skip
            for ending, content in members.items():
                member = tarfile.TarInfo(f"sample{number}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path
