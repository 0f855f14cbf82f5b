"""What each of torch's operations does to the axes of its tensors; one function for each kind of
operation.

Each returns the axes of the operation's output, or None where it is not known what becomes of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

from mega_hf.weights.axes import Axis, tie

Axes = list[Axis]
Of = Callable[[Any], Axes]  # the axes of a node's argument; none of what is no tensor


def name_of(target: Any) -> str:
    """Return an operation's name without its overload: `aten.conv2d`."""
    return (
        str(target).rpartition(".")[0] if isinstance(target, torch._ops.OpOverload) else str(target)
    )


def shape_of(node: Node) -> list[int] | None:
    """Return the sizes of an operation's output, or None where that is no tensor."""
    value = node.meta.get("val")
    return [int(size) for size in value.shape] if isinstance(value, torch.Tensor) else None


def argument(node: Node, place: int, default: Any = None) -> Any:
    """Return an operation's argument, or the default where it has fewer."""
    return node.args[place] if len(node.args) > place else default


def fixed(shape: Sequence[int]) -> Axes:
    """Return axes that must stay as they are, of these sizes."""
    return [Axis.new(size, is_fixed=True) for size in shape]


def fix(axes: Axes) -> None:
    """Let all of these stay as they are."""
    for axis in axes:
        axis.fix()


def _same(of: Of, node: Node) -> Axes | None:
    return list(of(node.args[0])) if len(node.all_input_nodes) == 1 else None


def _elementwise(of: Of, node: Node) -> Axes:
    """Of tensors that are broadcast: sizes that are equal are tied."""
    shape = shape_of(node) or []
    found: list[Axis | None] = [None] * len(shape)
    for argument in node.args[:2]:
        axes = of(argument)
        for i, axis in enumerate(axes, start=len(shape) - len(axes)):
            there = found[i]
            if axis.length != shape[i]:
                continue
            if there is None:
                found[i] = axis
            else:
                tie(there, axis)
    return [axis or Axis.new(size, is_fixed=True) for axis, size in zip(found, shape, strict=True)]


def _convolve(of: Of, node: Node) -> Axes | None:
    images, weight, bias, *_ = [of(one) for one in (*node.args[:3], None, None, None)]
    groups = argument(node, 6, 1)
    channels = images[1].length
    fix([*weight[2:], *images[2:]])
    if groups == 1:
        tie(images[1], weight[1])
    elif groups == channels == weight[0].length:
        tie(images[1], weight[0])
    else:  # channels may only move within their group, and groups only as a whole
        fix([images[1], *weight])
    _tie_vectors(weight[0], bias)
    return [images[0], weight[0], *fixed((shape_of(node) or [])[2:])]


def _linear(of: Of, node: Node) -> Axes:
    inputs, weight, bias, *_ = [of(one) for one in (*node.args[:3], None, None)]
    tie(inputs[-1], weight[1])
    _tie_vectors(weight[0], bias)
    return [*inputs[:-1], weight[0]]


def _batch_norm(of: Of, node: Node) -> Axes:
    images, *vectors = [of(one) for one in node.args[:5]]
    for vector in vectors:
        _tie_vectors(images[1], vector)
    return list(images)


def _layer_norm(of: Of, node: Node) -> Axes | None:
    inputs, shape, *vectors = node.args[:4]
    axes = of(inputs)
    if not isinstance(shape, Sequence) or len(shape) != 1:
        return None
    for vector in vectors:
        _tie_vectors(axes[-1], of(vector))
    return list(axes)


def _prelu(of: Of, node: Node) -> Axes:
    images, (slopes,) = (of(one) for one in node.args[:2])
    if slopes.length > 1:
        tie(images[1], slopes)
    return list(images)


def _tie_vectors(axis: Axis, vector: Axes) -> None:
    for other in vector:
        tie(axis, other)


def _pool(of: Of, node: Node) -> Axes:
    """Of operations that mix places of a picture and keep its channels apart."""
    fix(of(node.args[0])[2:])
    return [*of(node.args[0])[:2], *fixed((shape_of(node) or [])[2:])]


def _reduce(of: Of, node: Node) -> Axes | None:
    """A sum, mean or largest over dimensions does not depend on their order."""
    axes, dims = of(node.args[0]), argument(node, 1)
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, Sequence) or not dims:
        return None
    gone = {dim % len(axes) for dim in dims}
    kept = [axis for i, axis in enumerate(axes) if i not in gone]
    if len(shape_of(node) or []) == len(axes):
        return [Axis.new(1, is_fixed=True) if i in gone else axis for i, axis in enumerate(axes)]
    return kept


