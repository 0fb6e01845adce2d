"""Where weights come from: download, verify, cache. (`push`, where they go to, lives in `zoo.hub_push`.)

One wrapper around the Hub client, because the client alone leaves four things to the user: it checks the size of a download
but not its bytes, it hands out an old cached file without a word when the server refuses it, it gives up at once on a
server error while the content is read, and its errors come from three families of classes. Here every download is hashed,
every fall-back to the cache is logged as a warning, passing faults are retried, and whatever goes wrong is a `HubError`.

The cache is the Hub client's own (`models--org--name/{refs,snapshots,blobs}`), shared with every program that uses it. We
add one folder, `.zoo`, to a repository's cache: it remembers which files were hashed, so that large weights are read in
full once and not at every load.

Neither torch nor the Hub client is imported before a function needs it.
"""

import contextlib
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NoReturn

from zoo.hub_client import (
    HubError,
    HubRequest,
    check_repo_id,
    error_line,
    hub_request,
    is_repo_id,
    network_errors,
    sha256_of,
    translate,
    translated,
    with_retries,
)
from zoo.hub_push import push

__all__ = [
    "HubError",
    "WeightFile",
    "check_repo_id",
    "choose_weights",
    "fetch",
    "fetch_folder",
    "is_repo_id",
    "push",
    "sha256_of",
]

LEFTOVER_AGE = 3600.0  # seconds without a write after which an unlocked partial download counts as dead

logger = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """One file of a repository and what is known about it.

    Args:
        path: place in the repository, with `/`.
        sha256: 64 lower-case hexadecimal digits of the content, or None when unknown.
        size: bytes, or None when unknown.
    """

    path: str
    sha256: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not self.path or self.path.startswith("/") or "\\" in self.path or ".." in parts or self.path.endswith("/"):
            raise ValueError(
                f"WeightFile: path={self.path!r} is not a place inside a repository. Use a relative path with '/' and no '..'."
            )
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"WeightFile: sha256={self.sha256!r} of {self.path!r} is not 64 lower-case hexadecimal digits.")
        if self.size is not None and self.size < 0:
            raise ValueError(f"WeightFile: size={self.size} of {self.path!r} is negative. Give bytes or None.")


# ---------------------------------------------------------------- download


