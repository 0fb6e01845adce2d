"""Download and push over real HTTP, against `tests/hub_server.py`, with every fault the wrapper promises to handle."""

import importlib.util
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from huggingface_hub import constants

from zoo import hub as zoo_hub
from zoo.checkpoint import read_folder, read_tensors, write_folder
from zoo.hub import HubError, WeightFile, check_repo_id, choose_weights, fetch, fetch_folder, is_repo_id, push, sha256_of
from zoo.hub_push import check_card

ROOT = Path(__file__).parent.parent


def _load_beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


hub_server = _load_beside("hub_server")
HubServer, WRITER, READER, OUTSIDER = hub_server.HubServer, hub_server.WRITER, hub_server.READER, hub_server.OUTSIDER

REPO = "acme/codec"
WEIGHTS = bytes(range(256)) * 1200
CONFIG = b'{"family": "codec"}'
CARD = "---\nlicense: apache-2.0\n---\n# Codec\n"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.hub_client.RETRY_WAITS", (0.01, 0.01, 0.01))


def _get(hub: HubServer, cache: Path, name: str = "model.safetensors", **options: object) -> Path:
    return fetch(REPO, name, **{"endpoint": hub.url, "cache_dir": cache, "token": False, **options})


def _get_folder(hub: HubServer, cache: Path, **options: object) -> Path:
    return fetch_folder(REPO, **{"endpoint": hub.url, "cache_dir": cache, "token": False, **options})


def _fill(hub: HubServer, **flags: bool) -> str:
    return hub.add_commit(REPO, {"config.json": CONFIG, "model.safetensors": WEIGHTS}, **flags)


def _blobs(cache: Path) -> list[Path]:
    return sorted((cache / "models--acme--codec" / "blobs").iterdir())


