"""One run at a time in a folder: a lock that ends with the process that holds it, however that
ends."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mega_hf.errors import RunError

NAME = ".mega-lock"
_WAIT = "wait until it has ended, or another --out"
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # some network file systems

logger = logging.getLogger(__name__)


@contextmanager
def lock_folder(folder: Path, hint: str = _WAIT) -> Iterator[None]:
    """Hold a folder, made if it is not there, against every other run; the lock file is gone
    afterwards.

    Args:
        folder: which one.
        hint: what to do where another run is at work there.

    Raises:
        RunError: another run is at work there.
    """
    descriptor = _acquire(folder, hint)
    try:
        os.truncate(descriptor, 0)  # what a killed run wrote
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        # while it is held: nobody removes a lock that another one took
        (folder / NAME).unlink(missing_ok=True)
        os.close(descriptor)


def check_unlocked(folder: Path) -> None:
    """Raise RunError where another run is at work, before anything is loaded; it is `hold` that
    keeps it out."""
    if (folder / NAME).is_file() and os.access(folder / NAME, os.R_OK | os.W_OK):
        descriptor = os.open(folder / NAME, os.O_RDWR)
        try:
            _lock(descriptor, folder, _WAIT)
        finally:
            os.close(descriptor)


def _acquire(folder: Path, hint: str) -> int:
    """Return the open lock file, locked; `kill -9` frees it too, since the system closes what a
    process had open."""
    path = folder / NAME
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, folder, hint)
            if _is_there(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # whoever held it has removed it since it was opened: nobody else would see this lock
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, hint: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        raise RunError(
            "another run is at work here",
            where=str(folder),
            expected="one run at a time in a folder",
            got=f"process {holder} at work" if holder.isdecimal() else "another process at work",
            hint=hint,
        ) from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        logger.warning(
            "%s: no locks in this file system; start no second run in this folder", folder
        )


def _is_there(descriptor: int, path: Path) -> bool:
    """Say whether an open file is the one that lies at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
