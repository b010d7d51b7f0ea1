"""A Hugging Face Hub on 127.0.0.1 for tests: real HTTP, repositories in memory, every request on record.

It speaks what `huggingface_hub`, `transformers`, `datasets` and `timm` need to push and pull models and datasets:
create, preupload, LFS batch, commit, branch, tag, revision info, tree, paths-info, refs, resolve. Reading public
repositories is free; private ones, the files of gated ones, and every write need `LocalHub.token`. Clients find it
through `HF_ENDPOINT`, and must have `HF_HUB_DISABLE_XET=1`; both are read when huggingface_hub is imported.

What goes wrong with a real Hub can be made to go wrong with this one, see `LocalHub.fault`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


USER = "tester"
LFS_SUFFIXES = (".arrow", ".bin", ".npy", ".npz", ".parquet", ".pt", ".safetensors")


@dataclass(frozen=True)
class Request:
    """One request as it was answered.

    Attributes:
        method, path: as sent, the path without its query.
        status: of the answer.
        token: the bearer token that came along, or None.
        range: the `Range` header, or None.
        sent: bytes of the answer's body that went out.
    """

    method: str
    path: str
    status: int
    token: str | None = None
    range: str | None = None
    sent: int = 0


@dataclass
class Fault:
    """Something that goes wrong with answers.

    Attributes:
        path: regular expression that the whole path of a request must match.
        methods: of the requests.
        status: answer with this in place of the true answer.
        delay: seconds to wait before the answer.
        truncate: break the connection after so many bytes of the body, of which the header promises all.
        corrupt: change one byte in the middle of the body.
        reset: break the connection before any answer.
        times: how many requests it happens to; None: to all.
        happened: to how many it has.
    """

    path: str
    methods: tuple[str, ...] = ("GET",)
    status: int | None = None
    delay: float = 0.0
    truncate: int | None = None
    corrupt: bool = False
    reset: bool = False
    times: int | None = None
    happened: int = 0

    def strikes(self, method: str, path: str) -> bool:
        is_over = self.times is not None and self.happened >= self.times
        if is_over or method not in self.methods or not re.fullmatch(self.path, path):
            return False
        self.happened += 1
        return True


class LocalHub:
    """The Hub: `start()` it, point `HF_ENDPOINT` at its `url`, look at its `requests`, and `stop()` it.

    Attributes:
        requests: every request so far, in order; a plain list, which a test may clear.
        token: the one token that this Hub knows; it may read and write everything.
    """

    def __init__(self, token: str = "hf_local"):
        self.token = token
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._repositories: dict[tuple[str, str], _Repository] = {}
        self._uploads: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> LocalHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def fault(self, path: str, **what: Any) -> Iterator[Fault]:
        """While this lasts, requests for such paths go wrong; see `Fault`."""
        fault = Fault(path, **what)
        self._faults.append(fault)
        try:
            yield fault
        finally:
            self._faults.remove(fault)

    def squash(self, repo_id: str, kind: str = "model") -> str:
        """Rewrite the history of a repository, as its owner can, to one commit; returns its sha."""
        repository = self._repositories[kind, repo_id]
        files = self.files(repo_id, kind=kind)
        for names in (repository.commits, repository.branches, repository.tags):
            names.clear()
        return repository.commit(files)

    def add_model(self, repo_id: str, folder: str | Path, private: bool = False, gated: bool = False) -> str:
        """Commit a folder, as it is, to a model repository, which is created where there is none; returns the sha."""
        return self._add("model", repo_id, Path(folder), private, gated)

    def add_dataset(self, repo_id: str, folder: str | Path, private: bool = False, gated: bool = False) -> str:
        """The same for a dataset repository."""
        return self._add("dataset", repo_id, Path(folder), private, gated)

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """What a repository holds at a branch, tag or commit: content by path."""
        repository = self._repositories[kind, repo_id]
        return dict(repository.commits[repository.resolve(revision)])

    def commits(self, repo_id: str, kind: str = "model") -> list[str]:
        """The shas of a repository, oldest first."""
        return list(self._repositories[kind, repo_id].commits)

    def _add(self, kind: str, repo_id: str, folder: Path, private: bool, gated: bool) -> str:
        files = {str(path.relative_to(folder).as_posix()): path.read_bytes() for path in _files_below(folder)}
        with self._lock:
            repository = self._repositories.setdefault((kind, repo_id), _Repository())
            repository.private, repository.gated = private, gated
            return repository.commit(files, deleted=set(repository.commits[repository.resolve("main")]) - set(files))


class _Repository:
    def __init__(self) -> None:
        self.private = self.gated = False
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})

    def commit(self, added: dict[str, bytes], deleted: Iterable[str] = (), branch: str = "main") -> str:
        """Add and delete files on a branch; a deleted folder goes with all that it holds."""
        parent = self.branches.get(branch, "")
        files = {path: data for path, data in self.commits.get(parent, {}).items() if not _is_below(path, deleted)}
        files |= added
        digest = hashlib.sha1(f"{branch}\0{parent}".encode())
        for path, data in sorted(files.items()):
            digest.update(f"\0{path}\0{_git_oid(data)}".encode())
        sha = digest.hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag, a reference to one of these, or a commit."""
        name = re.sub(r"^refs/(heads|tags)/", "", revision)
        sha = self.branches.get(name) or self.tags.get(name) or revision
        return sha if sha in self.commits else None


