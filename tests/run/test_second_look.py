"""Baselines that are searched for, and the second look that names the merged model: run, resumed,
replayed, forged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mega_hf import (
    DataError,
    MergeResult,
    Recipe,
    RecipeError,
    RunError,
    VerificationError,
    merge,
    merge_only,
    verify,
)
from mega_hf.hub.bundle import portable_files, restore
from mega_hf.recipe.plan import plan_merges
from mega_hf.report.card import draw_mermaid, escape_markdown, write_card
from mega_hf.report.result import tree_rows
from mega_hf.runtime.files import file_digest
from mega_hf.tasks.splits import load_splits
from tests.tools import tiny
from tests.tools.forged import rewrite
from tests.tools.run_files import EVALUATIONS, contents, journal, names, weights_of
from tests.tools.started import merge_in_two

BASELINES = ["uniform_soup", "greedy_soup", "line-sweep", "random"]


def whole(pair: tiny.Pair, **changes: Any) -> dict[str, Any]:
    """Return a recipe with all that a user gets who asks for nothing."""
    tree = pair.recipe()
    del tree["baselines"], tree["data"]["second_look"]
    return tree | changes


@pytest.fixture(scope="module")
def run(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contest") / "run"
    merge(Recipe.from_dict(whole(pair)), folder)
    return folder


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_a_run_by_default_has_baselines_an_ensemble_and_a_second_look(run: Path) -> None:
    told = record(run)
    roles = {model["name"]: model["role"] for model in told["models"]}
    assert [node["name"] for node in told["baselines"]] == BASELINES
    assert [name for name, role in roles.items() if role == "baseline"] == BASELINES
    assert (
        roles["ensemble"] == "ceiling"
        and roles["a+b"] == "searched"
        and roles["merged"] == "merged"
    )
    assert names(run / "nodes") == {"a+b", *BASELINES}
    evaluations = {
        node["name"]: node["search"]["evaluations"] for node in (*told["nodes"], *told["baselines"])
    }
    assert evaluations["random"] == evaluations["a+b"] == EVALUATIONS, "at the same cost"


def test_held_out_rows_choose_the_merged_model(run: Path) -> None:
    told = record(run)
    look = told["second_look"]
    (bits,) = journal(run, "answered")
    right = [
        np.unpackbits(np.frombuffer(bytes.fromhex(one), dtype=np.uint8), count=30)
        for one in bits["right"]
    ]
    counts = {one["name"]: one["correct"] for one in look["finalists"]}
    assert list(counts.values()) == [int(one.sum()) for one in right] and look["search"]["n"] == 30
    first = look["chosen"]
    best = list(counts).index(max(counts, key=counts.__getitem__))
    behind = max(counts.values()) - counts[first]
    assert behind**2 <= (right[best] != right[list(counts).index(first)]).sum(), (
        "no more than a standard error"
    )
    digests = {
        node["name"]: node["digests"]["weights"] for node in (*told["nodes"], *told["baselines"])
    }
    rows = {model["name"]: model for model in told["models"]}
    assert told["digests"]["weights"] == digests.get(first, told["digests"]["weights"])
    shown = rows[first] if first in digests else rows[f"{first} recalibrated"]
    assert rows["merged"]["test"] == shown["test"]
    card = (run / "README.md").read_text()
    assert f"Final model, chosen on 30 held-out rows: {escape_markdown(first)} (" in card


def test_no_search_sees_the_held_out_rows(pair: tiny.Pair) -> None:
    splits = load_splits(Recipe.from_dict(whole(pair)).data)
    assert splits.second_look is not None
    searched, later = splits.validation.indices, splits.second_look.indices
    assert not set(searched) & set(later) and sorted([*searched, *later]) == list(range(60))
    assert np.array_equal(
        load_splits(Recipe.from_dict(whole(pair)).data).second_look.indices, later
    )  # type: ignore[union-attr]


def test_a_search_that_found_less_than_the_average_does_not_become_the_merge(
    pair: tiny.Pair, tmp_path: Path
) -> None:
    """The parents lie on both sides of a good model; a search that mixes nothing can only find one
    of them."""
    tree = whole(pair, merge=tiny.MERGE | {"method": "choose"})
    told = merge(Recipe.from_dict(tree), tmp_path / "run").record.to_dict()
    rows = {model["name"]: model["test"]["correct"] for model in told["models"]}
    assert rows["merged"] > max(
        rows[name] for name in ("a", "b", "a recalibrated", "b recalibrated", "a+b")
    )


@pytest.mark.parametrize("stop", [30, 50])
def test_an_interrupted_run_measures_nothing_again(
    stop: int, run: Path, pair: tiny.Pair, tmp_path: Path, interrupt: Any
) -> None:
    interrupt(stop)
    with pytest.raises(KeyboardInterrupt):
        merge(Recipe.from_dict(whole(pair)), tmp_path / "run")
    assert journal(tmp_path / "run", "fitness")[-1]["node"] != "a+b", (
        "among what comes after the search"
    )
    merge(Recipe.from_dict(whole(pair)), tmp_path / "run")
    assert weights_of(tmp_path / "run") == weights_of(run)
    found = [
        (line["node"], line["generation"], line["index"], line["n"])
        for line in journal(tmp_path / "run", "fitness")
    ]
    assert len(set(found)) == len(found)
    (run_again := tmp_path / "run" / "result.json").unlink()
    before = contents(tmp_path / "run")["journal.jsonl"]
    merge(Recipe.from_dict(whole(pair)), tmp_path / "run")
    assert contents(tmp_path / "run")["journal.jsonl"] == before and run_again.is_file(), (
        "all of it was cached"
    )


@pytest.mark.long
def test_two_processes_choose_the_same(run: Path, pair: tiny.Pair, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(whole(pair)))
    merge_in_two(file, tmp_path / "two")
    assert weights_of(tmp_path / "two") == weights_of(run)
    assert record(tmp_path / "two")["models"] == record(run)["models"]


def test_a_stranger_replays_all_of_it_and_measures_it_again(run: Path, pair: tiny.Pair) -> None:
    verified = verify(run, evaluate=200)
    lines = journal(run, "fitness")
    assert verified.evaluations == len(
        {(line["node"], line["generation"], line["index"]) for line in lines}
    )
    assert (
        verified.remeasured is not None and len(verified.remeasured.lines) == verified.evaluations
    )
    assert all(one.difference == 0 for one in verified.remeasured.lines)


def forge(run: Path, folder: Path, change: Any) -> Path:
    """Return a copy of a run whose result says something else."""
    for name, content in contents(run).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    told = record(run)
    change(told)
    (folder / "result.json").write_text(json.dumps(told))
    return folder


def _other_choice(told: dict[str, Any]) -> None:
    look = told["second_look"]
    look["chosen"] = next(name for name in look["parents"] if name != look["chosen"])


def _other_count(told: dict[str, Any]) -> None:
    told["second_look"]["finalists"][0]["correct"] -= 1


def _other_rule(told: dict[str, Any]) -> None:
    told["second_look"]["merge"]["prefer"] = 1


def _fewer_baselines(told: dict[str, Any]) -> None:
    del told["baselines"][0]


def _other_interval(told: dict[str, Any]) -> None:
    told["paired"]["high"] = 0.9


def _no_soup(told: dict[str, Any]) -> None:
    del told["paired_soup"]


def _worse_ensemble(told: dict[str, Any]) -> None:
    next(model for model in told["models"] if model["role"] == "ceiling")["name"] = "other"


@pytest.mark.parametrize(
    "change",
    [
        _other_choice,
        _other_count,
        _other_rule,
        _fewer_baselines,
        _other_interval,
        _no_soup,
        _worse_ensemble,
    ],
)
def test_what_is_claimed_of_the_contest_is_checked(change: Any, run: Path, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="changed since the run"):
        verify(forge(run, tmp_path / "forged", change))


def test_a_better_ensemble_than_there_is_shows_when_it_is_measured(
    run: Path, tmp_path: Path
) -> None:
    def flatter(told: dict[str, Any]) -> None:
        next(model for model in told["models"] if model["role"] == "ceiling")["test"][
            "correct"
        ] -= 20

    with pytest.raises(VerificationError, match="ensemble"):
        verify(forge_with_card(run, tmp_path / "forged", flatter), evaluate=1)


def test_that_others_are_right_elsewhere_than_is_claimed_shows_when_they_are_measured(
    run: Path, tmp_path: Path
) -> None:
    """By as many rows in all: that is what decides whether a model is surely better, and counts
    don't tell of it."""
    copy = forge(run, tmp_path / "forged", lambda told: None)
    lines, rows = journal(copy), record(copy)["data"]["second_look"]["rows"]
    (line,) = (line for line in lines if line["kind"] == "answered")
    bits = np.unpackbits(
        np.frombuffer(bytes.fromhex(line["right"][-1]), dtype=np.uint8), count=rows
    )
    places = [np.flatnonzero(bits == value)[:3] for value in (0, 1)]
    assert all(len(some) == 3 for some in places)
    bits[places[0]], bits[places[1]] = 1, 0
    line["right"][-1] = np.packbits(bits).tobytes().hex()
    rewrite(copy, lines)
    write_card(MergeResult.load(copy), overwrite=True)
    assert verify(copy).remeasured is None, "the choice is the same"
    with pytest.raises(VerificationError, match="row by row, is not what was claimed"):
        verify(copy, evaluate=0)


