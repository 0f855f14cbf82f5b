"""A run resumes in its folder, a finished run is returned, and a different recipe is an error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mega_hf import MergeResult, Recipe, RunError, merge
from mega_hf.evaluation.racing import RacingEvaluator
from tests.tools import tiny
from tests.tools.run_files import FILES, lines, names, weights_of


def test_a_run_resumes_from_its_journal(
    finished: MergeResult, pair: tiny.Pair, copied: Path
) -> None:
    """As after a crash: the journal ends in the middle of a line, and there are no other files."""
    whole = (copied / "journal.jsonl").read_bytes().splitlines(keepends=True)
    for name in FILES - {"journal.jsonl", "recipe.yaml"}:
        path = copied / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    kept = b"".join(whole[:12])
    (copied / "journal.jsonl").write_bytes(kept + whole[12][:20])
    (copied / ".mega-merged").mkdir()
    merge(Recipe.from_dict(pair.recipe()), copied)
    assert (copied / "journal.jsonl").read_bytes().startswith(kept), "something was evaluated again"
    assert [strip(line) for line in lines(copied)] == [
        strip(line) for line in lines(finished.folder)
    ]
    assert weights_of(copied) == weights_of(finished.folder)
    assert names(copied) == FILES


def strip(line: dict[str, Any]) -> dict[str, Any]:
    """Remove the counts that may be larger in a resumed run."""
    return {key: value for key, value in line.items() if key not in ("seconds", "crc", "pictures")}


def test_a_complete_journal_is_replayed_without_evaluation(
    finished: MergeResult, pair: tiny.Pair, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "merged")
    monkeypatch.setattr(
        RacingEvaluator, "_evaluate", lambda *_: pytest.fail("an individual was evaluated again")
    )
    merge(Recipe.from_dict(pair.recipe()), copied)
    assert weights_of(copied) == weights_of(finished.folder)


def test_changed_merged_weights_are_made_again(
    finished: MergeResult, pair: tiny.Pair, copied: Path
) -> None:
    file = copied / "merged" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    merge(Recipe.from_dict(pair.recipe()), copied)
    assert weights_of(copied) == weights_of(finished.folder)


@pytest.mark.parametrize("what", ["parents", "data"])
def test_a_journal_of_different_inputs_is_an_error(
    what: str, pair: tiny.Pair, tmp_path: Path
) -> None:
    """The recipe is the same, but the content of the folders has changed."""
    moved = tiny.Pair(tmp_path / "a", tmp_path / "b", tmp_path / "data")
    for name in ("a", "b", "data"):
        shutil.copytree(getattr(pair, name), getattr(moved, name))
    result = merge(Recipe.from_dict(moved.recipe()), tmp_path / "out")
    (result.folder / "result.json").unlink()
    if what == "parents":
        tiny.save_timm(tmp_path / "new", tiny.timm_model(seed=9))
        shutil.copyfile(tmp_path / "new" / "model.safetensors", moved.b / "model.safetensors")
    else:
        shutil.rmtree(moved.data)
        tiny.write_data(moved.data, tiny.ROWS | {"validation": 59})
    before = (result.folder / "journal.jsonl").read_bytes()
    with pytest.raises(RunError, match=f"different {what}"):
        merge(Recipe.from_dict(moved.recipe()), tmp_path / "out")
    assert (result.folder / "journal.jsonl").read_bytes() == before


def test_a_finished_run_is_returned_unchanged(
    copied: Path, pair: tiny.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        RacingEvaluator, "_evaluate", lambda *_: pytest.fail("a finished run was evaluated again")
    )
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in copied.rglob("*")
        if path.is_file()
    }
    result = merge(Recipe.from_dict(pair.recipe()), copied)
    assert result.record.encode() == (copied / "result.json").read_bytes()
    after = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in copied.rglob("*")
        if path.is_file()
    }
    assert after == before
    # The recipe in the folder lists every default, and is the same recipe.
    assert merge(Recipe.from_yaml(copied / "recipe.yaml"), copied).record == result.record


def test_a_different_recipe_is_an_error_that_shows_the_difference(
    copied: Path, pair: tiny.Pair
) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="a different recipe") as error:
        merge(Recipe.from_dict(pair.recipe(merge=tiny.MERGE | {"seed": 7})), copied)
    assert "seed: 46" in str(error.value)
    assert "seed: 7" in str(error.value)
    assert "generations" not in str(error.value), "only differences are shown"
    assert "--overwrite" in str(error.value)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_overwrite_starts_again(copied: Path, pair: tiny.Pair) -> None:
    tree = pair.recipe(merge=tiny.MERGE | {"seed": 7, "generations": 2})
    result = merge(Recipe.from_dict(tree), copied, overwrite=True)
    assert len(lines(copied)) == 1 + 6 + 5
    assert result.record.recipe["merge"]["seed"] == 7
    assert Recipe.from_yaml(copied / "recipe.yaml").merge.seed == 7
    assert names(copied) == FILES
