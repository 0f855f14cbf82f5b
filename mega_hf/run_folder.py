"""The run folder: made after every check, resumed by the same recipe, refused to any other; its files appear whole."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from mega_hf.errors import RunError
from mega_hf.recipe import Data, Recipe
from mega_hf.result import NAME as RESULT
from mega_hf.result import MergeResult

_OURS = ("recipe.yaml", "journal.jsonl", "result.json", "README.md", "fitness.png", "merged", "parents")
_HEAD = "# Every default filled in, paths and revisions resolved. Asked for: "


class RunFolder:
    """Where a run lives.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, recipe: Recipe, overwrite: bool) -> Recipe:
        """Return the recipe to run: the one given, or the folder's own (with pinned revisions) if it is the same.

        Raises:
            RunError: the folder belongs to another recipe or to something else, or can't be written.
        """
        self._refuse_unwritable()
        present = {p.name for p in self.path.iterdir()} if self.path.exists() else set()
        stored, present = self.path / "recipe.yaml", {name for name in present if not name.startswith(".mega-")}
        if not present:
            return recipe
        head = stored.read_text(encoding="utf-8").partition("\n")[0] if stored.is_file() else ""
        if not head.startswith(_HEAD):
            foreign = ", ".join(sorted(present)[:5])
            raise RunError(
                "not a run folder",
                where=str(self.path),
                expected="an empty or new folder",
                got=foreign,
                remedy="another --out",
            )
        if overwrite:
            return recipe
        known = Recipe.from_yaml(stored)
        if recipe.sha256 in (known.sha256, head.removeprefix(_HEAD)):
            return known
        said = recipe.data.model_dump(exclude_none=True)  # what was left open is no difference
        filled = Data.model_validate(known.data.model_dump() | said)
        recipe = recipe.model_copy(update={"data": filled})
        changes = difflib.unified_diff(
            known.to_yaml().splitlines(), recipe.to_yaml().splitlines(), "there", "asked for", n=0, lineterm=""
        )
        shown = "\n            ".join(line for line in changes if not line.startswith("@@"))
        raise RunError(
            "another recipe was run in this folder", where=str(self.path), expected="the same recipe", got=shown,
            remedy="another --out, or --overwrite to start afresh",
        )  # fmt: skip

    def create(self, asked: Recipe, pinned: Recipe, overwrite: bool) -> None:
        """Make the folder and write its recipe; with `overwrite` what an earlier run left is removed first."""
        if overwrite and (self.path / "recipe.yaml").is_file():
            for name in reversed(_OURS):  # the recipe last: it says that the folder is ours
                remove(self.path / name)
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.path.glob(".mega-*"), *self.path.glob("parents/.mega-*")]:  # of a run that was killed
            remove(leftover)
        if not (self.path / "recipe.yaml").exists():
            write_whole(self.path / "recipe.yaml", f"{_HEAD}{asked.sha256}\n{pinned.to_yaml()}".encode())

    def finished(self) -> MergeResult | None:
        """Return the result if there is one and the merged weights are still those that it describes."""
        if not (self.path / RESULT).is_file():
            return None
        result = MergeResult.load(self.path)
        return result if merged_digest(result.merged) == result.record["digests"]["file"] else None

    def _refuse_unwritable(self) -> None:
        there = self.path
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            got = "a file" if not there.is_dir() else "no right to write"
            raise RunError(
                "the output folder can't be written",
                where=str(self.path),
                expected="a folder",
                got=f"{got}: {there}",
                remedy="another --out, or the right to write there",
            )


def merged_digest(folder: Path) -> str:
    """Return the SHA-256 of a model's safetensors file (of all of them, one after the other, if it is sharded)."""
    sha = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".mega-{path.name}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder so that it is there whole or not at all; `fill` gets a temporary path that does not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".mega-{path.name}")
    remove(temporary)
    fill(temporary)
    for file in temporary.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    remove(path)
    temporary.replace(path)
    _sync_folder(path.parent)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
