"""Ctrl-C and SIGTERM at any moment: the command ends in seconds, says how it goes on, and goes
on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from mega_hf import MergeResult, Recipe, merge
from mega_hf.cli.signals import handle_signals
from tests.tools import soak, tiny
from tests.tools import started as runs

TIMES = int(os.environ.get("MEGA_HF_SOAK", "1"))
MERGE = tiny.MERGE | {"generations": 20}
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
started = runs.started


EARLY = """
import os, runpy, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mega_hf.cli.main":
            os.kill(os.getpid(), int(sys.argv[1]))

sys.meta_path.insert(0, Finder())
runpy.run_module("mega_hf", run_name="__main__")
"""


@pytest.mark.parametrize("number", CODES)
def test_before_anything_is_loaded_too(number: signal.Signals) -> None:
    words = [sys.executable, "-c", EARLY, str(int(number))]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=_hear_interrupts)
    assert done.returncode == CODES[number], done.stderr
    assert (
        done.stderr
        == f"mega-hf: {WORDS[number]}: nothing was begun; the same command goes on from there\n"
    )


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# --- Real runs


@pytest.fixture(scope="module")
def whole(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """The run that nothing disturbed."""
    return merge(
        Recipe.from_dict(pair.recipe(merge=MERGE)), tmp_path_factory.mktemp("whole") / "out"
    )


def _interrupt(
    process: subprocess.Popen[str], number: signal.Signals, at_all: bool, folder: Path
) -> None:
    """Send a signal to a command, or to its whole process group, and see how it ends."""
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    (os.killpg if at_all else os.kill)(process.pid, number)
    began = time.monotonic()
    code = process.wait(30)
    said = (folder / "err").read_text()
    ended = time.monotonic() - began
    soak.count()
    assert ended < 12, said
    is_late = (folder / "out" / "result.json").exists() and ended < 3  # all was done
    assert code == CODES[number] or (code == 0 and is_late), said
    assert said.count("the same command goes on") == (code > 0) and "Traceback" not in said, said
    assert code == 0 or f"mega-hf: {WORDS[number]}: " in said
    assert not psutil.wait_procs(everyone, timeout=20)[1], "someone is left"


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_goes_on_from_any_moment(
    processes: int, pair, tmp_path, whole: MergeResult, started, mega
) -> None:
    command = [
        "merge",
        str(pair.write(tmp_path, merge=MERGE)),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    draw = random.Random(processes)
    for number, at_all in [(signal.SIGINT, True), (signal.SIGTERM, False)] * (
        TIMES + processes - 1
    ):
        process = runs.begin([*runs.MEGA, *command, "--num-processes", str(processes)], tmp_path)
        started.append(process)
        time.sleep(0.5 + draw.random() * 6 * processes)
        if process.poll() is None:
            _interrupt(process, number, at_all != draw.getrandbits(1), tmp_path)
    assert mega(*command).code == 0
    runs.assert_one_result(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("processes", [1, runs.TWO])
def test_a_signal_in_the_search_keeps_what_was_measured(
    processes: int, number: signal.Signals, pair, tmp_path: Path, whole: MergeResult, started, mega
) -> None:
    command = [
        "merge",
        str(pair.write(tmp_path, merge=MERGE)),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    process = runs.begin([*runs.MEGA, *command, "--num-processes", str(processes)], tmp_path)
    started.append(process)
    runs.wait_for_journal(tmp_path, 6, process)
    _interrupt(process, number, number == signal.SIGINT, tmp_path)
    assert " signal" not in (tmp_path / "err").read_text(), "the launcher's own warnings"
    kept = runs.journal(tmp_path)
    assert 6 <= len(kept) < len(runs.journal(whole.folder.parent)), "it had ended before"
    assert mega(*command).code == 0
    assert runs.journal(tmp_path)[: len(kept) - 1] == kept[:-1]
    runs.assert_one_result(tmp_path, whole)


# --- Commands that hang on


def _begin(body: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command that says `ready` and does something; it has a second to end."""
    program = f"""
        import hashlib, sys, time
        from mega_hf.cli import main as cli
        from mega_hf.cli import signals as interruption

        interruption.GRACE = 1.0

        def command(args, words):
            print("ready", flush=True)
            {textwrap.indent(textwrap.dedent(body), " " * 12).strip()}

        cli.COMMANDS["compare"] = command
        sys.argv = ["mega-hf", "compare", "a", "b"]
        cli.program()
    """
    words = [sys.executable, "-c", textwrap.dedent(program)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        words, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n", (
        process.communicate()
    )
    return process


