"""One named random stream per draw, independent of earlier draws and of other processes."""

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
        node: the name of the merge, so that its position among others does not matter.
        generation: the generation; 1 is that of the founders.
        child: the index of the individual; 0 for a draw that concerns the whole generation.
        purpose: the purpose of the draw, e.g. `"mutation"`.
    """
    name = json.dumps([seed, node, generation, child, purpose]).encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def streams(seed: int, node: str) -> Streams:
    """Return a function from (generation, child, purpose) to the streams of one merge."""
    return partial(named_stream, seed, node)
