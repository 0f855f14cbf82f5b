"""The searches of a run: all merges of the tree, the baselines and the held-out selection."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mega_hf.evaluation.aligner import Aligner
from mega_hf.evaluation.batch_size import choose_batch_size, choose_chunk
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.compile import choose_path, compile_everywhere
from mega_hf.evaluation.forward import COMPILED, EAGER, Examples, ResidentModel
from mega_hf.evaluation.loader import Loader
from mega_hf.evaluation.row_difficulty import CountCache, RowDifficulty
from mega_hf.models.merge_inputs import ModelSource
from mega_hf.models.references import open_parent
from mega_hf.recipe.baselines import SECOND_LOOK
from mega_hf.recipe.merge import Node
from mega_hf.recipe.plan import plan_merges
from mega_hf.recipe.schema import Recipe
from mega_hf.recipe.tree import parent_name
from mega_hf.run.auto import decide_recipe, write_choice
from mega_hf.run.context import RunContext
from mega_hf.run.journal import Journal
from mega_hf.run.node import MergeContext, MergedNode, merge_node
from mega_hf.run.parents import ParentSet
from mega_hf.run.prepare import Preparation, add_calibration_rows, prepare
from mega_hf.run.ranking import rank
from mega_hf.run.record import RunOutcome, header
from mega_hf.runtime.environment import trim
from mega_hf.tasks.splits import Splits

logger = logging.getLogger(__name__)


def begin_search(
    requested: Recipe, run: RunContext, only: str | None = None
) -> tuple[RunOutcome, MergeContext]:
    """Load everything that the searches of a run need, and begin or resume its journal.

    Args:
        requested: the recipe as the user gave it.
        run: the run.
        only: the one merge that will be made, with those that it needs; None for all.

    Returns:
        what the report needs beside the merges, and what the merges share.

    Raises:
        MegaError: recipe, parents, data or the run folder can't be used.
    """
    recipe = run.acquire(requested)
    is_new = only is None or run.options.overwrite
    leaves = recipe.leaves(only, None if is_new else run.folder.ranking(recipe))
    prepared = prepare(recipe, leaves, run.kept, run.options.update, time=run.time)
    recipe, splits = prepared.recipe, prepared.splits
    run.create(requested, prepared)
    if run.processes.is_main and run.is_kept:
        logger.info("merging into %s (Ctrl-C stops; the same command resumes)", run.folder.path)
    parents = _train_parents(prepared, leaves, run)
    notices = _log_notices(recipe, parents, splits, run)
    loader, examples, calibration = _load_images(recipe, parents, splits, run)
    journal = Journal(run.folder.journal)
    run.processes.wait()  # all processes have read it before the main process appends to it
    forward = _prepare_forward(parents, examples, journal, recipe, run)
    choice = None
    if recipe.is_auto:
        aligner = Aligner(forward, parents.model.input_shape, calibration, run.processes)
        choice = decide_recipe(recipe, parents.sources, aligner, examples)
        recipe = recipe.with_auto(choice.settings)
        splits = add_calibration_rows(recipe, prepared.loaded, parents.model)
        recipe = recipe.model_copy(update={"data": splits.data})
        calibration = calibration if "calibration" in splits.digests else None
    device_kind, batch_size = run.processes.device_kind, loader.batch_size
    head = header(recipe, parents, splits, device_kind, forward.path, batch_size)
    for name, value in (head | {"journal": journal.checksum}).items():
        run.processes.compare(name.replace("_", " "), value)
    if run.processes.is_main:
        journal.begin(head, run.options.update)
    if choice is not None:
        write_choice(choice, requested, recipe, journal, run)
    context = MergeContext(
        run,
        journal,
        forward,
        examples,
        calibration,
        choose_chunk(recipe.evaluation.batch_size, batch_size),
        _fitness_key(splits, parents, head),
        RowDifficulty(examples.count),
        CountCache(examples.count),
    )
    ranking = rank(parents, recipe, context) if recipe.order == "accuracy" else None
    outcome = RunOutcome(
        recipe,
        plan_merges(recipe, ranking),
        parents,
        splits,
        journal,
        loader,
        examples,
        calibration,
        forward.path,
        notices,
    )
    return outcome, context


def make_merges(
    outcome: RunOutcome, context: MergeContext, only: str | None = None
) -> list[MergedNode]:
    """Make the merges of a run one after the other, each after those that it needs.

    Args:
        outcome: recipe, plan and parents.
        context: what the merges share.
        only: the last merge to make; None for all merges of the tree.

    Raises:
        MegaError: as `merge_node`; RecipeError if there is no merge `only`.
    """
    plan, folder = outcome.plan, context.run.folder
    nodes, sources, merged = plan.needed_for(only), dict(outcome.parents.sources), []
    with context.run.time("search"):
        for number, (name, node) in enumerate(nodes.items(), start=1):
            target = folder.merged if name == plan.merged else folder.node(name)
            done = _make(name, node, plan.levels[name], sources, target, context)
            sources[name] = done.source
            merged.append(done)
            if context.run.processes.is_main and len(nodes) > 1:
                rerun = f"{done.new} evaluations" if done.new else "rebuilt from journal"
                logger.info(
                    "merge %d of %d, %s: %.2f %% on validation, %s",
                    number,
                    len(nodes),
                    name,
                    done.percent,
                    "kept from the earlier run" if done.reused else rerun,
                )
    return merged


def make_baselines(
    merged: list[MergedNode], outcome: RunOutcome, context: MergeContext
) -> list[MergedNode]:
    """Make the baselines of a run, and choose the final model on held-out rows.

    Args:
        merged: all merges, the final one last.
        outcome: recipe, plan and parents.
        context: what the merges share.

    Returns:
        the baselines, and the held-out selection last, if the recipe has rows for it.

    Raises:
        MegaError: as `merge_node`.
    """
    plan, folder, made = outcome.plan, context.run.folder, list[MergedNode]()
    sources = outcome.parents.sources | {one.name: one.source for one in merged}
    for name, node in plan.added.items():
        if name == SECOND_LOOK:
            held_out = _on_held_out_rows(context, outcome)
            done = _make(name, node, 1, sources, folder.merged, held_out)
            text = f"held-out selection: {node.parents[done.record['index']]}"
            rows = f"{done.record['n']} held-out rows"
        else:
            done = _make(name, node, 1, sources, folder.node(name), context)
            text, rows = f"baseline {name}", f"validation, {done.evaluations} evaluations"
        if context.run.processes.is_main:
            logger.info("%s: %.2f %% on %s", text, done.percent, rows)
        sources[name] = done.source
        made.append(done)
    return made


def _make(
    name: str,
    node: Node,
    level: int,
    sources: Mapping[str, ModelSource],
    target: Path,
    context: MergeContext,
) -> MergedNode:
    inputs = {parent: sources[parent] for parent in node.parents}
    return merge_node(name, node, level, inputs, target, context)


def _on_held_out_rows(context: MergeContext, outcome: RunOutcome) -> MergeContext:
    """Return a context that evaluates on the held-out rows, and knows no fitness yet."""
    rows = outcome.splits.second_look
    assert rows is not None, "a recipe with a held-out selection has rows for it"
    _, *others = context.fitness_key
    return replace(
        context,
        validation=outcome.load(rows),
        fitness_key=[outcome.splits.digests["second_look"], *others],
        difficulty=RowDifficulty(len(rows)),
        counts=CountCache(len(rows)),
    )


def _train_parents(prepared: Preparation, leaves: Sequence[str], run: RunContext) -> ParentSet:
    """Train the missing parents, and return all parents."""
    if not prepared.to_train:
        return prepared.parents
    with run.time("training"):
        run.train(prepared)
    with run.time("parents"):
        parents, references = ParentSet(prepared.splits), prepared.recipe.parents
        for name in leaves:
            parents.add_parent(name, references[parent_name(name)], run.parents / name)
    return parents


def _log_notices(recipe: Recipe, parents: ParentSet, splits: Splits, run: RunContext) -> list[str]:
    """Log what a user should know of parents and data, and return it for the report."""
    notices = [*splits.notices, *_check_substitutions(recipe, parents, splits)]
    notices += [] if parents.matched == "by name" else [f"classes are matched {parents.matched}"]
    for notice in notices if run.processes.is_main else ():
        logger.warning(notice)
    return notices


def _check_substitutions(recipe: Recipe, parents: ParentSet, splits: Splits) -> list[str]:
    """Return a warning for each path given for a placeholder that has another content."""
    digests: dict[str, Any] = {"data.path": splits.digests}
    for name, parent in parents.identities.items():
        digests |= {f"parents.{name}": parent.sha256, f"parents.{name}.weights": parent.sha256}
    warnings = []
    for key, (path, expected) in recipe.substitutions().items():
        # a model that parents are only trained from has not been opened yet
        got = digests[key] if key in digests else open_parent(key, path).parent.sha256
        if got != expected:
            warnings.append(
                f"{key} is not the model or data that the recipe names by its digest: the weights"
                " will differ from the original run's"
            )
    return warnings


def _load_images(
    recipe: Recipe, parents: ParentSet, splits: Splits, run: RunContext
) -> tuple[Loader, Examples, Calibration | None]:
    """Return a loader of images, the validation images, and those for BatchNorm statistics."""
    model, device, settings = parents.model, run.processes.device, recipe.evaluation
    rows = len(splits.validation)
    batch_size = choose_batch_size(
        settings.batch_size, rows, device, model.model, model.input_shape
    )
    loader = Loader(model, parents.mapping, batch_size, device, settings.memory_share)
    with run.time("pictures"):
        return loader, loader(splits.validation), loader.calibration(splits, recipe.threads)


def _prepare_forward(
    parents: ParentSet, examples: Examples, journal: Journal, recipe: Recipe, run: RunContext
) -> ResidentModel:
    """Return the resident model on the requested path, else on the path the run began with."""
    device = run.processes.device
    path = {"eager": EAGER, "compiled": COMPILED}.get(run.options.forward)
    path = path or (journal.header or {}).get("forward_path")
    forward = ResidentModel(parents.model.model, device)
    if path is None:
        forwarded = plan_merges(recipe).evaluations * examples.count
        path = choose_path(forward.model, examples, forwarded, device)
    if path == COMPILED and journal.header is None:
        with run.time("compiling"):
            compile_everywhere(forward, examples, run.processes)
        trim()  # the memory that the compiler used
    else:
        forward.path = path
    return forward


def _fitness_key(splits: Splits, parents: ParentSet, head: Mapping[str, Any]) -> list[Any]:
    """Return everything, beside weights and settings, that decides a fitness."""
    model = parents.model
    return [
        splits.digests["validation"],
        parents.mapping,
        model.library,
        model.structure,
        model.preprocessing,
        *(head[key] for key in ("device_kind", "forward_path", "batch_size")),
    ]
