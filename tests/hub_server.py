"""A stand-in for the Hub on 127.0.0.1: speaks its protocol over real HTTP/1.1, with accounts, faults and a request log.

Two ports, as on the real Hub: one for API and small files, one ("cdn") for large files, so that redirects between hosts are
really followed. Everything is in memory. What the protocol is was seen in the traffic of huggingface_hub 2.4.

    with HubServer() as hub:
        hub.add_commit("acme/codec", {"config.json": b"{}", "model.safetensors": b"..."})
        hub.fail("GET", r"/resolve/", status=500, times=1)
        fetch("acme/codec", "config.json", endpoint=hub.url)
        assert hub.count("HEAD") == 1
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER, OUTSIDER = "hf_writer", "hf_reader", "hf_outsider"
LARGE = re.compile(r"\.(safetensors|bin|pt|pth|ckpt)$")
Action = Literal["status", "drop", "cut", "truncate", "alter", "hang", "drop_after"]


@dataclass(frozen=True, kw_only=True)
class Blob:
    """One stored file: regular (git) or large (LFS)."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_sha1(self) -> str:
        """Identity in git: of the content, or of the pointer text for a large file."""
        body = self.content
        if self.large:
            body = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(body)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_sha1


@dataclass(kw_only=True)
class Repo:
    """A model repository: commits, branches, tags and who may see it."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        for table in (self.branches, self.tags):
            if revision in table:
                return table[revision]
        return revision if revision in self.commits else None

    def commit(self, branch: str, files: dict[str, Blob]) -> str:
        text = json.dumps([self.branches.get(branch), len(self.commits), {name: files[name].etag for name in sorted(files)}])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid


@dataclass(kw_only=True)
class Fault:
    """What to do instead of answering, to which requests, how often.

    status: answer that status. drop: close the connection without a word. cut: send so many bytes of the content, then
    close. truncate: send a shorter content as if it were whole. alter: flip a bit in the middle of the content.
    hang: wait, then close. drop_after: do what was asked, then close without an answer.
    """

    method: str
    path: re.Pattern[str]
    action: Action
    times: int
    status: int = 500
    at: int = 0
    seconds: float = 30.0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request as it arrived."""

    port: Literal["hub", "cdn"]
    method: str
    path: str
    token: str | None
    range: str | None


class HubServer:
    """The two ports, the repositories behind them, the fault table and the log. Use it as a context manager."""

    def __init__(self, *, only_regular: bool = False, page_size: int = 1000) -> None:
        self.only_regular = only_regular
        self.page_size = page_size
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[Seen] = []
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        self.connections: set[socket.socket] = set()
        self._servers = [self._serve("hub"), self._serve("cdn")]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def _serve(self, port: Literal["hub", "cdn"]) -> ThreadingHTTPServer:
        handler = type("BoundHandler", (_Handler,), {"hub": self, "port": port})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close both ports and every open connection, as a machine that goes down does."""
        self.stopping.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        with self.lock:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------ for tests

    def add_commit(self, repo: str, files: Mapping[str, bytes], *, branch: str = "main", **flags: bool) -> str:
        """Commit files over what the branch has; creates the repository. Flags: private, gated. Returns the commit."""
        with self.lock:
            target = self.repos.setdefault(repo, Repo(**flags))
            old = target.commits.get(target.branches.get(branch, ""), {})
            new = {name: self.store(name, content) for name, content in files.items()}
            return target.commit(branch, {**old, **new})

    def store(self, name: str, content: bytes) -> Blob:
        blob = Blob(content=content, large=LARGE.search(name) is not None and not self.only_regular)
        if blob.large:
            self.lfs[blob.sha256] = content
        return blob

    def fail(self, method: str, path: str, action: Action = "status", *, times: int = 1, **details: Any) -> None:
        """Add a fault: the next `times` requests whose method and path (regular expression, port in front) fit."""
        self.faults.append(Fault(method=method, path=re.compile(path), action=action, times=times, **details))

    def count(self, method: str, path: str = "") -> int:
        """Number of requests so far whose method is `method` (or any, when empty) and whose path fits."""
        with self.lock:
            return sum(method in ("", seen.method) and re.search(path, seen.path) is not None for seen in self.log)

    def wait_for(self, method: str, path: str, *, seconds: float = 60.0) -> bool:
        """Wait until such a request has arrived."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.count(method, path):
                return True
            time.sleep(0.01)
        return False

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("", method) and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None


