"""Racing: recorded individuals are not evaluated again, new ones are recorded before use."""

import numpy as np
import pytest
import torch

from mega_hf.evaluation.racing import PartialResult, RacingEvaluator
from mega_hf.run.replay import MissingRecord, Replay
from mega_hf.runtime.processes import Processes
from mega_hf.runtime.seeds import streams
from mega_hf.search.evolve import Search, evolve
from mega_hf.search.mutation import Gaussian
from mega_hf.search.population import Fitness, Genes
from tests.evaluation.stubs import ROWS, Record, expect, make_model, populate


def test_each_individual_gets_its_own_fitness(make, examples, encoding):
    evaluation, record, _ = make()
    counted = evaluation(populate(encoding), [], None)
    assert counted == [Fitness(expect(examples, seed), ROWS) for seed in range(4)]
    assert len(set(counted)) > 1
    assert record.added == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_recorded_individuals_are_not_evaluated(make, examples, encoding):
    evaluation, record, _ = make({(1, 1): (29, ROWS), (1, 3): (None, ROWS)})
    counted = evaluation(populate(encoding), [], None)
    assert counted == [
        Fitness(expect(examples, 0), ROWS),
        Fitness(29, ROWS),
        Fitness(expect(examples, 2), ROWS),
        Fitness(None, ROWS),
    ]
    assert record.added == [(1, 0), (1, 2)]


def test_a_full_record_needs_no_forward_pass(make, encoding):
    evaluation, record, _ = make({(1, i): (i, ROWS) for i in range(4)})
    evaluation.forward = None
    assert evaluation(populate(encoding), [], None) == [Fitness(i, ROWS) for i in range(4)]
    assert (record.added, record.examples) == ([], 0)


def test_records_of_another_generation_are_not_used(make, examples, encoding):
    evaluation, record, _ = make({(1, i): (0, ROWS) for i in range(4)})
    assert evaluation(populate(encoding, generation=2), [], None)[1] == Fitness(
        expect(examples, 1), ROWS
    )
    assert len(record.added) == 4


def test_the_elite_keeps_its_fitness_and_is_not_evaluated(make, encoding):
    evaluation, record, _ = make()
    counted = evaluation(populate(encoding, generation=2), [], Fitness(17, ROWS))
    assert counted[0] == Fitness(17, ROWS)
    assert record.added == [(2, 1), (2, 2), (2, 3)]


def test_an_elite_that_failed_is_not_evaluated_either(make, encoding):
    evaluation, record, _ = make()
    assert evaluation(populate(encoding, generation=2), [], Fitness(None, ROWS))[0] == Fitness(
        None, ROWS
    )
    assert (2, 0) not in record.added


def test_an_individual_with_a_logit_that_is_not_finite_fails(make, encoding):
    evaluation, record, _ = make()
    population = populate(encoding)
    population.genomes[2, 0] = float("inf")
    counted = evaluation(population, [], None)
    assert counted[2] == Fitness(None, ROWS)
    assert record.known[1, 2] == Fitness(None, ROWS)
    assert None not in [one.correct for i, one in enumerate(counted) if i != 2]


def test_zero_correct_predictions_are_not_a_failure(make, encoding):
    """The record keeps them apart, too."""
    evaluation, record, _ = make()
    with torch.no_grad():
        evaluation.examples.labels.copy_(make_model(0)(evaluation.examples.images).argmin(dim=1))
    assert evaluation(populate(encoding, seeds=[0]), [], None) == [Fitness(0, ROWS)]
    assert record.known[1, 0] == Fitness(0, ROWS)


def test_genomes_are_not_changed(make, encoding):
    evaluation, _, _ = make()
    population = populate(encoding)
    before = population.genomes.clone()
    evaluation(population, [], None)
    assert torch.equal(population.genomes, before)


def test_progress_counts_each_individual_once(make, examples, encoding):
    evaluation, _, reports = make({(1, 1): (3, ROWS)})
    evaluation(populate(encoding), [], None)
    assert sum(count for count, _ in reports) == 4
    best = max(3, *(expect(examples, seed) for seed in (0, 2, 3)))
    assert reports[-1][1] == best
    reports.clear()
    evaluation(populate(encoding, generation=2), [], Fitness(best, ROWS))
    assert sum(count for count, _ in reports) == 3
    assert min(best_so_far for _, best_so_far in reports) >= best


def test_an_interrupted_search_resumes_to_the_same_result(make, encoding):
    parents = populate(encoding, seeds=(0, 1)).genomes
    genes = Genes(((0, 36), (36, 39)), 2, (0.2, 0.2))
    search = Search(5, 4, 3, 2, Gaussian(0.2, 0.5))

    def run(known):
        evaluation, record, _ = make(known)
        return evolve(parents, genes, search, streams(46, "0+1"), evaluation).best, record

    best, record = run({})
    assert len(record.added) == 5 + 3 * 4
    for kept in (0, 3, 5, 8, 17):
        known = {
            at: (record.known[at].correct, record.known[at].seen) for at in record.added[:kept]
        }
        again, rest = run(known)
        assert torch.equal(again.genome, best.genome)
        assert rest.added == record.added[kept:]
        assert rest.known == record.known


# --- Genomes that were evaluated before


