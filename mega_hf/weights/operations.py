"""How each torch operation maps the axes of its inputs to those of its output.

A graph is read to find permutations of channels that leave its output as it is:

- Every dimension of every tensor is an `Axis`, which holds groups of channels.
- An operation *ties* two axes whose channels must be permuted in the same way, such as the input
  channels of a convolution and dimension 1 of its weight.
- An operation *fixes* an axis whose order matters, such as the height of a convolution's input.
- The axes of the output are axes of the inputs, or new ones.

Example: for `conv2(relu(conv1(x)))` with a `conv1.weight` of [8, 3, 3, 3], the output of `conv1`
gets dimension 0 of that weight as its channel axis. `relu` passes the axis on, and `conv2` ties it
to dimension 1 of `conv2.weight`. Nothing fixes it, so its group of 8 channels may be permuted, in
dimension 0 of `conv1.weight` and `conv1.bias` and in dimension 1 of `conv2.weight` at once.

There is one function (a rule) for each kind of operation. A rule returns the axes of the output,
or None where they are not known; the caller then fixes all axes of the inputs. So an unknown
operation costs permutations, never correctness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from mega_hf.weights.axes import Axis, tie

Axes = list[Axis]
# a node's argument -> its axes; an empty list for an argument that is not a tensor
AxesOf = Callable[[Any], Axes]


def name_of(target: Any) -> str:
    """Return the name of an operation without its overload, such as `aten.conv2d`."""
    name = str(target)
    return name.rpartition(".")[0] if isinstance(target, torch._ops.OpOverload) else name


def shape_of(node: Node) -> list[int] | None:
    """Return the shape of an operation's output, or None where that is not a tensor."""
    value = node.meta.get("val")
    return [int(size) for size in value.shape] if isinstance(value, torch.Tensor) else None


def argument(node: Node, place: int, default: Any = None) -> Any:
    """Return a positional argument, or the default where it is omitted."""
    return node.args[place] if len(node.args) > place else default


def fixed_axes(shape: Sequence[int]) -> Axes:
    """Return new axes of these sizes that must keep their order."""
    return [Axis.new(size, is_fixed=True) for size in shape]


def fix_all(axes: Axes) -> None:
    """Let all of these axes keep their order."""
    for axis in axes:
        axis.fix()


def _unary(axes_of: AxesOf, node: Node) -> Axes | None:
    return list(axes_of(node.args[0])) if len(node.all_input_nodes) == 1 else None


def _elementwise(axes_of: AxesOf, node: Node) -> Axes:
    """Tie the axes of broadcast tensors that have the full size."""
    shape = shape_of(node) or []
    found: list[Axis | None] = [None] * len(shape)
    for argument in node.args[:2]:
        axes = axes_of(argument)
        for i, axis in enumerate(axes, start=len(shape) - len(axes)):
            existing = found[i]
            if axis.length != shape[i]:
                continue
            if existing is None:
                found[i] = axis
            else:
                tie(existing, axis)
    return [axis or Axis.new(size, is_fixed=True) for axis, size in zip(found, shape, strict=True)]


def _convolve(axes_of: AxesOf, node: Node) -> Axes | None:
    images, weight, bias, *_ = [axes_of(one) for one in (*node.args[:3], None, None, None)]
    groups = argument(node, 6, 1)
    channels = images[1].length
    fix_all([*weight[2:], *images[2:]])
    if groups == 1:
        tie(images[1], weight[1])
    elif groups == channels == weight[0].length:
        tie(images[1], weight[0])
    else:  # channels could only move within a group, and groups only as a whole
        fix_all([images[1], *weight])
    _tie_vector(weight[0], bias)
    return [images[0], weight[0], *fixed_axes((shape_of(node) or [])[2:])]


