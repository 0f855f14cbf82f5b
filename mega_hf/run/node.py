"""Make one merge: search its weights and save the best, or keep the model of an earlier run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mega_hf.errors import RunError
from mega_hf.evaluation.aligner import Aligner, Orders
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.evaluation.racing import RacingEvaluator
from mega_hf.evaluation.row_difficulty import CountCache, RowDifficulty
from mega_hf.models.load import open_model
from mega_hf.models.merge_inputs import (
    MergeInputs,
    ModelSource,
    encode,
    genomes_bytes,
    is_recalibrated,
    open_inputs,
)
from mega_hf.models.save import save_model
from mega_hf.recipe.merge import Node
from mega_hf.report.record import Digests, Generation, NodeResult, SearchResult
from mega_hf.run.align import align_inputs
from mega_hf.run.context import RunContext
from mega_hf.run.journal import Journal, NodeRecord
from mega_hf.run.replay import record_draws
from mega_hf.runtime.files import folder_digest, merged_digest, write_folder
from mega_hf.runtime.processes import Processes
from mega_hf.runtime.seeds import streams
from mega_hf.search.evolve import Evaluate, Outcome, RecordedDraws, Search
from mega_hf.search.methods import METHODS
from mega_hf.search.mutation import Gaussian, spread
from mega_hf.search.population import Genes
from mega_hf.search.selection import plan, plan_reference
from mega_hf.weights.encoding import Encoding
from mega_hf.weights.space import StateDict, digest


@dataclass(frozen=True)
class MergeContext:
    """The state that all merges of a run share.

    Attributes:
        run: folder, processes, progress bars and options.
        journal: the record of every fitness.
        forward: the resident model.
        validation: the examples that individuals are evaluated on.
        calibration: examples for BatchNorm statistics; None where no merge recalibrates, or can.
        chunk: rows that an individual sees before the search asks whether it can still win.
        fitness_key: everything, beside weights and settings, that decides a fitness: data,
            classes, preprocessing, device, forward path.
        difficulty: orders the validation rows.
        counts: the fitness of models that were evaluated on all validation rows.
        orders: permutations of channels that were found for other merges.
    """

    run: RunContext
    journal: Journal
    forward: ResidentModel
    validation: Examples
    calibration: Calibration | None
    chunk: int
    fitness_key: list[Any]
    difficulty: RowDifficulty
    counts: CountCache
    orders: dict[str, dict[str, Orders]] = field(default_factory=dict)

    @property
    def aligner(self) -> Aligner:
        """The aligner of the parents' channels."""
        shape = tuple(self.validation.images.shape[1:])
        return Aligner(self.forward, shape, self.calibration, self.run.processes, self.orders)

    def calibration_of(self, node: Node) -> Calibration | None:
        """Return the examples for a merge's statistics; None if the merge blends statistics."""
        return self.calibration if is_recalibrated(node, self.forward.model) else None


@dataclass(frozen=True)
class MergedNode:
    """A finished merge.

    Attributes:
        name: the name of the merge.
        node: its settings.
        level: its level in the tree.
        folder: the folder of the merged model.
        record: its `merged` line in the journal: digests, count, best individual, history.
        evaluations: individuals that were evaluated, in all runs.
        new: individuals that this run evaluated; the journal had the others.
        examples: examples forwarded for all evaluations.
        examples_full: examples that full evaluation would have forwarded.
        seconds: time spent on evaluations, in all runs.
        reused: whether the model was in the run folder already.
    """

    name: str
    node: Node
    level: int
    folder: Path
    record: dict[str, Any]
    evaluations: int
    new: int
    examples: int
    examples_full: int
    seconds: float
    reused: bool

    def __repr__(self) -> str:
        return f"MergedNode({self.name!r}, {self.percent:.2f} % on validation, {self.folder})"

    @property
    def percent(self) -> float:
        """The accuracy on the rows of the search, in percent."""
        return 100 * self.record["correct"] / self.record["n"]

    @cached_property
    def source(self) -> ModelSource:
        """The merged model as an input of other merges and of the report."""
        load = partial(open_model, self.folder, self.name)
        return ModelSource(self.name, self.record["state"], self.record["layout"], load)

    def describe(self) -> NodeResult:
        """Return the merge's entry in result.json."""
        best = {key: self.record[key] for key in ("correct", "n", "generation", "index")}
        return NodeResult(
            name=self.name,
            parents=self.node.parents,
            level=self.level,
            merge=self.node.settings,
            search=SearchResult(
                **best,
                pictures_evaluated=self.examples,
                pictures_full=self.examples_full,
                evaluations=self.evaluations,
                node=self.name,
            ),
            history=[Generation(**generation) for generation in self.record["history"]],
            digests=Digests(
                **{key: self.record[key] for key in ("weights", "statistics", "file", "state")}
            ),
            seconds={"evaluating": round(self.seconds, 1)},
        )


