"""Run a command in several processes, and tell the main process from the others."""

from __future__ import annotations

import argparse
import os


def is_main_process() -> bool:
    """Return whether this process prints the answer and pushes to the Hub."""
    return os.environ.get("RANK", "0") == "0"


def launch_processes(args: argparse.Namespace) -> int | None:
    """Run this command again in several processes, if several are wanted.

    Returns:
        their exit code; None if this process is to do the work itself.
    """
    from mega_hf.runtime.processes import default_processes, is_launched, launch

    count = args.num_processes or default_processes()
    return launch(count, args.words) if count > 1 and not is_launched() else None
