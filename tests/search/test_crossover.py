"""Spacings, mixtures and blends, compared with numpy float32 rounded after each operation."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.runtime.seeds import named_stream
from mega_hf.search.crossover import blend, mix, spacings

SEEDS = st.integers(0, 10**6)


def _stream(seed):
    return named_stream(seed, "test", 1, 0, "founder")


def _vectors(seed, count, size):
    values = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return [torch.from_numpy(v.copy()) for v in values]


def mixed(vectors, weights):
    """Return Σ wᵢ vᵢ from the left, each product and each sum rounded to float32."""
    total = None
    for vector, weight in zip(vectors, weights, strict=True):
        product = (np.float32(weight) * vector.numpy()).astype(np.float32)
        total = product if total is None else (total + product).astype(np.float32)
    return total


def same_bits(a, b):
    return a.numpy().tobytes() == np.asarray(b, dtype=np.float32).tobytes()


@given(SEEDS, st.integers(2, 7))
@settings(max_examples=50, deadline=None)
def test_spacings_are_a_point_of_the_simplex(seed, parents):
    weights = spacings(_stream(seed), parents)
    assert len(weights) == parents
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1, abs=1e-12)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_spacings_of_two_parents_are_alpha_and_one_minus_alpha(seed):
    alpha = _stream(seed).random()
    assert spacings(_stream(seed), 2) == [alpha, 1 - alpha]


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_spacings_are_the_gaps_of_sorted_uniforms(seed):
    cuts = [0.0, *sorted(_stream(seed).random(3).tolist()), 1.0]
    assert spacings(_stream(seed), 4) == [b - a for a, b in pairwise(cuts)]


def test_spacings_are_uniform_on_the_simplex():
    """Mean 1 / M and variance (M - 1) / (M² (M + 1)), as of a flat Dirichlet distribution."""
    drawn = np.array([spacings(_stream(seed), 3) for seed in range(3000)])
    assert drawn.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.02)
    assert drawn.var(axis=0) == pytest.approx([2 / 36] * 3, abs=0.005)


@given(SEEDS, st.integers(1, 5), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_mix_rounds_after_every_operation(seed, count, size):
    vectors = _vectors(seed, count, size)
    weights = np.random.default_rng(seed + 1).random(count).tolist()
    out = torch.full((size,), torch.nan)
    assert mix(vectors, weights, out) is out
    assert same_bits(out, mixed(vectors, weights))


def test_mix_does_not_fuse_the_multiplication_with_the_addition():
    """Where one rounding and two give different bits, mix has the bits of two."""
    a, b = _vectors(7, 2, 4096)
    fused = (
        np.float32(0.3) * a.numpy().astype(np.float64)
        + np.float32(0.7) * b.numpy().astype(np.float64)
    ).astype(np.float32)
    assert (fused != mixed([a, b], [0.3, 0.7])).any()
    assert same_bits(mix([a, b], [0.3, 0.7], torch.empty(4096)), mixed([a, b], [0.3, 0.7]))


def test_mix_does_not_change_its_vectors():
    vectors = _vectors(1, 3, 50)
    before = [v.clone() for v in vectors]
    mix(vectors, [0.2, 0.3, 0.5], torch.empty(50))
    assert all(torch.equal(a, b) for a, b in zip(vectors, before, strict=True))


@given(SEEDS, st.floats(0, 1, exclude_max=True))
@settings(max_examples=50, deadline=None)
def test_blend_is_beta_a_plus_one_minus_beta_b(seed, beta):
    a, b = _vectors(seed, 2, 100)
    out = torch.empty(100)
    blend(a, b, beta, out)
    assert same_bits(out, mixed([a, b], [beta, 1 - beta]))


def test_blend_of_one_individual_is_a_copy():
    """After rounding, β a + (1 - β) a is not a, so equal mates are copied."""
    a = _vectors(5, 1, 1000)[0]
    out = torch.empty(1000)
    blend(a, a, 0.3, out)
    assert same_bits(out, a.numpy())
    assert not same_bits(out, mixed([a, a], [0.3, 0.7]))
    assert out.data_ptr() != a.data_ptr()
