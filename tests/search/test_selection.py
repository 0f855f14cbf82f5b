"""Tournaments, their winners, and the pairs of mates."""

from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.runtime.seeds import named_stream, streams
from mega_hf.search.population import Fitness
from mega_hf.search.selection import (
    UndecidedTournament,
    contenders,
    draw_tournament,
    plan,
    plan_reference,
    winner,
)

STREAMS = streams(46, "a+b")
SIZES = st.integers(2, 12).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(2, 6), st.integers(1, n))
)


@given(SIZES, st.integers(1, 20), st.sampled_from([plan, plan_reference]))
@settings(max_examples=60, deadline=None)
def test_a_tournament_holds_distinct_individuals(sizes, generation, planner):
    n, k, t = sizes
    for tournament in planner(STREAMS, generation, n, k, t).tournaments:
        assert len(set(tournament)) == len(tournament) == t
        assert all(0 <= i < n for i in tournament)


@given(SIZES)
@settings(max_examples=40, deadline=None)
def test_pairs_repeat_the_pairs_of_mates_in_order(sizes):
    n, k, t = sizes
    drawn = plan(STREAMS, 1, n, k, t)
    every = list(combinations(range(k), 2))
    assert len(drawn.tournaments) == k
    assert drawn.pairs == [every[i % len(every)] for i in range(n - 1)]


def test_pairs_of_the_papers_sizes():
    pairs = plan(STREAMS, 1, 20, 4, 3).pairs
    assert pairs[:7] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (0, 1)]
    assert len(pairs) == 19


@given(SIZES)
@settings(max_examples=40, deadline=None)
def test_the_reference_draws_two_tournaments_for_each_child(sizes):
    n, k, t = sizes
    drawn = plan_reference(STREAMS, 3, n, k, t)
    assert drawn.pairs == [(2 * i, 2 * i + 1) for i in range(n - 1)]
    for child in range(1, n):
        stream = STREAMS(3, child, "tournaments")
        expected = [draw_tournament(stream, n, t) for _ in range(2)]
        assert drawn.tournaments[2 * child - 2 : 2 * child] == expected


def test_each_generation_draws_new_tournaments():
    assert plan(STREAMS, 1, 20, 4, 3).tournaments != plan(STREAMS, 2, 20, 4, 3).tournaments


def test_all_individuals_are_drawn_equally_often():
    draws = Counter(
        i
        for seed in range(1000)
        for i in draw_tournament(named_stream(seed, "x", 1, 0, "tournaments"), 10, 3)
    )
    assert all(draws[i] == pytest.approx(300, abs=75) for i in range(10))


FITNESS = st.builds(
    Fitness, st.none() | st.integers(0, 4), st.just(10), st.just(0), st.just(0), st.just(0)
)


@given(st.lists(FITNESS, min_size=1, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_winner_is_the_fittest_and_ties_go_to_the_first(fitness, random):
    tournament = random.sample(range(len(fitness)), random.randint(1, len(fitness)))
    value = [-1 if f.correct is None else f.correct for f in fitness]
    best = max(value[i] for i in tournament)
    assert winner(tournament, fitness) == min(i for i in tournament if value[i] == best)


def test_a_failure_loses_to_zero_correct_predictions():
    assert winner([0, 1], [Fitness(None, 10), Fitness(0, 10)]) == 1
    assert Fitness(None, 10).low < Fitness(0, 10).low < Fitness(1, 10).low


# --- Unseen rows


PARTIAL = st.integers(0, 6).flatmap(
    lambda seen: st.builds(
        Fitness,
        st.none() | st.integers(0, seen),
        st.just(seen),
        st.just(6 - seen),
        st.just(0),
        st.just(0),
    )
)


@given(st.lists(PARTIAL, min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_contenders_are_the_winners_of_all_completions(fitness):
    """All outcomes of the unseen rows are tried."""
    tournament = list(range(len(fitness)))
    may = [range(f.low, f.high + 1) for f in fitness]
    winners = {
        winner(tournament, [Fitness(c if c >= 0 else None, 6) for c in whole])
        for whole in product(*may)
    }
    assert set(contenders(tournament, fitness)) >= winners
    if len(winners) == 1:
        assert contenders(tournament, fitness) == [winner(tournament, fitness)] == list(winners)
    else:
        with pytest.raises(UndecidedTournament, match="open between"):
            winner(tournament, fitness)


# --- Losses, which break ties

SUMMED = (
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 6))
    .filter(lambda drawn: drawn[1] <= drawn[0] and drawn[2] <= 3 * drawn[0])
    .map(lambda drawn: Fitness(drawn[1], drawn[0], 2 - drawn[0], drawn[2], 3 * (2 - drawn[0])))
)


@given(st.lists(SUMMED, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_contenders_by_loss_are_the_winners_of_all_completions(fitness):
    """Unseen rows are correct or wrong, and have a loss of 0 to 3."""
    tournament = list(range(len(fitness)))
    ends = [
        {
            (f.low, f.loss + f.unseen_loss),
            (f.high, f.loss),
            (f.low, f.loss),
            (f.high, f.loss + f.unseen_loss),
        }
        for f in fitness
    ]
    winners = {
        min(tournament, key=lambda i: (-whole[i][0], whole[i][1], i))
        for whole in product(*[sorted(e) for e in ends])
    }
    assert set(contenders(tournament, fitness)) >= winners
    if len(contenders(tournament, fitness)) == 1:
        assert winners == {winner(tournament, fitness)}


def test_ties_in_correct_predictions_go_to_the_smaller_loss():
    assert winner([0, 1, 2], [Fitness(5, 9, 0, 40), Fitness(5, 9, 0, 30), Fitness(4, 9, 0, 1)]) == 1
    assert winner([0, 1], [Fitness(5, 9, 0, 30), Fitness(5, 9, 0, 30)]) == 0
