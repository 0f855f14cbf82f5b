"""What would end a run after its training, which may take days, is found before it; and nothing trained is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_hf import Recipe, RunError, merge, merge_only
from tests import tiny, trainings
from tests.broken import copy_model, refused
from tests.run_files import weights_of

SMALL = tiny.MERGE | {"population_size": 4, "generations": 2}


def of_seeds(data: Path, parents: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    return trainings.tree(data, parents, **train) | {"merge": SMALL}


# --- Labels of the training rows


def changed_train(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], names: Any) -> Path:
    """Write the tiny data set, its training rows changed."""
    rows = {name: tiny.split(count, seed, names) for seed, (name, count) in enumerate(tiny.ROWS.items(), 1)}
    return tiny.write_splits(folder, rows | {"train": rows["train"].map(change)})


def unlabelled(row: dict[str, Any]) -> dict[str, Any]:
    return {"label": -1 if row["label"] == 1 else row["label"]}


def more_classes(row: dict[str, Any]) -> dict[str, Any]:
    return {"label": row["label"] + 2}


def test_rows_without_a_label_are_not_trained_on(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    data = changed_train(tmp_path / "data-set", unlabelled, tiny.NAMES)
    recipe = pair.write(tmp_path, **of_seeds(data))
    for words in (["--out", tmp_path / "out"], ["--dry-run"]):
        refused(mega("merge", recipe, *words), ["labels out of range in train", "0 to 2", "-1 in row"], tmp_path)
    given = pair.write(tmp_path, data={"path": str(data), "validation": "validation", "test": "test"})
    assert mega("merge", given, "--dry-run").code == 0, "nothing is trained on them"


def test_classes_that_only_training_rows_have(tmp_path: Path) -> None:
    data = changed_train(tmp_path / "data-set", more_classes, None)
    recipe = Recipe.from_dict(of_seeds(data) | {"data": {"path": str(data), "label": "label"}})
    result = merge(recipe, tmp_path / "out")
    assert result.record["data"]["classes"] == 5


# --- Parents that can't be merged

OTHER_MEAN = {**trainings.TRAIN["data_config"], "mean": [0.4] * 3}
APART: dict[str, tuple[Callable[[tiny.Pair, Path], dict[str, Any]], list[str]]] = {
    "architectures": (
        lambda pair, folder: {"a": {"seed": 1}, "b": {"seed": 2, "arch": "cifar_resnet32"}},
        ["a and b can't be merged: other architecture", "cifar_resnet32"],
    ),
    "preprocessing": (
        lambda pair, folder: {"a": {"seed": 1, "data_config": OTHER_MEAN}, "b": str(pair.b)},
        ["b and a can't be merged: other preprocessing", "0.4"],
    ),
    "dtypes": (
        lambda pair, folder: {"a": {"seed": 1}, "b": half(pair, folder)},
        ["can't be merged: other shapes or dtypes", "float16"],
    ),
    "order of the classes": (
        lambda pair, folder: {"a": {"seed": 1}, "b": copy_model(pair.b, folder / "named", other_names)},
        ["can't be merged: other classes or label order", "slash"],
    ),
    "only which snapshots are kept": (
        lambda pair, folder: {"a": {"seed": 1}, "b": {"seed": 1, "checkpoints": 1}},
        ["another model than a", "the same twice"],
    ),
}  # fmt: skip


def half(pair: tiny.Pair, folder: Path) -> str:
    import timm

    model = timm.create_model(f"local-dir:{pair.b}", pretrained=True)
    return str(tiny.save_timm(folder / "half", model, dtype=tiny.torch.float16))


def other_names(config: dict[str, Any]) -> None:
    config["label_names"] = list(reversed(tiny.NAMES))


@pytest.mark.parametrize("case", APART)
def test_parents_that_can_not_be_merged(case: str, pair: tiny.Pair, tmp_path: Path, mega) -> None:
    make, words = APART[case]
    recipe = pair.write(tmp_path, **of_seeds(pair.data, make(pair, tmp_path)))
    refused(mega("merge", recipe, "--out", tmp_path / "out"), words, tmp_path)
    said = mega("merge", recipe, "--dry-run")
    assert said.code == 2, f"the dry run has nothing against it:\n{said.out}"


def test_a_fine_tune_keeps_the_dtype_of_what_it_starts_from(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    """It is known from the header of the weights before any is read, and two such parents go together."""
    source = half(pair, tmp_path)
    parents = {"a": {"seed": 1, "from": source, "learning_rate": 0.1}, "b": {"seed": 2, "from": "a"}, "c": source}
    recipe = of_seeds(pair.data, parents, epochs=1)
    assert mega("merge", pair.write(tmp_path, **recipe), "--dry-run").code == 0
    merge(Recipe.from_dict(recipe), tmp_path / "out")


# --- What was trained already


@pytest.fixture
def begun(pair: tiny.Pair, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A tree of three of which one node was made, and its data set, which may be changed."""
    data = Path(shutil.copytree(pair.data, tmp_path / "data-set"))
    parents = {"a": {"seed": 1}, "b": {"seed": 2}, "c": {"seed": 3}}
    recipe = of_seeds(data, parents, epochs=1) | {"merges": "pairwise"}
    merge_only(Recipe.from_dict(recipe), "a+b", tmp_path / "out")
    return recipe, data


def test_parents_of_a_run_are_not_trained_otherwise_unasked(begun, tmp_path: Path) -> None:
    recipe, data = begun
    kept = trainings.stored(tmp_path / "out" / "parents")
    rows = {name: tiny.split(count, seed) for seed, (name, count) in enumerate(tiny.ROWS.items(), 1)}
    shutil.rmtree(data)
    tiny.write_splits(data, rows | {"train": rows["train"].select(range(90))})
    with pytest.raises(RunError, match="a would be trained again, otherwise than this run began"):
        merge(Recipe.from_dict(recipe), tmp_path / "out")
    assert trainings.stored(tmp_path / "out" / "parents") == kept
    result = merge(Recipe.from_dict(recipe), tmp_path / "out", update=True)
    assert weights_of(result.folder) == weights_of(merge(Recipe.from_dict(recipe), tmp_path / "fresh").folder)
    shutil.rmtree(data)
    tiny.write_splits(data, rows)
    (tmp_path / "out" / "result.json").unlink()
    with pytest.raises(RunError, match="otherwise than this run began"):
        merge(Recipe.from_dict(recipe), tmp_path / "out")


# --- A node that is named before the parents are ranked


def test_a_node_that_no_order_gives(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    parents = {name: {"seed": seed} for seed, name in enumerate("abc")}
    recipe = pair.write(tmp_path, **of_seeds(pair.data, parents), merges="pairwise", order="accuracy")
    for name in ("nosuch", "a+b+c+d", "a+a"):
        words = ["no such node", "a+b, a+b+c", "in another order", name]
        refused(mega("merge", recipe, "--only", name, "--out", tmp_path / "out"), words, tmp_path)
    assert mega("merge", recipe, "--only", "c+a", "--dry-run").code == 0, "it may be the one"