def _linear(axes_of: AxesOf, node: Node) -> Axes:
    inputs, weight, bias, *_ = [axes_of(one) for one in (*node.args[:3], None, None)]
    tie(inputs[-1], weight[1])
    _tie_vector(weight[0], bias)
    return [*inputs[:-1], weight[0]]


def _batch_norm(axes_of: AxesOf, node: Node) -> Axes:
    images, *vectors = [axes_of(one) for one in node.args[:5]]
    for vector in vectors:
        _tie_vector(images[1], vector)
    return list(images)


def _layer_norm(axes_of: AxesOf, node: Node) -> Axes | None:
    inputs, shape, *vectors = node.args[:4]
    axes = axes_of(inputs)
    if not isinstance(shape, Sequence) or len(shape) != 1:
        return None
    for vector in vectors:
        _tie_vector(axes[-1], axes_of(vector))
    return list(axes)


def _prelu(axes_of: AxesOf, node: Node) -> Axes:
    images, (slopes,) = (axes_of(one) for one in node.args[:2])
    if slopes.length > 1:
        tie(images[1], slopes)
    return list(images)


def _tie_vector(axis: Axis, vector: Axes) -> None:
    for other in vector:
        tie(axis, other)


def _pool(axes_of: AxesOf, node: Node) -> Axes:
    """Fix the spatial axes of operations that work on each channel by itself."""
    fix_all(axes_of(node.args[0])[2:])
    return [*axes_of(node.args[0])[:2], *fixed_axes((shape_of(node) or [])[2:])]


def _reduce(axes_of: AxesOf, node: Node) -> Axes | None:
    """Drop the reduced axes: a sum, mean or maximum does not depend on their order."""
    axes, dims = axes_of(node.args[0]), argument(node, 1)
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, Sequence) or not dims:
        return None
    reduced = {dim % len(axes) for dim in dims}
    kept = [axis for i, axis in enumerate(axes) if i not in reduced]
    if len(shape_of(node) or []) == len(axes):
        return [Axis.new(1, is_fixed=True) if i in reduced else axis for i, axis in enumerate(axes)]
    return kept


def _reshape(axes_of: AxesOf, node: Node) -> Axes | None:
    """Map axes from the old shape to the new one.

    A dimension that keeps its size keeps its axis. Dimensions that become one get the first one's
    axis with blocks, and the others are fixed. A dimension that is split is fixed.
    """
    before, after = list(axes_of(node.args[0])), list(shape_of(node) or [])
    found: Axes = []
    while after:
        size, taken = after.pop(0), Axes()
        if size == 1 and not (before and before[0].length == 1):
            found.append(Axis.new(1, is_fixed=True))
            continue
        product = 1
        while before and product < size:
            taken.append(before.pop(0))
            product *= taken[-1].length
        if not taken and before:
            taken.append(before.pop(0))  # of size 1
        parts = [size]
        while after and math.prod(parts) < product:
            parts.append(after.pop(0))
        if math.prod(parts) != product:
            fix_all([*taken, *before])
            return None
        found += _join(taken) if len(parts) == 1 else _split(taken, parts)
    fix_all(before)
    return found


def _join(taken: Axes) -> Axes:
    wide = [axis for axis in taken if axis.length > 1]
    if not wide:
        return [Axis.new(1, is_fixed=True)]
    first, *rest = wide
    fix_all(rest)  # they could only move within each channel of the first one
    return [first.repeat(math.prod(axis.length for axis in rest))]


def _split(taken: Axes, parts: list[int]) -> Axes:
    wide = [axis for axis in taken if axis.length > 1]
    if [axis.length for axis in wide] == [size for size in parts if size > 1]:
        remaining = iter(wide)
        return [next(remaining) if size > 1 else Axis.new(1, is_fixed=True) for size in parts]
    fix_all(taken)
    return fixed_axes(parts)


def _permute(axes_of: AxesOf, node: Node) -> Axes | None:
    axes, order = axes_of(node.args[0]), argument(node, 1)
    return [axes[dim] for dim in order] if isinstance(order, Sequence) else None


