"""Runs that are killed at random: the short form of `make soak`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.parametrize(("processes", "kills"), [(1, 10), (2, 4)])
def test_a_run_that_is_killed_anywhere_gives_the_same_result(
    processes: int, kills: int, tmp_path: Path
) -> None:
    words = ["--processes", str(processes), "--kills", str(kills), "--seed", "46"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.kills", str(tmp_path / "kills"), *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tally = json.loads(done.stdout.splitlines()[-1])
    assert sum(tally.pop("kills").values()) == kills
    assert tally.pop("runs") > 0 and tally.pop("seconds") >= 0
    assert tally == {"other results": 0, "measured again": 0, "temporary files": 0}
