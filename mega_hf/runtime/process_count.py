"""Limit the number of processes to what this machine's cores and memory allow."""

from __future__ import annotations

import os

import psutil

from mega_hf.errors import LaunchError

OVERSUBSCRIBE = "MEGA_HF_OVERSUBSCRIBE"  # the environment variable that lifts the limit
_PROCESS_BYTES = 2**29  # the least that a process needs once torch is loaded


def wants_cpu() -> bool:
    """Return whether Accelerate was told to use the CPU."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def check_process_count(count: int, uses_gpu: bool) -> None:
    """Check that this machine has a core and enough memory for each process.

    Before a launch, the memory that is available counts. Once the processes run, they have used a
    part of it already, and the total memory counts.

    Args:
        count: number of processes on this machine.
        uses_gpu: whether they compute on GPUs; then the cores are not counted.

    Raises:
        LaunchError: there are too many processes, and MEGA_HF_OVERSUBSCRIBE is not set.
    """
    if count == 1 or os.environ.get(OVERSUBSCRIBE):
        return
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on every system
        cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory()
    if "WORLD_SIZE" in os.environ:
        room, name = memory.total, "memory"
    else:
        room, name = memory.available, "free memory"
    limits = {f"{room / 2**30:.1f} GiB of {name}": room // _PROCESS_BYTES}
    if not uses_gpu:
        limits[f"{cores} cores" if cores > 1 else "1 core"] = cores
    limit, most = min(limits.items(), key=lambda item: item[1])
    if count > most:
        raise LaunchError(
            f"{count} processes asked for, this machine has {limit}",
            expected=f"at most {max(1, most)}",
            got=f"{count} processes",
            hint=f"--num-processes {max(1, most)}, or insist by --oversubscribe (under another"
            f" launcher: {OVERSUBSCRIBE}=1)",
        )
