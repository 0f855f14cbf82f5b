"""What a run folder of the tiny recipe holds, read for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILES = {"README.md", "fitness.png", "journal.jsonl", "merged", "recipe.yaml", "result.json"}
EVALUATIONS = 6 + 4 * 5  # N + (G - 1)(N - 1)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def journal(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """Return the journal's lines, or those of some kinds."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if not kinds or line["kind"] in kinds]


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return the journal's header and what was measured."""
    return journal(folder, "header", "fitness")


def weights_of(folder: Path) -> bytes:
    return (folder / "merged" / "model.safetensors").read_bytes()


def file_of(folder: Path, node: str) -> bytes:
    return (folder / "nodes" / node / "model.safetensors").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file in a folder, the lock aside."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".mega-lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
