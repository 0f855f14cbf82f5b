"""Encodings of weights in a genome: directly, or as mixing coefficients."""

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
BOUNDS = (-0.5, 1.5)  # of a coefficient: a mixture may lie somewhat beyond the parents


class Encoding(Protocol):
    """The meaning of a genome, for the parents of one merge."""

    @property
    def space(self) -> WeightSpace:
        """The parents' layout."""

    @property
    def parents(self) -> torch.Tensor:
        """The parents' genomes: [parents, size] float32."""

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """[start, stop) of each group of genes: a tensor, or a group of tensors."""

    @property
    def learned(self) -> int:
        """How many of these groups, from the first, are learned weights.

        The others are BatchNorm statistics.
        """

    def digest(self, genome: torch.Tensor) -> str:
        """Return 128 hexadecimal bits that identify a genome's weights."""

    def entries(self, genome: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
        """Yield name and tensor of a genome's state dict, in the parents' dtypes."""


@dataclass(frozen=True)
class Direct:
    """A genome is the vector of weights itself, as in the paper."""

    space: WeightSpace
    parents: torch.Tensor  # [parents, size] float32

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """[start, stop) of each tensor."""
        return tuple((s.start, s.stop) for s in self.space.segments)

    @property
    def learned(self) -> int:
        """The number of learned tensors."""
        return sum(s.learned for s in self.space.segments)

    def digest(self, genome: torch.Tensor) -> str:
        """Return the first 128 bits of a genome's SHA-256 ([size] float32, CPU)."""
        return hashlib.sha256(genome.numpy().data).hexdigest()[:32]

    def entries(self, genome: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
        """Yield views of the genome, and the entries that are not searched."""
        return self.space.unpack(genome).items()


@dataclass(frozen=True)
class Mixing:
    """A genome holds coefficients cᵢ for each group of tensors: θ = Σ cᵢ θᵢ.

    Any numbers are a valid genome, see `coefficients`. A population takes little memory, however
    large the model is: the parents are mapped from the disk, and one model is evaluated at a time.

    Attributes:
        space: the parents' layout.
        states: the parents' state dicts.
        granularity: which tensors form a group: all of the `model`, those of one `stage` (equal
            names up to the first number) or of one `layer`, or each `tensor` by itself. BatchNorm
            statistics form a group that is mixed but never mutated: its coefficients lie in
            [0, 1], so that no variance is negative.
        contents: digests of the parents, as part of a genome's digest.
    """

    space: WeightSpace
    states: Sequence[StateDict]
    granularity: Granularity
    contents: Sequence[str]
    _group_of: Mapping[str, int] = field(init=False, repr=False)  # tensor -> its group
    learned: int = field(init=False)

    def __post_init__(self) -> None:
        groups: dict[tuple[bool, str], int] = {}
        group_of = {  # groups are numbered as they occur; learned segments come first
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
        """[parents, groups x parents] float32: 1 for the parent itself, 0 for the others."""
        return torch.eye(len(self.states)).repeat(1, self._groups)

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """[start, stop) of the coefficients of each group."""
        n = len(self.states)
        return tuple((n * group, n * group + n) for group in range(self._groups))

    def digest(self, genome: torch.Tensor) -> str:
        """Return the first 128 bits of the SHA-256 of parents, granularity and genome."""
        sha = hashlib.sha256("\n".join([self.granularity, *self.contents]).encode())
        sha.update(genome.numpy().data)
        return sha.hexdigest()[:32]

    def entries(self, genome: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the mixture, one tensor at a time."""
        n = len(self.states)
        weights = [coefficients(genes) for genes in genome.numpy().reshape(-1, n)]
        return self.space.combine(
            self.states, lambda s, tensors: _mix(tensors, weights[self._group_of[s.name]])
        )


def coefficients(genes: np.ndarray) -> list[float]:
    """Return the coefficients of a group: within BOUNDS, and their sum is 1.

    The genes ([parents] float32) are shifted equally until their sum is 1. Where one lies outside
    BOUNDS, all are scaled towards equal coefficients. Float64 operations run one after the other,
    so that every machine rounds in the same way.
    """
    values = [float(gene) for gene in genes]
    equal = 1.0 / len(values)
    # Not `sum`: since Python 3.12 it compensates rounding errors.
    shift = (1.0 - functools.reduce(operator.add, values)) * equal
    offsets = [value + shift - equal for value in values]
    low, high = BOUNDS[0] - equal, BOUNDS[1] - equal
    outside = [offset for offset in offsets if not low <= offset <= high]
    factor = min([1.0, *((high if offset > 0 else low) / offset for offset in outside)])
    if factor == 1.0:
        return [value + shift for value in values]
    return [equal + factor * offset for offset in offsets]


def _mix(tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """Return Σ wᵢ tᵢ in float32.

    Tensors of weight 0 are left out, so a single parent of weight 1 is returned bit for bit.
    """
    chosen = [
        (tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0.0
    ]
    if len(chosen) == 1 and chosen[0][1] == 1.0:
        return chosen[0][0]
    mixed = torch.zeros_like(tensors[0], dtype=torch.float32)
    for tensor, weight in chosen:
        # Two calls, so that no machine fuses multiplication and addition into one rounding.
        mixed.add_(torch.mul(tensor.float(), float(np.float32(weight))))
    return mixed


def _group(segment: Segment, granularity: Granularity) -> str:
    if granularity == "model" or not segment.learned:
        return ""
    if granularity == "stage":
        return _STAGE.match(segment.name)[0]  # type: ignore[index]  # it always matches
    return segment.name if granularity == "tensor" else segment.name.rpartition(".")[0]