def _run(code: str, tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    env = {**clean, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# ---------------------------------------------------------------- download that works


def test_fetch_gives_the_bytes_and_keeps_them(hub: HubServer, cache: Path) -> None:
    commit = _fill(hub)
    path = _get(hub, cache)
    assert path.read_bytes() == WEIGHTS
    assert path == cache / "models--acme--codec" / "snapshots" / commit / "model.safetensors"
    hub.log.clear()
    assert _get(hub, cache) == path
    assert [seen.method for seen in hub.log] == ["HEAD"]


def test_pinned_commit_in_the_cache_makes_no_request(hub: HubServer, cache: Path) -> None:
    commit = _fill(hub)
    first = _get(hub, cache, revision=commit), _get_folder(hub, cache, revision=commit)
    hub.log.clear()
    assert (_get(hub, cache, revision=commit), _get_folder(hub, cache, revision=commit)) == first
    assert hub.log == []


def test_the_token_does_not_follow_a_redirect_to_another_host(hub: HubServer, cache: Path) -> None:
    _fill(hub, private=True)
    _get(hub, cache, token=READER)
    tokens = {(seen.port, seen.method): seen.token for seen in hub.log}
    assert tokens == {("hub", "HEAD"): READER, ("cdn", "GET"): None}


def test_a_moved_branch_is_followed_and_the_old_commit_stays(hub: HubServer, cache: Path) -> None:
    old = _fill(hub)
    _get(hub, cache)
    hub.add_commit(REPO, {"model.safetensors": WEIGHTS[::-1]})
    assert _get(hub, cache).read_bytes() == WEIGHTS[::-1]
    assert _get(hub, cache, revision=old).read_bytes() == WEIGHTS


def test_hub_and_client_are_not_imported_before_they_are_needed(tmp_path: Path) -> None:
    process = _run("import sys, zoo.hub; print([m for m in ('torch', 'huggingface_hub') if m in sys.modules])", tmp_path)
    assert process.communicate(timeout=120)[0].strip() == "[]"


def test_four_processes_download_one_file_at_once(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    hub.add_commit(REPO, {"model.safetensors": WEIGHTS * 40})
    code = f"from zoo.hub import fetch, sha256_of; print(sha256_of(fetch({REPO!r}, 'model.safetensors', endpoint={hub.url!r}, "
    code += f"cache_dir={str(cache)!r}, token=False)))"
    processes = [_run(code, tmp_path, HF_HUB_DISABLE_XET="1") for _ in range(4)]
    printed = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert printed == {hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]["model.safetensors"].sha256}
    assert hub.count("GET", "/lfs/") == 1
    assert len(_blobs(cache)) == 1


# ---------------------------------------------------------------- what is not there or not allowed


@pytest.mark.parametrize(
    ("repo", "options", "says"),
    [
        ("acme/none", {}, "no such repository"),
        (REPO, {"revision": "v9"}, "no such revision"),
        (REPO, {"revision": "0" * 40}, "no such revision"),
        (REPO, {"name": "other.safetensors"}, "no such file"),
    ],
)
def test_what_does_not_exist_is_named(hub: HubServer, cache: Path, repo: str, options: dict[str, str], says: str) -> None:
    _fill(hub)
    name = options.pop("name", "model.safetensors")
    with pytest.raises(HubError, match=says) as caught:
        fetch(repo, name, endpoint=hub.url, cache_dir=cache, token=False, **options)
    assert caught.value.kind == "missing"
    for part in (repo, name, options.get("revision", "main"), hub.url):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "token", "kind", "says"),
    [
        ({}, "hf_wrong", "denied", "token was refused"),
        ({"private": True}, False, "missing", "private"),
        ({"private": True}, OUTSIDER, "missing", "private"),
        ({"gated": True}, False, "denied", "gated"),
        ({"gated": True}, OUTSIDER, "denied", "gated"),
    ],
)
def test_access_refused(hub: HubServer, cache: Path, flags: dict[str, bool], token: str, kind: str, says: str) -> None:
    _fill(hub, **flags)
    for call in (_get, _get_folder):
        with pytest.raises(HubError, match=says) as caught:
            call(hub, cache, token=token)
        assert caught.value.kind == kind
        assert "hf auth login" in str(caught.value)
    assert _get(hub, cache, token=READER).read_bytes() == WEIGHTS


def test_what_the_server_knows_to_be_gone_is_not_served_from_the_cache(hub: HubServer, cache: Path) -> None:
    commit = _fill(hub)
    hub.add_commit(REPO, {"model.safetensors": WEIGHTS}, branch="next")
    for revision in ("main", "next"):
        _get(hub, cache, revision=revision)
    del hub.repos[REPO].branches["next"]
    hub.repos[REPO].commit("main", {})
    for revision, says in (("next", "no such revision"), ("main", "no such file")):
        with pytest.raises(HubError, match=says):
            _get(hub, cache, revision=revision)
    assert _get(hub, cache, revision=commit).read_bytes() == WEIGHTS


def test_a_plain_403_is_not_taken_for_a_network_fault(hub: HubServer, cache: Path) -> None:
    _fill(hub)
    hub.fail("HEAD", "/resolve/", status=403)
    with pytest.raises(HubError, match="does not allow") as caught:
        _get(hub, cache)
    assert caught.value.kind == "denied"


