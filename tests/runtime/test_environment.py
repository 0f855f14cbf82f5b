"""What the command does to its process before any library is loaded."""

import gc
import os
import subprocess
import sys
import time

import pytest

from mega_hf.runtime import environment
from mega_hf.runtime.environment import let_threads_sleep, relax_gc, theirs


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(environment, "_ours", [])
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.mark.parametrize("busy", [True, False])
def test_another_process_gets_the_environment_that_the_user_gave_us(busy, monkeypatch):
    before = dict(os.environ)
    monkeypatch.setattr(environment, "_is_busy", lambda: busy)
    let_threads_sleep()
    assert (os.environ.get("OMP_WAIT_POLICY"), os.environ["GOMP_SPINCOUNT"]) == (
        ("PASSIVE", "10000") if busy else (None, "300000")
    )
    assert theirs() == before


@pytest.mark.parametrize(
    ("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")]
)
def test_what_the_user_or_a_process_before_says_stays(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    let_threads_sleep()
    assert theirs() == dict(os.environ) == before


def test_a_machine_is_busy_when_another_process_is_at_work():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(0.5)
        busy = environment._is_busy()
        other.kill()
    assert busy


def test_garbage_is_looked_for_rarely_and_at_the_end_no_more():
    with relax_gc():
        assert gc.get_threshold()[0] == 100_000
        assert gc.get_freeze_count() == 0
    assert gc.get_freeze_count() > 1000
