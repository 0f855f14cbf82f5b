"""The stamp in a trained model's folder: the key of its training, and the digest of its files."""

from __future__ import annotations

from pathlib import Path

from mega_hf.runtime.files import folder_digest

STAMP = "train.sha256"


def is_stamped(model: Path, key: str) -> bool:
    """Return whether a model was made by the training with this key."""
    return _first_bytes(model / STAMP, 200).split()[:1] == [key.encode()]


def is_unchanged(model: Path) -> bool:
    """Return whether a folder is a trained model, unchanged since its training."""
    stamp = first_line(model / STAMP)
    return bool(stamp) and is_whole(model, stamp)


def is_whole(model: Path, key: str) -> bool:
    """Return whether a model was made by the training with this key, and is unchanged since."""
    digest = folder_digest(model, leave_out=STAMP).encode() if is_stamped(model, key) else b""
    return bool(digest) and _first_bytes(model / STAMP, 200).split()[1:] == [digest]


def first_line(file: Path) -> str:
    """Return the first line of a file, the key of a training; empty if there is no file."""
    return _first_bytes(file, 65).decode(errors="replace").partition("\n")[0]


def _first_bytes(file: Path, most: int) -> bytes:
    """Return the first bytes of a file; none if it does not exist."""
    if not file.is_file():
        return b""
    with file.open("rb") as opened:
        return opened.read(most)
