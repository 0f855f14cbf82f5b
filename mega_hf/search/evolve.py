"""MeGA's generation loop: draw tournaments, evaluate, select, cross over, mutate."""

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
    """Inputs of a method besides fitness: recorded now, or read from a journal.

    Attributes:
        propose: (generation, function that makes a proposal) -> the recorded proposal.
        correct_rows: population -> [individuals, rows] bool, after evaluating all rows.
    """

    propose: Callable[[int, Callable[[], list[list[float]]]], list[list[float]]]
    correct_rows: Callable[[Population], np.ndarray]


class InvalidRecord(Exception):
    """A record that the method could not have made."""


@dataclass(frozen=True)
class Search:
    """Settings of a search."""

    population_size: int  # the paper's N
    generations: int  # G
    num_mates: int  # K
    tournament_size: int  # t
    mutation: Gaussian
    include_parents: bool = True  # among the founders
    plan: Planner = plan
    budget: int = 0  # individuals to evaluate, for methods without generations
    prefer: int = 0  # for `choose`: how many inputs, from the first, are preferred


@dataclass(frozen=True)
class Outcome:
    """The best individual of all generations, and the history."""

    best: Individual
    history: tuple[Generation, ...]


def evolve(
    parents: torch.Tensor,
    genes: Genes,
    search: Search,
    streams: Streams,
    evaluate: Evaluate,
    recorded: RecordedDraws | None = None,
) -> Outcome:
    """Search the weights between and around the parents (MeGA, Algorithm 1).

    Args:
        parents: [parents, size] float32 on the CPU; never written to.
        genes: the layout of a genome.
        search: the settings.
        streams: the random streams of this merge.
        evaluate: returns the fitness of each individual; called once per generation.
        recorded: not used.

    Returns:
        the best individual of all generations. The elite is evaluated once, when it first occurs.

    Raises:
        UndecidedTournament: `evaluate` saw too few rows to decide a tournament or the elite.
    """
    population = _make_founders(parents, search, streams)
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
        # The last generation breeds no children, so only the best individual matters.
        is_last = population.generation == search.generations
        tournaments = [] if is_last else drawn.tournaments
        fitness = evaluate(population, tournaments, elite)
        history.append(record_generation(population.generation, fitness))
        if is_last:
            return Outcome(best_of(population, fitness), tuple(history))
        population = _breed(population, fitness, drawn, genes, search, streams)


def _make_founders(parents: torch.Tensor, search: Search, streams: Streams) -> Population:
    """Return the founders: θ = Σ wᵢ θᵢ, with w uniform on the simplex.

    The parents themselves come first, if they are included.
    """
    genomes = torch.empty(search.population_size, parents.shape[1])
    included = len(parents) if search.include_parents else 0
    genomes[:included] = parents[:included]
    drawn = [
        spacings(streams(1, i, "founder"), len(parents))
        for i in range(included, search.population_size)
    ]
    for genome, weights in zip(genomes[included:], drawn, strict=True):
        mix(list(parents), weights, out=genome)
    return Population(genomes, 1, None, fingerprint(drawn, genomes, 1))


def fingerprint(drawn: object, genomes: torch.Tensor, generation: int) -> str:
    """Return the SHA-256 of a generation's random draws and of one of its genomes.

    Each generation uses another genome, so that differences are found at little cost.
    """
    sha = hashlib.sha256(json.dumps(drawn).encode())
    sha.update(genomes[generation % len(genomes)].numpy().data)
    return sha.hexdigest()


def best_of(population: Population, fitness: list[Fitness]) -> Individual:
    """Return the best individual so far: one of the population, or its elite."""
    # The elite has index 0 and ties go to the lower index, so only a fitter child replaces it.
    index = winner(list(range(len(fitness))), fitness)
    if population.elite is not None and index == 0:
        return replace(population.elite, fitness=fitness[0])  # may have seen more rows
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
    """Overwrite the genomes with the elite and N - 1 children of the mates."""
    chosen = [winner(tournament, fitness) for tournament in drawn.tournaments]
    mates = {index: population.genomes[index].clone() for index in set(chosen)}
    generation, genomes = population.generation + 1, population.genomes
    best = best_of(population, fitness)
    genomes[0] = best.genome
    best = replace(best, genome=genomes[0])  # a view, to save memory
    betas = [
        float(streams(generation, child, "crossover").random()) for child in range(1, len(genomes))
    ]
    for child, ((first, second), beta) in enumerate(zip(drawn.pairs, betas, strict=True), start=1):
        blend(mates[chosen[first]], mates[chosen[second]], beta, out=genomes[child])
        mutate(genomes[child], genes, search.mutation, streams(generation, child, "mutation"))
    return Population(
        genomes, generation, best, fingerprint([drawn, chosen, betas], genomes, generation)
    )


def record_generation(generation: int, fitness: list[Fitness]) -> Generation:
    """Return the summary of a generation, for the history."""
    best = fitness[winner(list(range(len(fitness))), fitness)].correct or 0
    counted = [f.high for f in fitness if f.correct is not None]
    failed = sum(f.correct is None for f in fitness)
    return Generation(generation, best, sum(counted) / max(1, len(counted)), failed)