def merge_node(
    name: str,
    node: Node,
    level: int,
    inputs: dict[str, ModelSource],
    target: Path,
    context: MergeContext,
) -> MergedNode:
    """Make one merge and save its model, or take it from the run folder if it is there already.

    Args:
        name: the name of the merge, which its random streams are derived from.
        node: its settings.
        level: its level in the tree.
        inputs: the models that it merges, in the recipe's order.
        target: the folder of the merged model.
        context: what all merges share.

    Raises:
        RunError: no individual had finite logits, or the weights are not those of the journal.
    """
    calibration, processes = context.calibration_of(node), context.run.processes
    contents = [source.sha256 for source in inputs.values()]
    used = context.calibration if node.align == "activations" else calibration
    fitness_key = [*context.fitness_key, *(used.key if used else ())]
    decisive = json.dumps([name, node.settings, contents, fitness_key])
    key = hashlib.sha256(decisive.encode()).hexdigest()
    known = context.journal.node(name, key, write=processes.is_main)
    # no part of the key, since it decides no fitness
    layout = next(iter(inputs.values())).layout
    reused = (
        known.merged is not None
        and known.merged.get("layout") == layout
        and target.is_dir()
        and folder_digest(target) == known.merged.get("folder")
    )
    before = len(known)
    # all processes look before the main process writes
    processes.compare(f"{name} in the run folder", reused)
    record = known.merged if reused else _make(name, node, inputs, target, known, context)
    assert record is not None
    rows = context.validation.count
    if record["n"] == rows:  # as a founder of the next merge it is not evaluated again
        for recalibrated in {False, calibration is not None}:
            state_key = CountCache.cache_key(record["state"], recalibrated)
            context.counts.keep(state_key, record["correct"])
    full = node.evaluations * (rows + (calibration.examples.count if calibration else 0))
    return MergedNode(
        name,
        node,
        level,
        target,
        record,
        evaluations=len(known),
        new=len(known) - before,
        examples=known.examples,
        examples_full=full,
        seconds=known.seconds,
        reused=reused,
    )


def _make(
    name: str,
    node: Node,
    sources: dict[str, ModelSource],
    target: Path,
    known: NodeRecord,
    context: MergeContext,
) -> dict[str, Any]:
    """Search, save the best individual, and return its line of the journal."""
    inputs = open_inputs(sources, context.calibration_of(node) is not None)
    inputs = align_inputs(node, inputs, known, context.aligner)
    first, space, layout = inputs.first, inputs.space, next(iter(sources.values())).layout
    outcome, state = _search(name, node, sources, inputs, known, context)
    del inputs  # unmap the parents before all weights are copied to be saved
    best, recorded = outcome.best, known.merged
    if best.fitness.correct is None:
        raise RunError(
            f"every individual of {name} produced NaN or infinite logits",
            expected="at least one individual with finite logits",
            got="none",
            hint="try a smaller mutation.std",
        )
    weights = space.learned_digest(state)
    if recorded is not None and recorded["weights"] != weights:
        raise RunError(
            f"{name}: the search gives different weights from those in the journal",
            where=str(context.journal.path),
            expected=recorded["weights"],
            got=weights,
            hint="the journal was changed, or this is a bug in mega_hf; use --overwrite to start"
            " again",
        )
    if context.run.processes.is_main:
        write_folder(target, lambda path: save_model(path, first, state))
    context.run.processes.wait()
    record = {
        "weights": weights,
        "statistics": space.statistics_digest(state),
        "file": merged_digest(target),
        "folder": folder_digest(target),
        "layout": layout,
        "state": digest(state),
        "parameters": space.learned_size,
        **outcome_fields(outcome),
    }
    if context.run.processes.is_main:
        if recorded is None or recorded["folder"] != record["folder"]:
            context.run.folder.drop_report()  # it describes the model that was there before
        known.finish(record)
    return record


