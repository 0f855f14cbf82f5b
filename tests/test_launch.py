"""Several processes, launchers, and processes that die: one result all the same."""

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

from mega_hf import MergeResult, Recipe, merge
from tests import tiny, trainings

MEGA = [sys.executable, "-m", "mega_hf"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--num_processes", "2"]
PLAIN = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
# Long enough to be stopped in the middle, in seconds and not in minutes.
LONG = tiny.MERGE | {"generations": 40}
EVALUATIONS = 6 + 39 * 5


@pytest.fixture(scope="module")
def whole(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """The run that nothing disturbed, by one process."""
    return merge(Recipe.from_dict(pair.recipe(merge=LONG)), tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture
def command(pair: tiny.Pair, tmp_path: Path) -> list[str]:
    """The words after `mega-hf` that make the same run in a folder of its own."""
    return ["merge", str(pair.write(tmp_path, merge=LONG)), "--out", str(tmp_path / "out"), "--quiet"]


def journal(folder: Path) -> list[bytes]:
    file = folder / "out" / "journal.jsonl"
    return file.read_bytes().splitlines(keepends=True) if file.exists() else []


def begin(words: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, so that a signal meets it as Ctrl-C in a terminal would."""
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
    """Processes of this test; whatever is left of them at its end is stopped."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_journal(folder: Path, lines: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while len(journal(folder)) < lines:
        assert process.poll() is None, (folder / "err").read_text()
        assert time.monotonic() < end, "nothing was evaluated"
        time.sleep(0.002)


def assert_one_result(folder: Path, whole: MergeResult) -> None:
    result = MergeResult.load(folder / "out")
    assert result.record["digests"]["file"] == whole.record["digests"]["file"]
    assert result.record["digests"]["weights"] == whole.record["digests"]["weights"]
    assert result.record["models"] == whole.record["models"]
    measured = [line for line in journal(folder) if b'"fitness"' in line]
    assert len(measured) == EVALUATIONS, "individuals were measured twice or not at all"
    assert not list((folder / "out").glob(".mega-*"))


def test_the_winner_is_a_child(whole: MergeResult) -> None:
    """Else equal digests would say nothing about breeding."""
    assert whole.record["search"]["generation"] > 1


def test_two_processes_give_the_file_of_one(command, tmp_path: Path, whole: MergeResult) -> None:
    done = subprocess.run([*MEGA, *command, "--num-processes", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("McNemar") == 1, "each process speaks"
    assert_one_result(tmp_path, whole)
    assert MergeResult.load(tmp_path / "out").record["environment"]["processes"] == 2


def test_a_process_that_dies_ends_the_run_and_a_launcher_resumes_it(
    command, tmp_path: Path, whole: MergeResult, started
) -> None:
    process = begin([*MEGA, *command, "--num-processes", "2"], tmp_path)
    started.append(process)
    wait_for_journal(tmp_path, 10, process)
    workers = [child for child in psutil.Process(process.pid).children() if "--quiet" in child.cmdline()]
    assert len(workers) == 2, workers
    workers[1].kill()
    assert process.wait(timeout=90) not in (0, None), "a dead process went unnoticed"
    kept = journal(tmp_path)
    assert 10 <= len(kept) < EVALUATIONS, "the run had ended before it was stopped"
    words = [*LAUNCH, *PLAIN, "--multi_gpu", "-m", "mega_hf", *command]
    done = subprocess.run(words, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert journal(tmp_path)[: len(kept) - 1] == kept[:-1], "what was known was measured again"
    assert_one_result(tmp_path, whole)
    assert MergeResult.load(tmp_path / "out").record["environment"]["processes"] == 2


def test_workers_do_not_outlive_a_killed_launcher(command, tmp_path: Path, whole: MergeResult, started, mega) -> None:
    """They would go on writing beside the run that resumes."""
    process = begin([*MEGA, *command, "--num-processes", "2"], tmp_path)
    started.append(process)
    wait_for_journal(tmp_path, 10, process)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert mega(*command).code == 0
    assert_one_result(tmp_path, whole)


def test_what_one_process_alone_meets_is_said_in_full(pair: tiny.Pair, tmp_path: Path) -> None:
    parents = {"a": {"seed": 1}, "b": {"seed": 2, "learning_rate": 100.0, "optimizer": "sgd"}}
    recipe = pair.write(tmp_path, **trainings.tree(pair.data, parents, epochs=20))
    words = [*MEGA, "train", str(recipe), "--out", str(tmp_path / "out"), "--quiet", "--num-processes", "2"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    for part in ("process 1: error: the training of b diverged", "a finite loss", "a smaller learning_rate"):
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_leaves_a_run_that_resumes(
    processes: int, command, tmp_path: Path, whole: MergeResult, started, mega
) -> None:
    process = begin([*MEGA, *command, "--num-processes", str(processes)], tmp_path)
    started.append(process)
    wait_for_journal(tmp_path, 10, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=90) == 130, (tmp_path / "err").read_text()
    said = (tmp_path / "err").read_text()
    assert "the same command" in said
    assert "Traceback" not in said, said
    kept = journal(tmp_path)
    assert 10 <= len(kept) < EVALUATIONS
    assert mega(*command).code == 0
    assert journal(tmp_path)[: len(kept) - 1] == kept[:-1]
    assert_one_result(tmp_path, whole)


def test_a_killed_run_resumes(command, tmp_path: Path, whole: MergeResult, started, mega) -> None:
    process = begin([*MEGA, *command], tmp_path)
    started.append(process)
    wait_for_journal(tmp_path, 10, process)
    process.kill()
    process.wait()
    kept = journal(tmp_path)
    assert 10 <= len(kept) < EVALUATIONS, "the run had ended before it was killed"
    assert mega(*command).code == 0
    assert journal(tmp_path)[: len(kept) - 1] == kept[:-1]
    assert_one_result(tmp_path, whole)


def test_a_launch_that_silently_is_one_process_is_refused(command, tmp_path: Path) -> None:
    words = [*LAUNCH, *PLAIN, "--cpu", "--num_cpu_threads_per_process", "1", "-m", "mega_hf", *command]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu" in done.stderr
    assert "--num-processes" in done.stderr
    assert not (tmp_path / "out").exists()
