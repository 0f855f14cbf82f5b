"""Check data, parents and trainings before a merge, a training or a dry run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from mega_hf.evaluation.aligner import check_alignable
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.references import open_unweighted, resolve
from mega_hf.recipe.parents import ParentRef
from mega_hf.recipe.paths import is_local
from mega_hf.recipe.placeholders import check_no_placeholders
from mega_hf.recipe.schema import Recipe
from mega_hf.recipe.tree import parent_name
from mega_hf.run.parents import ParentSet, needs_calibration
from mega_hf.runtime.files import check_writable
from mega_hf.tasks.splits import Splits, add_calibration, load_splits
from mega_hf.training.plan import check_training, train_keys
from mega_hf.training.train import check_not_foreign, check_trained


@dataclass(frozen=True)
class Preparation:
    """A recipe whose data, parents and trainings have passed every check.

    Attributes:
        recipe: the recipe, its data resolved and its revisions pinned.
        loaded: the splits before rows for calibration were added.
        splits: the splits, with rows for calibration if a merge needs them.
        parents: the parents that are not trained here; empty in a dry run.
        model: a model that all others agree with.
        matched: how classes were matched, in words.
        to_train: the parents to train, in the recipe's order.
        keys: parent -> digest of everything that decides its training.
        replaced: trained parents with other keys, which the training replaces.
    """

    recipe: Recipe
    loaded: Splits
    splits: Splits
    parents: ParentSet
    model: LoadedModel
    matched: str
    to_train: list[str]
    keys: dict[str, str]
    replaced: list[str]


def prepare(
    recipe: Recipe,
    leaves: Sequence[str],
    kept: Path | None,
    update: bool,
    *,
    dry_run: bool = False,
    time: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext(),
) -> Preparation:
    """Load the splits, open the parents and check everything; nothing is written.

    Args:
        recipe: the recipe.
        leaves: the parents and snapshots to open or train.
        kept: the folder of trained parents; None if it is emptied first.
        update: whether parents that were trained with other settings may be replaced.
        dry_run: read no weights, and training rows only if `kept` has trained parents.
        time: measures the stages `data` and `parents`.

    Raises:
        MegaError: data, parents or trainings are missing, broken or do not fit each other.
    """
    check_no_placeholders(recipe.to_dict())
    with time("data"):
        loaded = load_splits(recipe.data, recipe.trains_all)
    with time("parents"):
        to_train = trained_for(recipe, leaves)
        parents, models = ParentSet(loaded), dict[str, LoadedModel]()
        for leaf in leaves:
            if parent_name(leaf) in to_train:
                continue
            if dry_run:
                models[leaf] = open_unweighted(leaf, recipe.parents[leaf])
            else:
                parents.add_parent(leaf, recipe.parents[leaf])
        check_room(recipe, kept, to_train)
        untrained = check_training(recipe, to_train, loaded)
        models |= {
            leaf: untrained[parent_name(leaf)] for leaf in leaves if parent_name(leaf) in untrained
        }
        matched = parents.check_compatible(models)[1]
        model = parents.model if parents.first else next(iter(models.values()))
        splits = add_calibration_rows(recipe, loaded, model)
        recipe = pin(recipe.model_copy(update={"data": splits.data}), parents.pinned, to_train)
        made = [name for parent in to_train for name in recipe.made_by(parent)]
        has_trained = kept is not None and any((kept / name).exists() for name in made)
        keys, replaced = dict[str, str](), list[str]()
        if to_train and (has_trained or not dry_run):
            keys = train_keys(recipe, to_train, splits)
        if kept is not None:
            replaced = check_trained(kept, keys, update)
    return Preparation(recipe, loaded, splits, parents, model, matched, to_train, keys, replaced)


def check_room(recipe: Recipe, kept: Path | None, to_train: Sequence[str]) -> None:
    """Raise RunError if parents can't be trained into a folder; None is an empty one."""
    if to_train and kept is not None:
        check_not_foreign(recipe, kept, to_train)
        check_writable(kept, "the folder of trained parents", "another --parents")


def trained_for(recipe: Recipe, leaves: Sequence[str]) -> list[str]:
    """Return the parents whose training `leaves` need, in the recipe's order."""
    wanted: set[str] = set()
    waiting = [parent_name(leaf) for leaf in leaves]
    while waiting:
        name = waiting.pop()
        if name in recipe.trained and name not in wanted:
            wanted.add(name)
            source = recipe.trained[name].train.source
            waiting += [parent_name(source)] if source in recipe.usable else []
    return [name for name in recipe.trained if name in wanted]


def add_calibration_rows(recipe: Recipe, splits: Splits, model: LoadedModel) -> Splits:
    """Return the splits with rows for calibration, if a merge needs them.

    Raises:
        DataError: there are no such rows.
        ParentError: the model can't be aligned as a merge asks.
    """
    nodes = recipe.nodes().values()
    architecture = model.structure.get("architecture", "model")
    check_alignable(nodes, model.model, model.input_shape, architecture)
    wanted = needs_calibration(nodes, model.model)
    if recipe.is_auto:  # rows for calibration are used if there are any, and not required
        wanted = splits.calibration is not None and len(splits.calibration) > 1
    return add_calibration(splits) if wanted else splits


def pin(recipe: Recipe, opened: dict[str, ParentRef], trained: Sequence[str]) -> Recipe:
    """Pin the revisions of the opened parents and of the sources of trained parents."""
    parents = recipe.parents | opened
    for name in trained:
        parent = recipe.trained[name]
        source = parent.train.source
        reference = parents.get(source, source) if isinstance(source, str) else None
        if not isinstance(reference, str) or is_local(reference) or source in opened:
            continue
        if source in parents:
            parents[source] = resolve(reference, source, only_configuration=True)[1]
        elif source not in recipe.usable:
            pinned = resolve(reference, name, only_configuration=True)[1]
            parents[name] = parent.model_copy(
                update={"train": parent.train.model_copy(update={"source": pinned})}
            )
    return recipe.model_copy(update={"parents": parents})
