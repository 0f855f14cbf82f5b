"""Population in, fitness out: enough to decide every tournament and the elite."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from mega_hf.evaluation.forward import Forward, Pictures
from mega_hf.evaluation.processes import Processes
from mega_hf.weights.space import WeightSpace

Counted = tuple[int | None, int]  # right answers (None where a logit was not finite), rows seen
Interval = tuple[int | None, int, int]  # right answers, rows seen, rows not seen
Contenders = Callable[[list[int], list[Interval]], list[int]]


class Genomes(Protocol):
    """What is needed of a population."""

    @property
    def genomes(self) -> torch.Tensor:
        """[population_size, size] float32."""

    @property
    def generation(self) -> int:
        """1 for the founders."""

    @property
    def proof(self) -> str:
        """The digest of how it was bred, equal on all processes."""


class Record(Protocol):
    """Where every fitness is kept before it is used; the journal is one."""

    def find(self, generation: int, index: int, genome: str | None) -> Counted | None:
        """Return what was recorded of an individual, or None; its genome's digest is compared, if it is given."""

    def find_genome(self, genome: str) -> Counted | None:
        """Return what was recorded of a genome, in whatever generation, or None."""

    def add(
        self, generation: int, index: int, genome: str, fitness: Counted, seconds: float, write: bool = True
    ) -> None:
        """Keep a fitness; only one process writes."""


def digest_genome(genome: torch.Tensor) -> str:
    """Return the first 128 bits of the SHA-256 of a genome ([size] float32 on the CPU)."""
    return hashlib.sha256(genome.numpy().data).hexdigest()[:32]


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


class FullEvaluation:
    """Every individual on every validation row, but none twice; the work is shared out over the processes.

    Args:
        forward: the resident model.
        pictures: the validation split.
        space: turns a genome into a state dict.
        processes: who takes part.
        record: the journal: what it knows is not measured again.
        contenders: says which individuals may win a tournament, given what was seen of each.
        progress: called with (individuals measured or known, best right answers so far).
    """

    def __init__(
        self,
        forward: Forward,
        pictures: Pictures,
        space: WeightSpace,
        processes: Processes,
        record: Record,
        contenders: Contenders,
        progress: Callable[[int, int], None],
    ) -> None:
        self.forward, self.pictures, self.space, self.processes = forward, pictures, space, processes
        self.record, self.contenders, self.progress, self._best = record, contenders, progress, 0

    def __call__(self, population: Genomes, tournaments: list[list[int]], elite: Interval | None) -> list[Interval]:
        """Return a fitness for each individual; of one that the record saw in part, the rest only where it matters.

        Raises:
            LaunchError: the processes do not hold the same population.
        """
        generation = population.generation
        self.processes.compare(f"generation {generation}", population.proof)
        genomes = self._digest(population)
        known: dict[int, Counted] = {} if elite is None else {0: elite[:2]}
        for index, genome in enumerate(genomes):
            counted = self.record.find(generation, index, genome)
            known |= {} if counted is None else {index: counted}
        self._report({i: counted for i, counted in known.items() if i >= (elite is not None)})
        missing = [i for i in range(len(genomes)) if i not in known]
        fresh = {genomes[i]: i for i in reversed(missing) if self.record.find_genome(genomes[i]) is None}
        known |= self._measure_all(population, genomes, sorted(fresh.values()))
        known |= self._copy(generation, genomes, [i for i in missing if i not in known])
        open_ = self._undecided([*tournaments, list(range(len(genomes)))], self._intervals(known))
        return self._intervals(known | self._measure_all(population, genomes, open_, again=True))

    def _digest(self, population: Genomes) -> list[str]:
        """Return the digest of each genome; each process makes its share of them."""

        def words(i: int) -> list[int]:
            return np.frombuffer(bytes.fromhex(digest_genome(population.genomes[i])), dtype=">u4").tolist()

        made = self.processes.share(len(population.genomes), 4, words)
        return [row.astype(">u4").tobytes().hex() for row in made]

    def _intervals(self, known: dict[int, Counted]) -> list[Interval]:
        return [(*known[i], self.pictures.count - known[i][1]) for i in range(len(known))]

    def _undecided(self, contests: list[list[int]], intervals: list[Interval]) -> list[int]:
        """Return the individuals whose unseen rows may decide a contest."""
        found = {i for contest in contests if len(may := self.contenders(contest, intervals)) > 1 for i in may}
        return sorted(i for i in found if intervals[i][2])

    def _copy(self, generation: int, genomes: list[str], indices: list[int]) -> dict[int, Counted]:
        """Record individuals whose genomes were measured already, as others."""
        known: dict[int, Counted] = {}
        for i in indices:
            counted = self.record.find_genome(genomes[i])
            assert counted is not None, "it was measured"
            known |= self._keep(generation, i, genomes[i], counted, 0.0)
        self._report(known)
        return known

    def _measure_all(
        self, population: Genomes, genomes: list[str], indices: Sequence[int], again: bool = False
    ) -> dict[int, Counted]:
        """Measure individuals, one for each process at a time: what a round measured is safe before the next."""
        known: dict[int, Counted] = {}
        for start in range(0, len(indices), self.processes.count):
            chosen = indices[start : start + self.processes.count]
            measured: dict[int, Counted] = {}
            for i, (correct, failed, microseconds) in zip(chosen, self._round(population, chosen), strict=True):
                counted = (None if failed else correct, self.pictures.count)
                measured |= self._keep(population.generation, i, genomes[i], counted, microseconds / 1e6)
            self._report(measured, 0 if again else len(measured))
            known |= measured
        return known

    def _round(self, population: Genomes, indices: Sequence[int]) -> list[list[int]]:
        """Return [right answers, batches with a logit that was not finite, microseconds] for each individual.

        The batches of all are one row of work, cut into equal parts: with as many individuals as processes, each
        process has a whole one; with fewer, as at the end of a generation, they share each.
        """
        batches, counted = self.pictures.batches, np.zeros((len(indices), 3), dtype=np.int64)
        first, last = (len(indices) * batches * (self.processes.rank + i) // self.processes.count for i in (0, 1))
        for row, index in enumerate(indices):
            part = range(max(first - row * batches, 0), min(last - row * batches, batches))
            if part:
                counted[row] = self._measure(population, index, part)
        return self.processes.add_up(counted).tolist()

    def _measure(self, population: Genomes, index: int, batches: range) -> list[int]:
        began = time.perf_counter()
        self.forward.write(self.space.unpack(population.genomes[index]))
        correct = self.forward.count(self.pictures, batches)
        return [correct or 0, correct is None, int((time.perf_counter() - began) * 1e6)]

    def _keep(self, generation: int, index: int, genome: str, counted: Counted, seconds: float) -> dict[int, Counted]:
        self.record.add(generation, index, genome, counted, seconds, write=self.processes.is_main)
        return {index: counted}

    def _report(self, fitness: dict[int, Counted], count: int | None = None) -> None:
        self._best = max([self._best, *(correct or 0 for correct, _ in fitness.values())])
        self.progress(len(fitness) if count is None else count, self._best)
