"""Small stand-ins for what the build reads: .deb files, GCompris resource files and a pack of eight pictures."""

import hashlib
import io
import struct
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.data.build.manifest import Crop, Manifest, Source
from recipes.data.build.packages import Package

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2000 Everybody
License: GPL-3+

Files: data/textures/wall.png
  data/textures/other.png
Copyright: 2001 Wanda Wall
 2002 Another
License: CC-BY-4.0
 Text of the licence.

Files: src/fish*.jpg
Copyright: 2003 Finn Fisher
License: public-domain

License: GPL-3+
 Text.
"""


def tar_bytes(files: Mapping[str, bytes], links: Mapping[str, str], kind: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, target in links.items():
            member = tarfile.TarInfo(f"./{name}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return buffer.getvalue()


def ar_bytes(members: Mapping[str, bytes]) -> bytes:
    data = b"!<arch>\n"
    for name, body in members.items():
        data += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}".encode() + b"`\n"
        data += body + b"\n" * (len(body) % 2)
    return data


def write_deb(
    path: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    *,
    links: Mapping[str, str] | None = None,
    kind: str = "xz",
) -> Path:
    """Write a .deb as dpkg-deb lays it out: ar(debian-binary, control.tar.KIND, data.tar.KIND)."""
    control = f"Package: {name}\nVersion: {version}\nDescription: a test\n with a second line: and a colon\n".encode()
    members = {
        "debian-binary": b"2.0\n",
        f"control.tar.{kind}": tar_bytes({"control": control}, {}, kind),
        f"data.tar.{kind}": tar_bytes(files, links or {}, kind),
    }
    path.write_bytes(ar_bytes(members))
    return path


def picture(width: int, height: int, left: tuple[int, ...], right: tuple[int, ...], format: str = "PNG") -> bytes:
    """Encode a picture whose left half has one colour and whose right half another."""
    pixels = np.zeros((height, width, len(left)), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = left, right
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, lossless=True)
    return buffer.getvalue()


def resource(items: Mapping[str, bytes], version: int = 3) -> tuple[bytes, dict[str, int]]:
    """Write a Qt resource file with one folder `src`; return it and the position of every item."""
    header, data, offsets, positions = 20, b"", {}, {}
    for name, body in items.items():
        offsets[name], positions[name] = len(data), header + len(data) + 4
        data += struct.pack(">I", len(body)) + body
    names, name_at = b"", {}
    for name in ("src", *items):
        name_at[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    stamp = b"" if version == 1 else bytes(8)
    tree = struct.pack(">IHII", 0, 2, 1, 1) + stamp + struct.pack(">IHII", name_at["src"], 2, len(items), 2) + stamp
    for name in items:
        tree += struct.pack(">IHHHI", name_at[name], 0, 0, 0, offsets[name]) + stamp
    names_start = header + len(data)
    head = b"qres" + struct.pack(">4I", version, names_start + len(names), header, names_start)
    return head + data + names + tree, positions


@dataclass(frozen=True)
class TinyPack:
    """A manifest and the cache folder with its packages."""

    manifest: Manifest
    cache: Path
    files: dict[str, dict[str, bytes]]

    def package(self, name: str) -> Package:
        return next(package for package in self.manifest.packages if package.name == name)


def _stamp(size: int, margin: int) -> bytes:
    pixels = np.zeros((size + 2 * margin, size + 2 * margin, 4), np.uint8)
    pixels[margin:-margin, margin:-margin] = (250, 5, 5, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tiny(tmp_path: Path) -> TinyPack:
    """Eight samples from four packages that are named as the real ones, so that their special rules apply."""
    fish = picture(200, 160, (10, 200, 30), (240, 240, 20), "WEBP")
    rcc, positions = resource({"noise.txt": b"no picture", "fish1.webp": fish})
    kart, tux = "usr/share/games/supertuxkart/data/textures", "usr/share/tuxpaint/stamps"
    files = {
        "gcompris-qt-data": {"usr/share/gcompris-qt/rcc/sea.rcc": rcc},
        "opencv-doc": {"usr/share/doc/opencv-doc/ghost.png": picture(140, 140, (0, 0, 0, 0), (0, 0, 0, 255))},
        "supertuxkart-data": {
            f"{kart}/wall.png": picture(300, 200, (200, 0, 0), (0, 0, 200)),
            f"{kart}/roof.png": picture(150, 150, (20, 60, 20), (60, 120, 60)),
        },
        "tuxpaint-stamps-default": {f"{tux}/cup.png": _stamp(100, 7), f"{tux}/nut.png": _stamp(40, 3)},
    }
    cache = tmp_path / "cache"
    cache.mkdir()
    packages = []
    for name, content in files.items():
        content[f"usr/share/doc/{name}/copyright"] = COPYRIGHT.encode()
        deb = write_deb(cache / f"{name}_1.0_all.deb", name, "1:1.0", content)
        data = deb.read_bytes()
        packages.append(
            Package(
                name=name,
                version="1:1.0",
                origin="debian 12",
                pool=f"pool/main/t/test/{name}_1.0_all.deb",
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                license="GPL-3.0-or-later",
                note="",
            )
        )

    def source(
        package: str, file: str, label: str, kind: str, size: tuple[int, int], split: str, data: bytes, **more: str
    ) -> Source:
        made = Source(
            package=package,
            file=file,
            group=hashlib.sha1(f"{package}/{file}".encode()).hexdigest()[:12],
            label=label,
            kind=kind,
            size=size,
            split=split,  # type: ignore[arg-type]
            sha256=hashlib.sha256(data).hexdigest()[:16],
            title=more.get("title"),
            license=more.get("license"),
            credit=more.get("credit"),
        )
        return made

    wall_file, roof_file = f"{kart}/wall.png", f"{kart}/roof.png"
    wall = source(
        "supertuxkart-data", wall_file, "texture", "photo", (300, 200), "train", files["supertuxkart-data"][wall_file],
        license="CC-BY-4.0", credit="2001 Wanda Wall 2002 Another",
    )  # fmt: skip
    roof = source(
        "supertuxkart-data", roof_file, "texture", "photo", (150, 150), "val", files["supertuxkart-data"][roof_file]
    )
    sea = source(
        "gcompris-qt-data", f"sea.rcc@{positions['fish1.webp']}", "animal", "photo", (200, 160), "train", fish,
        title="src/fish1.webp", license="public-domain", credit="2003 Finn Fisher",
    )  # fmt: skip
    ghost_file = "usr/share/doc/opencv-doc/ghost.png"
    ghost = source("opencv-doc", ghost_file, "landscape", "photo", (140, 140), "train", files["opencv-doc"][ghost_file])
    tuxpaint = files["tuxpaint-stamps-default"]
    cup = source(
        "tuxpaint-stamps-default", f"{tux}/cup.png", "object", "stamp", (100, 100), "train", tuxpaint[f"{tux}/cup.png"]
    )
    nut = source(
        "tuxpaint-stamps-default", f"{tux}/nut.png", "food", "smallstamp", (40, 40), "val", tuxpaint[f"{tux}/nut.png"]
    )

    def crop(
        of: Source, number: int, position: int, box: tuple[int, int, int, int] | None, composite: str | None = None
    ) -> Crop:
        return Crop(source=of, number=number, position=position, box=box, composite=composite)  # type: ignore[arg-type]

    train = (
        crop(wall, 0, 0, (50, 0, 250, 200)),
        crop(cup, 0, 1, None, "photo"),
        crop(sea, 0, 2, (0, 0, 100, 100)),
        crop(ghost, 0, 3, (0, 0, 140, 140)),
        crop(cup, 1, 4, None, "gradient"),
        crop(wall, 1, 5, (90, 20, 210, 140)),
    )
    val = (crop(nut, 0, 0, None, "photo"), crop(roof, 0, 1, (0, 0, 150, 150)))
    return TinyPack(Manifest(tuple(packages), {"train": train, "val": val}), cache, files)


@pytest.fixture
def no_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without apt-get: whoever asks for a download fails."""
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.fixture
def fake_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put an `apt-get` in front of PATH that runs a shell script, on a machine that says it is Debian 12."""

    def install(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        command = folder / "apt-get"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setattr("platform.freedesktop_os_release", lambda: {"ID": "debian", "VERSION_ID": "12"})

    return install


@pytest.fixture(name="write_deb")
def _write_deb() -> Callable[..., Path]:
    return write_deb


@pytest.fixture(name="picture")
def _picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture(name="resource")
def _resource() -> Callable[..., tuple[bytes, dict[str, int]]]:
    return resource


@pytest.fixture(name="ar_bytes")
def _ar_bytes() -> Callable[..., bytes]:
    return ar_bytes
