"""Threads that end this process where the run can't go on: its launcher is gone, or a process on
another machine."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from torch.distributed import TCPStore

_PAUSE = 2.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one that mean that a process is gone
_DONE = b"done"


def end_with_launcher(launcher: int) -> None:
    """End this process when its launcher is gone, killed perhaps: nobody would end it, and it would
    go on writing.

    Args:
        launcher: its process.
    """

    def watch() -> None:
        """Look for the launcher now and then."""
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)  # as from a kill: a run resumes from that

    threading.Thread(target=watch, daemon=True, name="launcher").start()


def spans_machines(environment: Mapping[str, str], count: int) -> bool:
    """Say whether a launch has processes that this machine's launcher does not see."""
    return count > 1 and environment.get("LOCAL_WORLD_SIZE") != str(count)


def end_with_others(rank: int, count: int, silence: float = SILENCE) -> Callable[[], None]:
    """End this process when one on another machine is gone: it might be training for hours before
    it would notice.

    A launcher ends its own processes when one dies, but not those of other machines.

    Args:
        rank: this process's index.
        count: how many there are.
        silence: seconds.

    Returns:
        what to call when this process is done, so that the others do not take it for dead.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=2 * silence)
    )
    keys, is_done = [f"mega_hf/alive/{r}" for r in range(count)], threading.Event()
    store.set(keys[rank], "0")

    def watch() -> None:
        """Give signs of life, and look for those of the others."""
        seen: dict[int, tuple[bytes, float]] = {}
        beat = 0
        while not is_done.wait(_PAUSE):
            beat += 1
            try:
                store.set(keys[rank], str(beat))
                values = store.multi_get(keys)
            except Exception as error:  # whatever torch makes of a closed connection
                return _end(
                    f"the machine of process 0 does not answer any more ({type(error).__name__})",
                    is_done,
                )
            now = time.monotonic()
            for other, value in enumerate(values):
                if value == _DONE or seen.get(other, (b"", now))[0] != value:
                    seen[other] = (value, now)
                elif now - seen[other][1] > silence:
                    return _end(
                        f"process {other} has given no sign of life for {silence:.0f} seconds",
                        is_done,
                    )

    def leave() -> None:
        """Say that this process is done."""
        is_done.set()
        store.set(keys[rank], _DONE.decode())

    threading.Thread(target=watch, daemon=True, name="others").start()
    return leave


def _end(why: str, is_done: threading.Event) -> None:
    if not is_done.is_set():
        print(
            f"mega-hf: {why}: this process ends too; the same command resumes",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
