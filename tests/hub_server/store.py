"""The data of the test Hub: users, repositories with their commits, and files by SHA-256.

The data lies in one folder, as `objects/` and `hub.json`; each file is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# What the Hub's own .gitattributes gives to large file storage; other files go there above 10 MB.
_LARGE = """
*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gif *.gz *.h5 *.jpeg *.jpg *.joblib *.mlmodel *.model *.msgpack *.npy *.npz
*.onnx *.ot *.parquet *.pb *.pdf *.pickle *.pkl *.png *.pt *.pth *.rar *.safetensors *.tar *.tflite *.tgz *.wasm
*.webp *.xz *.zip *.zst *tfevents*
"""  # noqa: E501
LARGE = _LARGE.split()
LARGE_SIZE = 10_000_000


def is_large(path: str, size: int) -> bool:
    """Return whether a file goes to large file storage; an empty file never does."""
    name = path.rpartition("/")[2]
    return size > 0 and (size > LARGE_SIZE or any(fnmatch(name, pattern) for pattern in LARGE))


def git_oid(content: bytes) -> str:
    """Return git's object name of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def now() -> str:
    """Return the current time in the Hub's format."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class File:
    """A file of a commit: its bytes are the object `sha256`."""

    sha256: str
    size: int
    oid: str  # git's: of the content, or of the pointer that stands for a large file
    large: bool

    @property
    def etag(self) -> str:
        """The entity tag, which changes with the file."""
        return self.sha256 if self.large else self.oid

    @property
    def lfs(self) -> dict[str, Any]:
        """The entry of a large file in a listing."""
        return {
            "oid": self.sha256,
            "size": self.size,
            "pointerSize": len(pointer(self.sha256, self.size)),
        }


def pointer(sha256: str, size: int) -> bytes:
    """Return the pointer that git stores for a large file."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


@dataclass(frozen=True)
class Commit:
    """A commit: a whole tree of files, its author and its parent."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, File]


@dataclass
class Pull:
    """A pull request, or a discussion without any commit."""

    number: int
    title: str
    author: str
    status: str  # draft, open, closed or merged
    date: str
    is_pull: bool = True
    base: str = ""  # the commit it was made from
    head: str = ""
    merge_commit: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ref(self) -> str:
        """The revision of its commits."""
        return f"refs/pr/{self.number}"


@dataclass(frozen=True)
class User:
    """An account; `access` names the gated repositories of others that it may read."""

    name: str
    token: str
    orgs: tuple[str, ...] = ()
    role: str = "write"
    access: tuple[str, ...] = ()

    def owns(self, repository: str) -> bool:
        """Return whether a repository belongs to the user or to an organization of the user."""
        return repository.partition("/")[0] in (self.name, *self.orgs)


@dataclass
class Repository:
    """One repository: its commits of all branches and pull requests, oldest first."""

    kind: str
    name: str
    objects: Objects = field(repr=False)
    private: bool = False
    gated: str | bool = False
    created: str = field(default_factory=now)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    discussions: list[Pull] = field(default_factory=list)
    # claimed SHA-256 of a large file -> that of its bytes
    uploads: dict[str, str] = field(default_factory=dict)
    published: str = ""  # digest of the folder whose content was made the last commit by hand

    @property
    def head(self) -> str:
        """The newest commit of `main`."""
        return self.branches["main"]

    @property
    def pulls(self) -> list[Pull]:
        """The pull requests, oldest first."""
        return [one for one in self.discussions if one.is_pull]

    def find(self, revision: str | None = None) -> str | None:
        """Return the commit of a branch, a tag, a pull request or a (shortened) commit ID."""
        revision = (revision or "main").removeprefix("refs/heads/")
        named = {pull.ref: pull.head for pull in self.pulls} | self.tags | self.branches
        if revision in named:
            return named[revision]
        found = [
            commit for commit in self.commits if len(revision) >= 7 and commit.startswith(revision)
        ]
        return found[0] if len(found) == 1 else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the content of every file of a revision."""
        commit = self.find(revision)
        assert commit is not None, f"{self.name} has no revision {revision}"
        return {
            path: self.objects.read(file.sha256)
            for path, file in self.commits[commit].files.items()
        }

    def keep(self, path: str, content: bytes, large: bool | None = None) -> File:
        """Store the content of a file."""
        sha256, size = self.objects.keep(content), len(content)
        if large is None:
            large = is_large(path, size)
        if large:
            self.uploads[sha256] = sha256
        return File(sha256, size, git_oid(pointer(sha256, size) if large else content), large)

    def commit(
        self,
        files: Mapping[str, File],
        parent: str | None,
        title: str,
        message: str = "",
        author: str = "system",
    ) -> Commit:
        """Create a commit that no branch points to yet; its ID depends on content and order."""
        tree = sorted((path, file.sha256) for path, file in files.items())
        content = json.dumps(
            [self.kind, self.name, len(self.commits), parent, title, message, author, tree]
        )
        name = hashlib.sha1(content.encode()).hexdigest()
        made = Commit(name, parent, title, message, author, now(), dict(sorted(files.items())))
        self.commits[name] = made
        return made

    def history(self, commit: str | None) -> Iterable[Commit]:
        """Yield a commit and its ancestors, newest first."""
        while commit is not None:
            yield self.commits[commit]
            commit = self.commits[commit].parent


