"""Several processes, launchers, and processes that die: one result all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from mega_hf import MergeResult, Recipe, merge
from tests.tools import started as runs
from tests.tools import tiny, trainings
from tests.tools.started import (
    LONG,
    MEGA,
    assert_one_result,
    begin,
    journal,
    measured,
    wait_for_journal,
    workers_of,
)

LAUNCH = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--main_process_port",
    "0",
    "--num_processes",
    "2",
]
PLAIN = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
started = runs.started


# six batches a model: losers are known before they are measured to the end
SMALL = {"batch_size": 10}


@pytest.fixture(scope="module")
def whole(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """The run that nothing disturbed, by one process."""
    return merge(
        Recipe.from_dict(pair.recipe(merge=LONG, evaluation=SMALL)),
        tmp_path_factory.mktemp("whole") / "out",
    )


@pytest.fixture
def command(pair: tiny.Pair, tmp_path: Path) -> list[str]:
    """The words after `mega-hf` that make the same run in a folder of its own."""
    return [
        "merge",
        str(pair.write(tmp_path, merge=LONG, evaluation=SMALL)),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]


def test_the_winner_is_a_child(whole: MergeResult) -> None:
    """Else equal digests would say nothing about breeding."""
    assert whole.record.search.generation > 1


def test_two_processes_give_the_file_of_one(command, tmp_path: Path, whole: MergeResult) -> None:
    done = subprocess.run([*MEGA, *command, "--num-processes", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("McNemar") == 1, "each process speaks"
    assert_one_result(tmp_path, whole)
    assert MergeResult.load(tmp_path / "out").record.environment.processes == 2


@pytest.mark.long
def test_four_processes_give_the_file_of_one(command, tmp_path: Path, whole: MergeResult) -> None:
    """With five children a generation, four processes share the last one batch by batch."""
    words = [*LAUNCH[:-1], "4", *PLAIN, "--multi_gpu", "-m", "mega_hf", *command]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "MEGA_HF_OVERSUBSCRIBE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_one_result(tmp_path, whole)
    assert MergeResult.load(tmp_path / "out").record.environment.processes == 4


BROKEN = """
import os, sys
import mega_hf.search.evolve as evolve
import mega_hf.run.record as report
from mega_hf.cli.main import main

blend, versions = evolve.blend, report.versions
if os.environ["RANK"] == "1" and sys.argv.pop(1) == "computes":
    evolve.blend = lambda a, b, beta, out: blend(a, b, beta, out).mul_(1.0000001)
elif os.environ["RANK"] == "1":
    report.versions = lambda: versions() | {"torch": "0.1"}
else:
    sys.argv.pop(1)
sys.exit(main())
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "where", "said"),
    [
        ("computes", "generation 2", []),
        ("installed", "versions", ["'torch': '0.1'", f"'torch': '{version('torch')}'"]),
    ],
)
def test_a_process_that_computes_otherwise_stops_the_run(
    fault: str, where: str, said: list[str], command, tmp_path: Path, whole: MergeResult, mega
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    words = [*LAUNCH, *PLAIN, "--multi_gpu", str(tmp_path / "broken.py"), fault, *command]
    done = subprocess.run(
        words, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True
    )
    assert done.returncode != 0
    for part in (
        f"{where}: process 1 got a different result from process 0",
        "expected:",
        "got:",
        "hint:",
        *said,
    ):
        assert part in done.stderr, done.stderr
    assert b'"generation": 2' not in b"".join(journal(tmp_path)), (
        "nothing that was bred otherwise was used"
    )
    assert mega(*command).code == 0
    assert_one_result(tmp_path, whole)


@pytest.mark.long
def test_a_process_that_dies_ends_the_run_and_a_launcher_resumes_it(
    command, tmp_path: Path, whole: MergeResult, started
) -> None:
    process = begin([*MEGA, *command, "--num-processes", "2"], tmp_path)
    started.append(process)
    wait_for_journal(tmp_path, 10, process)
    workers = workers_of(process)
    assert len(workers) == 2, workers
    workers[1].kill()
    assert process.wait(timeout=90) not in (0, None), "a dead process went unnoticed"
    kept = journal(tmp_path)
    assert 10 <= len(kept) < len(measured(whole.folder.parent)), (
        "the run had ended before it was stopped"
    )
    words = [*LAUNCH, *PLAIN, "--multi_gpu", "-m", "mega_hf", *command]
    done = subprocess.run(
        words, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert journal(tmp_path)[: len(kept) - 1] == kept[:-1], "what was known was measured again"
    assert_one_result(tmp_path, whole)
    assert MergeResult.load(tmp_path / "out").record.environment.processes == 2


@pytest.mark.long
def test_workers_do_not_outlive_a_killed_launcher(
    command, tmp_path: Path, whole: MergeResult, started, mega
) -> None:
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


@pytest.mark.long
def test_what_one_process_alone_meets_is_said_in_full(pair: tiny.Pair, tmp_path: Path) -> None:
    parents = {"a": {"seed": 1}, "b": {"seed": 2, "learning_rate": 100.0, "optimizer": "sgd"}}
    recipe = pair.write(tmp_path, **trainings.tree(pair.data, parents, epochs=20))
    words = [
        *MEGA,
        "train",
        str(recipe),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
        "--num-processes",
        "2",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    for part in (
        "process 1: error: the training of b diverged",
        "a finite loss",
        "a smaller learning_rate",
    ):
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_killed_run_resumes(command, tmp_path: Path, whole: MergeResult, started, mega) -> None:
    process = begin([*MEGA, *command], tmp_path)
    started.append(process)
    wait_for_journal(tmp_path, 10, process)
    process.kill()
    process.wait()
    kept = journal(tmp_path)
    assert 10 <= len(kept) < len(measured(whole.folder.parent)), (
        "the run had ended before it was killed"
    )
    assert mega(*command).code == 0
    assert journal(tmp_path)[: len(kept) - 1] == kept[:-1]
    assert_one_result(tmp_path, whole)


def test_a_launch_that_silently_is_one_process_is_refused(command, tmp_path: Path) -> None:
    words = [
        *LAUNCH,
        *PLAIN,
        "--cpu",
        "--num_cpu_threads_per_process",
        "1",
        "-m",
        "mega_hf",
        *command,
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode != 0
    assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu" in done.stderr
    assert "--num-processes" in done.stderr
    assert not (tmp_path / "out").exists()
