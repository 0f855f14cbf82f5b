"""What would end a run after its training, which may take days, is found before it; and nothing
trained is lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mega_hf import Recipe, RunError, merge, merge_only, train
from tests.tools import tiny, trainings
from tests.tools.broken import copy_model, refused
from tests.tools.run_files import weights_of

SMALL = tiny.MERGE | {"population_size": 4, "generations": 2}


def of_seeds(data: Path, parents: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    return trainings.tree(data, parents, **train) | {"merge": SMALL}


# --- Labels of the training rows


def changed_train(
    folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]], names: Any
) -> Path:
    """Write the tiny data set, its training rows changed."""
    rows = {
        name: tiny.split(count, seed, names)
        for seed, (name, count) in enumerate(tiny.ROWS.items(), 1)
    }
    return tiny.write_splits(folder, rows | {"train": rows["train"].map(change)})


def unlabelled(row: dict[str, Any]) -> dict[str, Any]:
    return {"label": -1 if row["label"] == 1 else row["label"]}


def more_classes(row: dict[str, Any]) -> dict[str, Any]:
    return {"label": row["label"] + 2}


def test_rows_without_a_label_are_not_trained_on(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    data = changed_train(tmp_path / "data-set", unlabelled, tiny.NAMES)
    recipe = pair.write(tmp_path, **of_seeds(data))
    for words in (["--out", tmp_path / "out"], ["--dry-run"]):
        refused(
            mega("merge", recipe, *words),
            ["labels out of range in train", "0 to 2", "-1 in row"],
            tmp_path,
        )
    given = pair.write(
        tmp_path, data={"path": str(data), "validation": "validation", "test": "test"}
    )
    assert mega("merge", given, "--dry-run").code == 0, "nothing is trained on them"


def test_classes_that_only_training_rows_have(tmp_path: Path) -> None:
    data = changed_train(tmp_path / "data-set", more_classes, None)
    recipe = Recipe.from_dict(of_seeds(data) | {"data": {"path": str(data), "label": "label"}})
    result = merge(recipe, tmp_path / "out")
    assert result.record.data.classes == 5


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
        lambda pair, folder: {
            "a": {"seed": 1},
            "b": copy_model(pair.b, folder / "named", other_names),
        },
        ["can't be merged: other classes or label order", "slash"],
    ),
    "only which snapshots are kept": (
        lambda pair, folder: {"a": {"seed": 1}, "b": {"seed": 1, "checkpoints": 1}},
        ["another model than a", "the same twice"],
    ),
}


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


def test_a_fine_tune_keeps_the_dtype_of_what_it_starts_from(
    pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    """It is known from the header of the weights before any is read, and two such parents go
    together."""
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

OTHERWISE = "a lies there, trained otherwise"


@pytest.fixture
def data_copy(pair: tiny.Pair, tmp_path: Path) -> Path:
    """A data set that may be changed."""
    return Path(shutil.copytree(pair.data, tmp_path / "data-set"))


def of_three(data: Path, **train: Any) -> Recipe:
    parents = {name: {"seed": seed} for seed, name in enumerate("abc", 1)}
    return Recipe.from_dict(
        of_seeds(data, parents, **({"epochs": 1} | train)) | {"merges": "pairwise"}
    )


def fewer_rows(data: Path, rows: int = 90) -> None:
    """Leave so many training rows in a data set."""
    splits = {
        name: tiny.split(count, seed) for seed, (name, count) in enumerate(tiny.ROWS.items(), 1)
    }
    shutil.rmtree(data)
    tiny.write_splits(data, splits | {"train": splits["train"].select(range(rows))})


def test_parents_of_a_run_are_not_trained_otherwise_unasked(
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


def test_nor_are_those_that_no_merge_has_used(data_copy: Path, tmp_path: Path) -> None:
    recipe, out = of_three(data_copy, epochs=2), tmp_path / "out"
    train(recipe, out, parent="b")
    fewer_rows(data_copy)
    with pytest.raises(RunError, match="b lies there, trained otherwise"):
        merge(recipe, out)
    with pytest.raises(KeyboardInterrupt):
        trainings.train(tmp_path / "half", recipe, ["a"], trainings.Watch(batches=5))
    fewer_rows(data_copy, 120)
    with pytest.raises(RunError, match=rf"a@training: {OTHERWISE}"):
        merge(recipe, tmp_path / "other", parents=tmp_path / "half")


def test_nor_are_those_of_another_recipe(pair: tiny.Pair, tmp_path: Path) -> None:
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


def test_after_an_update_of_a_part_the_rest_goes_on(pair: tiny.Pair, tmp_path: Path) -> None:
    """Whoever has said --update once need not say it again; and no report stands that is of other
    parents."""
    out, changed = tmp_path / "out", of_three(pair.data, learning_rate=0.1)
    merge(of_three(pair.data), out)
    merge_only(changed, "a+b", out, update=True)
    with pytest.raises(RunError, match="c lies there"):
        merge(changed, out)
    train(changed, out, update=True)
    assert not (out / "result.json").exists()
    train(changed, out)
    result = merge(changed, out)
    assert weights_of(result.folder) == weights_of(merge(changed, tmp_path / "fresh").folder)


@pytest.mark.parametrize("where", ["", "nodes", "merged/deep"])
def test_trained_parents_among_a_runs_own_files(
    where: str, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    recipe, out = pair.write(tmp_path, **of_seeds(pair.data)), tmp_path / "out"
    answer = mega("merge", recipe, "--out", out, "--parents", out / where)
    refused(answer, ["can't be kept there", "outside the run's"], tmp_path)


# --- A node that is named before the parents are ranked


def test_only_needs_parents_that_are_ranked(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    parents = {name: {"seed": seed} for seed, name in enumerate("abc")}
    recipe, out = (
        pair.write(tmp_path, **of_seeds(pair.data, parents), merges="pairwise", order="accuracy"),
        tmp_path / "out",
    )
    words = ["has not ranked the parents yet", "run the whole tree first", "order: listed"]
    for command in (["--out", out], ["--out", out, "--dry-run"]):
        refused(mega("merge", recipe, "--only", "c+a", *command), words, tmp_path)
