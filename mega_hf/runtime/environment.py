"""What the command says to the libraries, before any of them is loaded."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def configure_logging(no_bars: bool) -> None:
    """Let our own lines stand alone: warnings of ours, errors of the libraries'."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    # it looks for CUDA where there is none
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    logging.getLogger("mega_hf").setLevel(os.environ.get("MEGA_HF_VERBOSITY", "info").upper())
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if no_bars:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def relax_gc() -> Iterator[None]:
    """Look for cyclic garbage less often, and not at all at the end, when the system takes
    everything back.

    While the libraries load, nothing that they make is garbage: to look through it again and again
        is a quarter of
    the time.
    """
    gc.set_threshold(100_000)
    try:
        yield
    finally:
        gc.freeze()


_ours: list[str] = []  # variables that were not set before


def theirs() -> dict[str, str]:
    """Return the environment as it would be without what `let_threads_sleep` set, for another
    process."""
    return {name: value for name, value in os.environ.items() if name not in _ours}


def let_threads_sleep() -> None:
    """Let torch's threads spin but shortly while they wait, if others are at work here; what the
    user says stays.

    Spinning, they take the core that others need: beside one busy process, a small network's
        forward pass on 2 cores
    took 40 times as long as alone. Spinning for a fraction of a millisecond costs 2 to 3 times
    there, and alone a search took a fifth longer than with threads that spin as they do by default.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return
    ours = (
        {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
        if _is_busy()
        else {"GOMP_SPINCOUNT": "300000"}
    )
    # the latter is the default; processes that this one starts are told, and don't look again
    _ours.extend(ours)
    os.environ.update(ours)


def _is_busy() -> bool:
    """Say whether others take half a core or more, in the tenth of a second in which this process
    does nothing."""
    return psutil.cpu_percent(interval=0.1) * (psutil.cpu_count() or 1) >= 50


# glibc's mallopt: the parameters' numbers, and the values that its own rule ends at once large
# blocks were freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}
_KEPT = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1}


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Inside, keep freed memory for what is allocated next; afterwards give it back.

    glibc gives blocks as large as a batch's activations back at once, and the system clears them
    anew for every layer: a fifth of the time of an eager ResNet-18 at 224 px on 2 cores, and a
        quarter of a ResNet-20's at 32 px. What users
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
    """Give freed memory back to the system: the C library keeps what lies between other things, up
    to a model."""
    if _has("malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)


def _set(values: dict[int, int]) -> bool:
    if not _has("mallopt") or any(
        name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ
    ):
        return False
    return all(ctypes.CDLL(None).mallopt(parameter, value) for parameter, value in values.items())


def _has(function: str) -> bool:
    try:
        return hasattr(ctypes.CDLL(None), function)
    except (OSError, TypeError):  # no such thing as the program's own symbols
        return False
