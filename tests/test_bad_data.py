"""A data set or split that cannot be used is an error before the search, and leaves no files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.tools import tiny
from tests.tools.broken import PARTS, assert_error


def with_changed_files(
    split: datasets.Dataset, change: Callable[[int, dict[str, Any]], None]
) -> datasets.Dataset:
    """Return a split whose rows were changed while their images were encoded."""
    rows = split.cast_column("image", datasets.Image(decode=False)).to_list()
    for i, row in enumerate(rows):
        change(i, row)
    features = split.features | {"image": datasets.Image(decode=False)}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features)).cast_column(
        "image", datasets.Image()
    )


def truncate_image_7(i: int, row: dict[str, Any]) -> None:
    if i == 7:
        row["image"] = {"bytes": row["image"]["bytes"][:40], "path": None}


def not_an_image(i: int, row: dict[str, Any]) -> None:
    if i == 7:
        row["image"] = {"bytes": b"not an image", "path": None}


def remove_label(i: int, row: dict[str, Any]) -> None:
    row["label"] = -1


def splits(**changed: datasets.Dataset) -> dict[str, datasets.Dataset]:
    return {
        name: tiny.split(rows, seed) for seed, (name, rows) in enumerate(tiny.ROWS.items(), 1)
    } | changed


def with_unknown_class() -> dict[str, datasets.Dataset]:
    """Return the data set with a class that the model does not have."""
    return {
        name: tiny.split(rows, 1 + i, ("bar", "dash", "dot"))
        for i, (name, rows) in enumerate(tiny.ROWS.items())
    }


BAD_ROWS: dict[str, tuple[Callable[[], dict[str, datasets.Dataset]], list[str]]] = {
    "labels of -1": (
        lambda: splits(test=with_changed_files(tiny.split(90, 3), remove_label)),
        ["labels out of range", "test", "0 to 2", "-1"],
    ),
    "a class that the model does not have": (with_unknown_class, ["lacks a class", "dot"]),
    "the same images": (
        lambda: splits(validation=tiny.split(90, 3).select(range(60))),
        ["same images", "60 of 60"],
    ),
    "no test split": (
        lambda: {k: v for k, v in splits().items() if k != "test"},
        ["test", "train, validation"],
    ),
    "no image column": (
        lambda: {
            k: v.remove_columns("image").add_column("x", list(range(len(v))))
            for k, v in splits().items()
        },
        ["image", "Image column"],
    ),
    "labels that are text": (
        lambda: {k: v.cast_column("label", datasets.Value("string")) for k, v in splits().items()},
        ["label", "ClassLabel"],
    ),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_an_error(case: str, pair: tiny.Pair, tmp_path: Path, mega) -> None:
    make, words = BAD_ROWS[case]
    data = tiny.write_splits(tmp_path / "data-set", make())
    recipe = pair.write(
        tmp_path, data={"path": str(data), "validation": "validation", "test": "test"}
    )
    # No run folder is left: errors of the test split are found before the search.
    assert_error(mega("merge", recipe, "--out", tmp_path / "out"), words, tmp_path)


@pytest.mark.parametrize("change", [truncate_image_7, not_an_image])
def test_a_broken_test_image_leaves_a_run_that_resumes(
    change: Any, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    """Test images are decoded after the search, whose journal is kept."""
    broken = splits(test=with_changed_files(tiny.split(90, 3), change))
    data, out = tiny.write_splits(tmp_path / "data-set", broken), tmp_path / "out"
    recipe = pair.write(
        tmp_path, data={"path": str(data), "validation": "validation", "test": "test"}
    )
    answer = mega("merge", recipe, "--out", out)
    assert answer.code == 2 and "broken image in row 7 of test" in answer.err, answer
    assert all(part in answer.err for part in PARTS) and "Traceback" not in answer.err
    assert not (out / "result.json").exists()
    journal = (out / "journal.jsonl").read_bytes().splitlines()
    shutil.rmtree(data)
    tiny.write_splits(data, splits())
    answer = mega("merge", recipe, "--out", out, "--update")
    assert answer.code == 0, answer
    resumed = (out / "journal.jsonl").read_bytes().splitlines()
    assert resumed[: len(journal)] == journal
    kinds = [json.loads(line)["kind"] for line in resumed[len(journal) :]]
    assert kinds == ["header"], "something was searched again"


@pytest.mark.parametrize("row", [0, 7])
def test_a_broken_validation_image(row: int, pair: tiny.Pair, tmp_path: Path, mega) -> None:
    """Rows of the search, and of the held-out selection, to which row 7 belongs."""

    def break_row(i: int, image: dict[str, Any]) -> None:
        truncate_image_7(7 if i == row else -1, image)

    broken = splits(validation=with_changed_files(tiny.split(60, 2), break_row))
    data = tiny.write_splits(tmp_path / "data-set", broken)
    recipe = pair.write(
        tmp_path, data={"path": str(data), "validation": "validation", "test": "test"}
    )
    answer = mega("merge", recipe, "--out", tmp_path / "out")
    assert answer.code == 2 and f"broken image in row {row} of validation" in answer.err, answer
    assert not (tmp_path / "out" / "result.json").exists()


def test_more_classes_than_outputs_are_an_error(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    shifted = {
        k: tiny.split(n, seed, None).map(shift) for seed, (k, n) in enumerate(tiny.ROWS.items(), 1)
    }
    data = tiny.write_splits(tmp_path / "data-set", shifted)
    recipe = pair.write(tmp_path, data={"path": str(data), "label": "label"})
    words = ["lacks a class", "4 classes", "3 outputs"]
    assert_error(mega("merge", recipe, "--out", tmp_path / "out"), words, tmp_path)


def shift(row: dict[str, Any]) -> dict[str, Any]:
    return {"label": row["label"] + 1}


BAD_DATA: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such folder": ({"path": "./nowhere"}, ["no such data folder", "nowhere"]),
    "no network": ({"path": "org/data"}, ["org/data", "./FOLDER"]),
    "no slice": ({"validation": "train[5"}, ["train[5"]),
    "no such split": ({"validation": "valid"}, ["valid", "train, validation, test"]),
    "empty": ({"validation": "train[:0]"}, ["empty split", "train[:0]"]),
    "empty by its bounds": ({"validation": "train[500:]"}, ["train[500:]"]),
    "overlapping": (
        {"validation": "train[50:]", "test": "train[:60]"},
        ["overlap", "10 rows of train"],
    ),
    "overlapping sample": (
        {"validation": {"split": "train", "size": 60, "seed": 1}, "test": "train[:119]"},
        ["overlap", "of train"],
    ),
    "the same split": ({"validation": "test", "test": "test"}, ["overlap", "90 rows"]),
    "a sample too large": ({"validation": {"split": "train", "size": 121}}, ["120", "121"]),
    "no such image column": ({"image": "img"}, ["no such column", "img", "image, label"]),
    "no such label column": ({"label": "fine"}, ["no such column", "fine", "image, label"]),
    "columns exchanged": ({"image": "label", "label": "image"}, ["label", "Image column"]),
    "no such configuration": ({"name": "other"}, ["other"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_settings_are_an_error(case: str, pair: tiny.Pair, tmp_path: Path, mega) -> None:
    changes, words = BAD_DATA[case]
    data = {"path": str(pair.data), "validation": "validation", "test": "test"} | changes
    recipe = pair.write(tmp_path, data=data)
    for more in ((), ("--dry-run",)):
        answer = mega("merge", recipe, "--out", tmp_path / "out", *more)
        assert_error(answer, words, tmp_path)
        named = named_lines(answer.err, recipe)
        assert len(named) == 1 and re.match(
            r"\s*\"?(" + "|".join([*changes, "path"]) + ')"?:', named[0]
        ), answer.err


def named_lines(message: str, recipe: Path) -> list[str]:
    """Return the lines of a recipe that an error names."""
    written = recipe.read_text().splitlines()
    return [
        written[int(number) - 1]
        for number in re.findall(rf"{re.escape(str(recipe))}:(\d+): data", message)
    ]


def test_an_error_names_the_option_that_set_the_value(
    pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    recipe = pair.write(tmp_path, data={"path": str(pair.data)})
    answer = mega("merge", recipe, "--set", "data.validation=valid", "--out", tmp_path / "out")
    assert (
        answer.code == 2
        and "error: --set data.validation: data.validation: no such split" in answer.err
    )
    answer = mega(
        "merge",
        pair.a,
        pair.b,
        "--data",
        pair.data,
        "--validation",
        "valid",
        "--out",
        tmp_path / "out",
    )
    assert answer.code == 2 and "error: command line: data.validation: no such split" in answer.err
