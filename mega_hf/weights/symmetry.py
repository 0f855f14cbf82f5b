"""Find the permutations of channels that do not change a model's output.

The graph of torch operations is walked once. Each dimension of each tensor is an `Axis`. An
operation ties axes that must be permuted in the same way (a convolution's input channels and
dimension 1 of its weight, the two sides of a residual addition), and fixes axes whose order
matters. `operations` has the rules.
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
from mega_hf.weights.operations import RULES, Axes, fix_all, fixed_axes, name_of, shape_of


@dataclass(frozen=True)
class Place:
    """The places of a group's channels in a tensor: `block` for each, from `start`."""

    entry: str  # of the state dict, or the name of a graph node
    dim: int
    start: int
    block: int


@dataclass(frozen=True)
class Group:
    """Channels that may be permuted, in all places at once."""

    size: int
    places: tuple[Place, ...]
    taps: tuple[Place, ...] = ()  # graph nodes that hold the activations of these channels


@dataclass(frozen=True)
class Symmetry:
    """A model's graph, and the groups of channels found in it.

    Attributes:
        groups: in the order of the graph.
        module: runs the graph; names in its state dict are the model's after `model.`.
        rows: the batch size of the graph.
    """

    groups: tuple[Group, ...]
    module: GraphModule
    rows: int


def find_symmetry(model: nn.Module, shape: tuple[int, ...], name: str, rows: int = 2) -> Symmetry:
    """Find the groups of channels of a model that may be permuted.

    Args:
        model: in evaluation mode, on any device; it is not changed.
        shape: of an image: (channels, height, width).
        name: of the model, for the error.
        rows: the batch size that the graph will run on.

    Raises:
        ParentError: the model can't be traced.
    """
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            program = torch.export.export(
                _Logits(model), (torch.zeros(rows, *shape, device=device),)
            )
    except Exception as error:  # from the model's own code
        raise ParentError(
            "cannot align the model: torch.export can't trace it",
            where=name,
            expected="a model that torch.export can trace",
            got=first_line(error)[:200],
            hint="set merge.align: none",
        ) from None
    signature = program.graph_signature
    entries = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    walk = _Walk({key: entry.removeprefix("model.") for key, entry in entries.items()}, rows)
    for node in program.graph.nodes:
        walk.visit(node)
    return Symmetry(tuple(walk.groups()), program.module(), rows)


class _Logits(nn.Module):
    """A classifier that returns logits as a tensor, for timm and transformers models."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.model(images)
        return getattr(output, "logits", output)


class _Walk:
    """The axes of all tensors of a graph, as far as its nodes have been visited."""

    def __init__(self, entries: Mapping[str, str], rows: int) -> None:
        self.entries = entries
        self.axes = dict[Node, Axes]()
        self.states = dict[str, Axes]()
        self.rows = rows

    def visit(self, node: Node) -> None:
        """Set the axes of a node's output, and tie or fix those of its inputs."""
        if node.op == "placeholder":
            self.axes[node] = self._placeholder(node)
        elif node.op == "output":
            self._fix_inputs(node)
        elif node.op == "call_function":
            shape, rule = shape_of(node), RULES.get(name_of(node.target))
            axes = rule(self.axes_of, node) if rule is not None and shape is not None else None
            if axes is None or [axis.length for axis in axes] != shape:
                self._fix_inputs(node)
                axes = fixed_axes(shape or [])
            self.axes[node] = axes
        else:
            self.axes[node] = fixed_axes(shape_of(node) or [])

    def _placeholder(self, node: Node) -> Axes:
        shape, entry = shape_of(node) or [], self.entries.get(node.name)
        if entry is None:
            return fixed_axes(shape)
        return self.states.setdefault(entry, [Axis.new(size) for size in shape])

    def axes_of(self, argument: Any) -> Axes:
        """Return the axes of a node's argument; an empty list where it is not a tensor."""
        return self.axes[argument] if isinstance(argument, Node) else []

    def _fix_inputs(self, node: Node) -> None:
        for source in node.all_input_nodes:
            fix_all(self.axes.get(source, []))

    def groups(self) -> Iterator[Group]:
        """Yield the groups of two or more channels that are not fixed."""
        places: dict[ChannelGroup, list[Place]] = defaultdict(list)
        for entry, axes in self.states.items():
            for dim, start, span in _locate(axes):
                places[span.group].append(Place(entry, dim, start, span.block))
        taps = self._taps()
        for group, found in places.items():
            if not group.is_fixed and group.size > 1:
                yield Group(group.size, tuple(found), tuple(taps[group]))

    def _taps(self) -> dict[ChannelGroup, list[Place]]:
        """Return the nodes that hold each group's activations.

        These are outputs of nonlinearities; where a group has none, those of additions; else those
        of normalizations, convolutions and linear layers.
        """
        found: dict[ChannelGroup, dict[int, list[Place]]] = defaultdict(lambda: defaultdict(list))
        for node, axes in self.axes.items():
            rank = _RANKS.get(name_of(node.target)) if node.op == "call_function" else None
            # The first dimension tells activations of a batch from weights.
            if rank is not None and axes and axes[0].length == self.rows:
                for dim, start, span in _locate(axes):
                    found[span.group][rank].append(Place(node.name, dim, start, span.block))
        return defaultdict(list, {group: ranks[min(ranks)] for group, ranks in found.items()})


def _locate(axes: Axes) -> Iterator[tuple[int, int, Span]]:
    """Yield (dimension, start, span) for each span of a tensor."""
    for dim, axis in enumerate(axes):
        start = 0
        for span in axis.resolved:
            yield dim, start, span
            start += span.length


_NONLINEARITIES = (
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
_TAPPED = (_NONLINEARITIES, ("add",), ("batch_norm", "layer_norm", "conv2d", "linear"))
_RANKS = {
    f"aten.{name}{end}": rank
    for rank, names in enumerate(_TAPPED)
    for name in names
    for end in ("", "_")
}
