"""The generation loop: determinism, properties, and toys with a known optimum."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.runtime.seeds import streams
from mega_hf.search.evolve import Search
from mega_hf.search.mutation import Gaussian
from mega_hf.search.population import Genes
from mega_hf.search.selection import plan_reference
from tests.search.test_evolve_oracle import coarse, fittest, parents_of, run, settings_of, weighted

# --- Determinism


def _bits(outcome):
    return outcome.best.genome.numpy().tobytes()


def test_the_same_seed_gives_the_same_bits_whatever_the_global_generators():
    first, _ = run(settings_of())
    torch.manual_seed(5)
    np.random.seed(5)
    again, _ = run(settings_of())
    assert _bits(first) == _bits(again)
    assert first.history == again.history


@pytest.mark.parametrize("other", [{"seed": 47}, {"node": "c+d"}])
def test_another_seed_or_node_gives_other_founders_and_children(other):
    _, first = run(settings_of(include_parents=False), score=lambda g: 1)
    _, second = run(settings_of(include_parents=False), score=lambda g: 1, **other)
    for a, b in zip(first.calls, second.calls, strict=True):
        assert not (a[1] == b[1]).all(dim=1).any()


# --- Properties


@given(st.integers(2, 8), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_the_elite_is_evaluated_once(n, g):
    _, evaluator = run(settings_of(n=n, g=g, t=2))
    assert evaluator.evaluated == n + (g - 1) * (n - 1)
    assert len(evaluator.calls) == g


@given(st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_the_elite_has_index_0_and_is_replaced_only_by_a_fitter_individual(seed):
    _, evaluator = run(settings_of(g=6), seed=seed)
    for before, after in pairwise(evaluator.calls):
        values = [-1 if f.correct is None else f.correct for f in before[4]]
        assert torch.equal(after[1][0], before[1][values.index(max(values))])
        assert after[3] == before[4][values.index(max(values))]
        assert after[0].elite.fitness == after[3]
        if before[3] is not None and max(values[1:]) <= values[0]:
            assert torch.equal(after[1][0], before[1][0])


def test_an_equally_fit_child_does_not_replace_the_elite():
    outcome, _ = run(settings_of(g=5), score=lambda g: 7)
    assert (outcome.best.generation, outcome.best.index) == (1, 0)


@given(st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_the_best_individual_of_all_generations_is_returned(seed):
    outcome, evaluator = run(settings_of(g=5, std=2.0), seed=seed)
    seen = [f.correct for call in evaluator.calls for f in call[4] if f.correct is not None]
    assert outcome.best.fitness.correct == max(seen, default=None)
    if seen:
        assert coarse(outcome.best.genome.numpy()) == max(seen)
        born = evaluator.calls[outcome.best.generation - 1]
        assert torch.equal(born[1][outcome.best.index], outcome.best.genome)


def test_a_search_in_which_all_individuals_fail_finishes():
    outcome, evaluator = run(settings_of(g=5), score=lambda g: None)
    assert len(evaluator.calls) == 5
    assert outcome.best.fitness.correct is None
    assert [(h.best, h.mean, h.failed) for h in outcome.history] == [(0, 0.0, 6)] * 5


def test_a_failure_is_worse_than_zero_correct_predictions():
    first = parents_of()[0].numpy()
    outcome, _ = run(settings_of(g=3), score=lambda g: None if np.array_equal(g, first) else 0)
    assert (outcome.best.fitness.correct, outcome.best.generation, outcome.best.index) == (0, 1, 1)


def test_history_has_best_mean_and_failures_of_each_generation():
    outcome, evaluator = run(settings_of(g=5, std=2.0), seed=3)
    for record, call in zip(outcome.history, evaluator.calls, strict=True):
        known = [f.correct for f in call[4] if f.correct is not None]
        assert record.generation == call[0].generation
        assert (record.best, record.failed) == (max(known), 6 - len(known))
        assert record.mean == pytest.approx(np.mean(known))
    assert [r.generation for r in outcome.history] == [1, 2, 3, 4, 5]


def test_parents_are_never_written_to():
    parents = parents_of(3)
    before = parents.clone()
    outcome, _ = run(settings_of(rate=1.0), parents=parents)
    assert torch.equal(parents, before)
    outcome.best.genome.zero_()
    assert torch.equal(parents, before)


def test_parents_come_first_among_the_founders_if_included():
    parents = parents_of(3)
    _, included = run(settings_of(g=1), parents=parents)
    _, excluded = run(settings_of(g=1, include_parents=False), parents=parents)
    assert torch.equal(included.calls[0][1][:3], parents)
    assert not (excluded.calls[0][1][:, None] == parents[None]).all(dim=2).any()
    assert torch.equal(included.calls[0][1][3:], excluded.calls[0][1][3:])


def test_founders_lie_between_the_parents():
    parents = parents_of(2)
    _, evaluator = run(settings_of(n=20, g=1, include_parents=False), parents=parents)
    genomes, low, high = evaluator.calls[0][1], parents.min(dim=0).values, parents.max(dim=0).values
    assert ((genomes >= low - 1e-6) & (genomes <= high + 1e-6)).all()


def test_tournaments_are_drawn_before_anything_is_evaluated():
    """Tournaments do not depend on fitness."""
    _, first = run(settings_of())
    _, second = run(settings_of(), score=lambda g: 3)
    assert [call[2] for call in first.calls] == [call[2] for call in second.calls]


def test_statistics_are_blended_but_not_mutated():
    _, evaluator = run(settings_of(rate=1.0, g=2, include_parents=False), score=lambda g: 5)
    _, still = run(settings_of(rate=0.0, g=2, include_parents=False), score=lambda g: 5)
    assert torch.equal(evaluator.calls[1][1][:, 5:], still.calls[1][1][:, 5:])
    assert (evaluator.calls[1][1][1:, :5] != still.calls[1][1][1:, :5]).all()


def test_the_reference_plan_draws_two_tournaments_for_each_child():
    search = Search(6, 2, 4, 2, Gaussian(0.0, 0.1), include_parents=False, plan=plan_reference)
    score = lambda g: int(1000 * abs(float(g[0])))  # noqa: E731
    _, evaluator = run(search, score=score)
    (_, founders, tournaments, _, fitness), children = evaluator.calls[0], evaluator.calls[1][1]
    assert len(tournaments) == 10
    for child in range(1, 6):
        a, b = (
            fittest(t, [f.correct for f in fitness]) for t in tournaments[2 * child - 2 : 2 * child]
        )
        beta = streams(46, "a+b")(2, child, "crossover").random()
        mixed = weighted([founders[a].numpy(), founders[b].numpy()], [beta, 1 - beta])
        expected = founders[a].numpy() if a == b else np.array(mixed, dtype=np.float32)
        assert children[child].numpy().tobytes() == expected.tobytes()


# --- Toys with a known optimum


def test_a_known_optimum_between_the_parents_is_approached():
    """Parents at 0 and 1, and the optimum at 0.6, in each of 16 dimensions."""
    parents = torch.stack([torch.zeros(16), torch.ones(16)])
    genes = Genes(((0, 16),), 1, (1.0,))
    target = np.full(16, 0.6, dtype=np.float32)
    score = lambda g: int(10_000 - 1000 * np.abs(g - target).sum())  # noqa: E731
    outcome, evaluator = run(
        settings_of(20, 40, 4, 3, 0.2, 0.02), score=score, parents=parents, genes=genes
    )
    assert np.abs(outcome.best.genome.numpy() - target).mean() < 0.02
    bests = [h.best for h in outcome.history]
    assert bests == sorted(bests)
    assert evaluator.evaluated == 20 + 39 * 19


def test_an_optimum_off_the_line_is_reached_only_by_mutation():
    parents = torch.stack([torch.zeros(4), torch.ones(4)])
    genes = Genes(((0, 4),), 1, (1.0,))
    target = np.array([0.5, 0.5, 0.5, -0.5], dtype=np.float32)
    score = lambda g: int(10_000 - 1000 * np.abs(g - target).sum())  # noqa: E731
    still, _ = run(settings_of(20, 60, 4, 3, 0.0, 0.1), score=score, parents=parents, genes=genes)
    moved, _ = run(settings_of(20, 60, 4, 3, 0.3, 0.1), score=score, parents=parents, genes=genes)
    assert np.abs(still.best.genome.numpy() - target).sum() > 0.9
    assert np.abs(moved.best.genome.numpy() - target).sum() < 0.2
