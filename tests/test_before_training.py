"""Errors are found before training, which may take days, and no trained parent is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_hf import Recipe, RunError, merge, merge_only, train
from tests.tools import tiny, trainings
from tests.tools.broken import assert_error, copy_model
from tests.tools.run_files import weights_of

SMALL = tiny.MERGE | {"population_size": 4, "generations": 2}


def of_seeds(data: Path, parents: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    return trainings.tree(data, parents, **train) | {"merge": SMALL}


# --- Labels of the training rows


def changed_train(
    folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], names: Any
) -> Path:
    """Write the tiny data set with changed training rows."""
    rows = {
        name: tiny.split(count, seed, names)
        for seed, (name, count) in enumerate(tiny.ROWS.items(), 1)
    }
    return tiny.write_splits(folder, rows | {"train": rows["train"].map(change)})


def remove_label(row: dict[str, Any]) -> dict[str, Any]:
    return {"label": -1 if row["label"] == 1 else row["label"]}


def raise_label(row: dict[str, Any]) -> dict[str, Any]:
    return {"label": row["label"] + 2}


def test_training_rows_without_labels_are_an_error(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    data = changed_train(tmp_path / "data-set", remove_label, tiny.NAMES)
    recipe = pair.write(tmp_path, **of_seeds(data))
    for words in (["--out", tmp_path / "out"], ["--dry-run"]):
        assert_error(
            mega("merge", recipe, *words),
            ["labels out of range in train", "0 to 2", "-1 in row"],
            tmp_path,
        )
    given = pair.write(
        tmp_path, data={"path": str(data), "validation": "validation", "test": "test"}
    )
    assert mega("merge", given, "--dry-run").code == 0, "these rows are not used"


def test_classes_of_the_training_rows_alone_count(tmp_path: Path) -> None:
    data = changed_train(tmp_path / "data-set", raise_label, None)
    recipe = Recipe.from_dict(of_seeds(data) | {"data": {"path": str(data), "label": "label"}})
    result = merge(recipe, tmp_path / "out")
    assert result.record.data.classes == 5


# --- Parents that can't be merged

OTHER_MEAN = {**trainings.TRAIN["data_config"], "mean": [0.4] * 3}
APART: dict[str, tuple[Callable[[tiny.Pair, Path], dict[str, Any]], list[str]]] = {
    "architectures": (
        lambda pair, folder: {"a": {"seed": 1}, "b": {"seed": 2, "arch": "cifar_resnet32"}},
        ["a and b can't be merged: different architecture", "cifar_resnet32"],
    ),
    "preprocessing": (
        lambda pair, folder: {"a": {"seed": 1, "data_config": OTHER_MEAN}, "b": str(pair.b)},
        ["b and a can't be merged: different preprocessing", "0.4"],
    ),
    "dtypes": (
        lambda pair, folder: {"a": {"seed": 1}, "b": half(pair, folder)},
        ["can't be merged: different shapes or dtypes", "float16"],
    ),
    "order of the classes": (
        lambda pair, folder: {
            "a": {"seed": 1},
            "b": copy_model(pair.b, folder / "named", other_names),
        },
        ["can't be merged: different classes or label order", "slash"],
    ),
    "only which snapshots are kept": (
        lambda pair, folder: {"a": {"seed": 1}, "b": {"seed": 1, "checkpoints": 1}},
        ["another model than a"],
    ),
}


def half(pair: tiny.Pair, folder: Path) -> str:
    import timm

    model = timm.create_model(f"local-dir:{pair.b}", pretrained=True)
    return str(tiny.save_timm(folder / "half", model, dtype=tiny.torch.float16))


def other_names(config: dict[str, Any]) -> None:
    config["label_names"] = list(reversed(tiny.NAMES))


@pytest.mark.parametrize("case", APART)
def test_parents_that_do_not_fit_together_are_an_error(
    case: str, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    make, words = APART[case]
    recipe = pair.write(tmp_path, **of_seeds(pair.data, make(pair, tmp_path)))
    assert_error(mega("merge", recipe, "--out", tmp_path / "out"), words, tmp_path)
    said = mega("merge", recipe, "--dry-run")
    assert said.code == 2, f"the dry run raised no error:\n{said.out}"


def test_a_fine_tune_keeps_the_dtype_of_what_it_starts_from(
    pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    """The dtype is read from the file header before training, and such parents can be merged."""
    source = half(pair, tmp_path)
    parents = {
        "a": {"seed": 1, "from": source, "learning_rate": 0.1},
        "b": {"seed": 2, "from": "a"},
        "c": source,
    }
    recipe = of_seeds(pair.data, parents, epochs=1)
    assert mega("merge", pair.write(tmp_path, **recipe), "--dry-run").code == 0
    merge(Recipe.from_dict(recipe), tmp_path / "out")


# --- What was trained already

OTHERWISE = "a already exists but was trained differently"


@pytest.fixture
def data_copy(pair: tiny.Pair, tmp_path: Path) -> Path:
    """A copy of the data set, for changes."""
    return Path(shutil.copytree(pair.data, tmp_path / "data-set"))


def of_three(data: Path, **train: Any) -> Recipe:
    parents = {name: {"seed": seed} for seed, name in enumerate("abc", 1)}
    return Recipe.from_dict(
        of_seeds(data, parents, **({"epochs": 1} | train)) | {"merges": "pairwise"}
    )


def fewer_rows(data: Path, rows: int = 90) -> None:
    """Reduce the training rows of a data set."""
    splits = {
        name: tiny.split(count, seed) for seed, (name, count) in enumerate(tiny.ROWS.items(), 1)
    }
    shutil.rmtree(data)
    tiny.write_splits(data, splits | {"train": splits["train"].select(range(rows))})


def test_parents_with_different_data_are_not_replaced_without_update(
    data_copy: Path, tmp_path: Path
) -> None:
    recipe, out = of_three(data_copy), tmp_path / "out"
    merge_only(recipe, "a+b", out)
    kept = trainings.stored(out / "parents")
    fewer_rows(data_copy)
    for run in (merge, train):
        with pytest.raises(RunError, match=OTHERWISE):
            run(recipe, out)
    assert trainings.stored(out / "parents") == kept
    result = merge(recipe, out, update=True)
    assert weights_of(result.folder) == weights_of(merge(recipe, tmp_path / "fresh").folder)
    kept = trainings.stored(out / "parents")
    fewer_rows(data_copy, 120)
    with pytest.raises(RunError, match=OTHERWISE):
        train(recipe, out)
    assert trainings.stored(out / "parents") == kept


def test_parents_that_no_merge_has_used_are_not_replaced(data_copy: Path, tmp_path: Path) -> None:
    recipe, out = of_three(data_copy, epochs=2), tmp_path / "out"
    train(recipe, out, parent="b")
    fewer_rows(data_copy)
    with pytest.raises(RunError, match="b already exists but was trained differently"):
        merge(recipe, out)
    with pytest.raises(KeyboardInterrupt):
        trainings.train(tmp_path / "half", recipe, ["a"], trainings.Watch(batches=5))
    fewer_rows(data_copy, 120)
    with pytest.raises(RunError, match=rf"a@training: {OTHERWISE}"):
        merge(recipe, tmp_path / "other", parents=tmp_path / "half")


def test_parents_of_a_different_recipe_are_not_replaced(pair: tiny.Pair, tmp_path: Path) -> None:
    shared = tmp_path / "parents"
    train(of_three(pair.data), tmp_path / "one", parents=shared)
    kept = trainings.stored(shared)
    for overwrite in (False, True):
        with pytest.raises(RunError, match="another --parents"):
            merge(
                of_three(pair.data, learning_rate=0.1),
                tmp_path / "two",
                parents=shared,
                overwrite=overwrite,
            )
    assert trainings.stored(shared) == kept


def test_update_of_one_node_allows_the_rest_to_be_updated(pair: tiny.Pair, tmp_path: Path) -> None:
    """A second run needs no --update, and no report of the old parents is left."""
    out, changed = tmp_path / "out", of_three(pair.data, learning_rate=0.1)
    merge(of_three(pair.data), out)
    merge_only(changed, "a+b", out, update=True)
    with pytest.raises(RunError, match="c already exists"):
        merge(changed, out)
    train(changed, out, update=True)
    assert not (out / "result.json").exists()
    train(changed, out)
    result = merge(changed, out)
    assert weights_of(result.folder) == weights_of(merge(changed, tmp_path / "fresh").folder)


@pytest.mark.parametrize("where", ["", "nodes", "merged/deep"])
def test_trained_parents_inside_the_run_folder_are_an_error(
    where: str, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    recipe, out = pair.write(tmp_path, **of_seeds(pair.data)), tmp_path / "out"
    answer = mega("merge", recipe, "--out", out, "--parents", out / where)
    assert_error(answer, ["can't be kept there", "outside the run's"], tmp_path)


# --- A node that is named before the parents are ranked


def test_only_needs_parents_that_are_ranked(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    parents = {name: {"seed": seed} for seed, name in enumerate("abc")}
    tree = of_seeds(pair.data, parents) | {"merges": "pairwise", "order": "accuracy"}
    recipe, out = pair.write(tmp_path, **tree), tmp_path / "out"
    words = ["has not ranked the parents yet", "run the whole tree first", "order: listed"]
    for command in (["--out", out], ["--out", out, "--dry-run"]):
        assert_error(mega("merge", recipe, "--only", "c+a", *command), words, tmp_path)
