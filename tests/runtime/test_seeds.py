"""One named stream per draw: the same name gives the same bits, any other name gives others."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.runtime.seeds import named_stream, streams

NAME = (46, "a+b", 1, 0, "founder")
NAMES = st.tuples(
    st.integers(0, 2**63 - 1),
    st.text(max_size=8),
    st.integers(1, 50),
    st.integers(0, 50),
    st.sampled_from(["founder", "tournaments", "crossover", "mutation"]),
)


@given(NAMES)
@settings(max_examples=30, deadline=None)
def test_the_same_name_gives_the_same_bits(name):
    assert np.array_equal(named_stream(*name).random(5), named_stream(*name).random(5))


@given(NAMES, NAMES)
@settings(max_examples=50, deadline=None)
def test_two_names_give_other_bits(a, b):
    same = np.array_equal(named_stream(*a).random(3), named_stream(*b).random(3))
    assert same == (a == b)


def test_each_part_of_the_name_matters():
    others = [(47, *NAME[1:]), (46, "b+a", 1, 0, "founder"), (46, "a+b", 2, 0, "founder")]
    others += [(46, "a+b", 1, 1, "founder"), (46, "a+b", 1, 0, "mutation")]
    drawn = [tuple(named_stream(*name).random(4)) for name in [NAME, *others]]
    assert all(a != b for a, b in combinations(drawn, 2))


def test_parts_do_not_run_into_each_other():
    """Generation 1, child 11 is not generation 11, child 1; a node named like a purpose is not that
    purpose."""
    assert named_stream(1, "x", 1, 11, "p").random() != named_stream(1, "x", 11, 1, "p").random()
    assert named_stream(1, "xy", 1, 1, "p").random() != named_stream(1, "x", 1, 1, "yp").random()


def test_drawing_from_one_stream_leaves_the_others_alone():
    draw = streams(46, "a+b")
    first = draw(2, 3, "mutation").random(4)
    draw(2, 2, "mutation").random(1000)
    np.random.rand(10)
    assert np.array_equal(first, draw(2, 3, "mutation").random(4))


def test_streams_are_the_named_ones():
    assert streams(46, "a+b")(1, 0, "founder").random() == named_stream(*NAME).random()


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (
            named_stream(*NAME).random(3),
            [0.20196302354431883, 0.025727763691691274, 0.47640978996358596],
        ),
        (
            named_stream(46, "a+b", 2, 3, "mutation").standard_normal(3),
            [-1.4880888131361782, 0.7781649851418811, -1.6394264755185055],
        ),
    ],
)
def test_first_values_never_change(drawn, expected):
    """A published result is a promise: another value here breaks every journal out there."""
    assert drawn.tolist() == expected
