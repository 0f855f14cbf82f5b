"""What the command does to its process before any library is loaded."""

import gc
import os

import pytest

from mega_hf import environment
from mega_hf.environment import collect_rarely, let_threads_sleep, theirs


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


def test_another_process_gets_the_environment_that_the_user_gave_us():
    before = dict(os.environ)
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert theirs() == before


def test_what_the_user_says_stays(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    let_threads_sleep()
    assert theirs() == dict(os.environ)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_a_spin_count_of_the_users_stays(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    let_threads_sleep()
    assert os.environ["GOMP_SPINCOUNT"] == theirs()["GOMP_SPINCOUNT"] == "7"
    assert "OMP_WAIT_POLICY" not in theirs()


def test_garbage_is_looked_for_rarely_and_at_the_end_no_more():
    with collect_rarely():
        assert gc.get_threshold()[0] == 100_000
        assert gc.get_freeze_count() == 0
    assert gc.get_freeze_count() > 1000
