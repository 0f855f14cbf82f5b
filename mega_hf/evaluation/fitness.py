"""Population in, fitness out: enough to decide every tournament and the elite."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from mega_hf.evaluation.forward import Forward, Pictures
from mega_hf.evaluation.processes import Processes
from mega_hf.weights.space import WeightSpace

Counted = tuple[int | None, int]  # right answers (None where a logit was not finite), rows seen


class Genomes(Protocol):
    """What is needed of a population."""

    @property
    def genomes(self) -> torch.Tensor:
        """[population_size, size] float32."""

    @property
    def generation(self) -> int:
        """1 for the founders."""


class Record(Protocol):
    """Where every fitness is kept before it is used; the journal is one."""

    def find(self, generation: int, index: int) -> Counted | None:
        """Return what was recorded of an individual, or None."""

    def add(self, generation: int, index: int, fitness: Counted, seconds: float) -> None:
        """Keep a fitness; called on the main process alone."""


class FullEvaluation:
    """Every individual on every validation row; individuals are shared out over the processes.

    Args:
        forward: the resident model.
        pictures: the validation split.
        space: turns a genome into a state dict.
        processes: who takes part.
        record: the journal: what it knows is not measured again.
        progress: called with (individuals measured or known, best right answers so far).
    """

    def __init__(
        self,
        forward: Forward,
        pictures: Pictures,
        space: WeightSpace,
        processes: Processes,
        record: Record,
        progress: Callable[[int, int], None],
    ) -> None:
        self.forward, self.pictures, self.space, self.processes = forward, pictures, space, processes
        self.record, self.progress, self._best = record, progress, 0

    def __call__(self, population: Genomes, tournaments: list[list[int]], elite: Counted | None) -> list[Counted]:
        """Return a fitness for each individual. Tournaments are not needed: nothing is left unmeasured."""
        known = {i: self.record.find(population.generation, i) for i in range(len(population.genomes))}
        if elite is not None:
            known[0] = elite
        self._report({i: fitness for i, fitness in known.items() if fitness and i >= (elite is not None)})
        missing = [i for i, fitness in known.items() if fitness is None]
        # A round is one individual for each process: what a round measured is safe in the journal before the next.
        for start in range(0, len(missing), self.processes.count):
            measured = self._round(population, missing[start : start + self.processes.count])
            self._report(measured)
            known |= measured
        return [fitness for fitness in known.values() if fitness is not None]

    def _round(self, population: Genomes, indices: list[int]) -> dict[int, Counted]:
        results = self.processes.share(len(indices), 2, lambda i: self._measure(population, indices[i]))
        measured = {}
        for index, (correct, microseconds) in zip(indices, results.tolist(), strict=True):
            measured[index] = (None if correct < 0 else correct, self.pictures.count)
            if self.processes.is_main:
                self.record.add(population.generation, index, measured[index], microseconds / 1e6)
        return measured

    def _measure(self, population: Genomes, index: int) -> list[int]:
        began = time.perf_counter()
        self.forward.write(self.space.unpack(population.genomes[index]))
        correct = self.forward.count(self.pictures)
        return [-1 if correct is None else correct, int((time.perf_counter() - began) * 1e6)]

    def _report(self, fitness: dict[int, Counted]) -> None:
        self._best = max([self._best, *(correct or 0 for correct, _ in fitness.values())])
        self.progress(len(fitness), self._best)
