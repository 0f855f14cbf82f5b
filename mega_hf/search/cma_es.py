"""CMA-ES over mixing coefficients (Hansen and Ostermeier, 2001), by the `cmaes` package."""

from __future__ import annotations

import numpy as np
import torch

from mega_hf.runtime.seeds import Streams
from mega_hf.search.evolve import (
    Evaluate,
    InvalidRecord,
    Outcome,
    RecordedDraws,
    Search,
    best_of,
    prove,
    record_generation,
)
from mega_hf.search.population import Generation, Genes, Individual, Population

# where it begins: two parents are 1.41 apart, and their middle half of that from each
_SIGMA = 0.25
_LARGEST = 1e6  # of a coordinate; far beyond what coefficients are drawn back to


def cma_es(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recall: RecordedDraws,
) -> Outcome:
    """Adapt a normal distribution of coefficients, from the best of the parents and their average
    on.

    A point is how far the coefficients of each group are from equal ones, in directions along which
    their sum stays
    1: one fewer than there are parents. Statistics, where they are blended, are mixed by the
        groups' mean, no parent
    less than nothing. What the strategy proposes is recorded before it is used: its linear algebra
        rounds otherwise on
    other machines.

    Raises:
        Unfit: what was recorded has another shape, or numbers that it never proposes.
    """
    from cmaes import CMA

    count, size = len(parents), search.population_size - 1
    basis = _directions(count)
    equal = torch.full_like(parents[:1], 1 / count)
    elite, history = _first(torch.cat([equal, parents]), evaluate)
    start = elite.genome.numpy().astype(np.float64).reshape(-1, count)[: genes.learned]
    mean = ((start - 1 / count) @ basis).reshape(-1)
    seed = int(streams(1, 0, "strategy").random() * 2**32)
    strategy = CMA(mean=mean, sigma=_SIGMA, seed=seed, population_size=size)
    for generation in range(2, 2 + (search.budget - 1 - count) // size):
        asked = recall.propose(generation, lambda: [strategy.ask().tolist() for _ in range(size)])
        points = _checked(asked, size, len(mean))
        genomes = torch.cat([elite.genome[None], _genomes(points, basis, parents.shape[1])])
        population = Population(genomes, generation, elite, prove(asked, genomes, generation))
        alone = [[i] for i in range(len(genomes))]  # each to its end: the strategy ranks them all
        fitness = evaluate(population, alone, elite.fitness)
        history.append(record_generation(generation, fitness))
        elite = best_of(population, fitness)
        # the strategy looks at who is better than whom alone
        places = sorted({one.worst_key for one in fitness})
        strategy.tell(
            [
                (point, float(places.index(one.worst_key)))
                for point, one in zip(points, fitness[1:], strict=True)
            ]
        )
    return Outcome(elite, tuple(history))


def _first(genomes: torch.Tensor, evaluate: Evaluate) -> tuple[Individual, list[Generation]]:
    population = Population(genomes, 1, None, prove("average and parents", genomes, 1))
    fitness = evaluate(population, [], None)
    return best_of(population, fitness), [record_generation(1, fitness)]


def _directions(count: int) -> np.ndarray:
    """Return Helmert's orthonormal directions in which the sum of `count` numbers stays: [count,
    count - 1]."""
    columns = [np.r_[np.full(k, 1.0), -float(k), np.zeros(count - k - 1)] for k in range(1, count)]
    return np.stack(
        [column / np.sqrt(k * (k + 1.0)) for k, column in enumerate(columns, start=1)], axis=1
    )


def _genomes(points: np.ndarray, basis: np.ndarray, length: int) -> torch.Tensor:
    """Return [points, length] float32: coefficients of all groups, those of statistics last.

    Element by element, one operation after the other, so that every machine rounds alike.
    """
    count = len(basis)
    shifts = points.reshape(len(points), -1, count - 1)
    learned = np.full((*shifts.shape[:2], count), 1 / count)
    for k in range(count - 1):
        learned += shifts[:, :, k, None] * basis[:, k]
    total = np.clip(np.cumsum(learned, axis=1)[:, -1:], 0, None)
    shared = total / np.cumsum(total, axis=2)[:, :, -1:]
    others = length // count - learned.shape[1]
    whole = np.concatenate([learned, np.repeat(shared, others, axis=1)], axis=1)
    return torch.from_numpy(whole.reshape(len(points), length).astype(np.float32))


def _checked(asked: list[list[float]], size: int, dimensions: int) -> np.ndarray:
    if {len(point) for point in asked} != {dimensions} or len(asked) != size:
        raise InvalidRecord(
            f"{len(asked)} points of {len(asked[0]) if asked else 0} numbers, not {size} of"
            f" {dimensions}"
        )
    points = np.array(asked, dtype=np.float64)
    if not (np.abs(points) < _LARGEST).all():
        raise InvalidRecord("a number that the strategy never proposes")
    return points
