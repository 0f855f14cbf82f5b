"""How a command ends that does not end well: what it says, and its exit code."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from mega_hf.errors import MegaError, RunError, VerificationError, as_resource_error
from mega_hf.runtime.untrusted import harmless

WORKING = "readable inputs, and a disk with room that can be written"
AGAIN = "mend it; the same command goes on where it stopped"


def say(error: BaseException) -> int | None:
    """Say what stopped a command and return its exit code; None for a fault of ours, whose
    traceback is shown."""
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return 1
    said = error if isinstance(error, MegaError) else as_resource_error(error, _place())
    if said is None and isinstance(error, OSError):
        said = MegaError("the system refused", expected=WORKING, got=error, hint=AGAIN)
    if isinstance(said, VerificationError):
        _print(f"not verified: {said}", whole=True)
        return 1
    if said is not None:
        _print(f"error: {said}", whole=said.on_one_process)
        return 2
    if isinstance(error, Exception) and "WORLD_SIZE" in os.environ:
        _print(f"{type(error).__name__}, a fault of mega_hf or of a library:", whole=True)
    return None


def open_streams() -> None:
    """Put the null device where a standard stream is closed: the next file opened would get what
    libraries print.

    Raises:
        RunError: it is the output, so that no answer would be seen.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if sys.stdout is None:
        raise RunError(
            "standard output is closed",
            expected="a place for the answer",
            got="none",
            hint="> FILE, or > /dev/null",
        )


def _place() -> str:
    """Name the output if it is what can't be written; what is left to be written there is let
    go."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
        return "standard output"
    return ""


def _drop_output() -> None:
    """Let Python's own attempt to write the rest, at its end, succeed."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(text: str, whole: bool) -> None:
    """Print an error; of one that all processes meet, all but the main process print the first
    line."""
    rank = os.environ.get("RANK", "0")
    shown = text if whole or rank == "0" else text.splitlines()[0]
    named = rank != "0" or (whole and "WORLD_SIZE" in os.environ)
    with suppress(OSError):  # the exit code stands where even this can't be written
        said = harmless(f"mega-hf: process {rank}: {shown}" if named else f"mega-hf: {shown}")
        print(said, file=sys.stderr, flush=True)
