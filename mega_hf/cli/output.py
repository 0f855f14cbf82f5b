"""Print answers and errors; text from files and the Hub can't control the terminal."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from mega_hf.errors import MegaError, RunError, VerificationError, as_resource_error
from mega_hf.runtime.untrusted import printable_lines


def print_answer(text: object) -> None:
    """Print a command's answer to standard output."""
    print(printable_lines(text), flush=True)


def print_error(error: BaseException) -> int | None:
    """Print what stopped a command.

    Returns:
        the exit code; None for a bug of mega_hf or a library, whose traceback is to be shown.
    """
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return 1
    shown = error if isinstance(error, MegaError) else as_resource_error(error, _full_output())
    if shown is None and isinstance(error, OSError):
        shown = MegaError(
            "the operating system reported an error",
            expected="readable inputs, and a writable disk with free space",
            got=error,
            hint="fix the cause and run the same command to resume",
        )
    if isinstance(shown, VerificationError):
        _print(f"not verified: {shown}", whole=True)
        return 1
    if shown is not None:
        _print(f"error: {shown}", whole=shown.on_one_process)
        return 2
    if isinstance(error, Exception) and "WORLD_SIZE" in os.environ:
        _print(f"{type(error).__name__}, a bug in mega_hf or in a library:", whole=True)
    return None


def check_output() -> None:
    """Make sure that printing works; characters that the terminal lacks are printed as `?`.

    The null device takes the place of closed standard streams: otherwise the next file that is
    opened would get the stream's number, and with it everything that libraries print.

    Raises:
        RunError: standard output is closed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if sys.stdout is None:
        raise RunError(
            "standard output is closed",
            expected="an open standard output, for the answer",
            got="a closed one",
            hint="redirect it: > FILE, or > /dev/null",
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _full_output() -> str:
    """Return "standard output" if it can't be written to, and drop what is still to be written."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
        return "standard output"
    return ""


def _drop_output() -> None:
    """Let Python's own flush at exit succeed."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(text: str, whole: bool) -> None:
    """Print an error; if all processes meet it, only the main one prints all of its lines."""
    rank = os.environ.get("RANK", "0")
    if not whole and rank != "0":
        text = text.splitlines()[0]
    if rank != "0" or (whole and "WORLD_SIZE" in os.environ):
        text = f"process {rank}: {text}"
    with suppress(OSError):  # the exit code says it if this can't be written either
        print(printable_lines(f"mega-hf: {text}"), file=sys.stderr, flush=True)
