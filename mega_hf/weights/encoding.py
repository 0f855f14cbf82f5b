"""Genome -> weights: the weights themselves, as the paper has it, or coefficients by which the
parents are mixed."""

from __future__ import annotations

import functools
import hashlib
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch

from mega_hf.weights.space import Segment, StateDict, WeightSpace

Granularity = Literal["model", "stage", "layer", "tensor"]
# stages.0.blocks.1.norm -> stages.0, and fc.weight -> fc.
_STAGE = re.compile(r"[^\d]*\d+|.*\.|.*")
BOUNDS = (-0.5, 1.5)  # of a coefficient: how far beyond the parents a mixture may lie


class Encoding(Protocol):
    """What a genome means, for the parents of one merge."""

    @property
    def space(self) -> WeightSpace:
        """The parents' layout."""

    @property
    def parents(self) -> torch.Tensor:
        """The parents' genomes: [parents, size] float32."""

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """[start, stop) of what belongs together in a genome, in order."""

    @property
    def learned(self) -> int:
        """How many of these, from the first, stand for learned weights; the rest for BatchNorm's
        statistics."""

    def digest(self, genome: torch.Tensor) -> str:
        """Return 128 bits, in hexadecimal, that two genomes share where they are the same weights;
        [size] float32."""

    def entries(self, genome: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
        """Yield the weights' state dict, entry by entry, in the parents' dtypes."""


@dataclass(frozen=True)
class Direct:
    """A genome is the weights: one number for each, as in the paper."""

    space: WeightSpace
    parents: torch.Tensor  # [parents, size] float32

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """One for each tensor."""
        return tuple((s.start, s.stop) for s in self.space.segments)

    @property
    def learned(self) -> int:
        """How many tensors are learned."""
        return sum(s.learned for s in self.space.segments)

    def digest(self, genome: torch.Tensor) -> str:
        """Return the first 128 bits of the SHA-256 of a genome ([size] float32 on the CPU)."""
        return hashlib.sha256(genome.numpy().data).hexdigest()[:32]

    def entries(self, genome: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
        """Yield views of the genome, and what is not searched."""
        return self.space.unpack(genome).items()


@dataclass(frozen=True)
class Mixing:
    """A genome is a few coefficients: θ = Σ cᵢ θᵢ, with coefficients of their own for each group of
    tensors.

    Any numbers are a genome. Before they mix, those of a group are shifted alike, so that their sum
    is 1, and drawn
    towards equal ones where one of them would leave BOUNDS. So a population is small, however large
        the model: what
    is held of it are the parents (mapped from the disk) and the one model that is measured.

    Attributes:
        space: the parents' layout.
        states: the parents' state dicts.
        granularity: what is mixed alike: all the `model`, the tensors of one `stage` (whose names
            are the same up to their first number) or of one `layer`, or each `tensor` by itself.
            BatchNorm's running statistics are a
            group of their own, which is blended but never mutated: by coefficients within 0 and 1
                no variance is
            negative.
        contents: what tells these parents from others; part of a genome's digest.
    """

    space: WeightSpace
    states: Sequence[StateDict]
    granularity: Granularity
    contents: Sequence[str]
    _group_of: Mapping[str, int] = field(init=False, repr=False)  # tensor -> its group
    learned: int = field(init=False)

    def __post_init__(self) -> None:
        groups: dict[tuple[bool, str], int] = {}
        group_of = {  # numbered as they come: in a space, learned segments come first
            s.name: groups.setdefault((s.learned, _group(s, self.granularity)), len(groups))
            for s in self.space.segments
        }
        object.__setattr__(self, "_group_of", group_of)
        object.__setattr__(self, "learned", sum(is_learned for is_learned, _ in groups))

    @property
    def _groups(self) -> int:
        return 1 + max(self._group_of.values(), default=-1)

    @property
    def parents(self) -> torch.Tensor:
        """Each parent is 1 of itself and 0 of the others, in all groups: [parents, groups x
        parents]."""
        return torch.eye(len(self.states)).repeat(1, self._groups)

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """One for each group."""
        n = len(self.states)
        return tuple((n * group, n * group + n) for group in range(self._groups))

    def digest(self, genome: torch.Tensor) -> str:
        """Return the first 128 bits of the SHA-256 of parents, granularity and genome."""
        sha = hashlib.sha256("\n".join([self.granularity, *self.contents]).encode())
        sha.update(genome.numpy().data)
        return sha.hexdigest()[:32]

    def entries(self, genome: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the mixture; one tensor of it is made at a time."""
        n = len(self.states)
        rows = genome.numpy().reshape(-1, n)
        weights = [coefficients(row) for row in rows]
        return self.space.combine(
            self.states, lambda s, tensors: _mix(tensors, weights[self._group_of[s.name]])
        )


def coefficients(genes: np.ndarray) -> list[float]:
    """Return by what a group is mixed: [parents] float32 of a genome to numbers within BOUNDS whose
    sum is 1.

    All in float64, one operation after the other, so that every machine rounds alike.
    """
    values = [float(gene) for gene in genes]
    equal = 1.0 / len(values)
    # not `sum`, which Python 3.12 made to compensate
    shift = (1.0 - functools.reduce(operator.add, values)) * equal
    apart = [value + shift - equal for value in values]
    low, high = BOUNDS[0] - equal, BOUNDS[1] - equal
    factor = min([1.0, *((high if a > 0 else low) / a for a in apart if not low <= a <= high)])
    return (
        [value + shift for value in values]
        if factor == 1.0
        else [equal + factor * a for a in apart]
    )


def _mix(tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """Return Σ wᵢ tᵢ in float32, without what has no part in it: a parent alone stays what it is,
    bit for bit."""
    chosen = [
        (tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0.0
    ]
    if len(chosen) == 1 and chosen[0][1] == 1.0:
        return chosen[0][0]
    mixed = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor, weight in chosen:
        # two roundings: no machine fuses them
        mixed.add_(torch.mul(tensor.float(), float(np.float32(weight))))
    return mixed


def _group(segment: Segment, granularity: Granularity) -> str:
    if granularity == "model" or not segment.learned:
        return ""
    if granularity == "stage":
        return _STAGE.match(segment.name)[0]  # type: ignore[index]  # it matches everything
    return segment.name if granularity == "tensor" else segment.name.rpartition(".")[0]