def _reshape(of: Of, node: Node) -> Axes | None:
    """Dimensions of one size stay; several that become one are one if all but the first can stay
    where they are."""
    before, after = list(of(node.args[0])), list(shape_of(node) or [])
    made: Axes = []
    while after:
        size, taken = after.pop(0), Axes()
        if size == 1 and not (before and before[0].length == 1):
            made.append(Axis.new(1, is_fixed=True))
            continue
        product = 1
        while before and product < size:
            taken.append(before.pop(0))
            product *= taken[-1].length
        if not taken and before:
            taken.append(before.pop(0))  # one of size 1
        parts = [size]
        while after and math.prod(parts) < product:
            parts.append(after.pop(0))
        if math.prod(parts) != product:
            fix([*taken, *before])
            return None
        made += _merged(taken) if len(parts) == 1 else _split(taken, parts)
    fix(before)
    return made


def _merged(taken: Axes) -> Axes:
    wide = [axis for axis in taken if axis.length > 1]
    if not wide:
        return [Axis.new(1, is_fixed=True)]
    first, *rest = wide
    fix(rest)  # else they would have to move within each of the first one's places
    return [first.repeat(math.prod(axis.length for axis in rest))]


def _split(taken: Axes, parts: list[int]) -> Axes:
    wide = [axis for axis in taken if axis.length > 1]
    if [axis.length for axis in wide] == [size for size in parts if size > 1]:
        left = iter(wide)
        return [next(left) if size > 1 else Axis.new(1, is_fixed=True) for size in parts]
    fix(taken)
    return fixed(parts)


def _permute(of: Of, node: Node) -> Axes | None:
    axes, order = of(node.args[0]), argument(node, 1)
    return [axes[dim] for dim in order] if isinstance(order, Sequence) else None


def _transpose(of: Of, node: Node) -> Axes:
    axes = list(of(node.args[0]))
    a, b = argument(node, 1, 0), argument(node, 2, 1)
    axes[a], axes[b] = axes[b], axes[a]
    return axes


def _concatenate(of: Of, node: Node) -> Axes | None:
    tensors, dim = node.args[0], argument(node, 1, 0)
    if not isinstance(tensors, Sequence) or not isinstance(dim, int):
        return None
    first, *others = [list(of(one)) for one in tensors]
    dim %= len(first)
    for axes in others:
        for i, axis in enumerate(axes):
            if i != dim:
                tie(first[i], axis)
    joined = Axis([run for axes in (first, *others) for run in axes[dim].runs])
    return [*first[:dim], joined, *first[dim + 1 :]]


def _cut_out(of: Of, node: Node) -> Axes | None:
    """Some places of a dimension: of one that is fixed, or all of it."""
    axes, shape = list(of(node.args[0])), shape_of(node) or []
    dim = argument(node, 1, 0)
    if not isinstance(dim, int):
        return None
    dim %= len(axes)
    if len(shape) < len(axes):  # select
        axes[dim].fix()
        return [*axes[:dim], *axes[dim + 1 :]]
    if shape[dim] != axes[dim].length:
        axes[dim].fix()
        axes[dim] = Axis.new(shape[dim], is_fixed=True)
    return axes


def _expand(of: Of, node: Node) -> Axes:
    axes, shape = of(node.args[0]), shape_of(node) or []
    padded = [Axis.new(1, is_fixed=True)] * (len(shape) - len(axes)) + list(axes)
    return [
        axis if axis.length == size else Axis.new(size, is_fixed=True)
        for axis, size in zip(padded, shape, strict=True)
    ]


def _pad(of: Of, node: Node) -> Axes:
    axes, shape = list(of(node.args[0])), shape_of(node) or []
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
_KINDS: dict[Callable[[Of, Node], Axes | None], tuple[str, ...]] = {
    _same: _UNARY,
    _elementwise: ("add", "sub", "mul", "div", "maximum", "minimum"),
    _pool: _POOLS,
    _reduce: ("mean", "sum", "amax", "linalg_vector_norm"),
    _reshape: ("view", "reshape", "flatten", "squeeze", "unsqueeze", "_unsafe_view"),
    _transpose: ("transpose", "t"),
    _permute: ("permute",),
    _concatenate: ("cat",),
    _expand: ("expand",),
    _cut_out: ("select", "slice"),
    _pad: ("pad", "constant_pad_nd"),
    _convolve: ("conv2d",),
    _linear: ("linear",),
    _batch_norm: ("batch_norm",),
    _layer_norm: ("layer_norm",),
    _prelu: ("prelu",),
}
# An operation whose name ends with an underscore does the same in place.
RULES = {
    f"aten.{name}{end}": rule
    for rule, names in _KINDS.items()
    for name in names
    for end in ("", "_")
}
