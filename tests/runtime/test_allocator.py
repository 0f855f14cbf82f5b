"""Freed memory is kept while a run is at work, and given back at its end."""

import ctypes
import subprocess
import sys
import textwrap

import pytest

from mega_hf.runtime import environment as allocator
from mega_hf.runtime.environment import keep_freed_memory

HAS_MALLOPT = hasattr(ctypes.CDLL(None), "mallopt")


@pytest.mark.skipif(not HAS_MALLOPT, reason="another C library")
def test_memory_is_used_again_inside_and_given_back_afterwards():
    program = """
        import resource, psutil, torch
        from mega_hf.runtime.environment import keep_freed_memory

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                torch.ones(2**25), torch.ones(2**24)  # 128 and 64 MiB
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        outside = faults()
        with keep_freed_memory():
            faults()
            inside, held = faults(), psutil.Process().memory_info().rss
        print(outside > 100 * max(1, inside), held - psutil.Process().memory_info().rss > 2**26)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["True", "True"]


class _Library:
    """A C library that does what it is told, and says so."""

    def __init__(self):
        self.told = []

    def mallopt(self, parameter, value):
        self.told.append((parameter, value))
        return 1

    def malloc_trim(self, pad):
        self.told.append("trim")


@pytest.fixture
def library(monkeypatch):
    library = _Library()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: library)
    for name in [
        name for name in allocator.os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    ]:
        monkeypatch.delenv(name)
    return library


def test_an_error_inside_gives_it_back_too(library):
    with pytest.raises(ValueError, match="broken"), keep_freed_memory():
        assert len(library.told) == 2
        raise ValueError("broken")
    assert len(library.told) == 5
    assert library.told[-1] == "trim"


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_says_stays(library, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with keep_freed_memory():
        pass
    assert library.told == []


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    with keep_freed_memory():
        pass
    allocator.trim()