def test_a_revoked_token_uses_the_cached_copy_and_says_so(hub: HubServer, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    _fill(hub, private=True)
    path = _get(hub, cache, token=READER)
    caplog.clear()
    assert _get(hub, cache, token=OUTSIDER) == path
    assert "private" in caplog.text
    assert "cached copy" in caplog.text


# ---------------------------------------------------------------- faults that pass


@pytest.mark.parametrize(("method", "path"), [("HEAD", "/resolve/"), ("GET", "/lfs/")])
@pytest.mark.parametrize("action", ["status", "drop"])
def test_one_fault_is_invisible(hub: HubServer, cache: Path, method: str, path: str, action: str) -> None:
    _fill(hub)
    hub.fail(method, path, action)
    assert _get(hub, cache).read_bytes() == WEIGHTS
    assert hub.count(method, path) >= 2


def test_lasting_server_errors_end_in_one_error_and_leave_nothing(hub: HubServer, cache: Path) -> None:
    _fill(hub)
    hub.fail("GET", "/lfs/", status=503, times=4)
    with pytest.raises(HubError, match="503") as caught:
        _get(hub, cache)
    assert caught.value.kind == "unreachable"
    assert _blobs(cache) == []
    assert _get(hub, cache).read_bytes() == WEIGHTS


def test_the_wait_a_server_asks_for_is_kept(hub: HubServer, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    _fill(hub)
    hub.fail("HEAD", "/resolve/", status=429, headers={"Retry-After": "1"})
    start = time.monotonic()
    _get(hub, cache)
    assert time.monotonic() - start >= 1
    assert "trying again in 1 s" in caplog.text


def test_a_download_cut_in_the_middle_is_resumed(hub: HubServer, cache: Path) -> None:
    content = os.urandom(2**20) * 12
    hub.add_commit(REPO, {"model.safetensors": content})
    hub.fail("GET", "/lfs/", "cut", at=11 * 2**20)
    assert _get(hub, cache).read_bytes() == content
    assert [seen.range for seen in hub.log if seen.port == "cdn"] == [None, f"bytes={10 * 2**20}-"]


# ---------------------------------------------------------------- no server


def test_connection_dropped_on_head_uses_the_cached_copy(hub: HubServer, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    _fill(hub)
    path = _get(hub, cache)
    hub.fail("HEAD", "/resolve/", "drop", times=99)
    caplog.clear()
    assert _get(hub, cache) == path
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING and record.name.startswith("zoo")]
    assert "dropped the connection" in record.getMessage()
    assert "may be out of date" in record.getMessage()


def test_connection_dropped_on_head_with_an_empty_cache(hub: HubServer, cache: Path) -> None:
    _fill(hub)
    hub.fail("HEAD", "/resolve/", "drop", times=99)
    with pytest.raises(HubError, match="dropped the connection") as caught:
        _get(hub, cache)
    assert caught.value.kind == "unreachable"
    assert hub.count("HEAD") == 4


def test_server_down(hub: HubServer, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    _fill(hub)
    path, folder = _get(hub, cache), _get_folder(hub, cache)
    hub.stop()
    caplog.clear()
    assert _get(hub, cache) == path
    assert _get_folder(hub, cache) == folder
    assert caplog.text.count("cached copy") == 2
    with pytest.raises(HubError, match="cannot be reached") as caught:
        _get(hub, cache, name="other.safetensors")
    assert caught.value.kind == "unreachable"


def test_a_server_that_is_not_a_hub(hub: HubServer, cache: Path) -> None:
    _fill(hub)
    for call, method, path in ((_get, "HEAD", "/resolve/"), (_get_folder, "GET", "/api/models/")):
        hub.fail(method, path, status=200)
        with pytest.raises(HubError, match="not come from a Hub") as caught:
            call(hub, cache)
        assert caught.value.kind == "unreachable"
        assert "HF_ENDPOINT" in str(caught.value)


def test_local_files_only_makes_no_request(hub: HubServer, cache: Path) -> None:
    commit = _fill(hub)
    for revision in ("main", commit):
        with pytest.raises(HubError, match="not in the cache") as caught:
            _get(hub, cache, revision=revision, local_files_only=True)
        assert caught.value.kind == "offline"
        with pytest.raises(HubError, match="not in the cache"):
            _get_folder(hub, cache, revision=revision, local_files_only=True)
    assert hub.log == []
    path, folder = _get(hub, cache), _get_folder(hub, cache)
    hub.log.clear()
    for revision in ("main", commit):
        assert _get(hub, cache, revision=revision, local_files_only=True) == path
        assert _get_folder(hub, cache, revision=revision, local_files_only=True) == folder
    assert hub.log == []


def test_offline_environment_makes_no_request(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    _fill(hub)
    path = _get(hub, cache)
    hub.log.clear()
    code = f"""
        from zoo.hub import HubError, fetch
        where = dict(endpoint={hub.url!r}, cache_dir={str(cache)!r})
        print(fetch({REPO!r}, "model.safetensors", **where))
        try:
            fetch({REPO!r}, "config.json", **where)
        except HubError as error:
            print(error.kind)
    """
    out = _run(code, tmp_path, HF_HUB_OFFLINE="1").communicate(timeout=120)[0]
    assert out.split() == [str(path), "offline"]
    assert hub.log == []


def test_push_offline_makes_no_request(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE") as caught:
        _push(hub, _folder(tmp_path / "model"))
    assert caught.value.kind == "offline"
    assert hub.log == []


# ---------------------------------------------------------------- wrong bytes


def test_altered_bytes_are_refused_and_do_not_stay(hub: HubServer, cache: Path) -> None:
    _fill(hub)
    hub.fail("GET", "/lfs/", "alter")
    with pytest.raises(HubError, match="sha256") as caught:
        _get(hub, cache)
    assert caught.value.kind == "damaged"
    assert _blobs(cache) == []
    assert _get(hub, cache).read_bytes() == WEIGHTS


def test_truncated_file_is_refused_and_does_not_stay(hub: HubServer, cache: Path) -> None:
    _fill(hub)
    hub.fail("GET", "/lfs/", "truncate", at=1000)
    with pytest.raises(HubError, match="wrong length") as caught:
        _get(hub, cache)
    assert caught.value.kind == "damaged"
    assert _blobs(cache) == []
    assert _get(hub, cache).read_bytes() == WEIGHTS


def test_a_small_file_is_checked_against_a_given_hash(hub: HubServer, cache: Path) -> None:
    _fill(hub)
    sha256 = hub.store("config.json", CONFIG).sha256
    hub.fail("GET", "config.json", "alter")
    with pytest.raises(HubError, match="sha256"):
        _get(hub, cache, name="config.json", sha256=sha256)
    assert _blobs(cache) == []
    assert _get(hub, cache, name="config.json", sha256=sha256, size=len(CONFIG)).read_bytes() == CONFIG


def test_a_file_damaged_on_disk_is_downloaded_again(hub: HubServer, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    commit = _fill(hub)
    path = _get(hub, cache, revision=commit)
    with path.open("r+b") as file:
        file.write(b"\xff")
    assert _get(hub, cache, revision=commit).read_bytes() == WEIGHTS
    assert "Downloading it again" in caplog.text
    later = hub.add_commit(REPO, {"config.json": b"{}"})
    assert _get(hub, cache, revision=later).samefile(path)
    with path.open("r+b") as file:
        file.truncate(10)
    with pytest.raises(HubError, match="removed from the cache"):
        _get(hub, cache, revision=commit, local_files_only=True)
    for snapshot in (commit, later):
        assert not os.path.lexists(cache / "models--acme--codec" / "snapshots" / snapshot / "model.safetensors")


@pytest.mark.parametrize("expected", [{"sha256": "0" * 64}, {"size": 5}])
def test_a_sound_file_that_is_not_the_expected_one_is_refused_and_kept(
    hub: HubServer, cache: Path, expected: dict[str, object]
) -> None:
    _fill(hub)
    for _ in range(2):
        with pytest.raises(HubError, match="expected value changed") as caught:
            _get(hub, cache, **expected)
        assert caught.value.kind == "refused"
    assert hub.count("GET", "/lfs/") == 1
    assert len(_blobs(cache)) == 1


def test_a_verified_file_is_not_hashed_again(hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(hub)
    hashed = []
    monkeypatch.setattr(zoo_hub, "sha256_of", lambda path: hashed.append(path) or sha256_of(path))
    path = _get(hub, cache)
    _get(hub, cache)
    assert len(hashed) == 1
    os.utime(path, ns=(1, 1))
    _get(hub, cache)
    assert len(hashed) == 2


def test_a_broken_marker_only_costs_a_hash(hub: HubServer, cache: Path) -> None:
    _fill(hub)
    path = _get(hub, cache)
    (marker,) = (cache / "models--acme--codec" / ".zoo").iterdir()
    assert json.loads(marker.read_text())["sha256"] == sha256_of(path)
    for text in ("", "[]", '{"size": 1}'):
        marker.write_text(text)
        assert _get(hub, cache) == path


def test_partial_files_of_dead_downloads_are_removed(hub: HubServer, cache: Path) -> None:
    from huggingface_hub.utils import WeakFileLock

    _fill(hub)
    _get(hub, cache, name="config.json")
    blobs, locks = cache / "models--acme--codec" / "blobs", cache / ".locks" / "models--acme--codec"
    dead, fresh, locked = (blobs / f"{letter * 64}.12345678.incomplete" for letter in "abc")
    for path in (dead, fresh, locked):
        path.write_bytes(b"half")
    for path in (dead, locked):
        os.utime(path, (time.time() - 7200,) * 2)
    with WeakFileLock(locks / f"{'c' * 64}.lock"):
        _get(hub, cache)
    assert sorted(blobs.glob("*.incomplete")) == [fresh, locked]


def test_our_marker_does_not_disturb_the_client(hub: HubServer, cache: Path) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir

    _fill(hub)
    path = _get(hub, cache)
    found = scan_cache_dir(cache)
    assert not found.warnings
    assert {ref for repo in found.repos for ref in repo.refs} == {"main"}
    assert Path(hf_hub_download(REPO, "model.safetensors", cache_dir=cache, local_files_only=True)) == path


# ---------------------------------------------------------------- a folder


def test_fetch_folder_takes_everything_from_one_commit(hub: HubServer, cache: Path) -> None:
    commit = _fill(hub)
    hub.add_commit(REPO, {"model.safetensors": b"newer"}, branch="next")
    for files in (None, [WeightFile(path="model.safetensors", size=len(WEIGHTS))]):
        hub.log.clear()
        folder = _get_folder(hub, cache, files=files)
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        assert (folder / "config.json").read_bytes() == CONFIG
        resolved = [seen.path for seen in hub.log if "/resolve/" in seen.path and "/resolve/main/" not in seen.path]
        assert all(f"/resolve/{commit}/" in path for path in resolved)


def test_fetch_folder_by_name_of_weights(hub: HubServer, cache: Path) -> None:
    hub.add_commit(REPO, {"config.json": CONFIG, "extra.safetensors": b"x", "weights.safetensors": WEIGHTS})
    folder = _get_folder(hub, cache)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "weights.safetensors"]


def test_fetch_folder_without_config(hub: HubServer, cache: Path) -> None:
    hub.add_commit(REPO, {"net.ckpt": WEIGHTS})
    with pytest.raises(HubError, match=r"config\.json"):
        _get_folder(hub, cache, files=[WeightFile(path="net.ckpt")])
    folder = _get_folder(hub, cache, files=[WeightFile(path="net.ckpt")], config=False)
    assert [path.name for path in folder.iterdir()] == ["net.ckpt"]


def test_an_unfinished_update_leaves_the_old_folder_usable(hub: HubServer, cache: Path) -> None:
    _fill(hub)
    old = _get_folder(hub, cache)
    hub.add_commit(REPO, {"config.json": b"{}", "model.safetensors": WEIGHTS[::-1]})
    hub.fail("GET", "/lfs/", status=500, times=4)
    with pytest.raises(HubError, match="500"):
        _get_folder(hub, cache)
    hub.stop()
    assert _get_folder(hub, cache) == old


def test_choose_weights_lists_what_is_there(hub: HubServer, cache: Path) -> None:
    assert choose_weights(["b.safetensors", "weights.safetensors", "model.safetensors"], where="x") == "model.safetensors"
    assert choose_weights(["sub/model.safetensors", "a.safetensors"], where="x") == "a.safetensors"
    hub.add_commit(REPO, {"config.json": CONFIG, "a.safetensors": b"1", "b.safetensors": b"2"})
    with pytest.raises(ValueError, match=r"a\.safetensors, b\.safetensors"):
        _get_folder(hub, cache)
    with pytest.raises(ValueError, match=r"There: config\.json, net\.pt"):
        choose_weights(["net.pt", "config.json"], where="folder x")
    with pytest.raises(ValueError, match="nothing"):
        _get_folder(hub, cache, files=[])


# ---------------------------------------------------------------- arguments and errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acme/codec", True),
        ("a/b", True),
        ("Acme_1/codec-2.0", True),
        ("codec", False),
        ("acme/codec/v1", False),
        ("./acme/codec", False),
        ("/acme/codec", False),
        ("acme/co--dec", False),
        ("acme/codec.git", False),
        ("acme/..", False),
        ("acme/codec-", False),
        ("acme/co dec", False),
        ("", False),
        ("a/" + "b" * 96, True),
        ("a/" + "b" * 97, False),
    ],
)
def test_is_repo_id(text: str, expected: bool) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    assert is_repo_id(text) is expected
    if expected:
        validate_repo_id(text)
        check_repo_id(text)
    else:
        with pytest.raises(ValueError, match="Did you mean"):
            check_repo_id(text)
        if "/" in text:
            with pytest.raises(HFValidationError):
                validate_repo_id(text)


@pytest.mark.parametrize(
    ("text", "folder", "repository"),
    [
        ("models/codec/v1", "'./models/codec/v1'", "'models/codec' with revision='v1'"),
        ("https://huggingface.co/acme/codec/tree/main", "'./acme/codec'", "'acme/codec' with revision='main'"),
        ("models--acme--codec", "'./acme/codec'", "'acme/codec'"),
        ("runs\\codec", "'./runs/codec'", "'runs/codec'"),
        ("./out", "'./out'", "organisation/name"),
    ],
)
def test_an_error_gives_both_readings(text: str, folder: str, repository: str) -> None:
    with pytest.raises(ValueError, match="Did you mean") as caught:
        check_repo_id(text)
    assert folder in str(caught.value)
    assert repository in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"path": ""},
        {"path": "/etc/passwd"},
        {"path": "../x"},
        {"path": "a\\b"},
        {"path": "a/"},
        {"path": "a", "sha256": "A" * 64},
        {"path": "a", "size": -1},
    ],
)
def test_weight_file_refuses(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="WeightFile"):
        WeightFile(**values)


def test_hub_error_is_an_os_error_and_survives_pickling() -> None:
    error = HubError("text", kind="offline", repo=REPO, file="x")
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, OSError)
    assert (str(again), again.kind, again.repo, again.file) == ("text", "offline", REPO, "x")


