"""Every fitness from the record: nothing is measured."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mega_hf.evaluation.individuals import Genomes, Interval, Record


class Unrecorded(Exception):
    """The record does not hold an individual."""


class Replay:
    """Every fitness from the record; nothing is measured.

    Args:
        record: the journal.
        rows: of the validation split.
        digest: of a genome, which must be the one that was recorded; None if it does not matter.
    """

    def __init__(self, record: Record, rows: int, digest: Callable[[torch.Tensor], str] | None) -> None:
        self.record, self.rows, self.digest = record, rows, digest
        self.asked: set[tuple[int, int]] = set()  # (generation, index) of whatever the search had to do with

    def __call__(self, population: Genomes, tournaments: list[list[int]], elite: Interval | None) -> list[Interval]:
        """Return what the record holds of each individual.

        Raises:
            Unrecorded: it does not hold one.
        """
        known = []
        for index, genome in enumerate(population.genomes):
            digest = self.digest(genome) if self.digest else None
            self.asked.add((population.generation, index))
            counted = self.record.find(population.generation, index, digest)
            if counted is None and index == 0 and elite is not None:
                counted = elite[:2]
            if counted is None:
                raise Unrecorded(f"individual {index} of generation {population.generation}")
            known.append((*counted, self.rows - counted[1]))
        return known
