"""What the C library does with freed memory: keep it for the next batch, or give it back to the system."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's mallopt: the parameters' numbers, and the values that its own rule ends at once large blocks were freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}
_KEPT = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1}


@contextmanager
def keep_freed() -> Iterator[None]:
    """Inside, keep freed memory for what is allocated next; afterwards give it back.

    glibc gives blocks as large as a batch's activations back at once, and the system clears them anew for every layer:
    a fifth of the time of an eager ResNet-18 at 224 px on 2 cores, and a quarter of a ResNet-20's at 32 px. What users
    set themselves stays, and so does every other C library.
    """
    if not _set(_KEPT):
        yield
        return
    try:
        yield
    finally:
        _set(_USUAL)
        trim()


def trim() -> None:
    """Give freed memory back to the system: the C library keeps what lies between other things, up to a model."""
    if _has("malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def _set(values: dict[int, int]) -> bool:
    if not _has("mallopt") or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    return all(ctypes.CDLL(None).mallopt(parameter, value) for parameter, value in values.items())


def _has(function: str) -> bool:
    try:
        return hasattr(ctypes.CDLL(None), function)
    except (OSError, TypeError):  # no such thing as the program's own symbols
        return False
