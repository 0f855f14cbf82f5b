"""Change runs as a forger would: the rest of the run stays consistent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_hf import MergeResult, VerificationError, verify
from mega_hf.recipe.schema import Recipe
from mega_hf.report.card import write_card
from mega_hf.run.folder import _stamped
from mega_hf.runtime.files import file_digest, folder_digest
from tests.tools.run_files import journal, journal_of


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change result.json."""
    record = json.loads((folder / "result.json").read_text())
    change(record)
    (folder / "result.json").write_text(json.dumps(record))


def append(file: Path, text: str) -> None:
    with file.open("a") as opened:
        opened.write(text)


def rewrite(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Forge the journal, with correct checksums and its SHA-256 in result.json."""
    (folder / "journal.jsonl").write_bytes(journal_of(lines))
    digest = file_digest(folder / "journal.jsonl")
    edit(folder, lambda record: record["digests"].update(journal=digest))


def claim(folder: Path, *at: str | int, value: Any) -> None:
    def change(record: dict[str, Any]) -> None:
        """Replace the entry."""
        inner: Any = record
        for key in at[:-1]:
            inner = inner[key]
        inner[at[-1]] = value

    edit(folder, change)


def settle(folder: Path) -> None:
    """Forge the digest of the model's folder in the journal, and the card."""
    lines = journal(folder)
    for line in lines:
        if line["kind"] == "merged":
            line["folder"] = folder_digest(folder / "merged")
    rewrite(folder, lines)
    write_card(MergeResult.load(folder), overwrite=True)


def give_recipe(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Forge the recipe, its copy in result.json and its digests."""
    tree = Recipe.from_yaml(folder / "recipe.yaml").to_dict()
    change(tree)
    recipe = Recipe.from_dict(tree)
    (folder / "recipe.yaml").write_bytes(_stamped(recipe.sha256, recipe.to_yaml()))
    edit(folder, lambda record: record["digests"].update(recipe=recipe.sha256))
    changed = {key: tree[key] for key in ("merge", "merges", "order")}
    edit(folder, lambda record: record["recipe"].update(changed))
    lines = journal(folder)
    rewrite(
        folder,
        [line | {"recipe": recipe.sha256} if line["kind"] == "header" else line for line in lines],
    )


def assert_named(folder: Path, change: Callable[[Path], Any], message: str) -> None:
    """Change a run, and check that `verify` names the changed file."""
    change(folder)
    with pytest.raises(VerificationError, match=message):
        verify(folder)
