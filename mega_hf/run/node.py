"""One merge of the tree: taken from the run folder if nothing that decides it changed, else
searched and saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mega_hf.errors import RunError
from mega_hf.evaluation.aligner import Aligner, Orders
from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.evaluation.racing import RacingEvaluator
from mega_hf.evaluation.row_difficulty import RowDifficulty, cache_key
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
from mega_hf.models.weight_files import weight_files
from mega_hf.recipe.merge import Node
from mega_hf.run.align import align_inputs
from mega_hf.run.folder import RunFolder
from mega_hf.run.journal import Journal, NodeRecord
from mega_hf.run.replay import record_draws
from mega_hf.runtime.files import folder_digest, merged_digest, write_folder
from mega_hf.runtime.processes import Processes
from mega_hf.runtime.progress import Progress
from mega_hf.runtime.seeds import streams
from mega_hf.search.evolve import Evaluate, Outcome, RecordedDraws, Search
from mega_hf.search.methods import METHODS
from mega_hf.search.mutation import Gaussian, spread
from mega_hf.search.population import Genes
from mega_hf.search.selection import plan, plan_reference
from mega_hf.weights.encoding import Encoding
from mega_hf.weights.space import StateDict, digest

# called before each generation is evaluated, and after the last
Pause = Callable[[ResidentModel, Examples], None]


@dataclass(frozen=True)
class MergeContext:
    """What all merges of a run share."""

    folder: RunFolder
    forward: ResidentModel
    validation: Examples
    journal: Journal
    processes: Processes
    progress: Progress
    # what decides every fitness beside weights: data, classes, preprocessing, device, path
    context: list[Any]
    memory: RowDifficulty  # of the validation rows
    chunk: int  # rows shown to an individual before it is asked whether it may still win
    full: bool  # measure every individual on every row
    calibration: Calibration | None  # for merges that recalibrate; None where none does, or can
    # what a benchmark does whenever individuals are measured, on all processes
    pause: Pause | None = None
    # of channels, found for other merges
    orders: dict[str, dict[str, Orders]] = field(default_factory=dict)

    @property
    def tracer(self) -> Aligner:
        """What finds the permutations of parents' channels."""
        return Aligner(
            self.forward,
            tuple(self.validation.images.shape[1:]),
            self.calibration,
            self.processes,
            self.orders,
        )


@dataclass(frozen=True)
class MergedNode:
    """A merge that is done: `record` is its line in the journal."""

    name: str
    node: Node
    level: int
    folder: Path
    # digests: file, weights, statistics, state, layout; correct, n, generation, index, history
    record: dict[str, Any]
    evaluations: int
    measured: int  # of these, in this run; the others stood in the journal
    examples: int  # that were forwarded for them
    pictures_full: int  # that full evaluation would have forwarded
    seconds: float  # spent on evaluations
    reused: bool  # taken from the run folder

    @property
    def source(self) -> ModelSource:
        """The merged model as an input of other merges, and of the report."""
        load = partial(open_model, self.folder, self.name)
        files = weight_files(self.folder, self.name)
        return ModelSource(self.name, self.record["state"], self.record["layout"], load, files)

    def describe(self) -> dict[str, Any]:
        """Return what a result says of it."""
        best = {key: self.record[key] for key in ("correct", "n", "generation", "index")}
        best |= {"pictures_evaluated": self.examples, "pictures_full": self.pictures_full}
        return {
            "name": self.name,
            "parents": self.node.parents,
            "level": self.level,
            "merge": self.node.settings,
            "search": {**best, "evaluations": self.evaluations, "node": self.name},
            "history": self.record["history"],
            "digests": {
                key: self.record[key] for key in ("weights", "statistics", "file", "state")
            },
            "seconds": {"evaluating": round(self.seconds, 1)},
        }


def merge_node(
    name: str,
    node: Node,
    level: int,
    inputs: dict[str, ModelSource],
    target: Path,
    workshop: MergeContext,
) -> MergedNode:
    """Make one merge, or take it from the run folder; its model is then whole at `target`.

    Args:
        name: the node: its random streams bear this name, whatever its place in the tree.
        node: its settings.
        level: how far above the parents it stands.
        inputs: what it merges, in the recipe's order.
        target: where the merged model goes.
        workshop: what all merges share.

    Raises:
        RunError: no individual gave finite logits, or a replay gives other weights than the journal
            says.
    """
    contents = [source.sha256 for source in inputs.values()]
    calibration = _calibration(node, workshop)
    shown = workshop.calibration if node.align == "activations" else calibration
    context = [*workshop.context, *(shown.key if shown else ())]
    key = hashlib.sha256(json.dumps([name, node.settings, contents, context]).encode()).hexdigest()
    known = workshop.journal.node(name, key, write=workshop.processes.is_main)
    # decides no fitness: where it alone has changed, nothing is evaluated
    layout = next(iter(inputs.values())).layout
    reused = (
        known.merged is not None
        and known.merged.get("layout") == layout
        and target.is_dir()
        and folder_digest(target) == known.merged.get("folder")
    )
    before = len(known)
    # and so nothing is written before all have looked
    workshop.processes.compare(f"{name} in the run folder", reused)
    record = known.merged if reused else _make(name, node, inputs, target, known, workshop)
    assert record is not None
    if record["n"] == workshop.validation.count:
        # a founder of the next merge: not measured again
        for is_recalibrated_run in {False, calibration is not None}:
            workshop.memory.keep(cache_key(record["state"], is_recalibrated_run), record["correct"])
    full = node.evaluations * (
        workshop.validation.count + (calibration.examples.count if calibration else 0)
    )
    made = len(known) - before
    return MergedNode(
        name,
        node,
        level,
        target,
        record,
        len(known),
        made,
        known.examples,
        full,
        known.seconds,
        reused,
    )


