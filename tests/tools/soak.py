"""Run the tests of faults in their long form and print a table: `make soak`.

The suite runs the same tests in their short form. Here MEGA_HF_SOAK multiplies their cases, and
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
    "damaged files and recipes": "tests/hostile",
    "signals (Ctrl-C, SIGTERM)": "tests/cli/test_signals.py",
    "full disks": "tests/test_disk_full.py",
    "starts while another run is at work": "tests/runtime/test_lock.py",
    "deaths of one of two machines": "tests/runtime/test_machines.py",
}
_LOG = "MEGA_HF_SOAK_LOG"


def count(number: int = 1) -> None:
    """Report a number of cases to the soak run, if there is one."""
    if _LOG in os.environ:
        with Path(os.environ[_LOG]).open("a") as log:
            log.write(f"{number}\n")


def main() -> int:
    """Run everything, print the table, and return 1 if anything failed."""
    rows = [["tried", "cases", "failures", "minutes"]]
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
    """Kill runs at random, and return their row of the table."""
    with tempfile.TemporaryDirectory(prefix="mega_hf-soak-") as folder:
        words = [sys.executable, "-m", "tests.tools.kills", folder]
        words += ["--processes", str(processes), "--kills", str(KILLS)]
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
    """Run tests in their long form, and return their row of the table."""
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
