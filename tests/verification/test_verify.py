"""verify reproduces a run from journal and parents alone, and names a changed file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mega_hf import MergeResult, ParentError, Recipe, RecipeError, VerificationError, merge, verify
from mega_hf.evaluation.forward import ResidentModel
from mega_hf.hub.bundle import portable_files
from mega_hf.report.card import write_card
from mega_hf.search.crossover import blend, mix
from tests.tools import tiny, trainings
from tests.tools.forged import append, assert_named, claim, edit, rewrite
from tests.tools.run_files import EVALUATIONS, journal

# --- Unchanged runs


def test_a_run_is_reproduced_without_data(finished: MergeResult, copied: Path, monkeypatch) -> None:
    for name in ("predict", "write"):
        monkeypatch.setattr(ResidentModel, name, lambda *_: pytest.fail("something was measured"))
    monkeypatch.setattr(
        "mega_hf.tasks.splits.load_splits", lambda *_: pytest.fail("the data was read")
    )
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    verified = verify(copied)
    assert (verified.parents, verified.evaluations, verified.has_model) == (2, EVALUATIONS, True)
    assert verified.digests["file"] == finished.record.digests.file
    assert str(verified).startswith(
        f"reproduced bit for bit from 2 parents and {EVALUATIONS} recorded evaluations in"
    )
    assert verified.digests["weights"] in str(verified)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_a_tree_is_reproduced(treed: MergeResult) -> None:
    verified = verify(treed.folder)
    assert (verified.parents, verified.evaluations) == (4, 3 * EVALUATIONS)
    assert verified.digests["file"] == treed.record.digests.file


def test_a_tree_ordered_by_accuracy_is_reproduced(four: dict[str, Any], tmp_path: Path) -> None:
    result = merge(Recipe.from_dict(four | {"order": "accuracy"}), tmp_path / "out")
    assert verify(tmp_path / "out").digests["file"] == result.record.digests.file


def test_parents_that_were_trained_for_the_run(data: Path, tmp_path: Path) -> None:
    parents = {"a": {"seed": 1, "checkpoints": 2}, "b": {"seed": 2}}
    tree = trainings.tree(data, parents, epochs=2) | {"merges": {"m": {"parents": ["a@1", "b"]}}}
    result = merge(Recipe.from_dict(tree | {"merge": tiny.MERGE}), tmp_path / "out")
    assert verify(tmp_path / "out").digests["file"] == result.record.digests.file
    (tmp_path / "out" / "parents").rename(tmp_path / "elsewhere")
    with pytest.raises(
        ParentError, match=r"trained for the run[\s\S]*--parent a@1=PATH[\s\S]*--parents DIR"
    ):
        verify(tmp_path / "out")
    assert verify(tmp_path / "out", trained=tmp_path / "elsewhere").parents == 2
    given = {name: str(tmp_path / "elsewhere" / name) for name in ("a@1", "b")}
    assert verify(tmp_path / "out", parents=given).parents == 2


@pytest.fixture
def pushed(finished: MergeResult, tmp_path: Path) -> Path:
    """The files that a push of the finished run would send."""
    folder = tmp_path / "pushed"
    folder.mkdir()
    for name, content in portable_files(finished, "me/merged", {"license": "mit"}).items():
        whole = content if isinstance(content, bytes) else content.read_bytes()
        (folder / name).write_bytes(whole)
    return folder


def test_a_copy_asks_for_local_parents(pair: tiny.Pair, pushed: Path) -> None:
    with pytest.raises(
        ParentError, match=r"local where the run was made[\s\S]*--parent a=PATH --parent b=PATH"
    ):
        verify(pushed)
    with pytest.raises(ParentError, match="none for b"):
        verify(pushed, parents={"a": str(pair.a)})
    with pytest.raises(RecipeError, match=r"no parent c[\s\S]*a, b"):
        verify(pushed, parents={"c": str(pair.a)})
    assert verify(pushed, parents={"a": str(pair.a), "b": str(pair.b)}).has_model


def test_without_a_model_the_record_is_compared(pair: tiny.Pair, pushed: Path) -> None:
    (pushed / "model.safetensors").unlink()
    verified = verify(pushed, parents={"a": str(pair.a), "b": str(pair.b)})
    assert not verified.has_model
    assert "there is no model beside it" in str(verified)


def test_claims_are_evaluated_again_with_the_data(copied: Path, pair: tiny.Pair) -> None:
    verified = verify(copied, evaluate=7)
    assert verified.remeasured is not None
    assert len(verified.remeasured.lines) == 7
    assert {one.difference for one in [*verified.remeasured.lines, *verified.remeasured.model]} == {
        0
    }
    assert "7 of 7 the same" in str(verified)
    assert verify(copied, evaluate=10_000, data=str(pair.data)).remeasured is not None
    assert json.loads(json.dumps(verified.to_dict()))["remeasured"]["lines"]


def test_a_copy_asks_for_local_data(pair: tiny.Pair, pushed: Path) -> None:
    parents = {"a": str(pair.a), "b": str(pair.b)}
    with pytest.raises(RecipeError, match=r"data set was local[\s\S]*--data PATH"):
        verify(pushed, parents=parents, evaluate=1)
    assert verify(pushed, parents=parents, evaluate=1, data=str(pair.data)).remeasured is not None


# --- Changed runs


def _flip_weights(folder: Path) -> None:
    file = folder / "merged" / "model.safetensors"
    state = load_file(file)
    state[sorted(state)[0]].view(-1)[0] += 0.5
    save_file(state, file, metadata={"format": "pt"})


def _truncate_weights(folder: Path) -> None:
    file = folder / "merged" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _change_config(folder: Path) -> None:
    file = folder / "merged" / "config.json"
    file.write_text(file.read_text() + " ")


def _flip_journal(folder: Path) -> None:
    content = bytearray((folder / "journal.jsonl").read_bytes())
    content[len(content) // 2] ^= 4
    (folder / "journal.jsonl").write_bytes(content)


def _swap_counts(folder: Path) -> None:
    """Change the winners of the first tournaments, consistently."""
    lines = journal(folder)
    for line in lines:
        if line["kind"] == "fitness" and line["generation"] == 1:
            line["correct"] = 60 - line["correct"]
    rewrite(folder, lines)


def _lose_a_line(folder: Path) -> None:
    lines = journal(folder)
    rewrite(
        folder, [line for line in lines if (line.get("generation"), line.get("index")) != (3, 2)]
    )


def _hide_rows(folder: Path) -> None:
    lines = journal(folder)
    for line in lines:
        if line["kind"] == "fitness":
            line["correct"], line["n"] = 0, 1
    rewrite(folder, lines)


def _change_recipe(folder: Path) -> None:
    file = folder / "recipe.yaml"
    file.write_text(file.read_text().replace("seed: 46", "seed: 47"))


LIES: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights": (_flip_weights, r"^model.safetensors: [\s\S]*largest difference 0.5, in 1 of"),
    "truncated": (_truncate_weights, r"^model.safetensors: [\s\S]*(can't be read|unreadable)"),
    "config": (_change_config, "^merged: changed"),
    "journal": (_flip_journal, r"journal.jsonl:\d+: a damaged line"),
    "journal's end": (lambda f: append(f / "journal.jsonl", "{"), "^journal.jsonl: changed"),
    "counts": (_swap_counts, "^journal.jsonl: individual . of generation 2 of a.b is not the one"),
    "lost line": (
        _lose_a_line,
        "^journal.jsonl: no line for individual 2 of generation 3 of a.b",
    ),
    "rows": (_hide_rows, r"^journal.jsonl: a.b: the winner is open"),
    "recipe": (_change_recipe, "^recipe.yaml: changed"),
    "recipe's end": (lambda f: append(f / "recipe.yaml", "#\n"), "^recipe.yaml: changed"),
    "told recipe": (
        lambda f: claim(f, "recipe", "merge", "seed", value=47),
        "^result.json: changed",
    ),
    "no nodes": (lambda f: claim(f, "nodes", value=[]), r"result.json: invalid result"),
    "nonsense": (lambda f: claim(f, "nodes", value={"a": 1}), r"result.json: invalid result"),
    "not JSON": (lambda f: (f / "result.json").write_text("[" * 100_000), "result.json: "),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_changed_file_is_named(lie: str, copied: Path) -> None:
    assert_named(copied, *LIES[lie])


def test_another_parent_is_named(pair: tiny.Pair, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"^parent b: not the parent that was merged"):
        verify(copied, parents={"b": str(pair.a)})
    shutil.copytree(pair.b, tmp_path / "b")
    content = bytearray((tmp_path / "b" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b" / "model.safetensors").write_bytes(content)
    with pytest.raises(VerificationError, match=r"^parent b: not the parent that was merged"):
        verify(copied, parents={"b": str(tmp_path / "b")})


def test_the_error_of_different_rounding_says_how_much(
    pair: tiny.Pair, tmp_path: Path, monkeypatch
) -> None:
    """A difference in the seventh digit everywhere is rounding; a larger one is a change."""
    # every individual: whoever wins was computed
    bred = tiny.MERGE | {"founders": {"include_parents": False}}
    merge(Recipe.from_dict(pair.recipe(merge=bred)), tmp_path / "out")
    for name, breed in (("mix", mix), ("blend", blend)):
        monkeypatch.setattr(f"mega_hf.search.evolve.{name}", partial(_rounded, breed))
    with pytest.raises(
        VerificationError, match=r"^journal.jsonl: individual 0 of generation 1"
    ) as caught:
        verify(tmp_path / "out")
    assert "another machine" in str(caught.value)
    found = re.search(
        r"largest difference (\S+), in ([\d,]+) of ([\d,]+) numbers", str(caught.value)
    )
    assert found is not None and 0 < float(found[1]) < 1e-4


def _rounded(breed: Callable[..., torch.Tensor], *words: Any, out: torch.Tensor) -> torch.Tensor:
    return breed(*words, out=out).mul_(1 + 1e-7)


def test_a_forged_count_is_found_with_the_data(copied: Path) -> None:
    """A loser of the last generation decides nothing: only the data can tell."""
    lines = journal(copied)
    merged = next(line for line in lines if line["kind"] == "merged")
    loser = next(
        line
        for line in lines
        if line.get("generation") == 5 and 2 < line.get("correct", 0) < merged["correct"]
    )
    loser["correct"] -= 2
    merged["history"][4]["mean"] = (merged["history"][4]["mean"] * 6 - 2) / 6
    rewrite(copied, lines)
    edit(copied, lambda record: record["nodes"][0].update(history=merged["history"]))
    edit(copied, lambda record: record.update(history=merged["history"]))
    write_card(MergeResult.load(copied))
    assert verify(copied).parents == 2, "nothing but the data can tell"
    with pytest.raises(
        VerificationError,
        match=rf"^journal.jsonl: individual {loser['index']} of generation 5 of a",
    ):
        verify(copied, evaluate=10_000)


def test_different_rows_are_named(copied: Path, tmp_path: Path) -> None:
    tiny.write_data(tmp_path / "other", tiny.ROWS | {"test": 89})
    with pytest.raises(VerificationError, match=r"^data: these are not the test rows"):
        verify(copied, evaluate=1, data=str(tmp_path / "other"))
