"""Permutation alignment: reorder a model's channels to match those of a reference.

Two networks trained independently may compute similar functions with their channels in different
orders. The straight line between their weights then passes through networks of chance accuracy
(Entezari et al., 2022). A permutation of channels leaves a network's function as it is. It is found
by comparing weights (Ainsworth et al., "Git Re-Basin", 2023, algorithm 1) or activations (Li et
al., 2016; Jordan et al., "REPAIR", 2023).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch.fx import Interpreter, Node

from mega_hf.weights.space import StateDict
from mega_hf.weights.symmetry import Group, Place, Symmetry

_MAX_SWEEPS = 100  # over all groups; a handful is usually enough


def permute(state: StateDict, groups: Sequence[Group], orders: Sequence[np.ndarray]) -> StateDict:
    """Return a state dict with the channels of each group reordered.

    Args:
        state: a state dict; it is not changed, and tensors without moved channels are not copied.
        groups: of channels.
        orders: for each group [size] int64: the old index of each new channel.
    """
    moved = dict(state)
    copied: set[str] = set()
    for group, order in zip(groups, orders, strict=True):
        if (order == np.arange(group.size)).all():
            continue
        for place in group.places:
            if place.entry not in copied:
                moved[place.entry] = moved[place.entry].clone()
                copied.add(place.entry)
            part = moved[place.entry].narrow(place.dim, place.start, group.size * place.block)
            places = (order[:, None] * place.block + np.arange(place.block)).reshape(-1)
            part.copy_(part.index_select(place.dim, torch.from_numpy(places)).clone())
    return moved


def weight_matching(
    groups: Sequence[Group],
    reference: StateDict,
    state: StateDict,
    learned: Iterable[str],
    seed: int,
) -> list[np.ndarray]:
    """Find the orders that bring a model's weights closest to those of a reference.

    Git Re-Basin, algorithm 1: the best order of a group depends on the orders of the others, so
    the groups are solved one by one, in a random sequence, until no order changes.

    Args:
        groups: of the architecture.
        reference: a state dict, which keeps its order.
        state: the state dict to be reordered.
        learned: entries that are compared; BatchNorm statistics only move with them.
        seed: of the random sequences.

    Returns:
        for each group [size] int64: the old index of each new channel.
    """
    from scipy.optimize import linear_sum_assignment

    compared = set(learned)
    places = [[place for place in group.places if place.entry in compared] for group in groups]
    entries = {place.entry for found in places for place in found}
    target = {entry: reference[entry].double() for entry in entries}
    moved = {entry: state[entry].double() for entry in entries}
    orders = [np.arange(group.size) for group in groups]
    draw = np.random.Generator(np.random.Philox(key=seed))
    for _ in range(_MAX_SWEEPS):
        has_changed = False
        for i in np.argsort(draw.random(len(groups)), kind="stable"):
            group = groups[i]
            similarity = np.zeros((group.size, group.size))
            for place in places[i]:
                rows, columns = (
                    _rows(tensors[place.entry], group.size, place) for tensors in (target, moved)
                )
                similarity += (rows @ columns.T).numpy()
            order = linear_sum_assignment(similarity, maximize=True)[1]
            best = similarity[np.arange(group.size), order].sum()
            if best > np.trace(similarity) * (1 + 1e-12) + 1e-12:
                moved = permute(moved, [Group(group.size, tuple(places[i]))], [order])
                orders[i], has_changed = orders[i][order], True
        if not has_changed:
            break
    return orders


def _rows(tensor: torch.Tensor, size: int, place: Place) -> torch.Tensor:
    """Return the part of a tensor that belongs to a group: [channels, numbers]."""
    part = tensor.narrow(place.dim, place.start, size * place.block)
    return part.movedim(place.dim, 0).reshape(size, -1)


def activation_matching(
    symmetry: Symmetry, reference: StateDict, state: StateDict, images: torch.Tensor
) -> list[np.ndarray]:
    """Find the orders that maximize the correlation of activations with a reference.

    Args:
        symmetry: the architecture's graph and groups.
        reference: a state dict, which keeps its order.
        state: the state dict to be reordered.
        images: [rows, channels, height, width] float32 on the model's device; rows that do not
            fill a batch are left out.

    Returns:
        for each group [size] int64: the old index of each new channel.
    """
    from scipy.optimize import linear_sum_assignment

    groups = symmetry.groups
    sums = [[_Correlation(group.size) for _ in group.taps] for group in groups]
    models = [_Tapped(symmetry, one) for one in (reference, state)]
    for batch in images.split(symmetry.rows)[: len(images) // symmetry.rows]:
        seen = [model.collect(batch) for model in models]
        for group, found in zip(groups, sums, strict=True):
            for tap, correlation in zip(group.taps, found, strict=True):
                correlation.add(*(_rows(each[tap.entry], group.size, tap) for each in seen))
    orders = []
    for group, found in zip(groups, sums, strict=True):
        similarity = sum((one.value for one in found), np.zeros((group.size, group.size)))
        orders.append(linear_sum_assignment(similarity, maximize=True)[1])
    return orders


class _Correlation:
    """The correlation between channels of two models, over the samples that are added."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.sums, self.squares = np.zeros((2, size)), np.zeros((2, size))
        self.products = np.zeros((size, size))

    def add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add samples of both models: [channels, samples] float32."""
        self.count += a.shape[1]
        for i, one in enumerate((a, b)):
            self.sums[i] += one.sum(dim=1, dtype=torch.float64).cpu().numpy()
            self.squares[i] += one.square().sum(dim=1, dtype=torch.float64).cpu().numpy()
        self.products += (a @ b.T).double().cpu().numpy()

    @property
    def value(self) -> np.ndarray:
        """[channels of a, channels of b]; 0 for a constant channel."""
        means = self.sums / self.count
        spread = np.sqrt(np.maximum(self.squares / self.count - means**2, 0.0))
        covariance = self.products / self.count - np.outer(means[0], means[1])
        scale = np.outer(spread[0], spread[1])
        return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)


class _Tapped(Interpreter):
    """A model's graph with given weights, which keeps the outputs of the taps."""

    def __init__(self, symmetry: Symmetry, state: StateDict) -> None:
        super().__init__(copy.deepcopy(symmetry.module))
        entries = {
            f"model.{name}": tensor.float()
            for name, tensor in state.items()
            if tensor.is_floating_point()
        }
        self.module.load_state_dict(entries, strict=False)
        self.taps = {tap.entry for group in symmetry.groups for tap in group.taps}
        self.kept: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def collect(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return tap -> output for one whole batch."""
        self.kept = {}
        self.run(images)
        return self.kept

    def run_node(self, n: Node) -> torch.Tensor:
        """Run one node of the graph."""
        output = super().run_node(n)
        if n.name in self.taps:
            self.kept[n.name] = output.clone()  # the next operation may be in place
        return output


def check_orders(
    groups: Sequence[Group], orders: Sequence[Sequence[int]], state: Mapping[str, torch.Tensor]
) -> None:
    """Raise ValueError unless the orders are permutations of channels in a state dict."""
    if len(groups) != len(orders):
        raise ValueError(f"{len(orders)} orders for {len(groups)} groups")
    for group, order in zip(groups, orders, strict=True):
        if sorted(order) != list(range(group.size)):
            raise ValueError(f"not a permutation of {group.size} channels")
        for place in group.places:
            tensor = state.get(place.entry)
            if tensor is None or not 0 <= place.dim < tensor.dim():
                raise ValueError(f"{place.entry} has no dimension {place.dim}")
            if (
                place.block < 1
                or place.start < 0
                or place.start + group.size * place.block > tensor.shape[place.dim]
            ):
                raise ValueError(f"{place.entry} has no such channels")
