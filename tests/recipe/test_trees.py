"""Recipes with several merges: the tree, inherited settings, and errors with their lines."""

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mega_hf.errors import RecipeError
from mega_hf.recipe.schema import Recipe
from tests.recipe.test_schema import load

PARENTS = """\
name: test
data: {path: org/set}
parents: {a: org/a, b: org/b, c: org/c, d: org/d}
merge:
  population_size: 6
  tournament_size: 2
  mutation: {rate: 0.1, std: 0.2}
"""
PAIRS = PARENTS + "merges: pairwise\n"
MERGES = """\
merges:
  ab: {parents: [a, b]}
  cd: {parents: [c, d]}
  top: {parents: [ab, cd]}
"""
NODES = PARENTS + MERGES


def error_of(folder, text, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load(folder, text, overrides)
    message = str(caught.value)
    assert all(f"  {word}:" in message for word in ("expected", "got", "hint")), message
    return message


def lines(message):
    """Return the lines of the recipe that a message names, one for each error."""
    return [int(n) for n in re.findall(r"r\.yaml:(\d+): ", message)]


def inputs(recipe, ranking=None):
    return {name: node.parents for name, node in recipe.nodes(ranking).items()}


def same_after_yaml(recipe, folder):
    """Write a recipe, read it again and check that it is the same; return the written tree."""
    (folder / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = Recipe.from_yaml(folder / "again.yaml")
    assert (again, again.sha256) == (recipe, recipe.sha256)
    assert list(again.nodes().items()) == list(recipe.nodes().items())
    assert again.to_dict() == recipe.to_dict()
    return yaml.safe_load(recipe.to_yaml())


# --- Who is merged with whom


@pytest.mark.parametrize(
    ("merges", "expected"),
    [
        ("joint", {"a+b+c+d": ["a", "b", "c", "d"]}),
        ("pairwise", {"a+b": ["a", "b"], "c+d": ["c", "d"], "a+b+c+d": ["a+b", "c+d"]}),
        ("{all: {parents: [d, a, c, b]}}", {"all": ["d", "a", "c", "b"]}),
        (
            "{top: {parents: [cd, a, b]}, cd: {parents: [c, d]}}",
            {"cd": ["c", "d"], "top": ["cd", "a", "b"]},
        ),
    ],
)
def test_merges_are_in_the_order_in_which_they_run(tmp_path, merges, expected):
    recipe = load(tmp_path, f"{PARENTS}merges: {merges}\n")
    assert inputs(recipe) == expected
    assert list(inputs(recipe)) == list(expected)
    same_after_yaml(recipe, tmp_path)


def test_one_joint_merge_is_the_default(tmp_path):
    recipe = load(tmp_path, PARENTS)
    assert (recipe.merges, recipe.order, list(recipe.nodes())) == ("joint", "listed", ["a+b+c+d"])
    assert recipe.sha256 == load(tmp_path, PARENTS + "merges: joint\norder: listed\n").sha256


def test_order_accuracy_pairs_by_a_ranking(tmp_path):
    recipe = load(tmp_path, PAIRS + "order: accuracy\n")
    ranked = inputs(recipe, ["d", "b", "a", "c"])
    assert ranked == {"d+b": ["d", "b"], "a+c": ["a", "c"], "d+b+a+c": ["d+b", "a+c"]}
    assert inputs(recipe) == inputs(load(tmp_path, PAIRS)), "as long as none is known"
    assert recipe.sha256 != load(tmp_path, PAIRS).sha256
    same_after_yaml(recipe, tmp_path)


@pytest.mark.parametrize(
    "merges", ["joint", "pairwise", "{n: {parents: [a, b]}, top: {parents: [n, c, d]}}"]
)
def test_the_variant_is_set_for_all_nodes_on_the_command_line(tmp_path, merges):
    recipe = load(tmp_path, f"{PARENTS}merges: {merges}\n", ["merge.variant=reference"])
    for node in recipe.nodes().values():
        assert node.mutation.model_dump() == {
            "rate": 0.1,
            "std": 0.1,
            "scope": "tensor",
            "relative": False,
        }
        assert (node.variant, node.founders.include_parents) == ("reference", False)
    same_after_yaml(recipe, tmp_path)


def test_the_merges_can_be_set_on_the_command_line(tmp_path):
    assert list(load(tmp_path, NODES, ["merges=pairwise"]).nodes()) == ["a+b", "c+d", "a+b+c+d"]
    recipe = load(tmp_path, NODES, ["merges.ab.seed=7", "merges.cd.mutation.std=0.3"])
    assert [node.seed for node in recipe.nodes().values()] == [7, 46, 46]
    assert [node.mutation.std for node in recipe.nodes().values()] == [0.2, 0.3, 0.2]


# --- What nodes inherit


def test_a_node_without_settings_has_the_shared_ones(tmp_path):
    for recipe in (load(tmp_path, text) for text in (PARENTS, PAIRS, NODES)):
        assert all(node.settings == recipe.to_dict()["merge"] for node in recipe.nodes().values())


def _node(folder, shared, own):
    text = (
        PARENTS.partition("merge:")[0]
        + f"merge: {shared}\nmerges: {{n: {{parents: [a, b, c, d], {own}}}}}\n"
    )
    recipe = load(folder, text)
    same_after_yaml(recipe, folder)
    return recipe.nodes()["n"]


@pytest.mark.parametrize(
    ("shared", "own", "expected"),
    [
        ("{seed: 3, generations: 5}", "generations: 9", {"seed": 3, "generations": 9}),
        (
            "{mutation: {rate: 0.5, std: 0.2}}",
            "mutation: {std: 0.3}",
            {"rate": 0.5, "std": 0.3, "scope": "element"},
        ),
        ("{mutation: {rate: 0.5}}", "mutation: {}", {"rate": 0.5, "std": 0.05}),
        ("{founders: {include_parents: false}}", "seed: 3", {"include_parents": False}),
        (
            "{founders: {include_parents: false}}",
            "founders: {include_parents: true}",
            {"include_parents": True},
        ),
        # what the reference variant fixes, it fixes in a node too, and only while the node wants it
        (
            "{mutation: {rate: 0.5, std: 0.2}}",
            "variant: reference",
            {"rate": 0.5, "std": 0.1, "scope": "tensor"},
        ),
        (
            "{variant: reference}",
            "mutation: {rate: 0.3, std: 0.7}",
            {"rate": 0.3, "std": 0.1, "scope": "tensor"},
        ),
        ("{variant: reference}", "founders: {include_parents: true}", {"include_parents": False}),
        (
            "{variant: reference}",
            "variant: default",
            {"std": 0.05, "scope": "element", "include_parents": True},
        ),
        (
            "{variant: reference, mutation: {std: 0.4}}",
            "variant: default",
            {"std": 0.4, "relative": True},
        ),
    ],
)
def test_a_node_has_its_own_settings_and_the_shared_ones_below(tmp_path, shared, own, expected):
    found = _node(tmp_path, shared, own).settings
    found |= {**found["mutation"], **found["founders"]}
    assert {key: found[key] for key in expected} == expected


def test_what_is_inherited_is_not_written_again(tmp_path):
    text = NODES.replace(
        "[a, b]}", "[a, b], seed: 7, generations: 20, mutation: {rate: 0.1, std: 0.2}}"
    )
    written = same_after_yaml(load(tmp_path, text), tmp_path)
    assert written["merges"] == {
        "ab": {"parents": ["a", "b"], "seed": 7},
        "cd": {"parents": ["c", "d"]},
        "top": {"parents": ["ab", "cd"]},
    }


@pytest.mark.parametrize(
    "written",
    [
        NODES.replace("[a, b]}", "[a, b], population_size: 6, seed: 46, variant: default}"),
        NODES.replace(
            "[a, b]}", "[a, b], mutation: {std: 0.2}, founders: {include_parents: true}}"
        ),
        NODES.replace("{parents: [c, d]}", "\n    founders: {}\n    parents:\n    - c\n    - d"),
        NODES + "# comment\norder: listed\n",
    ],
)
def test_what_means_the_same_has_the_same_digest(tmp_path, written):
    recipe, other = load(tmp_path, NODES), load(tmp_path, written)
    assert (other, other.sha256, other.nodes()) == (recipe, recipe.sha256, recipe.nodes())


@pytest.mark.parametrize("old", ["[a, b]", "[c, d]", "[ab, cd]"])
def test_the_digest_depends_on_every_node(tmp_path, old):
    recipe = load(tmp_path, NODES)
    assert load(tmp_path, NODES.replace(old + "}", old + ", seed: 7}")).sha256 != recipe.sha256
    swapped = old[0] + ", ".join(reversed(old[1:-1].split(", "))) + old[-1]
    assert load(tmp_path, NODES.replace(old, swapped)).sha256 != recipe.sha256


def test_the_digest_depends_on_the_order_of_the_parents(tmp_path):
    listed = load(tmp_path, PAIRS)
    swapped = load(tmp_path, PAIRS.replace("b: org/b, c: org/c", "c: org/c, b: org/b"))
    assert inputs(swapped) != inputs(listed)
    assert swapped.sha256 != listed.sha256


@given(
    st.lists(st.tuples(st.integers(2, 9), st.floats(0, 1), st.booleans()), min_size=1, max_size=5)
)
@settings(max_examples=40, deadline=None)
def test_any_chain_of_nodes_comes_back_from_yaml(tmp_path_factory, chain):
    names = [f"p{i}" for i in range(len(chain) + 1)]
    nodes = {}
    for i, (size, rate, mixed) in enumerate(chain):
        own = {"population_size": size, "tournament_size": 1, "mutation": {"rate": rate}}
        own |= {
            "founders": {"include_parents": mixed},
            "variant": "default" if mixed else "reference",
        }
        nodes[f"n{i}"] = {"parents": [f"n{i - 1}" if i else "p0", names[i + 1]], **own}
    tree = {
        "name": "t",
        "data": {"path": "o/s"},
        "parents": {name: f"o/{name}" for name in names},
        "merges": nodes,
    }
    same_after_yaml(Recipe.from_dict(tree), tmp_path_factory.getbasetemp())


# --- Errors and their lines


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "[a, b]",
            "[a, b, top]",
            9,
            ["merges.ab.parents", "no cycle", "ab needs top needs ab"],
        ),
        ("[c, d]", "[c, d, cd]", 10, ["merges.cd.parents", "cd needs cd"]),
        ("[a, b]", "[a, bb]", 9, ["merges.ab.parents", "one of a, b, c, d, cd, top", "bb"]),
        ("[c, d]", "[c, a]", 3, ["parents.d", "d, in no node", "remove it"]),
        (
            "[ab, cd]",
            "[ab, c]",
            11,
            ["merges.top", "one final node", "cd and top", "{parents: [cd, top]}"],
        ),
        ("ab: {", "a: {", 9, ["merges.a", "a, which is a parent", "rename the node"]),
        ("[a, b]", "[a, b, a]", 9, ["merges.ab.parents", "each name once", "a twice"]),
        ("[a, b]", "[a]", 9, ["merges.ab.parents", "two parents or more", "1"]),
        (
            "[a, b]}",
            "[a, b], generation: 3}",
            9,
            ["merges.ab.generation", "unknown", "did you mean generations?"],
        ),
        (
            "[a, b]}",
            "[a, b], mutation: {stdev: 3}}",
            9,
            ["merges.ab.mutation.stdev", "did you mean std?"],
        ),
        (
            "[a, b]}",
            "[a, b], generations: three}",
            9,
            ["merges.ab.generations", "integer", "'three' (str)"],
        ),
        (
            "[c, d]}",
            "[c, d], mutation: {std: big}}",
            10,
            ["merges.cd.mutation.std", "number", "'big' (str)"],
        ),
        ("[c, d]}", "[c, d], mutation: 5}", 10, ["merges.cd.mutation", "mapping", "5 (int)"]),
        (
            "[c, d]}",
            "[c, d], variant: published}",
            10,
            ["merges.cd.variant", "'default' or 'reference'"],
        ),
        ("[a, b]", "a", 9, ["merges.ab.parents", "list", "'a' (str)"]),
        ("[a, b]", "[a, 5]", 9, ["merges.ab.parents.1", "string", "5 (int)"]),
        ("[a, b]", "[a, 'b c']", 9, ["merges.ab.parents", "a name of letters, digits", "b c"]),
        ("{parents: [a, b]}", "{seed: 3}", 9, ["merges.ab.parents", "missing"]),
        ("{parents: [a, b]}", "[a, b]", 9, ["merges.ab", "mapping", "['a', 'b']"]),
        ("{parents: [a, b]}", "", 9, ["merges.ab", "mapping", "nothing"]),
        ("ab: {", "'a b': {", 9, ["merges.a b", "a name of letters, digits"]),
        (
            "[a, b]}",
            "[a, b, c], population_size: 2}",
            9,
            ["merges.ab.population_size", "at least 3", "include_parents"],
        ),
        (
            "[a, b]}",
            "[a, b], tournament_size: 7}",
            9,
            ["merges.ab.tournament_size", "at most population_size, which is 6", "7"],
        ),
        ("merges:\n", "order: accuracy\nmerges:\n", 8, ["order", "merges: pairwise", "accuracy"]),
    ],
)
def test_an_error_names_the_node_and_its_line(tmp_path, old, new, line, words):
    assert old in NODES
    message = error_of(tmp_path, NODES.replace(old, new, 1))
    assert lines(message) == [line], message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("merges", ["both", "5", "[a, b]", "true", "", "{}"])
