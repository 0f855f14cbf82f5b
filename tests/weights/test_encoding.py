"""Encodings: a genome is the weights, or the coefficients of a mixture."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mega_hf.weights.encoding import BOUNDS, Direct, Mixing, coefficients
from mega_hf.weights.space import build_space


def _model(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        model[1].running_var.uniform_(0.5, 2)
    return model


LEARNED = [name for name, _ in _model(0).named_parameters()]
STATES = [dict(_model(seed).state_dict()) for seed in (1, 2, 3)]


def _space(states):
    return build_space({str(i): state for i, state in enumerate(states)}, LEARNED, {})


def _mixing(granularity="tensor", states=STATES, contents=("a", "b", "c")):
    return Mixing(_space(states), states, granularity, contents)


def _direct(states=STATES):
    space = _space(states)
    return Direct(space, torch.stack([space.pack(state) for state in states]))


def _same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a
    )


@pytest.mark.parametrize("granularity", ["model", "layer", "tensor"])
def test_a_parents_genome_gives_the_parent_bit_for_bit(granularity):
    encoding = _mixing(granularity)
    for genome, state in zip(encoding.parents, STATES, strict=True):
        assert _same(dict(encoding.entries(genome)), state)


@pytest.mark.parametrize(
    ("granularity", "groups"), [("model", 1 + 1), ("layer", 3 + 1), ("tensor", 6 + 1)]
)
def test_groups_follow_the_granularity_and_statistics_form_one_more(granularity, groups):
    encoding = _mixing(granularity)
    assert encoding.parents.shape == (3, 3 * groups)
    assert encoding.bounds == tuple((3 * i, 3 * i + 3) for i in range(groups))
    assert encoding.learned == groups - 1


def test_one_group_of_coefficients_equals_mixing_whole_models():
    """Compared with the direct encoding of the same mixture."""
    mixing, direct = _mixing("model", STATES[:2]), _direct(STATES[:2])
    genome = 0.25 * mixing.parents[0] + 0.75 * mixing.parents[1]
    vector = 0.25 * direct.parents[0] + 0.75 * direct.parents[1]
    expected = dict(direct.entries(vector))
    for name, tensor in mixing.entries(genome):
        assert torch.allclose(tensor.float(), expected[name].float(), rtol=1e-6, atol=1e-7), name


def test_each_group_is_mixed_by_its_own_coefficients():
    encoding = _mixing("layer", STATES[:2])
    genome = encoding.parents[0].clone()
    start, stop = encoding.bounds[1]  # BatchNorm's weight and bias
    genome[start:stop] = torch.tensor([-0.5, 1.5])
    mixed = dict(encoding.entries(genome))
    a, b = STATES[:2]
    for name, tensor in mixed.items():
        expected = 1.5 * b[name] - 0.5 * a[name] if name in ("1.weight", "1.bias") else a[name]
        assert torch.allclose(tensor.float(), expected.float(), atol=1e-6), name


def test_mixed_tensors_have_the_parents_dtype_and_all_names():
    states = [
        {"w": torch.rand(4).bfloat16(), "again": torch.zeros(4).bfloat16(), "n": torch.tensor(i)}
        for i in (1, 2)
    ]
    space = build_space(
        {str(i): state for i, state in enumerate(states)}, ["w", "again"], {"again": "w"}
    )
    encoding = Mixing(space, states, "tensor", ["a", "b"])
    mixed = dict(encoding.entries(torch.tensor([0.5, 0.5])))
    assert mixed["w"].dtype == torch.bfloat16
    assert torch.equal(
        mixed["w"], ((states[0]["w"].float() + states[1]["w"].float()) / 2).bfloat16()
    )
    assert torch.equal(mixed["again"], mixed["w"]) and mixed["n"] == 1


def test_digests_differ_by_parents_granularity_and_genome():
    """Equal coefficients mean different weights in different merges of a tree."""
    genome = _mixing("tensor").parents[0]
    digests = {
        _mixing("tensor").digest(genome),
        _mixing("tensor", contents=("a", "b", "d")).digest(genome),
        _mixing("layer").digest(genome),
        _mixing("tensor").digest(2 * genome),
    }
    assert len(digests) == 4 and all(len(digest) == 32 for digest in digests)


def test_the_digest_of_weights_never_changes():
    """Journals contain it."""
    encoding = Direct(_space(STATES), torch.empty(0))
    assert encoding.digest(torch.tensor([1.0, -2.0])) == "ee4ac73c2bd27756ab82780f27c73a7b"


@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=6))
@settings(max_examples=500)
def test_coefficients_sum_to_one_within_their_bounds(genes):
    found = coefficients(np.array(genes, dtype=np.float32))
    assert sum(found) == pytest.approx(1, abs=1e-9)
    assert all(BOUNDS[0] - 1e-9 <= one <= BOUNDS[1] + 1e-9 for one in found)


def test_coefficients_that_sum_to_one_are_not_changed():
    assert coefficients(np.array([0.25, 0.75, 0.0], dtype=np.float32)) == [0.25, 0.75, 0.0]


def test_noise_on_one_coefficient_shifts_all_equally():
    assert coefficients(np.array([1.375, 0.0, 0.0], dtype=np.float32)) == pytest.approx(
        [1.25, -0.125, -0.125]
    )


def test_coefficients_outside_the_bounds_are_scaled_towards_equal_ones():
    assert coefficients(np.array([3.0, -2.0], dtype=np.float32)) == pytest.approx([1.5, -0.5])
