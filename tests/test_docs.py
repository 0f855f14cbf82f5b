"""Check that what README and docs/ show is true: links, commands, recipes, code and tables."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import mega_hf
from mega_hf import MergeResult, Recipe
from mega_hf.cli.main import build_parser
from tests.hub_server.server import serve
from tests.test_architecture import HOMES, LAYERS
from tests.tools import results_table, soak, study_table, tiny
from tests.tools.commands import commands

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "model_cards" / "README.md"]
}
# A command with one of these is only parsed: it needs files that are not here, or much time.
UNAVAILABLE = ("ORG/", "ME/", "DIR", "PATH", "recipes/", "model_cards/", "-m mega_hf", "bench")
UNAVAILABLE += ("--num-processes", "--seeds")
TINY_SEARCH = ("merge.population_size=4", "merge.generations=2", "baselines=[]")
TINY_TRAINING = ("train.arch=cifar_resnet8", "train.epochs=1", "train.batch_size=60")
TINY_TRAINING += ("train.data_config={input_size: [3, 8, 8]}", "data.calibration={size: 60}")


def blocks(page: str, language: str = "") -> list[str]:
    """Return the code blocks of a page in one language; `` for commands and their output."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], flags=re.M | re.S)
    return [text for word, text in fenced if word == language]


def command_lines(page: str) -> list[str]:
    """Return every mega-hf command of a page."""
    lines = "".join(blocks(page)).splitlines()
    return [line for line in lines if re.match(r"mega-hf |.* -m mega_hf ", line)]


def words_of(line: str) -> list[str]:
    """Return the arguments of a command, without its comment."""
    words = shlex.split(line, comments=True)
    return words[words.index("mega_hf" if "mega_hf" in words else "mega-hf") + 1 :]


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short():
    assert len(PAGES["README.md"].split()) <= 1300


def test_the_readme_shows_the_set_up_commands_first():
    lines = blocks("README.md")[0].splitlines()
    assert [line.split("  ")[0] for line in lines] == ["make quickstart", "make test"]


def test_the_readme_shows_the_recipe_of_the_quickstart(tmp_path):
    shutil.copytree(ROOT / "recipes" / "digits", tmp_path / "digits")
    (recipe,) = blocks("README.md", "yaml")
    assert len(recipe.splitlines()) <= 12
    for name, text in {
        "shown": recipe,
        "run": (ROOT / "recipes/quickstart.yaml").read_text(),
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    assert Recipe.from_yaml(tmp_path / "shown.yaml") == Recipe.from_yaml(tmp_path / "run.yaml")


def test_the_readme_shows_the_report_of_the_published_quickstart():
    shown = f"```\n{results_table.quickstart()}\n```\n"
    assert shown in PAGES["README.md"], "python -m tests.tools.results_table"


def test_the_results_table_is_that_of_the_published_runs():
    assert results_table.render() in PAGES["docs/results.md"], "python -m tests.tools.results_table"


def test_the_tables_of_the_study_are_those_of_the_published_runs():
    assert len(study_table.runs()) >= 3 and study_table.FIGURE.is_file()
    for table in (study_table.render(), study_table.summarize()):
        assert table in PAGES["docs/study.md"], "python -m tests.tools.study_table"


def test_contributing_is_short_and_its_table_says_what_is_tested():
    page = PAGES["CONTRIBUTING.md"]
    assert len(page.split()) <= 900
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*?) ?\| (.*?) ?\|$", page, flags=re.M)
    order = list(LAYERS)
    assert [folder for folder, *_ in rows] == order
    for folder, below, libraries in rows:
        everything = [name for name in order[order.index(folder) + 1 :] if name != "runtime"]
        named = everything if below == "all below" else re.findall(r"`([\w.]+)`", below)
        assert sorted(named) == sorted(LAYERS[folder]), folder
        alone = {library for library, homes in HOMES.items() if homes == (folder,)}
        assert set(filter(None, libraries.split(", "))) == alone, folder


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_file_that_the_text_names_exists(page):
    folders = ("mega_hf", "tests", "recipes", "model_cards/quickstart")
    files = [f"/{path.relative_to(ROOT)}" for top in folders for path in (ROOT / top).rglob("*.*")]
    for name in re.findall(r"`([\w./-]+\.(?:py|yaml|json|jsonl|png))`", PAGES[page]):
        assert name == "config.json" or any(file.endswith(f"/{name}") for file in files), name


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in [slug(heading) for heading in headings], target


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)])
def test_every_command_is_one_that_the_parser_takes(page):
    for line in command_lines(page):
        build_parser().parse_args(words_of(line))


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_option_and_tool_that_the_text_names_exists(page):
    (commands_of,) = (
        action.choices
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    options = {name for parser in commands_of.values() for name in parser._option_string_actions}
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S)
    named = {word for code in re.findall(r"`([^`]+)`", prose) for word in code.split()}
    named = {word for word in named if re.fullmatch(r"--[a-z-]+", word)}
    assert named - {"--durations"} <= options | {"--cpu", "--num_processes"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z]+)", PAGES[page], flags=re.M):
        assert f"\n{target}:" in makefile, target
    for tool in re.findall(r"python -m (tests[\w.]+)", PAGES[page]):
        place = ROOT / tool.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), tool


