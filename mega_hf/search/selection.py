"""Tournaments: who may win is drawn before anything is evaluated; fitness only decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, cycle, islice
from typing import NamedTuple

import numpy as np

from mega_hf.runtime.seeds import Streams
from mega_hf.search.population import Fitness


class Plan(NamedTuple):
    """How one generation breeds: tournaments, and for each child the two tournaments whose winners
    it mixes."""

    tournaments: list[list[int]]  # each: tournament_size distinct indices of the population
    pairs: list[tuple[int, int]]  # population_size - 1 pairs of indices into `tournaments`


Planner = Callable[[Streams, int, int, int, int], Plan]


def draw_tournament(
    stream: np.random.Generator, population_size: int, tournament_size: int
) -> list[int]:
    """Draw `tournament_size` distinct individuals: those with the smallest of `population_size`
    uniforms."""
    # Only Generator.random is used: its bits are the ones least likely to change with numpy's
    # release.
    return np.argsort(stream.random(population_size), kind="stable")[:tournament_size].tolist()


def plan(
    streams: Streams, generation: int, population_size: int, num_mates: int, tournament_size: int
) -> Plan:
    """Plan a generation as the paper says (section 3.2): K tournaments, their winners are the
    mates.

    The paper leaves open how K mates become N - 1 children. We take the K (K - 1) / 2 pairs of
    mates in lexicographic order, again and again until there are N - 1 children.
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
    """Plan a generation as the code published beside the paper does: tournaments afresh for each
    child.

    That code draws `num_mates` tournaments a child and uses the first two; the others are not drawn
    here, since nothing depends on them.
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
        Undecided: rows that were not seen may make another one the fittest.
    """
    first, *others = contenders(tournament, fitness)
    if others:
        raise UndecidedTournament(f"who wins is open between the individuals {[first, *others]}")
    return first


def contenders(tournament: list[int], fitness: Sequence[Fitness]) -> list[int]:
    """Return the indices of those that may win a tournament, whatever the rows that they have not
    seen will say."""
    # If one is sure to win, it is the one that is ahead already.
    first = min(tournament, key=lambda i: (fitness[i].worst_key, i))
    ahead = (fitness[first].worst_key, first)
    return [first, *(i for i in tournament if i != first and (fitness[i].best_key, i) < ahead)]


class UndecidedTournament(Exception):
    """The rows seen so far do not decide a tournament."""