def outcome_fields(outcome: Outcome) -> dict[str, Any]:
    """Return the best individual and the history of a search, as in a merge's journal line."""
    best = outcome.best
    return {
        "correct": best.fitness.correct,
        "n": best.fitness.seen,
        "generation": best.generation,
        "index": best.index,
        "history": [asdict(generation) for generation in outcome.history],
    }


def _search(
    name: str,
    node: Node,
    sources: dict[str, ModelSource],
    inputs: MergeInputs,
    known: NodeRecord,
    context: MergeContext,
) -> tuple[Outcome, StateDict]:
    """Return the outcome of a search, and the state dict of its best individual."""
    run, counts, calibration = context.run, context.counts, context.calibration_of(node)
    _check_memory(name, node, inputs, run.processes)
    encoding = encode(inputs, node)
    for parent, source in zip(encoding.parents, sources.values(), strict=True):
        state_key = counts.cache_key(source.sha256, calibration is not None)
        fitness = counts.find(state_key, node.sums_losses)
        # a parent whose channels were moved may round differently
        if fitness is not None and source.name not in inputs.moved:
            loss = fitness.loss if node.sums_losses else None
            counts.keep(encoding.digest(parent), fitness.correct, loss)
    with run.progress.bar(f"search {name}", node.evaluations, "evaluations") as advance:
        evaluator = RacingEvaluator(
            context.forward,
            context.validation,
            encoding,
            run.processes,
            known,
            _accuracy_of(context.validation, advance),
            context.difficulty,
            counts,
            context.chunk,
            run.options.full_evaluation,
            calibration,
            node.sums_losses,
        )
        outcome = search_node(name, node, encoding, evaluator, record_draws(known, evaluator))
    state = dict(encoding.entries(outcome.best.genome))
    if calibration:
        context.forward.write(state.items(), part=True)
        state |= calibration.recalibrate(context.forward, inputs.space.recomputed)
        run.processes.compare(f"statistics of {name}", inputs.space.statistics_digest(state))
    return outcome, state


def _check_memory(name: str, node: Node, inputs: MergeInputs, processes: Processes) -> None:
    """Raise RunError on all processes if one has no memory for its population."""
    needed = genomes_bytes(node, len(node.parents), inputs.space.size)
    free = psutil.virtual_memory().available // processes.on_this_machine
    if processes.add_up(np.array([needed > free], dtype=np.int64)).any():
        count = processes.on_this_machine
        each = f" for each of {count} processes" if count > 1 else ""
        raise RunError(
            f"not enough memory for the population of {name}",
            expected=f"{_gib(needed)} free{each}",
            got=_gib(free),
            hint="use merge.encoding: mixing, which has small genomes, or a smaller population_size"
            + (", or fewer processes" if each else ""),
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def search_node(
    name: str, node: Node, encoding: Encoding, evaluate: Evaluate, draws: RecordedDraws
) -> Outcome:
    """Search the weights of one merge.

    Args:
        name: the name of the merge, which its random streams are derived from.
        node: its settings.
        encoding: turns a genome into weights; it holds the parents.
        evaluate: returns the fitness of each individual, evaluated or from the journal.
        draws: proposals and predictions, made now or read from the journal.
    """
    mutation, reference = node.mutation, node.variant == "reference"
    gaussian = Gaussian(
        mutation.rate, mutation.std, mutation.scope, mutation.relative, statistics=reference
    )
    search = Search(
        node.population_size,
        node.generations,
        node.num_mates,
        node.tournament_size,
        gaussian,
        node.founders.include_parents,
        plan_reference if reference else plan,
        node.evaluations,
        node.prefer,
    )
    return METHODS[node.method](
        encoding.parents, _genes(encoding), search, streams(node.seed, name), evaluate, draws
    )


def _accuracy_of(
    examples: Examples, advance: Callable[[int, str], None]
) -> Callable[[int, int], None]:
    return lambda count, best: advance(count, f"best {100 * best / examples.count:.2f} %")


def _genes(encoding: Encoding) -> Genes:
    parents = encoding.parents
    scales = tuple(
        spread([parent[start:stop].numpy() for parent in parents])
        for start, stop in encoding.bounds
    )
    return Genes(encoding.bounds, encoding.learned, scales)
