"""A signal that comes where Python swallows whatever is raised."""

from __future__ import annotations

import signal
import textwrap

import pytest

from tests.cli.test_signals import CODES, _begin, _end

FINALIZERS = {
    "of an object": (
        """
        class Last:
            def __del__(self):
                show()
        last = Last()
        del last
        """
    ),
    "of a weak reference": (
        """
        import weakref
        class Key:
            pass
        key = Key()
        finish = weakref.finalize(key, show)
        del key
        """
    ),
}


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize("kind", FINALIZERS)
def test_a_signal_is_not_lost_in_a_finalizer(kind: str, number: signal.Signals) -> None:
    """Python swallows what is raised there, and the command would go on as if nothing had been
    asked of it."""
    body = """
        def show():
            print("finalizing", flush=True)
            for _ in range(10):
                time.sleep(0.05)
        """
    process = _begin(
        textwrap.dedent(body) + textwrap.dedent(FINALIZERS[kind]) + "\ntime.sleep(60)\n"
    )
    assert process.stdout is not None and process.stdout.readline() == "finalizing\n"
    assert "Exception ignored" not in _end(process, number)
