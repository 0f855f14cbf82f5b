"""A full disk at any write is an error, leaves nothing half-written, and the run resumes later."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mega_hf import MergeResult, Recipe, merge
from mega_hf.cli import compare
from mega_hf.errors import MegaError, ParentError, RunError, as_resource_error, library_errors
from mega_hf.runtime.files import write_folder
from tests.tools import soak, tiny, trainings
from tests.tools import started as runs

ROUNDS = 3 * int(os.environ.get("MEGA_HF_SOAK", "1"))


def _limited(
    command: list[str], limit: int, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that can write only files up to a size in bytes."""

    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = [*runs.MEGA, *command]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | environment
    soak.count()
    return subprocess.run(
        words, preexec_fn=limit_files, capture_output=True, text=True, env=env, timeout=120
    )


def _assert_said(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 2, done.stderr
    for part in (
        "mega-hf: error: ",
        "expected: free disk space",
        "hint:     free some space",
        "run the same command to resume",
    ):
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def whole(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """The run with enough disk space."""
    return merge(Recipe.from_dict(pair.recipe()), tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture
def command(pair: tiny.Pair, tmp_path: Path) -> list[str]:
    """The arguments of the same run in another folder."""
    return ["merge", str(pair.write(tmp_path)), "--out", str(tmp_path / "out"), "--quiet"]


# --- Whole runs


@pytest.mark.long
def test_a_run_resumes_from_any_failed_write(
    command, tmp_path: Path, whole: MergeResult, mega
) -> None:
    """Rising limits hit the recipe, the journal, the weights, the plots and the card in turn."""
    sizes = sorted({path.stat().st_size for path in whole.folder.rglob("*") if path.is_file()})
    draw = random.Random(0)
    for limit in sorted(draw.randrange(1, sizes[-1]) for _ in range(ROUNDS)):
        _assert_said(_limited(command, limit))
        assert not list((tmp_path / "out").rglob(".mega-*"))
    assert mega(*command).code == 0
    runs.assert_one_result(tmp_path, whole)


@pytest.mark.slow
def test_a_full_cache_is_not_blamed_on_the_data_set(command, tmp_path: Path) -> None:
    done = _limited(command, 2000, HF_HOME=str(tmp_path / "home"))
    _assert_said(done)
    assert str(tmp_path / "home") in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_file_system_is_an_error_and_the_run_resumes_with_space(
    pair, small: Path, whole, tmp_path, mega
) -> None:
    command = ["merge", pair.write(tmp_path), "--out", small / "out", "--quiet"]
    ballast = small / "ballast"
    for free in (0, 8, 60, 400, 1300, 2600):
        ballast.unlink(missing_ok=True)
        with pytest.raises(OSError, match="No space"), ballast.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        os.truncate(ballast, ballast.stat().st_size - 1024 * free)
        answer = mega(*command)
        soak.count()
        if answer.code == 0:
            break
        assert (
            answer.code == 2
            and "expected: free disk space" in answer.err
            and "No space left" in answer.err
        ), answer.err
        assert str(small / "out") in answer.err
        assert not list(small.rglob(".mega-*"))
    ballast.unlink()
    assert mega(*command).code == 0
    runs.assert_one_result(small, whole)


def test_a_training_resumes_after_its_state_could_not_be_written(
    pair, tmp_path: Path, mega, monkeypatch
) -> None:
    recipe = pair.write(tmp_path, **trainings.tree(pair.data))
    sync, left = os.fsync, [6]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    words = ["train", recipe, "--quiet", "--out"]
    assert mega(*words, tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = mega(*words, tmp_path / "out")
    assert answer.code == 2 and "expected: free disk space" in answer.err, answer.err
    assert not list((tmp_path / "out").rglob(".mega-*"))
    assert mega(*words, tmp_path / "out").code == 0
    assert trainings.stored(tmp_path / "out" / "parents") == trainings.stored(
        tmp_path / "whole" / "parents"
    )


# --- The answer


@pytest.mark.parametrize("words", [["merge"], ["--help"]])
def test_an_answer_that_can_not_be_written_is_an_error(
    words: list[str], finished, pair, tmp_path: Path
) -> None:
    command = [*runs.MEGA, *words]
    command += (
        [str(pair.write(tmp_path)), "--out", str(finished.folder), "--quiet"]
        if words == ["merge"]
        else []
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "mega-hf: error: standard output: can't be written\n  expected: free disk space"
    ), done.stderr
    assert "Exception" not in done.stderr
    closed = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True, env=env
    )
    assert closed.returncode == 2 and "standard output is closed" in closed.stderr
    unheard = subprocess.run(["sh", "-c", '"$@" > /dev/full 2> /dev/full', "sh", *command], env=env)
    assert unheard.returncode != 0


# --- Errors of the system, raised through libraries


def _wrapped(inner: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception as error:
            raise ValueError("a library's own words") from error
    except ValueError as error:
        return error


def test_a_full_disk_is_recognized_behind_any_exception() -> None:
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    for error in (
        OSError(errno.ENOSPC, "No space"),
        OSError(errno.EDQUOT, "Quota"),
        SafetensorError(full),
    ):
        for one in (error, _wrapped(error)):
            short = as_resource_error(one, "here/file")
            assert short is not None and short.on_one_process
            assert str(short).startswith(
                "here/file: can't be written\n  expected: free disk space\n  got:"
            )
    assert "the disk failed" in str(as_resource_error(OSError(errno.EIO, "Input/output error")))
    assert as_resource_error(OSError(errno.EACCES, "Permission denied")) is None
    assert as_resource_error(SafetensorError("a header (os error 2)")) is None
    assert as_resource_error(MegaError("ours")) is None


def test_a_lack_of_memory_is_recognized(mega, monkeypatch) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    for error in (caught.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        assert "out of memory\n  expected: free memory" in str(as_resource_error(error))
        with (
            pytest.raises(RunError, match="out of memory"),
            library_errors("can't be loaded", "a", "a model", "none"),
        ):
            raise error
    with pytest.raises(ParentError), library_errors("can't be loaded", "a", "a model", "none"):
        raise RuntimeError("a missing key")

    def fail(args: object) -> int:
        raise MemoryError

    monkeypatch.setattr(compare, "run", fail)
    answer = mega("compare", "a", "b")
    assert answer.code == 2 and "use fewer processes, or free memory" in answer.err
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        answer = mega("compare", "a", "b")
        assert answer.code == 2 and answer.err.startswith(
            f"mega-hf: process {rank}: error: out of memory\n  expected"
        )


def test_a_bug_in_one_of_several_processes_names_the_process(mega, monkeypatch, capsys) -> None:
    def fail(args: object) -> int:
        raise KeyError("ours")

    monkeypatch.setattr(compare, "run", fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(KeyError):
        mega("compare", "a", "b")
    assert capsys.readouterr().err.startswith("mega-hf: process 1: KeyError, a bug in mega_hf")


def test_a_folder_that_could_not_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_bytes(b"x")
        raise SafetensorError("I/O error: File too large (os error 27)")

    with pytest.raises(RunError, match=r"merged: can't be written[\s\S]*File too large"):
        write_folder(tmp_path / "merged", fill)
    assert _names(tmp_path) == []
