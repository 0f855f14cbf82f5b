"""A small read-only Hub on loopback, from folders on disk: what clients need to find, pin and download repositories.

Commits are counted, not stored: revision N of a repository is a folder given to `Hub.add`, the last one is `main`.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?$")
_TREE = re.compile(r"^/api/(models|datasets)/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?$")
_RESOLVE = re.compile(r"^/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@dataclass
class Repository:
    """One repository: commit -> folder, oldest first."""

    kind: str
    name: str
    gated: bool = False
    commits: dict[str, Path] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The newest commit."""
        return list(self.commits)[-1]


@dataclass
class Hub:
    """What the server serves, and what it was asked for."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def add(self, kind: str, name: str, folder: Path, gated: bool = False) -> str:
        """Publish a folder as the next commit of a repository (`models` or `datasets`) and return the commit."""
        repository = self.repositories.setdefault((kind, name), Repository(kind, name, gated))
        commit = hashlib.sha1(f"{kind}/{name}/{len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = folder
        return commit


class NotThere(Exception):
    """An answer with an X-Error-Code."""

    def __init__(self, status: int, code: str, commit: str | None = None) -> None:
        super().__init__(code)
        self.status, self.code, self.commit = status, code, commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send(403, json.dumps({"error": "this Hub is read-only"}).encode(), {})

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if match := _INFO.match(path):
                self._info(*match.groups())
            elif match := _TREE.match(path):
                self._tree(*match.groups())
            elif match := _RESOLVE.match(path):
                self._file(*match.groups())
            else:
                raise NotThere(404, "EntryNotFound")
        except NotThere as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.code}
            headers |= {"X-Repo-Commit": error.commit} if error.commit else {}
            self._send(error.status, json.dumps({"error": error.code}).encode(), headers)

    def _find(self, kind: str, name: str, revision: str | None) -> tuple[Repository, str, Path]:
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            raise NotThere(404, "RepoNotFound")
        commit = repository.head if revision in (None, "main") else revision
        if commit not in repository.commits:
            raise NotThere(404, "RevisionNotFound")
        return repository, commit, repository.commits[commit]

    def _info(self, kind: str, name: str, revision: str | None) -> None:
        repository, commit, folder = self._find(kind, name, revision)
        siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in _files(folder)]
        record = {
            "_id": commit[:24], "id": name, "sha": commit, "author": name.split("/")[0], "private": False,
            "gated": "auto" if repository.gated else False, "disabled": False, "tags": [], "downloads": 0, "likes": 0,
            "siblings": siblings, "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip
        self._json(record)

    def _tree(self, kind: str, name: str, revision: str, below: str | None) -> None:
        _, commit, folder = self._find(kind, name, revision)
        root = folder / below if below else folder
        if not root.is_dir():
            raise NotThere(404, "EntryNotFound", commit)
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        entries = []
        for path in sorted(root.rglob("*") if recursive else root.iterdir()):
            kind = "directory" if path.is_dir() else "file"
            oid, size = ("0" * 40, 0) if path.is_dir() else (_git_oid(path), path.stat().st_size)
            entries.append({"type": kind, "oid": oid, "size": size, "path": path.relative_to(folder).as_posix()})
        self._json(entries)

    def _file(self, prefix: str | None, name: str, revision: str, path: str) -> None:
        repository, commit, folder = self._find("datasets" if prefix else "models", name, revision)
        if repository.gated:  # a gated repository shows that it exists, and nothing of its files
            raise NotThere(403, "GatedRepo", commit)
        file = folder / path
        if not file.is_file():
            raise NotThere(404, "EntryNotFound", commit)
        content = file.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_oid(file)}"', "Accept-Ranges": "bytes"}
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, headers, "application/octet-stream")

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {})

    def _send(self, status: int, content: bytes, headers: dict[str, str], kind: str = "application/json") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _git_oid(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub on a free port of loopback while the context lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
