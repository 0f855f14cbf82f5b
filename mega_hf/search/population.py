"""What a search holds: individuals, and a population of their genomes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Fitness:
    """Correct predictions of one individual on the validation rows that it has seen.

    With unseen rows a fitness is an interval: these rows may be correct or not. Of two individuals
    with equally many correct predictions the one with the smaller loss is fitter, where losses are
    summed. Losses are integers in units of 2⁻¹⁶ nats, so that their sums are exact in any order.
    """

    correct: int | None  # None where a logit was not finite, which is worse than 0
    seen: int  # rows
    unseen: int = 0  # rows
    loss: int = 0  # sum over the rows seen; 0 where losses are not summed
    unseen_loss: int = 0  # the most that the unseen rows may add to the loss

    def out_of(self, rows: int, row_loss: int = 0) -> Fitness:
        """Return the same fitness out of all `rows`, each with a loss of at most `row_loss`."""
        unseen = rows - self.seen
        return replace(self, unseen=unseen, unseen_loss=row_loss * unseen)

    @property
    def low(self) -> int:
        """The number of correct predictions if every unseen row is wrong; -1 for a failure."""
        return -1 if self.correct is None else self.correct

    @property
    def high(self) -> int:
        """The number of correct predictions if every unseen row is correct; -1 for a failure."""
        return -1 if self.correct is None else self.correct + self.unseen

    @property
    def worst_key(self) -> tuple[int, int]:
        """Sort key (ascending, fittest first) if the unseen rows turn out as bad as possible."""
        return -self.low, self.loss + self.unseen_loss

    @property
    def best_key(self) -> tuple[int, int]:
        """Sort key (ascending, fittest first) if the unseen rows turn out as good as possible."""
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