def forge_with_card(run: Path, folder: Path, change: Any) -> Path:
    """As `forge`, by someone who has the card made anew."""
    write_card(MergeResult.load(forge(run, folder, change)), overwrite=True)
    return folder


def test_another_baseline_is_added_without_searching_again(pair: tiny.Pair, tmp_path: Path) -> None:
    tree = whole(pair) | {"baselines": ["greedy_soup"]}
    merge(Recipe.from_dict(tree), tmp_path / "run")
    before = file_digest(tmp_path / "run" / "nodes" / "a+b" / "model.safetensors")
    counted = len(journal(tmp_path / "run", "fitness"))
    with pytest.raises(RunError, match="a run of a different recipe"):
        merge(
            Recipe.from_dict(tree | {"baselines": ["greedy_soup", "line-sweep"]}), tmp_path / "run"
        )
    merge(
        Recipe.from_dict(tree | {"baselines": ["greedy_soup", "line-sweep"]}),
        tmp_path / "run",
        update=True,
    )
    assert file_digest(tmp_path / "run" / "nodes" / "a+b" / "model.safetensors") == before
    later = {line["node"] for line in journal(tmp_path / "run", "fitness")[counted:]}
    assert later == {"line-sweep", "second_look"}


@pytest.mark.parametrize("merges", ["joint", "pairwise"])
def test_without_a_second_look_the_final_merge_is_the_merged_model(
    merges: str, four: dict[str, Any], tmp_path: Path
) -> None:
    tree = four | {"merges": merges, "baselines": ["greedy_soup", "random", "ensemble"]}
    result = merge(Recipe.from_dict(tree), tmp_path / "run")
    told = result.record.to_dict()
    searched = told["nodes"][-1]
    assert [node["name"] for node in told["baselines"]] == [
        "greedy_soup",
        "random",
    ] and "second_look" not in told
    assert told["digests"]["file"] == searched["digests"]["file"]
    assert told["digests"]["file"] == file_digest(result.merged / "model.safetensors")
    assert result.report.merged.validation.correct == searched["search"]["correct"]
    assert merge(Recipe.from_dict(tree), tmp_path / "run").record.digests == result.record.digests
    pushed_and_back(result, tmp_path)
    parents = {name: tree["parents"][name] for name in "abcd"}
    assert verify(tmp_path / "again", parents=parents).digests["file"] == told["digests"]["file"]
    assert verify(result.folder, evaluate=3).digests["file"] == told["digests"]["file"]


