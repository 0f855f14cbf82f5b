"""Data sets and splits that can't be used: found before anything is searched, and nothing is
made."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.tools import tiny
from tests.tools.broken import refused


def encoded(
    split: datasets.Dataset, change: Callable[[int, dict[str, Any]], None]
) -> datasets.Dataset:
    """Return a split whose rows were changed while their pictures were files."""
    rows = split.cast_column("image", datasets.Image(decode=False)).to_list()
    for i, row in enumerate(rows):
        change(i, row)
    features = split.features | {"image": datasets.Image(decode=False)}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features)).cast_column(
        "image", datasets.Image()
    )


def break_seventh(i: int, row: dict[str, Any]) -> None:
    if i == 7:
        row["image"] = {"bytes": row["image"]["bytes"][:40], "path": None}


def not_even_a_picture(i: int, row: dict[str, Any]) -> None:
    if i == 7:
        row["image"] = {"bytes": b"no picture", "path": None}


def unlabelled(i: int, row: dict[str, Any]) -> None:
    row["label"] = -1


def splits(**changed: datasets.Dataset) -> dict[str, datasets.Dataset]:
    return {
        name: tiny.split(rows, seed) for seed, (name, rows) in enumerate(tiny.ROWS.items(), 1)
    } | changed


def renamed() -> dict[str, datasets.Dataset]:
    """The data set with a class that the model lacks."""
    return {
        name: tiny.split(rows, 1 + i, ("bar", "dash", "dot"))
        for i, (name, rows) in enumerate(tiny.ROWS.items())
    }


BAD_ROWS: dict[str, tuple[Callable[[], dict[str, datasets.Dataset]], list[str]]] = {
    "broken in validation": (
        lambda: splits(validation=encoded(tiny.split(60, 2), break_seventh)),
        ["broken picture", "row 7 of validation"],
    ),
    "broken in test": (
        lambda: splits(test=encoded(tiny.split(90, 3), break_seventh)),
        ["broken picture", "row 7 of test"],
    ),
    "no picture in test": (
        lambda: splits(test=encoded(tiny.split(90, 3), not_even_a_picture)),
        ["broken picture", "row 7 of test"],
    ),
    "labels of -1": (
        lambda: splits(test=encoded(tiny.split(90, 3), unlabelled)),
        ["labels out of range", "test", "0 to 2", "-1"],
    ),
    "a class that the model lacks": (renamed, ["lacks a class", "dot"]),
    "the same pictures": (
        lambda: splits(validation=tiny.split(90, 3).select(range(60))),
        ["same pictures", "60 of 60"],
    ),
    "no test split": (
        lambda: {k: v for k, v in splits().items() if k != "test"},
        ["test", "train, validation"],
    ),
    "no picture column": (
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
def test_bad_rows(case: str, pair: tiny.Pair, tmp_path: Path, mega) -> None:
    make, words = BAD_ROWS[case]
    data = tiny.write_splits(tmp_path / "data-set", make())
    recipe = pair.write(
        tmp_path, data={"path": str(data), "validation": "validation", "test": "test"}
    )
    # No run folder is left behind, so nothing was searched before the test split's fault was found.
    refused(mega("merge", recipe, "--out", tmp_path / "out"), words, tmp_path)


def test_more_classes_than_outputs(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    shifted = {
        k: tiny.split(n, seed, None).map(shift) for seed, (k, n) in enumerate(tiny.ROWS.items(), 1)
    }
    data = tiny.write_splits(tmp_path / "data-set", shifted)
    recipe = pair.write(tmp_path, data={"path": str(data), "label": "label"})
    words = ["lacks a class", "4 classes", "3 outputs"]
    refused(mega("merge", recipe, "--out", tmp_path / "out"), words, tmp_path)


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
def test_bad_data(case: str, pair: tiny.Pair, tmp_path: Path, mega) -> None:
    changes, words = BAD_DATA[case]
    data = {"path": str(pair.data), "validation": "validation", "test": "test"} | changes
    recipe = pair.write(tmp_path, data=data)
    for more in ((), ("--dry-run",)):
        answer = mega("merge", recipe, "--out", tmp_path / "out", *more)
        refused(answer, words, tmp_path)
        blamed = lines(answer.err, recipe)
        assert len(blamed) == 1 and re.match(
            r"\s*\"?(" + "|".join([*changes, "path"]) + ')"?:', blamed[0]
        ), answer.err


def lines(message: str, recipe: Path) -> list[str]:
    """Return the lines of a recipe that a message names."""
    written = recipe.read_text().splitlines()
    return [
        written[int(number) - 1]
        for number in re.findall(rf"{re.escape(str(recipe))}:(\d+): data", message)
    ]


def test_bad_data_that_a_command_names(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    """What --set says is blamed on it, what nobody says on the block that lacks it."""
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