def test_one_genome_is_evaluated_once(make, examples, encoding, monkeypatch):
    evaluation, record, reports = make()
    evaluated = []
    evaluate = RacingEvaluator._evaluate
    monkeypatch.setattr(
        RacingEvaluator,
        "_evaluate",
        lambda self, *words: (evaluated.append(words[1]), evaluate(self, *words))[1],
    )
    counted = evaluation(populate(encoding, seeds=(0, 1, 0, 2, 1)), [], None)
    assert counted == [Fitness(expect(examples, seed), ROWS) for seed in (0, 1, 0, 2, 1)]
    assert evaluated == [0, 1, 3]
    assert sorted(record.added) == [(1, i) for i in range(5)], "a replay needs a line for each"
    again = evaluation(populate(encoding, generation=2, seeds=(3, 2)), [], None)
    assert again == [Fitness(expect(examples, seed), ROWS) for seed in (3, 2)]
    assert evaluated == [0, 1, 3, 0]
    assert sum(count for count, _ in reports) == 7


# --- Recorded individuals that saw an unknown part of the rows


@pytest.mark.parametrize(
    ("known", "tournaments", "evaluated"),
    [
        ([(20, 30), (5, 20)], [[0, 1]], []),  # 5 to 15 right answers: behind, whatever comes
        ([(15, 30), (5, 20)], [[0, 1]], []),  # a tie at best, which the lower index wins
        ([(5, 20), (16, 30)], [[0, 1]], []),
        ([(20, 30), (5, 20), (6, 20)], [[0, 1]], []),  # which of the others is better is not asked
        ([(None, 30), (0, 30)], [[0, 1]], []),
        ([(20, 30), (5, 20)], [[1]], [1]),  # who wins is evaluated to the end
        ([(14, 30), (5, 20)], [[0, 1]], [1]),  # 15 would win
        ([(5, 20), (15, 30)], [[0, 1]], [0]),  # a tie would be won by the lower index
    ],
)
def test_rows_are_evaluated_only_where_they_may_decide(
    make, encoding, known, tournaments, evaluated
):
    evaluation, record, _ = make({(1, i): counted for i, counted in enumerate(known)}, full=False)
    intervals = evaluation(populate(encoding, seeds=range(len(known))), tournaments, None)
    assert {i for _, i in record.added} == {*evaluated}
    untouched = [i for i in range(len(known)) if i not in evaluated]
    assert all(intervals[i] == Fitness(*known[i]).out_of(ROWS) for i in untouched)


def test_full_evaluation_sees_all_rows(make, examples, encoding):
    evaluation, record, _ = make({(1, 0): (20, ROWS), (1, 1): (5, 20)})
    assert evaluation(populate(encoding, seeds=(0, 1)), [], None)[1] == Fitness(
        expect(examples, 1), ROWS
    )
    assert record.added == [(1, 1)]


def test_an_elite_that_saw_few_rows_is_evaluated_on_all_rows(make, examples, encoding):
    evaluation, record, _ = make({(2, 1): (9, ROWS), (2, 2): (1, ROWS)}, full=False)
    population = populate(encoding, generation=2, seeds=(0, 1, 2))
    assert evaluation(population, [], Fitness(2, 20, 10))[0] == Fitness(expect(examples, 0), ROWS)
    assert record.added == [(2, 0)]


# --- Replay


def test_a_replay_reads_the_record_and_names_a_missing_individual(encoding):
    population = populate(encoding, generation=2)
    replay = Replay(Record({(2, 1): (3, 20), (2, 2): (None, 30), (2, 3): (4, ROWS)}), ROWS, None)
    assert replay(population, [], Fitness(9, ROWS)) == [
        Fitness(9, ROWS),
        Fitness(3, 20, 10),
        Fitness(None, ROWS),
        Fitness(4, ROWS),
    ]
    with pytest.raises(MissingRecord, match="individual 0 of generation 2"):
        replay(population, [], None)


# --- Several processes


class Many:
    """One of several processes, without communication."""

    def __init__(self, rank, count):
        self.rank, self.count, self.is_main = rank, count, rank == 0

    part = Processes.part

    def add_up(self, values):
        return values


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("individuals", [1, 2, 3, 4])
def test_processes_share_the_rows_of_a_round_equally(
    make, examples, encoding, count, individuals, full
):
    """The last individuals of a generation are shared by batches, so that no process waits long."""
    if individuals > count and (individuals, count) != (4, 2):
        return  # no round has more of them than processes, or two for each of several
    population, indices, total, parts = populate(encoding), list(range(individuals)), 0, []
    for rank in range(count):
        evaluation, _, _ = make(full=full)
        evaluation.processes = Many(rank, count)
        evaluate, mine = evaluation._evaluate, []
        evaluation._evaluate = lambda p, i, r, evaluate=evaluate, mine=mine: (
            mine.append(len(r)),
            evaluate(p, i, r),
        )[1]
        seen = [PartialResult(str(i), np.ones(ROWS, dtype=bool)) for i in indices]
        evaluation._round(population, indices, seen)
        total = total + np.array([one.correct for one in seen])
        parts.append(-(-sum(mine) // examples.batch_size))
    if full or count >= 4 * individuals:
        assert total.tolist() == [expect(examples, seed) for seed in indices]
    assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize(
    ("count", "left", "chosen"),
    [(1, 12, 1), (2, 12, 4), (2, 8, 4), (2, 7, 2), (2, 1, 1), (8, 20, 8)],
)
def test_each_of_several_processes_gets_two_individuals_while_many_may_still_win(
    make, count, left, chosen
):
    evaluation, _, _ = make(full=False)
    evaluation.processes = Many(0, count)
    seen = [PartialResult(str(i), np.ones(ROWS, dtype=bool)) for i in range(left)]
    assert evaluation._choose(set(range(left)), seen) == list(range(chosen))
