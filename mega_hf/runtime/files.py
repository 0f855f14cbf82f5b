"""Write files and folders that appear whole or not at all, and compute their digests."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mega_hf.errors import RunError, raise_if_out_of_space


def check_writable(path: Path, what: str, hint: str) -> None:
    """Raise RunError if a folder can't be created at a path, or nothing can be written in it.

    Args:
        path: the folder, which need not exist.
        what: its name in the error.
        hint: how to choose another one.
    """
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        got = "no permission to write" if existing.is_dir() else "a file"
        raise RunError(
            f"{what} can't be written",
            where=str(path),
            expected="a writable folder",
            got=f"{got}: {existing}",
            hint=f"{hint}, or change its permissions",
        )


def merged_digest(folder: Path) -> str:
    """Return the SHA-256 of a model's safetensors file, or of its shards in order."""
    sha = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def file_digest(content: Path | bytes) -> str:
    """Return the SHA-256 of a file, or of content for one."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, leave_out: str = "") -> str:
    """Return the SHA-256 over the names and contents of all files in a folder.

    Args:
        folder: the folder.
        leave_out: the name of a file that does not count.
    """
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
    """Write a file that appears whole or not at all.

    Raises:
        RunError: the disk is full.
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
    """Create a folder that appears whole or not at all, in place of an existing one.

    Args:
        path: the folder.
        fill: creates the folder at the temporary path that it is called with.

    Raises:
        RunError: the disk is full.
    """
    path = path.absolute()
    temporary = path.with_name(f".mega-{path.name}")
    with _whole_or_gone(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        fill(temporary)
        rights = 0o666 & ~_umask()  # safetensors creates files that only their owner can read
        for file in [path for path in temporary.rglob("*") if path.is_file()]:
            file.chmod(rights)
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        remove(path)
        temporary.replace(path)
        _sync_folder(path.parent)


@contextmanager
def _whole_or_gone(path: Path, temporary: Path) -> Iterator[None]:
    """Remove the temporary file or folder on an error, and turn a full disk into a RunError."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError):  # the next run removes it
            remove(temporary)
        if isinstance(error, Exception):
            raise_if_out_of_space(error, path)
        raise


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists; no part of a folder stays under its name."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith(".mega-"):
        renamed = path.with_name(f".mega-{path.name}~")
        remove(renamed)
        path = path.replace(renamed)
    shutil.rmtree(path)


def _umask() -> int:
    """Return the permissions that new files don't get; reading them means setting them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
