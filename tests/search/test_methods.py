"""Soups, line sweep and random search: the candidates, and the choice among them."""

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
    """Return all evaluated genomes, without repetitions."""
    found = [genome for _, genomes, _, _, _ in evaluator.calls for genome in genomes]
    return [
        genome
        for i, genome in enumerate(found)
        if not any(torch.equal(genome, one) for one in found[:i])
    ]


def test_the_uniform_soup_is_the_mean():
    parents = parents_of(3)
    outcome, evaluator = run("uniform_soup", parents=parents)
    assert evaluator.evaluated == 1
    assert torch.allclose(outcome.best.genome, parents.mean(dim=0), atol=1e-6)
    assert (outcome.best.generation, outcome.best.index, len(outcome.history)) == (1, 0, 1)


def test_the_line_sweep_goes_from_one_parent_to_the_other():
    parents = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    outcome, evaluator = run("line-sweep", lambda g: 50 - int(abs(100 * g[0] - 35)), parents)
    points = tried(evaluator)
    assert evaluator.evaluated == len(points) == 21
    expected = np.linspace(0, 1, 21)[:, None] * [1.0, 2.0]
    assert np.allclose(torch.stack(points).numpy(), expected, atol=1e-6)
    assert torch.equal(points[0], parents[0]) and torch.equal(points[-1], parents[1]), (
        "the ends are the parents, bit for bit"
    )
    assert torch.allclose(outcome.best.genome, torch.tensor([0.35, 0.7]))


def test_random_search_draws_mixtures_like_founders():
    parents = parents_of(3)
    outcome, evaluator = run("random", parents=parents, budget=30)
    genomes = tried(evaluator)
    assert evaluator.evaluated == 30 and all(
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
def test_the_greedy_soup_equals_its_definition(count, seed):
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
def test_ties_go_to_the_first_and_its_place_is_its_first_occurrence(name):
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


def test_a_failed_candidate_is_the_worst():
    outcome, _ = run(
        "line-sweep", lambda g: None if g[0] < 0.5 else 3, torch.tensor([[0.0], [1.0]])
    )
    assert outcome.best.fitness.correct == 3 and float(outcome.best.genome[0]) == pytest.approx(0.5)
    assert outcome.history[0].failed == 6


def rows_of(*counts, n=100):
    """Return [individuals, n] bool: the first `counts[i]` rows of each are correct."""
    return np.arange(n) < np.array(counts)[:, None]


def chosen(correct, prefer):
    parents = torch.arange(float(len(correct)))[:, None]
    score = lambda genome: int(correct[int(genome[0])].sum())  # noqa: E731
    evaluator = Evaluator(score)
    recorded = RecordedDraws(lambda _, make: make(), lambda _: correct)
    search = settings_of(prefer=prefer)
    return METHODS["choose"](parents, GENES, search, streams(46, "a+b"), evaluator, recorded)


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
def test_a_preferred_parent_wins_within_one_standard_error(counts, prefer, expected):
    assert chosen(rows_of(*counts), prefer).best.index == expected


def test_the_standard_error_grows_with_the_differing_rows():
    correct = rows_of(50, 54)
    correct[1] = np.roll(correct[1], 30)  # now they differ in 64 rows: a standard error of 8
    assert chosen(correct, 1).best.index == 0
    assert chosen(rows_of(50, 54), 1).best.index == 1, (
        "they differ in four rows, in all of which one is better"
    )


def test_recorded_rows_that_contradict_the_counts_are_an_error():
    recorded = RecordedDraws(lambda _, make: make(), lambda _: rows_of(1, 1))
    with pytest.raises(InvalidRecord):
        METHODS["choose"](
            parents_of(2),
            GENES,
            settings_of(),
            streams(46, "a+b"),
            Evaluator(lambda g: 5),
            recorded,
        )
