"""Merge the parents of a recipe, or only train them.

recipe -> parents -> weight space of each merge -> search <-> evaluation -> report
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mega_hf.errors import RecipeError
from mega_hf.evaluation.forward import COMPILED
from mega_hf.recipe.schema import Recipe
from mega_hf.recipe.tree import parent_name
from mega_hf.report.result import MergeResult
from mega_hf.run.context import ForwardPath, RunOptions, open_run
from mega_hf.run.folder import RunFolder
from mega_hf.run.node import MergedNode
from mega_hf.run.prepare import prepare, trained_for
from mega_hf.run.record import write_report
from mega_hf.run.search import begin_search, make_baselines, make_merges


def merge(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    update: bool = False,
    keep: Literal["all", "final"] = "all",
    parents: str | Path | None = None,
    forward: ForwardPath = "auto",
    full_evaluation: bool = False,
    progress: bool = True,
) -> MergeResult:
    """Merge the parents of a recipe, and write a run folder with the model and its report.

    An interrupted run is resumed by the same call. A finished run is loaded.

    Args:
        recipe: the recipe.
        out: the run folder; `runs/NAME` in the working directory by default.
        overwrite: start again where an earlier run is.
        update: if recipe, parents or data have changed since an earlier run, rerun only what
            they change.
        keep: `final` deletes the intermediate models of a tree once the report is written.
        parents: the folder where trained parents are looked up and saved; `OUT/parents` by
            default.
        forward: run the model `compiled` or `eager`. `auto` keeps the path that the run began
            with; a new run is compiled if that saves time. Their roundings differ, so results are
            reproducible for each of them.
        full_evaluation: evaluate every individual on every validation row. The result is the
            same, and takes longer.
        progress: show progress bars on stderr.

    Returns:
        The merged model, its report, and the record of the run.

    Raises:
        MegaError: recipe, parents, data or the run folder can't be used. No partial files are
            left, and the run can be resumed.

    Example:
        >>> from mega_hf import Recipe, merge
        >>> result = merge(Recipe.from_yaml("recipes/quickstart.yaml"), "runs/quickstart")
        >>> print(result.report)
        >>> result.save("my-model")
    """
    options = RunOptions(overwrite, update, parents, forward, full_evaluation, progress)
    return run_merge(recipe, run_folder(recipe, out), options, keep)


def merge_only(
    recipe: Recipe,
    node: str,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    update: bool = False,
    parents: str | Path | None = None,
    forward: ForwardPath = "auto",
    full_evaluation: bool = False,
    progress: bool = True,
) -> MergedNode:
    """Make one merge of a tree, and the merges that it needs, without a report.

    The test split is not read. `merge` with the same folder makes the rest of the tree.

    Args:
        recipe: the recipe.
        node: the name of the merge.
        out: the run folder; this and the other arguments are those of `merge`.
        overwrite: as for `merge`.
        update: as for `merge`.
        parents: as for `merge`.
        forward: as for `merge`.
        full_evaluation: as for `merge`.
        progress: as for `merge`.

    Raises:
        MegaError: as `merge`; RecipeError if there is no such node.
    """
    options = RunOptions(overwrite, update, parents, forward, full_evaluation, progress)
    return run_merge_only(recipe, node, run_folder(recipe, out), options)


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    parent: str | None = None,
    update: bool = False,
    parents: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Path]:
    """Train the parents that a recipe gives by seeds, and merge nothing.

    Args:
        recipe: the recipe.
        out: the run folder; `runs/NAME` in the working directory by default.
        parent: train only this parent, and those that its training starts from.
        update: train parents again that were trained with other settings or data.
        parents: the folder of trained parents; `OUT/parents` by default.
        progress: show progress bars on stderr.

    Returns:
        The folder of each trained model, snapshots included, by name.

    Raises:
        MegaError: as `merge`; RecipeError if there is nothing to train.
    """
    if not recipe.trained or (parent is not None and parent not in recipe.trained):
        known_names = ", ".join(recipe.trained) or "parents with train: {seed: ...}"
        hint = (
            "choose a parent that is trained, or leave --parent out"
            if recipe.trained
            else "run mega-hf merge, which needs no training for this recipe"
        )
        raise RecipeError("nothing to train", expected=known_names, got=parent or "none", hint=hint)
    options = RunOptions(update=update, parents=parents, progress=progress)
    with open_run(recipe, run_folder(recipe, out), options) as run:
        stored = run.acquire(recipe)
        names = trained_for(stored, [parent] if parent else list(stored.trained))
        prepared = prepare(stored, names, run.kept, update, time=run.time)
        run.create(recipe, prepared)
        run.train(prepared)
        trained = [name for name in prepared.recipe.usable if parent_name(name) in names]
        return {name: run.parents / name for name in trained}


def run_folder(recipe: Recipe, out: str | Path | None) -> RunFolder:
    """Return the folder of a run, `runs/NAME` by default."""
    return RunFolder(Path(out) if out is not None else Path("runs") / recipe.name)


def run_merge(
    recipe: Recipe, folder: RunFolder, options: RunOptions, keep: Literal["all", "final"]
) -> MergeResult:
    """Merge as `merge`, in a folder whose recipe may have been read already."""
    with open_run(recipe, folder, options) as run:
        result = run.finished()
        if result is None:
            outcome, context = begin_search(recipe, run)
            merged = make_merges(outcome, context)
            with run.time("baselines"):
                baselines = make_baselines(merged, outcome, context)
            del context
            outcome.parents.release(outcome.forward_path == COMPILED)
            result = write_report(outcome, merged, baselines, folder, run.processes, run.seconds)
        elif run.processes.is_main:
            folder.tidy()
        if keep == "final" and run.processes.is_main:
            folder.drop_intermediates()
        return result


def run_merge_only(recipe: Recipe, node: str, folder: RunFolder, options: RunOptions) -> MergedNode:
    """Make one merge as `merge_only`, in a folder whose recipe may have been read already."""
    with open_run(recipe, folder, options) as run:
        outcome, context = begin_search(recipe, run, node)
        return make_merges(outcome, context, node)[-1]
