"""Where weights go to: publish a folder with its card on the Hub, in one commit, and check what arrived."""

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.hub_client import HubRequest, hub_request, sha256_of, status_of, translated, with_retries

__all__ = ["check_card", "push"]


def push(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    message: str | None = None,
    revision: str | None = None,
    tag: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    create_pr: bool = False,
) -> str:
    """Publish a folder (config.json, weights, README.md) as one commit and check what arrived.

    Folder and card are validated before the first request. Files the repository already has are not sent; when nothing changed
    no commit is made. The branch moves in one step at the very end, so an interrupted push leaves the old revision as it was,
    and calling again continues. Files in the repository that the folder does not have are left alone; hidden files are not sent.

    Args:
        folder: as `zoo.checkpoint.write_folder` makes it, with a README.md.
        repo: `organisation/name`; created when it does not exist.
        private: create it private. An existing public repository is refused, not changed.
        message: summary of the commit.
        revision: branch to commit to, created when it does not exist; None is the main branch.
        tag: name for the new commit, for example "v1".
        token: None takes the saved log-in; it needs the right to write.
        endpoint: address of the Hub; None takes HF_ENDPOINT or the public one.
        create_pr: open a pull request on an existing repository instead of committing to the branch.

    Returns:
        The 40-digit commit that holds the folder's content.

    Raises:
        HubError: anything that went wrong with network, server or access, or what arrived is not what was sent.
        ValueError: the folder or its card is not fit to be published, or the arguments contradict each other.
    """
    from huggingface_hub import HfApi

    from zoo.checkpoint import read_folder

    folder = Path(folder)
    if create_pr and tag is not None:
        raise ValueError(f"zoo.hub.push: tag={tag!r} with create_pr=True. Tag the commit after the pull request was merged.")
    request = hub_request("push", repo, revision=revision or "main", endpoint=endpoint, token=token)
    if request.offline:
        raise request.error("offline", "no request is allowed.", "Unset HF_HUB_OFFLINE to push.")
    read_folder(folder, verify=True)
    check_card(folder / "README.md")
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]

    api = HfApi(endpoint=request.endpoint, token=token)
    upload: dict[str, Any] = {
        "repo_id": repo,
        "folder_path": folder,
        "allow_patterns": [glob.escape(name) for name in names],
        "commit_message": message or f"Upload {folder.absolute().name}",
        "revision": revision,
        "create_pr": create_pr,
    }
    with translated(request):
        _prepare(request, api, private=private, create_pr=create_pr)
        if create_pr:
            commit = api.upload_folder(**upload).oid
        else:  # asking again is safe: what has arrived is skipped; only a pull request would be opened twice
            commit = with_retries(lambda: api.upload_folder(**upload).oid, f"push to {repo}")
        _check_arrived(request, api, folder, names, commit)
        if tag is not None:
            _tag(request, api, tag, commit)
    return commit


def _prepare(request: HubRequest, api: Any, *, private: bool, create_pr: bool) -> None:
    """Create repository and branch where they are missing; never make something private public or the reverse."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = with_retries(lambda: api.model_info(request.repo), f"push to {request.repo}")
    except RepositoryNotFoundError:
        if create_pr:
            raise
        api.create_repo(request.repo, private=True if private else None, exist_ok=True)
    else:
        if private and not found.private:
            advice = "Make it private in its settings first, or push with private=False."
            raise request.error("refused", "private=True, but the repository exists and is public.", advice)
    if request.revision != "main" and not create_pr:
        api.create_branch(request.repo, branch=request.revision, exist_ok=True)


def check_card(path: str | os.PathLike[str]) -> None:
    """Refuse a model card the Hub or its readers could not use.

    Raises:
        ValueError: no file, no front matter between two `---` lines, no YAML mapping in it, or no `license` (write
            `license: unknown` when it is not known: a licence is never invented and never left out).
    """
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"zoo.hub.check_card: no {path}. A model is published with its card: write it first.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"zoo.hub.check_card: {path} is not UTF-8 text ({error}).") from None
    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", text, flags=re.DOTALL)
    if match is None:
        raise ValueError(f"zoo.hub.check_card: {path} does not begin with front matter between two '---' lines.")
    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        raise ValueError(f"zoo.hub.check_card: the front matter of {path} is not YAML: {error}") from error
    if not isinstance(data, dict) or not data.get("license"):
        raise ValueError(
            f"zoo.hub.check_card: the front matter of {path} has no 'license'. Write the licence of the weights, or 'unknown'."
        )


def _git_blob_sha1(path: Path) -> str:
    """The identity git gives to a file that is stored without LFS."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _check_arrived(request: HubRequest, api: Any, folder: Path, names: Sequence[str], commit: str) -> None:
    """Compare the hashes the server lists for a commit with those of the local files."""
    from huggingface_hub import RepoFile

    def ask() -> list[Any]:
        return list(api.list_repo_tree(request.repo, recursive=True, revision=commit))

    entries = with_retries(ask, f"check of the push to {request.repo}")
    remote = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    wrong = []
    for name in names:
        entry, path = remote.get(name), folder / name
        if entry is None or entry.size != path.stat().st_size:
            wrong.append(name)
        elif entry.lfs is not None:
            if entry.lfs.sha256 != sha256_of(path):
                wrong.append(name)
        elif entry.blob_id != _git_blob_sha1(path):
            wrong.append(name)
    if wrong:
        happened = f"commit {commit} does not hold the folder's content: {', '.join(wrong[:10])}."
        advice = "Was the folder changed meanwhile, or another push running? Push again."
        raise request.error("damaged", happened, advice)


def _tag(request: HubRequest, api: Any, tag: str, commit: str) -> None:
    """Tag a commit; a tag that already names it is fine, one that names another commit is never moved."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_tag(request.repo, tag=tag, revision=commit)
    except HfHubHTTPError as error:
        if status_of(error) != 409:
            raise
        there = {ref.name: ref.target_commit for ref in api.list_repo_refs(request.repo).tags}.get(tag)
        if there != commit:
            happened = f"the content is pushed as commit {commit}, but tag {tag!r} already names commit {there}."
            raise request.error("refused", happened, "Tags are not moved: choose another tag.") from error
