"""Get Debian packages without installing them, and unpack single files from them in pure Python.

A package is looked for in a cache folder first; what is not there is downloaded with `apt-get download` on a Debian 12
machine. Everywhere else the `.deb` files are put into the cache folder by hand, and nothing here needs a network then.

Format of a .deb: deb(5); an `ar` archive of `debian-binary`, `control.tar.*` and `data.tar.*`.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import posixpath
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["Package", "PackageError", "Unpacked", "default_cache", "fetch", "read_control", "unpack"]

_log = logging.getLogger(__name__)

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_BLOCK = 1 << 20


class PackageError(RuntimeError):
    """A package cannot be had, is damaged, or is not the package it should be."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package of the lock list.

    `pool` is the path of the .deb below the root of a Debian mirror; `license` is the licence of the package as a whole
    (single pictures may have their own, see `Source.license`).
    """

    name: str
    version: str
    origin: str
    pool: str
    bytes: int
    sha256: str
    license: str
    note: str

    @property
    def file(self) -> str:
        """Name of the .deb file on a mirror (without the epoch of the version)."""
        return self.pool.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Unpacked:
    """Files of one package on disk: `missing` maps a wanted path that is not there to the reason."""

    package: Package
    version: str
    sha256: str
    folder: Path
    missing: dict[str, str]

    @property
    def locked(self) -> bool:
        """Whether this is the very package of the lock list."""
        return self.sha256 == self.package.sha256


def default_cache() -> Path:
    """Return the folder where packages are kept when none is named: `$XDG_CACHE_HOME/zoo/packages`."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "zoo" / "packages"


# ------------------------------------------------------------------------------------------------ reading a .deb file


class _Section:
    """Read-only view of `length` bytes of an open file from `start`."""

    def __init__(self, handle: BinaryIO, start: int, length: int) -> None:
        self._handle, self._left = handle, length
        handle.seek(start)

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        chunk = self._handle.read(size)
        self._left -= len(chunk)
        return chunk


def _ar_members(handle: BinaryIO, path: Path) -> Iterator[tuple[str, int, int]]:
    if handle.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise PackageError(f"{path}: not a .deb file (it does not begin with {_AR_MAGIC!r}). Download it again.")
    position = len(_AR_MAGIC)
    end = os.fstat(handle.fileno()).st_size
    while position < end:
        handle.seek(position)
        header = handle.read(_AR_HEADER)
        if len(header) < _AR_HEADER or header[58:60] != b"`\n":
            raise PackageError(f"{path}: damaged .deb file (no archive header at byte {position}). Download it again.")
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size = int(header[48:58])
        start = position + _AR_HEADER
        if start + size > end:
            raise PackageError(
                f"{path}: cut short: {name} needs {start + size} bytes, the file has {end}. Download it again."
            )
        yield name, start, size
        position = start + size + size % 2


@contextlib.contextmanager
def _open_tar(path: Path, stem: str) -> Iterator[tarfile.TarFile]:
    """Open `control.tar.*` or `data.tar.*` of a .deb as a stream."""
    with open(path, "rb") as handle:
        for name, start, size in _ar_members(handle, path):
            if name != f"{stem}.tar" and not name.startswith(f"{stem}.tar."):
                continue
            kind = name[len(stem) + 5 :] or "tar"
            if kind not in tarfile.TarFile.OPEN_METH:
                known = ", ".join(sorted(k for k in tarfile.TarFile.OPEN_METH if k != "tar"))
                raise PackageError(
                    f"{path}: {name} is packed with {kind}, which this Python cannot read (it reads {known}).\n"
                    "Debian 12 packs its packages with xz: take the package of Debian 12, or Python 3.14 for zst."
                )
            section = _Section(handle, start, size)
            try:
                with tarfile.open(fileobj=section, mode=f"r|{'' if kind == 'tar' else kind}") as archive:  # type: ignore[call-overload]
                    yield archive
            except (tarfile.TarError, EOFError) as error:
                raise PackageError(f"{path}: {name} cannot be read ({error}). Download the package again.") from error
            return
    raise PackageError(f"{path}: no {stem}.tar.* inside, so this is not a Debian package. Download it again.")