@dataclass(frozen=True)
class _Answer:
    body: bytes = b""
    status: int = HTTPStatus.OK
    headers: dict[str, Any] = field(default_factory=dict)


class _Refusal(Exception):
    """An error as the Hub words it: status, and the code that huggingface_hub makes an exception of."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer = _Answer(_json({"error": message}), status, {**named, **headers})


_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., _Answer]]] = []
_KIND = r"(?P<kind>model|dataset|space)s"
_REPO = r"(?P<repo_id>[^/]+(?:/[^/]+)?)"


def _route(methods: str, pattern: str):
    """The function that follows answers such requests; named groups of the path are its arguments."""

    def register(function: Callable[..., _Answer]) -> Callable[..., _Answer]:
        _ROUTES.extend((method, re.compile(pattern), function) for method in methods.split())
        return function

    return register


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that went away is none of the Hub's errors
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.body = self._read_body()
        with self.hub._lock:
            try:
                answer = self._dispatch(url.path)
            except _Refusal as refusal:
                answer = refusal.answer
            fault = next((one for one in self.hub._faults if one.strikes(self.command, url.path)), Fault(""))
            if fault.status is not None:
                answer = _Refusal(fault.status, "this goes wrong on purpose").answer
            if fault.corrupt:
                answer = replace(answer, body=_with_one_byte_changed(answer.body))
            body = b"" if self.command == "HEAD" or fault.reset else answer.body[: fault.truncate]
            status = 0 if fault.reset else int(answer.status)
            self.hub.requests.append(
                Request(self.command, url.path, status, self.token, self.headers.get("Range"), len(body))
            )
        time.sleep(fault.delay)
        if not fault.reset:
            self._send(answer, body)
        if fault.reset or len(body) < len(answer.body) and self.command != "HEAD":
            self._hang_up()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal: requests are on record."""

    @property
    def hub(self) -> LocalHub:
        return self.server.hub

    @property
    def may_do_everything(self) -> bool:
        return self.token == self.hub.token

    def _dispatch(self, path: str) -> _Answer:
        for method, pattern, function in _ROUTES:
            if method == self.command and (match := pattern.fullmatch(path)):
                return function(self, **{name: value and unquote(value) for name, value in match.groupdict().items()})
        raise _Refusal(HTTPStatus.NOT_FOUND, f"this Hub has no {self.command} {path}")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, answer: _Answer, body: bytes) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Length": len(answer.body), **answer.headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        """Close the connection so that the client sees a reset, not an end."""
        self.close_connection = True
        self.wfile.flush()
        time.sleep(0.05)  # a reset overtakes what was sent
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    # What routes ask for

    def require_token(self) -> None:
        if not self.may_do_everything:
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "Invalid username or password.")

    def repository(self, kind: str, repo_id: str) -> _Repository:
        found = self.hub._repositories.get((kind, repo_id))
        if found is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, "Repository not found", "RepoNotFound")
        if found.private and not self.may_do_everything:
            raise _Refusal(HTTPStatus.UNAUTHORIZED, "Invalid username or password.", "RepoNotFound")
        return found

    def commit_of(self, repository: _Repository, revision: str) -> str:
        sha = repository.resolve(revision)
        if sha is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def files_of(self, kind: str, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self.repository(kind, repo_id)
        sha = self.commit_of(repository, revision)
        return sha, repository.commits[sha]


# The account and its repositories


@_route("GET", r"/api/whoami-v2")
def _whoami(request: _Handler) -> _Answer:
    request.require_token()
    return _ok({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}})


@_route("POST", r"/api/validate-yaml")
def _validate_card(request: _Handler) -> _Answer:
    return _ok({"errors": [], "warnings": []})


@_route("POST", r"/api/repos/create")
def _create(request: _Handler) -> _Answer:
    request.require_token()
    wanted = json.loads(request.body)
    kind, repo_id = wanted.get("type") or "model", f"{wanted.get('organization') or USER}/{wanted['name']}"
    url = f"{request.hub.url}/{'' if kind == 'model' else f'{kind}s/'}{repo_id}"
    if (kind, repo_id) in request.hub._repositories:
        return _ok({"error": f"You already created this {kind} repo", "url": url}, HTTPStatus.CONFLICT)
    repository = request.hub._repositories[kind, repo_id] = _Repository()
    repository.private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    return _ok({"url": url, "name": repo_id})


@_route("POST", rf"/api/{_KIND}/{_REPO}/(?P<what>branch|tag)/(?P<name>[^/]+)")
def _name_a_commit(request: _Handler, kind: str, repo_id: str, what: str, name: str) -> _Answer:
    request.require_token()
    repository, body = request.repository(kind, repo_id), json.loads(request.body)
    if what == "branch":
        names, new, start = repository.branches, name, body.get("startingPoint", "main")
    else:
        names, new, start = repository.tags, body["tag"], name
    if new in names:
        raise _Refusal(HTTPStatus.CONFLICT, f"{what} {new} exists already")
    names[new] = request.commit_of(repository, start)
    return _ok({})


# Uploads


@_route("POST", rf"/api/{_KIND}/{_REPO}/preupload/(?P<revision>[^/]+)")
def _preupload(request: _Handler, kind: str, repo_id: str, revision: str) -> _Answer:
    request.require_token()
    request.commit_of(request.repository(kind, repo_id), revision)
    paths = [file["path"] for file in json.loads(request.body)["files"]]
    modes = {path: "lfs" if _is_lfs(path) else "regular" for path in paths}
    return _ok({"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]})


@_route("POST", rf"/(?:(?P<kind>dataset|space)s/)?{_REPO}\.git/info/lfs/objects/batch")
def _lfs_batch(request: _Handler, kind: str | None, repo_id: str) -> _Answer:
    request.require_token()
    request.repository(kind or "model", repo_id)
    objects = [{"oid": item["oid"], "size": item["size"]} for item in json.loads(request.body)["objects"]]
    for item in objects:
        if item["oid"] not in request.hub._uploads:
            upload = {"href": f"{request.hub.url}/lfs/{item['oid']}", "header": {}}
            item["actions"] = {"upload": upload, "verify": {"href": f"{request.hub.url}/lfs/verify", "header": {}}}
    return _ok({"transfer": "basic", "objects": objects})


@_route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})")
def _lfs_upload(request: _Handler, oid: str) -> _Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise _Refusal(HTTPStatus.BAD_REQUEST, "the content does not have this sha256")
    request.hub._uploads[oid] = request.body
    return _ok({})


@_route("POST", r"/lfs/verify")
def _lfs_verify(request: _Handler) -> _Answer:
    wanted = json.loads(request.body)
    if len(request.hub._uploads.get(wanted["oid"], b"")) != wanted["size"]:
        raise _Refusal(HTTPStatus.NOT_FOUND, "this object was not uploaded")
    return _ok({})


@_route("POST", rf"/api/{_KIND}/{_REPO}/commit/(?P<revision>[^/]+)")
def _commit(request: _Handler, kind: str, repo_id: str, revision: str) -> _Answer:
    request.require_token()
    repository = request.repository(kind, repo_id)
    request.commit_of(repository, revision)
    added, deleted = {}, []
    for operation in map(json.loads, request.body.splitlines()):
        value = operation["value"]
        if operation["key"] == "file":
            added[value["path"]] = base64.b64decode(value["content"])
        elif operation["key"] == "lfsFile":
            added[value["path"]] = request.hub._uploads[value["oid"]]
        elif operation["key"] in ("deletedFile", "deletedFolder"):
            deleted.append(value["path"])
    answer = {"success": True}
    if "create_pr" in request.query:
        number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
        answer["pullRequestUrl"] = f"{request.hub.url}/{repo_id}/discussions/{number}"
        repository.branches[branch := f"refs/pr/{number}"] = request.commit_of(repository, revision)
    else:
        branch = revision
    sha = repository.commit(added, deleted, branch)
    return _ok({**answer, "commitOid": sha, "commitUrl": f"{request.hub.url}/{repo_id}/commit/{sha}"})


# Downloads


@_route("GET", rf"/api/{_KIND}/{_REPO}(?:/revision/(?P<revision>[^/]+))?")
def _info(request: _Handler, kind: str, repo_id: str, revision: str | None) -> _Answer:
    repository = request.repository(kind, repo_id)
    sha = request.commit_of(repository, revision or "main")
    return _ok(
        {
            "_id": sha[:24],
            "id": repo_id,
            "sha": sha,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "tags": [],
            "siblings": [{"rfilename": path} for path in repository.commits[sha]],
            "lastModified": "2026-01-01T00:00:00.000Z",
        }
    )


@_route("GET", rf"/api/{_KIND}/{_REPO}/refs")
def _refs(request: _Handler, kind: str, repo_id: str) -> _Answer:
    repository = request.repository(kind, repo_id)

    def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": sha} for name, sha in names.items()]

    branches, tags = listed(repository.branches, "refs/heads/"), listed(repository.tags, "refs/tags/")
    return _ok({"branches": branches, "tags": tags, "converts": []})


@_route("GET", rf"/api/{_KIND}/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def _tree(request: _Handler, kind: str, repo_id: str, revision: str, folder: str | None) -> _Answer:
    _, files = request.files_of(kind, repo_id, revision)
    prefix = f"{folder}/" if folder else ""
    below = {path: data for path, data in files.items() if path.startswith(prefix)}
    if folder and not below:
        raise _Refusal(HTTPStatus.NOT_FOUND, f"{folder} does not exist", "EntryNotFound")
    entries = [_folder_entry(path) for path in sorted(_folders_of(below)) if path.startswith(prefix)]
    entries += [_file_entry(path, data) for path, data in below.items()]
    if request.query.get("recursive", ["false"])[0].lower() != "true":
        entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
    return _ok(entries)


@_route("POST", rf"/api/{_KIND}/{_REPO}/paths-info/(?P<revision>[^/]+)")
def _paths_info(request: _Handler, kind: str, repo_id: str, revision: str) -> _Answer:
    _, files = request.files_of(kind, repo_id, revision)
    folders = _folders_of(files)
    wanted = [path.strip("/") for path in parse_qs(request.body.decode()).get("paths", [])]
    entries = [_file_entry(path, files[path]) for path in wanted if path in files]
    return _ok(entries + [_folder_entry(path) for path in wanted if path in folders])


@_route("HEAD GET", rf"/(?:(?P<kind>dataset|space)s/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def _resolve(request: _Handler, kind: str | None, repo_id: str, revision: str, path: str) -> _Answer:
    sha, files = request.files_of(kind or "model", repo_id, revision)
    if request.repository(kind or "model", repo_id).gated and not request.may_do_everything:
        raise _Refusal(HTTPStatus.FORBIDDEN, f"Access to {repo_id} is restricted", "GatedRepo")
    if path not in files:
        raise _Refusal(HTTPStatus.NOT_FOUND, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": sha})
    data = files[path]
    etag = f'"{_sha256(data) if _is_lfs(path) else _git_oid(data)}"'
    headers = {"ETag": etag, "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    if _is_lfs(path):
        headers |= {"X-Linked-ETag": etag, "X-Linked-Size": len(data)}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if request.command == "HEAD" or wanted is None:
        return _Answer(data, headers=headers)
    first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
    headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
    return _Answer(data[first : last + 1], HTTPStatus.PARTIAL_CONTENT, headers)


# Small things


def _with_one_byte_changed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :] if data else data


def _ok(value: Any, status: int = HTTPStatus.OK) -> _Answer:
    return _Answer(_json(value), status, {"Content-Type": "application/json"})


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _folders_of(paths: Iterable[str]) -> set[str]:
    return {"/".join(parts[:depth]) for path in paths for parts in [path.split("/")] for depth in range(1, len(parts))}


def _is_below(path: str, tops: Iterable[str]) -> bool:
    return any(path == top.rstrip("/") or path.startswith(f"{top.rstrip('/')}/") for top in tops)


def _is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def _file_entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "oid": _git_oid(data), "size": len(data)}
    return {**entry, "lfs": {"oid": _sha256(data), "size": len(data), "pointerSize": 130}} if _is_lfs(path) else entry


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
