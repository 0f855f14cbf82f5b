"""Threads that end this process if its launcher or a process on another machine is gone."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

from torch.distributed import TCPStore

_PAUSE = 2.0  # seconds between two heartbeats
SILENCE = 30.0  # seconds without a heartbeat after which a process counts as gone
_DONE = b"done"


def end_with_launcher(launcher: int) -> None:
    """End this process when its launcher is gone; it would write beside the run that resumes.

    Args:
        launcher: the launcher's process ID.
    """

    def watch() -> None:
        """Wait until the launcher is gone, and end this process."""
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)  # like a kill: a run resumes from any moment

    threading.Thread(target=watch, daemon=True, name="launcher").start()


def spans_machines(environment: Mapping[str, str], count: int) -> bool:
    """Return whether some of the processes run on other machines.

    Args:
        environment: the environment variables.
        count: number of processes.
    """
    return count > 1 and environment.get("LOCAL_WORLD_SIZE") != str(count)


def end_with_others(rank: int, count: int, silence: float = SILENCE) -> Callable[[], None]:
    """End this process when one on another machine is gone.

    A launcher ends the processes of its own machine when one dies, but not those of other machines,
    which would wait until the next exchange, for hours during a training.

    Args:
        rank: this process's index.
        count: number of processes.
        silence: seconds without a heartbeat after which a process counts as gone.

    Returns:
        a function to call when this process has finished, so that it does not count as gone.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=2 * silence)
    )
    keys = [f"mega_hf/alive/{r}" for r in range(count)]
    is_done = threading.Event()
    store.set(keys[rank], "0")

    def watch() -> None:
        """Send heartbeats, and end this process if another one sends none."""
        seen: dict[int, tuple[bytes, float]] = {}
        beat = 0
        while not is_done.wait(_PAUSE):
            beat += 1
            try:
                store.set(keys[rank], str(beat))
                values = store.multi_get(keys)
            except Exception as error:  # torch documents no class for a closed connection
                name = type(error).__name__
                return _end(f"the machine of process 0 does not answer any more ({name})", is_done)
            now = time.monotonic()
            for other, value in enumerate(values):
                if value == _DONE or seen.get(other, (b"", now))[0] != value:
                    seen[other] = (value, now)
                elif now - seen[other][1] > silence:
                    return _end(f"process {other} was silent for {silence:.0f} seconds", is_done)

    def leave() -> None:
        """Stop the heartbeats, and tell the other processes that this one has finished."""
        is_done.set()
        store.set(keys[rank], _DONE.decode())

    threading.Thread(target=watch, daemon=True, name="others").start()
    return leave


def _end(why: str, is_done: threading.Event) -> None:
    if not is_done.is_set():
        print(
            f"mega-hf: {why}; run the same command on all machines to resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
