"""Every fitness from the record: nothing is measured."""

from __future__ import annotations

from mega_hf.evaluation.fitness import Genomes, Interval, Record, digest_genome


class Unrecorded(Exception):
    """The record does not hold an individual."""


class Replay:
    """Every fitness from the record; nothing is measured.

    Args:
        record: the journal.
        rows: of the validation split.
        strict: whether genomes must be those that were recorded.
    """

    def __init__(self, record: Record, rows: int, strict: bool = True) -> None:
        self.record, self.rows, self.strict = record, rows, strict
        self.asked: set[tuple[int, int]] = set()  # (generation, index) of whatever the search had to do with

    def __call__(self, population: Genomes, tournaments: list[list[int]], elite: Interval | None) -> list[Interval]:
        """Return what the record holds of each individual.

        Raises:
            Unrecorded: it does not hold one.
        """
        known = []
        for index, genome in enumerate(population.genomes):
            digest = digest_genome(genome) if self.strict else None
            self.asked.add((population.generation, index))
            counted = self.record.find(population.generation, index, digest)
            if counted is None and index == 0 and elite is not None:
                counted = elite[:2]
            if counted is None:
                raise Unrecorded(f"individual {index} of generation {population.generation}")
            known.append((*counted, self.rows - counted[1]))
        return known
