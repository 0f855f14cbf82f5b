"""What a method takes from others beside fitness: made now and journaled before it is used, or from
the journal."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from mega_hf.evaluation.racing import RacingEvaluator, Record
from mega_hf.run.journal import NodeRecord
from mega_hf.runtime.processes import Processes
from mega_hf.search.evolve import InvalidRecord, RecordedDraws
from mega_hf.search.population import Fitness, Population


def record_draws(known: NodeRecord, evaluation: RacingEvaluator) -> RecordedDraws:
    """Return what a search that runs recalls of a merge, and else makes."""
    return RecordedDraws(
        partial(_propose, known, evaluation.processes), partial(_answer, known, evaluation)
    )


def replay_draws(known: NodeRecord, rows: int) -> RecordedDraws:
    """Return what a replay recalls of a merge whose individuals were measured on so many rows; it
    makes nothing."""
    return RecordedDraws(
        lambda generation, _: _proposed(known, generation), lambda _: answered(known, rows)
    )


def _proposed(known: NodeRecord, generation: int) -> list[list[float]]:
    if generation not in known.proposed:
        raise MissingRecord(f"what was proposed for generation {generation}")
    return known.proposed[generation]


def answered(known: NodeRecord, rows: int) -> np.ndarray:
    """Return who was right where: [individuals, rows] bool."""
    if not known.answers:
        raise MissingRecord("who was right where")
    packed = [np.frombuffer(bytes.fromhex(one), dtype=np.uint8) for one in known.answers]
    if any(len(one) != math.ceil(rows / 8) for one in packed):
        raise InvalidRecord(f"answers that are not of {rows} rows")
    return np.stack([np.unpackbits(one, count=rows).astype(bool) for one in packed])


def _propose(
    known: NodeRecord, processes: Processes, generation: int, make: Callable[[], list[list[float]]]
) -> list[list[float]]:
    """Return what a strategy proposes, on all processes what the main one does; what was recorded
    holds."""
    made = np.array(make())  # always: what proposes goes on as if nothing had been recorded
    if generation not in known.proposed:
        bits = processes.share(1, made.size, lambda _: made.view(np.int64).reshape(-1).tolist())
        points = bits.view(np.float64).reshape(made.shape)
        known.propose(generation, [point.tolist() for point in points], write=processes.is_main)
    return _proposed(known, generation)


def _answer(known: NodeRecord, evaluation: RacingEvaluator, population: Population) -> np.ndarray:
    """Return who is right where; what was recorded holds."""
    if known.answers is None:
        right = evaluation.correct_rows(population)
        known.answer(
            [np.packbits(row).tobytes().hex() for row in right], write=evaluation.processes.is_main
        )
    return answered(known, evaluation.examples.count)


class MissingRecord(Exception):
    """The record does not hold an individual."""


class Replay:
    """Every fitness from the record; nothing is measured.

    Args:
        record: the journal.
        rows: of the validation split.
        digest: of a genome, which must be the one that was recorded; None if it does not matter.
        row_loss: the largest loss that one row can have; 0 where losses are not summed.
    """

    def __init__(
        self,
        record: Record,
        rows: int,
        digest: Callable[[torch.Tensor], str] | None,
        row_loss: int = 0,
    ) -> None:
        self.record, self.rows, self.digest, self.row_loss = record, rows, digest, row_loss
        # (generation, index) of whatever the search had to do with
        self.asked: set[tuple[int, int]] = set()

    def __call__(
        self, population: Population, tournaments: list[list[int]], elite: Fitness | None
    ) -> list[Fitness]:
        """Return what the record holds of each individual.

        Raises:
            Unrecorded: it does not hold one.
        """
        known = []
        for index, genome in enumerate(population.genomes):
            digest = self.digest(genome) if self.digest else None
            self.asked.add((population.generation, index))
            fitness = self.record.find(population.generation, index, digest)
            if fitness is None and index == 0:
                fitness = elite
            if fitness is None:
                raise MissingRecord(f"individual {index} of generation {population.generation}")
            known.append(fitness.out_of(self.rows, self.row_loss))
        return known
