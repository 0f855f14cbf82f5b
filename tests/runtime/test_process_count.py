"""More processes than this machine has cores or memory for are an error, unless a flag insists."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mega_hf.errors import LaunchError
from mega_hf.runtime.process_count import OVERSUBSCRIBE, check_process_count
from tests.tools import tiny


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 2 cores and 8 GiB of memory, of which 4 are free."""
    memory = SimpleNamespace(total=8 * 2**30, available=4 * 2**30)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.parametrize(
    ("count", "uses_gpu", "message"),
    [
        (3, False, "3 processes asked for, this machine has 2 cores"),
        (99, False, "99 processes asked for, this machine has 2 cores"),
        (9, True, "9 processes asked for, this machine has 4.0 GiB of free memory"),
    ],
)
def test_both_numbers_are_named(count: int, uses_gpu: bool, message: str) -> None:
    with pytest.raises(LaunchError, match=message) as caught:
        check_process_count(count, uses_gpu)
    assert "--oversubscribe" in str(caught.value) and OVERSUBSCRIBE in str(caught.value)


@pytest.mark.parametrize(("count", "uses_gpu"), [(1, False), (2, False), (8, True)])
def test_a_process_for_each_core_is_fine(count: int, uses_gpu: bool) -> None:
    check_process_count(count, uses_gpu)


def test_the_user_may_insist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERSUBSCRIBE, "1")
    check_process_count(99, False)


def test_processes_that_run_already_have_used_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "16")
    check_process_count(16, True)
    with pytest.raises(LaunchError, match=r"this machine has 8\.0 GiB of memory"):
        check_process_count(17, True)


def test_the_command_starts_nothing(pair: tiny.Pair, tmp_path: Path, mega: Any) -> None:
    answer = mega("merge", pair.write(tmp_path), "--num-processes", "99", "--out", tmp_path / "out")
    assert answer.code == 2
    assert "99 processes asked for, this machine has 2 cores" in answer.err
    assert not (tmp_path / "out").exists()


def test_another_launcher_with_too_many_is_an_error(
    pair: tiny.Pair, tmp_path: Path, mega: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"WORLD_SIZE": "99", "LOCAL_WORLD_SIZE": "99", "ACCELERATE_USE_CPU": "true"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("mega_hf.recipe.schema.Recipe.from_yaml", lambda *_: pytest.fail("late"))
    answer = mega("merge", pair.write(tmp_path), "--out", tmp_path / "out")
    assert answer.code == 2
    assert "99 processes asked for, this machine has 2 cores" in answer.err
