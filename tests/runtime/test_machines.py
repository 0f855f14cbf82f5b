"""Two launchers, as on two machines, here on loopback: one result; and when one side dies, so does
the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore

from mega_hf import MergeResult, Recipe, merge
from mega_hf.runtime.watchdog import spans_machines
from tests.tools import soak, tiny
from tests.tools.started import LONG, assert_one_result, begin, journal, wait_for_journal

LONG_FORM = "MEGA_HF_SOAK" in os.environ
DEATHS = [(1, "worker"), (0, "all"), (1, "frozen"), (0, "worker"), (1, "all"), (0, "frozen")]
Started = list[subprocess.Popen[str]]


@pytest.fixture(scope="module")
def whole(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """The run that nothing disturbed, by one process."""
    return merge(
        Recipe.from_dict(pair.recipe(merge=LONG)), tmp_path_factory.mktemp("whole") / "out"
    )


@pytest.fixture
def command(pair: tiny.Pair, tmp_path: Path) -> list[str]:
    """The words after `mega-hf` that make the same run in a folder of its own."""
    return [
        "merge",
        str(pair.write(tmp_path, merge=LONG)),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]


def launch(
    command: list[str], folder: Path, processes: int = 2, what: Sequence[str] = ("-m", "mega_hf")
) -> Started:
    """Start a launcher for each of two machines, as the README says; what each says goes to
    FOLDER/RANK/err."""
    both, port = [], TCPStore("127.0.0.1", 0, is_master=True).port
    for rank in (0, 1):
        where = [
            "--num_machines",
            "2",
            "--num_processes",
            str(processes),
            "--machine_rank",
            str(rank),
        ]
        where += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
        words = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *where]
        words += ["--mixed_precision", "no", "--dynamo_backend", "no", *what, *command]
        (folder / str(rank)).mkdir()
        both.append(begin(words, folder / str(rank), ACCELERATE_USE_CPU="true"))
    return both


def said(folder: Path) -> str:
    """Return what both launchers and their processes said."""
    return "".join((folder / str(rank) / "err").read_text() for rank in (0, 1))


def wait(both: Started, seconds: int) -> list[int]:
    """Return the exit codes of launchers that must end in time."""
    end = time.monotonic() + seconds
    return [process.wait(timeout=max(1, end - time.monotonic())) for process in both]


def work_of(process: subprocess.Popen[str]) -> psutil.Process:
    """Return the one process that a launcher has started."""
    (worker,) = (
        child for child in psutil.Process(process.pid).children() if "--quiet" in child.cmdline()
    )
    return worker


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 4] if LONG_FORM else [4])
def test_two_launchers_give_the_file_of_one_process(
    processes: int, command, tmp_path: Path, whole: MergeResult, started: Started
) -> None:
    started += launch(command, tmp_path, processes)
    assert wait(started, 240) == [0, 0], said(tmp_path)
    assert_one_result(tmp_path, whole)
    assert MergeResult.load(tmp_path / "out").record.environment.processes == processes


@pytest.mark.long
@pytest.mark.parametrize(("machine", "what"), DEATHS if LONG_FORM else DEATHS[:3])
def test_when_one_machine_dies_the_other_ends(
    machine: int, what: str, command, tmp_path: Path, whole: MergeResult, started: Started, mega
) -> None:
    """Killed processes close their connections; one that is frozen, as by a cut cable, says nothing
    at all."""
    both = launch(command, tmp_path)
    started += both
    wait_for_journal(tmp_path, 10, both[0])
    worker = work_of(both[machine])
    victims = [psutil.Process(both[machine].pid), worker] if what == "all" else [worker]
    for victim in victims:
        victim.send_signal(signal.SIGSTOP if what == "frozen" else signal.SIGKILL)
    rest = [both[1 - machine]] if what == "frozen" else both
    assert all(code != 0 for code in wait(rest, 60)), said(tmp_path)
    soak.count()
    if what == "frozen":
        assert f"process {machine} was silent for" in said(tmp_path)
        both[machine].kill()
        worker.kill()
    assert "to resume" in said(tmp_path)
    for process in (worker, *(psutil.Process(p.pid) for p in both if psutil.pid_exists(p.pid))):
        psutil.wait_procs([process], timeout=20)
    assert 10 <= len(journal(tmp_path)) < len(journal(whole.folder.parent)), (
        "the run had ended before"
    )
    assert mega(*command).code == 0
    assert_one_result(tmp_path, whole)


@pytest.mark.long
def test_a_run_folder_that_is_not_shared_is_refused(
    command, tmp_path: Path, started: Started
) -> None:
    """Each launcher works in a folder of its own, and --out is relative."""
    words = [*command[:2], "--out", "out", "--quiet", "--set", "name=unshared"]
    script = tmp_path / "apart.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys
        import mega_hf.run.context
        from mega_hf.cli.main import main
        mega_hf.run.context._FOLDER_TIMEOUT = 2
        os.chdir(os.path.join(os.path.dirname(__file__), os.environ["RANK"]))
        sys.exit(main())
        """)
    )
    started += launch(words, tmp_path, what=[str(script)])
    assert all(code != 0 for code in wait(started, 60))
    assert "does not see the run folder" in said(tmp_path)
    assert "a folder that all machines share" in said(tmp_path)


def test_only_a_launch_that_spans_machines_is_watched() -> None:
    assert not spans_machines({}, 1)
    assert not spans_machines({"LOCAL_WORLD_SIZE": "4"}, 4)
    assert spans_machines({"LOCAL_WORLD_SIZE": "2"}, 4)
    assert spans_machines({}, 4), "started by hand: nobody sees all of them"
