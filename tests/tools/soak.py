"""The long form of the tests of faults: `make soak` runs it and prints a table of what was tried.

The same tests run in their short form in the suite. Here MEGA_HF_SOAK multiplies their cases, and
runs are killed fifty times with one process and fifty times with two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

KILLS = 50
TESTS = {
    "hostile files and recipes": "tests/hostile",
    "signals (Ctrl-C, SIGTERM)": "tests/test_interruption.py",
    "disks that are full": "tests/test_disk_full.py",
    "starts while another run is at work": "tests/test_lock.py",
    "deaths of one of two machines": "tests/test_machines.py",
}
_LOG = "MEGA_HF_SOAK_LOG"


def count(number: int = 1) -> None:
    """Say that so many cases were tried, to a soak that listens."""
    if _LOG in os.environ:
        with Path(os.environ[_LOG]).open("a") as log:
            log.write(f"{number}\n")


def main() -> int:
    """Run everything, print the table, and return 1 where anything did not come out as it must."""
    rows = [["tried", "cases", "not as they must be", "minutes"]]
    for processes in (1, 2):
        rows.append(_kill(processes))
        print(rows[-1], file=sys.stderr, flush=True)
    for what, tests in TESTS.items():
        rows.append(_test(what, tests, os.environ.get("MEGA_HF_SOAK", "5")))
        print(rows[-1], file=sys.stderr, flush=True)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    print("\n".join([lines[0], "|---|---|---|---|", *lines[1:]]))
    return int(any(row[2] != "0" for row in rows[1:]))


def _kill(processes: int) -> list[str]:
    """Kill runs, and return their row."""
    with tempfile.TemporaryDirectory(prefix="mega_hf-soak-") as folder:
        words = [
            sys.executable,
            "-m",
            "tests.tools.kills",
            folder,
            "--processes",
            str(processes),
            "--kills",
            str(KILLS),
        ]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return [f"kill -9, {processes} processes", "?", "the harness failed", ""]
    tally: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    kills = Counter(tally["kills"])
    stages = ", ".join(
        f"{kills[stage]} in the {stage}" for stage in ("start", "training", "search", "report")
    )
    whom = "a run" if processes == 1 else "one of two processes"
    what = f"`kill -9` of {whom} ({stages}), resumed until {tally['runs']} runs were done"
    wrong = sum(tally[key] for key in ("other results", "measured again", "temporary files"))
    return [what, str(kills.total()), str(wrong), f"{tally['seconds'] / 60:.0f}"]


def _test(what: str, tests: str, times: str) -> list[str]:
    """Run tests in their long form, and return their row."""
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(prefix="mega_hf-soak-") as log:
        environment = os.environ | {"MEGA_HF_SOAK": times, _LOG: log.name}
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-m", "not real", tests]
        done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True)
        cases = sum(map(int, Path(log.name).read_text().split()))
    if done.returncode:
        print(done.stdout, file=sys.stderr)
    failed = done.stdout.count("\nFAILED ") + done.stdout.count("\nERROR ")
    return [
        what,
        f"{cases:,}",
        str(failed or done.returncode),
        f"{(time.monotonic() - began) / 60:.0f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
