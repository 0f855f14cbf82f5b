"""The run folder: made after every check, resumed by the same recipe, refused to any other; its files appear whole."""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from mega_hf import strict_yaml
from mega_hf.changes import changed_nodes, fill_open
from mega_hf.errors import RunError
from mega_hf.journal import NAME as JOURNAL
from mega_hf.journal import Journal
from mega_hf.recipe import Recipe
from mega_hf.result import NAME as RESULT
from mega_hf.result import MergeResult

_REPORT = ("result.json", "README.md", "fitness.png", "tree.png")
_OURS = ("recipe.yaml", "journal.jsonl", *_REPORT, "merged", "nodes", "parents")
_HEAD = "# Every default filled in, paths and revisions resolved. Asked for: "


class RunFolder:
    """Where a run lives.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / JOURNAL

    def check(self, recipe: Recipe, overwrite: bool, update: bool = False) -> Recipe:
        """Return the recipe to run: the one given, or the folder's own (with pinned revisions) if it is the same.

        Args:
            recipe: what is asked for.
            overwrite: another recipe may start afresh.
            update: another recipe may run what it changes.

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
        known = Recipe.from_document(strict_yaml.read(stored), check_files=False)
        if recipe.sha256 in (known.sha256, head.removeprefix(_HEAD)):
            return known
        filled = fill_open(recipe, known)
        if filled.sha256 == known.sha256:
            return known
        if not update:
            self._refuse_other(known, filled)
        return filled

    def _refuse_other(self, known: Recipe, asked: Recipe) -> None:
        changes = difflib.unified_diff(
            known.to_yaml().splitlines(), asked.to_yaml().splitlines(), "there", "asked for", n=0, lineterm=""
        )
        shown = "\n            ".join(line for line in changes if not line.startswith("@@"))
        order = Journal(self.journal).order
        again = changed_nodes(known, asked, order["ranking"] if order else None)
        work = f"runs these nodes again: {', '.join(again)}" if again else "makes the report again, and runs no node"
        raise RunError(
            "another recipe was run in this folder", where=str(self.path), expected="the same recipe", got=shown,
            remedy=f"--update {work}; or another --out, or --overwrite to start afresh",
        )  # fmt: skip

    def create(self, asked: Recipe, pinned: Recipe, overwrite: bool, update: bool = False) -> None:
        """Make the folder and write its recipe.

        With `overwrite` what an earlier run left is removed first; with `update` its report, whose recipe is replaced.
        """
        stored = self.path / "recipe.yaml"
        head = f"{_HEAD}{asked.sha256}"
        if overwrite and stored.is_file():
            for name in reversed(_OURS):  # the recipe last: it says that the folder is ours
                remove(self.path / name)
        self.path.mkdir(parents=True, exist_ok=True)
        inside = (self.path, self.path / "parents", self.path / "nodes")
        for leftover in [file for folder in inside for file in folder.glob(".mega-*")]:  # of a run that was killed
            remove(leftover)
        if stored.exists():
            said, body = stored.read_text(encoding="utf-8").split("\n", 1)
            for name in _REPORT if update else ():
                remove(self.path / name)
            if body == pinned.to_yaml():
                return
            head = head if update else said  # the same recipe, with revisions that an earlier part did not need
        write_whole(stored, f"{head}\n{pinned.to_yaml()}".encode())

    def drop_intermediates(self) -> None:
        """Remove the intermediate models; the journal can make each again without an evaluation."""
        remove(self.path / "nodes")

    def finished(self, recipe: Recipe) -> MergeResult | None:
        """Return the result of this recipe if there is one and the merged weights are still those it describes."""
        if not (self.path / RESULT).is_file():
            return None
        result = MergeResult.load(self.path)
        digests = result.record["digests"]
        is_same = digests["recipe"] == recipe.sha256 and digests["file"] == merged_digest(result.merged)
        return result if is_same else None

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
