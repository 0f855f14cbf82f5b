"""Trees in parts, interrupted, in the order of accuracies: one result however they ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mega_hf import MergeResult, Recipe, RecipeError, merge, merge_only, verify
from tests.tools import tiny
from tests.tools.run_files import EVALUATIONS, FILES, file_of, journal, names, weights_of

# the last merge's parents, whom the searches before it measured, are known
MEASURED = 3 * EVALUATIONS - 2
Four = dict[str, Any]  # a recipe of four parents


def test_one_node_and_what_it_needs(
    four: Four, treed: MergeResult, tmp_path: Path, measured: list[str]
) -> None:
    recipe, out = Recipe.from_dict(four), tmp_path / "out"
    part = merge_only(recipe, "c+d", out)
    assert (part.name, part.folder) == ("c+d", out / "nodes" / "c+d")
    assert set(measured) == {"c+d"}
    assert names(out) == {"journal.jsonl", "nodes", "recipe.yaml"}
    merge_only(recipe, "c+d", out)
    assert len(measured) == EVALUATIONS, "it was there"
    whole = merge(recipe, out)
    assert len(measured) == MEASURED
    assert weights_of(out) == weights_of(treed.folder)
    assert merge(recipe, out).record == whole.record, "the run is known as finished"
    with pytest.raises(RecipeError, match=r"no such node[\s\S]*a\+b, c\+d, a\+b\+c\+d"):
        merge_only(recipe, "e", tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("stop", [3, EVALUATIONS, EVALUATIONS + 9, 2 * EVALUATIONS, MEASURED - 1])
def test_a_tree_interrupted_anywhere_gives_the_same_file(
    stop: int,
    four: Four,
    treed: MergeResult,
    tmp_path: Path,
    interrupt: Callable[[int], Iterator[int]],
) -> None:
    calls = interrupt(stop)
    with pytest.raises(KeyboardInterrupt):
        merge(Recipe.from_dict(four), tmp_path / "out")
    result = merge(Recipe.from_dict(four), tmp_path / "out")
    assert next(calls) == MEASURED + 1, "something was measured twice"
    assert weights_of(result.folder) == weights_of(treed.folder)
    assert result.record.models == treed.record.models


@pytest.mark.usefixtures("order_free")
@pytest.mark.parametrize("stop", [1, 30, 100, 150])
def test_a_tree_interrupted_between_two_batches_gives_the_same_file(
    stop: int,
    pair: tiny.Pair,
    finished: MergeResult,
    tmp_path: Path,
    interrupt: Callable[[int], Iterator[int]],
) -> None:
    """What was seen of those in flight is lost, of the others nothing."""
    interrupt(stop)
    recipe = Recipe.from_dict(pair.recipe(evaluation={"batch_size": 4}))
    with pytest.raises(KeyboardInterrupt):
        merge(recipe, tmp_path / "out")
    kept = journal(tmp_path / "out", "fitness")
    result = merge(recipe, tmp_path / "out")
    assert weights_of(result.folder) == weights_of(finished.folder)
    assert journal(result.folder, "fitness")[: len(kept)] == kept
    assert len(journal(result.folder, "fitness")) == EVALUATIONS, "something was recorded twice"
    search = result.record.search
    assert search.pictures_evaluated < search.pictures_full == (60 + 120) * EVALUATIONS
    assert verify(result.folder).evaluations == EVALUATIONS


def test_dropped_intermediates_can_be_rebuilt(
    four: Four, treed: MergeResult, treed_copy: Path, measured
) -> None:
    result = merge(Recipe.from_dict(four), treed_copy, keep="final")
    assert names(treed_copy) == FILES | {"tree.png"}
    assert result.record == treed.record
    assert merge(Recipe.from_dict(four), treed_copy).record == treed.record, "still finished"
    assert merge_only(Recipe.from_dict(four), "c+d", treed_copy).folder.is_dir()
    assert file_of(treed_copy, "c+d") == file_of(treed.folder, "c+d")
    assert measured == []


def test_pairs_by_accuracy_are_journaled(
    four: Four, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.from_dict(four | {"order": "accuracy"})
    result = merge(recipe, tmp_path / "out")
    models = [model for model in result.report.models if model.role == "treated_parent"]
    rows = {m.name.removesuffix(" recalibrated"): m.validation.correct for m in models}
    (line,) = journal(result.folder, "order")
    assert line["ranking"] == sorted(rows, key=lambda name: -rows[name])
    assert line["correct"] == rows
    pairs = [line["ranking"][:2], line["ranking"][2:]]
    assert [node.parents for node in result.record.nodes][:2] == pairs
    known = [
        line
        for line in journal(result.folder, "fitness")
        if line["generation"] == 1 and line["index"] < 2
    ]
    assert len(known) == 6 and {line["pictures"] for line in known} == {0}, (
        "parents, and winners below, are known"
    )
    (result.folder / "result.json").unlink()
    monkeypatch.setattr(
        "mega_hf.evaluation.forward.ResidentModel.count_correct",
        lambda *_: pytest.fail("measured again"),
    )
    again = merge(recipe, tmp_path / "out")
    assert weights_of(again.folder) == weights_of(result.folder)
    assert len(journal(result.folder, "order")) == 1
    first = "+".join(line["ranking"][:2])
    assert merge_only(recipe, first, tmp_path / "out").folder == result.folders[first]
    with pytest.raises(RecipeError, match="no such node"):
        merge_only(recipe, "+".join(line["ranking"][1:3]), tmp_path / "out")
    with pytest.raises(RecipeError, match="has not ranked the parents yet"):
        merge_only(recipe, first, tmp_path / "new")


def test_other_rows_rank_the_parents_again(four: Four, tmp_path: Path) -> None:
    merge(Recipe.from_dict(four | {"order": "accuracy"}), tmp_path / "out")
    rows = four["data"] | {"validation": "validation[:31]"}
    changed = Recipe.from_dict(four | {"order": "accuracy", "data": rows})
    result = merge(changed, tmp_path / "out", update=True)
    first, second = journal(result.folder, "order")
    assert (first["n"], second["n"]) == (60, 31)
    assert weights_of(result.folder) == weights_of(merge(changed, tmp_path / "fresh").folder)


def test_a_tree_of_transformers_models(pair: tiny.Pair, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    parents = {}
    for seed, name in enumerate("abc"):
        model = tiny.fit(tiny.transformers_model("vit", seed), epochs=2)
        parents[name] = str(tiny.save_transformers(tmp_path / name, model))
    result = merge(
        Recipe.from_dict(pair.recipe(parents=parents, merges="pairwise")), tmp_path / "out"
    )
    rows = {model.name: model for model in result.report.models}
    for name, folder in (("a+b", result.folder / "nodes" / "a+b"), ("merged", result.merged)):
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        assert tiny.count(model, "test") == rows[name].test.correct
