"""Run many commands in one other process, since most of a command's time is spent on imports.

The process has its own values of the variables that the Hugging Face libraries read when they are
imported: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CHILD = """
import io, json, os, sys, time, traceback

pause = time.sleep
time.sleep = lambda seconds: pause(min(seconds, 0.02))  # retries do not wait long here
answers, sys.stdout, sys.stderr = os.fdopen(os.dup(1), "w"), io.StringIO(), io.StringIO()
os.dup2(2, 1)  # what child processes print does not get among the answers
from mega_hf.cli.main import main

for line in sys.stdin:
    request = json.loads(line)
    os.chdir(request["folder"])
    for name, value in request["environment"].items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
    try:
        code = main(request["words"])
    except SystemExit as error:
        code = error.code
    except BaseException:
        code = -1
        traceback.print_exc()
    print(json.dumps([code, sys.stdout.getvalue(), sys.stderr.getvalue()]), file=answers, flush=True)
    for stream in (sys.stdout, sys.stderr):
        stream.seek(0)
        stream.truncate()
"""  # noqa: E501


class Answer(NamedTuple):
    """A command's exit code and output."""

    code: int
    out: str
    err: str


class Commands:
    """A process that runs `mega-hf` commands; `said` is everything that they printed."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self.folder = process, folder
        self._environment: dict[str, str | None] = {}
        self.said = ""

    def set(self, **environment: str | None) -> None:
        """Change the environment of the following commands; None removes a variable."""
        self._environment |= environment

    def __call__(self, *words: object) -> Answer:
        """Run one command in the folder."""
        request = {
            "words": [str(w) for w in words],
            "folder": str(self.folder),
            "environment": self._environment,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = Answer(*json.loads(self._process.stdout.readline()))
        assert "Traceback" not in answer.err, answer.err
        self.said += answer.out + answer.err
        return answer


@contextmanager
def commands(folder: Path, environment: Mapping[str, str]) -> Iterator[Commands]:
    """Start a process for commands in a folder; its environment is the tests' with some changes."""
    words = [sys.executable, "-c", CHILD]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, env=os.environ | environment, stdin=pipe, stdout=pipe, text=True
    ) as process:
        yield Commands(process, folder)
