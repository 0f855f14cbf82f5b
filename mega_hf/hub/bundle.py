"""Make the files of a pushed run, without local paths, and restore a run folder from them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mega_hf.errors import HubError, RunError
from mega_hf.recipe.document import read
from mega_hf.recipe.schema import Recipe
from mega_hf.report.card import render_card
from mega_hf.report.plots import plot_fitness, plot_tree
from mega_hf.report.record import RunRecord
from mega_hf.report.result import NAME as RESULT
from mega_hf.report.result import MergeResult
from mega_hf.run.folder import CARD, RunFolder, portable_recipe
from mega_hf.run.journal import NAME as JOURNAL
from mega_hf.run.journal_format import seal, unseal
from mega_hf.runtime.files import file_digest, write_folder

RECIPE = "recipe.yaml"
PLOTS = {"fitness.png": plot_fitness, "tree.png": plot_tree}
OURS = frozenset({CARD, RECIPE, JOURNAL, RESULT, *PLOTS})
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,250}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,250}")


def portable_files(
    result: MergeResult,
    repository: str,
    license: Mapping[str, Any],
    with_nodes: bool = False,
    revision: str = "",
    parents: Mapping[str, Path] | None = None,
) -> dict[str, Path | bytes]:
    """Return the files of a run's copy: model, card, recipe, journal, result and plots.

    Args:
        result: a finished run.
        repository: the repository of the copy; the card says how to use it from there.
        license: the license for the card, with its name and link if it has them.
        with_nodes: include the intermediate models of a tree, under nodes/NAME.
        revision: the branch; empty for main.
        parents: name -> folder of the parents that were trained for the run, for parents/NAME.

    Raises:
        RunError: the intermediate models were dropped.
    """
    folder = result.folder
    files: dict[str, Path | bytes] = {path.name: path for path in _model_files(result.merged)}
    if with_nodes:
        _check_nodes_kept(result)
        for name, kept in result.folders.items():
            files |= {
                f"nodes/{name}/{path.name}": path
                for path in _model_files(kept)
                if kept != result.merged
            }
    files |= parent_files(parents or {})
    models = {name: file_digest(content) for name, content in files.items()}
    record, rewritten = portable_record(result)
    where = {"repository": repository, "revision": revision}
    copied = record.model_copy(update={**where, "license": dict(license), "files": models})
    files |= rewritten
    files[RESULT] = copied.encode()
    for name, plot in PLOTS.items():
        if name != "tree.png" or result.has_tree:
            files[name] = folder / name if (folder / name).is_file() else plot(copied)
    files[CARD] = render_card(MergeResult(copied, folder)).encode()
    return files


def portable_record(result: MergeResult) -> tuple[RunRecord, dict[str, bytes]]:
    """Return a copy's record, and its recipe and journal by their file names."""
    recipe = Recipe.from_dict(result.record.recipe)
    journal = _portable_journal(result.folder / JOURNAL, recipe.sha256)
    known = {"recipe": recipe.sha256, "journal": file_digest(journal)}
    digests = result.record.digests.model_copy(update=known)
    files = {RECIPE: portable_recipe(result.folder / RECIPE, recipe), JOURNAL: journal}
    changes = {"recipe": recipe.to_dict(), "digests": digests}
    return result.record.model_copy(update=changes), files


def trained_parents(
    result: MergeResult, elsewhere: Path | None = None
) -> tuple[dict[str, Path], list[str]]:
    """Find the parents that were trained for a run.

    They exist nowhere else, and training gives other weights on another processor.

    Args:
        result: a finished run.
        elsewhere: the folder of the trained parents, if it is not the run's own.

    Returns:
        name -> folder of the parents and of everything else that these trainings left, so that
        nothing need be trained again; and the names of the parents that are missing or changed.
    """
    merged = {parent.name: parent.sha256 for parent in result.record.parents if parent.train}
    if not merged:
        return {}, []
    from mega_hf.models.load import holds_weights
    from mega_hf.models.training_stamp import is_unchanged

    # not above: it loads timm, which most pushes do not need
    from mega_hf.run.prepare import trained_for

    folder = elsewhere or result.folder / "parents"
    recipe = Recipe.from_dict(result.record.recipe)
    found = {
        name: folder / name
        for name, sha256 in merged.items()
        if holds_weights(folder / name, sha256)
    }
    made = [model for name in trained_for(recipe, list(merged)) for model in recipe.made_by(name)]
    found |= {
        name: folder / name for name in made if name not in merged and is_unchanged(folder / name)
    }
    return found, [name for name in merged if name not in found]


def parent_files(folders: Mapping[str, Path]) -> dict[str, Path | bytes]:
    """Return the files of trained parents by their path in a copy, parents/NAME/FILE."""
    return {
        f"parents/{name}/{path.name}": path
        for name, folder in folders.items()
        for path in _model_files(folder)
        if path.suffix in (".json", ".safetensors", ".sha256")
    }


def _model_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def check_unchanged(result: MergeResult) -> None:
    """Raise RunError if the folder is not a finished run, or its files were changed."""
    if RunFolder(result.folder).finished() is None:
        raise RunError(
            "the run is not finished, or its files were changed since",
            where=str(result.folder),
            expected="recipe, journal and models as the run left them",
            got="different files",
            hint="run the same mega-hf merge command to finish it, or to make it again",
        )


