"""What a run keeps of itself while it is at work."""

from __future__ import annotations

import time
from types import SimpleNamespace

from mega_hf.run import Run


def test_a_stage_inside_another_is_not_counted_twice() -> None:
    run = SimpleNamespace(seconds={})
    began = time.perf_counter()
    with Run.time(run, "parents"):  # type: ignore[arg-type]
        time.sleep(0.01)
        with Run.time(run, "training"):  # type: ignore[arg-type]
            time.sleep(0.2)
    whole = time.perf_counter() - began
    assert run.seconds["training"] >= 0.2
    assert abs(sum(run.seconds.values()) - whole) < 0.01 and run.seconds["parents"] < run.seconds["training"]
