"""A run in progress: stages, logging, progress bars and interruption."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mega_hf import MergeResult, Recipe, merge
from mega_hf.run.context import RunContext
from mega_hf.run.journal import NodeRecord
from tests.tools import tiny
from tests.tools.run_files import weights_of


def test_a_stage_inside_another_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # parents begin, training begins, training ends, parents end
    ticks = iter([10.0, 11.0, 15.0, 17.0])
    monkeypatch.setattr("mega_hf.run.context.time.perf_counter", lambda: next(ticks))
    run = SimpleNamespace(seconds={})
    with RunContext.time(run, "parents"), RunContext.time(run, "training"):  # type: ignore[arg-type]
        pass
    assert run.seconds == {"training": 4.0, "parents": 3.0}


# --- Called from Python, as in a notebook

_SCRIPT = """
import logging, sys
{configure}
import mega_hf
from mega_hf.run.context import _log_to_stderr
_log_to_stderr()
_log_to_stderr()
logging.getLogger("mega_hf.run.search").info("merging")
logging.getLogger("mega_hf.run.search").debug("details")
"""


@pytest.mark.parametrize(
    ("configure", "shown"),
    [
        ("", "merging\n"),
        ("logging.basicConfig(level=logging.WARNING)", ""),
        ("logging.getLogger('mega_hf').setLevel(logging.ERROR)", ""),
    ],
)
def test_the_log_is_shown_unless_the_application_has_configured_logging(
    configure: str, shown: str
) -> None:
    script = _SCRIPT.format(configure=configure)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, shown)


def test_a_merge_from_python_shows_progress_and_resumes_after_ctrl_c(
    pair: tiny.Pair,
    finished: MergeResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe, add, count = Recipe.from_dict(pair.recipe()), NodeRecord.add, iter(range(1000))

    def interrupt(*args: object, **others: object) -> None:
        if next(count) == 9:
            raise KeyboardInterrupt
        add(*args, **others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(NodeRecord, "add", interrupt)
        merge(recipe, tmp_path / "out")
    assert "search a+b" in capfd.readouterr().err
    result = merge(recipe, tmp_path / "out", progress=False)
    assert "search a+b" not in capfd.readouterr().err
    assert weights_of(result.folder) == weights_of(finished.folder)
