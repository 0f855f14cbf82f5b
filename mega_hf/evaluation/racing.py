"""Population in, fitness out: enough to decide every tournament and the elite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.evaluation.row_difficulty import MOST_LOSS, RowDifficulty, quantize, quantize_losses
from mega_hf.runtime.processes import Processes
from mega_hf.search.population import Fitness, Population
from mega_hf.search.selection import contenders
from mega_hf.weights.encoding import Encoding
from mega_hf.weights.space import StateDict

logger = logging.getLogger(__name__)


class Record(Protocol):
    """Where every fitness is kept before it is used: the journal of a run.

    A record does not know how many rows there are: its fitnesses have no unseen rows.
    """

    def find(self, generation: int, index: int, genome: str | None) -> Fitness | None:
        """Return the recorded fitness of an individual, or None.

        Raises:
            RunError: another genome is recorded there; `genome` is a digest, None skips the check.
        """

    def find_genome(self, genome: str) -> Fitness | None:
        """Return the recorded fitness of a genome, in any generation, by its digest; or None."""

    def add(
        self,
        generation: int,
        index: int,
        genome: str,
        fitness: Fitness,
        seconds: float,
        examples: int,
        write: bool,
    ) -> None:
        """Keep a fitness, the seconds and the examples that it cost; only one process writes."""


@dataclass
class PartialResult:
    """What is known so far of one genome of a generation.

    Attributes:
        genome: the digest of the genome.
        unseen: [rows] bool, rows that are not evaluated yet.
        correct: correct predictions on the rows seen; None where a logit was not finite.
        loss: the sum of the losses of the rows seen, in units of 2⁻¹⁶ nats.
        row_loss: the largest loss that one row can have; 0 where losses are not summed.
        recorded: the fitness from the journal, which does not say which rows were seen; None once
            rows are evaluated here.
        seconds: evaluation time since the last record.
        examples: forwarded since the last record.
    """

    genome: str
    unseen: np.ndarray
    correct: int | None = 0
    loss: int = 0
    row_loss: int = 0
    recorded: Fitness | None = None
    seconds: float = 0.0
    examples: int = 0

    @property
    def fitness(self) -> Fitness:
        """The fitness on the rows seen."""
        if self.recorded is not None:
            return self.recorded
        rows, seen = len(self.unseen), int(len(self.unseen) - self.unseen.sum())
        return Fitness(self.correct, seen, loss=self.loss).out_of(rows, self.row_loss)


class RacingEvaluator:
    """Individuals on validation rows: as many rows as decide who wins, none twice, shared out over
    the processes.

    A contest, a tournament or the one for the elite, is decided when one individual is left that
    may win it, and that one has seen all rows. Until then those that may win are measured batch by
    batch, each time the one that may still have most right answers (one or two for each of several
    processes): the others then lose without being measured to the end. The rows that others were
    wrong about come first, so that losers are known early. What an
    individual answers on a row depends neither on the other rows of its batch nor on their order:
        so every contest
    has the winner that full evaluation gives it.

    Args:
        forward: the resident model.
        examples: the validation split.
        encoding: turns a genome into weights.
        processes: who takes part.
        record: the journal: what it knows is not measured again.
        progress: called with (individuals measured or known, best right answers so far).
        memory: what is known of the rows, and of genomes that were measured elsewhere.
        chunk: how many rows an individual is shown before it is asked whether it may still win.
        full: measure every individual on every row.
        calibration: what gives each individual BatchNorm's statistics; none where they are part of
            a genome.
        sums_losses: whether losses decide between individuals with as many right answers.
    """

    def __init__(
        self,
        forward: ResidentModel,
        examples: Examples,
        encoding: Encoding,
        processes: Processes,
        record: Record,
        progress: Callable[[int, int], None],
        memory: RowDifficulty,
        chunk: int,
        full: bool = False,
        calibration: Calibration | None = None,
        sums_losses: bool = False,
    ) -> None:
        self.most = MOST_LOSS if sums_losses else 0
        self.forward = forward
        self.examples = examples
        self.encoding = encoding
        self.processes = processes
        self.record = record
        self.progress = progress
        self.memory = memory
        self.chunk, self.full, self._best, self._resident = chunk, full, 0, (0, 0)
        self._order_bound: bool | None = None
        self.calibration, self._genomes = calibration, list[str]()
        self._statistics: dict[str, StateDict] = {}  # of this generation's genomes

    def __call__(
        self, population: Population, tournaments: list[list[int]], elite: Fitness | None
    ) -> list[Fitness]:
        """Return for each individual what was seen of it: enough to decide every tournament and the
        elite.

        Raises:
            LaunchError: the processes do not hold the same population.
        """
        self.processes.compare(f"generation {population.generation}", population.proof)
        genomes = self._genomes = self._digest(population)
        self._statistics = {
            genome: self._statistics[genome] for genome in genomes if genome in self._statistics
        }
        known: dict[str, PartialResult] = {}  # individuals that are the same share one
        for index, genome in enumerate(genomes):
            first = elite if index == 0 else None
            known[genome] = known.get(genome) or self._recall(
                population.generation, index, genome, first
            )
        seen = [known[genome] for genome in genomes]
        contests = [*tournaments, list(range(len(seen)))]
        waiting, counted = set(range(len(seen))), {0} if elite else set[int]()
        while True:
            needed = self._needed(contests, seen)
            if needed and not self.full and self._is_order_bound(seen[min(needed)]):
                self.full = True
                continue
            settled = sorted((waiting | needed) - needed)
            self._settle(population.generation, settled, seen, is_elite_known=elite is not None)
            self._report([seen[i] for i in settled], len({*settled} - counted))
            waiting, counted = (waiting | needed) - {*settled}, counted | {*settled}
            if not needed:
                self.memory.fade()
                return [one.fitness for one in seen]
            self._round(population, self._choose(needed, seen), seen)

    def answers(self, population: Population) -> np.ndarray:
        """Measure all of a population to its end; return who is right where: [individuals, rows]
        bool.

        One with a logit that is not finite is right nowhere.
        """
        genomes, rows, head = self._digest(population), np.arange(self.examples.count), 3
        self._genomes, self._statistics = genomes, {}

        def measure(i: int) -> list[int]:
            failed, seconds, shown, right, *_ = self._measure(population, i, rows)
            return [failed, int(1e6 * seconds), shown, *(right & ~failed).tolist()]

        found = self.processes.share(len(genomes), head + len(rows), measure)
        for i, (failed, microseconds, shown, *right) in enumerate(found.tolist()):
            # losses decide nothing between these
            fitness = Fitness(None if failed else sum(right), len(rows))
            self._record(
                population.generation, i, genomes[i], fitness, microseconds / 1e6, shown + len(rows)
            )
        return found[:, head:].astype(bool)

    def _digest(self, population: Population) -> list[str]:
        """Return the digest of each genome; each process makes its share of them."""

        def words(i: int) -> list[int]:
            return np.frombuffer(
                bytes.fromhex(self.encoding.digest(population.genomes[i])), dtype=">u4"
            ).tolist()

        made = self.processes.share(len(population.genomes), 4, words)
        return [row.astype(">u4").tobytes().hex() for row in made]

    def _recall(
        self, generation: int, index: int, genome: str, elite: Fitness | None
    ) -> PartialResult:
        """Return what the record, or the memory, has of an individual."""
        found = self.record.find(generation, index, genome)
        found = found or elite or self.record.find_genome(genome)
        rows = self.examples.count
        if found is None or found.seen < rows:
            found = self.memory.find(genome, bool(self.most)) or found
        unseen = np.ones(rows, dtype=bool)
        if found is not None and found.seen == rows:
            loss = found.loss if self.most else 0
            self._remember(genome, found.correct, loss)
            return PartialResult(genome, ~unseen, found.correct, loss, self.most)
        recorded = found and found.out_of(rows, self.most)
        return PartialResult(genome, unseen, row_loss=self.most, recorded=recorded)

    def _remember(self, genome: str, correct: int | None, loss: int) -> None:
        self.memory.keep(genome, correct, loss if self.most else None)

    def _needed(self, contests: list[list[int]], seen: list[PartialResult]) -> set[int]:
        """Return the individuals whose unseen rows may decide a contest, and all that are the
        same."""
        fitness = [one.fitness for one in seen]
        may = set(range(len(seen)))
        if not self.full:
            may = {i for contest in contests for i in contenders(contest, fitness)}
        genomes = {seen[i].genome for i in may if fitness[i].unseen}
        return {i for i, one in enumerate(seen) if one.genome in genomes}

    def _is_order_bound(self, one: PartialResult) -> bool:
        """Say, on all processes alike, whether the order of rows may change an answer: then it must
        not be chosen."""
        if self._order_bound is None:
            one.examples += self.forward.tried_for_order(self.examples)
            bound = np.array([not self.forward.is_order_free(self.examples)], dtype=np.int64)
            self._order_bound = bool(self.processes.add_up(bound)[0])
            if self._order_bound and self.processes.is_main:
                logger.warning(
                    "on this device answers depend on a row's place in its batch: all rows are"
                    " measured"
                )
        return self._order_bound

    def _choose(self, needed: set[int], seen: list[PartialResult]) -> list[int]:
        """Return those that may still have most right answers, for each process one.

        Several processes wait for each other less often with two each, where so many are left that
        most of them will be shown their next rows in any case.
        """

        def order(i: int) -> tuple[int, int]:
            fitness = seen[i].fitness
            return -(fitness.correct or 0) - fitness.unseen, i

        first = {seen[i].genome: i for i in sorted(needed, reverse=True)}
        processes = self.processes.count
        each = 2 if processes > 1 and len(first) >= 4 * processes else 1
        return sorted(first.values(), key=order)[: each * processes]

    def _round(self, population: Population, indices: list[int], seen: list[PartialResult]) -> None:
        """Show individuals their next rows.

        The batches of all are one row of work, cut into equal parts: with as many individuals as
            processes, each
        process has its own; with fewer, as at the end of a generation, they share them.
        """
        size, rows = self.examples.batch_size, []
        batches = max(1, self.chunk // size) * math.ceil(self.processes.count / len(indices))
        for one in (seen[i] for i in indices):
            if one.recorded is not None:
                one.correct, one.loss, one.recorded = 0, 0, None
            left = one.unseen
            rows.append(
                np.flatnonzero(left) if self.full else self.memory.hardest(left, batches * size)
            )
        longest = max(map(len, rows))
        head = 3  # failed, microseconds, pictures for statistics; then right, margins, losses
        found = np.zeros((len(indices), head + 3 * longest), dtype=np.int64)
        parts = [(row, at) for row in range(len(indices)) for at in range(0, len(rows[row]), size)]
        share = self.processes.part(len(parts))
        for row, index in enumerate(indices):
            mine = [parts[i][1] for i in share if parts[i][0] == row]
            if mine:
                chosen = slice(mine[0], min(mine[-1] + size, len(rows[row])))
                failed, seconds, shown, *answers = self._measure(
                    population, index, rows[row][chosen]
                )
                found[row, :head] = failed, int(1e6 * seconds), shown
                for part, values in enumerate(answers):
                    found[row, head + part * longest :][chosen] = values
        for row, answers in enumerate(self.processes.add_up(found)):
            n = len(rows[row])
            right, margins, losses = (answers[head + part * longest :][:n] for part in range(3))
            self._take(seen[indices[row]], rows[row], answers[:head], right, margins, losses)

    def _measure(
        self, population: Population, index: int, rows: np.ndarray
    ) -> tuple[bool, float, int, np.ndarray, np.ndarray, np.ndarray]:
        """Measure an individual on some rows.

        Returns:
            whether a logit was not finite, the seconds that it took, how many pictures its
            statistics took, and right answers, margins and losses, row by row.
        """
        began, shown = time.perf_counter(), 0
        if self._resident != (population.generation, index):
            shown = self._place(population, index)
            self._resident = (population.generation, index)
        right, margin, finite, loss = self.forward.answers(self.examples, torch.from_numpy(rows))
        losses = quantize_losses(loss.numpy()) if self.most else np.zeros(len(rows), dtype=np.int64)
        seconds = time.perf_counter() - began
        return not finite, seconds, shown, right.numpy(), quantize(margin.numpy()), losses

    def _place(self, population: Population, index: int) -> int:
        """Write an individual into the resident model; return how many pictures its statistics
        took."""
        entries = self.encoding.entries(population.genomes[index])
        if self.calibration is None:
            self.forward.write(entries)
            return 0
        self.forward.write(entries, part=True)
        genome = self._genomes[index]
        if genome in self._statistics:
            self.forward.write(self._statistics[genome].items(), part=True)
            return 0
        self._statistics[genome] = self.calibration.recalibrate(
            self.forward, self.encoding.space.recomputed
        )
        return self.calibration.examples.count

    def _take(
        self, one: PartialResult, rows: np.ndarray, cost: np.ndarray, *answers: np.ndarray
    ) -> None:
        """Add to what is known of an individual, and of the rows; `cost` as it stands before the
        answers."""
        (failed, microseconds, shown), (right, margins, losses) = cost.tolist(), answers
        one.seconds = one.seconds + microseconds / 1e6
        one.examples = one.examples + len(rows) + shown
        one.unseen[rows] = False
        if failed or one.correct is None:
            # nothing is worse: the other rows don't matter
            one.correct, one.loss, one.unseen[:] = None, 0, False
        else:
            one.correct, one.loss = one.correct + int(right.sum()), one.loss + int(losses.sum())
            self.memory.learn(rows, margins)
        if not one.unseen.any():
            self._remember(one.genome, one.correct, one.loss)

    def _settle(
        self, generation: int, indices: list[int], seen: list[PartialResult], is_elite_known: bool
    ) -> None:
        """Record individuals that are measured no further; an elite that was known stands in its
        own generation."""
        for i in indices:
            one = seen[i]
            carried = i == 0 and is_elite_known and not one.examples
            if not carried and self._record(
                generation, i, one.genome, one.fitness, one.seconds, one.examples
            ):
                one.seconds, one.examples = 0.0, 0  # another of the same genome has cost nothing

    def _record(
        self,
        generation: int,
        index: int,
        genome: str,
        fitness: Fitness,
        seconds: float,
        examples: int,
    ) -> bool:
        """Record a fitness unless it stands there; return whether it did not."""
        found = self.record.find(generation, index, genome)
        is_new = found is None or found.out_of(self.examples.count, self.most) != fitness
        if is_new:
            self.record.add(
                generation, index, genome, fitness, seconds, examples, write=self.processes.is_main
            )
        return is_new

    def _report(self, settled: list[PartialResult], count: int) -> None:
        if not settled:
            return
        self._best = max(
            [self._best, *(one.correct or 0 for one in settled if not one.fitness.unseen)]
        )
        self.progress(count, self._best)
