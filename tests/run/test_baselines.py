"""What a merge is shown against: the uniform soup, against numpy's own mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.recipe.baselines import BASELINES as SEARCHED
from mega_hf.recipe.baselines import SECOND_LOOK
from mega_hf.recipe.schema import RESERVED
from mega_hf.run.candidates import ALIGNED, UNIFORM
from mega_hf.search.crossover import average


def _parents(count, size, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    )


def _soup(parents):
    return average(list(parents), torch.empty(parents.shape[1]))


@given(st.integers(1, 8), st.integers(1, 200), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_the_uniform_soup_is_the_mean(count, size, seed):
    parents = _parents(count, size, seed)
    soup = _soup(parents)
    assert (soup.dtype, soup.shape) == (torch.float32, (size,))
    assert soup.numpy() == pytest.approx(parents.numpy().astype(np.float64).mean(axis=0), abs=2e-6)


def test_the_soup_of_two_is_exact():
    """Halving is exact in binary: here a mean has one rounding alone."""
    parents = _parents(2, 1000)
    assert torch.equal(_soup(parents), (parents[0] / 2 + parents[1] / 2))


def test_parents_are_not_written_to():
    parents = _parents(3, 50)
    before = parents.clone()
    _soup(parents).zero_()
    assert torch.equal(parents, before)


def test_the_soup_of_equal_parents_is_that_parent():
    """With 2 and 4 parents, whose weights are powers of two, to the last bit."""
    for count in (2, 4):
        parents = _parents(1, 100).repeat(count, 1)
        assert torch.equal(_soup(parents), parents[0])


def test_no_parent_may_bear_a_baselines_name():
    assert set(RESERVED) == {"merged", SECOND_LOOK, ALIGNED, UNIFORM, *SEARCHED}
