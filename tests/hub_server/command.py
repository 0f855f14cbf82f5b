"""`python -m tests.hub_server`: a local Hub to try push and pull without an account."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.hub_server.access import KINDS
from tests.hub_server.server import Hub, files_of, serve

_USER = "me"
_HEAD = """\
A Hub at {url}; it keeps all in {kept}. In another shell:

export HF_ENDPOINT={url}
export HF_TOKEN={token}
export HF_HUB_DISABLE_XET=1
export HF_HOME={home}

Push to {user}/NAME. A folder {root}/models/ORG/NAME, or datasets/ORG/NAME, is a repository that anybody may read.
Ctrl-C ends it.
"""  # noqa: E501


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a Hub until Ctrl-C and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub_server", description=__doc__)
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="what it serves and keeps"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="8000 by default; 0: any that is free"
    )
    asked = parser.parse_args(arguments)
    root = asked.root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        try:
            hub = stack.enter_context(serve(root, asked.port, log=_say))
        except OSError as error:
            _say(
                f"port {asked.port} of 127.0.0.1 can't be used ({error.strerror}): choose another"
                " by --port"
            )
            return 2
        kept = root / ".hub"
        _say(
            _HEAD.format(
                url=hub.url, kept=kept, token=_token(hub), home=kept / "home", user=_USER, root=root
            )
        )
        publish_all(hub, root, stop)
    _say("stopped")
    return 0


def _token(hub: Hub) -> str:
    """Return the user's token; it is kept in the folder."""
    users = hub.door.store.users.values()
    kept = next((user.token for user in users if user.name == _USER), None)
    return kept or hub.add_user(_USER, token=f"hf_{secrets.token_hex(17)}").token


def publish_all(hub: Hub, root: Path, stop: threading.Event) -> None:
    """Publish the folders, and again whenever they change, until the end."""
    published: dict[tuple[str, str], str] = {}
    before = None
    while not stop.is_set():
        with suppress(FileNotFoundError):  # a file went while we looked: look again
            now = {key: _look(folder) for key, folder in _folders(root)}
            for key, folder in _folders(root):
                # What is still being copied is left alone until it lies still.
                if before is None or before.get(key) == now.get(key) != published.get(key):
                    _publish(hub, *key, folder)
                    published[key] = now[key]
            before = now
        stop.wait(1)


def _folders(root: Path) -> Iterator[tuple[tuple[str, str], Path]]:
    for kind in KINDS:
        for folder in sorted((root / kind).glob("*/*")):
            if folder.is_dir() and files_of(folder):
                yield (kind, f"{folder.parent.name}/{folder.name}"), folder


def _look(folder: Path) -> str:
    """Return a value that changes when a file of a folder changes, without reading files."""
    stats = {path: file.stat() for path, file in files_of(folder).items()}
    return repr([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()])


def _publish(hub: Hub, kind: str, name: str, folder: Path) -> None:
    """Commit a folder, unless it is unchanged since its last commit."""
    content = hashlib.sha256()
    for path, file in files_of(folder).items():
        with file.open("rb") as stream:
            content.update(
                f"{path}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode()
            )
    repository = hub.repositories.get((kind, name))
    if repository is None or repository.published != content.hexdigest():
        commit = hub.add(kind, name, folder)
        hub.repositories[kind, name].published = content.hexdigest()
        hub.door.store.save()
        _say(f"published {kind}/{name}, commit {commit[:12]}")


def _say(text: str) -> None:
    print(text, flush=True)