def read_control(path: Path) -> dict[str, str]:
    """Return the fields of a .deb's control file (`Package`, `Version`, ...), continuation lines left out.

    Raises:
        PackageError: not a .deb, or a damaged one.
    """
    with _open_tar(path, "control") as archive:
        for member in archive:
            if member.name.removeprefix("./") == "control" and member.isreg():
                text = archive.extractfile(member).read().decode("utf-8")  # type: ignore[union-attr]
                lines = [line for line in text.splitlines() if ":" in line and not line[0].isspace()]
                return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}
    raise PackageError(f"{path}: no control file inside, so this is not a Debian package. Download it again.")


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------------- getting packages


def _find(package: Package, cache: Path) -> tuple[Path, str] | None:
    """Return file and version of a package in the cache: the locked version if it is there, else the last by name."""
    found = []
    for path in sorted(cache.glob(f"{package.name}_*.deb")):
        control = read_control(path)
        if control.get("Package") != package.name:
            raise PackageError(
                f"{path}: holds the package {control.get('Package')!r}, not {package.name!r}. Rename or remove it."
            )
        found.append((control.get("Version", ""), path))
    exact = [item for item in found if item[0] == package.version]
    if not (exact or found):
        return None
    version, path = (exact or found)[-1]
    return path, version


def _by_hand(packages: Sequence[Package], cache: Path) -> str:
    rows = "\n".join(f"  {p.pool}  (version {p.version}, {p.bytes / 1e6:.0f} MB)" for p in packages)
    return (
        f"Put these .deb files into {cache} and run the command again; it needs no network then.\n"
        f"Any mirror of Debian 12 (bookworm) has them, under\n{rows}"
    )


def _apt_refusal() -> str | None:
    """Say why apt cannot be used here, None if it can."""
    if shutil.which("apt-get") is None:
        return "there is no apt-get on this machine"
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "this machine does not say which Linux it is"
    if (release.get("ID"), release.get("VERSION_ID")) != ("debian", "12"):
        return (
            f"this machine is {release.get('PRETTY_NAME', 'another Linux')}, whose packages are others than Debian 12's"
        )
    return None


def _download(package: Package, cache: Path) -> str | None:
    """Download with apt-get, the locked version if it is still offered; return the error text or None."""
    errors = ""
    for wanted in (f"{package.name}={package.version}", package.name):
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
            run = subprocess.run(
                ["apt-get", "download", wanted],
                cwd=folder,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                check=False,
            )
            files = sorted(Path(folder).glob("*.deb"))
            if run.returncode == 0 and len(files) == 1:
                os.replace(files[0], cache / files[0].name)
                return None
            errors = (run.stderr or run.stdout).strip()
    return errors or "apt-get said nothing"


def fetch(
    packages: Sequence[Package], cache: Path, *, say: Callable[[str], None] = _log.info
) -> dict[str, tuple[Path, str]]:
    """Bring packages into the cache folder.

    Args:
        packages: what is wanted.
        cache: folder for .deb files; made if missing. A package that is already there is not downloaded.
        say: gets one line before each download.

    Returns:
        name -> (path of the .deb, its version). Another version than the locked one is taken if it is all there is;
        the caller decides what that means (see `Unpacked.locked`).

    Raises:
        PackageError: packages that are neither in the cache nor downloadable, all of them in one message that says
            which files to put where; a damaged file.
    """
    cache.mkdir(parents=True, exist_ok=True)
    found = {package.name: _find(package, cache) for package in packages}
    missing = [package for package in packages if found[package.name] is None]
    if not missing:
        return {name: item for name, item in found.items() if item is not None}
    refusal = _apt_refusal()
    if refusal is not None:
        raise PackageError(
            f"fetch: {len(missing)} of {len(packages)} packages are not in the cache, and {refusal}, "
            "so they cannot be downloaded.\n" + _by_hand(missing, cache)
        )
    failed: list[tuple[Package, str]] = []
    for package in missing:
        say(f"download {package.name} ({package.bytes / 1e6:.0f} MB)")
        error = _download(package, cache)
        if error is not None:
            failed.append((package, error))
        found[package.name] = _find(package, cache)
    if failed:
        reasons = "\n".join(f"  {package.name}: {error.splitlines()[-1]}" for package, error in failed)
        raise PackageError(
            f"fetch: apt-get could not download {len(failed)} packages:\n{reasons}\n"
            "Run `apt-get update` and try again. Or: " + _by_hand([package for package, _ in failed], cache)
        )
    return {name: item for name, item in found.items() if item is not None}


