"""Trees of merges as whole runs: what each node is, what is run again and what is not, one result
however it ran."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm

from mega_hf import MergeResult, Recipe, RunError, merge, merge_only
from tests.tools import tiny
from tests.tools.run_files import EVALUATIONS, FILES, file_of, journal_of, names, weights_of

Four = dict[str, Any]  # a recipe of four parents


def explicit(four: Four, **nodes: dict[str, Any]) -> Four:
    tree = {
        "a+b": {"parents": ["a", "b"]},
        "c+d": {"parents": ["c", "d"]},
        "a+b+c+d": {"parents": ["a+b", "c+d"]},
    }
    return four | {
        "merges": {
            name: node | nodes.get(name.replace("+", "_"), {}) for name, node in tree.items()
        }
    }


# --- What a tree leaves behind


def test_every_node_is_a_model_that_timm_loads(treed: MergeResult) -> None:
    assert names(treed.folder) == FILES | {"nodes", "tree.png"}
    assert names(treed.folder / "nodes") == {"a+b", "c+d"}
    rows = {model.name: model for model in treed.report.models}
    for name in ("a+b", "c+d"):
        model = timm.create_model(
            f"local-dir:{treed.folder / 'nodes' / name}", pretrained=True
        ).eval()
        assert tiny.count(model, "test") == rows[name].test.correct


def test_the_report_goes_level_by_level(treed: MergeResult) -> None:
    shown = [(m.name, m.role, m.level) for m in treed.report.models]
    assert shown == [
        *((name, "parent", 0) for name in "abcd"),
        *((f"{name} recalibrated", "treated_parent", None) for name in "abcd"),
        ("uniform_soup", "baseline", None),
        ("a+b", "intermediate", 1),
        ("c+d", "intermediate", 1),
        ("merged", "merged", 2),
    ]
    assert "merge, level 1" in str(treed.report)
    assert [node.parents for node in treed.record.nodes] == [
        ["a", "b"],
        ["c", "d"],
        ["a+b", "c+d"],
    ]
    assert [node.search.evaluations for node in treed.record.nodes] == [EVALUATIONS] * 3
    assert treed.record.nodes[-1].history == treed.history


def test_the_card_draws_the_tree(treed: MergeResult) -> None:
    card = (treed.folder / "README.md").read_text()
    assert "```mermaid\ngraph BT\n" in card
    assert card.count(" --> ") == 3 and card.count(" & m") == 3
    assert "](tree.png)" in card
    assert (treed.folder / "tree.png").read_bytes().startswith(b"\x89PNG")


def test_a_node_is_what_its_name_parents_and_settings_make_it(
    treed: MergeResult, finished: MergeResult, four: Four, tmp_path: Path
) -> None:
    """The same bytes alone, in a tree, or in a tree that is written out in another order."""
    assert file_of(treed.folder, "a+b") == weights_of(finished.folder)
    written = explicit(four)
    backwards = written | {"merges": dict(reversed(written["merges"].items()))}
    again = merge(Recipe.from_dict(backwards), tmp_path / "out")
    assert weights_of(again.folder) == weights_of(treed.folder)
    assert again.record.models == treed.record.models


def test_another_name_gives_another_node(treed: MergeResult, four: Four, tmp_path: Path) -> None:
    tree = {"ab": {"parents": ["a", "b"]}, "all": {"parents": ["ab", "c", "d"]}}
    result = merge(Recipe.from_dict(four | {"merges": tree}), tmp_path / "out")
    assert file_of(result.folder, "ab") != file_of(treed.folder, "a+b")
    assert [model.level for model in result.report.models] == [0] * 4 + [None] * 5 + [1, 2]


def test_an_odd_one_moves_up_and_a_parent_may_serve_twice(four: Four, tmp_path: Path) -> None:
    three = four | {"parents": {name: four["parents"][name] for name in "abc"}}
    result = merge(Recipe.from_dict(three), tmp_path / "odd")
    assert [node.parents for node in result.record.nodes] == [["a", "b"], ["a+b", "c"]]
    tree = {
        "ab": {"parents": ["a", "b"]},
        "ac": {"parents": ["a", "c"]},
        "all": {"parents": ["ab", "ac", "a"]},
    }
    result = merge(Recipe.from_dict(three | {"merges": tree}), tmp_path / "twice")
    assert [m.name for m in result.report.models if m.role == "parent"] == ["a", "b", "c"]


def test_nodes_of_half_precision_are_what_is_saved(
    pair: tiny.Pair, four: Four, tmp_path: Path
) -> None:
    """What a node above starts from is the rounded model, whether it was just made or comes from
    the run folder."""
    for name, folder in four["parents"].items():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        tiny.save_timm(tmp_path / name, model, dtype=tiny.torch.bfloat16)
    halves = four | {"parents": {name: str(tmp_path / name) for name in "abcd"}}
    whole = merge(Recipe.from_dict(halves), tmp_path / "whole")
    for node in ("a+b", "c+d", "a+b+c+d"):
        merge_only(Recipe.from_dict(halves), node, tmp_path / "parts")
    assert weights_of(tmp_path / "parts") == weights_of(whole.folder)


# --- What runs again


def test_a_changed_node_reruns_with_those_above(
    treed: MergeResult, four: Four, treed_copy: Path, tmp_path: Path, measured: list[str]
) -> None:
    changed = Recipe.from_dict(explicit(four, c_d={"seed": 7}))
    before = {path: path.read_bytes() for path in treed_copy.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="a run of a different recipe"):
        merge(changed, treed_copy)
    assert {path: path.read_bytes() for path in treed_copy.rglob("*") if path.is_file()} == before
    result = merge(changed, treed_copy, update=True)
    assert measured == ["c+d"] * EVALUATIONS + ["a+b+c+d"] * (EVALUATIONS - 2)
    fresh = merge(changed, tmp_path / "fresh")
    assert weights_of(result.folder) == weights_of(fresh.folder)
    assert result.record.models == fresh.record.models
    assert merge(changed, treed_copy).record == result.record, (
        "the changed recipe is now the folder's own"
    )


def test_a_node_that_comes_out_the_same_leaves_those_above_alone(
    treed: MergeResult, four: Four, treed_copy: Path, measured: list[str]
) -> None:
    """Content decides: fewer generations find the same winner, since it was found in the first of
    them."""
    found = treed.record.nodes[1].search.generation
    assert found < 5
    result = merge(
        Recipe.from_dict(explicit(four, c_d={"generations": found})), treed_copy, update=True
    )
    assert measured == ["c+d"] * (6 + (found - 1) * 5)
    assert weights_of(result.folder) == weights_of(treed.folder)


def test_a_renamed_node_reruns_with_those_above(
    four: Four, treed_copy: Path, measured: list[str]
) -> None:
    """Its random draws bear its name."""
    tree = {
        "x": {"parents": ["a", "b"]},
        "c+d": {"parents": ["c", "d"]},
        "a+b+c+d": {"parents": ["x", "c+d"]},
    }
    merge_only(Recipe.from_dict(four | {"merges": tree}), "a+b+c+d", treed_copy, update=True)
    assert set(measured) == {"x", "a+b+c+d"}


@pytest.mark.parametrize(
    "changes", [{"merge": tiny.MERGE | {"seed": 7}}, {"evaluation": {"batch_size": 7}}]
)
def test_a_shared_setting_reruns_all_nodes(
    changes: dict[str, Any], four: Four, treed_copy: Path, measured: list[str]
) -> None:
    merge_only(Recipe.from_dict(four | changes), "a+b+c+d", treed_copy, update=True)
    assert set(measured) == {"a+b", "c+d", "a+b+c+d"}


def test_a_setting_that_decides_no_node_reruns_none(
    four: Four, treed: MergeResult, treed_copy: Path, measured: list[str]
) -> None:
    test = four["data"] | {"test": "test[:60]"}
    with pytest.raises(RunError, match="--update to rerun what changed"):
        merge(Recipe.from_dict(four | {"data": test}), treed_copy)
    result = merge(Recipe.from_dict(four | {"data": test}), treed_copy, update=True)
    assert measured == []
    assert weights_of(result.folder) == weights_of(treed.folder)
    assert {model.test.n for model in result.report.models} == {60}


def test_a_changed_parent_reruns_its_nodes(
    four: Four, treed: MergeResult, tmp_path: Path, measured: list[str]
) -> None:
    """Under the same path: the recipe did not change, the content did."""
    moved = Path(shutil.copytree(four["parents"]["d"], tmp_path / "d"))
    recipe = Recipe.from_dict(four | {"parents": four["parents"] | {"d": str(moved)}})
    merge(recipe, tmp_path / "out")
    measured.clear()
    tiny.save_timm(tmp_path / "new", tiny.fit(tiny.timm_model(seed=9), epochs=2))
    shutil.copyfile(tmp_path / "new" / "model.safetensors", moved / "model.safetensors")
    (tmp_path / "out" / "result.json").unlink()
    with pytest.raises(RunError, match="different parents"):
        merge(recipe, tmp_path / "out")
    merge(recipe, tmp_path / "out", update=True)
    assert measured == ["c+d"] * EVALUATIONS + ["a+b+c+d"] * (EVALUATIONS - 2)
    assert file_of(tmp_path / "out", "a+b") == file_of(treed.folder, "a+b")


@pytest.mark.parametrize("damage", ["gone", "other bytes", "another node's"])
def test_a_lost_node_is_rebuilt_from_the_journal(
    damage: str, four: Four, treed: MergeResult, treed_copy: Path, measured: list[str]
) -> None:
    (treed_copy / "result.json").unlink()
    node = treed_copy / "nodes" / "a+b"
    if damage == "gone":
        shutil.rmtree(node)
    elif damage == "other bytes":
        file = node / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    else:
        shutil.rmtree(node)
        shutil.copytree(treed_copy / "nodes" / "c+d", node)
    result = merge(Recipe.from_dict(four), treed_copy)
    assert measured == []
    assert file_of(treed_copy, "a+b") == file_of(treed.folder, "a+b")
    assert weights_of(result.folder) == weights_of(treed.folder)


def test_new_label_names_of_the_first_parent_are_saved(
    four: Four, treed: MergeResult, tmp_path: Path, measured: list[str]
) -> None:
    """What a merge takes from its first parent beside weights decides no fitness, but what is
    saved."""
    parents = {
        name: Path(shutil.copytree(folder, tmp_path / name))
        for name, folder in four["parents"].items()
    }
    recipe = Recipe.from_dict(
        four | {"parents": {name: str(folder) for name, folder in parents.items()}}
    )

    def configure(change: Any) -> None:
        for folder in parents.values():
            config = json.loads((folder / "config.json").read_text())
            change(config)
            (folder / "config.json").write_text(json.dumps(config))

    configure(lambda config: config.pop("label_names"))
    merge(recipe, tmp_path / "out")
    measured.clear()
    configure(lambda config: config.update(mood="good"))
    result = merge(recipe, tmp_path / "out", update=True)
    assert measured == []
    for folder in (result.merged, result.folder / "nodes" / "a+b", result.folder / "nodes" / "c+d"):
        assert json.loads((folder / "config.json").read_text())["mood"] == "good"
    assert weights_of(result.folder) == weights_of(treed.folder)


def test_an_update_that_changes_nothing_keeps_the_report(four: Four, treed_copy: Path) -> None:
    merge_only(Recipe.from_dict(four), "a+b", treed_copy, update=True)
    assert names(treed_copy) == FILES | {"nodes", "tree.png"}
    merge_only(Recipe.from_dict(explicit(four, c_d={"seed": 7})), "a+b", treed_copy, update=True)
    assert "result.json" not in names(treed_copy), "it is of another recipe"


def test_a_report_ends_with_the_first_node_that_changes(four: Four, tmp_path: Path) -> None:
    """Else an update that is killed later leaves what looks like a finished run."""
    moved = Path(shutil.copytree(four["parents"]["a"], tmp_path / "a"))
    recipe = Recipe.from_dict(four | {"parents": four["parents"] | {"a": str(moved)}})
    merge(recipe, tmp_path / "out")
    tiny.save_timm(tmp_path / "new", tiny.fit(tiny.timm_model(seed=9), epochs=2))
    shutil.copyfile(tmp_path / "new" / "model.safetensors", moved / "model.safetensors")
    merge_only(recipe, "c+d", tmp_path / "out", update=True)
    assert "result.json" in names(tmp_path / "out"), "that node did not change"
    merge_only(recipe, "a+b", tmp_path / "out", update=True)
    assert not {"result.json", "README.md"} & names(tmp_path / "out")


def test_a_changed_journal_is_an_error(four: Four, treed_copy: Path) -> None:
    lines = [json.loads(line) for line in (treed_copy / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "fitness" and line["node"] == "a+b":
            line["correct"] = 60 - line["index"]
    (treed_copy / "journal.jsonl").write_bytes(journal_of(lines))
    shutil.rmtree(treed_copy / "nodes")
    (treed_copy / "result.json").unlink()
    with pytest.raises(RunError, match=r"of a\+b is not the one that was recorded"):
        merge(Recipe.from_dict(four), treed_copy)