def _make(
    name: str,
    node: Node,
    inputs: dict[str, ModelSource],
    target: Path,
    known: NodeRecord,
    workshop: MergeContext,
) -> dict[str, Any]:
    opened = open_inputs(inputs, _calibration(node, workshop) is not None)
    opened = align_inputs(node, opened, known, workshop.tracer)
    first, space, layout = opened.first, opened.space, next(iter(inputs.values())).layout
    outcome, state = _search(name, node, inputs, opened, known, workshop)
    del opened  # what is mapped goes before a copy of all weights is made to be saved
    best, was = outcome.best, known.merged
    if best.fitness.correct is None:
        raise RunError(
            f"no individual of {name} gave finite logits",
            expected="a measurable model",
            got="none",
            hint="a smaller mutation.std",
        )
    weights = space.learned_digest(state)
    if was is not None and was["weights"] != weights:
        raise RunError(
            f"{name}: the replay gives other weights than the run did",
            where=str(workshop.journal.path),
            expected=was["weights"],
            got=weights,
            hint=(
                "the journal was changed, or this is a fault of mega_hf: --overwrite starts afresh"
            ),
        )
    if workshop.processes.is_main:
        write_folder(target, lambda path: save_model(path, first, state))
    workshop.processes.wait()
    record = {
        "weights": weights,
        "statistics": space.statistics_digest(state),
        "file": merged_digest(target),
        "folder": folder_digest(target),
        "layout": layout,
        "state": digest(state),
        "parameters": space.learned_size,
        "correct": best.fitness.correct,
        "n": best.fitness.seen,
        "generation": best.generation,
        "index": best.index,
        "history": [asdict(generation) for generation in outcome.history],
    }
    if workshop.processes.is_main:
        if was is None or was["folder"] != record["folder"]:
            workshop.folder.drop_report()  # it tells of what was there before
        known.finish(record)
    return record


def _search(
    name: str,
    node: Node,
    inputs: dict[str, ModelSource],
    opened: MergeInputs,
    known: NodeRecord,
    workshop: MergeContext,
) -> tuple[Outcome, StateDict]:
    """Return what came of a search, and the best individual's weights."""
    _refuse_shortage(name, node, opened, workshop.processes)
    encoding = encode(opened, node)
    calibration = _calibration(node, workshop)
    for parent, source in zip(encoding.parents, inputs.values(), strict=True):
        counted = workshop.memory.find(
            cache_key(source.sha256, calibration is not None), node.sums_losses
        )
        if counted is not None and source.name not in opened.moved:  # moved, it may round otherwise
            workshop.memory.keep(
                encoding.digest(parent),
                counted.correct,
                counted.loss if node.sums_losses else None,
            )
    with workshop.progress.bar(f"search {name}", node.evaluations, "evaluations") as advance:
        report = _accuracy_of(workshop.validation, advance)
        pause = partial(workshop.pause or (lambda *_: None), workshop.forward, workshop.validation)

        def settled(count: int, best: int) -> None:
            report(count, best)
            pause()

        evaluation = RacingEvaluator(
            workshop.forward,
            workshop.validation,
            encoding,
            workshop.processes,
            known,
            settled,
            workshop.memory,
            workshop.chunk,
            workshop.full,
            calibration,
            node.sums_losses,
        )
        recall = record_draws(known, evaluation)
        outcome = search_node(name, node, encoding, evaluation, recall)
    state = dict(encoding.entries(outcome.best.genome))
    if calibration:
        workshop.forward.write(state.items(), part=True)
        state |= calibration.recalibrate(workshop.forward, opened.space.recomputed)
        workshop.processes.compare(f"statistics of {name}", opened.space.statistics_digest(state))
    return outcome, state


def _calibration(node: Node, workshop: MergeContext) -> Calibration | None:
    """Return the pictures from which a merge's statistics follow; None where they are blended, or
    there are none."""
    return workshop.calibration if is_recalibrated(node, workshop.forward.model) else None


def _refuse_shortage(name: str, node: Node, opened: MergeInputs, processes: Processes) -> None:
    """Refuse, on all processes or on none, a population that the machine has no memory for."""
    needed = genomes_bytes(node, len(node.parents), opened.space.size)
    free = psutil.virtual_memory().available // processes.on_this_machine
    if processes.add_up(np.array([needed > free], dtype=np.int64)).any():
        each = (
            ""
            if processes.on_this_machine == 1
            else f" for each of {processes.on_this_machine} processes"
        )
        raise RunError(
            f"there is no memory for the population of {name}",
            expected=f"{_gib(needed)}{each}, free",
            got=_gib(free),
            hint="merge.encoding: mixing, whose genomes are small; or a smaller population_size"
            + (", or fewer processes" if each else ""),
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def search_node(
    name: str, node: Node, encoding: Encoding, evaluate: Evaluate, recall: RecordedDraws
) -> Outcome:
    """Search the weights of one node.

    Args:
        name: the node, whose random streams bear this name.
        node: its settings.
        encoding: what a genome means; it holds what is merged.
        evaluate: gives each individual its fitness, measured or from a journal.
        recall: gives what else a method needs, made or from a journal.
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
        encoding.parents, _genes(encoding), search, streams(node.seed, name), evaluate, recall
    )


def _accuracy_of(
    examples: Examples, advance: Callable[[int, str], None]
) -> Callable[[int, int], None]:
    return lambda measured, best: advance(measured, f"best {100 * best / examples.count:.2f} %")


def _genes(encoding: Encoding) -> Genes:
    parents = encoding.parents
    scales = tuple(
        spread([parent[start:stop].numpy() for parent in parents])
        for start, stop in encoding.bounds
    )
    return Genes(encoding.bounds, encoding.learned, scales)
