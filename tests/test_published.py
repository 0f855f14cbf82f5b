"""What is published (recipes, cards, the README's figures) must follow from what is committed."""

import json
import re
from pathlib import Path

import pytest

from mega_hf.cli import build_parser
from mega_hf.hf.card import render_card
from mega_hf.recipe import Recipe
from mega_hf.result import MergeResult

ROOT = Path(__file__).parent.parent
CARDS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/result.json"))
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_a_published_card_is_made_from_its_result_byte_for_byte(folder):
    assert (folder / "README.md").read_text(encoding="utf-8") == render_card(MergeResult.load(folder))


@pytest.mark.parametrize("folder", CARDS, ids=lambda path: path.name)
def test_a_published_result_is_complete_and_counts_whole_splits(folder):
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert [model["role"] for model in record["models"]].count("merged") == 1
    for model in record["models"]:
        for split in ("validation", "test"):
            assert model[split]["n"] == record["data"][split]["rows"]
            assert 0 <= model[split]["correct"] <= model[split]["n"]
    settings = record["recipe"]["merge"]
    size, generations = settings["population_size"], settings["generations"]
    assert record["search"]["evaluations"] == size + (generations - 1) * (size - 1)
    assert len(record["history"]) == generations
    assert not re.search(r'"(/|~|[A-Z]:\\)', json.dumps(record)), "a path of one machine"


@pytest.mark.parametrize("page", ["README.md", "model_cards/README.md"])
def test_every_row_of_the_results_table_is_a_committed_result(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert CARDS, "nothing is published"
    for folder in CARDS:
        models = {m["name"]: m for m in MergeResult.load(folder).report.models}
        row = next(line for line in text.splitlines() if line.startswith("|") and folder.name in line)
        shown = [float(number) for number in re.findall(r"(\d+\.\d\d) %", row)]
        parents = [m for m in models.values() if m["role"] == "parent"]
        expected = [*parents, models["uniform_soup"], models["merged"]]
        assert shown == [round(100 * m["test"]["correct"] / m["test"]["n"], 2) for m in expected]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_usable_and_says_how_to_run_it(path):
    recipe = Recipe.from_yaml(path)
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert f"mega-hf merge recipes/{path.name}" in "\n".join(head)
    assert any("Hardware and time" in line for line in head)
    assert recipe.merge.evaluations > 0


def test_every_command_of_the_readme_is_one_that_the_parser_takes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:.* -m mega_hf|mega-hf) (.+?)(?:  +#.*)?$", text, flags=re.M)
    assert len(commands) >= 8
    for command in commands:
        build_parser().parse_args(command.split())


def test_the_readme_shows_the_two_set_up_commands_first():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```\n(.*?)```", text, flags=re.S)
    assert first is not None
    assert [line.split("  ")[0] for line in first[1].splitlines()] == ["make quickstart", "make test"]
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nquickstart:" in targets and "\ntest:" in targets


def test_the_readme_recipe_is_valid(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```yaml\n(.*?)```", text, flags=re.S)
    assert block is not None
    path = tmp_path / "recipe.yaml"
    path.write_text(block[1].replace("./folder", "ORG/B"), encoding="utf-8")
    recipe = Recipe.from_yaml(path)
    assert (
        recipe.merge
        == Recipe.from_dict({"name": "x", "data": {"path": "a/b"}, "parents": {"a": "o/a", "b": "o/b"}}).merge
    )
