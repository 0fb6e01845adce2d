"""How we talk to the Hub client: one request record, one error class, retries, hashes.

`zoo.hub` (download) and `zoo.hub_push` (upload) both stand on this. Neither torch nor the Hub client is imported before a
function needs it.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

__all__ = [
    "HubError",
    "HubRequest",
    "check_repo_id",
    "error_line",
    "hub_request",
    "is_repo_id",
    "network_errors",
    "sha256_of",
    "status_of",
    "translate",
    "translated",
    "with_retries",
]

RETRY_WAITS = (1.0, 2.0, 4.0)  # seconds before the second, third and last try after a passing fault
PROGRESS_FROM = 256 * 2**20  # bytes from which hashing shows a progress bar

Kind = Literal["missing", "denied", "unreachable", "offline", "damaged", "disk", "refused"]
T = TypeVar("T")

logger = logging.getLogger(__name__)
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_REPO_ID = re.compile(f"{_PART}/{_PART}")


class HubError(OSError):
    """Something between this machine and the Hub went wrong.

    The message says what was asked (repository, file, revision, server), what happened and what to do. `kind` is for
    programs: `missing` (no such repository, revision or file), `denied` (token or access), `unreachable` (network or
    server), `offline` (not in the cache, and no request was allowed), `damaged` (the bytes are not those the server
    announced), `disk` (the cache cannot be read or written) and `refused` (the server said no for another reason, or the
    file is sound but not the one that was asked for).
    """

    def __init__(
        self,
        message: str,
        *,
        kind: Kind = "refused",
        repo: str | None = None,
        file: str | None = None,
        revision: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.repo = repo
        self.file = file
        self.revision = revision
        self.endpoint = endpoint


# ---------------------------------------------------------------- repository ids


def is_repo_id(text: str) -> bool:
    """Tell whether `text` has the form `organisation/name` of a Hub repository (it need not exist)."""
    name = text.partition("/")[2]
    return (
        bool(_REPO_ID.fullmatch(text)) and len(name) <= 96 and "--" not in text and ".." not in text and not name.endswith(".git")
    )


def check_repo_id(text: str, *, function: str = "load") -> None:
    """Refuse a string that cannot name a Hub repository.

    Raises:
        ValueError: not `organisation/name`; the message gives the folder and the repository that may have been meant.
    """
    if is_repo_id(text):
        return
    bare = re.sub(r"^(hf:(//)?|https?://[^/]*/|models--)", "", text).replace("\\", "/").replace("--", "/")
    bare = re.sub(r"/(tree|blob|resolve)/", "@", bare, count=1).strip("/")
    bare, _, revision = bare.partition("@")
    parts = [part for part in bare.split("/") if part not in ("", ".", "..")]
    guess = "/".join(re.sub(r"[^A-Za-z0-9._-]", "-", part) for part in parts[:2]) if len(parts) > 1 else "organisation/name"
    revision = revision or "/".join(parts[2:])
    guess = repr(guess) + (f" with revision={revision!r}" if revision else "")
    folder = text if text.startswith((".", "/", "~")) else f"./{bare or 'folder'}"
    state = "it exists" if Path(folder).expanduser().is_dir() else "it does not exist here"
    raise ValueError(
        f"zoo.{function}: {text!r} is neither an existing folder nor a Hub repository 'organisation/name'. "
        f"Did you mean the folder {folder!r} ({state}) or the repository {guess}?"
    )


# ---------------------------------------------------------------- hashes


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hash a file; shows a progress bar when the file is large (256 MiB and more).

    Returns:
        64 lower-case hexadecimal digits.
    """
    from huggingface_hub.utils import tqdm

    path = Path(path)
    size = path.stat().st_size
    digest = hashlib.sha256()
    block = memoryview(bytearray(2**20))
    hidden = True if size < PROGRESS_FROM else None  # None leaves it to HF_HUB_DISABLE_PROGRESS_BARS
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"checking {path.name}", disable=hidden)
    with bar, path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            bar.update(count)
    return digest.hexdigest()


# ---------------------------------------------------------------- what was asked, and errors about it


@dataclass(frozen=True, kw_only=True)
class HubRequest:
    """Everything that stays the same while one call talks to the Hub. `offline` forbids requests."""

    function: str
    repo: str
    revision: str
    endpoint: str
    cache_dir: Path
    token: str | bool | None
    offline: bool

    @property
    def root(self) -> Path:
        """The repository's folder in the cache."""
        return self.cache_dir / f"models--{self.repo.replace('/', '--')}"

    def error(self, kind: Kind, happened: str, advice: str, *, file: str | None = None) -> HubError:
        """Make the error that says what was asked, what happened and what to do."""
        asked = f"file {file!r} of " if file else ""
        return HubError(
            f"zoo.hub.{self.function}: {asked}repository {self.repo!r} at revision {self.revision!r} from "
            f"{self.endpoint}: {happened} {advice}",
            kind=kind,
            repo=self.repo,
            file=file,
            revision=self.revision,
            endpoint=self.endpoint,
        )


