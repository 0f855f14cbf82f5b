"""What the command sets for its process before any library is loaded."""

import atexit
import gc

from mega_hf.runtime.environment import relax_gc


def test_garbage_is_collected_rarely():
    threshold = gc.get_threshold()
    try:
        relax_gc()
        assert gc.get_threshold()[0] == 100_000
    finally:
        gc.set_threshold(*threshold)
        atexit.unregister(gc.freeze)