@pytest.mark.parametrize("revision", ["", "../../etc", "/main"])
def test_an_impossible_revision_is_refused(hub: HubServer, cache: Path, revision: str) -> None:
    with pytest.raises(ValueError, match="revision"):
        _get(hub, cache, revision=revision)
    assert hub.log == []


# ---------------------------------------------------------------- push


def _folder(path: Path, value: float = 1.0, readme: str | None = CARD) -> Path:
    return write_folder(path, config={"family": "codec"}, tensors={"w": torch.full((4, 4), value)}, readme=readme, overwrite=True)


def _push(hub: HubServer, folder: Path, **options: object) -> str:
    return push(folder, REPO, **{"endpoint": hub.url, "token": WRITER, **options})


def test_push_then_fetch_is_a_round_trip(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    hub.page_size = 1
    folder = _folder(tmp_path / "model")
    commit = _push(hub, folder, tag="v1")
    for revision in ("main", "v1", commit):
        fetched = read_folder(_get_folder(hub, cache, revision=revision), verify=True)
        assert fetched.tensors_path.parent.name == commit
        assert torch.equal(read_tensors(fetched.tensors_path, sha256=fetched.sha256)["w"], torch.ones(4, 4))
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.repos[REPO].commits[commit])
    assert hub.repos[REPO].private is False