class Objects:
    """The bytes of files by their SHA-256."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, sha256: str) -> Path:
        """Return the path of an object."""
        return self._folder / sha256[:2] / sha256

    def read(self, sha256: str) -> bytes:
        """Return an object."""
        return self.path(sha256).read_bytes()

    def keep(self, content: bytes) -> str:
        """Store bytes and return their SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.path(sha256).exists():
            write_whole(self.path(sha256), content)
        return sha256


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{threading.get_ident()}.part")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


class Store:
    """All data of a Hub, in one folder; call `save` after each change."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.objects = Objects((folder or Path(os.devnull)) / "objects")
        self.users: dict[str, User] = {}  # by token
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lock = threading.RLock()
        self.secret = os.urandom(16)  # signs the links by which large files are sent
        # (token, user agent) of who was seen to upload through Xet
        self.xet_clients: set[tuple[str, str]] = set()
        if folder is not None and self._file.exists():
            self._load(json.loads(self._file.read_bytes()))

    @property
    def _file(self) -> Path:
        assert self._folder is not None, "this Hub keeps nothing: serve() gives one that does"
        return self._folder / "hub.json"

    def save(self) -> None:
        """Write everything but the objects, which are written when they are added."""
        repositories = []
        for repository in self.repositories.values():
            fields = {k: v for k, v in vars(repository).items() if k != "objects"}
            fields["commits"] = [vars(commit) for commit in repository.commits.values()]
            repositories.append(fields)
        record = {
            "users": [vars(user) for user in self.users.values()],
            "repositories": repositories,
        }
        write_whole(self._file, json.dumps(record, default=_as_tree, indent=1).encode())

    def _load(self, record: dict[str, Any]) -> None:
        for fields in record["users"]:
            user = User(
                **fields | {"orgs": tuple(fields["orgs"]), "access": tuple(fields["access"])}
            )
            self.users[user.token] = user
        for fields in record["repositories"]:
            commits = [
                Commit(
                    **one | {"files": {path: File(**file) for path, file in one["files"].items()}}
                )
                for one in fields["commits"]
            ]
            fields["commits"] = {commit.id: commit for commit in commits}
            fields["discussions"] = [Pull(**one) for one in fields["discussions"]]
            repository = Repository(objects=self.objects, **fields)
            self.repositories[repository.kind, repository.name] = repository


def _as_tree(value: File | Pull) -> dict[str, Any]:
    return asdict(value)
