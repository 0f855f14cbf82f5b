"""Matching restores a shuffled model, by weights and by activations."""

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.weights.axes import Axis, tie
from mega_hf.weights.matching import activation_matching, check_orders, permute, weight_matching
from mega_hf.weights.symmetry import Group, Place, find_symmetry
from tests.weights.permuted import shuffle, stir

KINDS = {"cifar_resnet20": (3, 16, 16), "test_efficientnet": (3, 32, 32), "test_vit": (3, 160, 160)}


@pytest.fixture(scope="module", params=KINDS)
def traced(request):
    torch.manual_seed(0)
    model = stir(timm.create_model(request.param, num_classes=5))
    return model, find_symmetry(model, KINDS[request.param], request.param, rows=8)


def _learned(model):
    return [name for name, _ in model.named_parameters()]


def test_weight_matching_restores_a_shuffled_model(traced):
    model, symmetry = traced
    state = model.state_dict()
    moved, _ = shuffle(state, symmetry.groups, seed=1)
    orders = weight_matching(symmetry.groups, state, moved, _learned(model), seed=46)
    back = permute(moved, symmetry.groups, orders)
    close = np.mean([torch.equal(back[name], state[name]) for name in state])
    assert close == 1.0, "every channel of a shuffled copy is found"
    assert any(not torch.equal(moved[name], state[name]) for name in state)


def test_activation_matching_restores_a_shuffled_model(traced):
    """Except for constant channels, which are interchangeable."""
    model, symmetry = traced
    state = model.state_dict()
    moved, shuffled = shuffle(state, symmetry.groups, seed=2)
    images = torch.randn(32, *_shape(symmetry), generator=torch.Generator().manual_seed(3))
    orders = activation_matching(symmetry, state, moved, images)
    back = [
        (before[order] == np.arange(len(order)))
        for before, order in zip(shuffled, orders, strict=True)
    ]
    assert np.concatenate(back).mean() > 0.8
    assert sum(one.all() for one in back) >= len(back) / 2


def _shape(symmetry):
    node = next(node for node in symmetry.module.graph.nodes if node.name == "images")
    return node.meta["val"].shape[1:]


def test_weight_matching_never_increases_the_distance(traced):
    model, symmetry = traced
    other = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draw = torch.Generator().manual_seed(5)
    for name in _learned(model):
        other[name] += torch.randn(other[name].shape, generator=draw) * other[name].abs().mean()
    orders = weight_matching(symmetry.groups, model.state_dict(), other, _learned(model), seed=1)
    back = permute(other, symmetry.groups, orders)

    def inner(state):
        return sum(
            float((state[name].double() * model.state_dict()[name].double()).sum())
            for name in _learned(model)
        )

    assert inner(back) >= inner(other) - 1e-6


def test_constant_channels_can_be_matched(traced):
    model, symmetry = traced
    silent = {
        name: tensor * 0 if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    node = next(node for node in symmetry.module.graph.nodes if node.name == "images")
    images = torch.zeros(8, *node.meta["val"].shape[1:])
    orders = activation_matching(symmetry, silent, silent, images)
    check_orders(symmetry.groups, orders, silent)


# --- Axes


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_tied_axes_are_split_in_the_same_places(left, right):
    total = max(sum(left), sum(right))
    sides = [
        [*sizes, total - sum(sizes)] if sum(sizes) < total else sizes for sizes in (left, right)
    ]
    a, b = (Axis([span for size in sizes for span in Axis.new(size).spans]) for sizes in sides)
    tie(a, b)
    assert [span.group for span in a.resolved] == [span.group for span in b.resolved]
    cuts = [set(np.cumsum(sizes).tolist()) for sizes in sides]
    assert set(np.cumsum([span.length for span in a.resolved]).tolist()) == cuts[0] | cuts[1]
    assert not a.is_fixed


def test_an_axis_tied_to_a_fixed_one_is_fixed_everywhere():
    a, b, fixed = Axis.new(6), Axis.new(6), Axis.new(2, is_fixed=True)
    tie(a, b)
    tie(b, Axis([*fixed.spans, *Axis.new(4).spans]))
    assert [span.group.is_fixed for span in a.resolved] == [True, False]


def test_blocks_move_as_a_whole():
    channels, places = Axis.new(3), Axis.new(12)
    tie(channels.repeat(4), places)
    (span,) = places.resolved
    assert span.block == 4 and span.group is channels.resolved[0].group
    tie(Axis.new(2).repeat(6), places)  # 6 is no multiple of 4
    assert places.is_fixed and channels.is_fixed


WRONG = {
    "no permutation": ([0, 0], ("w", 0, 0, 1)),
    "no such dimension": ([1, 0], ("w", 2, 0, 1)),
    "no such entry": ([1, 0], ("v", 0, 0, 1)),
    "beyond the end": ([1, 0], ("w", 0, 2, 1)),
    "too large blocks": ([1, 0], ("w", 0, 0, 2)),
    "of no places": ([1, 0], ("w", 0, 0, 0)),
}


@pytest.mark.parametrize(("order", "place"), WRONG.values(), ids=WRONG)
def test_invalid_orders_are_an_error(order, place):
    with pytest.raises(ValueError):
        check_orders([Group(2, (Place(*place),))], [np.array(order)], {"w": torch.zeros(3, 4)})