def fetch(
    repo: str,
    filename: str,
    *,
    revision: str = "main",
    sha256: str | None = None,
    size: int | None = None,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Give the local path of one verified file of a Hub repository.

    A 40-digit commit that is cached makes no request. A branch or tag is looked up once; when the server cannot be reached or
    refuses, a cached copy is used and a warning is logged. The bytes are checked against `sha256` when given, else against
    the hash the Hub publishes for files stored with LFS or Xet (small text files have none; on file systems without
    symbolic links only the given hash is checked). A damaged cached file is removed and downloaded again.

    Args:
        repo: `organisation/name`.
        filename: place in the repository, with `/`.
        revision: branch, tag or 40-digit commit.
        sha256: what the content must hash to.
        size: bytes the content must have.
        endpoint: address of the Hub; None takes HF_ENDPOINT or the public one.
        cache_dir: None takes the Hub client's cache (HF_HUB_CACHE, HF_HOME).
        token: None takes the saved log-in, False sends none.
        local_files_only: make no request; also set by HF_HUB_OFFLINE=1.

    Returns:
        A path inside the cache: read it, do not write to it.

    Raises:
        HubError: anything that went wrong with network, server, access, bytes or disk.
        ValueError: `repo`, `filename`, `revision`, `sha256` or `size` cannot be right.
    """
    request = hub_request(
        "fetch",
        repo,
        revision=revision,
        endpoint=endpoint,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    wanted = WeightFile(path=filename, sha256=sha256, size=size)
    request, commit = _resolve(request, filename)
    path = _fetch_at(request, commit, wanted)
    _remember_revision(request, commit)
    return path


def fetch_folder(
    repo: str,
    *,
    revision: str = "main",
    files: Sequence[WeightFile] | None = None,
    config: bool = True,
    endpoint: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Give the local folder that holds `config.json` and the weights of a repository, all from one commit.

    Args:
        repo, revision, endpoint, cache_dir, token, local_files_only: as in `fetch`.
        files: the weight files needed. None asks the repository which files it has and takes one by the rule of
            `choose_weights`.
        config: False for a repository without `config.json`.

    Returns:
        The folder of that commit in the cache: read it, do not write to it.

    Raises:
        HubError: as in `fetch`.
        ValueError: as in `fetch`, or the repository has no weight file, or several and none by a known name.
    """
    request = hub_request(
        "fetch_folder",
        repo,
        revision=revision,
        endpoint=endpoint,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    if files is None:
        request, commit, names = _resolve_listing(request)
        weights = choose_weights(names, where=f"repository {repo!r} at revision {revision!r}")
        wanted = [WeightFile(path=weights)]
    elif files:
        wanted = list(files)
        request, commit = _resolve(request, wanted[0].path)
    else:
        raise ValueError("zoo.hub.fetch_folder: files=() asks for nothing. Give the files needed, or None to choose by name.")
    if config and all(file.path != "config.json" for file in wanted):
        wanted.insert(0, WeightFile(path="config.json"))
    for file in wanted:
        _fetch_at(request, commit, file)
    _remember_revision(request, commit)
    return request.root / "snapshots" / commit


def choose_weights(names: Sequence[str], *, where: str) -> str:
    """Pick the weight file of a folder: `model.safetensors`, else `weights.safetensors`, else the only `*.safetensors`.

    Args:
        names: the folder's files; those in sub-folders do not count.
        where: the folder in words, for the error.

    Raises:
        ValueError: no such file, or several; the message lists what is there.
    """
    top = sorted(name for name in names if "/" not in name)
    candidates = [name for name in top if name.endswith(".safetensors")]
    for name in ("model.safetensors", "weights.safetensors"):
        if name in candidates:
            return name
    if len(candidates) == 1:
        return candidates[0]
    there = ", ".join(top[:20]) or "nothing"
    if not candidates:
        raise ValueError(
            f"zoo: {where} has no *.safetensors file at its top. There: {there}. "
            "Weights in another format must be named by a zoo entry or converted first."
        )
    raise ValueError(
        f"zoo: {where} has {len(candidates)} *.safetensors files and none is called model.safetensors or "
        f"weights.safetensors: {', '.join(candidates[:20])}. Name the one that is needed."
    )


def _resolve(request: HubRequest, filename: str) -> tuple[HubRequest, str]:
    """Find the commit of a revision: given, asked from the server, or remembered. Offline is set when the server failed."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if _COMMIT.fullmatch(request.revision):
        return request, request.revision
    remembered = _remembered(request)
    if request.offline:
        return request, remembered or _not_cached(request, filename)

    def ask() -> str:
        url = hf_hub_url(request.repo, filename, revision=request.revision, endpoint=request.endpoint)
        return _a_commit(get_hf_file_metadata(url, token=request.token, endpoint=request.endpoint).commit_hash)

    if remembered is None or _cached(request, remembered, filename) is None:
        with translated(request, filename):
            return request, with_retries(ask, f"{request.repo} at {request.revision}")
    try:
        return request, ask()
    except network_errors() as error:
        return _fall_back(request, error, remembered, filename), remembered


def _resolve_listing(request: HubRequest) -> tuple[HubRequest, str, list[str]]:
    """Find the commit of a revision and the names of its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import FileMetadataError

    pinned = _COMMIT.fullmatch(request.revision) is not None
    remembered = request.revision if pinned else _remembered(request)
    folder = request.root / "snapshots" / (remembered or "none")
    cached = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    # model.safetensors is the first choice: nothing a listing could add would change it.
    if pinned and {"config.json", "model.safetensors"} <= set(cached):
        return request, request.revision, cached
    usable = remembered is not None and any(name.endswith(".safetensors") for name in cached)
    if request.offline:
        return request, (remembered if usable else None) or _not_cached(request, None), cached

    def ask() -> tuple[str, list[str]]:
        api = HfApi(endpoint=request.endpoint, token=request.token)
        try:
            found = api.model_info(request.repo, revision=request.revision)
        except (KeyError, TypeError) as error:  # how the client fails on JSON that is not the Hub's
            raise FileMetadataError(f"it has no {error}") from error
        return _a_commit(found.sha), [sibling.rfilename for sibling in found.siblings or []]

    if remembered is None or not usable:
        with translated(request):
            return request, *with_retries(ask, f"{request.repo} at {request.revision}")
    try:
        return request, *ask()
    except network_errors() as error:
        return _fall_back(request, error, remembered, None), remembered, cached


def _a_commit(answer: str | None) -> str:
    """Refuse an answer that names no commit: a proxy or log-in page gave it."""
    from huggingface_hub.errors import FileMetadataError

    if answer is None or not _COMMIT.fullmatch(answer):
        raise FileMetadataError(f"it names the commit {answer!r}")
    return answer


def _fall_back(request: HubRequest, error: BaseException, remembered: str, filename: str | None) -> HubRequest:
    """Warn and forbid further requests, unless the server knows for sure that revision or file are gone."""
    from huggingface_hub.errors import RemoteEntryNotFoundError, RevisionNotFoundError

    fault = translate(request, error, filename)
    if isinstance(error, (RevisionNotFoundError, RemoteEntryNotFoundError)):
        raise fault from error
    logger.warning("%s The cached copy of commit %s is used instead; it may be out of date.", fault, remembered)
    return replace(request, offline=True)


def _not_cached(request: HubRequest, filename: str | None) -> NoReturn:
    """Say that a file is not in the cache and that no request may be made."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise translate(request, LocalEntryNotFoundError("not cached"), filename)


def _fetch_at(request: HubRequest, commit: str, wanted: WeightFile) -> Path:
    """Give one verified file of a known commit, from the cache or the server."""
    from huggingface_hub import hf_hub_download

    path = _cached(request, commit, wanted.path)
    if path is not None:
        fault = _fault(request, path, wanted)
        if fault is None:
            return path
        if request.offline or fault.kind != "damaged":
            raise fault
        logger.warning("%s Downloading it again.", fault)
    elif request.offline:
        _not_cached(request, wanted.path)
    _remove_leftovers(request)

    def download() -> str:
        return hf_hub_download(
            request.repo,
            wanted.path,
            revision=commit,
            endpoint=request.endpoint,
            cache_dir=request.cache_dir,
            token=request.token,
        )

    with translated(request, wanted.path):
        path = Path(with_retries(download, f"{request.repo}/{wanted.path}"))
    fault = _fault(request, path, wanted)
    if fault is not None:
        raise fault
    return path


# ---------------------------------------------------------------- cache


def _cached(request: HubRequest, commit: str, filename: str) -> Path | None:
    """The file of a commit in the cache, or None."""
    path = request.root / "snapshots" / commit / filename
    return path if path.is_file() else None


def _remembered(request: HubRequest) -> str | None:
    """The commit a branch or tag pointed at when it was last fetched."""
    try:
        commit = (request.root / "refs" / request.revision).read_text().strip()
    except OSError:
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _remember_revision(request: HubRequest, commit: str) -> None:
    """Note which commit a branch or tag points at, once everything asked of that commit is here and verified."""
    if _COMMIT.fullmatch(request.revision) or request.offline or _remembered(request) == commit:
        return
    with contextlib.suppress(OSError):  # a cache that cannot be written still serves its files
        _write_atomically(request.root / "refs" / request.revision, commit)


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.new")
    try:
        new.write_text(text)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def _blob(path: Path) -> Path:
    """The file a snapshot's link points at: its name is the hash the server published."""
    return Path(os.path.abspath(path.parent / os.readlink(path))) if path.is_symlink() else path


def _fault(request: HubRequest, path: Path, wanted: WeightFile) -> HubError | None:
    """Check size and hash of a cached file; remove it when its bytes are not those the server published."""
    blob = _blob(path)
    published = blob.name if _SHA256.fullmatch(blob.name) else None
    expected = wanted.sha256 or published
    try:
        before = path.stat()
        found = _hash_once(request, path, blob) if expected else None
    except OSError as error:
        return request.error("disk", f"{error_line(error)}.", "Check the rights of the cache.", file=wanted.path)
    size_differs = wanted.size is not None and wanted.size != before.st_size
    if found == expected and not size_differs:
        return None
    if size_differs:
        facts = f"it has {before.st_size} bytes where {wanted.size} were expected."
    else:
        facts = f"its sha256 is {found} where {expected} was expected."
    if published is not None and (found or sha256_of(path)) == published:
        advice = "The file is what the server published, so the repository or the expected value changed: pin another revision."
        return request.error("refused", facts, advice, file=wanted.path)
    try:
        removed = _remove(request, path, blob, before)
    except OSError as error:
        advice = f"Remove {blob} by hand: it could not be removed ({error_line(error)})."
        return request.error("damaged", facts, advice, file=wanted.path)
    advice = "The damaged file was removed from the cache; call again." if removed else "Call again."
    return request.error("damaged", facts, advice, file=wanted.path)


def _hash_once(request: HubRequest, path: Path, blob: Path) -> str:
    """Hash a file, or read from the marker what an unchanged file (same size, same time of change) hashed to."""
    key = blob.name if blob != path else path.relative_to(request.root).as_posix().replace("/", "-")
    marker = request.root / ".zoo" / f"{key}.json"
    stat = path.stat()
    state = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(marker.read_text())
        if isinstance(known, dict) and {"size": known.get("size"), "mtime_ns": known.get("mtime_ns")} == state:
            return str(known.get("sha256"))
    found = sha256_of(path)
    with contextlib.suppress(OSError):  # without a marker the file is hashed again next time, no more
        _write_atomically(marker, json.dumps({**state, "sha256": found}))
    return found


def _remove(request: HubRequest, path: Path, blob: Path, before: os.stat_result) -> bool:
    """Remove a damaged file and every link to it, unless another process has put a new one in its place."""
    try:
        now = path.stat()
    except FileNotFoundError:
        return True
    if (now.st_ino, now.st_mtime_ns, now.st_size) != (before.st_ino, before.st_mtime_ns, before.st_size):
        return False
    target = blob.resolve()  # with the client's shared store a blob is itself a link
    if target != blob and target.is_relative_to(request.cache_dir.resolve()):
        target.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    for link in (request.root / "snapshots").rglob("*"):
        if link.is_symlink() and _blob(link) == blob:
            link.unlink(missing_ok=True)
    return True


def _remove_leftovers(request: HubRequest) -> None:
    """Remove partial downloads of processes that died.

    A partial file goes only when nobody wrote to it for an hour AND the client's lock of that download is free. Either
    alone is not enough: a stalled download keeps its lock, and on some network file systems every process gets the lock.
    """
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    locks = request.cache_dir / ".locks" / request.root.name
    for partial in (request.root / "blobs").glob("*.incomplete"):
        lock = locks / f"{partial.name.split('.')[0]}.lock"
        with contextlib.suppress(OSError, Timeout):
            if time.time() - partial.stat().st_mtime < LEFTOVER_AGE:
                continue
            lock.parent.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(lock, timeout=0.01):
                partial.unlink(missing_ok=True)
                logger.info("removed %s, left by a download that died", partial)
