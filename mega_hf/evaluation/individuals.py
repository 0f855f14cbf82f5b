"""What is known of a generation's individuals while they are measured, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

# right answers (None where a logit was not finite), rows seen, the sum of their losses (0 where
# nobody asks for it)
Counted = tuple[int | None, int, int]
# right answers, rows seen, not seen, loss, what it may be more
Interval = tuple[int | None, int, int, int, int]


class Genomes(Protocol):
    """What is needed of a population."""

    @property
    def genomes(self) -> torch.Tensor:
        """[population_size, size] float32."""

    @property
    def generation(self) -> int:
        """1 for the founders."""

    @property
    def proof(self) -> str:
        """The digest of how it was bred, equal on all processes."""


class Record(Protocol):
    """Where every fitness is kept before it is used; the journal is one."""

    def find(self, generation: int, index: int, genome: str | None) -> Counted | None:
        """Return what was recorded of an individual, or None; its genome's digest is compared, if
        it is given."""

    def find_genome(self, genome: str) -> Counted | None:
        """Return what was recorded of a genome, in whatever generation, or None."""

    def add(
        self,
        generation: int,
        index: int,
        genome: str,
        fitness: Counted,
        seconds: float,
        examples: int,
        write: bool,
    ) -> None:
        """Keep a fitness and what it took; only one process writes."""


@dataclass
class PartialResult:
    """What is known of one genome of a generation.

    Attributes:
        genome: its digest.
        unseen: [rows] bool.
        correct: right answers on the rows seen; None where a logit was not finite.
        loss: the sum of their losses, in 2⁻¹⁶.
        most: what a row's loss is at most; 0 where it does not count.
        told: what a journal says of it where it does not say which rows were seen; until some are.
        seconds: that measuring took since it was recorded.
        examples: that were forwarded since it was recorded.
    """

    genome: str
    unseen: np.ndarray
    correct: int | None = 0
    loss: int = 0
    most: int = 0
    told: Counted | None = None
    seconds: float = 0.0
    examples: int = 0

    @property
    def counted(self) -> Counted:
        """Right answers, rows seen, loss."""
        return self.told or (self.correct, int(len(self.unseen) - self.unseen.sum()), self.loss)

    @property
    def interval(self) -> Interval:
        """Right answers, rows seen, rows not seen, loss, and what these may add to it."""
        correct, seen, loss = self.counted
        unseen = len(self.unseen) - seen
        return correct, seen, unseen, loss, self.most * unseen
