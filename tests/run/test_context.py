"""What a run keeps of itself while it is at work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mega_hf.run.context import RunContext


def test_a_stage_inside_another_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    # parents begin, training begins, training ends, parents end
    ticks = iter([10.0, 11.0, 15.0, 17.0])
    monkeypatch.setattr("mega_hf.run.context.time.perf_counter", lambda: next(ticks))
    run = SimpleNamespace(seconds={})
    with RunContext.time(run, "parents"), RunContext.time(run, "training"):  # type: ignore[arg-type]
        pass
    assert run.seconds == {"training": 4.0, "parents": 3.0}
