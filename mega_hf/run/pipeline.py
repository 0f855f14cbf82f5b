"""THE PIPELINE: recipe -> parents -> tree of merges, each weight space -> generations <-> fitness
-> report."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mega_hf.errors import RecipeError
from mega_hf.evaluation.aligner import Aligner
from mega_hf.evaluation.batch_size import choose_batch_size, choose_chunk
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.compile import choose_path, compile_everywhere
from mega_hf.evaluation.forward import COMPILED, EAGER, Examples, ResidentModel
from mega_hf.evaluation.loader import Loader
from mega_hf.evaluation.row_difficulty import RowDifficulty
from mega_hf.models.merge_inputs import ModelSource, is_recalibrated
from mega_hf.models.references import open_parent
from mega_hf.recipe import tree
from mega_hf.recipe.baselines import SECOND_LOOK, names_merged
from mega_hf.recipe.merge import Node, inputs_of
from mega_hf.recipe.schema import Recipe
from mega_hf.recipe.tree import parent_name
from mega_hf.report.result import MergeResult
from mega_hf.run.auto import decide_recipe, write_choice
from mega_hf.run.context import EvaluationOptions, ForwardPath, RunContext, open_run
from mega_hf.run.journal import Journal
from mega_hf.run.node import MergeContext, MergedNode, Pause, merge_node
from mega_hf.run.parents import ParentSet, rank
from mega_hf.run.prepare import Preparation, add_calibration_rows, prepare, trained_for
from mega_hf.run.record import RunOutcome, header, write_report
from mega_hf.runtime.environment import trim
from mega_hf.tasks.rows import Split
from mega_hf.tasks.splits import Splits

logger = logging.getLogger(__name__)


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
    progress: bool = False,
) -> MergeResult:
    """Merge the parents of a recipe and leave a run folder behind.

    The same recipe in the same folder goes on where it was stopped, and answers at once when it was
    finished.

    Args:
        recipe: what to do.
        out: the run folder; `runs/NAME` in the working folder by default.
        overwrite: start afresh where an earlier run is.
        update: run what another recipe, or other parents or data, change of an earlier run, and
            keep the rest.
        keep: `final` drops the intermediate models of a tree once the report is made.
        parents: the folder in which trained parents are looked for and left; the run folder's own
            by default.
        forward: run the model `compiled` or `eager`; `auto` goes on as the run was begun, and
            begins compiled where that saves time. The two round differently, so a result is
            promised for each.
        full_evaluation: measure every individual on every row; the result is the same, and takes
            longer.
        progress: show bars on standard error.

    Raises:
        MegaError: anything that its caller can mend; files are whole and the run resumes.
    """
    with open_run(
        recipe,
        out,
        overwrite,
        update,
        parents,
        progress,
        EvaluationOptions(forward, full_evaluation),
    ) as run:
        result = run.finished()
        if result is None:
            merged, finding, workshop = search(recipe, run)
            with run.time("baselines"):
                beside = make_baselines(merged, finding, workshop)
            del workshop
            finding.parents.release(finding.forward_path == COMPILED)
            result = write_report(finding, merged, beside, run.folder, run.processes, run.seconds)
        elif run.processes.is_main:
            run.folder.tidy()
        if keep == "final" and run.processes.is_main:
            run.folder.drop_intermediates()
        return result


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
    progress: bool = False,
) -> MergedNode:
    """Make one merge of a tree and those that it needs; the test split is not looked at, no report
    is made.

    Args: as `merge`; `node` is the merge's name.

    Raises:
        MegaError: as `merge`; RecipeError if there is no such node.
    """
    with open_run(
        recipe,
        out,
        overwrite,
        update,
        parents,
        progress,
        EvaluationOptions(forward, full_evaluation),
    ) as run:
        return search(recipe, run, node)[0][-1]


def train(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    parent: str | None = None,
    update: bool = False,
    parents: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Path]:
    """Train the parents of a recipe that are given by seeds, or one of them, and merge nothing.

    Args: as `merge`; `parent` is the name of one.

    Returns:
        name -> the folder of its model, snapshots included.

    Raises:
        MegaError: as `merge`; RecipeError if there is nothing to train.
    """
    if not recipe.trained or (parent is not None and parent not in recipe.trained):
        known_names = ", ".join(recipe.trained) or "parents with train: {seed: ...}"
        hint = (
            "name one that is trained, or leave --parent out"
            if recipe.trained
            else "mega-hf merge needs no training"
        )
        raise RecipeError("nothing to train", expected=known_names, got=parent or "none", hint=hint)
    with open_run(recipe, out, False, update, parents, progress) as run:
        known = run.acquire(recipe)
        names = trained_for(known, [parent] if parent else list(known.trained))
        prepared = prepare(known, names, run.kept, run.update, time=run.time)
        run.create(recipe, prepared.recipe, prepared.replaced)
        run.train(prepared.recipe, prepared.keys, prepared.splits)
        wanted = [name for name in prepared.recipe.usable if parent_name(name) in names]
        return {name: run.parents / name for name in wanted}


def search(
    asked: Recipe, run: RunContext, only: str | None = None, pause: Pause | None = None
) -> tuple[list[MergedNode], RunOutcome, MergeContext]:
    """Make the merges of a run that was started, or those that `only` needs, and no report; `pause`
    as in `Workshop`.

    Returns:
        the merges, the last is the root, or `only`; what a report needs beside them, and what they
        shared.

    Raises:
        MegaError: as `merge`.
    """
    recipe = run.acquire(asked)
    leaves = recipe.leaves(only)
    prepared = prepare(recipe, leaves, run.kept, run.update, time=run.time)
    recipe, splits = prepared.recipe, prepared.splits
    run.create(asked, recipe, prepared.replaced)
    if run.processes.is_main and run.is_kept:
        logger.info(
            "merging into %s; press Ctrl-C to stop, run the same command to resume", run.folder.path
        )
    parents = _train_parents(prepared, leaves, run)
    notices = _notices(recipe, parents, splits, run)
    load, examples, calibration = _load(recipe, parents, splits, run)
    journal, model = Journal(run.folder.journal), parents.model
    run.processes.wait()  # nobody reads the journal after the main process has begun to write
    forward = _prepare_forward(parents, examples, journal, recipe, run)
    choice = None
    if recipe.is_auto:
        tracer = Aligner(forward, model.input_shape, calibration, run.processes)
        choice = decide_recipe(recipe, parents.sources, tracer, examples)
        recipe = recipe.with_auto(choice.settings)
        splits = add_calibration_rows(recipe, prepared.loaded, model)
        recipe = recipe.model_copy(update={"data": splits.data})
        calibration = calibration if "calibration" in splits.digests else None
    head = header(recipe, parents, splits, run.processes.device_kind, forward.path, load.batch_size)
    for what, value in (head | {"journal": journal.checksum}).items():
        run.processes.compare(what.replace("_", " "), value)
    if run.processes.is_main:
        journal.begin(head, run.update)
    if choice is not None:
        write_choice(choice, asked, recipe, journal, run)
    context = _context(splits, parents, head)
    ranking, memory = None, RowDifficulty(examples.count)
    if recipe.order == "accuracy":
        recalibrated = calibration if is_recalibrated(recipe.merge, model.model) else None
        ranking = rank(
            parents, journal, forward, examples, run.processes, context, memory, recalibrated
        )
    workshop = MergeContext(
        run.folder,
        forward,
        examples,
        journal,
        run.processes,
        run.progress,
        context,
        memory,
        choose_chunk(recipe.evaluation.batch_size, load.batch_size),
        run.how.full,
        calibration,
        pause,
    )
    last = names_merged(recipe.all_nodes(ranking))
    with run.time("search"):
        merged = _merge_nodes(recipe.chosen_nodes(only, ranking), last, parents, run, workshop)
    finding = RunOutcome(
        recipe,
        parents,
        splits,
        journal,
        load,
        examples,
        calibration,
        forward.path,
        notices,
        ranking,
    )
    return merged, finding, workshop


def _notices(recipe: Recipe, parents: ParentSet, splits: Splits, run: RunContext) -> list[str]:
    """Return what is to be said of parents and data, having said it."""
    notices = [*splits.notices, *_check_substitutions(recipe, parents, splits)]
    notices += [] if parents.matched == "by name" else [f"classes are matched {parents.matched}"]
    for notice in notices if run.processes.is_main else ():
        logger.warning(notice)
    return notices


def _load(
    recipe: Recipe, parents: ParentSet, splits: Splits, run: RunContext
) -> tuple[Loader, Examples, Calibration | None]:
    """Return what loads pictures for these parents, the validation rows', and those for BatchNorm's
    statistics."""
    model, device, settings = parents.model, run.processes.device, recipe.evaluation
    rows = len(splits.validation)
    batch_size = choose_batch_size(
        settings.batch_size, rows, device, model.model, model.input_shape
    )
    load = Loader(model, parents.mapping, batch_size, device, settings.memory_share)
    with run.time("pictures"):
        return load, load(splits.validation), load.calibration(splits, recipe.threads)


def _prepare_forward(
    parents: ParentSet, examples: Examples, journal: Journal, recipe: Recipe, run: RunContext
) -> ResidentModel:
    """Return the resident model, which runs as was asked, else as it did when the run was begun."""
    device = run.processes.device
    asked = {"eager": EAGER, "compiled": COMPILED}.get(run.how.forward)
    path = asked or (journal.header or {}).get("forward_path")
    forward = ResidentModel(parents.model.model, device)
    if path is None:
        evaluations = sum(node.evaluations for node in recipe.all_nodes().values())
        path = choose_path(forward.model, examples, evaluations * examples.count, device)
    if path == COMPILED and journal.header is None:
        with run.time("compiling"):
            compile_everywhere(forward, examples, run.processes)
        trim()  # what the compiler needed
    else:
        forward.path = path
    return forward


def _check_substitutions(recipe: Recipe, parents: ParentSet, splits: Splits) -> list[str]:
    """Return a warning for each path given for a placeholder that has another content."""
    digests: dict[str, Any] = {"data.path": splits.digests}
    for name, parent in parents.identities.items():
        digests |= {f"parents.{name}": parent.sha256, f"parents.{name}.weights": parent.sha256}
    warnings = []
    for key, (path, expected) in recipe.substitutions().items():
        # A model that parents are only trained from has not been opened yet.
        got = digests[key] if key in digests else open_parent(key, path).parent.sha256
        if got != expected:
            warnings.append(
                f"{key} is not the model or data that the recipe names by its digest: the weights"
                " will differ from the original run's"
            )
    return warnings


def _context(splits: Splits, parents: ParentSet, head: dict[str, Any]) -> list[Any]:
    """Return what decides every fitness beside weights and settings."""
    model = parents.model
    run = [head[key] for key in ("device_kind", "forward_path", "batch_size")]
    return [
        splits.digests["validation"],
        parents.mapping,
        model.library,
        model.structure,
        model.preprocessing,
        *run,
    ]


def _merge_nodes(
    nodes: dict[str, Node], last: str, parents: ParentSet, run: RunContext, workshop: MergeContext
) -> list[MergedNode]:
    """Make the merges one after the other, each after those that it needs."""
    sources, merged, level = dict(parents.sources), [], tree.levels(inputs_of(nodes))
    for number, (name, node) in enumerate(nodes.items(), start=1):
        target = run.folder.merged if name == last else run.folder.node(name)
        inputs = {parent: sources[parent] for parent in node.parents}
        done = merge_node(name, node, level[name], inputs, target, workshop)
        sources[name] = done.source
        merged.append(done)
        if run.processes.is_main and len(nodes) > 1:
            accuracy = 100 * done.record["correct"] / done.record["n"]
            made = (
                f"{done.measured} evaluations" if done.measured else "made again from the journal"
            )
            how = "taken from the run folder" if done.reused else made
            logger.info(
                "node %d of %d, %s: %.2f %% on validation, %s",
                number,
                len(nodes),
                name,
                accuracy,
                how,
            )
    return merged


def _train_parents(prepared: Preparation, leaves: Sequence[str], run: RunContext) -> ParentSet:
    """Train the missing parents, and return all parents."""
    if not prepared.to_train:
        return prepared.parents
    with run.time("training"):
        run.train(prepared.recipe, prepared.keys, prepared.splits)
    with run.time("parents"):
        parents, references = ParentSet(prepared.splits), prepared.recipe.parents
        for name in leaves:
            parents.add_parent(name, references[parent_name(name)], run.parents / name)
    return parents


def make_baselines(
    merged: list[MergedNode], finding: RunOutcome, workshop: MergeContext
) -> list[MergedNode]:
    """Make a run's baselines, and choose between them, the parents and the final merge; or take all
    from its folder.

    Args:
        merged: the merges, the final one last.
        finding: what the run found.
        workshop: what all merges share.

    Returns:
        the baselines and, if there is a second look, what it chose, last.

    Raises:
        MegaError: as `merge_node`.
    """
    nodes, splits = finding.recipe.all_nodes(finding.ranking), finding.splits
    known = {one.name: one for one in merged}
    sources = finding.parents.sources | {name: one.source for name, one in known.items()}
    for name in (name for name in nodes if name not in known):
        shop, target = workshop, workshop.folder.node(name)
        if name == SECOND_LOOK:
            assert splits.second_look is not None, (
                "where a recipe asks for a second look there are rows for it"
            )
            shop = _on_other_rows(workshop, finding, splits.second_look)
            target = workshop.folder.merged
        known[name] = _make(name, nodes[name], sources, target, shop)
        sources[name] = known[name].source
    return list(known.values())[len(merged) :]


def _make(
    name: str, node: Node, sources: dict[str, ModelSource], target: Path, workshop: MergeContext
) -> MergedNode:
    done = merge_node(
        name, node, 1, {parent: sources[parent] for parent in node.parents}, target, workshop
    )
    if workshop.processes.is_main:
        percent = 100 * done.record["correct"] / done.record["n"]
        if name == SECOND_LOOK:
            chosen = node.parents[done.record["index"]]
            logger.info(
                "second look: %s is named, %.2f %% of %d other rows",
                chosen,
                percent,
                done.record["n"],
            )
        else:
            logger.info(
                "baseline %s: %.2f %% on validation, %d evaluations",
                name,
                percent,
                done.evaluations,
            )
    return done


def _on_other_rows(workshop: MergeContext, finding: RunOutcome, rows: Split) -> MergeContext:
    """Return a workshop that measures on the rows of the second look, and knows of no fitness on
    the others."""
    _, *context = workshop.context
    context = [finding.splits.digests["second_look"], *context]
    return replace(
        workshop, validation=finding.load(rows), context=context, memory=RowDifficulty(len(rows))
    )
