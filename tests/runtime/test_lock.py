"""One run at a time in a folder, whatever ends it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from mega_hf import MergeResult, Recipe, merge
from mega_hf.errors import RunError
from mega_hf.runtime import lock
from tests.tools import soak, tiny, trainings
from tests.tools import started as runs
from tests.tools.run_files import contents

ROUNDS = 100 * int(os.environ.get("MEGA_HF_SOAK", "1"))


@pytest.fixture(scope="module")
def whole(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """The run that nothing disturbed."""
    return merge(
        Recipe.from_dict(pair.recipe(merge=runs.LONG)), tmp_path_factory.mktemp("whole") / "out"
    )


@pytest.fixture
def command(pair: tiny.Pair, tmp_path: Path) -> list[str]:
    """The words after `mega-hf` that make the same run in a folder of its own."""
    return [
        "merge",
        str(pair.write(tmp_path, merge=runs.LONG)),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]


# --- The lock alone


def test_it_is_taken_once_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    for _ in range(2):
        with lock.lock_folder(folder):
            said = rf"at work here\n.*one run[\s\S]*process {os.getpid()} [\s\S]*wait"
            with pytest.raises(RunError, match=said), lock.lock_folder(folder):
                pytest.fail("held twice")
            assert (folder / lock.NAME).exists(), "who is refused removes nothing"
        assert list(folder.iterdir()) == []


def test_it_is_asked_for_without_being_taken(tmp_path: Path) -> None:
    lock.check_unlocked(tmp_path / "none")
    lock.check_unlocked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with lock.lock_folder(tmp_path), pytest.raises(RunError, match="at work here"):
        lock.check_unlocked(tmp_path)
    (tmp_path / lock.NAME).write_text("7\n")  # a killed run's
    lock.check_unlocked(tmp_path)


def test_a_second_command_loads_nothing(mega, pair: tiny.Pair, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mega_hf.run.pipeline.merge", lambda *_, **__: pytest.fail("it was begun"))
    recipe = pair.write(tmp_path)
    with lock.lock_folder(tmp_path / "out"):
        answer = mega("merge", recipe, "--out", tmp_path / "out")
        assert answer.code == 2 and f"{tmp_path / 'out'}: another run is at work here" in answer.err


def test_an_error_lets_it_go(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lock.lock_folder(tmp_path):
        raise KeyboardInterrupt
    with lock.lock_folder(tmp_path):
        pass


def test_the_folder_may_be_removed_meanwhile(tmp_path: Path) -> None:
    with lock.lock_folder(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_of_several_at_one_moment_in_a_folder_that_is_not_there_one_wins(tmp_path: Path) -> None:
    """Each keeps it until all have tried; then the last one's removal meets the next round's
    beginning."""
    count = 4
    begin, tried = threading.Barrier(count), threading.Barrier(count)
    won: list[int] = []

    def contend() -> None:
        for number in range(ROUNDS):
            begin.wait(60)
            try:
                with lock.lock_folder(tmp_path / str(number) / "run"):
                    won.append(number)
                    tried.wait(60)
            except RunError:
                tried.wait(60)

    threads = [threading.Thread(target=contend) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == list(range(ROUNDS))
    soak.count(count * ROUNDS)


CONTEND = """
import os, sys, time
from pathlib import Path
from mega_hf.errors import RunError
from mega_hf.runtime.lock import lock_folder
folder, rounds, got = Path(sys.argv[1]), int(sys.argv[2]), 0
while got < rounds:
    try:
        with lock_folder(folder):
            inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # fails where another one is
            os.close(inside)
            os.unlink(folder / "inside")
            got += 1
    except RunError:
        time.sleep(0)
"""  # noqa: E501


def test_processes_that_take_it_in_turns_never_meet(tmp_path: Path) -> None:
    """It is removed and made again all the time: a lock on a removed file must not count."""
    words = [sys.executable, "-c", CONTEND, str(tmp_path / "run"), str(2 * ROUNDS)]
    several = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=120)[1] for process in several]
    assert [process.returncode for process in several] == [0] * 4, said
    assert list((tmp_path / "run").iterdir()) == []
    soak.count(4 * 2 * ROUNDS)


# --- Runs


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, runs.TWO])
def test_a_second_run_is_refused_until_the_first_is_killed(
    processes: int, command, tmp_path: Path, whole: MergeResult, started, mega
) -> None:
    first = runs.begin([*runs.MEGA, *command, "--num-processes", str(processes)], tmp_path)
    started.append(first)
    runs.wait_for_journal(tmp_path, 4, first)
    everyone = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for process in everyone[1:] or everyone:
        process.suspend()  # it must not end before the others have tried
    for words in (command, [*command, "--overwrite"]):
        refused = mega(*words)
        assert refused.code == 2
        for part in ("another run is at work here", "expected:", "process ", "hint:", "--out"):
            assert part in refused.err, refused.err
    assert first.poll() is None, (tmp_path / "err").read_text()
    for process in everyone:
        process.kill()
    assert not psutil.wait_procs(everyone, timeout=30)[1]
    assert (tmp_path / "out" / lock.NAME).exists(), "it had ended before it was killed"
    assert mega(*command).code == 0
    runs.assert_one_result(tmp_path, whole)


@pytest.mark.long
def test_of_two_first_runs_one_is_refused(
    command, tmp_path: Path, whole: MergeResult, started
) -> None:
    (tmp_path / "other").mkdir()
    started += [
        runs.begin([*runs.MEGA, *command], folder) for folder in (tmp_path, tmp_path / "other")
    ]
    assert sorted(process.wait(120) for process in started) == [0, 2]
    said = (tmp_path / "err").read_text() + (tmp_path / "other" / "err").read_text()
    assert "another run" in said and "Traceback" not in said, said
    runs.assert_one_result(tmp_path, whole)


def test_a_run_that_comes_second_to_a_new_folder_is_refused(
    pair: tiny.Pair, tmp_path: Path, mega, monkeypatch
) -> None:
    """The other came, and perhaps went, between this one's first look and its lock."""
    taken = tmp_path / "out"
    lock_folder = lock.lock_folder

    def late(folder: Path, *hint: str):
        if folder == taken and not taken.exists():
            taken.mkdir()
            (taken / "recipe.yaml").write_text("# Every default")
        return lock_folder(folder, *hint)

    monkeypatch.setattr("mega_hf.run.folder.lock_folder", late)
    answer = mega("merge", pair.write(tmp_path), "--out", taken, "--quiet")
    assert answer.code == 2 and "another run has started in this folder" in answer.err
    assert [path.name for path in taken.iterdir()] == ["recipe.yaml"]


