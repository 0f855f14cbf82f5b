"""A Hub on loopback for the real clients; tests can make it misbehave.

    with serve() as hub:
        hub.add_user("me", token="hf_me")
        HfApi(endpoint=hub.url, token="hf_me").create_repo("me/model")

`python -m tests.hub_server --root DIR` runs one from the command line; see `--help`.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from tests.hub_server.faults import Faults
from tests.hub_server.routes import Door
from tests.hub_server.store import Repository, Store, User


class Hub:
    """The state of the server: repositories, requests and planned faults."""

    def __init__(self, url: str = "", door: Door | None = None) -> None:
        self.url = url
        self.door = door or Door(Store(None))

    @property
    def repositories(self) -> dict[tuple[str, str], Repository]:
        """All repositories, by (`models` or `datasets`, ORG/NAME)."""
        return self.door.store.repositories

    @property
    def requests(self) -> list[str]:
        """All requests as METHOD /PATH, decoded."""
        return self.door.requests

    @property
    def bodies(self) -> list[bytes]:
        """All bodies that clients sent."""
        return self.door.bodies

    @property
    def faults(self) -> Faults:
        """The planned faults."""
        return self.door.faults

    def add(
        self,
        kind: str,
        name: str,
        folder: Path,
        gated: str | bool | None = None,
        private: bool | None = None,
    ) -> str:
        """Commit a folder to a repository's `main`, and return the commit.

        The repository is created if it does not exist. Its visibility changes only if `gated` or
        `private` is given.
        """
        store = self.door.store
        with store.lock:
            repository = store.repositories.setdefault(
                (kind, name), Repository(kind, name, store.objects)
            )
            repository.gated = repository.gated if gated is None else gated
            repository.private = repository.private if private is None else private
            files = {
                path: repository.keep(path, file.read_bytes())
                for path, file in files_of(folder).items()
            }
            commit = repository.commit(
                files, repository.branches.get("main"), "Add", author=name.partition("/")[0]
            )
            repository.branches["main"] = commit.id
            store.save()
        return commit.id

    def add_user(
        self,
        name: str,
        token: str | None = None,
        orgs: tuple[str, ...] = (),
        role: str = "write",
        access: tuple[str, ...] = (),
    ) -> User:
        """Add an account.

        Args:
            name: of the account.
            token: `hf_NAME` by default.
            orgs: the organizations of the account.
            role: of the token, `write` or `read`.
            access: the gated repositories that the account may read."""
        assert role in ("read", "write"), role
        user = User(name, token or f"hf_{name}", tuple(orgs), role, tuple(access))
        with self.door.store.lock:
            self.door.store.users[user.token] = user
            self.door.store.save()
        return user

    def misbehave(
        self, kind: str, match: str = "", times: int | None = 1, skip: int = 0, **options: Any
    ) -> None:
        """Plan a fault.

        Args:
            kind: what happens, and its options:
                `status`: an error is answered: `status` (503), `retry_after` (a header; none).
                `cut`: the connection is cut when `after` (0) bytes of the body were read, or of the
                    answer sent.
                `lose_commit`: a commit is answered 500, and is not made; what was uploaded for it
                    stays.
                `lose_answer`: a commit is made, but the connection is cut before the answer.
                `corrupt`: the bytes are damaged on their way: of a large file (PUT
                    /lfs/models/ORG/NAME/SHA256), of regular files in a commit (those whose path
                    contains `file`), or of a download (GET). With `silent`, a damaged large file is
                    taken for the right one, and listed as what it is.
                `stall`: nothing is answered for `seconds` (60).
            match: a regular expression searched in "METHOD /path"; by default all requests,
                commits, or uploads.
            times: so many requests; None: all of them.
            skip: so many that match are answered rightly before.
            **options: those of the kind.
        """
        self.faults.plan(kind, match, times, skip, **options)

    def behave(self) -> None:
        """Drop all planned faults."""
        self.faults.clear()


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by their paths in it, without those of git and the client."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in paths.items()
        if not {".git", ".cache"} & set(name.parts)
    }


class _Server(uvicorn.Server):
    """A server that stops at once; uvicorn's own takes 0.2 seconds, and tests start hundreds."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._is_running = threading.Event()

    async def main_loop(self) -> None:
        self._loop, self._is_over = asyncio.get_running_loop(), asyncio.Event()
        self._is_running.set()
        await self._is_over.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=1)

    def stop(self) -> None:
        """Stop the server, from another thread."""
        if not self._is_running.wait(10):
            return  # it never began, and its thread said why
        self._loop.call_soon_threadsafe(self._is_over.set)


@contextmanager
def serve(root: Path | None = None, port: int = 0, **arguments: Any) -> Iterator[Hub]:
    """Run a Hub on loopback while inside; its data is kept in `root`, if given.

    Raises:
        OSError: the port is taken.
        AssertionError: at the end, if the server failed through a bug.
    """
    # Told that it is TCP, asyncio sends small answers at once; otherwise each takes 40 ms.
    tcp = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    with tempfile.TemporaryDirectory(prefix="hub-") as temporary, socket.socket(*tcp) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        door = Door(Store((root or Path(temporary)) / ".hub"), **arguments)
        config = uvicorn.Config(
            door,
            http="h11",
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            log_level="critical",
            access_log=False,
        )
        server = _Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), name="hub")
        thread.start()  # who connects before it is ready is kept waiting by the socket
        try:
            yield Hub(f"http://127.0.0.1:{listener.getsockname()[1]}", door)
        finally:
            door.is_closing = True
            server.stop()
            thread.join()
    assert not door.failures, door.failures[0]
