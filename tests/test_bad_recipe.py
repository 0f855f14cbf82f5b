"""A bad recipe, setting or output folder is an error before anything is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tools import tiny
from tests.tools.broken import assert_error


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "merge.tournament_size=7",
            ["tournament_size", "at most population_size, which is 6", "7"],
        ),
        ("merge.generation=7", ["unknown key", "did you mean generations?"]),
        ("merge.seed", ["--set KEY.KEY=VALUE"]),
    ],
    ids=["invalid", "unknown key", "no value"],
)
def test_a_bad_setting_is_an_error(
    setting: str, words: list[str], pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    """Every other setting: tests/recipe."""
    answer = mega("merge", pair.write(tmp_path), "--set", setting, "--out", tmp_path / "out")
    assert_error(answer, [*words, "--set"], tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"name: [", ["invalid YAML", "recipe.yaml:1"]),
        (b"name: x\ndatta: {}\n", ["unknown key", "did you mean data?", "recipe.yaml:2"]),
        (b"name: \xff\n", ["UTF-8"]),
    ],
    ids=["not YAML", "unknown key", "not UTF-8"],
)
def test_a_bad_recipe_file_is_an_error(text: bytes, words: list[str], tmp_path: Path, mega) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(text)
    assert_error(mega("merge", file, "--out", tmp_path / "out"), words, tmp_path)


def test_a_missing_recipe_is_an_error(tmp_path: Path, mega) -> None:
    assert_error(
        mega("merge", tmp_path / "none.yaml", "--out", tmp_path / "out"),
        ["no such recipe", "none.yaml"],
        tmp_path,
    )


def test_one_model_alone_is_an_error(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    answer = mega("merge", pair.a, "--data", pair.data, "--out", tmp_path / "out")
    assert_error(answer, ["at least two models", "two or more models"], tmp_path)


def test_models_without_data_are_an_error(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    assert_error(
        mega("merge", pair.a, pair.b, "--out", tmp_path / "out"),
        ["need a data set", "--data"],
        tmp_path,
    )


@pytest.mark.parametrize("where", ["a file", "below a file"])
def test_a_file_as_output_folder_is_an_error(
    where: str, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    file = tmp_path / "taken"
    file.write_text("precious")
    answer = mega(
        "merge", pair.write(tmp_path), "--out", file if where == "a file" else file / "out"
    )
    assert_error(answer, ["can't be written", "taken"], tmp_path)
    assert file.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_write_permission_is_an_error(
    pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert_error(
        mega("merge", pair.write(tmp_path), "--out", locked / "out"),
        ["can't be written", "locked"],
        tmp_path,
    )


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="needs a file system that even root can't write to"
)
def test_an_output_folder_that_cannot_be_created_is_an_error(
    pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    answer = mega("merge", pair.write(tmp_path), "--out", "/proc/mega-tests/out")
    assert_error(answer, ["/proc/mega-tests"], tmp_path)


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["plain", "overwrite"])
def test_an_output_folder_with_other_files_is_an_error(
    overwrite: list[str], pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("precious")
    answer = mega("merge", pair.write(tmp_path), "--out", tmp_path / "photos", *overwrite)
    assert_error(answer, ["not a run folder", "cat.jpg"], tmp_path)
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
