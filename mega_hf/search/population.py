"""What a search holds: individuals, and a population of their genomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Fitness(NamedTuple):
    """Right answers on the validation rows seen; `correct` is None where a logit was not finite:
    the worst of all.

    With rows unseen it is an interval: what they would add is not known. Of individuals with as
        many right answers the
    one with the smaller loss is fitter, where losses are summed.
    """

    correct: int | None
    seen: int
    unseen: int = 0
    loss: int = 0  # the sum over the rows seen, of each row's in 2⁻¹⁶
    more: int = 0  # what the rows not seen may add to it

    @property
    def low(self) -> int:
        """What it is at least: higher is better."""
        return -1 if self.correct is None else self.correct

    @property
    def high(self) -> int:
        """What it is at most."""
        return -1 if self.correct is None else self.correct + self.unseen

    @property
    def sure(self) -> tuple[int, int]:
        """Where it stands at worst: smaller is better."""
        return -self.low, self.loss + self.more

    @property
    def hoped(self) -> tuple[int, int]:
        """Where it stands at best."""
        return -self.high, self.loss


@dataclass(frozen=True)
class Individual:
    """One genome with its known fitness, and where it was first seen."""

    genome: torch.Tensor  # [size] float32
    fitness: Fitness
    generation: int
    index: int


@dataclass(frozen=True)
class Population:
    """A generation's genomes; the elite, once there is one, sits at index 0."""

    # [population_size, size] float32, overwritten in place by the next generation
    genomes: torch.Tensor
    generation: int  # 1 for the founders
    elite: Individual | None
    # SHA-256 of what was drawn for it, of its mates and of one genome: equal on all processes
    proof: str


@dataclass(frozen=True)
class Generation:
    """One generation's record, for the history and the plot."""

    generation: int
    best: int  # right answers of the best individual, on the rows that it has seen
    # of the individuals with a fitness, at most: as if all unseen rows were right; 0.0 if there are
    # none
    mean: float
    failed: int  # individuals with a logit that was not finite


@dataclass(frozen=True)
class Genes:
    """What the search must know of a genome's layout."""

    bounds: tuple[tuple[int, int], ...]  # [start, stop) of each tensor, in order
    # how many of these tensors, from the first, are learned; the rest are BatchNorm statistics
    learned: int
    # per tensor: its spread over the parents, by which relative noise is scaled
    scales: tuple[float, ...]