def test_merges_of_a_wrong_type(tmp_path, merges):
    message = error_of(tmp_path, f"{PARENTS}merges: {merges}\n")
    assert lines(message) == [8]
    assert "merges: invalid value" in message
    assert ("one entry or more" if merges == "{}" else "joint, pairwise, or nodes") in message


def test_a_population_too_small_for_a_joint_merge_is_enough_for_pairs(tmp_path):
    text = PARENTS.replace("population_size: 6", "population_size: 2")
    message = error_of(tmp_path, text)
    assert lines(message) == [5]
    assert "at least 4" in message and "include_parents: false" in message
    assert load(tmp_path, text + "merges: pairwise\n").merge.population_size == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            PARENTS.replace("merge:", "order: accuracy\nmerge:"),
            ["order", "merges: pairwise", "accuracy"],
        ),
        (
            PAIRS.replace("c: org/c", "\n  a+b: org/c"),
            ["parents.a+b", "a name without +", "rename"],
        ),
    ],
)
def test_pairs_alone_have_an_order_and_names_of_their_own(tmp_path, text, words):
    message = error_of(tmp_path, text)
    assert lines(message) == [4]
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ("population_size: 6", "population_size: 1", 5, "merge.population_size"),
        ("population_size: 6", "population: 6", 5, "merge.population"),
        ("tournament_size: 2", "tournament_size: 7", 6, "merge.tournament_size"),
        ("std: 0.2", "std: big", 7, "merge.mutation.std"),
        ("std: 0.2", "stdev: 0.2", 7, "merge.mutation.stdev"),
        ("{rate: 0.1, std: 0.2}", "5", 7, "merge.mutation"),
    ],
)
@pytest.mark.parametrize(
    "text", [PARENTS, PAIRS, NODES, NODES.replace("[a, b]}", "[a, b], mutation: {rate: 0.3}}")]
)
def test_a_mistake_in_the_shared_block_is_said_once(tmp_path, text, old, new, line, key):
    message = error_of(tmp_path, text.replace(old, new))
    assert lines(message) == [line], message
    assert f"{key}: " in message


def test_mistakes_of_the_shared_block_and_of_nodes_are_shown_together(tmp_path):
    text = NODES.replace("_size: 6", "_size: 1").replace("[a, b]}", "[a, b], seed: -1}")
    message = error_of(tmp_path, text.replace("[c, d]}", "[c, d], population_size: x}"))
    assert sorted(lines(message)) == [5, 9, 10]
