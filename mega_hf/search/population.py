"""Fitness, individuals, populations of genomes, and the layout of a genome."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `inspect` reads journals, and loads no torch
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
        """Return the same fitness with all other rows of `rows` as unseen.

        Args:
            rows: the number of all rows.
            row_loss: the largest loss that one row can have; 0 where losses are not summed.
        """
        unseen = rows - self.seen
        return replace(self, unseen=unseen, unseen_loss=row_loss * unseen)

    @property
    def low(self) -> int:
        """Correct predictions if every unseen row is wrong; -1 for a failure."""
        return -1 if self.correct is None else self.correct

    @property
    def high(self) -> int:
        """Correct predictions if every unseen row is correct; -1 for a failure."""
        return -1 if self.correct is None else self.correct + self.unseen

    @property
    def worst_key(self) -> tuple[int, int]:
        """Sort key, fittest first, if the unseen rows turn out as bad as possible."""
        return -self.low, self.loss + self.unseen_loss

    @property
    def best_key(self) -> tuple[int, int]:
        """Sort key, fittest first, if the unseen rows turn out as good as possible."""
        return -self.high, self.loss


@dataclass(frozen=True)
class Individual:
    """A genome with its fitness, and the place where it first occurred."""

    genome: torch.Tensor  # [size] float32
    fitness: Fitness
    generation: int
    index: int


@dataclass(frozen=True)
class Population:
    """The genomes of one generation; the elite, if there is one, has index 0."""

    genomes: torch.Tensor  # [population_size, size] float32; the next generation overwrites them
    generation: int  # 1 for the founders
    elite: Individual | None
    # SHA-256 of the random draws, the mates and one genome, to compare processes
    fingerprint: str


@dataclass(frozen=True)
class Generation:
    """Summary of one generation, for the history and the plot.

    Attributes:
        generation: 1 for the founders.
        best: correct predictions of the best individual, on the rows that it has seen.
        mean: mean correct predictions if all unseen rows were correct, over the individuals that
            did not fail; 0.0 if all failed.
        failed: the number of individuals with a logit that was not finite.
    """

    generation: int
    best: int
    mean: float
    failed: int


@dataclass(frozen=True)
class Genes:
    """The layout of a genome, as far as the search needs it.

    Attributes:
        bounds: [start, stop) of each tensor, in order.
        learned: how many of these tensors, from the first, are learned; the others are BatchNorm
            statistics.
        scales: the spread of each tensor over the parents, which scales relative noise.
    """

    bounds: tuple[tuple[int, int], ...]
    learned: int
    scales: tuple[float, ...]
