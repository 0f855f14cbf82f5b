"""What the command says to the libraries, before any of them is loaded."""

from __future__ import annotations

import logging
import os
import sys


def quieten(no_bars: bool) -> None:
    """Let our own lines stand alone: warnings of ours, errors of the libraries'."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it looks for CUDA where there is none
    logging.getLogger("mega_hf").setLevel(os.environ.get("MEGA_HF_VERBOSITY", "info").upper())
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if no_bars:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def let_threads_sleep() -> None:
    """Let torch's threads spin but shortly while they wait, unless the user says how they shall wait.

    Spinning, they take the core that others need: beside one busy process, a small network's forward pass on 2 cores
    took 40 times as long as alone. Spinning for some microseconds costs 2 to 3 times there, and alone regains most of
    the fifth that never spinning loses.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
