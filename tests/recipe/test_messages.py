"""Errors in recipes: each has file and line, expected, got and hint."""

import re

import pytest
import yaml

from mega_hf.errors import RecipeError
from tests.recipe.test_schema import BASE, load, make_parent, make_sources


@pytest.fixture
def folder(tmp_path):
    return make_sources(tmp_path)


def _error_of(folder, text, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load(folder, text, overrides)
    return str(caught.value)


def _lines(message):
    """Return the lines of the recipe that a message names."""
    return [int(n) for n in re.findall(r"r\.yaml:(\d+): ", message)]


# --- Errors and their lines


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        # unknown keys, with the nearest known one
        ("merge:", "merg:", 8, ["unknown key", "did you mean merge?"]),
        ("generations: 3", "generation: 3", 10, ["merge.generation", "did you mean generations?"]),
        ("std: 1e-3", "stdev: 1e-3", 14, ["merge.mutation.stdev", "did you mean std?"]),
        ("validation: t", "valdation: t", 4, ["data.valdation", "did you mean validation?"]),
        (
            "a: ./a",
            "a: {arch: x, weights: ./w.safetensors, num_clases: 2}",
            6,
            ["did you mean num_classes?"],
        ),
        ("a: ./a", "a: {train: {sed: 44}}", 6, ["did you mean seed?"]),
        ("train[100:]", "{split: train, sizes: 5}", 4, ["did you mean size?"]),
        ("generations: 3", "zzz: 3", 10, ["unknown key", "one of method, variant"]),
        # wrong types
        (
            "generations: 3",
            "generations: three",
            10,
            ["merge.generations", "integer", "'three' (str)"],
        ),
        ("generations: 3", "generations: 3.0", 10, ["merge.generations", "integer", "3.0 (float)"]),
        ("generations: 3", "generations: true", 10, ["merge.generations", "True (bool)"]),
        ("generations: 3", "generations:", 10, ["merge.generations", "nothing"]),
        ("generations: 3", "generations: [3]", 10, ["merge.generations", "[3] (list)"]),
        ("rate: 0.1", "rate: '0.1'", 13, ["merge.mutation.rate", "number", "'0.1' (str)"]),
        ("name: test", "name: 5", 1, ["name", "string", "5 (int)"]),
        ("name: test", "name: a/b", 1, ["a name of letters, digits"]),
        ("a: ./a", "a: 5", 6, ["parents.a", "string", "5 (int)"]),
        ("a: ./a", "a:", 6, ["parents.a", "nothing"]),
        ("a: ./a", "'a b': ./a", 6, ["a name of letters, digits"]),
        ("a: ./a", "merged: ./a", 6, ["parents.merged", "a name that no model of the report has"]),
        ("  a: ./a\n  b: ./b", "  - ./a\n  - ./b", 5, ["parents", "mapping", "(list)"]),
        ("train[100:]", "5", 4, ["data.validation", "string"]),
        ("train[100:]", "{split: train, size: big}", 4, ["data.validation.size", "integer"]),
        # numbers out of range
        ("population_size: 6", "population_size: 1", 9, ["merge.population_size", "2", "1 (int)"]),
        ("population_size: 6", "population_size: -6", 9, ["merge.population_size"]),
        (
            "tournament_size: 2",
            "tournament_size: 7",
            11,
            ["at most population_size, which is 6", "7"],
        ),
        ("tournament_size: 2", "tournament_size: 0", 11, ["merge.tournament_size"]),
        ("generations: 3", "generations: 0", 10, ["merge.generations"]),
        ("generations: 3", "num_mates: 1", 10, ["merge.num_mates"]),
        ("generations: 3", "seed: -1", 10, ["merge.seed"]),
        ("generations: 3", f"seed: {2**63}", 10, ["merge.seed"]),
        (
            "rate: 0.1",
            "rate: 1.1",
            13,
            ["merge.mutation.rate", "less than or equal to 1", "1.1 (float)"],
        ),
        ("rate: 0.1", "rate: -0.1", 13, ["merge.mutation.rate", "greater than or equal to 0"]),
        ("rate: 0.1", "rate: .nan", 13, ["merge.mutation.rate"]),
        ("std: 1e-3", "std: -1", 14, ["merge.mutation.std"]),
        ("std: 1e-3", "std: .inf", 14, ["merge.mutation.std"]),
        (
            "std: 1e-3",
            "scope: layer",
            14,
            ["merge.mutation.scope", "'element' or 'tensor'", "'layer'"],
        ),
        (
            "generations: 3",
            "align_to: a",
            10,
            ["merge.align_to", "align: weights or activations", "leave align_to out"],
        ),
        (
            "generations: 3",
            "align: weights\n  align_to: c",
            11,
            ["merge.align_to", "one of the parents of a+b: a, b", "c"],
        ),
        (
            "name: test",
            "name: test\nbaselines: [random, best]",
            2,
            ["baselines.1", "'greedy_soup'", "'best' (str)"],
        ),
        ("generations: 3", "method: magic", 10, ["merge.method", "'mega'"]),
        ("population_size: 6", "population_size: 2\n  x: 1", 10, ["unknown key"]),
        # parents
        ("  b: ./b\n", "", 5, ["parents", "two parents or more", "two parents or more"]),
        ("  a: ./a\n  b: ./b\n", "  {}\n", 5, ["parents", "two parents or more"]),
        ("b: ./b", "b: ./a", 7, ["another model than a", "list each model once"]),
        ("b: ./b", "b: ./x/../a/", 7, ["another model than a"]),
        ("b: ./b", "b: ./nowhere", 7, ["no such parent folder"]),
        ("b: ./b", "b: just-a-word", 7, ["not a model", "./"]),
        (
            "b: ./b",
            "b: {arch: x, weights: w.bin, num_classes: 2}",
            7,
            ["not safetensors", "convert"],
        ),
        ("b: ./b", "b: {arch: x, weights: w.safetensors, num_classes: 2}", 7, ["no such file"]),
        ("b: ./b", "b: {arch: x, num_classes: 2}", 7, ["parents.b.weights", "missing"]),
        # data
        ("path: ./data", "path: ./nowhere", 3, ["no such data folder"]),
        ("path: ./data", "path: 'a b'", 3, ["not a data set"]),
        ("  path: ./data\n", "", 2, ["data.path", "missing"]),
        # not a recipe at all
        ("name: test", "name: test\nname: again", 2, ["duplicate key name"]),
        ("b: ./b", "b: *a", 7, ["alias"]),
        ("b: ./b", "b: [./b", 8, ["invalid YAML"]),
    ],
)
def test_an_error_names_its_line_and_what_is_wrong(folder, old, new, line, words):
    assert old in BASE
    message = _error_of(folder, BASE.replace(old, new, 1))
    assert line in _lines(message), message
    assert all(word in message for word in words), message


