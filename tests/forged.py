"""Runs that a forger changed: each change leaves the rest as consistent as he would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mega_hf.files import file_digest
from tests.run_files import journal_of


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change result.json."""
    record = json.loads((folder / "result.json").read_text())
    change(record)
    (folder / "result.json").write_text(json.dumps(record))


def append(file: Path, text: str) -> None:
    with file.open("a") as opened:
        opened.write(text)


def rewrite(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Forge the journal: right checksums, and its SHA-256 in result.json."""
    (folder / "journal.jsonl").write_bytes(journal_of(lines))
    digest = file_digest(folder / "journal.jsonl")
    edit(folder, lambda record: record["digests"].update(journal=digest))


def claim(folder: Path, *at: str | int, value: Any) -> None:
    def change(record: dict[str, Any]) -> None:
        """Replace what stands there."""
        inner: Any = record
        for key in at[:-1]:
            inner = inner[key]
        inner[at[-1]] = value

    edit(folder, change)
