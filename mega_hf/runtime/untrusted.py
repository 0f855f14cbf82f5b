"""What a file from a stranger may ask of this machine; each is read no further than its bound.

    recipe.yaml        1 MiB, 32 levels, 50,000 values; texts of 4,096 printable characters
    JSON of a model    16 MiB, 64 levels, 500,000 values, numbers up to a million either way
    result.json        32 MiB, 64 levels

Numbers are finite, and no text has more than 100,000 characters.

What a model's weights and the model built for them may ask is in `hf/bounds.py`.
"""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECIPE_BYTES = 2**20
JSON_BYTES = 16 * 2**20
RESULT_BYTES = 32 * 2**20
JSON_LEVELS = 64
RECIPE_LEVELS = 32
RECIPE_VALUES = 50_000
RECIPE_TEXT = 4096  # the longest path that a system takes
WHOLE = 1_000_000  # no class, channel or layer is counted higher
VALUES = 500_000
TEXT = 100_000

_END = object()


class LimitExceeded(ValueError):
    """Something is larger, deeper or stranger than what is read."""


def harmless(text: object) -> str:
    """Return a text with its lines kept and without anything else that a terminal obeys."""
    lines = str(text).replace("\t", " ").split("\n")
    return "\n".join(
        "".join(c if c.isprintable() or c == "\xa0" else "?" for c in line) for line in lines
    )


def is_plain(text: str) -> bool:
    """Say whether a text is one line without controls, marks of direction and what no text
    holds."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def read_bytes(path: Path, most: int) -> bytes:
    """Return a file's content.

    Raises:
        OSError: it can't be read, or is no file: a pipe would wait for ever, and a device might
            never end.
        Beyond: it holds more than `most` bytes.
    """
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")
    with path.open("rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise LimitExceeded(f"more than {most:,} bytes")
    return content


def read_json(path: Path, largest: float = WHOLE) -> Any:
    """Return what a JSON file of a model holds.

    Args:
        path: the file.
        largest: how far from 0 its numbers may be.

    Raises:
        OSError: it can't be read.
        ValueError: it is not JSON, or beyond a bound.
    """
    value = parse_json(read_bytes(path, JSON_BYTES))
    check_bounds(value, JSON_LEVELS, largest, VALUES)
    return value


def parse_json(content: bytes) -> Any:
    """Return what JSON in bytes holds.

    Raises:
        ValueError: it is not JSON, too deep, or holds a number that is not finite.
    """
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise LimitExceeded(f"more than {JSON_LEVELS} levels") from None
    check_bounds(value, JSON_LEVELS)
    return value


def check_bounds(
    tree: Any, levels: int, largest: float = math.inf, values: float = math.inf
) -> None:
    """Raise Beyond where a tree of plain values is too deep, or holds what no file of use holds.

    It goes without recursion: a tree may be deeper than Python's own calls may be.
    """
    open_levels: list[Iterator[Any]] = [iter((tree,))]
    seen = 0
    while open_levels:
        value = next(open_levels[-1], _END)
        if value is _END:
            open_levels.pop()
            continue
        seen += 1
        if seen > values:
            raise LimitExceeded(f"more than {values:,} values")
        if isinstance(value, dict | list):
            inner = (
                itertools.chain(value, value.values()) if isinstance(value, dict) else iter(value)
            )
            open_levels.append(inner)
            if len(open_levels) > levels:
                raise LimitExceeded(f"more than {levels} levels")
        else:
            _refuse_scalar(value, largest)


def _refuse_scalar(value: Any, largest: float) -> None:
    if isinstance(value, str):
        if len(value) > TEXT:
            raise LimitExceeded(f"a text of {len(value):,} characters")
    elif isinstance(value, int):
        if value.bit_length() > 1000 or abs(value) > largest:  # more would be no float either
            shown = (
                f"the number {value}"
                if value.bit_length() < 100
                else "a number of dozens of digits"
            )
            raise LimitExceeded(f"{shown}; at most {largest:,}")
    elif isinstance(value, float) and (not math.isfinite(value) or abs(value) > largest):
        raise LimitExceeded(f"the number {value}; at most {largest:,}")


def printable(text: object) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in str(text))
