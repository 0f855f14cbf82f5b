"""Rebuild one merge from its journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mega_hf.errors import RunError, VerificationError
from mega_hf.evaluation.aligner import check_function
from mega_hf.evaluation.row_difficulty import MAX_ROW_LOSS
from mega_hf.models.load import open_model
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.merge_inputs import MergeInputs, ModelSource, encode, open_inputs
from mega_hf.models.save import layout_digest, save_model
from mega_hf.recipe.merge import Node
from mega_hf.run.align import aligned_inputs
from mega_hf.run.journal import NodeRecord
from mega_hf.run.node import MergedNode, outcome_fields, search_node
from mega_hf.run.replay import MissingRecord, Replay, answered, replay_draws
from mega_hf.search.evolve import InvalidRecord, Outcome
from mega_hf.search.population import Fitness, Population
from mega_hf.search.selection import UndecidedTournament
from mega_hf.verification.claims import OTHERWISE, RunClaims
from mega_hf.verification.stored_models import compare_model, known_statistics
from mega_hf.weights.encoding import Encoding
from mega_hf.weights.space import StateDict, digest

COPY = "use another copy of the run, or another machine"


@dataclass(frozen=True)
class _Keeping:
    """A replay that keeps the weights of some individuals, to be evaluated again."""

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
    """The state of a verification while merges are rebuilt.

    Attributes:
        claims: the run.
        scratch: the folder of rebuilt models, each under its name.
        sampled: (node, generation, index) of the individuals to keep.
        first: the first parent's model, into which weights may be written.
        chosen: the kept individuals.
        recomputed: the merges whose statistics follow from images.
        merged: the rebuilt merges.
    """

    claims: RunClaims
    scratch: Path
    sampled: list[tuple[str, int, int]]
    first: LoadedModel
    chosen: list[SampledIndividual] = field(default_factory=list)
    recomputed: list[RebuiltNode] = field(default_factory=list)
    merged: dict[str, MergedNode] = field(default_factory=dict)


def rebuild_node(
    context: RebuildContext, name: str, node: Node, inputs: dict[str, ModelSource]
) -> ModelSource:
    """Rebuild one merge from its journal, and compare it with the journal and the stored model.

    Raises:
        VerificationError: the journal can't be replayed, or gives something else than was kept.
    """
    claims, target = context.claims, context.scratch / name
    opened = open_inputs(inputs, node.recalibrates)
    known, line = claims.record_of(name), claims.merged_line(name)
    if node.align != "none":
        with _replaying(name, known):
            opened = _align(node, opened, known, context.first)
    space, encoding = opened.space, encode(opened, node)
    outcome = _replay_search(context, name, node, encoding, known)
    state = dict(encoding.entries(outcome.best.genome))
    rebuilt: dict[str, str | None] = {"weights": space.learned_digest(state)}
    statistics = known_statistics(claims, name, space)
    is_known = statistics is not None
    if statistics is None:  # any statistics will do; those of the run follow from images
        first = next(iter(opened.states.values()))
        statistics = {entry: first[entry] for entry in space.recomputed}
    state |= statistics
    if is_known:
        rebuilt |= {"statistics": space.statistics_digest(state), "state": digest(state)}
    for entry, found in rebuilt.items():
        if found != line[entry]:
            difference = claims.describe_difference(name, state)
            raise VerificationError(
                f"the replay of {name} gives different {entry}{difference}",
                where="journal.jsonl",
                expected=line[entry],
                got=found,
                hint=OTHERWISE,
            )
    save_model(target, opened.first, state)
    model = open_model(target, name)
    if is_known:
        compare_model(claims, name, model)
    if space.recomputed:
        context.recomputed.append(RebuiltNode(name, target, is_known))
    layout = layout_digest(model)
    rows, calibration = claims.rows_of(name), claims.record.data.calibration
    shown = rows + (calibration.rows if calibration and space.recomputed else 0)
    context.merged[name] = MergedNode(
        name,
        node,
        claims.plan.levels.get(name, 1),
        target,
        {
            **line,
            **rebuilt,
            "parameters": space.learned_size,
            **outcome_fields(outcome),
        },
        evaluations=len(known),
        new=0,
        examples=known.examples,
        examples_full=node.evaluations * shown,
        seconds=known.seconds,
        reused=False,
    )
    return ModelSource(name, digest(model.view()), layout, partial(open_model, target, name))


def _replay_search(
    context: RebuildContext, name: str, node: Node, encoding: Encoding, known: NodeRecord
) -> Outcome:
    """Search as the run did, with every fitness and every proposal from the journal."""
    claims, rows = context.claims, context.claims.rows_of(name)
    recall = replay_draws(known, rows)
    kept = {(generation, index) for at, generation, index in context.sampled if at == name}
    row_loss = MAX_ROW_LOSS if node.sums_losses else 0
    record = Replay(known, rows, encoding.digest, row_loss)
    with _replaying(name, known):
        right = answered(known, rows) if node.prefer else None
        keeping = _Keeping(name, record, encoding, kept, right, context.chosen)
        _check_founders(node, known)
        try:
            outcome = search_node(name, node, encoding, keeping, recall)
        except RunError as error:  # another genome: how different is the outcome?
            loosely = search_node(name, node, encoding, Replay(known, rows, None, row_loss), recall)
            state = dict(encoding.entries(loosely.best.genome))
            error.what += claims.describe_difference(name, state)
            raise
    _check_no_other_lines(name, known, record.visited)
    return outcome


def _align(node: Node, opened: MergeInputs, known: NodeRecord, mould: LoadedModel) -> MergeInputs:
    """Move the parents' channels as journaled, and check that each parent computes the same."""
    aligned = aligned_inputs(node, opened, known)
    check_function(mould.model, opened.states, aligned, mould.input_shape)
    return aligned


