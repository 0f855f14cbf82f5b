"""All search methods, one function each.

All methods evaluate generations, which are recorded and replayed in the same way, so no other
module depends on the method.
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
    fingerprint,
    record_generation,
)
from mega_hf.search.population import Fitness, Generation, Genes, Individual, Population
from mega_hf.search.selection import winner

# The arguments are those of `evolve`.
Method = Callable[[torch.Tensor, Genes, Search, Streams, Evaluate, RecordedDraws], Outcome]


def uniform_soup(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recorded: RecordedDraws,
) -> Outcome:
    """Average the parents with equal weights (Wortsman et al., 2022)."""
    return _best_mixture(parents, [equal_weights(len(parents))], 1, evaluate)


def choose(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recorded: RecordedDraws,
) -> Outcome:
    """Choose the best parent; ties go to the first.

    One of the first `search.prefer` parents wins if the best parent is better by at most the
    standard error of their paired difference (the one-standard-error rule; Breiman et al., 1984).

    Raises:
        InvalidRecord: the recorded correct rows do not match the recorded counts.
    """
    population = Population(parents.clone(), 1, None, fingerprint("choose", parents, 1))
    correct = recorded.correct_rows(population)
    fitness = evaluate(population, [[i] for i in range(len(parents))], None)
    counted = [0 if one.correct is None else one.correct for one in fitness]
    if correct.sum(axis=1).tolist() != counted:
        raise InvalidRecord(f"{correct.sum(axis=1).tolist()} correct rows, but counts {counted}")
    best = winner(list(range(len(fitness))), fitness)
    # The variance of a paired difference in counts is the number of rows that differ.
    differing = (correct != correct[best]).sum(axis=1)
    near = [i for i in range(search.prefer) if (counted[best] - counted[i]) ** 2 <= differing[i]]
    index = winner(near, fitness) if near else best
    chosen = Individual(population.genomes[index].clone(), fitness[index], 1, index)
    return Outcome(chosen, (record_generation(1, fitness),))


def line_sweep(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recorded: RecordedDraws,
) -> Outcome:
    """Take the best of `search.budget` equidistant points between two parents."""
    points = [i / (search.budget - 1) for i in range(search.budget)]
    return _best_mixture(
        parents, [[1.0 - point, point] for point in points], search.population_size, evaluate
    )


def random_search(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recorded: RecordedDraws,
) -> Outcome:
    """Take the best of `search.budget` mixtures, drawn like the founders of `evolve`."""
    count = len(parents)
    included = (
        [[float(i == j) for j in range(count)] for i in range(count)]
        if search.include_parents
        else []
    )
    drawn = [spacings(streams(1, i, "founder"), count) for i in range(len(included), search.budget)]
    return _best_mixture(parents, [*included, *drawn], search.population_size, evaluate)


def greedy_soup(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recorded: RecordedDraws,
) -> Outcome:
    """Add parents to an average, best first, unless they make it worse.

    The greedy soup of Wortsman et al. (2022), recipe 1.
    """
    generation, history = 1, list[Generation]()

    def evaluate_all(genomes: torch.Tensor, drawn: object) -> list[Fitness]:
        population = Population(genomes, generation, None, fingerprint(drawn, genomes, generation))
        alone = [[i] for i in range(len(genomes))]  # all rows of each
        fitness = evaluate(population, alone, None)
        history.append(record_generation(generation, fitness))
        return fitness

    fitness = evaluate_all(parents.clone(), "parents")
    first, *others = sorted(range(len(parents)), key=lambda i: fitness[i].worst_key)
    kept: list[int] = [first]
    best = Individual(parents[first].clone(), fitness[first], 1, first)
    for other in others:
        generation += 1
        tried = average([parents[i] for i in (*kept, other)], torch.empty_like(best.genome))
        fitness = evaluate_all(torch.stack([tried, best.genome]), [*kept, other])
        if winner([0, 1], fitness) == 0:  # a tie goes to the larger soup
            kept, best = [*kept, other], Individual(tried, fitness[0], generation, 0)
    return Outcome(best, tuple(history))


def _best_mixture(
    parents: torch.Tensor, weights: Sequence[Sequence[float]], size: int, evaluate: Evaluate
) -> Outcome:
    """Evaluate mixtures in generations of `size` and return the best one."""
    remaining, history = list(weights), list[Generation]()
    elite: Individual | None = None
    while True:
        carried = 1 if elite else 0
        taken, remaining = remaining[: size - carried], remaining[size - carried :]
        genomes = torch.empty(carried + len(taken), parents.shape[1])
        if elite:
            genomes[0] = elite.genome
        for genome, chosen in zip(genomes[carried:], taken, strict=True):
            mix(list(parents), list(chosen), out=genome)
        generation = len(history) + 1
        population = Population(genomes, generation, elite, fingerprint(taken, genomes, generation))
        fitness = evaluate(population, [], elite.fitness if elite else None)
        history.append(record_generation(generation, fitness))
        elite = best_of(population, fitness)
        if not remaining:
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
