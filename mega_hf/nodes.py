"""One merge of the tree: taken from the run folder if nothing that decides it changed, else searched and saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mega_hf.errors import RunError
from mega_hf.evaluation.fitness import Evaluation, Interval
from mega_hf.evaluation.forward import Forward, Pictures
from mega_hf.evaluation.memory import Memory
from mega_hf.evaluation.processes import Processes
from mega_hf.files import folder_digest, merged_digest, write_folder
from mega_hf.genetic.evolve import Evaluate, Outcome, Search, evolve
from mega_hf.genetic.mutation import Gaussian, spread
from mega_hf.genetic.population import Fitness, Genes
from mega_hf.genetic.seeds import streams
from mega_hf.genetic.selection import contenders, plan, plan_reference
from mega_hf.hf.models import OpenModel, open_model
from mega_hf.hf.save import save_model
from mega_hf.journal import Journal, NodeRecord
from mega_hf.progress import Progress
from mega_hf.run_folder import RunFolder
from mega_hf.settings import Node
from mega_hf.weights.space import WeightSpace, build_space, digest


@dataclass(frozen=True)
class Workshop:
    """What all merges of a run share."""

    folder: RunFolder
    forward: Forward
    validation: Pictures
    journal: Journal
    processes: Processes
    progress: Progress
    context: list[Any]  # what decides every fitness beside weights: data, classes, preprocessing, device, path
    memory: Memory  # of the validation rows
    full: bool  # measure every individual on every row


@dataclass(frozen=True)
class Source:
    """A parent or a merged node as an input of a merge."""

    name: str
    sha256: str  # of its state dict
    layout: str  # the digest of what a merge takes from it beside weights, if it is the first
    load: Callable[[], OpenModel]

    def open(self) -> OpenModel:
        """Load the model and see that it is still the one that was identified.

        Raises:
            RunError: it has been changed since.
        """
        model = self.load()
        found = digest(model.state())
        if found != self.sha256:
            raise RunError(
                f"{self.name} was changed while the run was going on", expected=f"weights {self.sha256[:12]}",
                got=f"weights {found[:12]}", remedy="the same command again, when nothing else writes there",
            )  # fmt: skip
        return model


@dataclass(frozen=True)
class Merged:
    """A merge that is done: `record` is its line in the journal."""

    name: str
    node: Node
    level: int
    folder: Path
    record: dict[str, Any]  # digests: file, weights, statistics, state, layout; correct, n, generation, index, history
    evaluations: int
    measured: int  # of these, in this run; the others stood in the journal
    pictures: int  # that were forwarded for them
    pictures_full: int  # that full evaluation would have forwarded
    seconds: float  # spent on evaluations
    reused: bool  # taken from the run folder

    @property
    def source(self) -> Source:
        """The merged model as an input of other merges, and of the report."""
        load = partial(open_model, self.folder, self.name)
        return Source(self.name, self.record["state"], self.record["layout"], load)

    def describe(self) -> dict[str, Any]:
        """Return what a result says of it."""
        best = {key: self.record[key] for key in ("correct", "n", "generation", "index")}
        best |= {"pictures_evaluated": self.pictures, "pictures_full": self.pictures_full}
        return {
            "name": self.name, "parents": self.node.parents, "level": self.level, "merge": self.node.settings,
            "search": {**best, "evaluations": self.evaluations, "node": self.name},
            "history": self.record["history"],
            "digests": {key: self.record[key] for key in ("weights", "statistics", "file", "state")},
            "seconds": {"evaluating": round(self.seconds, 1)},
        }  # fmt: skip


def merge_node(
    name: str, node: Node, level: int, inputs: dict[str, Source], target: Path, workshop: Workshop
) -> Merged:
    """Make one merge, or take it from the run folder; its model is then whole at `target`.

    Args:
        name: the node: its random streams bear this name, whatever its place in the tree.
        node: its settings.
        level: how far above the parents it stands.
        inputs: what it merges, in the recipe's order.
        target: where the merged model goes.
        workshop: what all merges share.

    Raises:
        RunError: no individual gave finite logits, or a replay gives other weights than the journal says.
    """
    contents = [source.sha256 for source in inputs.values()]
    key = hashlib.sha256(json.dumps([name, node.settings, contents, workshop.context]).encode()).hexdigest()
    known = workshop.journal.node(name, key, write=workshop.processes.is_main)
    layout = next(iter(inputs.values())).layout  # decides no fitness: where it alone has changed, nothing is evaluated
    reused = (
        known.merged is not None
        and known.merged.get("layout") == layout
        and target.is_dir()
        and folder_digest(target) == known.merged.get("folder")
    )
    before = len(known)
    workshop.processes.compare(f"{name} in the run folder", reused)  # and so nothing is written before all have looked
    record = known.merged if reused else _make(name, node, inputs, target, known, workshop)
    assert record is not None
    genome = known.genome(record["generation"], record["index"])
    if genome is not None and record["n"] == workshop.validation.count:
        workshop.memory.keep(genome, record["correct"])  # a founder of the next merge: it is not measured again
    full = node.evaluations * workshop.validation.count
    made = len(known) - before
    return Merged(name, node, level, target, record, len(known), made, known.pictures, full, known.seconds, reused)


def _make(
    name: str, node: Node, inputs: dict[str, Source], target: Path, known: NodeRecord, workshop: Workshop
) -> dict[str, Any]:
    first, space, vectors = pack(inputs)
    layout = next(iter(inputs.values())).layout
    outcome = _search(name, node, space, vectors, known, workshop)
    best, was = outcome.best, known.merged
    if best.fitness.correct is None:
        raise RunError(
            f"no individual of {name} gave finite logits",
            expected="a measurable model",
            got="none",
            remedy="a smaller mutation.std",
        )
    state, weights = space.unpack(best.genome), space.learned_digest(best.genome)
    if was is not None and was["weights"] != weights:
        raise RunError(
            f"{name}: the replay gives other weights than the run did", where=str(workshop.journal.path),
            expected=was["weights"], got=weights,
            remedy="the journal was changed, or this is a fault of mega_hf: --overwrite starts afresh",
        )  # fmt: skip
    if workshop.processes.is_main:
        write_folder(target, lambda path: save_model(path, first, state))
    workshop.processes.wait()
    record = {
        "weights": weights, "statistics": space.statistics_digest(best.genome),
        "file": merged_digest(target), "folder": folder_digest(target), "layout": layout,
        "state": digest(state), "parameters": space.learned_size, "correct": best.fitness.correct,
        "n": best.fitness.seen, "generation": best.generation, "index": best.index,
        "history": [asdict(generation) for generation in outcome.history],
    }  # fmt: skip
    if workshop.processes.is_main:
        if was is None or was["folder"] != record["folder"]:
            workshop.folder.drop_report()  # it tells of what was there before
        known.finish(record)
    return record


def pack(inputs: dict[str, Source]) -> tuple[OpenModel, WeightSpace, torch.Tensor]:
    """Return the first input's model, the weight space, and the inputs in it: [inputs, size] float32."""
    first, states = None, {}
    for name, source in inputs.items():
        model = source.open()
        first, states[name] = first or model, model.state()  # of the models only the first is kept: its layout
    assert first is not None
    space = build_space(states, first.learned(), first.tied())
    vectors = torch.empty(len(states), space.size)
    for row, state in zip(vectors, states.values(), strict=True):
        row.copy_(space.pack(state))
    return first, space, vectors


