"""Population in, fitness out: enough to decide every tournament and the elite."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import numpy as np
import torch

from mega_hf.evaluation.calibration import Calibration
from mega_hf.evaluation.forward import Examples, ResidentModel
from mega_hf.evaluation.individuals import Counted, Genomes, Interval, PartialResult, Record
from mega_hf.evaluation.row_difficulty import MOST_LOSS, RowDifficulty, quantize, quantize_losses
from mega_hf.runtime.processes import Processes
from mega_hf.weights.encoding import Encoding
from mega_hf.weights.space import StateDict

logger = logging.getLogger(__name__)

Contenders = Callable[[list[list[int]], list[Interval]], set[int]]


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
        contenders: says which individuals may win some contest, given what was seen of each.
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
        contenders: Contenders,
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
        self.contenders = contenders
        self.progress = progress
        self.memory = memory
        self.chunk, self.full, self._best, self._resident = chunk, full, 0, (0, 0)
        self._order_bound: bool | None = None
        self.calibration, self._genomes = calibration, list[str]()
        self._statistics: dict[str, StateDict] = {}  # of this generation's genomes

    def __call__(
        self, population: Genomes, tournaments: list[list[int]], elite: Interval | None
    ) -> list[Interval]:
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
                return [one.interval for one in seen]
            self._round(population, self._choose(needed, seen), seen)

    def answers(self, population: Genomes) -> np.ndarray:
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
            counted = (None if failed else sum(right), len(rows), 0)
            self._record(
                population.generation, i, genomes[i], counted, microseconds / 1e6, shown + len(rows)
            )
        return found[:, head:].astype(bool)

    def _digest(self, population: Genomes) -> list[str]:
        """Return the digest of each genome; each process makes its share of them."""

        def words(i: int) -> list[int]:
            return np.frombuffer(
                bytes.fromhex(self.encoding.digest(population.genomes[i])), dtype=">u4"
            ).tolist()

        made = self.processes.share(len(population.genomes), 4, words)
        return [row.astype(">u4").tobytes().hex() for row in made]

    def _recall(
        self, generation: int, index: int, genome: str, elite: Interval | None
    ) -> PartialResult:
        """Return what the record, or the memory, has of an individual."""
        counted = self.record.find(generation, index, genome)
        counted = (
            counted
            or ((elite[0], elite[1], elite[3]) if elite else None)
            or self.record.find_genome(genome)
        )
        rows = self.examples.count
        if counted is None or counted[1] < rows:
            counted = self.memory.find(genome, bool(self.most)) or counted
        unseen = np.ones(rows, dtype=bool)
        if counted is not None and counted[1] == rows:
            correct, _, loss = counted if self.most else (*counted[:2], 0)
            self._remember(genome, correct, loss)
            return PartialResult(genome, ~unseen, correct, loss, self.most)
        return PartialResult(genome, unseen, most=self.most, told=counted)

    def _remember(self, genome: str, correct: int | None, loss: int) -> None:
        self.memory.keep(genome, correct, loss if self.most else None)

    def _needed(self, contests: list[list[int]], seen: list[PartialResult]) -> set[int]:
        """Return the individuals whose unseen rows may decide a contest, and all that are the
        same."""
        intervals = [one.interval for one in seen]
        may = set(range(len(seen))) if self.full else self.contenders(contests, intervals)
        genomes = {seen[i].genome for i in may if intervals[i][2]}
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
            correct, _, unseen, *_ = seen[i].interval
            return -(correct or 0) - unseen, i

        first = {seen[i].genome: i for i in sorted(needed, reverse=True)}
        processes = self.processes.count
        each = 2 if processes > 1 and len(first) >= 4 * processes else 1
        return sorted(first.values(), key=order)[: each * processes]

    def _round(self, population: Genomes, indices: list[int], seen: list[PartialResult]) -> None:
        """Show individuals their next rows.

        The batches of all are one row of work, cut into equal parts: with as many individuals as
            processes, each
        process has its own; with fewer, as at the end of a generation, they share them.
        """
        size, rows = self.examples.batch_size, []
        batches = max(1, self.chunk // size) * math.ceil(self.processes.count / len(indices))
        for one in (seen[i] for i in indices):
            one.correct, one.loss, one.told = (
                (0, 0, None) if one.told else (one.correct, one.loss, None)
            )
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
        self, population: Genomes, index: int, rows: np.ndarray
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

    def _place(self, population: Genomes, index: int) -> int:
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
                generation, i, one.genome, one.counted, one.seconds, one.examples
            ):
                one.seconds, one.examples = 0.0, 0  # another of the same genome has cost nothing

    def _record(
        self,
        generation: int,
        index: int,
        genome: str,
        counted: Counted,
        seconds: float,
        examples: int,
    ) -> bool:
        """Record a fitness unless it stands there; return whether it did not."""
        is_new = self.record.find(generation, index, genome) != counted
        if is_new:
            self.record.add(
                generation, index, genome, counted, seconds, examples, write=self.processes.is_main
            )
        return is_new

    def _report(self, settled: list[PartialResult], count: int) -> None:
        if not settled:
            return
        self._best = max(
            [self._best, *(one.correct or 0 for one in settled if not one.interval[2])]
        )
        self.progress(count, self._best)
