"""Evaluate a population just far enough to decide every tournament and the elite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch

from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.evaluation.row_difficulty import (
    MAX_ROW_LOSS,
    CountCache,
    RowDifficulty,
    quantize,
    quantize_losses,
)
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
        """Return the recorded fitness of a genome in any generation, or None."""

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
        """Keep a fitness, and the seconds and examples that it cost.

        Args:
            generation: 1 for the founders.
            index: of the individual in its generation.
            genome: the digest.
            fitness: on the rows seen.
            seconds: of evaluation.
            examples: forwarded.
            write: to the disk; one process writes, the others keep the fitness in memory.
        """


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

    def add(self, rows: np.ndarray, cost: Cost, correct: np.ndarray, losses: np.ndarray) -> None:
        """Add an evaluation on some rows ([n] int64): correct and losses are [n] int64."""
        self.seconds += cost.microseconds / 1e6
        self.examples += len(rows) + cost.calibration_examples
        self.unseen[rows] = False
        if cost.failed or self.correct is None:
            # Nothing is worse, so the other rows do not matter.
            self.correct, self.loss, self.unseen[:] = None, 0, False
        else:
            self.correct, self.loss = (
                self.correct + int(correct.sum()),
                self.loss + int(losses.sum()),
            )


class Cost(NamedTuple):
    """The cost of one evaluation, and whether it failed, as integers."""

    failed: int  # 1 where a logit was not finite
    microseconds: int
    calibration_examples: int  # forwarded to recalibrate BatchNorm


class Evaluated(NamedTuple):
    """An evaluation of one individual on some rows; margins and losses are quantized."""

    cost: Cost
    correct: np.ndarray  # [n] bool or int64
    margins: np.ndarray  # [n] int64
    losses: np.ndarray  # [n] int64


@dataclass(eq=False)
class RacingEvaluator:
    """Evaluate individuals batch by batch, and stop those that can no longer win.

    An individual stops once it can neither win a tournament nor become the elite. The winners are
    the same as with full evaluation.

    A contest is a tournament, or the comparison of all individuals for the elite. A contest is
    decided when only one individual can still win it and that individual has seen all rows. In each
    round the individuals that may still have the most correct predictions are evaluated on their
    next rows: one individual per process, or two. The others then often lose without being
    evaluated further. Rows that recent individuals got wrong come first, so that losers are found
    early. A prediction on a row depends neither on the other rows of the batch nor on their order,
    so every contest has the winner that full evaluation gives it. Where a device breaks this rule,
    every individual is evaluated on all rows in one order.

    Args:
        forward: the resident model.
        examples: the validation split.
        encoding: turns a genome into weights.
        processes: share the work.
        record: the journal; individuals that it knows are not evaluated again.
        progress: called with (individuals evaluated or known, best correct predictions so far).
        difficulty: orders the rows, and learns from each evaluation.
        counts: the fitness of genomes that were evaluated elsewhere.
        chunk: rows to evaluate before checking whether an individual can still win.
        full: evaluate every individual on all rows.
        calibration: recalibrates BatchNorm for each individual; None where the statistics are part
            of a genome.
        sums_losses: whether the loss decides between individuals with equally many correct
            predictions.
    """

    forward: ResidentModel
    examples: Examples
    encoding: Encoding
    processes: Processes
    record: Record
    progress: Callable[[int, int], None]
    difficulty: RowDifficulty
    counts: CountCache
    chunk: int
    full: bool = False
    calibration: Calibration | None = None
    sums_losses: bool = False
    _best: int = field(default=0, init=False)  # correct predictions, of those that saw all rows
    # (generation, index) of the individual in the resident model
    _resident: tuple[int, int] = field(default=(0, 0), init=False)
    _is_order_bound: bool | None = field(default=None, init=False)
    _genomes: list[str] = field(default_factory=list, init=False)  # digests of this generation
    # BatchNorm statistics by the digest of a genome of this generation
    _statistics: dict[str, StateDict] = field(default_factory=dict, init=False)

    def __call__(
        self, population: Population, tournaments: list[list[int]], elite: Fitness | None
    ) -> list[Fitness]:
        """Return a fitness for each individual; they decide all tournaments.

        They also decide which individual becomes the elite.

        Args:
            population: the individuals.
            tournaments: lists of indices into the population.
            elite: the known fitness of individual 0, if it is the elite of an earlier generation.

        Raises:
            LaunchError: the processes do not hold the same population.
        """
        generation = population.generation
        self.processes.compare(f"generation {generation}", population.fingerprint)
        genomes = self._genomes = self._digest(population)
        self._statistics = {
            genome: self._statistics[genome] for genome in genomes if genome in self._statistics
        }
        known: dict[str, PartialResult] = {}  # identical individuals share one result
        for index, genome in enumerate(genomes):
            if genome not in known:
                known[genome] = self._look_up(generation, index, genome, None if index else elite)
        results = [known[genome] for genome in genomes]
        contests = [*tournaments, list(range(len(results)))]
        pending, reported = set(range(len(results))), {0} if elite else set[int]()
        while True:
            needed = self._needed(contests, results)
            if needed and not self.full and self._check_order_bound(results[min(needed)]):
                self.full = True
                continue
            settled = sorted((pending | needed) - needed)
            self._settle(generation, settled, results, is_elite_known=elite is not None)
            self._report([results[i] for i in settled], len({*settled} - reported))
            pending, reported = (pending | needed) - {*settled}, reported | {*settled}
            if not needed:
                self.difficulty.decay()
                return [result.fitness for result in results]
            self._round(population, self._choose(needed, results), results)

    def correct_rows(self, population: Population) -> np.ndarray:
        """Evaluate all individuals on all rows: [individuals, rows] bool, whether correct.

        An individual with a logit that is not finite is correct nowhere. Losses are not summed,
        since they decide nothing where this is used.
        """
        genomes, rows = self._digest(population), np.arange(self.examples.count)
        self._genomes, self._statistics = genomes, {}
        head = len(Cost._fields)

        def evaluate(i: int) -> list[int]:
            cost, correct, *_ = self._evaluate(population, i, rows)
            return [*cost, *(correct & (not cost.failed)).tolist()]

        found = self.processes.share(len(genomes), head + len(rows), evaluate)
        for i, line in enumerate(found.tolist()):
            cost, correct = Cost(*line[:head]), line[head:]
            fitness = Fitness(None if cost.failed else sum(correct), len(rows))
            examples = len(rows) + cost.calibration_examples
            self._record(
                population.generation, i, genomes[i], fitness, cost.microseconds / 1e6, examples
            )
        return found[:, head:].astype(bool)

    def _digest(self, population: Population) -> list[str]:
        """Return the digest of each genome; each process computes its share of them."""

        def words(i: int) -> list[int]:
            return np.frombuffer(
                bytes.fromhex(self.encoding.digest(population.genomes[i])), dtype=">u4"
            ).tolist()

        digests = self.processes.share(len(population.genomes), 4, words)
        return [row.astype(">u4").tobytes().hex() for row in digests]

    # --- What is known

    def _look_up(
        self, generation: int, index: int, genome: str, elite: Fitness | None
    ) -> PartialResult:
        """Return what the record, the elite or the cache knows of an individual."""
        found = self.record.find(generation, index, genome)
        found = found or elite or self.record.find_genome(genome)
        rows, row_loss = self.examples.count, MAX_ROW_LOSS if self.sums_losses else 0
        if found is None or found.seen < rows:
            found = self.counts.find(genome, self.sums_losses) or found
        unseen = np.ones(rows, dtype=bool)
        if found is not None and found.seen == rows:
            loss = found.loss if self.sums_losses else 0
            self.counts.keep(genome, found.correct, loss if self.sums_losses else None)
            return PartialResult(genome, ~unseen, found.correct, loss, row_loss)
        recorded = found and found.out_of(rows, row_loss)
        return PartialResult(genome, unseen, row_loss=row_loss, recorded=recorded)

    def _settle(
        self,
        generation: int,
        indices: list[int],
        results: list[PartialResult],
        is_elite_known: bool,
    ) -> None:
        """Record individuals whose evaluation ends here.

        A known elite is recorded already, in its own generation.
        """
        for i in indices:
            result = results[i]
            is_carried = i == 0 and is_elite_known and not result.examples
            if not is_carried and self._record(
                generation, i, result.genome, result.fitness, result.seconds, result.examples
            ):
                result.seconds, result.examples = 0.0, 0  # identical individuals cost nothing more

    def _record(
        self,
        generation: int,
        index: int,
        genome: str,
        fitness: Fitness,
        seconds: float,
        examples: int,
    ) -> bool:
        """Record a fitness unless it is recorded already; return whether it was new."""
        found = self.record.find(generation, index, genome)
        known = (found.correct, found.seen, found.loss) if found else None
        is_new = known != (fitness.correct, fitness.seen, fitness.loss)
        if is_new:
            self.record.add(
                generation, index, genome, fitness, seconds, examples, write=self.processes.is_main
            )
        return is_new

    def _report(self, settled: list[PartialResult], count: int) -> None:
        if settled:
            whole = [result for result in settled if not result.fitness.unseen]
            self._best = max([self._best, *(result.correct or 0 for result in whole)])
            self.progress(count, self._best)

    # --- Whom to evaluate next

    def _needed(self, contests: list[list[int]], results: list[PartialResult]) -> set[int]:
        """Return individuals whose unseen rows may decide a contest, with duplicates."""
        fitness = [result.fitness for result in results]
        candidates = set(range(len(results)))
        if not self.full:
            candidates = {i for contest in contests for i in contenders(contest, fitness)}
        genomes = {results[i].genome for i in candidates if fitness[i].unseen}
        return {i for i, result in enumerate(results) if result.genome in genomes}

    def _check_order_bound(self, result: PartialResult) -> bool:
        """Return whether predictions depend on the order of rows, on any process.

        Args:
            result: bears the cost of the first check; later ones are free.
        """
        if self._is_order_bound is None:
            result.examples += self.forward.order_check_size(self.examples)
            bound = np.array([not self.forward.is_order_free(self.examples)], dtype=np.int64)
            self._is_order_bound = bool(self.processes.add_up(bound)[0])
            if self._is_order_bound and self.processes.is_main:
                logger.warning(
                    "on this device predictions depend on a row's place in its batch: every"
                    " individual is evaluated on all rows"
                )
        return self._is_order_bound

    def _choose(self, needed: set[int], results: list[PartialResult]) -> list[int]:
        """Return the most promising individuals, one per process.

        These may still have the most correct predictions. With several processes and many
        candidates there are two per process: most of them will be evaluated further in any case,
        and the processes wait for each other less often.
        """

        def order(i: int) -> tuple[int, int]:
            fitness = results[i].fitness
            return -(fitness.correct or 0) - fitness.unseen, i

        first = {results[i].genome: i for i in sorted(needed, reverse=True)}
        processes = self.processes.count
        each = 2 if processes > 1 and len(first) >= 4 * processes else 1
        return sorted(first.values(), key=order)[: each * processes]

    # --- Evaluation

    def _round(
        self, population: Population, indices: list[int], results: list[PartialResult]
    ) -> None:
        """Evaluate some individuals on their next rows, and add that to their results."""
        size, rows = self.examples.batch_size, []
        batches = max(1, self.chunk // size) * math.ceil(self.processes.count / len(indices))
        for result in (results[i] for i in indices):
            if result.recorded is not None:
                result.correct, result.loss, result.recorded = 0, 0, None
            if self.full:
                rows.append(np.flatnonzero(result.unseen))
            else:
                rows.append(self.difficulty.hardest(result.unseen, batches * size))
        found = self._evaluate_shared(population, indices, rows)
        for index, chosen, (cost, correct, margins, losses) in zip(
            indices, rows, found, strict=True
        ):
            result = results[index]
            result.add(chosen, cost, correct, losses)
            if result.correct is not None:
                self.difficulty.learn(chosen, margins)
            if not result.unseen.any():
                loss = result.loss if self.sums_losses else None
                self.counts.keep(result.genome, result.correct, loss)

    def _evaluate_shared(
        self, population: Population, indices: list[int], rows: list[np.ndarray]
    ) -> list[Evaluated]:
        """Evaluate individuals on their rows, shared out over all processes.

        The batches of all individuals form one list that is cut into equal parts. With as many
        individuals as processes, each process has its own; with fewer, as at the end of a
        generation, they share them.

        Args:
            population: the individuals.
            indices: [individuals], whom to evaluate.
            rows: [n] int64 for each of them.
        """
        size, longest, head = self.examples.batch_size, max(map(len, rows)), len(Cost._fields)
        # of each individual: its cost, then whether correct, margin and loss of each row
        found = np.zeros((len(indices), head + 3 * longest), dtype=np.int64)
        parts = [(i, at) for i in range(len(indices)) for at in range(0, len(rows[i]), size)]
        share = self.processes.part(len(parts))
        for i, index in enumerate(indices):
            starts = [parts[part][1] for part in share if parts[part][0] == i]
            if starts:
                chosen = slice(starts[0], min(starts[-1] + size, len(rows[i])))
                cost, *columns = self._evaluate(population, index, rows[i][chosen])
                found[i, :head] = cost
                for column, values in enumerate(columns):
                    found[i, head + column * longest :][chosen] = values
        evaluated = []
        for chosen_rows, line in zip(rows, self.processes.add_up(found), strict=True):
            columns = [line[head + c * longest :][: len(chosen_rows)] for c in range(3)]
            evaluated.append(Evaluated(Cost(*line[:head].tolist()), *columns))
        return evaluated

    def _evaluate(self, population: Population, index: int, rows: np.ndarray) -> Evaluated:
        """Evaluate an individual on some rows ([n] int64), on this process."""
        began, calibration_examples = time.perf_counter(), 0
        if self._resident != (population.generation, index):
            calibration_examples = self._load(population, index)
            self._resident = (population.generation, index)
        found = self.forward.predict(self.examples, torch.from_numpy(rows))
        losses = np.zeros(len(rows), dtype=np.int64)
        if self.sums_losses:
            losses = quantize_losses(found.loss.numpy())
        microseconds = int(1e6 * (time.perf_counter() - began))
        cost = Cost(int(not found.finite), microseconds, calibration_examples)
        return Evaluated(cost, found.correct.numpy(), quantize(found.margin.numpy()), losses)

    def _load(self, population: Population, index: int) -> int:
        """Load an individual into the model; return the calibration examples it took."""
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
