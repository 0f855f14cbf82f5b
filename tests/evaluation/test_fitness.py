"""Population in, fitness out: known ones are not measured again, new ones are recorded before they are used."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mega_hf.evaluation.fitness import FullEvaluation, Replay, Unrecorded
from mega_hf.evaluation.forward import Forward, place_pictures
from mega_hf.evaluation.processes import Processes
from mega_hf.genetic.evolve import Search, evolve
from mega_hf.genetic.mutation import Gaussian
from mega_hf.genetic.population import Fitness, Genes
from mega_hf.genetic.seeds import streams
from mega_hf.genetic.selection import contenders
from mega_hf.weights.space import build_space

ROWS = 30


class Record:
    """A journal in memory, which counts what it is told."""

    def __init__(self, known=()):
        self.known, self.genomes, self.added = dict(known), {}, []

    def find(self, generation, index, genome):
        return self.known.get((generation, index))

    def find_genome(self, genome):
        return self.genomes.get(genome)

    def add(self, generation, index, genome, fitness, seconds, write=True):
        there = self.known.get((generation, index))
        assert there is None or there[1] < fitness[1], "measured twice"
        assert write
        assert seconds >= 0
        self.known[generation, index] = self.genomes[genome] = fitness
        self.added.append((generation, index))


def _model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


@pytest.fixture
def processes():
    return Processes()


@pytest.fixture
def pictures(processes):
    room = place_pictures(ROWS, (3, 2, 2), 8, processes.device, 0.5)
    generator = torch.Generator().manual_seed(3)
    room.images[:ROWS] = torch.randn(ROWS, 3, 2, 2, generator=generator)
    room.labels[:ROWS] = torch.randint(0, 3, (ROWS,), generator=generator)
    return room


@pytest.fixture(scope="module")
def space():
    states = {str(seed): dict(_model(seed).state_dict()) for seed in (0, 1)}
    return build_space(states, list(states["0"]), {})


@pytest.fixture
def make(processes, pictures, space):
    """Return a function that makes an evaluation, its record, and a list of what progress was told."""

    def build(known=()):
        record, told = Record(known), []
        forward = Forward(_model(), processes.device)
        evaluation = FullEvaluation(
            forward, pictures, space, processes, record, _contenders, lambda *seen: told.append(seen)
        )
        return evaluation, record, told

    return build


def _contenders(tournament, intervals):
    return contenders(tournament, [Fitness(*interval) for interval in intervals])


def _population(space, generation=1, seeds=(0, 1, 2, 3)):
    genomes = torch.stack([space.pack(dict(_model(seed).state_dict())) for seed in seeds])
    return SimpleNamespace(genomes=genomes, generation=generation, proof="00")


def _expected(pictures, seed):
    with torch.no_grad():
        scores = _model(seed)(pictures.images[:ROWS].cpu())
    return int((scores.argmax(dim=1) == pictures.labels[:ROWS].cpu()).sum())


def test_every_individual_gets_its_own_count(make, pictures, space):
    evaluation, record, _ = make()
    counted = evaluation(_population(space), [], None)
    assert counted == [(_expected(pictures, seed), ROWS, 0) for seed in range(4)]
    assert len(set(counted)) > 1
    assert record.added == [(1, 0), (1, 1), (1, 2), (1, 3)]


def test_what_the_record_knows_is_used_and_not_measured(make, pictures, space):
    evaluation, record, _ = make({(1, 1): (29, ROWS), (1, 3): (None, ROWS)})
    counted = evaluation(_population(space), [], None)
    assert counted == [(_expected(pictures, 0), 30, 0), (29, 30, 0), (_expected(pictures, 2), 30, 0), (None, 30, 0)]
    assert record.added == [(1, 0), (1, 2)]


def test_a_full_record_needs_no_forward_pass(make, space):
    evaluation, record, _ = make({(1, i): (i, ROWS) for i in range(4)})
    evaluation.forward = None
    assert evaluation(_population(space), [], None) == [(i, ROWS, 0) for i in range(4)]
    assert record.added == []


def test_the_record_of_another_generation_is_not_used(make, pictures, space):
    evaluation, record, _ = make({(1, i): (0, ROWS) for i in range(4)})
    assert evaluation(_population(space, generation=2), [], None)[1] == (_expected(pictures, 1), ROWS, 0)
    assert len(record.added) == 4


def test_the_elite_keeps_its_fitness_and_is_not_measured(make, space):
    evaluation, record, _ = make()
    counted = evaluation(_population(space, generation=2), [], (17, ROWS, 0))
    assert counted[0] == (17, ROWS, 0)
    assert record.added == [(2, 1), (2, 2), (2, 3)]


def test_an_elite_without_a_fitness_is_not_measured_either(make, space):
    evaluation, record, _ = make()
    assert evaluation(_population(space, generation=2), [], (None, ROWS, 0))[0] == (None, ROWS, 0)
    assert (2, 0) not in record.added


def test_weights_that_give_no_finite_logit_have_no_fitness(make, space):
    evaluation, record, _ = make()
    population = _population(space)
    population.genomes[2, 0] = float("inf")
    counted = evaluation(population, [], None)
    assert counted[2] == (None, ROWS, 0)
    assert record.known[1, 2] == (None, ROWS)
    assert None not in [c for i, (c, *_) in enumerate(counted) if i != 2]


def test_weights_that_nobody_gets_right_have_the_fitness_0(make, space):
    """0 right answers and no fitness are different things, in the record too."""
    evaluation, record, _ = make()
    evaluation.pictures.labels[:ROWS] += 3
    try:
        assert evaluation(_population(space), [], None) == [(0, ROWS, 0)] * 4
    finally:
        evaluation.pictures.labels[:ROWS] -= 3
    assert record.known[1, 0] == (0, ROWS)


def test_genomes_are_not_written_to(make, space):
    evaluation, _, _ = make()
    population = _population(space)
    before = population.genomes.clone()
    evaluation(population, [], None)
    assert torch.equal(population.genomes, before)


def test_progress_adds_up_to_the_individuals_that_need_a_fitness(make, pictures, space):
    evaluation, _, told = make({(1, 1): (3, ROWS)})
    evaluation(_population(space), [], None)
    assert sum(measured for measured, _ in told) == 4
    best = max(3, *(_expected(pictures, seed) for seed in (0, 2, 3)))
    assert told[-1][1] == best
    told.clear()
    evaluation(_population(space, generation=2), [], (best, ROWS, 0))
    assert sum(measured for measured, _ in told) == 3
    assert min(shown for _, shown in told) >= best


def test_a_search_stopped_anywhere_goes_on_to_the_same_result(make, space):
    parents, genes = _population(space, seeds=(0, 1)).genomes, Genes(((0, 36), (36, 39)), 2, (0.2, 0.2))
    search = Search(5, 4, 3, 2, Gaussian(0.2, 0.5))

    def run(known):
        evaluation, record, _ = make(known)
        return evolve(parents, genes, search, streams(46, "0+1"), evaluation).best, record

    best, record = run({})
    assert len(record.added) == 5 + 3 * 4
    for kept in (0, 3, 5, 8, 17):
        known = {key: record.known[key] for key in record.added[:kept]}
        again, rest = run(known)
        assert torch.equal(again.genome, best.genome)
        assert rest.added == record.added[kept:]
        assert rest.known == record.known


# --- Genomes that were measured before


def test_one_genome_is_measured_once(make, pictures, space, monkeypatch):
    evaluation, record, told = make()
    measured = []
    measure = FullEvaluation._measure
    monkeypatch.setattr(
        FullEvaluation, "_measure", lambda self, *words: (measured.append(words[1]), measure(self, *words))[1]
    )
    counted = evaluation(_population(space, seeds=(0, 1, 0, 2, 1)), [], None)
    assert counted == [(_expected(pictures, seed), ROWS, 0) for seed in (0, 1, 0, 2, 1)]
    assert measured == [0, 1, 3]
    assert sorted(record.added) == [(1, i) for i in range(5)], "a replay needs a line for each"
    again = evaluation(_population(space, generation=2, seeds=(3, 2)), [], None)
    assert again == [(_expected(pictures, seed), ROWS, 0) for seed in (3, 2)]
    assert measured == [0, 1, 3, 0]
    assert sum(shown for shown, _ in told) == 7


# --- Individuals of which the record has seen some rows


@pytest.mark.parametrize(
    ("known", "tournaments", "measured"),
    [
        ([(20, 30), (5, 20)], [[0, 1]], []),  # 5 to 15 right answers: behind, whatever comes
        ([(15, 30), (5, 20)], [[0, 1]], []),  # a tie at best, which the lower index wins
        ([(14, 30), (5, 20)], [[0, 1]], [1]),  # 15 would win
        ([(5, 20), (15, 30)], [[0, 1]], [0]),  # a tie would be won by the lower index
        ([(5, 20), (16, 30)], [[0, 1]], []),
        ([(20, 30), (5, 20), (6, 20)], [[0, 1]], []),  # which of the others is better is not asked
        ([(20, 30), (5, 20), (6, 20)], [[1, 2]], [1, 2]),  # now it is
        ([(None, 30), (0, 1)], [[0, 1]], []),
    ],
)
def test_rows_are_seen_where_they_decide(make, space, known, tournaments, measured):
    evaluation, record, _ = make({(1, i): counted for i, counted in enumerate(known)})
    population = _population(space, seeds=range(len(known)))
    intervals = evaluation(population, tournaments, None)
    assert record.added == [(1, i) for i in measured]
    assert all(intervals[i][2] == 0 for i in measured)
    untouched = [i for i in range(len(known)) if i not in measured]
    assert all(intervals[i] == (*known[i], ROWS - known[i][1]) for i in untouched)


def test_an_elite_that_saw_few_rows_is_measured_where_a_child_may_be_better(make, pictures, space):
    evaluation, record, _ = make({(2, 1): (9, ROWS), (2, 2): (1, ROWS)})
    population = _population(space, generation=2, seeds=(0, 1, 2))
    assert evaluation(population, [], (10, 20, 10))[0] == (10, 20, 10)
    assert evaluation(population, [], (2, 20, 10))[0] == (_expected(pictures, 0), ROWS, 0)
    assert record.added == [(2, 0)]


# --- Replay


def test_a_replay_takes_what_is_recorded_and_names_what_is_missing(space):
    population = _population(space, generation=2)
    replay = Replay(Record({(2, 1): (3, 20), (2, 2): (None, 30), (2, 3): (4, ROWS)}), ROWS)
    assert replay(population, [], (9, 30, 0)) == [(9, 30, 0), (3, 20, 10), (None, 30, 0), (4, 30, 0)]
    with pytest.raises(Unrecorded, match="individual 0 of generation 2"):
        replay(population, [], None)


# --- Work shared out


class Many:
    """One of several processes, as far as sharing goes."""

    def __init__(self, rank, count):
        self.rank, self.count, self.is_main = rank, count, rank == 0

    def add_up(self, values):
        return values


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 40])
@pytest.mark.parametrize("individuals", [1, 2, 3])
def test_the_parts_of_all_processes_are_the_whole(make, pictures, space, count, individuals):
    """The last of a generation are cut into batches, so that no process waits for another's whole individual."""
    population, indices, total, parts = _population(space), list(range(individuals)), 0, []
    for rank in range(count):
        evaluation, _, _ = make()
        evaluation.processes = Many(rank, count)
        measure, mine = evaluation._measure, []
        evaluation._measure = lambda p, i, b, measure=measure, mine=mine: (mine.append(len(b)), measure(p, i, b))[1]
        total = total + np.array(evaluation._round(population, indices))
        parts.append(sum(mine))
    assert total[:, 0].tolist() == [_expected(pictures, seed) for seed in indices]
    assert sum(parts) == individuals * pictures.batches
    assert max(parts) - min(parts) <= 1
