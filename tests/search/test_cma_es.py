"""CMA-ES over mixing coefficients: results, proposals and records."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.recipe.merge import Node
from mega_hf.runtime.seeds import streams
from mega_hf.search.cma_es import _directions
from mega_hf.search.evolve import InvalidRecord
from mega_hf.search.methods import METHODS
from mega_hf.search.population import Genes
from tests.search.test_evolve_oracle import NOTHING, Evaluator, settings_of


def mixtures(parents=3, groups=2, statistics=0):
    """Return the parents' genomes and their layout, for the mixing encoding."""
    bounds = tuple((parents * i, parents * (i + 1)) for i in range(groups + statistics))
    return torch.eye(parents).repeat(1, groups + statistics), Genes(
        bounds, groups, (1.0,) * len(bounds)
    )


def towards(target):
    """Return a score that increases as a genome approaches the target."""
    return lambda genome: 100_000 - int(10_000 * np.abs(genome[: len(target)] - target).sum())


def run(
    score, parents, genes, budget=121, size=13, seed=46, name="cma-es", propose=NOTHING.propose
):
    evaluator = Evaluator(score)
    search, recorded = settings_of(n=size, budget=budget), NOTHING._replace(propose=propose)
    return METHODS[name](
        parents, genes, search, streams(seed, "a+b"), evaluator, recorded
    ), evaluator


def test_cma_es_finds_a_better_mixture_than_random_search():
    parents, genes = mixtures()
    target = np.array([0.7, 0.4, -0.1, 0.2, 0.2, 0.6], dtype=np.float32)
    found, evaluator = run(towards(target), parents, genes)
    assert np.abs(found.best.genome.numpy() - target).max() < 0.1
    drawn, _ = run(towards(target), parents, genes, name="random")
    assert found.best.fitness.correct > drawn.best.fitness.correct
    assert evaluator.evaluated <= 121


def test_cma_es_starts_at_the_best_of_parents_and_average():
    parents, genes = mixtures()
    target = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 1.0], dtype=np.float32)
    found, evaluator = run(towards(target), parents, genes)
    first = evaluator.calls[0][1]
    assert torch.equal(first[1:], parents) and torch.allclose(first[0], torch.full((6,), 1 / 3))
    assert torch.equal(found.best.genome, parents[2]), (
        "nothing is better than a parent that is the target"
    )
    assert (found.best.generation, found.best.index) == (1, 3)
    second = evaluator.calls[1][1][1:]
    assert (second - parents[2]).abs().mean() < (second - parents[0]).abs().mean()


@given(st.integers(2, 5), st.integers(1, 3), st.integers(0, 2), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_coefficients_of_each_group_sum_to_1(count, groups, statistics, seed):
    parents, genes = mixtures(count, groups, statistics)
    _, evaluator = run(lambda g: int(50 * g[0]) + 100, parents, genes, 40, 8, seed)
    for _, genomes, contests, _, _ in evaluator.calls[1:]:
        assert contests == [[i] for i in range(len(genomes))], "ranked by their whole fitness"
        shares = genomes.reshape(len(genomes), -1, count)
        assert torch.allclose(shares.sum(dim=2), torch.ones(shares.shape[:2]), atol=1e-4)
        assert (shares[:, groups:] >= 0).all(), "no variance is negative"


@given(st.integers(2, 9))
def test_directions_are_orthonormal_and_keep_the_sum(count):
    basis = _directions(count)
    assert np.allclose(basis.T @ basis, np.eye(count - 1)) and np.allclose(basis.sum(axis=0), 0)


@pytest.mark.parametrize(
    ("size", "generations", "parents"), [(12, 10, 3), (6, 5, 2), (5, 1, 4), (20, 20, 2)]
)
def test_the_number_of_evaluations_is_that_of_the_settings(size, generations, parents):
    names = [f"p{i}" for i in range(parents)]
    options = {"population_size": size, "generations": generations, "encoding": "mixing"}
    node = Node(parents=names, method="cma-es", **options)
    _, evaluator = run(lambda g: 7, *mixtures(parents), node.evaluations, size)
    assert evaluator.evaluated == node.evaluations
    bred = node.model_copy(update={"method": "mega"}).evaluations
    assert node.evaluations <= max(bred, parents + size), "at the cost of evolution"
    assert len(evaluator.calls[0][1]) == node.founders_count


def test_recorded_proposals_are_used():
    parents, genes = mixtures()
    kept = {}

    def keep(generation, make):
        return kept.setdefault(generation, make())

    score = towards(np.zeros(6, dtype=np.float32))
    first, _ = run(score, parents, genes, propose=keep)
    again, _ = run(
        score, parents, genes, seed=47, propose=lambda generation, make: kept[generation]
    )
    assert torch.equal(first.best.genome, again.best.genome) and first.history == again.history
    other, _ = run(score, parents, genes, seed=47)
    assert first.history != other.history


@pytest.mark.parametrize("proposal", [[], [[0.0] * 4], [[0.0] * 3] * 12, [[1e7] + [0.0] * 3] * 12])
def test_an_impossible_proposal_is_an_error(proposal):
    parents, genes = mixtures()
    with pytest.raises(InvalidRecord):
        run(lambda g: 1, parents, genes, 60, propose=lambda generation, make: proposal)
