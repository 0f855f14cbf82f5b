"""Check the published runs and recipes: complete, verifiable, and with cards made from them."""

import json
import re
from pathlib import Path

import pytest

from mega_hf.recipe.schema import Recipe
from mega_hf.report.card import render_card
from mega_hf.report.result import MergeResult
from tests.tools import results_table, study_table

ROOT = Path(__file__).parent.parent
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/result.json"))
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_a_published_card_is_the_card_of_its_result(folder):
    assert (folder / "README.md").read_text(encoding="utf-8") == render_card(
        MergeResult.load(folder)
    )


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_a_published_result_is_complete(folder):
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert [model["role"] for model in record["models"]].count("merged") == 1
    for model in record["models"]:
        for split in ("validation", "test"):
            assert model[split]["n"] == record["data"][split]["rows"]
            assert 0 <= model[split]["correct"] <= model[split]["n"]
    root = list(Recipe.from_dict(record["recipe"]).nodes().values())[-1]
    assert record["search"]["evaluations"] == root.evaluations
    assert len(record["history"]) == root.generations
    assert (folder / "journal.jsonl").is_file(), "cannot be verified"
    assert not re.search(r'"(/|~|[A-Z]:\\)', json.dumps(record)), "a local path"


def test_the_quickstart_is_verified_with_its_published_parents(mega):
    folder = ROOT / "model_cards" / "quickstart"
    answer = mega("verify", folder)
    assert answer.code == 0, answer.err
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    # the file contains BatchNorm's statistics, which take the images
    what = "weights" if "calibration" in record["data"] else "file"
    assert record["digests"][what] in answer.out


def test_only_the_quickstart_publishes_its_parents():
    weights = (ROOT / "model_cards").rglob("*.safetensors")
    assert {path.relative_to(ROOT / "model_cards").parts[0] for path in weights} == {"quickstart"}


def test_every_published_result_is_in_a_table():
    shown = {name for _, runs in results_table.ROWS.values() for name in runs.values()}
    shown |= {f"study-{kind}-{how}" for kind, how, _ in study_table.runs()}
    assert {folder.name for folder in CARDS} <= shown | {"quickstart"}


def test_the_published_quickstart_has_the_recipe_of_make_quickstart():
    recipe = Recipe.from_yaml(ROOT / "recipes" / "quickstart.yaml").to_dict()
    published = MergeResult.load(ROOT / "model_cards" / "quickstart").record.recipe
    assert all(published[block] == recipe[block] for block in recipe if block != "data")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_valid_and_has_its_command(path):
    recipe = Recipe.from_yaml(path)
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert f"mega-hf merge recipes/{path.name}" in "\n".join(head)
    assert any("Hardware and time" in line for line in head)
    assert all(node.evaluations > 0 for node in recipe.nodes().values())


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.long) if "paper-" in path.name else path
        for path in RECIPES
    ],
    ids=lambda path: path.name,
)
def test_every_recipe_passes_a_dry_run(path, data, mega):
    """With the tiny data set instead of CIFAR-10."""
    splits = {"path": data, "validation": "validation", "test": "test", "train": "train"}
    words = (
        []
        if path.name == "quickstart.yaml"
        else [word for key, value in splits.items() for word in ("--set", f"data.{key}={value}")]
    )
    answer = mega("merge", path, "--dry-run", *words)
    assert answer.code == 0, answer.err
    recipe = Recipe.from_yaml(path)
    assert all(
        f"{parent}  to train" in answer.out for parent in recipe.nodes() if parent in recipe.parents
    )
    assert f"in {len(recipe.nodes())} merge" in answer.out
    assert "Nothing was written." in answer.out


def test_all_experiments_of_the_paper_have_recipes():
    names = {path.stem for path in RECIPES}
    models = {"resnet56", "resnet110", "resnet152", "xception", "densenet121", "densenet169"}
    assert {f"paper-table1-{model}" for model in models} <= names
    assert {f"paper-table2-{model}" for model in ("resnet56", "resnet110", "resnet152")} <= names
    for path in RECIPES:
        if path.stem.startswith("paper-"):
            recipe = Recipe.from_yaml(path)
            train, merge = recipe.train, recipe.merge
            assert (train.optimizer, train.learning_rate, train.batch_size, train.epochs) == (
                "adam",
                0.01,
                256,
                50,
            )
            assert (train.augmentation, train.schedule, recipe.data.validation) == (
                "none",
                "constant",
                "train[45000:]",
            )
            assert (merge.population_size, merge.generations, merge.num_mates) == (20, 20, 4)
            assert (merge.mutation.rate, merge.founders.include_parents) == (0.02, False)
            assert len(recipe.parents) == (8 if "table2" in path.stem else 2)
