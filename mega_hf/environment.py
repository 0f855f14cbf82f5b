"""What the command says to the libraries, before any of them is loaded."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def quieten(no_bars: bool) -> None:
    """Let our own lines stand alone: warnings of ours, errors of the libraries'."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it looks for CUDA where there is none
    logging.getLogger("mega_hf").setLevel(os.environ.get("MEGA_HF_VERBOSITY", "info").upper())
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if no_bars:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@contextmanager
def collect_rarely() -> Iterator[None]:
    """Look for cyclic garbage less often, and not at all at the end, when the system takes everything back.

    While the libraries load, nothing that they make is garbage: to look through it again and again is a quarter of
    the time.
    """
    gc.set_threshold(100_000)
    try:
        yield
    finally:
        gc.freeze()


_ours: list[str] = []  # variables that were not set before


def theirs() -> dict[str, str]:
    """Return the environment as it would be without what `let_threads_sleep` set, for another process."""
    return {name: value for name, value in os.environ.items() if name not in _ours}


def let_threads_sleep() -> None:
    """Let torch's threads spin but shortly while they wait, if others are at work here; what the user says stays.

    Spinning, they take the core that others need: beside one busy process, a small network's forward pass on 2 cores
    took 40 times as long as alone. Spinning for a fraction of a millisecond costs 2 to 3 times there, and alone a
    search took a fifth longer than with threads that spin as they do by default.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return
    ours = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"} if _is_busy() else {"GOMP_SPINCOUNT": "300000"}
    _ours.extend(ours)  # the latter is the default; processes that this one starts are told, and don't look again
    os.environ.update(ours)


def _is_busy() -> bool:
    """Say whether others take half a core or more, in the tenth of a second in which this process does nothing."""
    return psutil.cpu_percent(interval=0.1) * (psutil.cpu_count() or 1) >= 50
