"""Read the files of a run folder of the tiny recipe."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mega_hf.run.journal_format import seal

FILES = {"README.md", "fitness.png", "journal.jsonl", "merged", "recipe.yaml", "result.json"}
OUTCOME = {  # of a merge, as a journal's line needs it
    "weights": "w",
    "statistics": None,
    "file": "f",
    "folder": "o",
    "layout": "l",
    "state": "s",
    "parameters": 3,
    "correct": 5,
    "n": 9,
    "generation": 1,
    "index": 0,
    "history": [],
}
EVALUATIONS = 6 + 4 * 5  # N + (G - 1)(N - 1)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def journal(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """Return the journal's lines, all or of some kinds."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if not kinds or line["kind"] in kinds]


def journal_of(lines: Iterable[dict[str, Any]]) -> bytes:
    """Return a journal of these lines, each with a new checksum."""
    whole, checksum = b"", 0
    for line in lines:
        raw, checksum = seal({key: value for key, value in line.items() if key != "crc"}, checksum)
        whole += raw
    return whole


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return the journal's header and its lines with a fitness."""
    return journal(folder, "header", "fitness")


def weights_of(folder: Path) -> bytes:
    return (folder / "merged" / "model.safetensors").read_bytes()


def file_of(folder: Path, node: str) -> bytes:
    return (folder / "nodes" / node / "model.safetensors").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder but the lock."""
    files = [
        path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".mega-lock"
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