def test_one_node_alone_has_no_contest(pair: tiny.Pair, tmp_path: Path) -> None:
    made = merge_only(Recipe.from_dict(whole(pair)), "a+b", tmp_path / "run")
    assert made.folder == tmp_path / "run" / "nodes" / "a+b"
    assert {line["node"] for line in journal(tmp_path / "run", "fitness")} == {"a+b"}


def test_a_tree_is_held_against_as_many_mixtures_at_random(
    four: dict[str, Any], tmp_path: Path
) -> None:
    tree = four | {"merges": "pairwise", "baselines": ["random", "line-sweep"]}
    tree["data"] = tree["data"] | {"second_look": 0.5}
    recipe = Recipe.from_dict(tree)
    assert (
        sum(node.evaluations for node in recipe.nodes().values())
        <= plan_merges(recipe).nodes["random"].evaluations
    )
    record = merge(recipe, tmp_path / "run").record
    assert [node.name for node in record.baselines] == [
        "uniform_soup",
        "random",
    ], "no line between four"
    assert verify(tmp_path / "run").parents == 4
    searched = next(model for model in record.models if model.role == "searched")
    assert tree_rows(record)[searched.name] == searched, (
        "the tree shows what was searched, whoever was named"
    )
    assert f"{searched.name}<br/>{100 * searched.test.accuracy:.2f} %" in draw_mermaid(record)


def pushed_and_back(result: MergeResult, folder: Path) -> MergeResult:
    """Return the run as it comes back from a repository, in `again` of a folder."""
    for name, content in portable_files(
        result, "me/x", {"license": "mit"}, with_nodes=True
    ).items():
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "copy" / name).write_bytes(
            content.read_bytes() if isinstance(content, Path) else content
        )
    return restore(folder / "copy", folder / "again", "me/x")


def test_a_push_with_nodes_has_all_that_stands_in_the_run_folder(
    run: Path, pair: tiny.Pair, tmp_path: Path
) -> None:
    result = MergeResult.load(run)
    restored = pushed_and_back(result, tmp_path)
    assert names(tmp_path / "again" / "nodes") == {"a+b", *BASELINES}
    parents = {"a": str(pair.a), "b": str(pair.b)}
    assert verify(restored.folder, parents=parents).digests["file"] == result.record.digests.file


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baselines": ["greedy"]}, "greedy"),
        ({"baselines": ["random", "random"]}, "each name once"),
        (
            {"parents": {"random": "timm:resnet18.a1_in1k", "b": "timm:resnet18.tv_in1k"}},
            "a name that no model of the report has",
        ),
    ],
)
def test_what_is_no_baseline_is_refused(
    changes: dict[str, Any], said: str, pair: tiny.Pair
) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.from_dict(whole(pair, **changes))


def test_a_share_that_is_no_row_is_refused(pair: tiny.Pair, tmp_path: Path) -> None:
    tree = whole(pair)
    tree["data"] |= {"second_look": 0.001}
    with pytest.raises(DataError, match="no validation rows for the held-out selection"):
        merge(Recipe.from_dict(tree), tmp_path / "run")
    assert not (tmp_path / "run").exists()
