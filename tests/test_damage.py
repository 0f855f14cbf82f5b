"""Damaged models, changed recipes and unknown files in a run folder are neither used nor lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mega_hf import MergeResult, Recipe, RunError, merge
from mega_hf.models.load import open_model
from mega_hf.models.merge_inputs import ModelSource
from tests.tools import tiny, trainings
from tests.tools.run_files import file_of, weights_of

SMALL = tiny.MERGE | {"population_size": 4, "generations": 2}


@pytest.fixture(scope="module")
def seeds(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """A merge of two trained parents, the second fine-tuned from the first."""
    return merge(Recipe.from_dict(of_seeds(pair)), tmp_path_factory.mktemp("seeds") / "out")


def of_seeds(pair: tiny.Pair) -> dict[str, Any]:
    parents = {"a": {"seed": 1}, "b": {"seed": 2, "from": "a"}}
    return trainings.tree(pair.data, parents, epochs=1) | {"merge": SMALL}


@pytest.fixture
def seeds_copy(seeds: MergeResult, tmp_path: Path) -> Path:
    """An unfinished copy of that run folder."""
    copy = Path(shutil.copytree(seeds.folder, tmp_path / "copied"))
    (copy / "result.json").unlink()
    return copy


def flip(file: Path) -> None:
    """Change one byte of a file."""
    content = bytearray(file.read_bytes())
    content[-8] ^= 0xFF
    file.write_bytes(content)


# --- Trained parents


@pytest.mark.parametrize("what", ["weights", "config", "stamp", "truncated"])
def test_a_damaged_parent_is_trained_again(
    what: str, seeds: MergeResult, seeds_copy: Path, pair, caplog
) -> None:
    folder = seeds_copy / "parents" / "a"
    if what == "weights":
        flip(folder / "model.safetensors")
    elif what == "truncated":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    else:
        name = {"config": "config.json", "stamp": "train.sha256"}[what]
        (folder / name).write_bytes(b"\xff\xfe\x81")
    result = merge(Recipe.from_dict(of_seeds(pair)), seeds_copy)
    assert trainings.stored(seeds_copy / "parents") == trainings.stored(seeds.folder / "parents")
    assert weights_of(result.folder) == weights_of(seeds.folder)
    assert ("trained again" in caplog.text) == (what != "stamp")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_folder_that_was_not_trained_here_is_never_replaced(
    kind: str, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    kept = tmp_path / "mine" / "b"
    kept.parent.mkdir()
    if kind == "folder":
        shutil.copytree(pair.a, kept)
    else:
        kept.write_text("years of work")
    before = {path: path.read_bytes() for path in kept.parent.rglob("*") if path.is_file()}
    file = pair.write(tmp_path, **of_seeds(pair))
    for command in ("train", "merge"):
        answer = mega(command, file, "--out", tmp_path / "out", "--parents", kept.parent, "--quiet")
        assert answer.code == 2
        assert "not a parent that was trained here" in answer.err and str(kept) in answer.err
    assert {path: path.read_bytes() for path in kept.parent.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "out").exists()


def test_a_file_as_parents_folder_is_an_error(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    (tmp_path / "file").write_text("x")
    file = pair.write(tmp_path, **of_seeds(pair))
    answer = mega("train", file, "--out", tmp_path / "out", "--parents", tmp_path / "file")
    assert answer.code == 2
    assert "can't be saved here" in answer.err


def test_a_model_that_changes_during_a_run_is_an_error(pair: tiny.Pair, tmp_path: Path) -> None:
    """Otherwise its accuracy would be reported with the digest of another model."""
    from mega_hf.models.references import open_parent

    folder = Path(shutil.copytree(pair.a, tmp_path / "a"))
    source = ModelSource(
        "a", open_parent("a", str(folder)).parent.sha256, "", lambda: open_model(folder)
    )
    assert source.open().num_classes == 3
    flip(folder / "model.safetensors")
    with pytest.raises(RunError, match="a was changed during the run"):
        source.open()


def test_a_partly_removed_parent_is_trained_again(
    seeds: MergeResult, seeds_copy: Path, pair: tiny.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of a killed removal must not look like a folder of the user."""

    def killed(path: Path) -> None:
        (path / "train.sha256").unlink()
        raise KeyboardInterrupt

    recipe = Recipe.from_dict(of_seeds(pair))
    flip(seeds_copy / "parents" / "a" / "model.safetensors")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("mega_hf.runtime.files.shutil.rmtree", killed)
        merge(recipe, seeds_copy)
    result = merge(recipe, seeds_copy)
    assert trainings.stored(seeds_copy / "parents") == trainings.stored(seeds.folder / "parents")
    assert weights_of(result.folder) == weights_of(seeds.folder)
    assert not list(seeds_copy.rglob(".mega-*"))


# --- The run folder


def test_a_changed_recipe_in_the_run_folder_is_an_error(pair: tiny.Pair, copied: Path) -> None:
    file = copied / "recipe.yaml"
    file.write_text(file.read_text().replace("population_size: 6", "population_size: 5"))
    before = weights_of(copied)
    with pytest.raises(RunError, match=r"recipe.yaml in the run folder[\s\S]*--overwrite"):
        merge(Recipe.from_dict(pair.recipe()), copied)
    assert weights_of(copied) == before
    assert (
        merge(Recipe.from_dict(pair.recipe()), copied, update=True).record.search.evaluations == 26
    )


@pytest.mark.parametrize("content", [b"\xff\xfe\x81", b"", None])
def test_a_missing_or_damaged_recipe_is_an_error(
    content: bytes | None, pair: tiny.Pair, copied: Path, mega
) -> None:
    file = copied / "recipe.yaml"
    file.unlink() if content is None else file.write_bytes(content)
    for words in ([], ["--update"], ["--overwrite"]):
        answer = mega("merge", pair.write(copied.parent), "--out", copied, *words)
        assert answer.code == 2
        assert "recipe.yaml is missing" in answer.err and "restore it" in answer.err
    assert (copied / "journal.jsonl").exists() and (copied / "merged").exists()


@pytest.mark.parametrize(
    "file", ["merged/config.json", "nodes/a+b/config.json", "nodes/c+d/model.safetensors"]
)
def test_a_missing_file_of_a_finished_run_is_made_again(
    file: str, four: dict[str, Any], treed: MergeResult, treed_copy: Path, measured: list[str]
) -> None:
    (treed_copy / file).unlink()
    merge(Recipe.from_dict(four), treed_copy)
    assert (treed_copy / file).read_bytes() == (treed.folder / file).read_bytes()
    assert file_of(treed_copy, "a+b") == file_of(treed.folder, "a+b")
    assert measured == [], "something was evaluated again"