def test_push_twice_makes_one_commit(hub: HubServer, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model")
    first = _push(hub, folder, tag="v1")
    commits = len(hub.repos[REPO].commits)
    assert _push(hub, folder, tag="v1") == first
    assert len(hub.repos[REPO].commits) == commits
    second = _push(hub, _folder(folder, value=2.0))
    assert len(hub.repos[REPO].commits) == commits + 1
    with pytest.raises(HubError, match=f"already names commit {first}") as caught:
        _push(hub, folder, tag="v1")
    assert caught.value.kind == "refused"
    assert hub.repos[REPO].tags == {"v1": first}
    assert hub.repos[REPO].branches["main"] == second


def test_push_to_a_branch_or_a_pull_request_leaves_main_alone(hub: HubServer, tmp_path: Path) -> None:
    main = _push(hub, _folder(tmp_path / "model"))
    branch = _push(hub, _folder(tmp_path / "model", value=2.0), revision="next")
    pull = _push(hub, _folder(tmp_path / "model", value=3.0), create_pr=True)
    assert hub.repos[REPO].branches == {"main": main, "next": branch, "refs/pr/1": pull}
    with pytest.raises(ValueError, match="create_pr"):
        _push(hub, tmp_path / "model", create_pr=True, tag="v1")


def test_push_private(hub: HubServer, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model")
    _push(hub, folder, private=True)
    assert hub.repos[REPO].private is True
    hub.repos[REPO].private = False
    with pytest.raises(HubError, match="exists and is public"):
        _push(hub, _folder(folder, value=2.0), private=True)
    assert hub.count("POST", "/commit/") == 1


@pytest.mark.parametrize("token", [READER, "hf_wrong"])
def test_push_without_the_right_to_write(hub: HubServer, tmp_path: Path, token: str) -> None:
    _fill(hub)
    before = dict(hub.repos[REPO].branches)
    with pytest.raises(HubError) as caught:
        _push(hub, _folder(tmp_path / "model"), token=token)
    assert caught.value.kind == "denied"
    assert hub.repos[REPO].branches == before


@pytest.mark.parametrize(
    ("readme", "says"),
    [
        (None, "published with its card"),
        ("# no front matter\n", "front matter"),
        ("---\n: [\n---\n", "not YAML"),
        ("---\nlanguage: en\n---\n", "no 'license'"),
        ("---\nlicense:\n---\n", "no 'license'"),
        ("---\n- a\n---\n", "no 'license'"),
    ],
)
def test_push_checks_the_card_first(hub: HubServer, tmp_path: Path, readme: str | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        _push(hub, _folder(tmp_path / "model", readme=readme))
    assert hub.log == []


def test_check_card_accepts_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(CARD.replace("\n", "\r\n").encode())
    check_card(tmp_path / "README.md")


def test_push_refuses_a_folder_whose_weights_differ_from_their_record(hub: HubServer, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + b"\x01")
    with pytest.raises(ValueError, match="damaged"):
        _push(hub, folder)
    assert hub.log == []


def test_push_does_not_send_hidden_files(hub: HubServer, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "model")
    (folder / ".secret").write_text("token")
    (folder / "samples").mkdir()
    (folder / "samples" / "a[1].txt").write_text("x")
    commit = _push(hub, folder)
    files = hub.repos[REPO].commits[commit]
    assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors", "samples/a[1].txt"}


@pytest.mark.parametrize(
    ("method", "path", "action"),
    [
        ("POST", "/commit/", "status"),
        ("POST", "/commit/", "drop"),
        ("POST", "/commit/", "drop_after"),
        ("POST", "/preupload/", "status"),
        ("PUT", "/lfs/", "drop"),
        ("GET", "/tree/", "status"),
    ],
)
def test_one_fault_during_a_push_is_invisible(hub: HubServer, tmp_path: Path, method: str, path: str, action: str) -> None:
    _push(hub, _folder(tmp_path / "model"))
    commits = len(hub.repos[REPO].commits)
    hub.fail(method, path, action)
    commit = _push(hub, _folder(tmp_path / "model", value=2.0))
    assert hub.repos[REPO].branches["main"] == commit
    assert len(hub.repos[REPO].commits) == commits + 1


def test_a_lasting_fault_of_the_upload_is_one_error(hub: HubServer, tmp_path: Path) -> None:
    old = _push(hub, _folder(tmp_path / "model"))
    hub.fail("PUT", "/lfs/", status=403, times=99)
    with pytest.raises(HubError) as caught:
        _push(hub, _folder(tmp_path / "model", value=2.0))
    assert caught.value.kind == "denied"
    assert hub.repos[REPO].branches["main"] == old


def test_push_notices_that_something_else_arrived(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _folder(tmp_path / "model")
    altered = hub.store("config.json", (folder / "config.json").read_bytes().replace(b"codec", b"cadec"))
    commit = hub_server.Repo.commit

    def commit_other(self: object, branch: str, files: dict[str, object]) -> str:
        return commit(self, branch, {**files, **({"config.json": altered} if len(files) > 1 else {})})

    monkeypatch.setattr(hub_server.Repo, "commit", commit_other)
    with pytest.raises(HubError, match=r"does not hold the folder's content: config\.json") as caught:
        _push(hub, folder)
    assert caught.value.kind == "damaged"


def test_a_push_killed_before_its_commit_leaves_the_old_revision(hub: HubServer, cache: Path, tmp_path: Path) -> None:
    old = _push(hub, _folder(tmp_path / "model"))
    folder = _folder(tmp_path / "model", value=2.0)
    hub.log.clear()
    hub.fail("POST", "/commit/", "hang")
    code = f"from zoo.hub import push; push({str(folder)!r}, {REPO!r}, endpoint={hub.url!r}, token={WRITER!r})"
    process = _run(code, tmp_path, HF_HUB_DISABLE_XET="1")
    assert hub.wait_for("POST", "/commit/")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert hub.count("PUT", "/lfs/") == 1
    assert hub.repos[REPO].branches["main"] == old
    assert torch.equal(read_tensors(_get_folder(hub, cache) / "model.safetensors")["w"], torch.ones(4, 4))
    new = _push(hub, folder)
    assert new != old
    assert hub.count("PUT", "/lfs/") == 1
    assert torch.equal(read_tensors(_get_folder(hub, cache) / "model.safetensors")["w"], torch.full((4, 4), 2.0))


def test_push_with_xet_enabled_and_a_server_that_takes_everything_inline(tmp_path: Path) -> None:
    with HubServer(only_regular=True) as hub:
        folder = _folder(tmp_path / "model")
        code = f"""
            from huggingface_hub import constants
            from zoo.hub import push
            assert not constants.HF_HUB_DISABLE_XET
            print(push({str(folder)!r}, {REPO!r}, endpoint={hub.url!r}, token={WRITER!r}))
        """
        out, err = _run(code, tmp_path).communicate(timeout=120)
        assert out.split() == [hub.repos[REPO].branches["main"]], err
        assert hub.count("PUT") == 0
        files = hub.repos[REPO].commits[out.strip()]
        assert files["model.safetensors"].content == (folder / "model.safetensors").read_bytes()