def test_the_soak_table_has_the_rows_of_make_soak():
    for what, tests in soak.TESTS.items():
        assert f"\n| {what} |" in PAGES["docs/robustness.md"]
        assert (ROOT / tests).exists(), tests


@pytest.fixture
def workplace(pair: tiny.Pair, tmp_path: Path, monkeypatch) -> Path:
    """A working folder with what the pages take for granted: ./a, ./b, ./images, recipe.yaml."""
    for name, folder in {"a": pair.a, "b": pair.b, "images": pair.data}.items():
        shutil.copytree(folder, tmp_path / name)
    recipe = pair.recipe(parents={"a": "./a", "b": "./b"})
    recipe["data"]["path"] = "./images"
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    (tmp_path / "recipes").mkdir()
    recipe["data"]["path"], recipe["parents"] = "../images", {"a": "../a", "b": "../b"}
    (tmp_path / "recipes" / "quickstart.yaml").write_text(json.dumps(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")])
def test_every_recipe_or_part_of_one_is_valid(page, workplace):
    whole = {"name": "x", "data": {"path": "ORG/D"}, "parents": {"a": "ORG/A", "b": "ORG/B"}}
    for number, block in enumerate(blocks(page, "yaml")):
        tree = yaml.safe_load(block)
        file = workplace / f"{number}.yaml"
        file.write_text(block if "name" in tree else yaml.safe_dump(whole | tree))
        shutil.copytree(ROOT / "recipes" / "digits", workplace / "digits", dirs_exist_ok=True)
        assert Recipe.from_yaml(file).nodes()


def test_every_function_of_the_python_page_is_public():
    named = set(re.findall(r"`(\w+)\(", PAGES["docs/python.md"])) - {"help"}
    assert len(named) >= 6 and named <= set(mega_hf.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_code_runs(page, workplace):
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), {})
    assert list(workplace.glob("my-merged-model/*.safetensors"))


def run_page(page: str, run: Callable[..., tuple[int, str, str]], *settings: str) -> int:
    """Run the commands of a page that can be run here, in order, and return how many these are."""
    lines = [line for line in command_lines(page) if not any(w in line for w in UNAVAILABLE)]
    for line in lines:
        command, *words = words_of(line)
        changes = settings if command in ("merge", "train") else ()
        code, out, err = run(command, *(w for s in changes for w in ("--set", s)), *words)
        assert code == 0, f"{line}\n{out}{err}"
    return len(lines)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "count"), {"README.md": 4, "docs/methods.md": 1}.items())
def test_commands_on_two_models_run(page, count, workplace, mega):
    assert run_page(page, mega, *TINY_SEARCH) == count


@pytest.mark.slow
def test_commands_on_a_tree_run(workplace, mega):
    Path("recipe.yaml").write_text(blocks("docs/trees.md", "yaml")[0])
    assert run_page("docs/trees.md", mega, *TINY_SEARCH, *TINY_TRAINING) == 6
    assert len(MergeResult.load("runs/tree").record.nodes) == 3


@pytest.mark.slow
def test_commands_that_verify_a_run_run(workplace, finished, mega):
    shutil.copytree(finished.folder, "runs/x")
    assert run_page("docs/verification.md", mega) == 2


@pytest.mark.slow
def test_commands_and_code_of_the_hub_run(pair, workplace):
    """Against the tests' Hub, from the first pull to the Python at the end of the page."""
    token, page = "hf_" + "Docs" * 9, "docs/hub.md"
    with serve() as hub:
        hub.add_user("ME", token=token)
        for kind, name, folder in [
            ("models", "ORG/A", pair.a),
            ("models", "ORG/B", pair.b),
            ("datasets", "ORG/NAME", pair.data),
        ]:
            hub.add(kind, name, folder)
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(workplace / "home"),
            "HF_TOKEN": token,
        }
        with commands(workplace, environment) as run:
            for line in command_lines(page):
                command, *words = words_of(line)
                changes = TINY_SEARCH if command == "merge" else ()
                answer = run(command, *(w for s in changes for w in ("--set", s)), *words)
                assert answer.code == 0, f"{line}\n{answer.err}"
        (code,) = blocks(page, "python")
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
