"""docs/recipe.md is generated from the code, and its example has every key and every default."""

import re
from pathlib import Path

import yaml

from mega_hf.recipe.reference import render_reference
from mega_hf.recipe.schema import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"


def example():
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", render_reference(), flags=re.S).group(1))


def test_the_page_is_what_the_code_generates():
    assert PAGE.read_text(encoding="utf-8") == render_reference(), (
        "run: python -m mega_hf.recipe.reference > docs/recipe.md"
    )


def test_every_key_has_a_description():
    assert "| None |" not in render_reference()


def test_the_example_shows_every_key_with_its_default():
    tree = example()
    shortest = {key: tree[key] for key in ("name", "data", "parents")}
    shortest["data"] = {
        key: tree["data"][key] for key in ("path", "validation", "test", "calibration")
    }
    shortest["train"] = {"arch": tree["train"]["arch"]}
    recipe = Recipe.from_dict(tree)
    assert recipe.to_dict() == Recipe.from_dict(shortest).to_dict()
    assert set(tree) == set(Recipe.model_fields) - {"push"}
    for block in ("data", "train", "merge"):
        assert set(tree[block]) == set(recipe.to_dict()[block])