def _check_nodes_kept(result: MergeResult) -> None:
    if len(result.record.merges) > 1 and not (result.folder / "nodes").is_dir():
        raise RunError(
            "the intermediate models were dropped",
            where=str(result.folder),
            expected="nodes/NAME for each",
            got="none",
            hint=(
                "push without --with-nodes; or delete result.json and merge again without --keep"
                " final"
            ),
        )


def _portable_journal(path: Path, recipe: str) -> bytes:
    """Return a run's journal for a copy; its headers have the digest of the copy's recipe."""
    lines, before, after = b"", 0, 0
    for raw in path.read_bytes().splitlines(keepends=True):
        line, before = unseal(raw, before)
        sealed, after = seal(line | {"recipe": recipe} if line["kind"] == "header" else line, after)
        lines += sealed
    return lines


# --- Back to a run folder


def copied_models(source: Path, repository: str) -> list[str]:
    """Return the names of a copy's model files, after checking its record.

    Args:
        source: the folder of recipe.yaml, journal.jsonl and result.json.
        repository: the repository of the copy, for errors.

    Raises:
        HubError: this is no copy of a run, or its record was changed since the push.
    """
    missing = [name for name in (RESULT, RECIPE, JOURNAL) if not (source / name).is_file()]
    if missing:
        raise HubError(
            "not a merge that mega-hf pushed",
            where=repository,
            expected=", ".join((RESULT, RECIPE, JOURNAL)),
            got=f"no {missing[0]}",
            hint="use a model without a record as a parent: mega-hf merge, evaluate, compare",
        )
    with _reading_record(repository):
        result = MergeResult.load(source)
        str(result.report), render_card(result)
        recipe = Recipe.from_document(read(source / RECIPE), check_files=False)
        recorded = Recipe.from_dict(result.record.recipe)
        # The digest does not cover the push block.
        if recipe.push or recorded.push or recorded.sha256 != recipe.sha256:
            raise _changed(repository, RECIPE)
        if file_digest(source / JOURNAL) != result.record.digests.journal:
            raise _changed(repository, JOURNAL)
        names = [node.name for node in result.record.merges]
        files = result.record.files
        harmful = [name for name in files if not _is_harmless(name)]
        harmful += [name for name in names if not _NODE.fullmatch(name)]
        if harmful or not files:
            raise _changed(repository, str(harmful)[:100])
        return list(files)


def changed_models(source: Path) -> list[str]:
    """Return the model files of a copy that differ from its record."""
    digests = MergeResult.load(source).record.files
    return [
        name
        for name in digests
        if not (source / name).is_file() or file_digest(source / name) != digests[name]
    ]


def restore(source: Path, target: Path, repository: str) -> MergeResult:
    """Restore a run folder from a copy.

    Args:
        source: the folder of the copy.
        target: the run folder, missing or empty; it appears whole or not at all.
        repository: the repository of the copy, for errors.

    Raises:
        HubError: this is no copy of a run, or it was changed since the push.
        RunError: the target is not empty.
    """
    names = copied_models(source, repository)
    models = {name: f"merged/{name}" if "/" not in name else name for name in names}
    copied = {name: name for name in OURS if (source / name).is_file()}
    if changed := changed_models(source):
        raise _changed(repository, changed[0])

    def fill(folder: Path) -> None:
        """Copy all files, and check that they are a finished run."""
        for name, place in {**models, **copied}.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / place)
        with _reading_record(repository):
            if RunFolder(folder).finished() is None:
                raise _changed(repository, "recipe, journal or model")
        check_empty(target)

    folder = target.absolute()
    if not folder.exists():
        write_folder(folder, fill)
        return MergeResult.load(target)
    # An existing folder is not replaced: it may be a working folder. The result comes last.
    pulled = folder / ".mega-pulled"
    write_folder(pulled, fill)
    for path in sorted(pulled.iterdir(), key=lambda path: path.name == RESULT):
        path.replace(folder / path.name)
    pulled.rmdir()
    return MergeResult.load(target)


def check_empty(target: Path) -> None:
    """Raise RunError if a folder is not empty."""
    existing = [path.name for path in target.iterdir()] if target.exists() else []
    foreign = sorted(name for name in existing if not name.startswith(".mega-"))
    if foreign:
        raise RunError(
            "the folder is not empty",
            where=str(target),
            expected="a new or empty folder",
            got=", ".join(foreign[:5]),
            hint="use another --out",
        )


@contextmanager
def _reading_record(repository: str) -> Iterator[None]:
    """Turn any error that a stranger's record causes into a HubError."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        got = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise HubError(
            "its record can't be read",
            where=repository,
            expected="a record that mega-hf wrote",
            got=got,
            hint="use an earlier revision, ORG/NAME@COMMIT, or a newer release of mega_hf",
        ) from None


def _is_harmless(name: object) -> bool:
    """Return whether a push uses such a path: NAME, nodes/NODE/NAME or parents/PARENT/NAME."""
    parts = str(name).split("/")
    folders = len(parts) == 1 or (
        len(parts) == 3
        and parts[0] in ("nodes", "parents")
        and _NODE.fullmatch(parts[1]) is not None
    )
    return folders and _FILE.fullmatch(parts[-1]) is not None and name not in OURS


def _changed(repository: str, what: str) -> HubError:
    return HubError(
        "changed since it was pushed",
        where=repository,
        expected="the files that its result.json lists",
        got=f"a different {what}",
        hint="use an earlier revision: ORG/NAME@COMMIT",
    )
