"""The stamp that a training leaves beside a model: the digest of what decided it, and of its
files."""

from __future__ import annotations

from pathlib import Path

from mega_hf.runtime.files import folder_digest

STAMP = "train.sha256"


def is_stamped(model: Path, key: str) -> bool:
    """Say whether a model was made by the training with this key."""
    return _first_bytes(model / STAMP, 200).split()[:1] == [key.encode()]


def is_unchanged(model: Path) -> bool:
    """Say whether a folder is a model as some training has left it."""
    stamp = first_line(model / STAMP)
    return bool(stamp) and is_whole(model, stamp)


def is_whole(model: Path, key: str) -> bool:
    """Say whether a model was made by the training with this key, and is unchanged since."""
    digest = folder_digest(model, leave_out=STAMP).encode() if is_stamped(model, key) else b""
    return bool(digest) and _first_bytes(model / STAMP, 200).split()[1:] == [digest]


def first_line(file: Path) -> str:
    """Return the first line of a file, the key of a training; nothing if there is no file."""
    return _first_bytes(file, 65).decode(errors="replace").partition("\n")[0]


def _first_bytes(file: Path, most: int) -> bytes:
    """Return how a file begins, nothing of one that is not there; what a stamp would hold is
    short."""
    if not file.is_file():
        return b""
    with file.open("rb") as opened:
        return opened.read(most)
