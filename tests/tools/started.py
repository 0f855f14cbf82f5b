"""Start commands as separate processes, to be interrupted or killed by a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mega_hf import MergeResult
from tests.tools import tiny

MEGA = [sys.executable, "-m", "mega_hf"]
# Long enough to be interrupted in the middle, but seconds long.
LONG = tiny.MERGE | {"generations": 40}
TWO = pytest.param(2, marks=pytest.mark.long)  # processes


def journal(folder: Path) -> list[bytes]:
    """Return the lines of the journal of the run in FOLDER/out."""
    file = folder / "out" / "journal.jsonl"
    return file.read_bytes().splitlines(keepends=True) if file.exists() else []


def measured(folder: Path) -> list[bytes]:
    """Return the journal's lines with a fitness."""
    return [line for line in journal(folder) if b'"fitness"' in line]


def merge_in_two(recipe: Path, out: Path) -> None:
    """Merge in two processes, and check that the command succeeds."""
    words = ["merge", str(recipe), "--out", str(out), "--quiet", "--num-processes", "2"]
    done = subprocess.run([*MEGA, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def begin(words: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a new process group, which gets signals as from Ctrl-C in a terminal."""
    with (folder / "err").open("w") as err:
        return subprocess.Popen(
            words,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=err,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of this test; those that still run at its end are killed."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_journal(folder: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """Wait until the journal of the run in FOLDER/out has some number of lines."""
    end = time.monotonic() + 120
    while len(journal(folder)) < lines:
        assert process.poll() is None, (folder / "err").read_text()
        assert time.monotonic() < end, "nothing was evaluated"
        time.sleep(0.002)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that a launcher has started for the run."""
    return [
        child for child in psutil.Process(process.pid).children() if "--quiet" in child.cmdline()
    ]


def assert_one_result(folder: Path, whole: MergeResult) -> None:
    """Assert that the run in FOLDER/out is finished, with the result of the undisturbed run."""
    result = MergeResult.load(folder / "out")
    assert result.record.digests.file == whole.record.digests.file
    assert result.record.digests.weights == whole.record.digests.weights
    assert result.record.models == whole.record.models
    assert len(measured(folder)) == len(measured(whole.folder.parent)), (
        "measured twice or not at all"
    )
    assert not list((folder / "out").rglob(".mega-*"))
