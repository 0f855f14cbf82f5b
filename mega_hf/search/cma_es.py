"""CMA-ES over mixing coefficients (Hansen and Ostermeier, 2001)."""

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
    fingerprint,
    record_generation,
)
from mega_hf.search.population import Genes, Population

# Initial step size. Two parents are √2 apart, and their average is half of that from each.
_SIGMA = 0.25
_LARGEST = 1e6  # of a coordinate, far beyond any that makes a difference


def cma_es(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recorded: RecordedDraws,
) -> Outcome:
    """Search mixing coefficients with CMA-ES.

    The search starts at the best of the parents and their average, and uses the `cmaes` package.

    A point holds, for each group, the offset of its coefficients from equal ones, in the
    `parents` - 1 directions that keep their sum at 1. BatchNorm statistics that are mixed get the
    mean coefficients of all groups, without negative ones. Each proposal is recorded before use,
    since the linear algebra of CMA-ES rounds differently on other machines.

    Args and returns: see `evolve`; a genome holds `parents` coefficients for each group.

    Raises:
        InvalidRecord: a recorded proposal has another shape, or numbers that CMA-ES never proposes.
    """
    from cmaes import CMA

    count, size = len(parents), search.population_size - 1
    basis = _directions(count)
    equal = torch.full_like(parents[:1], 1 / count)
    genomes = torch.cat([equal, parents])
    population = Population(genomes, 1, None, fingerprint("average and parents", genomes, 1))
    fitness = evaluate(population, [], None)
    elite, history = best_of(population, fitness), [record_generation(1, fitness)]
    start = elite.genome.numpy().astype(np.float64).reshape(-1, count)[: genes.learned]
    mean = ((start - 1 / count) @ basis).reshape(-1)
    seed = int(streams(1, 0, "strategy").random() * 2**32)
    strategy = CMA(mean=mean, sigma=_SIGMA, seed=seed, population_size=size)
    for generation in range(2, 2 + (search.budget - 1 - count) // size):
        proposal = recorded.propose(
            generation, lambda: [strategy.ask().tolist() for _ in range(size)]
        )
        points = _check_proposal(proposal, size, len(mean))
        genomes = torch.cat([elite.genome[None], _genomes(points, basis, parents.shape[1])])
        population = Population(
            genomes, generation, elite, fingerprint(proposal, genomes, generation)
        )
        alone = [[i] for i in range(len(genomes))]  # all rows of each, since CMA-ES ranks them all
        fitness = evaluate(population, alone, elite.fitness)
        history.append(record_generation(generation, fitness))
        elite = best_of(population, fitness)
        ranks = sorted({one.worst_key for one in fitness})  # CMA-ES only uses the ranking
        values = [float(ranks.index(one.worst_key)) for one in fitness[1:]]
        strategy.tell(list(zip(points, values, strict=True)))
    return Outcome(elite, tuple(history))


def _directions(count: int) -> np.ndarray:
    """Return Helmert's orthonormal basis that keeps the sum: [count, count - 1]."""
    columns = [np.r_[np.full(k, 1.0), -float(k), np.zeros(count - k - 1)] for k in range(1, count)]
    return np.stack(
        [column / np.sqrt(k * (k + 1.0)) for k, column in enumerate(columns, start=1)], axis=1
    )


def _genomes(points: np.ndarray, basis: np.ndarray, length: int) -> torch.Tensor:
    """Return the genomes of points: [points, length] float32, statistics last.

    The operations run element by element, so that every machine rounds in the same way.
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


def _check_proposal(proposal: list[list[float]], size: int, dimensions: int) -> np.ndarray:
    if {len(point) for point in proposal} != {dimensions} or len(proposal) != size:
        shape = f"{len(proposal)} points of {len(proposal[0]) if proposal else 0} numbers"
        raise InvalidRecord(f"{shape}, not {size} of {dimensions}")
    points = np.array(proposal, dtype=np.float64)
    if not (np.abs(points) < _LARGEST).all():
        raise InvalidRecord("a number that CMA-ES never proposes")
    return points
