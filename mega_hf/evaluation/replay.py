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
        most: what a row's loss is at most; 0 where it does not count.
    """

    def __init__(self, record: Record, rows: int, digest: Callable[[torch.Tensor], str] | None, most: int = 0) -> None:
        self.record, self.rows, self.digest, self.most = record, rows, digest, most
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
                counted = elite[0], elite[1], elite[3]
            if counted is None:
                raise Unrecorded(f"individual {index} of generation {population.generation}")
            correct, seen, loss = counted
            known.append((correct, seen, self.rows - seen, loss, self.most * (self.rows - seen)))
        return known