def _transpose(axes_of: AxesOf, node: Node) -> Axes:
    axes = list(axes_of(node.args[0]))
    a, b = argument(node, 1, 0), argument(node, 2, 1)
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def _concatenate(axes_of: AxesOf, node: Node) -> Axes | None:
    tensors, dim = node.args[0], argument(node, 1, 0)
    if not isinstance(tensors, Sequence) or not isinstance(dim, int):
        return None
    first, *others = [list(axes_of(one)) for one in tensors]
    dim %= len(first)
    for axes in others:
        for i, axis in enumerate(axes):
            if i != dim:
                tie(first[i], axis)
    concatenated = Axis([span for axes in (first, *others) for span in axes[dim].spans])
    return [*first[:dim], concatenated, *first[dim + 1 :]]


def _slice(axes_of: AxesOf, node: Node) -> Axes | None:
    """Fix an axis of which some places are taken, unless all are."""
    axes, shape = list(axes_of(node.args[0])), shape_of(node) or []
    dim = argument(node, 1, 0)
    if not isinstance(dim, int):
        return None
    dim %= len(axes)
    if len(shape) < len(axes):  # select: one place, and no dimension is left
        axes[dim].fix()
        return [*axes[:dim], *axes[dim + 1 :]]
    if shape[dim] != axes[dim].length:
        axes[dim].fix()
        axes[dim] = Axis.new(shape[dim], is_fixed=True)
    return axes


def _expand(axes_of: AxesOf, node: Node) -> Axes:
    axes, shape = axes_of(node.args[0]), shape_of(node) or []
    padded = [Axis.new(1, is_fixed=True)] * (len(shape) - len(axes)) + list(axes)
    return [
        axis if axis.length == size else Axis.new(size, is_fixed=True)
        for axis, size in zip(padded, shape, strict=True)
    ]


def _pad(axes_of: AxesOf, node: Node) -> Axes:
    axes, shape = list(axes_of(node.args[0])), shape_of(node) or []
    for i, size in enumerate(shape):
        if axes[i].length != size:
            axes[i].fix()
            axes[i] = Axis.new(size, is_fixed=True)
    return axes


_UNARY = (
    "abs",
    "alias",
    "celu",
    "clamp",
    "clamp_min",
    "clone",
    "contiguous",
    "detach",
    "dropout",
    "elu",
    "exp",
    "feature_dropout",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "identity",
    "leaky_relu",
    "log_softmax",
    "mish",
    "neg",
    "pow",
    "relu",
    "relu6",
    "rsqrt",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "sqrt",
    "square",
    "tanh",
    "to",
    "_to_copy",
)
_POOLS = (
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "max_pool2d",
    "upsample_bicubic2d",
    "upsample_bilinear2d",
    "upsample_nearest2d",
)
_KINDS: dict[Callable[[AxesOf, Node], Axes | None], tuple[str, ...]] = {
    _unary: _UNARY,
    _elementwise: ("add", "sub", "mul", "div", "maximum", "minimum"),
    _pool: _POOLS,
    _reduce: ("mean", "sum", "amax", "linalg_vector_norm"),
    _reshape: ("view", "reshape", "flatten", "squeeze", "unsqueeze", "_unsafe_view"),
    _transpose: ("transpose", "t"),
    _permute: ("permute",),
    _concatenate: ("cat",),
    _expand: ("expand",),
    _slice: ("select", "slice"),
    _pad: ("pad", "constant_pad_nd"),
    _convolve: ("conv2d",),
    _linear: ("linear",),
    _batch_norm: ("batch_norm",),
    _layer_norm: ("layer_norm",),
    _prelu: ("prelu",),
}
# aten.NAME and its in-place variant aten.NAME_ -> rule
RULES = {
    f"aten.{name}{end}": rule
    for rule, names in _KINDS.items()
    for name in names
    for end in ("", "_")
}