def hub_request(
    function: str,
    repo: str,
    *,
    revision: str,
    endpoint: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> HubRequest:
    """Check the arguments every call has in common and fill in the Hub client's settings.

    Raises:
        ValueError: `repo` or `revision` cannot be one.
    """
    from huggingface_hub import constants

    check_repo_id(repo, function=f"hub.{function}")
    if not revision or ".." in revision or revision.startswith("/"):
        raise ValueError(f"zoo.hub.{function}: revision={revision!r} is not a branch, a tag or a 40-digit commit.")
    return HubRequest(
        function=function,
        repo=repo,
        revision=revision,
        endpoint=(endpoint or constants.ENDPOINT).rstrip("/"),
        cache_dir=Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute(),
        token=token,
        offline=local_files_only or constants.is_offline_mode(),
    )


def network_errors() -> tuple[type[BaseException], ...]:
    """Every class of error the Hub client lets through; RuntimeError is how it wraps a failed LFS upload."""
    import httpx2

    return (OSError, httpx2.HTTPError, httpx2.InvalidURL, json.JSONDecodeError, RuntimeError)


def status_of(error: BaseException) -> int | None:
    """The HTTP status the server answered, or None when there was no answer."""
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def error_line(error: BaseException) -> str:
    """Class and first line of an error's message."""
    error = _root_error(error)
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _root_error(error: BaseException) -> BaseException:
    """The fault itself where the client wraps it in 'not found locally' or 'error while uploading'."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, (LocalEntryNotFoundError, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_dropped(error: BaseException) -> bool:
    """Whether the network, not the server's answer, is at fault."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    network = (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError, httpx2.ProxyError, ConnectionError)
    return isinstance(error, network) and not isinstance(error, OfflineModeIsEnabled)


def _is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    error = _root_error(error)
    status = status_of(error)
    return _is_dropped(error) or (status is not None and (status >= 500 or status in (408, 429)))


def with_retries(call: Callable[[], T], what: str) -> T:
    """Call, and call again after each wait while the fault is a passing one; a longer wait named by the server is kept."""
    for wait in RETRY_WAITS:
        try:
            return call()
        except network_errors() as error:
            if not _is_passing(error):
                raise
            pause = max(wait, _asked_wait(error))
            logger.warning("%s: %s; trying again in %g s", what, error_line(error), pause)
            time.sleep(pause)
    return call()


def _asked_wait(error: BaseException) -> float:
    """Seconds the server asked to wait, by Retry-After or by its rate limit."""
    from huggingface_hub.utils import parse_ratelimit_headers

    response = getattr(_root_error(error), "response", None)
    if response is None:
        return 0.0
    if response.headers.get("Retry-After", "").isdigit():
        return float(response.headers["Retry-After"])
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else 0.0


@contextlib.contextmanager
def translated(request: HubRequest, file: str | None = None) -> Iterator[None]:
    """Turn every error of the Hub client inside the block into a `HubError`."""
    try:
        yield
    except network_errors() as error:
        raise translate(request, error, file) from error


def translate(request: HubRequest, error: BaseException, file: str | None = None) -> HubError:
    """Find the words for an error of the Hub client: what happened and what to do."""
    if isinstance(error, HubError):
        return error
    error = _root_error(error)
    kind, happened, advice = _explain_answer(request, error) or _explain_fault(request, error)
    return request.error(kind, happened, advice, file=file)


def _explain_answer(request: HubRequest, error: BaseException) -> tuple[Kind, str, str] | None:
    """Explain what the server answered; None when it did not answer."""
    from huggingface_hub import errors

    status = status_of(error)
    page = f"{request.endpoint}/{request.repo}"
    log_in = "Log in with `hf auth login`, set HF_TOKEN, or pass token=."
    if isinstance(error, errors.GatedRepoError):
        return "denied", "access is gated and was not granted.", f"Ask for it at {page}. {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "missing", "there is no such revision.", f"See {page}/tree/main for the branches and tags there are."
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "missing", "the revision has no such file.", f"See {page}/tree/{request.revision} for the files there are."
    if isinstance(error, errors.RepositoryNotFoundError):
        happened = "there is no such repository, or it is private and the token (if any) may not see it."
        return "missing", happened, f"Check the spelling; for a folder write './{request.repo}'. {log_in}"
    if status == 401:
        return "denied", f"the token was refused ({error_line(error)}).", log_in
    if status == 403:
        return "denied", f"the token does not allow this ({error_line(error)}).", "Use a token with the right this needs."
    if status in (408, 429) or (status is not None and status >= 500):
        return "unreachable", f"the server answered {status} each time it was asked.", "Try again later."
    if status is not None:
        return "refused", f"the server refused ({error_line(error)}).", "What was sent does not suit this server."
    return None


def _explain_fault(request: HubRequest, error: BaseException) -> tuple[Kind, str, str]:
    """Explain an error that is not an answer of the server."""
    from huggingface_hub import errors

    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        advice = "Download once with a network, or unset HF_HUB_OFFLINE and local_files_only."
        return "offline", f"it is not in the cache {request.cache_dir}.", advice
    if isinstance(error, (errors.FileMetadataError, json.JSONDecodeError)):
        happened = f"the answer does not come from a Hub ({error_line(error)})."
        return "unreachable", happened, "Check HF_ENDPOINT, the proxy and the network's log-in page."
    if _is_dropped(error):
        happened = f"the server cannot be reached or dropped the connection ({error_line(error)})."
        return "unreachable", happened, "Check the network and the address, then call again."
    if "Consistency check failed" in str(error):
        return "damaged", f"the download has the wrong length ({error_line(error)}).", "Nothing was kept; call again."
    if isinstance(error, OSError):
        return "disk", f"{error_line(error)}.", f"Check space and rights of the disk (cache: {request.cache_dir})."
    return "refused", f"{error_line(error)}.", "Check the endpoint and the arguments."
