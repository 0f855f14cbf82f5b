"""All ways to a merge, each a function; beside evolution what it must beat: averages, a sweep,
mixtures at random.

They are measured, journaled and replayed as generations are, so that nothing else knows which
method found a merge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mega_hf.runtime.seeds import Streams
from mega_hf.search.cma_es import cma_es
from mega_hf.search.crossover import average, equal_weights, mix, spacings
from mega_hf.search.evolve import (
    Evaluate,
    InvalidRecord,
    Outcome,
    RecordedDraws,
    Search,
    best_of,
    evolve,
    prove,
    record_generation,
)
from mega_hf.search.population import Fitness, Generation, Genes, Individual, Population
from mega_hf.search.selection import winner

# parents: [parents, size] float32
Method = Callable[[torch.Tensor, Genes, Search, Streams, Evaluate, RecordedDraws], Outcome]


def uniform_soup(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recall: RecordedDraws,
) -> Outcome:
    """Average the parents with equal weights (Wortsman et al., 2022)."""
    return _try(parents, [equal_weights(len(parents))], 1, evaluate)


def choose(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recall: RecordedDraws,
) -> Outcome:
    """Keep the best of the parents as it is; of equals the first.

    The first `search.prefer` of them win where the best is better by no more than the standard
    error of their paired
    difference: what was searched for must be better by more than that (the rule of one standard
        error; Breiman et
    al., 1984).

    Raises:
        Unfit: the rows said to be right are others than were counted.
    """
    population = Population(parents.clone(), 1, None, prove("choose", parents, 1))
    right = recall.answers(population)
    fitness = evaluate(population, [[i] for i in range(len(parents))], None)
    counted = [0 if one.correct is None else one.correct for one in fitness]
    if right.sum(axis=1).tolist() != counted:
        raise InvalidRecord(
            f"{right.sum(axis=1).tolist()} right answers where {counted} were counted"
        )
    best = winner(list(range(len(fitness))), fitness)
    apart = (right != right[best]).sum(axis=1)
    near = [i for i in range(search.prefer) if (counted[best] - counted[i]) ** 2 <= apart[i]]
    index = winner(near, fitness) if near else best
    chosen = Individual(population.genomes[index].clone(), fitness[index], 1, index)
    return Outcome(chosen, (record_generation(1, fitness),))


def line_sweep(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recall: RecordedDraws,
) -> Outcome:
    """Take the best of `search.budget` points at equal distances on the line between two parents,
    ends included."""
    points = [i / (search.budget - 1) for i in range(search.budget)]
    return _try(
        parents, [[1.0 - point, point] for point in points], search.population_size, evaluate
    )


def random_search(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recall: RecordedDraws,
) -> Outcome:
    """Take the best of `search.budget` mixtures, each drawn as a founder of evolution is."""
    count = len(parents)
    included = (
        [[float(i == j) for j in range(count)] for i in range(count)]
        if search.include_parents
        else []
    )
    drawn = [spacings(streams(1, i, "founder"), count) for i in range(len(included), search.budget)]
    return _try(parents, [*included, *drawn], search.population_size, evaluate)


def greedy_soup(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recall: RecordedDraws,
) -> Outcome:
    """Average the parents, best first, of which each is kept if the average is not worse with it
    (Wortsman et al.)."""
    generation, history = 1, list[Generation]()

    def measure(genomes: torch.Tensor, what: object) -> list[Fitness]:
        population = Population(genomes, generation, None, prove(what, genomes, generation))
        # each to its end: who is better by how much decides
        alone = [[i] for i in range(len(genomes))]
        fitness = evaluate(population, alone, None)
        history.append(record_generation(generation, fitness))
        return fitness

    fitness = measure(parents.clone(), "parents")
    first, *others = sorted(range(len(parents)), key=lambda i: fitness[i].worst_key)
    kept: list[int] = [first]
    best = Individual(parents[first].clone(), fitness[first], 1, first)
    for other in others:
        generation += 1
        tried = average([parents[i] for i in (*kept, other)], torch.empty_like(best.genome))
        fitness = measure(torch.stack([tried, best.genome]), [*kept, other])
        if winner([0, 1], fitness) == 0:  # of equals the larger soup
            kept, best = [*kept, other], Individual(tried, fitness[0], generation, 0)
    return Outcome(best, tuple(history))


def _try(
    parents: torch.Tensor, weights: Sequence[Sequence[float]], size: int, evaluate: Evaluate
) -> Outcome:
    """Measure mixtures, so many at a time; the best so far is carried along, and of equals the
    first is taken."""
    left, history = list(weights), list[Generation]()
    elite: Individual | None = None
    while True:
        carried = 1 if elite else 0
        taken, left = left[: size - carried], left[size - carried :]
        genomes = torch.empty(carried + len(taken), parents.shape[1])
        if elite:
            genomes[0] = elite.genome
        for genome, chosen in zip(genomes[carried:], taken, strict=True):
            mix(list(parents), list(chosen), out=genome)
        generation = len(history) + 1
        population = Population(genomes, generation, elite, prove(taken, genomes, generation))
        fitness = evaluate(population, [], elite.fitness if elite else None)
        history.append(record_generation(generation, fitness))
        elite = best_of(population, fitness)
        if not left:
            return Outcome(elite, tuple(history))


METHODS: dict[str, Method] = {
    "mega": evolve,
    "cma-es": cma_es,
    "random": random_search,
    "line-sweep": line_sweep,
    "uniform_soup": uniform_soup,
    "greedy_soup": greedy_soup,
    "choose": choose,
}
