"""The one generation loop: draw the tournaments, evaluate, select, cross, mutate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from mega_hf.runtime.seeds import Streams
from mega_hf.search.crossover import blend, mix, spacings
from mega_hf.search.mutation import Gaussian, mutate
from mega_hf.search.population import Fitness, Generation, Genes, Individual, Population
from mega_hf.search.selection import Plan, Planner, plan, winner

# (population, tournaments, the elite's fitness or None) -> the fitness of each individual, known
# well enough to decide every tournament and the next elite
Evaluate = Callable[[Population, list[list[int]], Fitness | None], list[Fitness]]


class RecordedDraws(NamedTuple):
    """What a method takes from others beside fitness, made now or as a journal has it.

    Attributes:
        propose: (generation, what makes a proposal) -> the proposal.
        answers: a population, all of which is measured to its end -> who is right where,
            [individuals, rows] bool.
    """

    propose: Callable[[int, Callable[[], list[list[float]]]], list[list[float]]]
    answers: Callable[[Population], np.ndarray]


class InvalidRecord(Exception):
    """What was recorded can't be what a method made."""


@dataclass(frozen=True)
class Search:
    """The search's settings, in the paper's letters: N, G, K, t, and how children change."""

    population_size: int
    generations: int
    num_mates: int
    tournament_size: int
    mutation: Gaussian
    include_parents: bool = True
    plan: Planner = plan
    budget: int = 0  # individuals to be tried by a method that breeds none
    # of `choose`: inputs, from the first, that win unless another one is better by more than chance
    prefer: int = 0


@dataclass(frozen=True)
class Outcome:
    """The best individual ever seen, and every generation's record."""

    best: Individual
    history: tuple[Generation, ...]


def evolve(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recall: RecordedDraws | None = None,
) -> Outcome:
    """Search the weights between and around the parents (MeGA, Algorithm 1).

    Args:
        parents: [parents, size] float32 on the CPU, never written to.
        genes: the layout of a genome.
        search: the settings.
        streams: the random streams of this merge.
        evaluate: gives each individual its fitness; called once a generation.
        recall: not needed here.

    Returns:
        the best individual over all generations; `generations` populations are evaluated, the elite
        only once.

    Raises:
        Undecided: the evaluator has seen too few rows to decide a tournament or the elite.
    """
    population = _found(parents, search, streams)
    history = []
    while True:
        drawn = search.plan(
            streams,
            population.generation,
            search.population_size,
            search.num_mates,
            search.tournament_size,
        )
        elite = population.elite.fitness if population.elite else None
        # nobody is bred from it: only who is best matters
        is_last = population.generation == search.generations
        contests = [] if is_last else drawn.tournaments
        fitness = evaluate(population, contests, elite)
        history.append(record_generation(population.generation, fitness))
        if is_last:
            return Outcome(best_of(population, fitness), tuple(history))
        population = _breed(population, fitness, drawn, genes, search, streams)


def _found(parents: torch.Tensor, search: Search, streams: Streams) -> Population:
    """The founders: θ = Σ wᵢ θᵢ, w uniform on the simplex; the parents themselves come first, if
    included."""
    genomes = torch.empty(search.population_size, parents.shape[1])
    included = len(parents) if search.include_parents else 0
    genomes[:included] = parents[:included]
    drawn = [
        spacings(streams(1, i, "founder"), len(parents))
        for i in range(included, search.population_size)
    ]
    for genome, weights in zip(genomes[included:], drawn, strict=True):
        mix(list(parents), weights, out=genome)
    return Population(genomes, 1, None, prove(drawn, genomes, 1))


def prove(drawn: object, genomes: torch.Tensor, generation: int) -> str:
    """Return the digest of what was drawn for a generation and of one of its genomes, each time
    another one."""
    proof = hashlib.sha256(json.dumps(drawn).encode())
    proof.update(genomes[generation % len(genomes)].numpy().data)
    return proof.hexdigest()


def best_of(population: Population, fitness: list[Fitness]) -> Individual:
    """Return the best individual so far: the population's, or the elite that it carries along."""
    # The elite sits at index 0 and ties go to the lower index: only a strictly better child
    # replaces it.
    index = winner(list(range(len(fitness))), fitness)
    if population.elite is not None and index == 0:
        return replace(population.elite, fitness=fitness[0])  # it may have seen more rows since
    return Individual(
        population.genomes[index].clone(), fitness[index], population.generation, index
    )


def _breed(
    population: Population,
    fitness: list[Fitness],
    drawn: Plan,
    genes: Genes,
    search: Search,
    streams: Streams,
) -> Population:
    """Overwrite the genomes with the elite and its N - 1 children; only the mates are copied."""
    chosen = [winner(tournament, fitness) for tournament in drawn.tournaments]
    mates = {index: population.genomes[index].clone() for index in set(chosen)}
    generation, genomes = population.generation + 1, population.genomes
    best = best_of(population, fitness)
    genomes[0] = best.genome
    best = replace(best, genome=genomes[0])  # a view: no second copy while the children are made
    betas = [
        float(streams(generation, child, "crossover").random()) for child in range(1, len(genomes))
    ]
    for child, ((first, second), beta) in enumerate(zip(drawn.pairs, betas, strict=True), start=1):
        blend(mates[chosen[first]], mates[chosen[second]], beta, out=genomes[child])
        mutate(genomes[child], genes, search.mutation, streams(generation, child, "mutation"))
    return Population(genomes, generation, best, prove([drawn, chosen, betas], genomes, generation))


def record_generation(generation: int, fitness: list[Fitness]) -> Generation:
    """Return a generation's record for the history."""
    best = fitness[winner(list(range(len(fitness))), fitness)].correct or 0
    counted = [f.high for f in fitness if f.correct is not None]
    failed = sum(f.correct is None for f in fitness)
    return Generation(generation, best, sum(counted) / max(1, len(counted)), failed)