def _check_founders(node: Node, known: NodeRecord) -> None:
    """Check that the founders were journaled, before memory is allocated for all of them."""
    founders = {index for generation, index in known if generation == 1}
    if len(founders) < node.founders_count:
        raise MissingRecord(f"the {node.founders_count - len(founders)} other founders")


def _check_no_other_lines(name: str, known: NodeRecord, asked: set[tuple[int, int]]) -> None:
    """Check that the search visited every line: others would be counted all the same."""
    more = [at for at in known if at not in asked]
    if more:
        generation, index = more[0]
        raise VerificationError(
            f"lines that the search of {name} does not need",
            where="journal.jsonl",
            expected=f"{len(asked)} at most",
            got=f"{len(more)} more, the first on individual {index} of generation {generation}",
            hint=COPY,
        )


@contextmanager
def _replaying(name: str, known: NodeRecord) -> Iterator[None]:
    """Turn the error of a replay into a VerificationError that names the journal."""
    try:
        yield
    except (MissingRecord, UndecidedTournament, InvalidRecord) as error:
        lacks = (
            f"no line for {error} of {name}"
            if isinstance(error, MissingRecord)
            else f"{name}: {error}"
        )
        raise VerificationError(
            lacks,
            where="journal.jsonl",
            expected="lines that decide every tournament",
            got=f"{len(known)} lines",
            hint=COPY,
        ) from None
    except RunError as error:
        raise VerificationError.from_error("journal.jsonl", error, OTHERWISE) from None


@dataclass(frozen=True)
class SampledIndividual:
    """An individual of the journal that is evaluated again."""

    node: str
    generation: int
    index: int
    fitness: Fitness  # as recorded
    state: StateDict
    recomputed: Mapping[str, torch.dtype]  # statistics that it lacks
    right: np.ndarray | None  # [rows] bool: where it is right, if that is claimed


@dataclass(frozen=True)
class RebuiltNode:
    """A rebuilt merge whose statistics follow from images."""

    name: str
    folder: Path  # of the model
    # whether its statistics are those that the run left; else they are the first parent's
    is_known: bool
