"""The tree of merges as names: known answers, and properties of any names and any graph."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.errors import RecipeError
from mega_hf.recipe.tree import (
    arrange,
    check_tree,
    leaves_of,
    levels,
    needed_for,
    node_name,
    pair_up,
    render_tree,
)

NODES = {"ab": ["a", "b"], "cd": ["c", "d"], "top": ["ab", "cd", "e"]}

# --- Pairs


@pytest.mark.parametrize(
    ("names", "nodes"),
    [
        ("a", {}),
        ("ab", {"a+b": ["a", "b"]}),
        ("abc", {"a+b": ["a", "b"], "a+b+c": ["a+b", "c"]}),
        (
            "abcde",
            {
                "a+b": ["a", "b"],
                "c+d": ["c", "d"],
                "a+b+c+d": ["a+b", "c+d"],
                "a+b+c+d+e": ["a+b+c+d", "e"],
            },
        ),
        (
            "abcdef",
            {
                "a+b": ["a", "b"],
                "c+d": ["c", "d"],
                "e+f": ["e", "f"],
                "a+b+c+d": ["a+b", "c+d"],
                "a+b+c+d+e+f": ["a+b+c+d", "e+f"],
            },
        ),
        (
            "abcdefgh",
            {
                "a+b": ["a", "b"],
                "c+d": ["c", "d"],
                "e+f": ["e", "f"],
                "g+h": ["g", "h"],
                "a+b+c+d": ["a+b", "c+d"],
                "e+f+g+h": ["e+f", "g+h"],
                "a+b+c+d+e+f+g+h": ["a+b+c+d", "e+f+g+h"],
            },
        ),
    ],
)
def test_neighbours_are_paired_and_an_odd_one_moves_up(names, nodes):
    assert pair_up(list(names)) == nodes
    assert list(pair_up(list(names))) == list(nodes)


def _names(longest):
    return st.lists(
        st.from_regex(rf"[a-z0-9._-]{{1,{longest}}}", fullmatch=True),
        min_size=2,
        max_size=40,
        unique=True,
    )


@given(_names(8))
@settings(max_examples=100, deadline=None)
def test_every_name_is_below_the_root_once_whatever_their_number(names):
    nodes = pair_up(names)
    root = list(nodes)[-1]
    inputs = [name for pair in nodes.values() for name in pair]
    assert len(nodes) == len(names) - 1
    assert all(len(pair) == 2 for pair in nodes.values())
    assert leaves_of(nodes, root) == names
    assert sorted(inputs) == sorted([*names, *(node for node in nodes if node != root)])
    assert needed_for(nodes, root) == arrange(nodes) == list(nodes)
    assert levels(nodes)[root] == math.ceil(math.log2(len(names)))


@given(_names(8))
@settings(max_examples=50, deadline=None)
def test_a_node_is_named_after_its_leaves(names):
    nodes = pair_up(names)
    assert all(node == node_name(leaves_of(nodes, node)) for node in nodes)


# --- Names


def test_a_long_name_shows_its_first_and_last_leaf():
    assert node_name(["seed44", "seed45"]) == "seed44+seed45"
    name = node_name([c * 49 for c in "ab"] + ["c"])
    assert re.fullmatch(r"a{40}\+\.\.\.\+c-[0-9a-f]{8}", name)
    assert node_name([c * 49 for c in "ax"] + ["c"]) != name, "what lies between is in the digest"
    assert (
        node_name(["a" * 49, "b" * 50]) == "a" * 49 + "+" + "b" * 50
    )  # 100 characters: not too long


@given(st.integers(2, 60), st.integers(1, 45))
@settings(max_examples=100, deadline=None)
def test_long_names_are_shortened_and_stay_unique(count, length):
    names = [f"{i:02}".ljust(length, "x") for i in range(count)]
    nodes = pair_up(names)
    assert len(nodes) == count - 1
    assert max(map(len, nodes)) <= 100
    assert leaves_of(nodes, list(nodes)[-1]) == names


# --- Order


@st.composite
def _graphs(render_tree):
    """Draw nodes in any order; each merges earlier nodes and leaves, some of them twice."""
    graph = {}
    for i in range(render_tree(st.integers(1, 8))):
        choices = [*graph, "p", "q", "r"]
        graph[f"n{i}"] = render_tree(
            st.lists(st.sampled_from(choices), min_size=2, max_size=3, unique=True)
        )
    return {node: graph[node] for node in render_tree(st.permutations(list(graph)))}


@given(_graphs())
@settings(max_examples=100, deadline=None)
def test_each_node_comes_after_those_that_it_needs(graph):
    arranged = arrange(graph)
    assert sorted(arranged) == sorted(graph)
    for node in graph:
        assert all(
            arranged.index(one) < arranged.index(node) for one in graph[node] if one in graph
        )


@given(_graphs())
@settings(max_examples=50, deadline=None)
def test_what_is_arranged_stays_as_it_is(graph):
    arranged = arrange(graph)
    assert arrange({node: tuple(graph[node]) for node in arranged}) == arranged


@pytest.mark.parametrize(
    ("written", "arranged"),
    [
        (["ab", "cd", "top"], ["ab", "cd", "top"]),
        (["cd", "ab", "top"], ["cd", "ab", "top"]),
        # where top asks for them: in the order of its own list
        (["top", "cd", "ab"], ["ab", "cd", "top"]),
        (["cd", "top", "ab"], ["cd", "ab", "top"]),
    ],
)
def test_nodes_stay_in_the_order_written_as_far_as_they_can(written, arranged):
    assert arrange({node: NODES[node] for node in written}) == arranged


@pytest.mark.parametrize(
    ("nodes", "cycle"),
    [
        ({"x": ["x", "a"]}, ("x", "x")),
        ({"x": ["y", "a"], "y": ["x", "b"]}, ("x", "y", "x")),
        (
            {"top": ["x", "a"], "x": ["y", "b"], "y": ["z", "c"], "z": ["x", "d"]},
            ("x", "y", "z", "x"),
        ),
    ],
)
def test_a_cycle_is_named_without_what_leads_to_it(nodes, cycle):
    with pytest.raises(ValueError) as caught:
        arrange(nodes)
    assert caught.value.args == (cycle,)


# --- Below a node


@given(_graphs())
@settings(max_examples=100, deadline=None)
def test_what_a_node_needs_is_closed_and_nothing_more(graph):
    for node in graph:
        needed = needed_for(graph, node)
        inputs = {one for other in needed for one in graph[other]}
        assert needed[-1] == node
        assert needed == [other for other in arrange(graph) if other in needed]
        assert {one for one in inputs if one in graph} == set(needed[:-1])
        assert sorted(leaves_of(graph, node)) == sorted(inputs - set(graph))


@given(_graphs())
@settings(max_examples=50, deadline=None)
def test_a_level_is_one_above_the_highest_below(graph):
    known = levels(graph)
    assert {name for name in known if known[name] == 0} == {
        one for pair in graph.values() for one in pair
    } - set(graph)
    assert all(known[node] == 1 + max(known[one] for one in graph[node]) for node in graph)


def test_known_answers_below_a_node():
    assert needed_for(NODES, "top") == ["ab", "cd", "top"]
    assert needed_for(NODES, "cd") == ["cd"]
    with pytest.raises(RecipeError, match="no such node"):
        needed_for(NODES, "e")
    assert leaves_of(NODES, "top") == ["a", "b", "c", "d", "e"]
    assert leaves_of({"x": ["b", "y"], "y": ["a", "b"]}, "x") == ["b", "a"]
    assert levels(NODES) == {"a": 0, "b": 0, "ab": 1, "c": 0, "d": 0, "cd": 1, "e": 0, "top": 2}


# --- Invalid trees


def _error_of(nodes, parents="abcde", usable="abcde"):
    """Return (key, expected, got, hint) of the error that check_tree raises."""
    with pytest.raises(KeyError) as caught:
        check_tree(nodes, list(parents), list(usable), KeyError)
    return caught.value.args


@pytest.mark.parametrize(
    ("changed", "key", "got"),
    [
        ({"ab": ["a", "z"]}, ["merges", "ab", "parents"], "z"),
        ({"ab": ["a", "a@3"]}, ["merges", "ab", "parents"], "a@3"),
        ({"ab": ["a", "b", "a"]}, ["merges", "ab", "parents"], "a twice"),
        ({"ab": ["a", "b", "top"]}, ["merges", "ab", "parents"], "ab needs top needs ab"),
        ({"cd": ["c", "d", "cd"]}, ["merges", "cd", "parents"], "cd needs cd"),
        ({"top": ["ab", "e", "c"]}, ["merges", "top"], "cd and top"),
        ({"more": ["ab", "cd"]}, ["merges", "more"], "top and more"),
        ({"top": ["ab", "cd"]}, ["parents", "e"], "e, in no node"),
        ({"e": ["a", "c"]}, ["merges", "e"], "e, which is a parent"),
    ],
)
def test_an_invalid_tree_is_an_error_with_its_key(changed, key, got):
    at, expected, found, hint = _error_of({**NODES, **changed})
    assert (at, found) == (key, got)
    assert expected and hint


def test_an_unknown_name_is_shown_all_that_could_be_meant():
    assert _error_of({**NODES, "ab": ["a", "z"]})[1] == "one of a, b, c, d, e, cd, top"


def test_two_roots_are_shown_how_to_become_one():
    hint = _error_of({"ab": ["a", "b"], "cde": ["c", "d", "e"]})[3]
    assert "{parents: [ab, cde]}" in hint


def test_a_tree_is_left_alone():
    check_tree(NODES, list("abcde"), list("abcde"), KeyError)
    shared = {"top": ["a", "x"], "x": ["a", "b"]}  # a parent may be merged at several places
    check_tree(shared, ["a", "b"], ["a", "b"], KeyError)


def test_a_parent_is_used_where_its_snapshot_is():
    check_tree({"soup": ["a@2", "a@4"]}, ["a"], ["a", "a@2", "a@4"], KeyError)
    assert _error_of({"soup": ["a@2", "a@4"]}, "ab", ["a", "b", "a@2", "a@4"])[2] == "b, in no node"


@given(_names(8))
@settings(max_examples=50, deadline=None)
def test_pairs_are_always_a_tree(names):
    check_tree(pair_up(names), names, names, AssertionError)


# --- Names that are hard to join


def test_the_longest_names_are_shortened_too():
    nodes = pair_up([f"{i}".ljust(100, "x") for i in range(8)])
    assert len(nodes) == 7
    assert max(map(len, nodes)) <= 100


def test_a_node_that_is_used_often_is_visited_once():
    """Walking every path through this tree would take minutes."""
    nodes = {f"n{i}": [f"n{i - 1}", f"n{i - 2}"] for i in range(2, 60)}
    assert leaves_of(nodes, "n59") == ["n1", "n0"]
    assert needed_for(nodes, "n59") == list(nodes)


def test_a_tree_is_drawn():
    nodes = {"ab": ["a", "b"], "all": ["ab", "c", "ab"]}
    assert render_tree(nodes, "all", {"ab": "first", "c": "given"}) == [
        "all",
        "├─ ab  first",
        "│  ├─ a",
        "│  └─ b",
        "├─ c  given",
        "└─ ab  as above",
    ]