def test_a_finished_run_answers_where_nothing_can_be_written(
    copied: Path, pair, tmp_path, mega, monkeypatch
) -> None:
    before, recipe = contents(copied), pair.write(tmp_path)
    with (
        monkeypatch.context() as patch,
        lock.lock_folder(copied),
    ):  # held by another: it is not asked for
        patch.setattr(os, "access", lambda path, mode: False)
        assert mega("merge", recipe, "--out", copied, "--quiet").code == 0
        assert mega("merge", recipe, "--out", copied, "--quiet", "--keep", "final").code == 0
        assert merge(Recipe.from_dict(pair.recipe()), copied).folder == copied
        refused = mega("merge", recipe, "--out", copied, "--quiet", "--overwrite")
    assert refused.code == 2 and "no permission to write" in refused.err
    assert contents(copied) == before


def test_what_a_killed_run_left_beside_its_result_is_removed(
    copied: Path, pair, tmp_path, mega
) -> None:
    for name in (lock.NAME, ".mega-result.json"):
        (copied / name).write_text("1")
    (copied / ".mega-nodes~" / "a").mkdir(parents=True)
    assert mega("merge", pair.write(tmp_path), "--out", copied, "--quiet").code == 0
    assert not list(copied.rglob(".mega-*"))


@pytest.mark.parametrize("words", [["card"], ["merge", "--keep", "final"]])
def test_what_writes_into_a_finished_run_waits_for_others(
    words, treed_copy: Path, four, pair, tmp_path, mega
) -> None:
    command = ["card", treed_copy]
    if words[0] == "merge":
        command = [
            words[0],
            pair.write(tmp_path, **four),
            "--out",
            treed_copy,
            "--quiet",
            *words[1:],
        ]
    before = contents(treed_copy)
    with lock.lock_folder(treed_copy):
        answer = mega(*command)
    assert answer.code == 2 and "another run is at work here" in answer.err
    assert contents(treed_copy) == before
    assert mega(*command).code == 0
    assert not list(treed_copy.rglob(".mega-*"))


def test_a_folder_that_is_no_run_gets_no_lock(tmp_path: Path, mega) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    folder = os.stat(tmp_path).st_mtime_ns
    assert mega("card", tmp_path).code == 2
    assert os.stat(tmp_path).st_mtime_ns == folder, "something was made in it"


# --- Trained parents


def test_one_run_at_a_time_trains_into_a_folder_and_reading_is_free(
    pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    recipe = pair.write(tmp_path, **trainings.tree(pair.data))
    kept = tmp_path / "kept"
    words = [recipe, "--parents", kept, "--quiet"]
    kept.mkdir()
    with lock.lock_folder(kept):
        refused = mega("train", *words, "--out", tmp_path / "one")
        assert refused.code == 2
        assert "another run is at work here" in refused.err and "another --parents" in refused.err
        assert trainings.names_in(kept) == {lock.NAME}
    assert mega("train", *words, "--out", tmp_path / "one").code == 0
    assert trainings.names_in(kept) == {"a", "b"}
    with lock.lock_folder(kept):
        assert mega("train", *words, "--out", tmp_path / "two").code == 0, (
            "they are there: they are only read"
        )
        (kept / "a@training").write_bytes(b"of a killed run")
        assert mega("train", *words, "--out", tmp_path / "two").code == 2
    assert mega("train", *words, "--out", tmp_path / "two").code == 0
    assert trainings.names_in(kept) == {"a", "b"}


def test_parents_that_another_run_trains_are_not_removed(
    pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    recipe, out = pair.write(tmp_path, **trainings.tree(pair.data)), tmp_path / "out"
    assert mega("train", recipe, "--out", out, "--quiet").code == 0
    before = contents(out)
    with lock.lock_folder(out / "parents"):  # by a run with --parents out/parents
        refused = mega("merge", recipe, "--out", out, "--overwrite", "--quiet")
        assert refused.code == 2 and "another run is at work here" in refused.err
    assert contents(out) == before


@pytest.mark.slow
def test_a_training_that_is_killed_frees_its_folder(
    pair: tiny.Pair, tmp_path: Path, mega, started
) -> None:
    recipe = pair.write(tmp_path, **trainings.tree(pair.data, epochs=100))
    kept = tmp_path / "kept"
    words = ["train", str(recipe), "--parents", str(kept), "--quiet", "--out"]
    first = runs.begin([*runs.MEGA, *words, str(tmp_path / "one")], tmp_path)
    started.append(first)
    while not (kept / "a@training").exists():
        assert first.poll() is None, (tmp_path / "err").read_text()
    assert mega(*words, tmp_path / "two").code == 2
    first.send_signal(signal.SIGKILL)
    first.wait()
    with lock.lock_folder(kept):
        pass
