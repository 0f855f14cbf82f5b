"""Tournaments: drawn before the individuals are evaluated, and decided by fitness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, cycle, islice
from typing import NamedTuple

import numpy as np

from mega_hf.runtime.seeds import Streams
from mega_hf.search.population import Fitness


class Plan(NamedTuple):
    """How one generation breeds.

    Attributes:
        tournaments: lists of `tournament_size` distinct indices into the population.
        pairs: for each of the population_size - 1 children the two tournaments (indices) whose
            winners are its mates.
    """

    tournaments: list[list[int]]
    pairs: list[tuple[int, int]]


Planner = Callable[[Streams, int, int, int, int], Plan]


def draw_tournament(
    stream: np.random.Generator, population_size: int, tournament_size: int
) -> list[int]:
    """Draw distinct indices: those of the smallest of N uniform numbers."""
    # Of numpy's generators only `random` is used: it is the least likely to change in a release.
    return np.argsort(stream.random(population_size), kind="stable")[:tournament_size].tolist()


def plan(
    streams: Streams, generation: int, population_size: int, num_mates: int, tournament_size: int
) -> Plan:
    """Plan a generation as in the paper (section 3.2): K tournaments, K mates.

    The paper leaves open how K mates become N - 1 children. Here the K (K - 1) / 2 pairs of mates
    are used in lexicographic order, repeatedly, until there are N - 1 children.
    """
    stream = streams(generation, 0, "tournaments")
    tournaments = [
        draw_tournament(stream, population_size, tournament_size) for _ in range(num_mates)
    ]
    pairs = list(islice(cycle(combinations(range(num_mates), 2)), population_size - 1))
    return Plan(tournaments, pairs)


def plan_reference(
    streams: Streams, generation: int, population_size: int, num_mates: int, tournament_size: int
) -> Plan:
    """Plan a generation as in the published code: two tournaments per child.

    That code draws `num_mates` tournaments per child and uses the first two. The others are not
    drawn here, since nothing depends on them.
    """
    tournaments, pairs = [], []
    for child in range(1, population_size):
        stream = streams(generation, child, "tournaments")
        tournaments += [draw_tournament(stream, population_size, tournament_size) for _ in range(2)]
        pairs.append((len(tournaments) - 2, len(tournaments) - 1))
    return Plan(tournaments, pairs)


def winner(tournament: list[int], fitness: Sequence[Fitness]) -> int:
    """Return the index of the fittest in a tournament; ties go to the lower index.

    Raises:
        UndecidedTournament: unseen rows may make another individual the fittest.
    """
    first, *others = contenders(tournament, fitness)
    if others:
        raise UndecidedTournament(f"the winner is open between individuals {[first, *others]}")
    return first


def contenders(tournament: list[int], fitness: Sequence[Fitness]) -> list[int]:
    """Return the indices of all individuals that may still win a tournament.

    An individual may win if some outcome of the unseen rows makes it the fittest.
    """
    # If the winner is certain, it is the individual with the best worst case.
    first = min(tournament, key=lambda i: (fitness[i].worst_key, i))
    ahead = (fitness[first].worst_key, first)
    return [first, *(i for i in tournament if i != first and (fitness[i].best_key, i) < ahead)]


class UndecidedTournament(Exception):
    """The rows seen so far do not decide a tournament."""
