"""One named random stream per draw: nothing depends on what was drawn before, or by which
process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial

import numpy as np

# (generation, child, purpose) -> a fresh generator
Streams = Callable[[int, int, str], np.random.Generator]


def named_stream(
    seed: int, node: str, generation: int, child: int, purpose: str
) -> np.random.Generator:
    """Return the random stream of one draw: Philox, keyed by the SHA-256 of its name.

    Args:
        seed: the recipe's `merge.seed`.
        node: the merge's name, so that no merge depends on its position among others.
        generation: 1 for the founders.
        child: the individual's index; 0 where a draw is the generation's.
        purpose: what is drawn, e.g. `"mutation"`.
    """
    name = json.dumps([seed, node, generation, child, purpose]).encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def streams(seed: int, node: str) -> Streams:
    """Return the streams of one merge as a function of (generation, child, purpose)."""
    return partial(named_stream, seed, node)
