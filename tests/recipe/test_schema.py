"""Valid recipes: defaults, paths, overrides, and YAML that reads back to the same recipe."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mega_hf.recipe.data import Sample
from mega_hf.recipe.merge import Node
from mega_hf.recipe.schema import Recipe

BASE = """\
name: test
data:
  path: ./data
  validation: train[100:]
parents:
  a: ./a
  b: ./b
merge:
  population_size: 6
  generations: 3
  tournament_size: 2
  mutation:
    rate: 0.1
    std: 1e-3
"""


@pytest.fixture
def folder(tmp_path):
    return make_sources(tmp_path)


def make_sources(path):
    """Put two parents and a data set into a folder, just enough for checks that load nothing."""
    for name in ("a", "b"):
        make_parent(path / name)
    (path / "data").mkdir()
    return path


def make_parent(path, weights="model.safetensors"):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / weights).write_bytes(b"")


def load(folder, text=BASE, overrides=()):
    (folder / "r.yaml").write_text(text)
    return Recipe.from_yaml(folder / "r.yaml", overrides)


# --- Overrides


def test_an_override_wins_over_the_file(folder):
    recipe = load(folder, overrides=["merge.seed=7", "merge.mutation.std=1e-2", "name=other"])
    assert (recipe.merge.seed, recipe.merge.mutation.std, recipe.name) == (7, 0.01, "other")
    assert recipe.merge.mutation.rate == 0.1


def test_an_override_replaces_a_scalar_by_a_mapping(folder):
    sample = Sample(split="train", size=5)
    assert (
        load(folder, overrides=["data.validation={split: train, size: 5}"]).data.validation
        == sample
    )
    assert load(folder, overrides=["data.validation.size=5"]).data.validation == sample


def test_an_override_replaces_a_mapping_by_a_scalar(folder):
    text = BASE.replace("train[100:]", "{split: train, size: 5}")
    assert load(folder, text, ["data.validation=test[:5]"]).data.validation == "test[:5]"


def test_an_override_makes_the_block_it_needs(folder):
    recipe = load(
        folder, overrides=["evaluation.batch_size=32", "parents.a.train.seed=3", "train.arch=x"]
    )
    assert recipe.evaluation.batch_size == 32
    assert recipe.parents["a"].train.seed == 3


# --- Paths


def test_paths_are_relative_to_where_they_were_written(folder, tmp_path_factory, monkeypatch):
    work = tmp_path_factory.mktemp("work")
    make_parent(work / "b")
    monkeypatch.chdir(work)
    plain = load(folder)
    assert plain.parents == {"a": str(folder / "a"), "b": str(folder / "b")}
    assert plain.data.path == str(folder / "data")
    assert load(folder, overrides=["parents.b=./b"]).parents == {
        "a": str(folder / "a"),
        "b": str(work / "b"),
    }


def test_a_weights_file_is_relative_even_without_a_dot(folder):
    (folder / "w.safetensors").write_bytes(b"")
    recipe = load(folder, BASE.replace("./b", "{arch: x, weights: w.safetensors, num_classes: 2}"))
    assert recipe.parents["b"].weights == str(folder / "w.safetensors")


def test_names_of_the_hub_and_of_timm_are_left_as_they_are(folder):
    text = (
        BASE.replace("./a", "org/name@main")
        .replace("./b", "timm:resnet18.a1_in1k")
        .replace("./data", "org/set")
    )
    recipe = load(folder, text)
    assert recipe.parents == {"a": "org/name@main", "b": "timm:resnet18.a1_in1k"}
    assert recipe.data.path == "org/set"


def test_a_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert load(folder, BASE.replace("./b", "~/b")).parents["b"] == str(folder / "b")


def test_a_dict_is_relative_to_its_base(folder):
    recipe = Recipe.from_dict(yaml.safe_load(BASE) | {"merge": {}}, base=folder)
    assert recipe.parents["a"] == str(folder / "a")


def test_a_dict_is_not_changed(folder):
    tree = {"name": "x", "data": {"path": "./data"}, "parents": {"a": "./a", "b": "./b"}}
    Recipe.from_dict(tree, base=folder)
    assert tree["parents"] == {"a": "./a", "b": "./b"}


# --- Values and defaults


def test_scientific_notation_is_a_number(folder):
    assert load(folder).merge.mutation.std == 0.001


def test_defaults_are_the_papers(folder):
    merge = load(folder, BASE.partition("merge:")[0]).merge
    settings = (merge.population_size, merge.generations, merge.num_mates, merge.tournament_size)
    assert settings == (20, 20, 4, 3)
    assert (merge.mutation.rate, merge.mutation.scope) == (0.02, "element")


@given(st.integers(2, 50), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_evaluations_are_counted_one_by_one(population, generations):
    node = Node(
        parents=["a", "b"], population_size=population, generations=generations, tournament_size=1
    )
    counted = sum(population - (generation > 0) for generation in range(generations))
    assert node.evaluations == counted


def test_the_reference_variant_fixes_what_the_published_code_fixes(folder):
    asked = (
        BASE
        + "    scope: element\n    relative: true\n  founders: {include_parents: true}\n  variant:"
        " reference\n"
    )
    merge = load(folder, asked).merge
    assert merge.mutation.model_dump() == {
        "rate": 0.1,
        "std": 0.1,
        "scope": "tensor",
        "relative": False,
    }
    assert merge.founders.include_parents is False
    assert (merge.population_size, merge.generations) == (6, 3)


def test_the_reference_variant_can_be_set_on_the_command_line(folder):
    assert load(folder, overrides=["merge.variant=reference"]).merge.mutation.scope == "tensor"


def test_a_recipe_is_frozen(folder):
    with pytest.raises(ValidationError):
        load(folder).merge.seed = 3


def test_yaml_and_back(folder):
    text = BASE.replace("train[100:]", "{split: train, size: 5, stratify: false}")
    recipe = load(
        folder,
        text.replace("./b", "{train: {seed: 44}}") + "train: {arch: x, learning_rate: 1e-5}\n",
    )
    _same_after_yaml(recipe, folder)


def test_the_reference_variant_comes_back_from_yaml(folder):
    _same_after_yaml(load(folder, BASE + "  variant: reference\n"), folder)


def _anywhere(name="x", revision=None, **merge):
    tree = {
        "name": name,
        "data": {"path": "org/set", "revision": revision},
        "parents": {name: "org/a", "y": "org/b"},
    }
    return Recipe.from_dict(tree | {"merge": merge})


@given(st.floats(0, 1), st.floats(0, 1e6), st.integers(0, 2**63 - 1))
@settings(max_examples=40, deadline=None)
def test_any_number_comes_back_from_yaml(tmp_path_factory, rate, std, seed):
    recipe = _anywhere(seed=seed, mutation={"rate": rate, "std": std})
    _same_after_yaml(recipe, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    "text",
    [
        "1e3",
        "12e4567",
        "5.e1",
        "1234567",
        "0x1f",
        "yes",
        "null",
        "~",
        "2020-01-01",
        "1_000",
        ".5",
        "é: #",
    ],
)
def test_text_that_looks_like_something_else_comes_back_as_text(tmp_path, text):
    """A commit may be called 12e4567, which is a number in YAML unless quoted."""
    _same_after_yaml(_anywhere(revision=text), tmp_path)


@pytest.mark.parametrize("name", ["1e5", "44", "no", "0.5", "007", "a.b-c+d"])
def test_a_name_that_looks_like_something_else_comes_back_as_a_name(tmp_path, name):
    _same_after_yaml(_anywhere(name=name), tmp_path)


def _same_after_yaml(recipe, folder):
    (folder / "again.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = Recipe.from_yaml(folder / "again.yaml")
    assert again == recipe
    assert again.sha256 == recipe.sha256


def test_the_digest_is_of_the_settings_alone(folder):
    recipe = load(folder)
    reordered = "# a comment\n" + BASE.replace("  a: ./a\n  b: ./b\n", "  a: ./b/../a\n  b: ./b\n")
    assert load(folder, reordered + "threads: 1\n").sha256 == recipe.sha256
    assert load(folder, overrides=["merge.seed=47"]).sha256 != recipe.sha256
    assert load(folder, overrides=["merge.mutation.std=2e-3"]).sha256 != recipe.sha256


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda f: f.stem
)
def test_every_recipe_of_the_project_is_one(file):
    assert Recipe.from_yaml(file).name == file.stem
