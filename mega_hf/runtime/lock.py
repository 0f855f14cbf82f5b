"""One run per folder: a lock that the system releases, however its process ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from mega_hf.errors import RunError

NAME = ".mega-lock"
_WAIT = "wait until it has finished, or choose another --out"


@contextmanager
def lock_folder(folder: Path, hint: str = _WAIT) -> Iterator[None]:
    """Hold a folder against every other run, and create it if it does not exist.

    The lock file contains the process ID of the holder, and is removed at the end.

    Args:
        folder: the folder.
        hint: what to do if another run holds it.

    Raises:
        RunError: another run holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    lock = _acquire(path, hint)
    try:
        path.write_text(f"{os.getpid()}\n")
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: afterwards it may be another run's
        lock.release()


def check_unlocked(folder: Path) -> None:
    """Raise RunError if another run holds a folder; do not create or lock anything."""
    path = folder / NAME
    if path.is_file() and os.access(path, os.R_OK | os.W_OK):
        _acquire(path, _WAIT).release()


def _acquire(path: Path, hint: str) -> BaseFileLock:
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        holder = ""
        with suppress(OSError):  # it may have finished meanwhile, and removed the file
            holder = path.read_text(errors="replace").strip()
        raise RunError(
            "another run is at work here",
            where=str(path.parent),
            expected="one run at a time",
            got=f"process {holder} is running" if holder.isdecimal() else "another process",
            hint=hint,
        ) from None
    return lock