def _end(process: subprocess.Popen[str], number: signal.Signals, times: int = 1) -> str:
    """Send a signal, several times perhaps, and return what was said."""
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.2)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == CODES[number], said
    return said


STUBBORN = {
    "waits": "time.sleep(60)",
    "swallows": (
        """
        for _ in range(60):
            try:
                time.sleep(1)
            except BaseException:
                print("swallowed")
        """
    ),
    "in C": "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    "turns it into another": (
        """
        try:
            time.sleep(60)
        except BaseException as error:
            raise ImportError("this library is not there") from error
        """
    ),
    "ends slowly": (
        """
        try:
            time.sleep(60)
        finally:
            time.sleep(0.7)
        """
    ),
}


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("body", STUBBORN.values(), ids=STUBBORN)
def test_whatever_a_command_is_at_it_ends_and_says_so_once(
    body: str, number: signal.Signals
) -> None:
    said = _end(_begin(body), number, times=3)
    assert (
        said
        == f"mega-hf: {WORDS[number]}: what was done is kept; the same command goes on from there\n"
    )


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("seconds", [0.5, 60])
def test_an_import_is_not_torn_apart(
    seconds: float, number: signal.Signals, tmp_path: Path
) -> None:
    """What raises while torch.distributed is imported ends in abort(): a signal waits, but not for
    long."""
    slow = f"""
        import os, time
        try:
            print("importing", flush=True)
            time.sleep({seconds})
        except BaseException:
            os.abort()
        """
    (tmp_path / "slow.py").write_text(textwrap.dedent(slow))
    body = f"""
        interruption.GRACE = 60
        sys.path.append({str(tmp_path)!r})
        import slow
        time.sleep(60)
        """
    process = _begin(body)
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    assert _end(process, number, times=2).count("the same command goes on") == 1


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_launched_process_ends_by_sigterm_without_a_word(rank: str) -> None:
    process = _begin("time.sleep(60)", WORLD_SIZE="2", RANK=rank)
    process.terminate()
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_main_one_speaks(rank: str) -> None:
    said = _end(_begin("time.sleep(60)", WORLD_SIZE="2", RANK=rank), signal.SIGINT)
    assert said.count("interrupted") == (rank == "0")


def test_where_our_launcher_speaks_its_processes_are_silent() -> None:
    process = _begin("time.sleep(60)", WORLD_SIZE="2", RANK="0", MEGA_HF_LAUNCHER=str(os.getpid()))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == ""


def test_what_the_caller_ignores_stays_ignored() -> None:
    """A shell script's background jobs don't get the Ctrl-C that is meant for another."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = _begin("time.sleep(0.5)\nreturn 0")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == "" and process.returncode == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_forked_child_that_is_ended_ends_nobody_else() -> None:
    body = """
        import os, signal
        child = os.fork()
        if child == 0:
            time.sleep(60)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(1.5)
        return 0
        """
    process = _begin(body)
    assert process.communicate(timeout=20)[1] == "" and process.returncode == 0


# --- The handlers


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in CODES]
    threads = threading.active_count()
    with handle_signals():
        assert [signal.getsignal(number) for number in CODES] != before
    assert [signal.getsignal(number) for number in CODES] == before
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1


def test_a_command_may_run_beside_the_main_thread() -> None:
    """Handlers can't be installed there."""
    answers: list[str] = []

    def run() -> None:
        with handle_signals():
            answers.append("ran")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == ["ran"]
