"""Ctrl-C and SIGTERM end a command within seconds; the same command resumes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from mega_hf.cli.launch import is_main_process
from mega_hf.errors import Terminated

GRACE = 5  # seconds that an interrupted command has to unwind; files are whole at any moment


@contextmanager
def handle_signals() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on SIGINT and Terminated on SIGTERM, once, in the main thread.

    If the exception is swallowed, in a finalizer for example, the process ends after GRACE seconds.

    A process that a launcher started ends at once on SIGTERM. If the launcher is ours, also on
    SIGINT, and the launcher prints the message. Signals that the caller ignores stay ignored, such
    as SIGINT in a background job of a script.

    Yields:
        the list of the signals received: none or one.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not received:
            received.append(number)
            signal.alarm(GRACE)
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def give_up(number: int, frame: FrameType | None) -> None:
        print_interrupted(received[0])
        os._exit(128 + received[0])

    handlers = {signal.SIGALRM: give_up, signal.SIGINT: interrupt, signal.SIGTERM: interrupt}
    if "MEGA_HF_LAUNCHER" in os.environ:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        handlers = {}
    elif "WORLD_SIZE" in os.environ:
        del handlers[signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # Python sets handlers in the main thread only
    previous = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield received
    finally:
        if previous:
            signal.alarm(0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def print_interrupted(number: int) -> None:
    """Say how to resume; of several processes, the main one does."""
    if is_main_process():
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        with suppress(OSError):
            print(f"mega-hf: {word}; run the same command to resume", file=sys.stderr, flush=True)
