"""The run folder: made after every check, resumed by the same recipe, refused to any other; its
files appear whole."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from mega_hf.errors import HubError, RunError
from mega_hf.recipe.diff import changed_nodes, changed_trainings, fill_open, names_of_pinned
from mega_hf.recipe.document import read
from mega_hf.recipe.placeholders import placeholder_keys, same_but_placeholders
from mega_hf.recipe.schema import Recipe
from mega_hf.report.card_edits import has_own_words
from mega_hf.report.result import NAME as RESULT
from mega_hf.report.result import MergeResult
from mega_hf.run.journal import NAME as JOURNAL
from mega_hf.run.journal import Journal
from mega_hf.runtime.files import check_writable, folder_digest, remove, write_whole
from mega_hf.runtime.lock import NAME as LOCK
from mega_hf.runtime.lock import lock_folder

CARD = "README.md"
_REPORT = ("result.json", CARD, "fitness.png", "tree.png")
_OURS = ("recipe.yaml", "journal.jsonl", *_REPORT, "merged", "nodes", "parents")
_HEAD = "# Every default filled in, paths and revisions resolved. Asked for: "
_HOLDS = ". Below: "
_NAMES = "# Pinned from: "
IN_TRAINING = "wait until it has trained its parents, or another --parents"


class RunFolder:
    """Where a run lives.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_held = False

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Hold the folder, made if it is not there, against other runs; where this object holds it,
        do nothing.

        Raises:
            RunError: another run is at work there.
        """
        if self._is_held:
            yield
            return
        with lock_folder(self.path):
            self._is_held = True
            try:
                yield
            except BaseException:
                with suppress(OSError):  # on a disk that fails; the next run removes it
                    self._remove_leftovers()
                raise
            finally:
                self._is_held = False

    @property
    def is_held(self) -> bool:
        """Whether this object holds the folder."""
        return self._is_held

    @property
    def is_new(self) -> bool:
        """Whether nothing lies there but what a killed run had not finished writing."""
        return not self.path.exists() or all(
            path.name.startswith(".mega-") for path in self.path.iterdir()
        )

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / JOURNAL

    @property
    def merged(self) -> Path:
        """The folder of the merged model."""
        return self.path / "merged"

    def node(self, name: str) -> Path:
        """Return the folder of a merge that is not the run's last, or of a baseline."""
        return self.path / "nodes" / name

    def check(self, recipe: Recipe, overwrite: bool, update: bool = False) -> Recipe:
        """Return the recipe to run: the one given, or the folder's own (with pinned revisions) if
        it is the same.

        Args:
            recipe: what is asked for.
            overwrite: another recipe may start afresh.
            update: another recipe may run what it changes.

        Raises:
            RunError: the folder belongs to another recipe or to something else, or can't be written
                although there is something to write.
        """
        try:
            check_writable(self.path, "the output folder", "another --out")
        except RunError:
            if overwrite or update or not self.path.is_dir() or self.finished() is None:
                raise
        stored = self.path / "recipe.yaml"
        if self.is_new:
            return recipe
        head, body = _split(stored)
        if not head.startswith(_HEAD):
            present = {p.name for p in self.path.iterdir() if not p.name.startswith(".mega-")}
            is_lost = "journal.jsonl" in present
            raise RunError(
                "a run folder whose recipe.yaml is lost" if is_lost else "not a run folder",
                where=str(self.path),
                expected="recipe.yaml as the run wrote it" if is_lost else "an empty or new folder",
                got=", ".join(sorted(present)[:5]),
                hint="put it back, or another --out" if is_lost else "another --out",
            )
        if overwrite:
            return recipe
        asked = head.removeprefix(_HEAD).partition(_HOLDS)[0]
        known, is_ours = read_stored(stored)
        if not is_ours and not update:
            raise RunError(
                "the run's own recipe was changed",
                where=str(stored),
                expected="recipe.yaml as the run wrote it",
                got="other content",
                hint=(
                    "put it back, or --overwrite; another recipe is a file of your own, with"
                    " --update"
                ),
            )
        if is_ours and recipe.sha256 in (known.sha256, asked):
            return known
        filled = fill_open(recipe, known, _names(body) if is_ours else {})
        if is_ours and filled.sha256 == known.sha256:
            return known
        if is_ours and same_but_placeholders(filled.to_dict(), known.to_dict()):
            return filled  # a copy of someone's run, with places for what was local there
        if not update:
            self._refuse_other(known, filled)
        return filled

    def _refuse_other(self, known: Recipe, asked: Recipe) -> None:
        changes = difflib.unified_diff(
            known.to_yaml().splitlines(),
            asked.to_yaml().splitlines(),
            "there",
            "asked for",
            n=0,
            lineterm="",
        )
        shown = "\n            ".join(line for line in changes if not line.startswith("@@"))
        order = Journal(self.journal).order
        again = changed_nodes(known, asked, order["ranking"] if order else None)
        trained = changed_trainings(known, asked)
        work = (
            f"runs these nodes again: {', '.join(again)}"
            if again
            else "makes the report again, and runs no node"
        )
        work = f"trains {', '.join(trained)}, and {work}" if trained else work
        raise RunError(
            "another recipe was run in this folder",
            where=str(self.path),
            expected="the same recipe",
            got=shown,
            hint=f"--update {work}; or another --out, or --overwrite to start afresh",
        )

    def create(self, asked: Recipe, pinned: Recipe, overwrite: bool, update: bool = False) -> None:
        """Make the folder and write its recipe.

        With `overwrite` what an earlier run left is removed first; where `update` replaces the
        recipe, its report.
        """
        stored = self.path / "recipe.yaml"
        digest = asked.sha256
        if overwrite and stored.is_file():
            kept = self.path / "parents"
            # another run may train there
            with lock_folder(kept, IN_TRAINING) if kept.is_dir() else nullcontext():
                for name in reversed(_OURS):  # the recipe last: it says that the folder is ours
                    remove(self.path / name)
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        names, content = names_of_pinned(asked, pinned), pinned.to_yaml()
        if stored.exists():
            head, body = _split(stored)
            # the recipe may be the one below, taken from here
            names = names if update else _names(body) | names
            if body == _with_names(names, content):
                return
            if update:
                self.drop_report()
            else:  # the same recipe, with revisions that an earlier part did not need
                digest = head.removeprefix(_HEAD).partition(_HOLDS)[0]
        write_whole(stored, _stamped(digest, _with_names(names, content)))

    def drop_report(self) -> None:
        """Remove result, card and plots, the result first: without it the run is not finished.

        A card into which something was written by hand stays until the next one takes that up.
        """
        for name in _REPORT:
            if name != CARD or not _has_own_words(self.path / CARD):
                remove(self.path / name)

    def drop_intermediates(self) -> None:
        """Remove the intermediate models; the journal can make each again without an evaluation.

        Raises:
            RunError: another run is at work there.
        """
        if (self.path / "nodes").exists():  # else it may be a folder that can't be written
            with self.acquire():
                remove(self.path / "nodes")

    def tidy(self) -> None:
        """Remove what a killed run left in a finished folder, where nobody is at work and it can be
        written."""
        if self._leftovers() or (self.path / LOCK).exists():
            with suppress(RunError, OSError), self.acquire():
                self._remove_leftovers()

    def _leftovers(self) -> list[Path]:
        """Return what a killed run left; those beside trained parents are the training's, which has
        its own lock."""
        inside = (self.path, self.path / "nodes")
        return [file for folder in inside for file in folder.glob(".mega-*") if file.name != LOCK]

    def _remove_leftovers(self) -> None:
        for leftover in self._leftovers():
            remove(leftover)

    def finished(self) -> MergeResult | None:
        """Return the result of the folder's recipe if there is one and the merged models are still
        as they were saved.

        Whether it is the recipe that is asked for, `check` has said.
        """
        stored = self.path / "recipe.yaml"
        if not (self.path / RESULT).is_file() or not stored.is_file():
            return None
        result = MergeResult.load(self.path)
        known = Recipe.from_document(read(stored), check_files=False)
        if "nodes" not in result.record or result.record["digests"].get("recipe") != known.sha256:
            return None  # of an early release, or of another recipe
        is_kept = (self.path / "nodes").is_dir()  # they may have been dropped, but all of them
        folders = {
            name: folder
            for name, folder in result.folders.items()
            if is_kept or folder == result.merged
        }
        journal = Journal(self.journal)
        is_whole = all(
            journal.has_merged(name, folder_digest(folder)) for name, folder in folders.items()
        )
        return result if is_whole else None


