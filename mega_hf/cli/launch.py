"""Run a command in several processes, and tell the main process from the others."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def is_main_process() -> bool:
    """Return whether this process prints the answer and pushes to the Hub."""
    return os.environ.get("RANK", "0") == "0"


def launch_processes(args: argparse.Namespace, out: Path | None = None) -> int | None:
    """Run this command again in several processes, if several are wanted.

    Args:
        args: the arguments of the command.
        out: the run folder; an error is raised if another run is at work in it.

    Returns:
        the exit code of the processes; None if this process is to do the work itself.
    """
    if out is not None and "WORLD_SIZE" not in os.environ:  # processes of one run share the folder
        from mega_hf.runtime.lock import check_unlocked

        check_unlocked(out)
    from mega_hf.runtime.processes import default_processes, is_launched, launch

    count = args.num_processes or default_processes()
    if count == 1 or is_launched():
        return None
    return launch(count, args.words, args.oversubscribe)


def check_launched() -> None:
    """Raise LaunchError if another launcher started too many processes, before torch is loaded."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        from mega_hf.runtime.process_count import check_process_count, wants_cpu

        check_process_count(int(os.environ["LOCAL_WORLD_SIZE"]), uses_gpu=not wants_cpu())
