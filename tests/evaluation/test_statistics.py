"""Wilson's interval and McNemar's test, compared with their formulas."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.evaluation.statistics import Paired, bootstrap_interval, mcnemar, wilson_interval

COUNTS = st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def _wilson(correct, n, confidence):
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def _binomial(b, c):
    """Twice the smaller tail of Binomial(b + c, 1/2), at most 1."""
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2 ** (b + c))


def _vectors(both, only_merged, only_other, neither):
    merged = [True] * both + [True] * only_merged + [False] * only_other + [False] * neither
    other = [True] * both + [False] * only_merged + [True] * only_other + [False] * neither
    return np.array(merged, dtype=bool), np.array(other, dtype=bool)


@given(COUNTS, st.sampled_from([0.9, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_wilson_is_its_formula(counts, confidence):
    assert wilson_interval(*counts, confidence) == pytest.approx(
        _wilson(*counts, confidence), abs=1e-9
    )


@given(COUNTS)
@settings(max_examples=40, deadline=None)
def test_wilson_contains_the_accuracy_and_stays_in_range(counts):
    low, high = wilson_interval(*counts)
    assert 0 <= low <= counts[0] / counts[1] + 1e-12
    assert counts[0] / counts[1] - 1e-12 <= high <= 1


def test_wilson_of_a_textbook_example():
    """81 of 263 (Newcombe, 1998): 0.2553 to 0.3662."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@given(st.integers(1, 40), *[st.integers(0, 40)] * 3)
@settings(max_examples=80, deadline=None)
def test_mcnemar_is_the_binomial_tail_of_the_differing_rows(both, only_merged, only_other, neither):
    paired = mcnemar("a", *_vectors(both, only_merged, only_other, neither))
    assert (paired.against, paired.only_merged_right, paired.only_other_right) == (
        "a",
        only_merged,
        only_other,
    )
    assert paired.p == pytest.approx(_binomial(only_merged, only_other), rel=1e-9)


@pytest.mark.parametrize(
    ("b", "c", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (1, 9, 22 / 1024)]
)
def test_mcnemar_of_known_counts(b, c, p):
    paired = mcnemar("a", *_vectors(3, b, c, 2))
    assert paired.p == pytest.approx(p)
    assert mcnemar("a", *_vectors(3, c, b, 2)).p == pytest.approx(p)


def test_to_dict_has_plain_values():
    assert Paired("a", 1, 2, 0.5, -0.1, 0.2).to_dict() == {
        "against": "a",
        "only_merged_right": 1,
        "only_other_right": 2,
        "p": 0.5,
        "low": -0.1,
        "high": 0.2,
    }


@pytest.mark.parametrize(
    ("ups", "downs", "n"), [(500, 400, 10_000), (3, 0, 10), (0, 0, 50), (30, 45, 200)]
)
def test_the_bootstrap_interval_agrees_with_random_draws(ups, downs, n):
    """Within the sampling error of numpy's draws."""
    low, high = bootstrap_interval(ups, downs, n)
    draws = np.random.default_rng(0).multinomial(
        n, [ups / n, downs / n, (n - ups - downs) / n], size=100_000
    )
    drawn = np.quantile((draws[:, 0] - draws[:, 1]) / n, [0.025, 0.975], method="inverted_cdf")
    assert (low, high) == pytest.approx(tuple(drawn), abs=1.01 / n)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_the_bootstrap_interval_contains_the_difference_and_changes_sign_with_it(ups, downs, more):
    n = ups + downs + more
    low, high = bootstrap_interval(ups, downs, n)
    assert -1 <= low <= (ups - downs) / n <= high <= 1
    assert bootstrap_interval(downs, ups, n) == pytest.approx((-high, -low), abs=1.01 / n)
