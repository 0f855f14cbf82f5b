"""Read fitness, proposals and predictions of a search from the journal, or record them there."""

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
    """Return the draws of a running search: from the journal, else made and recorded now."""
    return RecordedDraws(
        partial(_propose, known, evaluation.processes), partial(_answer, known, evaluation)
    )


def replay_draws(known: NodeRecord, rows: int) -> RecordedDraws:
    """Return the draws of a replayed search on `rows` rows: from the journal alone."""
    return RecordedDraws(
        lambda generation, _: _proposed(known, generation), lambda _: answered(known, rows)
    )


def _proposed(known: NodeRecord, generation: int) -> list[list[float]]:
    if generation not in known.proposed:
        raise MissingRecord(f"the proposals of generation {generation}")
    return known.proposed[generation]


def answered(known: NodeRecord, rows: int) -> np.ndarray:
    """Return the recorded correct rows: [individuals, rows] bool."""
    if not known.answers:
        raise MissingRecord("the predictions of the held-out selection")
    packed = [np.frombuffer(bytes.fromhex(bits), dtype=np.uint8) for bits in known.answers]
    if any(len(bits) != math.ceil(rows / 8) for bits in packed):
        raise InvalidRecord(f"predictions on another number of rows than {rows}")
    return np.stack([np.unpackbits(bits, count=rows).astype(bool) for bits in packed])


def _propose(
    known: NodeRecord, processes: Processes, generation: int, make: Callable[[], list[list[float]]]
) -> list[list[float]]:
    """Return the recorded proposals, or record those of the main process on all processes."""
    made = np.array(make())  # always, so that the strategy's state advances
    if generation not in known.proposed:
        bits = processes.share(1, made.size, lambda _: made.view(np.int64).reshape(-1).tolist())
        points = bits.view(np.float64).reshape(made.shape)
        known.propose(generation, [point.tolist() for point in points], write=processes.is_main)
    return _proposed(known, generation)


def _answer(known: NodeRecord, evaluation: RacingEvaluator, population: Population) -> np.ndarray:
    """Return the recorded correct rows, or predict and record them."""
    if known.answers is None:
        right = evaluation.correct_rows(population)
        known.answer(
            [np.packbits(row).tobytes().hex() for row in right], write=evaluation.processes.is_main
        )
    return answered(known, evaluation.examples.count)


class MissingRecord(Exception):
    """The journal has no record of an individual, a proposal or a prediction."""


class Replay:
    """Return every fitness from the journal, without an evaluation.

    Args:
        record: the journal's record of the merge.
        rows: number of validation rows.
        digest: returns the digest of a genome, to check it against the record; None skips this.
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
        # (generation, index) of each individual of the search
        self.visited: set[tuple[int, int]] = set()

    def __call__(
        self, population: Population, tournaments: list[list[int]], elite: Fitness | None
    ) -> list[Fitness]:
        """Return the recorded fitness of each individual.

        Raises:
            MissingRecord: an individual has no record.
        """
        known = []
        for index, genome in enumerate(population.genomes):
            digest = self.digest(genome) if self.digest else None
            self.visited.add((population.generation, index))
            fitness = self.record.find(population.generation, index, digest)
            if fitness is None and index == 0:
                fitness = elite
            if fitness is None:
                raise MissingRecord(f"individual {index} of generation {population.generation}")
            known.append(fitness.out_of(self.rows, self.row_loss))
        return known