# ------------------------------------------------------------------------------------------------------------ unpacking


def _resolve(name: str, member: tarfile.TarInfo) -> str:
    """Return the path inside the package that a link leads to."""
    if member.islnk():
        return member.linkname.removeprefix("./")
    target = posixpath.join("/", posixpath.dirname(name), member.linkname)
    return posixpath.normpath(target).lstrip("/")


def _extract_once(deb: Path, wanted: Collection[str], folder: Path) -> tuple[set[str], dict[str, str]]:
    """Write the wanted regular files below `folder`; return those not found, and link -> target of those that link."""
    absent, links = set(wanted), {}
    with _open_tar(deb, "data") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if name not in absent:
                continue
            if member.issym() or member.islnk():
                links[name] = _resolve(name, member)
            elif member.isreg():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as handle:
                    shutil.copyfileobj(archive.extractfile(member), handle, _BLOCK)  # type: ignore[arg-type]
            else:
                continue
            absent.remove(name)
            if not absent:
                break
    return absent, links


def _extract(deb: Path, wanted: Collection[str], folder: Path) -> dict[str, str]:
    """Write the wanted files below `folder`, links as copies of their targets; return path -> reason for the rest."""
    absent, links = _extract_once(deb, wanted, folder)
    missing = dict.fromkeys(absent, "not in the package")
    targets = {target for target in links.values() if not (folder / target).exists()}
    if targets:
        _extract_once(deb, targets, folder)
    for name, target in links.items():
        if (folder / target).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / target, folder / name)
        else:
            missing[name] = f"a link to {target}, which is not a file of the package"
    return missing


def unpack(package: Package, deb: Path, version: str, wanted: Collection[str], cache: Path) -> Unpacked:
    """Unpack the wanted files of a .deb below `cache/unpacked`, once: a folder that is there is complete.

    Args:
        package: entry of the lock list.
        deb: the file.
        version: what its control file says.
        wanted: paths inside the package, relative, as in `dpkg -c` without the leading `./`.
        cache: the cache folder.

    Raises:
        PackageError: the locked version with another checksum; a damaged file.
        ValueError: a wanted path that leads out of the folder.
    """
    for name in wanted:
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"unpack: wanted={name!r} leads out of the folder. Allowed: relative paths without '..'.")
    digest = _sha256(deb)
    if version == package.version and digest != package.sha256:
        raise PackageError(
            f"{deb}: SHA-256 is {digest}, but {package.name} {package.version} has {package.sha256}.\n"
            "The file is damaged or altered: remove it and run the command again."
        )
    if digest != package.sha256:
        _log.warning(
            "%s is version %s; the lock list has %s: its files may differ.", package.name, version, package.version
        )
    which = hashlib.sha256("\n".join(sorted(wanted)).encode()).hexdigest()
    folder = cache / "unpacked" / f"{package.name}-{digest[:12]}-{which[:8]}"
    listing = folder / "missing.json"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            missing = _extract(deb, wanted, whole)
            (whole / listing.name).write_text(json.dumps(missing, indent=1, sort_keys=True), encoding="utf-8")
            os.replace(whole, folder)
    missing = json.loads(listing.read_text(encoding="utf-8"))
    return Unpacked(package=package, version=version, sha256=digest, folder=folder, missing=missing)
