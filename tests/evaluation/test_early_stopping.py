"""Racing: losers are stopped early, and the winners are those of full evaluation."""

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.evaluation.forward import Predictions
from mega_hf.evaluation.racing import RacingEvaluator
from mega_hf.evaluation.row_difficulty import MAX_ROW_LOSS, CountCache, RowDifficulty
from mega_hf.run.replay import Replay
from mega_hf.search.population import Fitness
from mega_hf.search.selection import winner
from tests.evaluation.stubs import ROWS, Record, expect, populate


def _decide(tournaments, fitness):
    """Return who wins each tournament and the elite; raise UndecidedTournament if that is open."""
    return [winner(contest, fitness) for contest in [*tournaments, list(range(len(fitness)))]]


class Table:
    """A forward pass that reads predictions from a table.

    The table is [individuals, rows]: 0 wrong, 1 correct, 2 not finite.
    """

    def __init__(self, table, draw, losses=None):
        self.table, self.draw, self.path, self.losses = table, draw, "table", losses

    def order_check_size(self, examples):
        return 0

    def is_order_free(self, examples):
        return True

    def write(self, state):
        ((_, self.now),) = state

    def predict(self, examples, rows):
        found = torch.tensor(self.table[self.now])[rows]
        # says nothing of the answers
        margin = torch.tensor(self.draw.normal(size=len(rows)), dtype=torch.float32)
        losses = (
            torch.from_numpy(self.losses[self.now])[rows]
            if self.losses is not None
            else torch.zeros(len(rows))
        )
        return Predictions(found == 1, margin, not (found == 2).any(), losses)


class Numbered:
    """An encoding whose genomes are numbers of individuals."""

    def digest(self, genome):
        return f"{int(genome):032x}"

    def entries(self, genome):
        yield "0", int(genome)


@st.composite
def _cases(draw):
    rows = draw(st.integers(1, 40))
    size = draw(st.integers(1, 12))
    individuals = draw(st.integers(1, 12))
    spread = st.sampled_from([[1], [0, 1], [0, 1, 1, 1], [0, 0, 0, 1], [0], [1] * 60 + [2], [2]])
    table = [
        draw(st.lists(st.sampled_from(draw(spread)), min_size=rows, max_size=rows))
        for _ in range(individuals)
    ]
    table = [table[draw(st.integers(0, i))] for i in range(individuals)]  # equal answers: ties
    some = st.lists(st.integers(0, individuals - 1), min_size=1, max_size=4, unique=True)
    elite = draw(st.booleans()) and 2 not in table[0]
    return (
        np.array(table),
        size,
        draw(st.lists(some, max_size=6)),
        elite,
        draw(st.sampled_from([1, 2, 3, 5])),
    )


@st.composite
def _cases_with_losses(draw):
    """Cases with few different losses, so that ties occur, and some above the limit."""
    case = draw(_cases())
    values = np.array(
        draw(st.sampled_from([[0.25, 0.5], [0.0, 1.0, 20.0, np.inf], [0.3]])), dtype=np.float32
    )
    return (
        case,
        values[
            np.random.default_rng(draw(st.integers(0, 99))).integers(0, len(values), case[0].shape)
        ],
    )


@given(_cases(), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=1500, deadline=None)
def test_early_stopping_gives_the_winners_of_full_evaluation(case, chunk, seed):
    table, size, tournaments, elite, count = case
    rows, population = table.shape[1], SimpleNamespace(generation=2, fingerprint="00")
    population.genomes = torch.arange(len(table), dtype=torch.float32)[:, None]
    correct = [None if 2 in line else int((line == 1).sum()) for line in table]
    first = Fitness(correct[0], rows) if elite else None
    found = []
    for full in (True, False):
        record, draw = Record(), np.random.default_rng(seed)
        evaluation = RacingEvaluator(
            Table(table, draw),
            SimpleNamespace(count=rows, batch_size=size),
            Numbered(),
            Alone(count),
            record,
            lambda *_: None,
            RowDifficulty(rows),
            CountCache(rows),
            chunk,
            full,
        )
        fitness = evaluation(population, tournaments, first)
        found.append(_decide(tournaments, fitness))
        for index, one in enumerate(fitness):
            if one.unseen == 0:
                assert one.correct == correct[index]
            else:
                assert one.low <= (correct[index] or 0) <= one.high or correct[index] is None
            recorded = record.known.get((2, index), first)
            assert recorded.out_of(rows) == one, "not what a replay would read"
            assert one.loss == one.unseen_loss == 0
        assert all(fitness[i].unseen == 0 for i in found[-1]), "a winner has unseen rows"
        assert record.examples <= rows * (len(table) - elite), "a row was evaluated twice"
    assert found[0] == found[1]