class _Refused(Exception):
    """An answer that is an error: status, X-Error-Code, text."""

    def __init__(self, status: int, code: str | None, text: str) -> None:
        super().__init__(text)
        self.status, self.code, self.text = status, code, text


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    port: Literal["hub", "cdn"]

    def log_message(self, format: str, *args: object) -> None:
        """Silence: the log is `hub.log`."""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.hub.lock:
            self.hub.connections.add(self.connection)

    def finish(self) -> None:
        with self.hub.lock:
            self.hub.connections.discard(self.connection)
        super().finish()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    # ------------------------------------------------ one request

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = self._read_chunks()
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        seen = Seen(port=self.port, method=self.command, path=self.path, token=self.token, range=self.headers.get("Range"))
        with self.hub.lock:
            self.hub.log.append(seen)
        self.fault = self.hub.take_fault(self.command, f"{self.port}:{self.path}")
        if self.fault is not None and self.fault.action in ("drop", "hang"):
            if self.fault.action == "hang":
                self.hub.stopping.wait(self.fault.seconds)
            return self._drop()
        if self.fault is not None and self.fault.action == "status":
            return self._error(_Refused(self.fault.status, None, "made to fail"), self.fault.headers)
        url = urlsplit(self.path)
        try:
            self._route(unquote(url.path) if "/resolve/" not in url.path else url.path, parse_qs(url.query), body)
        except _Refused as refused:
            self._error(refused)

    def _read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _drop(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, *, length: int | None = None) -> None:
        if self.fault is not None and self.fault.action == "drop_after":
            return self._drop()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":  # a body after a HEAD would be read as the next answer
            self.wfile.write(body)

    def _json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _error(self, refused: _Refused, extra: Mapping[str, str] | None = None) -> None:
        headers = {"X-Error-Message": refused.text, **(extra or {})}
        if refused.code:
            headers["X-Error-Code"] = refused.code
        self._json({"error": refused.text}, refused.status, headers)

    # ------------------------------------------------ who may do what

    def _repo(self, name: str, *, content: bool = False, write: bool = False) -> Repo:
        """Find a repository the caller may see, read (content of gated ones needs access) or write."""
        if self.token not in (None, WRITER, READER, OUTSIDER):
            raise _Refused(401, None, "Invalid credentials in Authorization header")
        member = self.token in (WRITER, READER)
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not member):
            raise _Refused(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        if content and repo.gated and not member:
            raise _Refused(401 if self.token is None else 403, "GatedRepo", "Access to this model is restricted")
        if write:
            self._need_writer()
        return repo

    def _need_writer(self) -> None:
        if self.token is None:
            raise _Refused(401, None, "Invalid username or password.")
        if self.token != WRITER:
            raise _Refused(403, None, "You don't have the rights to do this")

    @staticmethod
    def _commit(repo: Repo, revision: str) -> str:
        commit = repo.commit_of(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ------------------------------------------------ routes

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if self.port == "cdn":
            return self._cdn(path.removeprefix("/lfs/"), body)
        routes: tuple[tuple[str, str, Callable[..., None]], ...] = (
            ("GET", r"/api/whoami-v2", self._whoami),
            ("POST", r"/api/validate-yaml", lambda: self._json({"errors": [], "warnings": []})),
            ("POST", r"/api/repos/create", lambda: self._create(json.loads(body))),
            ("GET", r"/api/models/([^/]+/[^/]+)", lambda name: self._info(name, "main")),
            ("GET", r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._info),
            ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", lambda name, revision: self._tree(name, revision, query)),
            ("GET", r"/api/models/([^/]+/[^/]+)/refs", self._refs),
            ("POST", r"/api/models/([^/]+/[^/]+)/tag/(.+)", lambda name, revision: self._tag(name, revision, json.loads(body))),
            ("POST", r"/api/models/([^/]+/[^/]+)/branch/(.+)", lambda name, branch: self._branch(name, branch, json.loads(body))),
            ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", lambda name, rev: self._preupload(name, rev, json.loads(body))),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", lambda name: self._batch(name, json.loads(body))),
            ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/verify", lambda name: self._verify(json.loads(body))),
            ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", lambda name, branch: self._take_commit(name, branch, query, body)),
            ("HEAD GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", lambda name, rev, file: self._resolve(name, unquote(rev), file)),
        )
        for methods, pattern, answer in routes:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                with self.hub.lock:
                    return answer(*match.groups())
        raise _Refused(404, None, f"no route {self.command} {path}")

    def _whoami(self) -> None:
        if self.token not in (WRITER, READER, OUTSIDER):
            raise _Refused(401, None, "Invalid username or password.")
        self._json({"type": "user", "name": self.token.removeprefix("hf_"), "orgs": [{"name": "acme"}], "auth": {}})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or 'writer'}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        self._need_writer()
        if name in self.hub.repos:
            return self._json({**url, "error": "You already created this model repo"}, 409)
        repo = self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": self.hub.store(".gitattributes", b"*.safetensors filter=lfs\n")})
        self._json(url)

    def _info(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        commit = self._commit(repo, revision)
        files = [{"rfilename": path} for path in sorted(repo.commits[commit])]
        gated = "auto" if repo.gated else False
        self._json({"id": name, "sha": commit, "private": repo.private, "gated": gated, "tags": [], "siblings": files})

    def _tree(self, name: str, revision: str, query: dict[str, list[str]]) -> None:
        repo = self._repo(name)
        files = sorted(repo.commits[self._commit(repo, revision)].items())
        start = int(query.get("cursor", ["0"])[0])
        page = []
        for path, blob in files[start : start + self.hub.page_size]:
            entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_sha1}
            if blob.large:
                entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}
            page.append(entry)
        end = start + self.hub.page_size
        more = f'<{self.hub.url}/api/models/{name}/tree/{revision}?recursive=true&cursor={end}>; rel="next"'
        self._json(page, headers={"Link": more} if end < len(files) else None)

    def _refs(self, name: str) -> None:
        repo = self._repo(name)
        tables = {"branches": ("heads", repo.branches), "tags": ("tags", repo.tags)}
        self._json(
            {
                key: [{"name": ref, "ref": f"refs/{kind}/{ref}", "targetCommit": oid} for ref, oid in table.items()]
                for key, (kind, table) in tables.items()
            }
            | {"converts": []}
        )

    def _tag(self, name: str, revision: str, asked: dict[str, Any]) -> None:
        repo = self._repo(name, write=True)
        if asked["tag"] in repo.tags:
            raise _Refused(409, None, "Reference already exists")
        repo.tags[asked["tag"]] = self._commit(repo, revision)
        self._json({})

    def _branch(self, name: str, branch: str, asked: dict[str, Any]) -> None:
        repo = self._repo(name, write=True)
        if branch in repo.branches:
            raise _Refused(409, None, "Reference already exists")
        repo.branches[branch] = self._commit(repo, asked.get("startingPoint", "main"))
        self._json({})

    # ------------------------------------------------ upload

    def _preupload(self, name: str, revision: str, asked: dict[str, Any]) -> None:
        repo = self._repo(name, write=True)
        there = repo.commits[self._commit(repo, revision)]
        answers = []
        for file in asked["files"]:
            path = file["path"]
            large = LARGE.search(path) is not None and not self.hub.only_regular
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if path in there:
                answer["oid"] = there[path].etag
            answers.append(answer)
        self._json({"files": answers})

    def _batch(self, name: str, asked: dict[str, Any]) -> None:
        self._repo(name, write=True)
        objects = []
        for item in asked["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.cdn_url}/lfs/{item['oid']}", "header": {}},
                "verify": {"href": f"{self.hub.url}/{name}.git/info/lfs/verify"},
            }
            objects.append({**item, **({} if item["oid"] in self.hub.lfs else {"actions": actions})})
        self._json({"transfer": "basic", "objects": objects})

    def _verify(self, asked: dict[str, Any]) -> None:
        if len(self.hub.lfs.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(404, None, "object is not here")
        self._json({})

    def _take_commit(self, name: str, branch: str, query: dict[str, list[str]], body: bytes) -> None:
        repo = self._repo(name, write=True)
        head = self._commit(repo, branch)
        files = dict(repo.commits[head])
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header" and value.get("parentCommit") not in (None, head):
                raise _Refused(412, None, "A commit has happened since")
            if key == "file":
                files[value["path"]] = Blob(content=base64.b64decode(value["content"]), large=False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise _Refused(400, None, f"LFS pointer to a missing object {value['oid']}")
                files[value["path"]] = Blob(content=self.hub.lfs[value["oid"]], large=True)
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                files = {path: blob for path, blob in files.items() if not path.startswith(value["path"].rstrip("/") + "/")}
        pull = f"refs/pr/{sum(ref.startswith('refs/pr/') for ref in repo.branches) + 1}"
        wants_pull = query.get("create_pr") == ["1"]
        oid = repo.commit(pull if wants_pull else branch, files)
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "hookOutput": ""}
        if wants_pull:
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{pull.rpartition('/')[2]}"
        self._json(answer)

    # ------------------------------------------------ content

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name, content=True)
        commit = self._commit(repo, revision)
        blob = repo.commits[commit].get(unquote(file))
        headers = {"X-Repo-Commit": commit}
        if blob is None:
            return self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        headers["ETag"] = f'"{blob.etag}"'
        if not blob.large:
            return self._content(blob.content, headers)
        headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        self._send(302, b"", {**headers, "Location": f"{self.hub.cdn_url}/lfs/{blob.sha256}"})

    def _cdn(self, sha256: str, body: bytes) -> None:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != sha256:
                raise _Refused(400, None, "content does not hash to its name")
            with self.hub.lock:
                self.hub.lfs[sha256] = body
            return self._send(200)
        if sha256 not in self.hub.lfs:
            raise _Refused(404, None, "no such object")
        self._content(self.hub.lfs[sha256], {"ETag": f'"{sha256}"'})

    def _content(self, content: bytes, headers: Mapping[str, str]) -> None:
        action = self.fault.action if self.fault is not None else None
        if action == "alter":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        elif action == "truncate":
            content = content[: self.fault.at]
        status, start, total = 200, 0, len(content)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if match and self.command == "GET":
            start = int(match[1])
            if start >= total:
                return self._send(416, b"", {"Content-Range": f"bytes */{total}"})
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{total - 1}/{total}"}
        headers = {**headers, "Accept-Ranges": "bytes"}
        if action == "cut":
            self._send(status, content[start : self.fault.at], headers, length=total - start)
            return self._drop()
        self._send(status, b"" if self.command == "HEAD" else content[start:], headers, length=total - start)