def read_stored(stored: Path) -> tuple[Recipe, bool]:
    """Return the recipe of a run, and whether it stands as the run wrote it.

    Raises:
        RecipeError: it can't be read.
    """
    head, body = _split(stored)
    held = head.removeprefix(_HEAD).partition(_HOLDS)[2]
    known = Recipe.from_document(read(stored), check_files=False)
    return known, held == hashlib.sha256(body.encode()).hexdigest()


def _has_own_words(card: Path) -> bool:
    if not card.is_file():
        return False
    try:
        return has_own_words(card.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, HubError):
        return True  # nothing of ours


def _split(stored: Path) -> tuple[str, str]:
    """Return the first line of a run's recipe and the rest, whatever bytes they are."""
    text = stored.read_bytes().decode(errors="replace") if stored.is_file() else ""
    head, _, body = text.partition("\n")
    return head, body


def _names(body: str) -> dict[str, str]:
    """Return what the pinned revisions were called in the recipe that was asked for."""
    first = body.partition("\n")[0]
    return json.loads(first.removeprefix(_NAMES)) if first.startswith(_NAMES) else {}


def _stamped(asked: str, content: str) -> bytes:
    """Return a run's recipe.yaml: which recipe was asked for, what it became, and a digest that
    shows changes."""
    holds = hashlib.sha256(content.encode()).hexdigest()
    return f"{_HEAD}{asked}{_HOLDS}{holds}\n{content}".encode()


def portable_recipe(stored: Path, recipe: Recipe) -> bytes:
    """Return a run's recipe.yaml for a copy that names what is local by its digest.

    What was asked for stays known where no path was in it; a digest of paths would let them be
    guessed.
    """
    head, body = _split(stored)
    asked = head.removeprefix(_HEAD).partition(_HOLDS)[0]
    asked = recipe.sha256 if placeholder_keys(recipe.to_dict()) else asked
    return _stamped(asked, _with_names(_names(body), recipe.to_yaml()))


def _with_names(names: dict[str, str], content: str) -> str:
    return f"{_NAMES}{json.dumps(names)}\n{content}" if names else content