def _search(
    name: str, node: Node, space: WeightSpace, vectors: torch.Tensor, known: NodeRecord, workshop: Workshop
) -> Outcome:
    with workshop.progress.bar(f"search {name}", node.evaluations, "evaluations") as advance:
        report = _accuracy_of(workshop.validation, advance)
        evaluation = Evaluation(
            workshop.forward, workshop.validation, space, workshop.processes, known, _contenders, report,
            workshop.memory, workshop.full,
        )  # fmt: skip
        return search_node(name, node, space, vectors, evaluation)


def search_node(name: str, node: Node, space: WeightSpace, vectors: torch.Tensor, evaluate: Evaluate) -> Outcome:
    """Search the weights of one node.

    Args:
        name: the node, whose random streams bear this name.
        node: its settings.
        space: its weight space.
        vectors: its inputs in it, [inputs, size] float32.
        evaluate: gives each individual its fitness, measured or from a journal.
    """
    mutation, reference = node.mutation, node.variant == "reference"
    gaussian = Gaussian(mutation.rate, mutation.std, mutation.scope, mutation.relative, statistics=reference)
    search = Search(
        node.population_size, node.generations, node.num_mates, node.tournament_size, gaussian,
        node.founders.include_parents, plan_reference if reference else plan,
    )  # fmt: skip
    return evolve(vectors, _genes(space, vectors), search, streams(node.seed, name), evaluate)


def _contenders(contests: list[list[int]], intervals: list[Interval]) -> set[int]:
    fitness = [Fitness(*interval) for interval in intervals]
    return {i for contest in contests for i in contenders(contest, fitness)}


def _accuracy_of(pictures: Pictures, advance: Callable[[int, str], None]) -> Callable[[int, int], None]:
    return lambda measured, best: advance(measured, f"best {100 * best / pictures.count:.2f} %")


def _genes(space: WeightSpace, vectors: torch.Tensor) -> Genes:
    bounds = tuple((s.start, s.stop) for s in space.segments)
    scales = tuple(spread([v[start:stop].numpy() for v in vectors]) for start, stop in bounds)
    return Genes(bounds, sum(s.learned for s in space.segments), scales)
