"""Soups, sweep and random mixtures: what they try, what they take, and what they are measured
by."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mega_hf.runtime.seeds import streams
from mega_hf.search.evolve import InvalidRecord, RecordedDraws
from mega_hf.search.methods import METHODS
from tests.search.test_evolve_oracle import (
    GENES,
    NOTHING,
    Evaluator,
    coarse,
    parents_of,
    settings_of,
)


def run(name, score=coarse, parents=None, budget=21, seed=46, **more):
    evaluator, parents = Evaluator(score), parents_of() if parents is None else parents
    outcome = METHODS[name](
        parents, GENES, settings_of(budget=budget, **more), streams(seed, "a+b"), evaluator, NOTHING
    )
    return outcome, evaluator


def tried(evaluator):
    """Return every genome that was asked for, the one that was carried along once."""
    found = [genome for _, genomes, _, _, _ in evaluator.calls for genome in genomes]
    return [
        genome
        for i, genome in enumerate(found)
        if not any(torch.equal(genome, one) for one in found[:i])
    ]


def test_the_uniform_soup_is_the_mean():
    parents = parents_of(3)
    outcome, evaluator = run("uniform_soup", parents=parents)
    assert evaluator.measured == 1
    assert torch.allclose(outcome.best.genome, parents.mean(dim=0), atol=1e-6)
    assert (outcome.best.generation, outcome.best.index, len(outcome.history)) == (1, 0, 1)


def test_the_sweep_goes_from_one_parent_to_the_other():
    parents = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    outcome, evaluator = run("line-sweep", lambda g: 50 - int(abs(100 * g[0] - 35)), parents)
    points = tried(evaluator)
    assert evaluator.measured == len(points) == 21
    expected = np.linspace(0, 1, 21)[:, None] * [1.0, 2.0]
    assert np.allclose(torch.stack(points).numpy(), expected, atol=1e-6)
    assert torch.equal(points[0], parents[0]) and torch.equal(points[-1], parents[1]), (
        "the ends are the parents, bit for bit"
    )
    assert torch.allclose(outcome.best.genome, torch.tensor([0.35, 0.7]))


def test_random_mixtures_are_drawn_as_founders_are():
    parents = parents_of(3)
    outcome, evaluator = run("random", parents=parents, budget=30)
    genomes = tried(evaluator)
    assert evaluator.measured == 30 and all(
        torch.equal(a, b) for a, b in zip(genomes, parents, strict=False)
    )
    assert {len(call[1]) for call in evaluator.calls} <= {
        6,
        5,
        4,
        3,
        2,
    }, "no more at a time than a population has"
    others = tried(run("random", parents=parents, budget=30, seed=47)[1])
    again = tried(run("random", parents=parents, budget=30)[1])
    assert all(torch.equal(a, b) for a, b in zip(genomes, again, strict=True))
    assert not torch.equal(genomes[-1], others[-1])
    best = max((coarse(g.numpy()) or -1) for g in genomes)
    assert outcome.best.fitness.correct == best


@given(st.integers(2, 6), st.integers(0, 500))
def test_the_greedy_soup_against_its_definition(count, seed):
    parents = parents_of(count, seed=seed)
    (kept, best), scores = ([], None), [coarse(parent.numpy()) for parent in parents]
    order = sorted(range(count), key=lambda i: -(-1 if scores[i] is None else scores[i]))
    for i in order:
        mixed = torch.stack([parents[j] for j in (*kept, i)]).mean(dim=0) if kept else parents[i]
        score = coarse(mixed.numpy())
        score = -1 if score is None else score
        if best is None or score >= best:
            kept, best = [*kept, i], score
    outcome, evaluator = run("greedy_soup", parents=parents)
    found = outcome.best
    # Means that are computed in another order may differ in the last bit, and so may a score at a
    # step of `coarse`.
    if torch.allclose(found.genome, torch.stack([parents[j] for j in kept]).mean(dim=0), atol=1e-5):
        assert (-1 if found.fitness.correct is None else found.fitness.correct) == best
    assert len(evaluator.calls) == count and len(outcome.history) == count
    assert all(
        contests == [[i] for i in range(len(genomes))]
        for _, genomes, contests, _, _ in evaluator.calls
    )


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"mega", "cma-es", "choose"}))
def test_of_equals_the_first_is_taken_and_the_place_is_where_it_was_first_seen(name):
    outcome, evaluator = run(name, lambda _: 5, parents_of(2), budget=20)
    best = outcome.best
    place = next(
        genomes[best.index]
        for pop, genomes, *_ in evaluator.calls
        if pop.generation == best.generation
    )
    assert torch.equal(place, best.genome)
    if name in ("random", "line-sweep"):
        assert (best.generation, best.index) == (1, 0)
    if name == "greedy_soup":
        assert torch.allclose(best.genome, parents_of(2).mean(dim=0), atol=1e-6), (
            "of equals the larger soup"
        )


def test_a_candidate_that_answers_no_number_is_the_worst():
    outcome, _ = run(
        "line-sweep", lambda g: None if g[0] < 0.5 else 3, torch.tensor([[0.0], [1.0]])
    )
    assert outcome.best.fitness.correct == 3 and float(outcome.best.genome[0]) == pytest.approx(0.5)
    assert outcome.history[0].failed == 6


def rows_of(*counts, n=100):
    """Return answers, [individuals, n] bool: the first so many of each are right."""
    return np.arange(n) < np.array(counts)[:, None]


def chosen(right, prefer):
    parents = torch.arange(float(len(right)))[:, None]
    score = lambda genome: int(right[int(genome[0])].sum())  # noqa: E731
    evaluator = Evaluator(score)
    recall = RecordedDraws(lambda _, make: make(), lambda _: right)
    search = settings_of(prefer=prefer)
    return METHODS["choose"](parents, GENES, search, streams(46, "a+b"), evaluator, recall)


@pytest.mark.parametrize(
    ("counts", "prefer", "expected"),
    [
        ((50, 60, 58), 0, 1),  # the best
        ((60, 50, 60), 0, 0),  # of equals the first
        ((60, 59, 61), 2, 0),  # one row apart, by which the best is ahead: no more than chance
        ((60, 62, 63), 2, 1),  # of two that are preferred the better one
        ((60, 50, 62), 1, 2),  # two rows apart, both the best's: more than a standard error of 1.4
    ],
)
def test_what_is_preferred_wins_unless_another_is_better_by_more_than_a_standard_error(
    counts, prefer, expected
):
    assert chosen(rows_of(*counts), prefer).best.index == expected


def test_how_often_two_differ_decides_what_is_chance():
    right = rows_of(50, 54)
    right[1] = np.roll(right[1], 30)  # now they differ in 64 rows: a standard error of 8
    assert chosen(right, 1).best.index == 0
    assert chosen(rows_of(50, 54), 1).best.index == 1, (
        "four rows, all of which one alone gets right"
    )


def test_answers_that_are_not_those_that_were_counted_are_refused():
    recall = RecordedDraws(lambda _, make: make(), lambda _: rows_of(1, 1))
    with pytest.raises(InvalidRecord):
        METHODS["choose"](
            parents_of(2), GENES, settings_of(), streams(46, "a+b"), Evaluator(lambda g: 5), recall
        )