def test_a_missing_train_block_is_missed_at_a_line(folder):
    message = _error_of(folder, BASE.replace("a: ./a", "a: {train: {seed: 44}}"))
    assert "train block" in message
    assert "add train: {arch: ...}" in message
    assert _lines(message), message


@pytest.mark.parametrize("key", ["name", "data", "parents"])
def test_a_missing_block_is_missed_at_a_line(folder, key):
    tree = {k: v for k, v in yaml.safe_load(BASE).items() if k != key}
    message = _error_of(folder, yaml.safe_dump(tree))
    assert f"{key}: missing" in message
    assert _lines(message), message


def test_the_same_seed_twice_is_the_same_parent_twice(folder):
    text = (
        BASE.replace("./a", "{train: {seed: 4}}").replace("./b", "{train: {seed: 4}}")
        + "train: {arch: x}\n"
    )
    message = _error_of(folder, text)
    assert _lines(message) == [7]
    assert "another model than a" in message


def test_a_population_too_small_for_its_parents(folder):
    make_parent(folder / "c")
    text = BASE.replace("b: ./b", "b: ./b\n  c: ./c").replace(
        "population_size: 6", "population_size: 2"
    )
    message = _error_of(folder, text)
    assert _lines(message) == [10]
    assert "at least 3" in message
    assert "include_parents: false" in message
    assert load(folder, text + "  founders: {include_parents: false}\n").merge.population_size == 2


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pth", "model.pt", "model.ckpt"])
def test_a_pickle_is_an_error_before_anything_is_loaded(folder, pickle):
    make_parent(folder / "p", pickle)
    message = _error_of(folder, BASE.replace("./b", "./p"))
    assert _lines(message) == [7]
    assert f"only {pickle}" in message
    assert "convert" in message


def test_a_folder_without_a_config_or_weights_is_an_error(folder):
    (folder / "bare").mkdir()
    assert "no config.json" in _error_of(folder, BASE.replace("./b", "./bare"))
    (folder / "bare" / "config.json").write_text("{}")
    assert "no safetensors" in _error_of(folder, BASE.replace("./b", "./bare"))


def test_several_errors_are_shown_together_each_at_its_line(folder):
    text = BASE.replace("path: ", "pth: ").replace("generations: 3", "generations: 0")
    message = _error_of(folder, text.replace("rate: 0.1", "rate: 2").replace("test", "5", 1))
    assert sorted(_lines(message)) == [1, 3, 10, 13]
    assert message.startswith("4 problems")


def test_several_missing_files_are_shown_together(folder):
    assert sorted(
        _lines(_error_of(folder, BASE.replace("./a", "./x").replace("./data", "./y")))
    ) == [3, 6]


def test_the_reference_variant_drops_no_unknown_key_in_silence(folder):
    message = _error_of(folder, BASE + "  variant: reference\n  founders: {include_parent: true}\n")
    assert "did you mean include_parents?" in message


# --- Overrides


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("merge.sed=7", ["--set merge.sed: ", "did you mean seed?"]),
        ("foo.bar=1", ["--set foo.bar: foo: unknown key"]),
        ("merge.seed=seven", ["--set merge.seed: ", "'seven'"]),
        ("merge.population_size=1", ["--set merge.population_size: "]),
        ("parents.b=./nowhere", ["--set parents.b: ", "no such parent folder"]),
        ("merge.seed", ["--set KEY.KEY=VALUE"]),
        ("merge.seed=[", ["--set merge.seed", "invalid YAML"]),
    ],
)
def test_a_bad_override_is_named(folder, override, words):
    message = _error_of(folder, BASE, [override])
    assert all(word in message for word in words), message
