"""`mega-hf` and `python -m mega_hf`, which is what `accelerate launch -m mega_hf` runs."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn


def _end(number: int, frame: FrameType | None) -> None:
    word = b"interrupted" if number == signal.SIGINT else b"terminated"
    os.write(2, b"mega-hf: " + word + b": nothing was begun; the same command goes on from there\n")
    os._exit(128 + number)


def run() -> NoReturn:
    """Run the command line; until it has been loaded, signals end the process at once and without a
    traceback.

    But for a process that a launcher started: the launcher's signals are heard in its own way.
    """
    for number in (signal.SIGINT, signal.SIGTERM) if "WORLD_SIZE" not in os.environ else ():
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)
    from mega_hf.cli.main import program

    program()


if __name__ == "__main__":
    run()
