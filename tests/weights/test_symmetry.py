"""Permuted models compute the same: timm's families, transformers, and misleading nets."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

import mega_hf.models.cifar_resnet
from mega_hf.errors import ParentError
from mega_hf.weights.symmetry import find_symmetry
from tests.tools import tiny
from tests.weights.permuted import Net, answer, shuffle, stir

assert mega_hf.models.cifar_resnet.default_cfgs, "imported to register its names with timm"

# Architecture -> image side, least number of groups, least share of tensors that move.
FAMILIES = {
    "cifar_resnet20": (32, 12, 0.8),
    "resnet18": (64, 12, 0.8),
    "resnet50": (64, 37, 0.8),
    "densenet121": (64, 120, 0.8),
    "mobilenetv3_small_050": (64, 26, 0.7),
    "convnext_atto": (64, 16, 0.8),
    "vit_tiny_patch16_224": (224, 13, 0.5),
    "test_efficientnet": (64, 5, 0.5),
    "test_byobnet": (64, 5, 0.3),
    "regnety_002": (64, 10, 0.3),
    "resnext50_32x4d": (64, 5, 0.2),
    "resnetv2_50": (64, 30, 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_permuted_model_computes_the_same(name):
    side, groups, share = FAMILIES[name]
    model, shape = stir(timm.create_model(name, num_classes=10)), (3, side, side)
    state = {entry: tensor.clone() for entry, tensor in model.state_dict().items()}
    found = find_symmetry(model, shape, name).groups
    assert len(found) >= groups
    moved, _ = shuffle(state, found)
    floats = [entry for entry, tensor in state.items() if tensor.is_floating_point()]
    assert sum(not torch.equal(moved[entry], state[entry]) for entry in floats) >= share * len(
        floats
    )
    before, after = answer(model, state, shape), answer(model, moved, shape)
    assert (before - after).abs().max() <= 1e-4 * before.abs().max().clamp_min(1)
    assert before.std() > 1e-3, "an answer that is always the same says nothing"


@pytest.mark.parametrize("kind", ["resnet", "vit", "convnext", "swin"])
def test_a_permuted_transformers_model_computes_the_same(kind):
    model = stir(tiny.transformers_model(kind))
    state = {entry: tensor.clone() for entry, tensor in model.state_dict().items()}
    groups = find_symmetry(model, (3, 8, 8), kind).groups
    assert groups
    before = answer(model, state, (3, 8, 8))
    after = answer(model, shuffle(state, groups)[0], (3, 8, 8))
    assert torch.allclose(before, after, atol=1e-4)


def _conv(a, b, **more):
    return nn.Conv2d(a, b, 3, padding=1, **more)


def _head(layers, images):
    return layers["head"](images.mean((2, 3)))


NETS = {  # name -> net, and how many channels of groups can move
    "grouped": (
        lambda: Net(
            lambda m, x: _head(m, m["c"](m["b"](m["a"](x)).relu())),
            a=_conv(3, 8),
            b=_conv(8, 8, groups=2),
            c=_conv(8, 6),
            head=nn.Linear(6, 3),
        ),
        6,
    ),
    "depthwise": (
        lambda: Net(
            lambda m, x: _head(m, m["b"](m["a"](x)).relu()),
            a=_conv(3, 8),
            b=_conv(8, 8, groups=8),
            head=nn.Linear(8, 3),
        ),
        8,
    ),
    "flattened": (
        lambda: Net(
            lambda m, x: m["head"](m["a"](x).relu().flatten(1)),
            a=_conv(3, 8),
            head=nn.Linear(8 * 64, 3),
        ),
        8,
    ),
    "joined": (
        lambda: Net(
            lambda m, x: _head(m, torch.cat([m["a"](x), m["b"](x)], 1).relu() + m["c"](x)),
            a=_conv(3, 4),
            b=_conv(3, 5),
            c=_conv(3, 9),
            head=nn.Linear(9, 3),
        ),
        9,
    ),
    "halves": (  # the second half gates the first: neither half's order is free by these rules
        lambda: Net(
            lambda m, x: _head(m, functional.glu(m["a"](x), dim=1)),
            a=_conv(3, 8),
            head=nn.Linear(4, 3),
        ),
        0,
    ),
    "one weight twice": (
        lambda: Net(
            lambda m, x: _head(m, m["b"](m["b"](m["a"](x)).relu()).relu()),
            a=_conv(3, 8),
            b=_conv(8, 8),
            head=nn.Linear(8, 3),
        ),
        8,
    ),
    "places as channels": (  # a row of the image becomes a channel
        lambda: Net(
            lambda m, x: _head(m, m["b"](m["a"](x).transpose(1, 2)).relu()),
            a=_conv(3, 8),
            b=_conv(8, 6),
            head=nn.Linear(6, 3),
        ),
        6,
    ),
    "shuffled": (
        lambda: Net(
            lambda m, x: _head(m, m["b"](nn.functional.channel_shuffle(m["a"](x), 2)).relu()),
            a=_conv(3, 8),
            b=_conv(8, 6),
            head=nn.Linear(6, 3),
        ),
        6,
    ),
    "weighed by channel": (
        lambda: Net(
            lambda m, x: _head(
                m, m["a"](x) * m["b"](m["a"](x).mean((2, 3))).sigmoid()[:, :, None, None]
            ),
            a=_conv(3, 8),
            b=nn.Linear(8, 8),
            head=nn.Linear(8, 3),
        ),
        8,
    ),
    "sorted": (
        lambda: Net(
            lambda m, x: _head(m, m["a"](x).sort(dim=1).values), a=_conv(3, 8), head=nn.Linear(8, 3)
        ),
        0,
    ),
    "powers": (
        lambda: Net(
            lambda m, x: _head(m, m["a"](x).abs() ** m["b"](x).abs()),
            a=_conv(3, 8),
            b=_conv(3, 8),
            head=nn.Linear(8, 3),
        ),
        0,
    ),
    "group norm": (
        lambda: Net(
            lambda m, x: _head(m, m["n"](m["a"](x)).relu()),
            a=_conv(3, 8),
            n=nn.GroupNorm(2, 8),
            head=nn.Linear(8, 3),
        ),
        0,
    ),
}


@pytest.mark.parametrize("kind", NETS)
def test_permutations_of_misleading_nets(kind):
    make, channels = NETS[kind]
    torch.manual_seed(0)
    model = stir(make())
    state = {entry: tensor.clone() for entry, tensor in model.state_dict().items()}
    groups = find_symmetry(model, (3, 8, 8), kind).groups
    assert sum(group.size for group in groups) == channels
    for seed in range(3):
        before = answer(model, state, (3, 8, 8))
        after = answer(model, shuffle(state, groups, seed)[0], (3, 8, 8))
        assert torch.allclose(before, after, rtol=1e-4, atol=1e-4)


def test_a_model_that_cannot_be_traced_is_an_error_that_names_it():
    model = Net(
        lambda m, x: m["head"](x.flatten(1)) if x.sum() > 0 else x.flatten(1)[:, :3],
        head=nn.Linear(192, 3),
    )
    with pytest.raises(ParentError, match=r"^odd: cannot align the model[\s\S]*merge.align: none"):
        find_symmetry(model.eval(), (3, 8, 8), "odd")
