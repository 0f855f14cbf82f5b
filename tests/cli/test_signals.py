"""Ctrl-C and SIGTERM end a command within seconds, with a hint; the same command resumes."""

from __future__ import annotations

import json
import os
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
from tests.tools import soak, tiny, trainings
from tests.tools import started as runs

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
MESSAGES = {
    signal.SIGINT: "mega-hf: interrupted; run the same command to resume\n",
    signal.SIGTERM: "mega-hf: terminated; run the same command to resume\n",
}
MERGE = tiny.MERGE | {"generations": 20}
started = runs.started


# --- Real runs


@pytest.fixture(scope="module")
def recipe(pair: tiny.Pair) -> dict[str, object]:
    """A recipe that trains its parents, and then searches for a while."""
    tree = trainings.tree(pair.data, {"a": {"seed": 1}, "b": {"seed": 2}}, epochs=4)
    return tree | {"merge": MERGE}


@pytest.fixture(scope="module")
def whole(recipe: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """The run that nothing disturbed."""
    return merge(Recipe.from_dict(recipe), tmp_path_factory.mktemp("whole") / "out")


MOMENTS = {
    "training": lambda out: any((out / "parents").glob("*@training")),
    "evaluation": lambda out: len(runs.measured(out.parent)) >= 6,
    "report": lambda out: (out / "merged").exists(),
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, runs.TWO])
def test_a_run_resumes_from_any_stage(
    processes: int, recipe, tmp_path: Path, whole: MergeResult, started, mega
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    words = ["merge", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), "--quiet"]
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGINT]
    for number, (moment, has_come) in zip(numbers, MOMENTS.items(), strict=True):
        process = runs.begin([*runs.MEGA, *words, "--num-processes", str(processes)], tmp_path)
        started.append(process)
        end = time.monotonic() + 120
        while not has_come(tmp_path / "out"):
            assert process.poll() is None, (tmp_path / "err").read_text()
            assert time.monotonic() < end, f"the run never came to its {moment}"
            time.sleep(0.002)
        kept = runs.journal(tmp_path)
        _interrupt(process, number, tmp_path)
        assert runs.journal(tmp_path)[: len(kept) - 1] == kept[:-1]
    assert mega(*words).code == 0
    runs.assert_one_result(tmp_path, whole)


def _interrupt(process: subprocess.Popen[str], number: signal.Signals, folder: Path) -> None:
    """Send a signal to a command, as a terminal or a service manager does, and check its end."""
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    began = time.monotonic()
    code = process.wait(30)
    assert time.monotonic() - began < 10
    soak.count()
    err = (folder / "err").read_text()
    if code == 0:
        assert (folder / "out" / "result.json").exists(), "it ended without a result"
        return  # the signal came when all was done
    assert code == CODES[number], err
    assert err.count(MESSAGES[number]) == 1 and "Traceback" not in err, err
    assert not psutil.wait_procs(everyone, timeout=20)[1], "a process is left"


# --- Commands that do not end by themselves


def _begin(body: str, **environment: str) -> subprocess.Popen[str]:
    """Start a command that prints `ready` and runs some code; it has a second to unwind."""
    program = f"""
        import sys, time
        from mega_hf.cli import compare, signals
        from mega_hf.__main__ import run

        signals.GRACE = 1

        def command(args):
            print("ready", flush=True)
            {textwrap.indent(textwrap.dedent(body), " " * 12).strip()}

        compare.run = command
        sys.argv = ["mega-hf", "compare", "a", "b"]
        run()
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
    """Send a signal, several times perhaps, and return what the command wrote to stderr."""
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.2)
    err = process.communicate(timeout=20)[1]
    assert process.returncode == CODES[number], err
    return err


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
    "raises another exception": (
        """
        try:
            time.sleep(60)
        except BaseException as error:
            raise ImportError("no such library") from error
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
    "in a finalizer": (
        """
        class Last:
            def __del__(self):
                time.sleep(60)
        last = Last()
        del last
        time.sleep(60)
        """
    ),
}


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("body", STUBBORN.values(), ids=STUBBORN)
def test_a_command_ends_and_says_how_to_resume_once(body: str, number: signal.Signals) -> None:
    err = _end(_begin(body), number, times=3)
    assert err.endswith(MESSAGES[number]) and err.count("resume") == 1
    assert "Traceback" not in err or "Exception ignored" in err  # of the finalizer


# --- Several processes


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_launched_process_ends_by_sigterm_without_a_message(rank: str) -> None:
    process = _begin("time.sleep(60)", WORLD_SIZE="2", RANK=rank)
    process.terminate()
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_main_one_speaks(rank: str) -> None:
    err = _end(_begin("time.sleep(60)", WORLD_SIZE="2", RANK=rank), signal.SIGINT)
    assert err == (MESSAGES[signal.SIGINT] if rank == "0" else "")


def test_if_our_launcher_speaks_its_processes_are_silent() -> None:
    process = _begin("time.sleep(60)", WORLD_SIZE="2", RANK="0", MEGA_HF_LAUNCHER=str(os.getpid()))
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == ""


# --- The handlers


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    """Background jobs of a shell script ignore the Ctrl-C that is meant for another command."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = _begin("time.sleep(0.5)\nreturn 0")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == "" and process.returncode == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_handlers_are_restored() -> None:
    numbers = (*CODES, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with handle_signals():
        assert all(signal.getsignal(n) != b for n, b in zip(numbers, before, strict=True))
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_command_may_run_outside_the_main_thread() -> None:
    answers: list[str] = []

    def run() -> None:
        with handle_signals():
            answers.append("ran")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == ["ran"]
