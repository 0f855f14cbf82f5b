"""Read files from strangers, each no further than a bound, and make their texts safe to print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECIPE_BYTES = 2**20
JSON_BYTES = 16 * 2**20
RESULT_BYTES = 32 * 2**20


def read_bytes(path: Path, most: int) -> bytes:
    """Return a file's content.

    Raises:
        OSError: the file can't be read, or is not a regular file: reading a pipe
            or a device might never end.
        ValueError: the file has more than `most` bytes.
    """
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")
    with path.open("rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes")
    return content


def read_json(path: Path) -> Any:
    """Return the content of a model's JSON file.

    Raises:
        OSError: the file can't be read.
        ValueError: the file is too long or not JSON.
    """
    return parse_json(read_bytes(path, JSON_BYTES))


def parse_json(content: bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the content is not JSON in UTF-8, or is nested too deeply for Python.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def printable(text: object) -> str:
    """Return a text with `?` for line ends and for what controls a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def printable_lines(text: object) -> str:
    """Return a text with `?` for what controls a terminal; lines and no-break spaces are kept."""
    lines = str(text).replace("\t", " ").split("\n")
    return "\n".join("\xa0".join(map(printable, line.split("\xa0"))) for line in lines)