@given(_cases_with_losses(), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=800, deadline=None)
def test_ties_in_correct_predictions_go_to_the_smallest_loss(drawn, chunk, seed):
    (table, size, tournaments, elite, count), losses = drawn
    rows, population = table.shape[1], SimpleNamespace(generation=2, fingerprint="00")
    population.genomes = torch.arange(len(table), dtype=torch.float32)[:, None]
    correct = [None if 2 in line else int((line == 1).sum()) for line in table]
    units = np.rint(np.minimum(losses.astype(np.float64), 16) * 65536).astype(int)
    summed = [0 if correct[i] is None else int(units[i].sum()) for i in range(len(table))]
    first = Fitness(correct[0], rows, loss=summed[0]) if elite else None
    contests = [*tournaments, list(range(len(table)))]
    fittest = [
        min(one, key=lambda i: (-(-1 if correct[i] is None else correct[i]), summed[i], i))
        for one in contests
    ]
    for full in (True, False):
        record = Record()
        evaluation = RacingEvaluator(
            Table(table, np.random.default_rng(seed), losses),
            SimpleNamespace(count=rows, batch_size=size),
            Numbered(),
            Alone(count),
            record,
            lambda *_: None,
            RowDifficulty(rows),
            CountCache(rows),
            chunk,
            full,
            sums_losses=True,
        )
        fitness = evaluation(population, tournaments, first)
        assert _decide(tournaments, fitness) == fittest
        assert all(fitness[i].loss == summed[i] for i in fittest), "to the last unit"
        again = Replay(record, rows, None, MAX_ROW_LOSS)
        assert _decide(tournaments, again(population, tournaments, first)) == fittest, (
            "from the record alone"
        )


class Alone:
    """One process that acts as several."""

    def __init__(self, count):
        self.count, self.is_main, self.part = count, True, range

    def compare(self, *_):
        pass

    def share(self, items, width, evaluate):
        return np.array([evaluate(i) for i in range(items)])

    def add_up(self, values):
        return values


def test_all_rows_are_evaluated_in_one_order_where_the_order_matters(
    make, examples, encoding, caplog
):
    evaluation, _, _ = make(full=False)
    evaluation.forward.is_order_free = lambda _: False
    seen, predict = [], evaluation.forward.predict
    evaluation.forward.predict = lambda examples, rows: (
        seen.append(rows.tolist()),
        predict(examples, rows),
    )[1]
    assert evaluation(populate(encoding), [[0, 1]], None) == [
        Fitness(expect(examples, i), ROWS) for i in range(4)
    ]
    assert seen == [list(range(ROWS))] * 4
    assert "depend on a row's place" in caplog.text


def test_losers_are_stopped_early(make, examples, encoding):
    """Losers see only part of the rows."""
    evaluation, record, _ = make(full=False)
    population = populate(encoding, seeds=range(12))
    tried = evaluation.forward.order_check_size(examples)
    evaluation(population, [[0, 1]], None)
    assert ROWS < record.examples - tried < 12 * ROWS
    assert evaluation.forward.order_check_size(examples) == 0, "the order is checked once"
    assert sum(record.known[1, i].seen == ROWS for i in range(12)) < 12


def test_a_genome_counted_in_another_search_is_not_evaluated_again(make, examples, encoding):
    """For example the winner of a merge, which is a parent of the next merge."""
    counts = CountCache(ROWS)
    first, _, _ = make(counts=counts)
    first(populate(encoding, seeds=(0, 1)), [], None)
    evaluation, record, _ = make(counts=counts)
    evaluation.forward = None
    assert evaluation(populate(encoding, seeds=(1, 0)), [], None) == [
        Fitness(expect(examples, i), ROWS) for i in (1, 0)
    ]
    assert (record.added, record.examples) == ([(1, 0), (1, 1)], 0)
