"""The permutations that leave a model's function as it is, read off its own graph.

A graph of torch's operations is walked once. Each dimension of each tensor is an `Axis`; an
operation ties those that must be permuted alike (a convolution's input channels and its weight's
second dimension, the two sides of a residual addition), and fixes those of which it is not known
what a permutation would do. So an operation that is not known costs permutations, never
correctness.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from mega_hf.errors import ParentError, first_line
from mega_hf.weights.axes import Axis, ChannelGroup, Span
from mega_hf.weights.operations import RULES, Axes, fix, fixed, name_of, shape_of


@dataclass(frozen=True)
class Place:
    """Where a group's channels stand in a tensor: `block` places each, from `start` on, in a
    dimension."""

    entry: str  # of the state dict, or a node of the graph
    dim: int
    start: int
    block: int


@dataclass(frozen=True)
class Group:
    """Channels that can be permuted without changing what the model computes, if it is done in all
    places."""

    size: int
    places: tuple[Place, ...]
    taps: tuple[Place, ...] = ()  # nodes of the graph that hold their activations


@dataclass(frozen=True)
class Symmetry:
    """A model's graph, and the groups found in it.

    Attributes:
        groups: in the order of the graph.
        module: runs the graph; its state dict has the model's names after `model.`.
        rows: pictures in a batch that it takes.
    """

    groups: tuple[Group, ...]
    module: GraphModule
    rows: int


def find_symmetry(model: nn.Module, shape: tuple[int, ...], name: str, rows: int = 2) -> Symmetry:
    """Find the groups of channels of a model.

    Args:
        model: in evaluation mode, on any device; it is read.
        shape: of a picture: (channels, height, width).
        name: whose it is, for the error.
        rows: pictures in each batch that the graph will be run on.

    Raises:
        ParentError: it can't be traced.
    """
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            program = torch.export.export(
                _Logits(model), (torch.zeros(rows, *shape, device=device),)
            )
    except Exception as error:  # of whatever the model's own code does
        raise ParentError(
            "the model can't be aligned: torch.export can't trace it",
            where=name,
            expected="a graph",
            got=first_line(error)[:200],
            hint="merge.align: none",
        ) from None
    signature = program.graph_signature
    entries = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    walk = _Walk({key: entry.removeprefix("model.") for key, entry in entries.items()}, rows)
    for node in program.graph.nodes:
        walk.take(node)
    return Symmetry(tuple(walk.groups()), program.module(), rows)


class _Logits(nn.Module):
    """A classifier whose answer is a tensor, whatever library it is of."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.model(images)
        return getattr(output, "logits", output)


class _Walk:
    """The axes of every tensor of a graph, as far as it has been walked."""

    def __init__(self, entries: Mapping[str, str], rows: int) -> None:
        self.entries = entries
        self.axes = dict[Node, Axes]()
        self.states = dict[str, Axes]()
        self.rows = rows

    def take(self, node: Node) -> None:
        """Give a node's output axes, tied to those of its inputs."""
        if node.op == "placeholder":
            self.axes[node] = self._placed(node)
        elif node.op == "output":
            for one in node.all_input_nodes:
                fix(self.axes.get(one, []))
        elif node.op == "call_function":
            shape, rule = shape_of(node), RULES.get(name_of(node.target))
            found = rule(self.of, node) if rule is not None and shape is not None else None
            is_known = found is not None and [axis.length for axis in found] == shape
            self.axes[node] = found if found is not None and is_known else self._unknown(node)
        else:
            self.axes[node] = fixed(shape_of(node) or [])

    def _placed(self, node: Node) -> Axes:
        shape, entry = shape_of(node) or [], self.entries.get(node.name)
        if entry is None:
            return fixed(shape)
        return self.states.setdefault(entry, [Axis.new(size) for size in shape])

    def of(self, argument: Any) -> Axes:
        """Return the axes of a node's argument; none of what is no tensor."""
        return self.axes[argument] if isinstance(argument, Node) else []

    def _unknown(self, node: Node) -> Axes:
        for one in node.all_input_nodes:
            fix(self.axes.get(one, []))
        return fixed(shape_of(node) or [])

    def groups(self) -> Iterator[Group]:
        """Yield the groups of two channels or more that may be permuted."""
        places: dict[ChannelGroup, list[Place]] = defaultdict(list)
        for entry, axes in self.states.items():
            for dim, start, run in _standing(axes):
                places[run.piece].append(Place(entry, dim, start, run.block))
        taps = self._taps()
        for piece, found in places.items():
            if not piece.is_fixed and piece.size > 1:
                yield Group(piece.size, tuple(found), tuple(taps[piece]))

    def _taps(self) -> dict[ChannelGroup, list[Place]]:
        """Return where each piece's activations are seen: after nonlinearities, else after sums,
        else anywhere."""
        seen: dict[ChannelGroup, dict[int, list[Place]]] = defaultdict(lambda: defaultdict(list))
        for node, axes in self.axes.items():
            rank = _RANKS.get(name_of(node.target)) if node.op == "call_function" else None
            # of pictures, not of weights
            if rank is not None and axes and axes[0].length == self.rows:
                for dim, start, run in _standing(axes):
                    seen[run.piece][rank].append(Place(node.name, dim, start, run.block))
        return defaultdict(list, {piece: ranks[min(ranks)] for piece, ranks in seen.items()})


def _standing(axes: Axes) -> Iterator[tuple[int, int, Span]]:
    for dim, axis in enumerate(axes):
        start = 0
        for run in axis.whole:
            yield dim, start, run
            start += run.length


_AFTER = (
    "celu",
    "elu",
    "gelu",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "mish",
    "prelu",
    "relu",
    "relu6",
    "selu",
    "silu",
    "tanh",
)
_ORDER = (_AFTER, ("add",), ("batch_norm", "layer_norm", "conv2d", "linear"))
_RANKS = {
    f"aten.{name}{end}": rank
    for rank, names in enumerate(_ORDER)
    for name in names
    for end in ("", "_")
}
