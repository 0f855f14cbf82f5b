"""Gaussian mutation: rate, scope, scale and random draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.runtime.seeds import named_stream
from mega_hf.search.mutation import Gaussian, mutate, spread
from mega_hf.search.population import Genes

# Three learned tensors, the second of one element, and one tensor of BatchNorm statistics.
GENES = Genes(
    bounds=((0, 40), (40, 41), (41, 60), (60, 70)), learned=3, scales=(2.0, 0.5, 1.0, 3.0)
)
BIG = Genes(bounds=((0, 100_000),), learned=1, scales=(1.0,))


def _stream(seed=0):
    return named_stream(seed, "test", 2, 1, "mutation")


def noise(genes, settings, seed=0):
    """Return the noise that is added to a genome of zeros."""
    genome = torch.zeros(genes.bounds[-1][1])
    mutate(genome, genes, settings, _stream(seed))
    return genome.numpy()


@pytest.mark.parametrize("scope", ["element", "tensor"])
def test_rate_zero_changes_nothing(scope):
    genome = torch.randn(70, generator=torch.Generator().manual_seed(1))
    before = genome.clone()
    mutate(genome, GENES, Gaussian(0.0, 1.0, scope, statistics=True), _stream())
    assert torch.equal(genome, before)


@pytest.mark.parametrize("scope", ["element", "tensor"])
def test_rate_one_changes_every_gene_and_no_statistics(scope):
    added = noise(GENES, Gaussian(1.0, 0.1, scope))
    assert (added[:60] != 0).all()
    assert (added[60:] == 0).all()


@pytest.mark.parametrize("scope", ["element", "tensor"])
def test_statistics_are_mutated_on_request(scope):
    assert (noise(GENES, Gaussian(1.0, 0.1, scope, statistics=True)) != 0).all()


def test_std_zero_changes_nothing():
    assert (noise(GENES, Gaussian(1.0, 0.0)) == 0).all()


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_observed_rate_mean_and_std_are_those_of_the_settings(rate):
    added = noise(BIG, Gaussian(rate, 0.05, relative=False))
    hit = added[added != 0]
    assert len(hit) == pytest.approx(100_000 * rate, abs=5 * np.sqrt(100_000 * rate * (1 - rate)))
    assert hit.std() == pytest.approx(0.05, rel=5 / np.sqrt(2 * len(hit)))
    assert hit.mean() == pytest.approx(0, abs=5 * 0.05 / np.sqrt(len(hit)))


@given(st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_scope_tensor_is_all_or_nothing(seed):
    added = noise(GENES, Gaussian(0.5, 0.1, "tensor", statistics=True), seed)
    for start, stop in GENES.bounds:
        assert len(set((added[start:stop] != 0).tolist())) == 1


def test_scope_tensor_hits_tensors_at_the_rate():
    rate, tensors = 0.25, 4000
    genes = Genes(tuple((2 * i, 2 * i + 2) for i in range(tensors)), tensors, (1.0,) * tensors)
    hit = noise(genes, Gaussian(rate, 0.1, "tensor")).reshape(-1, 2).any(axis=1).mean()
    assert hit == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / tensors))


def test_relative_noise_is_in_units_of_each_tensor():
    absolute = noise(GENES, Gaussian(1.0, 0.1, relative=False, statistics=True))
    relative = noise(GENES, Gaussian(1.0, 0.1, relative=True, statistics=True))
    for (start, stop), scale in zip(GENES.bounds, GENES.scales, strict=True):
        assert relative[start:stop] == pytest.approx(absolute[start:stop] * scale, rel=1e-6)


@pytest.mark.parametrize("scope", ["element", "tensor"])
def test_draws_are_uniforms_then_normals_tensor_by_tensor(scope):
    stream, expected = _stream(), np.zeros(70, dtype=np.float32)
    for (start, stop), scale in list(zip(GENES.bounds, GENES.scales, strict=True))[:3]:
        if scope == "tensor":
            hit = [stream.random() < 0.5] * (stop - start)
        else:
            hit = [u < 0.5 for u in stream.random(stop - start)]
        for offset in np.flatnonzero(hit):
            expected[start + offset] += np.float32(stream.standard_normal() * (0.3 * scale))
    assert noise(GENES, Gaussian(0.5, 0.3, scope)).tobytes() == expected.tobytes()


def test_noise_is_added_to_the_genome():
    genome = torch.arange(70, dtype=torch.float32)
    mutate(genome, GENES, Gaussian(1.0, 0.1), _stream())
    expected = np.arange(70, dtype=np.float32) + noise(GENES, Gaussian(1.0, 0.1))
    assert genome.numpy().tobytes() == expected.tobytes()


def test_one_row_of_a_population_is_mutated_in_place():
    genomes = torch.zeros(3, 70)
    mutate(genomes[1], GENES, Gaussian(1.0, 0.1), _stream())
    assert (genomes[1, :60] != 0).all()
    assert (genomes[[0, 2]] == 0).all()


@pytest.mark.parametrize("scope", ["element", "tensor"])
def test_all_of_a_tensor_larger_than_a_block_is_mutated(scope):
    size = (1 << 20) + 3
    added = noise(Genes(((0, size),), 1, (1.0,)), Gaussian(1.0, 0.1, scope))
    assert (added != 0).mean() > 0.9999
    assert (added[-3:] != 0).all()


def test_scope_tensor_draws_once_for_a_tensor_larger_than_a_block():
    size = (1 << 20) + 3
    genes = Genes(((0, size),), 1, (1.0,))
    hit = {
        seed: noise(genes, Gaussian(0.5, 0.1, "tensor"), seed)[[0, -1]] != 0 for seed in range(8)
    }
    assert {tuple(h.tolist()) for h in hit.values()} == {(True, True), (False, False)}


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=2, max_size=200), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_spread_is_the_mean_of_the_standard_deviations(values, parents):
    tensors = [np.array(values, dtype=np.float32) * (i + 1) for i in range(parents)]
    expected = np.mean([np.std(t.astype(np.float64)) for t in tensors])
    assert spread(tensors) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_spread_ignores_the_shape():
    tensor = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    assert spread([tensor]) == spread([tensor.reshape(-1)])


def test_spread_of_one_element_is_its_absolute_value():
    assert spread([np.array([-3.0], dtype=np.float32), np.array([1.0], dtype=np.float32)]) == 2.0


def test_spread_sums_in_float64():
    tensor = np.array([16_777_216.0, 16_777_218.0] * 500, dtype=np.float32)
    assert spread([tensor]) == pytest.approx(1.0, rel=1e-12)
