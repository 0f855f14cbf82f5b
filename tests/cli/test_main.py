"""The commands: what they print, what they leave behind, what they exit with."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mega_hf import MergeResult, Recipe
from mega_hf.evaluation.statistics import wilson_interval
from tests.tools import tiny
from tests.tools.broken import other_architecture, other_order, other_preprocessing
from tests.tools.started import MEGA

# Counts right answers of a folder in a process that has imported nothing of mega_hf but the
# architecture.
COUNT = """
import sys
from tests.tools import tiny
if sys.argv[2] == "timm":
    import timm
    model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
else:
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    AutoImageProcessor.from_pretrained(sys.argv[1])
    model = AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
print(tiny.count(model, "validation"), tiny.count(model, "test"))
"""


@pytest.mark.parametrize("library", ["timm", pytest.param("transformers", marks=pytest.mark.long)])
def test_a_merge_and_its_model_in_a_fresh_process(
    library: str, finished: MergeResult, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    if library == "transformers":
        pair = tiny.make_pair(tmp_path, tiny.transformers_model("resnet"), tiny.save_transformers)
    out = tmp_path / "out"
    answer = mega("merge", pair.write(tmp_path), "--out", out)
    assert answer.code == 0, answer.err
    result = MergeResult.load(out)
    assert answer.out == f"{result.report}\n\n{out / 'merged'}\n{out / 'README.md'}\n"
    if library == "timm":
        assert result.record.digests.file == finished.record.digests.file
    command = [sys.executable, "-c", COUNT, str(out / "merged"), library]
    root = Path(__file__).parents[2]
    counted = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=root
    ).stdout.split()
    merged = result.report.merged
    assert counted == [str(merged.validation.correct), str(merged.test.correct)]


def test_models_by_name_and_default_splits(pair: tiny.Pair, tmp_path: Path, mega, caplog) -> None:
    data = tiny.write_data(tmp_path / "data", {"train": 120, "test": 90})
    settings = ["--set", "merge.generations=2", "--set", "merge.population_size=4"]
    out = tmp_path / "by-name"
    with caplog.at_level(logging.INFO, "mega_hf"):
        answer = mega("merge", pair.a, pair.b, "--data", data, "--out", out, *settings)
    assert answer.code == 0, answer.err
    recipe = Recipe.from_yaml(out / "recipe.yaml")
    assert (recipe.name, list(recipe.parents)) == ("by-name", ["a", "b"])
    assert recipe.data.test == "test"
    assert recipe.data.validation.model_dump() == {
        "split": "train",
        "size": 12,
        "seed": 46,
        "stratify": True,
    }
    said = caplog.text + answer.err
    assert "12 rows of train (seed 46): right only if no parent was trained on them" in said
    assert "12 rows of train" in " ".join(MergeResult.load(out).record.notices)


def test_names_of_models_that_share_a_folder_name(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    (tmp_path / "other").mkdir()
    shutil.copytree(pair.b, tmp_path / "other" / "a")
    answer = mega("merge", pair.a, tmp_path / "other" / "a", "--data", pair.data, "--dry-run")
    assert answer.code == 0, answer.err
    assert "a-2  " in answer.out


def test_odd_folder_names_become_plain_names(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    odd = shutil.copytree(pair.a, tmp_path / "sé 4;'x|")
    words = [
        "merge",
        str(odd),
        str(pair.b),
        "--data",
        str(pair.data),
        "--out",
        str(tmp_path / "ö u|t"),
        "--dry-run",
    ]
    assert mega(*words).code == 0


def test_an_unfinished_run_is_not_evaluated(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: x")
    answer = mega("evaluate", str(tmp_path / "run"), "--data", str(pair.data), "--split", "test")
    assert answer.code == 2
    assert "no finished run" in answer.err


def test_the_data_sets_own_validation_split(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    answer = mega(
        "merge", pair.a, pair.b, "--data", pair.data, "--dry-run", "--out", tmp_path / "out"
    )
    assert answer.code == 0
    assert "validation without the held-out rows: 30 rows" in answer.out
    assert "held-out     30 validation rows" in answer.out
    assert "right only if" not in answer.out


def test_dry_run_makes_nothing(
    pair: tiny.Pair, tmp_path: Path, mega, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = pair.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    answer = mega("merge", recipe, "--dry-run")
    assert answer.code == 0, answer.err
    for words in ("cifar_resnet8", "validation: 60 rows", "test: 90 rows", "26 ", "MiB", "second"):
        assert words in answer.out, f"{words} not in\n{answer.out}"
    assert list(tmp_path.iterdir()) == [recipe]


def test_dry_run_finds_what_would_end_the_merge(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    recipe = pair.write(
        tmp_path, parents={"a": str(pair.a), "b": other_architecture(pair, tmp_path)}
    )
    answer = mega("merge", recipe, "--dry-run", "--out", tmp_path / "out")
    assert answer.code == 2
    assert "cifar_resnet32" in answer.err
    assert not (tmp_path / "out").exists()


def test_runs_are_named_after_recipes(
    pair: tiny.Pair, tmp_path: Path, mega, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [
        "--set",
        "merge.generations=1",
        "--set",
        "merge.population_size=3",
        "--set",
        "name=short",
    ]
    assert mega("merge", pair.write(tmp_path / "recipes"), *settings).code == 0
    assert (tmp_path / "runs" / "short" / "result.json").is_file()


def test_paths_of_a_recipe_are_relative_to_it(
    pair: tiny.Pair, tmp_path: Path, mega, monkeypatch
) -> None:
    """And those on the command line to the working folder."""
    for name in ("a", "b", "data"):
        shutil.copytree(getattr(pair, name), tmp_path / "here" / name)
    tree = pair.recipe() | {"data": {"path": "./data"}, "parents": {"a": "./a", "b": "./b"}}
    (tmp_path / "here" / "recipe.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(tmp_path)
    answer = mega("merge", "here/recipe.yaml", "--dry-run", "--set", "parents.b=./here/b")
    assert answer.code == 0, answer.err
    assert str(tmp_path / "here" / "a") in answer.out
    assert str(tmp_path / "here" / "b") in answer.out
    wrong = mega("merge", "here/recipe.yaml", "--dry-run", "--set", "parents.b=./b")
    assert wrong.code == 2
    assert str(tmp_path / "b") in wrong.err


def test_a_finished_run_answers_at_once(
    copied: Path, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    answer = mega("merge", pair.write(tmp_path), "--out", copied)
    assert answer.code == 0, answer.err
    assert str(MergeResult.load(copied).report) in answer.out
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_another_recipe_needs_overwrite(
    copied: Path, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    command = ["merge", pair.write(tmp_path), "--out", copied, "--set", "merge.generations=2"]
    answer = mega(*command)
    assert answer.code == 2
    assert "generations: 5" in answer.err
    assert "generations: 2" in answer.err
    assert "--overwrite" in answer.err
    assert mega(*command, "--overwrite").code == 0
    assert len(MergeResult.load(copied).history) == 2


def test_overwrite_that_fails_leaves_the_earlier_run(
    copied: Path, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    """A mistake in the new recipe must not cost the old result."""
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    wrong = ["--set", "data.validation=train[:0]"]
    assert mega("merge", pair.write(tmp_path), "--out", copied, "--overwrite", *wrong).code == 2
    other = pair.write(
        tmp_path, parents={"a": str(pair.a), "b": other_preprocessing(pair, tmp_path)}
    )
    assert mega("merge", other, "--out", copied, "--overwrite").code == 2
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_the_card_again(copied: Path, mega) -> None:
    before = (copied / "README.md").read_bytes()
    for path in copied.iterdir():  # a published result is result.json alone
        if path.name != "result.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    answer = mega("card", copied)
    assert answer.code == 0, answer.err
    assert answer.out == f"{copied / 'README.md'}\n"
    assert (copied / "README.md").read_bytes() == before
    assert (copied / "fitness.png").read_bytes().startswith(b"\x89PNG")


def test_a_terminal_without_unicode(copied: Path, tmp_path: Path) -> None:
    folder = copied.rename(tmp_path / "r\u00e9sum\u00e9")
    done = subprocess.run(
        [*MEGA, "card", str(folder)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/r?sum?/README.md\n"


def test_the_card_of_no_run(tmp_path: Path, mega) -> None:
    answer = mega("card", tmp_path)
    assert answer.code == 2
    assert "no finished run" in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["merged", "run folder", "parent"])
def test_evaluate(what: str, finished: MergeResult, pair: tiny.Pair, mega) -> None:
    folder = {"merged": finished.merged, "run folder": finished.folder, "parent": pair.a}[what]
    row = finished.report.models[0] if what == "parent" else finished.report.merged
    for split in ("validation", "test"):
        answer = mega("evaluate", folder, "--data", pair.data, "--split", split, "--json")
        assert answer.code == 0, answer.err
        record = json.loads(answer.out)
        correct, n = getattr(row, split).correct, getattr(row, split).n
        assert (record["correct"], record["n"], record["split"]) == (correct, n, split)
        assert record["accuracy"] == pytest.approx(correct / n)
        assert record["interval"] == pytest.approx(wilson_interval(correct, n))
        assert record["matched"] == "by name"


def test_evaluate_says_it_in_a_sentence(finished: MergeResult, pair: tiny.Pair, mega) -> None:
    answer = mega("evaluate", finished.folder, "--data", pair.data, "--split", "test[:50%]")
    assert answer.code == 0
    assert "of 45 correct" in answer.out
    assert "95 % interval" in answer.out
    assert answer.out.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "split", "words"),
    [
        ("nowhere", "test", "no such parent folder"),
        ("", "tests", "tests"),
        ("", "test[:0]", "empty split"),
    ],
)
def test_evaluate_bad_input(
    model: str, split: str, words: str, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    answer = mega(
        "evaluate", tmp_path / model if model else pair.a, "--data", pair.data, "--split", split
    )
    assert answer.code == 2
    assert words in answer.err


def test_compare_models_that_can_be_merged(pair: tiny.Pair, mega) -> None:
    answer = mega("compare", pair.a, pair.b)
    assert answer.code == 0, answer.err
    for words in (
        "cifar_resnet8",
        "77,587",
        "float32",
        "3: bar, dash, slash",
        "cosine",
        "can be merged. Use --data to evaluate mixtures of them.",
    ):
        assert words in answer.out, answer.out
    record = json.loads(mega("compare", pair.a, pair.b, "--json").out)
    assert record["mergeable"] is True
    assert -1 <= record["pairs"][0]["cosine"] <= 1
    assert record["pairs"][0]["distance"] > 0


PROBLEMS: dict[str, tuple[Any, list[str]]] = {
    "architecture": (other_architecture, ["cifar_resnet8", "cifar_resnet32"]),
    "label order": (other_order, ["('bar', 'dash', 'slash')", "('slash', 'dash', 'bar')"]),
    "preprocessing": (other_preprocessing, ["[0.5, 0.5, 0.5]", "[0.4, 0.5, 0.6]"]),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_compare_shows_what_keeps_models_apart(
    problem: str, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    make, words = PROBLEMS[problem]
    other = make(pair, tmp_path)
    answer = mega("compare", pair.a, pair.b, other)
    assert answer.code == 1
    for word in [problem, *words, "can't be merged."]:
        assert word in answer.out, answer.out
    record = json.loads(mega("compare", pair.a, pair.b, other, "--json").out)
    assert record["mergeable"] is False
    assert [bool(p["problems"]) for p in record["pairs"]] == [False, True, True]


@pytest.mark.parametrize("models", [["one"], ["one", "one"]])
def test_compare_needs_two_models(models: list[str], pair: tiny.Pair, mega) -> None:
    answer = mega("compare", *[pair.a for _ in models])
    assert answer.code == 2
    assert "two or more models" in answer.err


def test_arguments_that_make_no_sense(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    for words in (
        ["merge"],
        ["merge", "x.yaml", "--num-processes", "0"],
        ["mrege"],
        ["evaluate", "x"],
    ):
        with pytest.raises(SystemExit) as end:
            mega(*words)
        assert end.value.code == 2


def test_ctrl_c_says_that_the_run_resumes(pair: tiny.Pair, tmp_path: Path, mega, interrupt) -> None:
    interrupt(8)
    answer = mega("merge", pair.write(tmp_path), "--out", tmp_path / "out")
    assert answer.code == 130
    assert answer.err.endswith("mega-hf: interrupted; run the same command to resume\n")
    kept = (tmp_path / "out" / "journal.jsonl").read_bytes()
    assert kept.count(b"fitness") == 8
    assert mega("merge", pair.write(tmp_path), "--out", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "journal.jsonl").read_bytes().startswith(kept)
