"""One merge made again from its journal, and compared with what the run says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mega_hf.errors import ParentError, RunError, VerificationError
from mega_hf.evaluation.aligner import check_function
from mega_hf.evaluation.row_difficulty import MAX_ROW_LOSS
from mega_hf.models.load import open_model
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.merge_inputs import MergeInputs, ModelSource, encode, open_inputs
from mega_hf.models.save import layout_digest, save_model
from mega_hf.recipe.merge import Node
from mega_hf.run.align import aligned_inputs
from mega_hf.run.journal import NodeRecord
from mega_hf.run.node import search_node
from mega_hf.run.replay import MissingRecord, Replay, answered, replay_draws
from mega_hf.search.evolve import InvalidRecord, Outcome
from mega_hf.search.population import Fitness, Population
from mega_hf.search.selection import UndecidedTournament
from mega_hf.verification.claims import OTHERWISE, RunClaims, changed
from mega_hf.verification.consistency import compare_intermediate, compare_model, compare_node
from mega_hf.weights.encoding import Encoding
from mega_hf.weights.space import StateDict, WeightSpace, digest

_COPY = "another copy of the run, or another machine"


@dataclass(frozen=True)
class _Keeping:
    """A replay that keeps the weights of some individuals, to be measured again."""

    node: str
    replay: Replay
    encoding: Encoding
    kept: set[tuple[int, int]]
    right: np.ndarray | None  # [individuals, rows] bool, where that decides who wins
    chosen: list[SampledIndividual]

    def __call__(
        self, population: Population, tournaments: list[list[int]], elite: Fitness | None
    ) -> list[Fitness]:
        known = self.replay(population, tournaments, elite)
        for index, fitness in enumerate(known):
            if (population.generation, index) in self.kept:
                state = dict(self.encoding.entries(population.genomes[index].clone()))
                at = (self.node, population.generation, index)
                lacking = self.encoding.space.recomputed
                right = None if self.right is None else self.right[index]
                self.chosen.append(SampledIndividual(*at, fitness, state, lacking, right))
        return known


@dataclass(frozen=True)
class RebuildContext:
    """What is made again while a run is verified."""

    told: RunClaims
    scratch: Path  # where merges go, each under its name
    wanted: list[tuple[str, int, int]]  # individuals to be kept: node, generation, index
    first: LoadedModel  # the first parent's; weights may be written into it
    chosen: list[SampledIndividual] = field(default_factory=list)
    recomputed: list[RebuiltNode] = field(default_factory=list)


def replay(
    making: RebuildContext, name: str, node: Node, inputs: dict[str, ModelSource]
) -> ModelSource:
    """Make one merge again, and compare it with what journal and result say of it."""
    told, target = making.told, making.scratch / name
    opened = open_inputs(inputs, node.recalibrates)
    known = told.record_of(name)
    if node.align != "none":
        with _blaming(name, known):
            opened = _align(node, opened, known, making.first)
    space, encoding = opened.space, encode(opened, node)
    outcome = _search_again(making, name, node, encoding, known)
    state = dict(encoding.entries(outcome.best.genome))
    made = {"weights": space.learned_digest(state), "parameters": space.learned_size}
    made["recomputes"] = bool(space.recomputed)
    stored = known_statistics(told, name, space)
    is_known = stored is not None
    state |= (
        stored
        if stored is not None
        else {n: next(iter(opened.states.values()))[n] for n in space.recomputed}
    )
    if is_known:
        made |= {"statistics": space.statistics_digest(state), "state": digest(state)}
    compare_node(told, name, made, outcome, known, state)
    save_model(target, opened.first, state)
    model = open_model(target, name)
    if is_known:
        compare = compare_model if name == told.root else partial(compare_intermediate, name=name)
        compare(told, made=model)
    if space.recomputed:
        making.recomputed.append(RebuiltNode(name, target, is_known))
    return ModelSource(
        name,
        digest(model.view()),
        layout_digest(model),
        partial(open_model, target, name),
    )


def _search_again(
    making: RebuildContext, name: str, node: Node, encoding: Encoding, known: NodeRecord
) -> Outcome:
    """Search as the run did, every fitness and every proposal from its journal."""
    told = making.told
    recall = replay_draws(known, told.rows_of(name))
    kept = {(generation, index) for at, generation, index in making.wanted if at == name}
    row_loss = MAX_ROW_LOSS if node.sums_losses else 0
    record = Replay(known, told.rows_of(name), encoding.digest, row_loss)
    with _blaming(name, known):
        right = answered(known, told.rows_of(name)) if node.prefer else None
        keeping = _Keeping(name, record, encoding, kept, right, making.chosen)
        _refuse_few(node, known)
        try:
            outcome = search_node(name, node, encoding, keeping, recall)
        except RunError as error:  # bred otherwise: by how much, in the end?
            loosely = search_node(
                name, node, encoding, Replay(known, told.rows_of(name), None, row_loss), recall
            )
            error.what += told.differ(name, dict(encoding.entries(loosely.best.genome)))
            raise
    _refuse_more(name, known, record.visited)
    return outcome


def _align(node: Node, opened: MergeInputs, known: NodeRecord, mould: LoadedModel) -> MergeInputs:
    """Move the parents' channels as the journal says, and see that none computes anything else for
    it."""
    aligned = aligned_inputs(node, opened, known)
    check_function(mould.model, opened.states, aligned, mould.input_shape)
    return aligned


def _refuse_few(node: Node, known: NodeRecord) -> None:
    """See that the founders were recorded, before room is made for as many as the recipe asks
    for."""
    founders = {index for generation, index in known if generation == 1}
    if len(founders) < node.founders_count:
        raise MissingRecord(f"the {node.founders_count - len(founders)} other founders")


def _refuse_more(name: str, known: NodeRecord, asked: set[tuple[int, int]]) -> None:
    """See that the search had to do with every line: others tell of nothing, and would be counted
    all the same."""
    more = [at for at in known if at not in asked]
    if more:
        generation, index = more[0]
        raise VerificationError(
            f"lines that no search of {name} asks for",
            where="journal.jsonl",
            expected=f"{len(asked)} at most",
            got=f"{len(more)} more, the first on individual {index} of generation {generation}",
            hint=_COPY,
        )


@contextmanager
def _blaming(name: str, known: NodeRecord) -> Iterator[None]:
    """Turn what keeps a journal from being replayed into a VerificationError that names the
    place."""
    try:
        yield
    except (MissingRecord, UndecidedTournament, InvalidRecord) as error:
        lacks = (
            f"its lines don't tell of {error} of {name}"
            if isinstance(error, MissingRecord)
            else f"{name}: {error}"
        )
        raise VerificationError(
            lacks,
            where="journal.jsonl",
            expected="lines that decide every tournament",
            got=f"{len(known)} lines",
            hint=_COPY,
        ) from None
    except RunError as error:
        raise VerificationError.from_error("journal.jsonl", error, OTHERWISE) from None


@dataclass(frozen=True)
class SampledIndividual:
    """An individual whose line in the journal is measured again."""

    node: str
    generation: int
    index: int
    fitness: Fitness  # as recorded
    state: StateDict
    recomputed: Mapping[str, torch.dtype]  # statistics that it lacks
    right: np.ndarray | None  # [rows] bool: where it is right, if that is claimed


@dataclass(frozen=True)
class RebuiltNode:
    """A merge that was made again but for its statistics."""

    name: str
    folder: Path  # of the model
    # whether its statistics are those that the run left; else they are the first parent's
    is_known: bool


def known_statistics(told: RunClaims, name: str, space: WeightSpace) -> StateDict | None:
    """Return those statistics of a merge that do not follow from its weights alone, as its model
    here has them.

    Returns:
        none (an empty dict) where all follow; None where there is no model.

    Raises:
        VerificationError: they are not those that result.json has.
    """
    if not space.recomputed:
        return {}
    folder = told.model if name == told.root else told.folder / "nodes" / name
    if folder is None or not folder.is_dir():
        return None
    try:
        state = open_model(folder).state()
    except ParentError as error:
        raise VerificationError.from_error(_weights_file(folder), error, _COPY) from None
    found, claimed = space.statistics_digest(state), told.nodes[name].digests.statistics
    if found != claimed:
        raise changed(_weights_file(folder), f"BatchNorm's statistics of {name}", claimed, found)
    return {entry: state[entry] for entry in space.recomputed}


def _weights_file(folder: Path) -> str:
    return next((path.name for path in sorted(folder.glob("*.safetensors"))), "*.safetensors")
