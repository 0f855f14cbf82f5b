"""Every method through the whole pipeline: run, interrupted, resumed, replayed by a stranger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mega_hf import Recipe, RecipeError, VerificationError, merge, verify
from mega_hf.runtime.files import file_digest
from tests.tools import tiny
from tests.tools.forged import claim
from tests.tools.run_files import journal, journal_of, weights_of
from tests.tools.started import merge_in_two

METHODS = ("random", "line-sweep", "uniform_soup", "greedy_soup", "choose", "cma-es")


def recipe(pair: tiny.Pair, method: str, **more: Any) -> Recipe:
    more = {"encoding": "mixing", "granularity": "stage"} | more if method == "cma-es" else more
    return Recipe.from_dict(pair.recipe(merge=tiny.MERGE | {"method": method} | more))


@pytest.mark.parametrize(
    ("method", "encoding"),
    [
        (method, how)
        for method in METHODS
        for how in ("direct", "mixing")
        if (method, how) != ("cma-es", "direct")
    ],
)
def test_a_merge_by_this_method_is_resumed_and_verified(
    method: str, encoding: str, pair: tiny.Pair, tmp_path: Path, interrupt: Any
) -> None:
    made = recipe(pair, method, encoding=encoding)
    node = next(iter(made.nodes().values()))
    interrupt(0 if method in ("uniform_soup", "choose") else 2)
    with pytest.raises(KeyboardInterrupt):
        merge(made, tmp_path / "out")
    result = merge(made, tmp_path / "out")
    assert len(journal(result.folder, "fitness")) <= node.evaluations
    assert verify(result.folder).digests["file"] == result.record.digests.file
    assert weights_of(merge(made, tmp_path / "again").folder) == weights_of(result.folder)
    rows = {model.name: model for model in result.report.models}
    if method == "uniform_soup":
        assert rows["merged"].test == rows["uniform_soup"].test
    else:
        best = max(rows[f"{name} recalibrated"].validation.correct for name in "ab")
        assert rows["merged"].validation.correct >= best - 1, (
            "both parents were among what was tried"
        )


@pytest.mark.parametrize("method", ["mega", "greedy_soup", "cma-es"])
def test_losses_that_decide_between_equals_are_resumed_and_verified(
    method: str, pair: tiny.Pair, tmp_path: Path, interrupt: Any
) -> None:
    made = recipe(pair, method, fitness="accuracy+loss")
    interrupt(7 if method != "greedy_soup" else 2)
    with pytest.raises(KeyboardInterrupt):
        merge(made, tmp_path / "out")
    result = merge(made, tmp_path / "out")
    assert all(line["loss"] > 0 for line in journal(result.folder, "fitness") if line["n"] > 1)
    assert verify(result.folder, evaluate=5).digests["file"] == result.record.digests.file
    assert weights_of(merge(made, tmp_path / "again").folder) == weights_of(result.folder)


@pytest.mark.long
@pytest.mark.parametrize("method", ["mega", "greedy_soup", "cma-es"])
def test_two_processes_count_the_same_losses(method: str, pair: tiny.Pair, tmp_path: Path) -> None:
    made = recipe(pair, method, fitness="accuracy+loss")
    result = merge(made, tmp_path / "one")
    merge_in_two(pair.write(tmp_path, merge=made.to_dict()["merge"]), tmp_path / "two")
    assert weights_of(tmp_path / "two") == weights_of(result.folder)


def test_a_changed_loss_in_the_journal_is_an_error(pair: tiny.Pair, tmp_path: Path) -> None:
    result = merge(recipe(pair, "mega", fitness="accuracy+loss"), tmp_path / "out")
    lines = journal(result.folder)
    best = next(line for line in lines if line["kind"] == "merged")
    for line in lines:
        if (
            line["kind"] == "fitness"
            and line["correct"] == best["correct"]
            and line["n"] == best["n"]
        ):
            line["loss"] = 10**9 if line["index"] == best["index"] else 1
    (result.folder / "journal.jsonl").write_bytes(journal_of(lines))
    claim(result.folder, "digests", "journal", value=file_digest(result.folder / "journal.jsonl"))
    with pytest.raises(VerificationError):
        verify(result.folder)


def test_a_tree_may_mix_methods(four: dict[str, Any], tmp_path: Path) -> None:
    merges = {
        "ab": {"parents": ["a", "b"], "method": "line-sweep"},
        "cd": {"parents": ["c", "d"], "method": "greedy_soup"},
        "all": {"parents": ["ab", "cd"]},
    }
    result = merge(Recipe.from_dict(four | {"merges": merges}), tmp_path / "out")
    assert [node.merge["method"] for node in result.record.nodes] == [
        "line-sweep",
        "greedy_soup",
        "mega",
    ]
    assert verify(result.folder).parents == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "line-sweep"}, "two parents, for line-sweep"),
        ({"method": "cmaes"}, "method"),
        ({"method": "cma-es"}, "encoding: mixing, for cma-es"),
        ({"method": "cma-es", "encoding": "mixing", "population_size": 4}, "at least 5"),
        ({"method": "random", "variant": "reference"}, "the only method of variant: reference"),
    ],
)
def test_settings_that_a_method_cant_use_are_errors(
    changes: dict[str, Any], said: str, four: dict[str, Any]
) -> None:
    tree = four | {"merges": "joint", "merge": tiny.MERGE | changes}
    with pytest.raises(RecipeError, match=said):
        Recipe.from_dict(tree)


def test_a_dry_run_shows_the_evaluations_of_a_method(
    pair: tiny.Pair, tmp_path: Path, mega: Any
) -> None:
    for method, count in (
        ("line-sweep", 21),
        ("uniform_soup", 1),
        ("greedy_soup", 4),
        ("random", 26),
        ("choose", 2),
    ):
        file = pair.write(tmp_path / method, merge=tiny.MERGE | {"method": method})
        answer = mega("merge", file, "--dry-run")
        assert answer.code == 0 and f"evaluations  {count} in 1 merge" in answer.out


@pytest.mark.parametrize("method", METHODS)
def test_the_card_tells_of_the_method_that_was_used(
    method: str, pair: tiny.Pair, tmp_path: Path
) -> None:
    result = merge(recipe(pair, method), tmp_path / "out")
    head = (result.folder / "README.md").read_text().partition("## Use")[0]
    assert "genetic algorithm" not in head and "MeGA" not in head
    words = {
        "random": "a random search",
        "line-sweep": "sweep",
        "choose": "choosing the best parent",
        "cma-es": "CMA-ES",
    }
    assert words.get(method, "averag") in head
