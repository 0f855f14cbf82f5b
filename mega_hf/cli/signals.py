"""Ctrl-C and SIGTERM: they end a command within seconds, whatever it is at, and it says that it can
go on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from mega_hf.errors import Terminated

# seconds that a command has to end by itself: any kill is safe, since all files appear whole
GRACE = 10.0
IMPORT_GRACE = 2.0  # and an import, of which nothing is kept; or a finalizer
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN = 0.1  # seconds until a signal that came there is sent again
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interruption:
    """What has come to end a command.

    Attributes:
        number: the first signal that came, None as long as there is none; later ones change
            nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.is_over = False
        self._is_waiting = False  # for an import or a finalizer, in which a signal came
        self._ended = threading.Event()

    def end(self) -> int:
        """Say what ended the command, and return its exit code."""
        self._ended.set()
        with suppress(OSError):
            sys.stderr.write(self._line())
            sys.stderr.flush()
        return self._code()

    def _line(self) -> str:
        """Return what is said: of several processes by the main one."""
        word = _WORDS[signal.Signals(self.number or signal.SIGINT)]
        said = f"mega-hf: {word}: what was done is kept; the same command goes on from there\n"
        return said if os.environ.get("RANK", "0") == "0" else ""

    def _code(self) -> int:
        return 128 + (self.number or signal.SIGINT)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Raise in the main thread what no `except Exception` swallows; where it can't be yet, it
        is repeated.

        A library's initialisation in C++ may import in its turn, and aborts where that raises
        (torch.distributed).
        """
        if self.number is None and not self.is_over:
            self._is_waiting = _must_end_first(frame)
            if self._is_waiting:
                return
            self.number = number
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def watch(self, pipe: int) -> None:
        """End the process where a signal has come and it does not end: in a long call into C, or
        swallowed."""
        while (number := os.read(pipe, 1)[0]) not in SIGNALS:
            if number == 0:
                return
        began = time.monotonic()
        while not (is_ended := self._ended.wait(_AGAIN)):
            if time.monotonic() - began > (IMPORT_GRACE if self._is_waiting else GRACE):
                break
            if self._is_waiting and self.number is None:
                signal.pthread_kill(threading.main_thread().ident or 0, number)
        if not is_ended:
            self.number = self.number or number
            # no lock, no buffer: the main thread may be anywhere
            os.write(2, self._line().encode())
            os._exit(self._code())


def _must_end_first(frame: FrameType | None) -> bool:
    """Say whether an import is at work, or what swallows an exception: a weak reference's callback,
    a finalizer."""
    while frame is not None:
        code = frame.f_code
        if (
            code.co_filename in ("<frozen importlib._bootstrap>", weakref.__file__)
            or code.co_name == "__del__"
        ):
            return True
        frame = frame.f_back
    return False


@contextmanager
def handle_signals() -> Iterator[Interruption]:
    """Let a signal raise KeyboardInterrupt in the main thread, and end the process if that does
    not.

    A process that a launcher started ends at once by the SIGTERM that it is sent, and so, where the
    launcher is ours and speaks for all, by SIGINT. What the caller ignores, as a script's
    background jobs do Ctrl-C, stays ignored.
    """
    interruption = Interruption()
    numbers: tuple[signal.Signals, ...] = SIGNALS
    if "WORLD_SIZE" in os.environ:
        numbers = (signal.SIGINT,) if "MEGA_HF_LAUNCHER" not in os.environ else ()
        if not numbers:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    numbers = tuple(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN)
    if not numbers or threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(
        target=interruption.watch, args=(reading,), daemon=True, name="interruption"
    )
    watcher.start()
    # written to by the system's own handler
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, interruption.receive) for number in numbers}
    try:
        yield interruption
    finally:
        interruption.is_over = True
        interruption._ended.set()
        os.write(writing, b"\0")
        watcher.join()  # it sends signals: not to the handlers that were there before
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)


_masks: list[set[int]] = []


def _block() -> None:
    """Let no signal reach a child that still holds its parent's handlers, and its pipe."""
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS))


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _forget() -> None:
    """Let a forked child end by signals as any process."""
    for number in SIGNALS:
        if getattr(signal.getsignal(number), "__func__", None) is Interruption.receive:
            signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
    _unblock()


os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_forget)
