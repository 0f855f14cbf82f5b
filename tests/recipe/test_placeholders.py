"""Recipes with placeholders for local files: reading, comparing and rerunning them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mega_hf import MergeResult
from mega_hf.errors import RecipeError
from mega_hf.hub.bundle import portable_files
from mega_hf.recipe.placeholders import (
    LocalPlaceholder,
    check_no_placeholders,
    placeholder_keys,
    same_but_placeholders,
)
from mega_hf.recipe.schema import Recipe
from tests.tools import tiny, trainings

SHA = "0" * 64


def portable() -> dict[str, Any]:
    return {
        "name": "x",
        "data": {"path": {"local": "pictures", "sha256": {"validation": SHA, "test": SHA}}},
        "parents": {
            "a": {"local": "a", "sha256": SHA},
            "b": {
                "arch": "resnet18",
                "num_classes": 3,
                "weights": {"local": "b.safetensors", "sha256": SHA},
            },
            "c": {"train": {"seed": 1, "arch": "resnet18"}},
            "d": {"train": {"seed": 1, "from": {"local": "start", "sha256": SHA}}},
            "e": {"train": {"seed": 2, "from": "a"}},
        },
        "merges": {"x": {"parents": ["b", "c", "d", "e"]}},
    }


KEYS = ["data.path", "parents.a", "parents.b.weights", "parents.d.train.from"]


def test_placeholders_are_written_as_they_were_read() -> None:
    recipe = Recipe.from_dict(portable())
    tree = recipe.to_dict()
    assert tree["data"]["path"] == portable()["data"]["path"]
    assert tree["parents"]["a"] == portable()["parents"]["a"]
    assert tree["parents"]["b"]["weights"]["local"] == "b.safetensors"
    assert tree["parents"]["d"]["train"]["from"] == {"local": "start", "sha256": SHA}
    assert Recipe.from_dict(tree).sha256 == recipe.sha256
    assert [".".join(key) for key in placeholder_keys(tree)] == KEYS


def test_another_digest_is_another_recipe() -> None:
    other = portable()
    other["parents"]["a"]["sha256"] = "1" * 64
    assert Recipe.from_dict(other).sha256 != Recipe.from_dict(portable()).sha256


def test_placeholders_become_a_type() -> None:
    recipe = Recipe.from_dict(portable())
    assert recipe.data.path == LocalPlaceholder(
        local="pictures", sha256={"validation": SHA, "test": SHA}
    )
    assert recipe.parents["a"] == LocalPlaceholder(local="a", sha256=SHA)
    assert recipe.trained["d"].train.source == LocalPlaceholder(local="start", sha256=SHA)


def test_a_placeholder_without_a_digest_stays_without() -> None:
    tree = portable()
    tree["parents"]["a"] = {"local": "a"}
    assert Recipe.from_dict(tree).to_dict()["parents"]["a"] == {"local": "a"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"local": 5}, r"parents\.a\.local: invalid value"),
        ({"local": "a", "sha256": 5}, r"parents\.a\.sha256: invalid value"),
        ({"local": "a", "arch": "resnet18"}, r"parents\.a\.arch: unknown key"),
    ],
)
def test_a_wrong_placeholder_is_named(wrong: dict[str, Any], message: str) -> None:
    tree = portable()
    tree["parents"]["a"] = wrong
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict(tree)


def test_parents_may_be_called_as_a_placeholders_keys() -> None:
    tree = portable() | {"parents": {"local": "o/a", "sha256": "o/b"}, "merges": "joint"}
    assert placeholder_keys(Recipe.from_dict(tree).to_dict()) == [("data", "path")]


def test_the_error_has_the_options_to_add() -> None:
    with pytest.raises(RecipeError) as caught:
        check_no_placeholders(Recipe.from_dict(portable()).to_dict())
    for key in KEYS:
        assert f"--set {key}=PATH" in str(caught.value)


def test_a_recipe_with_paths_for_its_placeholders_is_the_same() -> None:
    known = Recipe.from_dict(portable()).to_dict()
    found = copy.deepcopy(known)
    found["data"]["path"], found["parents"]["a"] = "/pictures", "/a"
    assert same_but_placeholders(found, known)
    found["merge"]["seed"] = 7
    assert not same_but_placeholders(found, known)
    found = copy.deepcopy(known)
    found["parents"]["b"] = "/models/b"  # another form of parent
    assert not same_but_placeholders(found, known)
    found = copy.deepcopy(known)
    found["parents"] = dict(reversed(found["parents"].items()))
    assert not same_but_placeholders(found, known), "the order of the parents decides"


@pytest.mark.parametrize("command", ["merge", "merge --dry-run", "train"])
def test_every_command_needs_the_paths(command: str, data: Path, tmp_path: Path, mega) -> None:
    tree = trainings.tree(data, {"a": {"seed": 1}, "b": {"seed": 2}})
    tree["data"]["path"] = {"local": "tiny", "sha256": {"validation": SHA, "test": SHA}}
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps({"name": "x", **tree}))
    name, *options = command.split()
    answer = mega(name, file, *options, *([] if options else ["--out", tmp_path / "out"]))
    assert answer.code == 2
    assert "--set data.path=PATH" in answer.err
    assert not (tmp_path / "out").exists()


def test_paths_are_given_on_the_command_line(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    tree = pair.recipe()
    tree["data"]["path"] = {"local": "tiny", "sha256": {"validation": SHA, "test": SHA}}
    tree["parents"]["a"] = {"local": "a", "sha256": SHA}
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    places = ["--set", f"data.path={pair.data}", "--set", f"parents.a={pair.a}"]
    answer = mega("merge", tmp_path / "recipe.yaml", "--dry-run", *places)
    assert answer.code == 0, answer.err
    missing = mega(
        "merge", tmp_path / "recipe.yaml", "--dry-run", *places[:2], "--set", "parents.a=./nowhere"
    )
    assert missing.code == 2
    assert "no such parent folder" in missing.err


@pytest.mark.parametrize("wrong", [None, "parents.a", "data.path"])
def test_other_content_than_the_digest_is_a_warning(
    wrong: str | None, copied: Path, pair: tiny.Pair, tmp_path: Path, mega, caplog
) -> None:
    """A rerun with another parent warns that its weights will differ."""
    files = portable_files(MergeResult.load(copied), "me/x", {"license": "mit"})
    recipe = files["recipe.yaml"]
    assert isinstance(recipe, bytes)
    (tmp_path / "recipe.yaml").write_bytes(recipe)
    places = {"data.path": pair.data, "parents.a": pair.a, "parents.b": pair.b}
    other = tiny.write_data(tmp_path / "data", {"train": 30, "validation": 30, "test": 30})
    places |= (
        {"parents.a": tiny.save_timm(tmp_path / "a", tiny.timm_model(seed=9))}
        if wrong == "parents.a"
        else {}
    )
    places |= {"data.path": other} if wrong == "data.path" else {}
    words = [word for key, place in places.items() for word in ("--set", f"{key}={place}")]
    answer = mega("merge", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--quiet", *words)
    assert answer.code == 0, answer.err
    said = f"{wrong} is not the model or data that the recipe names by its digest"
    assert (said in caplog.text) == (wrong is not None)
    assert (tmp_path / "out" / "README.md").read_text().count("by its digest") == (
        wrong is not None
    )


def test_paths_for_parents_with_dots_in_their_names(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    tree = pair.recipe(
        parents={
            "res.v1": {"local": "res.v1", "sha256": SHA},
            "res.v2": {"local": "b", "sha256": SHA},
        }
    )
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    said = mega("merge", tmp_path / "recipe.yaml", "--dry-run").err
    words = said.partition("add ")[2].split()
    assert words == ["--set", "parents.res.v1=PATH", "--set", "parents.res.v2=PATH"]
    words = [w.replace("v1=PATH", f"v1={pair.a}").replace("v2=PATH", f"v2={pair.b}") for w in words]
    answer = mega("merge", tmp_path / "recipe.yaml", "--dry-run", *words)
    assert answer.code == 0, answer.err
