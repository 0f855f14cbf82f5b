"""Files and folders that appear whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mega_hf.errors import RunError, raise_if_out_of_space


def check_writable(path: Path, what: str, hint: str) -> None:
    """Raise RunError where no folder can be made at a path, or none can be written in it."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        got = "a file" if not there.is_dir() else "no right to write"
        hint = f"{hint}, or the right to write there"
        raise RunError(
            f"{what} can't be written",
            where=str(path),
            expected="a folder",
            got=f"{got}: {there}",
            hint=hint,
        )


def merged_digest(folder: Path) -> str:
    """Return the SHA-256 of a model's safetensors file (of all of them, one after the other, if it
    is sharded)."""
    sha = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def file_digest(content: Path | bytes) -> str:
    """Return the SHA-256 of a file, or of what is to stand in one."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, leave_out: str = "") -> str:
    """Return the SHA-256 over the names and contents of a folder's files, but one."""
    sha = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != leave_out:
            sha.update(f"{file.relative_to(folder)} {file_digest(file)}\n".encode())
    return sha.hexdigest()


# path, size, time of the last change in nanoseconds, inode: another content has another one
FileStamp = tuple[Path, int, int, int]


def file_stamps(files: Iterable[Path]) -> tuple[FileStamp, ...]:
    """Return what tells, without reading them, whether files were changed.

    Raises:
        OSError: a file is missing.
    """
    stats = ((file, file.stat()) for file in files)
    return tuple((file, stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in stats)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        RunError: there is no room.
    """
    temporary = path.with_name(f".mega-{path.name}")
    with _whole_or_gone(path, temporary):
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder so that it is there whole or not at all; `fill` gets a temporary path that does
    not exist yet.

    Raises:
        RunError: there is no room.
    """
    path = path.absolute()
    temporary = path.with_name(f".mega-{path.name}")
    with _whole_or_gone(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        fill(temporary)
        rights = 0o666 & ~_umask()  # safetensors makes files that nobody else can read
        for file in [path for path in temporary.rglob("*") if path.is_file()]:
            file.chmod(rights)
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        remove(path)
        temporary.replace(path)
        _sync_folder(path.parent)


@contextmanager
def _whole_or_gone(path: Path, temporary: Path) -> Iterator[None]:
    """Leave nothing half-written, and say it as an error of ours if there was no room."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # on a disk that fails; the next run removes it
            remove(temporary)
        if isinstance(error, Exception):
            raise_if_out_of_space(error, path)
        raise


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there: a folder at once, so that no half of it is ever
    found."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    gone = path
    if not path.name.startswith(".mega-"):
        gone = path.with_name(f".mega-{path.name}~")
        remove(gone)
        path.replace(gone)
    shutil.rmtree(gone)


def _umask() -> int:
    """Return which rights new files don't get; the system tells only who sets it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
