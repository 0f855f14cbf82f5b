"""The run folder: create it, resume it, and check that it belongs to the recipe."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NoReturn

from mega_hf.errors import HubError, RunError
from mega_hf.recipe.diff import fill_open, names_of_pinned
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
IN_TRAINING = "wait until it has trained its parents, or use another --parents"


class RunFolder:
    """The folder of a run.

    Args:
        path: the folder, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_held = False
        self._parsed: tuple[bytes, Recipe, bool] | None = None

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Create the folder if it is missing, and lock it; do nothing if it is locked already.

        Raises:
            RunError: another run is using the folder.
        """
        if self._is_held:
            yield
            return
        with lock_folder(self.path):
            self._is_held = True
            try:
                yield
            except BaseException:
                with suppress(OSError):  # a failing disk; the next run removes the leftovers
                    self._remove_leftovers()
                raise
            finally:
                self._is_held = False

    @property
    def is_held(self) -> bool:
        """Whether this object has locked the folder."""
        return self._is_held

    @property
    def is_new(self) -> bool:
        """Whether the folder is missing, empty, or has only unfinished files of a killed run."""
        return not self.path.exists() or all(
            path.name.startswith(".mega-") for path in self.path.iterdir()
        )

    @property
    def journal(self) -> Path:
        """The file of the journal."""
        return self.path / JOURNAL

    @property
    def merged(self) -> Path:
        """The folder of the merged model."""
        return self.path / "merged"

    def node(self, name: str) -> Path:
        """Return the folder of a baseline, or of any merge but the last."""
        return self.path / "nodes" / name

    def ranking(self, recipe: Recipe) -> list[str] | None:
        """Return the parents from best to worst, if `order: accuracy` has ranked them here."""
        order = Journal(self.journal).order if self.journal.is_file() else None
        ranking = order["ranking"] if order else []
        return ranking if set(ranking) == set(recipe.parents) else None

    def check(self, recipe: Recipe, overwrite: bool, update: bool = False) -> Recipe:
        """Check that a recipe can run in this folder, and return the recipe to run.

        For a resumed run that is the recipe in the folder, which has pinned revisions.

        Args:
            recipe: the recipe as the user gave it.
            overwrite: a different recipe may replace the run.
            update: a different recipe may rerun what it changes.

        Raises:
            RunError: the folder belongs to a different recipe or is no run folder, or can't be
                written although the run is not finished.
        """
        try:
            check_writable(self.path, "the output folder", "another --out")
        except RunError:
            if overwrite or update or not self.path.is_dir() or self.finished() is None:
                raise
        if self.is_new:
            return recipe
        head, body = _split(self._recipe_file)
        if not head.startswith(_HEAD):
            self._raise_foreign()
        if overwrite:
            return recipe
        requested = head.removeprefix(_HEAD).partition(_HOLDS)[0]
        stored, is_intact = self._read_recipe()
        if not is_intact and not update:
            raise RunError(
                "recipe.yaml in the run folder was changed",
                where=str(self._recipe_file),
                expected="recipe.yaml as the run wrote it",
                got="different content",
                hint="restore it, or use --overwrite; to run a different recipe, write it to a new"
                " file and use --update",
            )
        if is_intact and recipe.sha256 in (stored.sha256, requested):
            return stored
        filled = fill_open(recipe, stored, _names(body) if is_intact else {})
        if is_intact and filled.sha256 == stored.sha256:
            return stored
        if is_intact and same_but_placeholders(filled.to_dict(), stored.to_dict()):
            return filled  # a copy of a published run, with paths for its placeholders
        if not update:
            self._raise_different(stored, filled)
        return filled

    @property
    def _recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    def _read_recipe(self) -> tuple[Recipe, bool]:
        """Return `read_stored` of this folder; an unchanged file is parsed once."""
        content = self._recipe_file.read_bytes()
        if self._parsed is None or self._parsed[0] != content:
            self._parsed = content, *read_stored(self._recipe_file)
        return self._parsed[1:]

    def _raise_foreign(self) -> NoReturn:
        present = {p.name for p in self.path.iterdir() if not p.name.startswith(".mega-")}
        if JOURNAL in present:
            raise RunError(
                "recipe.yaml is missing in the run folder",
                where=str(self.path),
                expected="recipe.yaml as the run wrote it",
                got=", ".join(sorted(present)[:5]),
                hint="restore it, or use another --out",
            )
        raise RunError(
            "not a run folder",
            where=str(self.path),
            expected="an empty or new folder",
            got=", ".join(sorted(present)[:5]),
            hint="use another --out",
        )

    def _raise_different(self, stored: Recipe, requested: Recipe) -> NoReturn:
        changes = difflib.unified_diff(
            stored.to_yaml().splitlines(),
            requested.to_yaml().splitlines(),
            "in the folder",
            "requested",
            n=0,
            lineterm="",
        )
        raise RunError(
            "this folder contains a run of a different recipe",
            where=str(self.path),
            expected="the same recipe",
            got="\n            ".join(line for line in changes if not line.startswith("@@")),
            hint="use --update to rerun what changed, another --out, or --overwrite to start again",
        )

    def create(
        self, requested: Recipe, pinned: Recipe, overwrite: bool, update: bool = False
    ) -> None:
        """Create the folder and write recipe.yaml.

        Args:
            requested: the recipe as the user gave it.
            pinned: the recipe to write, with pinned revisions.
            overwrite: remove the files of an earlier run first.
            update: replace the recipe of an earlier run, and remove its report.
        """
        stored, digest = self._recipe_file, requested.sha256
        if overwrite and stored.is_file():
            kept = self.path / "parents"
            # another run may train there
            with lock_folder(kept, IN_TRAINING) if kept.is_dir() else nullcontext():
                for name in reversed(_OURS):  # recipe.yaml last: it marks the folder as ours
                    remove(self.path / name)
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        names, content = names_of_pinned(requested, pinned), pinned.to_yaml()
        if stored.exists():
            head, body = _split(stored)
            # the requested recipe may be the stored one, which has lost these names
            names = names if update else _names(body) | names
            if body == _with_names(names, content):
                return
            if update:
                self.drop_report()
            else:  # the same recipe, with revisions that an earlier --only did not need
                digest = head.removeprefix(_HEAD).partition(_HOLDS)[0]
        write_whole(stored, _stamped(digest, _with_names(names, content)))

    def drop_report(self) -> None:
        """Remove result, card and plots, result.json first: without it a run is not finished.

        A card that was edited by hand is kept, so that the next card includes the edits.
        """
        for name in _REPORT:
            if name != CARD or not _has_own_words(self.path / CARD):
                remove(self.path / name)

    def drop_intermediates(self) -> None:
        """Remove the intermediate models, which can be rebuilt from the journal.

        Raises:
            RunError: another run is using the folder.
        """
        if (self.path / "nodes").exists():  # else the folder may be read-only
            with self.acquire():
                remove(self.path / "nodes")

    def tidy(self) -> None:
        """Remove leftovers of a killed run, unless the folder is read-only or in use."""
        if self._leftovers() or (self.path / LOCK).exists():
            with suppress(RunError, OSError), self.acquire():
                self._remove_leftovers()

    def _leftovers(self) -> list[Path]:
        """Return unfinished files of a killed run; trained parents have a lock of their own."""
        inside = (self.path, self.path / "nodes")
        return [file for folder in inside for file in folder.glob(".mega-*") if file.name != LOCK]

    def _remove_leftovers(self) -> None:
        for leftover in self._leftovers():
            remove(leftover)

    def finished(self) -> MergeResult | None:
        """Return the result of the folder's recipe, if the models are as they were saved.

        `check` tells whether this recipe is the requested one.
        """
        if not (self.path / RESULT).is_file() or not self._recipe_file.is_file():
            return None
        result = MergeResult.load(self.path)
        known = self._read_recipe()[0]
        if result.record.digests.recipe != known.sha256:
            return None  # the result of a different recipe
        is_kept = (self.path / "nodes").is_dir()  # `keep="final"` drops all intermediate models
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
    """Return the recipe of a run, and whether the file is as the run wrote it.

    Raises:
        RecipeError: the recipe can't be read.
    """
    head, body = _split(stored)
    digest = head.removeprefix(_HEAD).partition(_HOLDS)[2]
    recipe = Recipe.from_document(read(stored), check_files=False)
    return recipe, digest == hashlib.sha256(body.encode()).hexdigest()


def _has_own_words(card: Path) -> bool:
    if not card.is_file():
        return False
    try:
        return has_own_words(card.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, HubError):
        return True  # not a card of ours


def _split(stored: Path) -> tuple[str, str]:
    """Return the first line of recipe.yaml and the rest, with invalid bytes replaced."""
    text = stored.read_bytes().decode(errors="replace") if stored.is_file() else ""
    head, _, body = text.partition("\n")
    return head, body


def _names(body: str) -> dict[str, str]:
    """Return the revisions as the user named them, by recipe key."""
    first = body.partition("\n")[0]
    return json.loads(first.removeprefix(_NAMES)) if first.startswith(_NAMES) else {}


def _stamped(requested: str, content: str) -> bytes:
    """Return recipe.yaml with the digests of the requested recipe and of its own content."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f"{_HEAD}{requested}{_HOLDS}{digest}\n{content}".encode()


def portable_recipe(stored: Path, recipe: Recipe) -> bytes:
    """Return recipe.yaml of a run for a copy without local paths.

    A recipe with placeholders gets its own digest as the requested one: from a digest over paths
    these could be guessed.
    """
    head, body = _split(stored)
    requested = head.removeprefix(_HEAD).partition(_HOLDS)[0]
    requested = recipe.sha256 if placeholder_keys(recipe.to_dict()) else requested
    return _stamped(requested, _with_names(_names(body), recipe.to_yaml()))


def _with_names(names: dict[str, str], content: str) -> str:
    return f"{_NAMES}{json.dumps(names)}\n{content}" if names else content
