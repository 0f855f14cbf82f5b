"""A whole merge in one process, and the files that it leaves."""

from __future__ import annotations

import json
import random
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import yaml
from safetensors.torch import load_file
from scipy.stats import binomtest

from mega_hf import MergeResult, Recipe, RunError, merge
from tests.tools import tiny
from tests.tools.run_files import EVALUATIONS, FILES, lines, names, weights_of


def test_the_run_folder(finished: MergeResult) -> None:
    assert names(finished.folder) == FILES
    assert names(finished.merged) == {"config.json", "model.safetensors"}
    assert (finished.folder / "fitness.png").read_bytes().startswith(b"\x89PNG")
    with safetensors.safe_open(finished.merged / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_recipe_in_the_run_folder_is_complete(finished: MergeResult, pair: tiny.Pair) -> None:
    stored = Recipe.from_yaml(finished.folder / "recipe.yaml")
    assert stored.parents == {"a": str(pair.a), "b": str(pair.b)}
    assert (stored.data.image, stored.data.label) == ("image", "label")
    assert stored.merge == Recipe.from_dict(pair.recipe()).merge
    tree = yaml.safe_load((finished.folder / "recipe.yaml").read_text())
    assert tree == stored.to_dict(), "not every default is written out"


def test_the_journal(finished: MergeResult) -> None:
    header, *fitness = lines(finished.folder)
    assert header["kind"] == "header"
    assert set(header["parents"]) == {"a", "b"}
    assert set(header["data"]) == {"validation", "test", "calibration"}
    assert (header["device_kind"], header["versions"]["torch"]) == ("cpu", version("torch"))
    assert header["forward_path"]
    assert len(fitness) == EVALUATIONS
    assert {frozenset(line) for line in fitness} == {
        frozenset(
            [
                "kind",
                "node",
                "generation",
                "index",
                "correct",
                "n",
                "genome",
                "seconds",
                "pictures",
                "crc",
            ]
        )
    }
    generations = [
        [line["index"] for line in fitness if line["generation"] == g] for g in range(1, 6)
    ]
    assert generations == [list(range(6)), *[list(range(1, 6))] * 4], "the elite keeps its fitness"
    assert {line["n"] for line in fitness} == {60}


def test_the_winner_is_a_child_and_no_parent(finished: MergeResult, pair: tiny.Pair) -> None:
    """Else equal digests below would say nothing about breeding."""
    assert finished.record.search.generation > 1
    for parent in (pair.a, pair.b):
        stored = load_file(parent / "model.safetensors")
        assert not torch.equal(stored["fc.weight"], finished.weights["fc.weight"])
    report = finished.report
    assert report.merged.validation.correct > max(m.validation.correct for m in report.models[:2])


def test_the_result_record(finished: MergeResult) -> None:
    record = json.loads((finished.folder / "result.json").read_text())
    assert record["version"] == 1
    assert [(m["name"], m["role"]) for m in record["models"]] == [
        ("a", "parent"),
        ("b", "parent"),
        ("a recalibrated", "treated_parent"),
        ("b recalibrated", "treated_parent"),
        ("uniform_soup", "baseline"),
        ("merged", "merged"),
    ]
    for model in record["models"]:
        level = set() if model["role"] in ("baseline", "treated_parent") else {"level"}
        assert set(model) == {"name", "role", "validation", "test"} | level
        for name in ("validation", "test"):
            counted = model[name]
            assert set(counted) == {"correct", "n"}
            assert counted["n"] == tiny.ROWS[name]
            assert type(counted["correct"]) is int
            assert 0 <= counted["correct"] <= counted["n"]
    assert set(record["paired"]) == {
        "against",
        "only_merged_right",
        "only_other_right",
        "p",
        "low",
        "high",
    }
    digests = record["digests"]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests.values()), digests
    assert {"weights", "statistics", "file", "recipe", "journal"} <= set(digests)
    assert record["environment"]["device_kind"] == "cpu"
    assert record["seconds"]["search"] > 0
    assert record["search"]["evaluations"] == EVALUATIONS
    assert len(record["history"]) == 5


def test_the_models_are_counted_as_their_users_count_them(
    finished: MergeResult, pair: tiny.Pair
) -> None:
    import timm

    folders = {"a": pair.a, "b": pair.b, "merged": finished.merged}
    for row in finished.report.models:
        if row.name in folders:
            model = timm.create_model(f"local-dir:{folders[row.name]}", pretrained=True).eval()
            assert row.validation.correct == tiny.count(model, "validation"), row
            assert row.test.correct == tiny.count(model, "test"), row


def test_the_uniform_soup_is_the_parents_mean(finished: MergeResult, pair: tiny.Pair) -> None:
    left, right = (load_file(folder / "model.safetensors") for folder in (pair.a, pair.b))
    model = tiny.timm_model()
    model.load_state_dict(
        {k: (v + right[k]) / 2 if v.is_floating_point() else v for k, v in left.items()}
    )
    tiny.recalibrate(model)
    row = next(m for m in finished.report.models if m.name == "uniform_soup")
    assert row.test.correct == tiny.count(model, "test")


def test_the_paired_test(finished: MergeResult, pair: tiny.Pair) -> None:
    import timm

    paired, rows = finished.record.paired, {m.name: m for m in finished.report.models}
    names = ("a recalibrated", "b recalibrated", "a", "b")
    assert paired.against == max(names, key=lambda name: rows[name].validation.correct)
    images, labels = tiny.as_tensors(90, 3)
    right = []
    for folder in (finished.merged, getattr(pair, paired.against[0])):
        with torch.inference_mode():
            model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            if folder != finished.merged and paired.against.endswith("recalibrated"):
                tiny.recalibrate(model)
            right.append(model(images).argmax(1) == labels)
    only_merged, only_other = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert (paired.only_merged_right, paired.only_other_right) == (only_merged, only_other)
    assert paired.p == pytest.approx(binomtest(only_merged, only_merged + only_other).pvalue)


def test_the_search_counted_what_was_saved(finished: MergeResult) -> None:
    search = finished.record.search
    line = next(
        line
        for line in lines(finished.folder)[1:]
        if (line["generation"], line["index"]) == (search.generation, search.index)
    )
    assert (
        line["correct"]
        == search.correct
        == max(entry["correct"] for entry in lines(finished.folder)[1:])
    )
    assert abs(search.correct - finished.report.merged.validation.correct) <= 1


def test_no_path_of_this_machine_leaves_it(finished: MergeResult) -> None:
    record = (finished.folder / "result.json").read_text()
    card = (finished.folder / "README.md").read_text()
    root = str(finished.folder.parent.parent)
    for text in (record, card, (finished.merged / "config.json").read_text()):
        assert root not in text
        assert str(Path.home()) not in text
        assert not re.search(r"""(^|[\s"'(`=])[/~][A-Za-z]""", text)


def test_two_runs_give_one_file(finished: MergeResult, pair: tiny.Pair, tmp_path: Path) -> None:
    again = merge(Recipe.from_dict(pair.recipe()), tmp_path / "again")
    assert weights_of(again.folder) == weights_of(finished.folder)
    assert again.record.digests.weights == finished.record.digests.weights
    assert again.record.models == finished.record.models


def test_another_seed_gives_another_file(
    finished: MergeResult, pair: tiny.Pair, tmp_path: Path
) -> None:
    other = merge(Recipe.from_dict(pair.recipe(merge=tiny.MERGE | {"seed": 7})), tmp_path / "other")
    assert weights_of(other.folder) != weights_of(finished.folder)


def test_no_global_seed_is_set_or_read(
    finished: MergeResult, pair: tiny.Pair, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    again = merge(Recipe.from_dict(pair.recipe()), tmp_path / "again")
    assert weights_of(again.folder) == weights_of(finished.folder)
    assert torch.initial_seed() == 5
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_the_loaded_result(finished: MergeResult, tmp_path: Path) -> None:
    loaded = MergeResult.load(finished.folder)
    assert loaded.record == finished.record
    assert loaded.weights.keys() == tiny.timm_model().state_dict().keys()
    assert [generation.generation for generation in loaded.history] == [1, 2, 3, 4, 5]
    best = [generation.best for generation in loaded.history]
    assert best == sorted(best), "the elite is never lost"
    assert best[-1] == loaded.record.search.correct
    table = str(loaded.report)
    for word in ("a ", "b ", "uniform_soup", "merged", "(selected on)", "95 % interval", "McNemar"):
        assert word in table, table
    saved = loaded.save(tmp_path / "saved")
    assert names(saved) == {"README.md", "config.json", "model.safetensors"}
    assert (saved / "model.safetensors").read_bytes() == weights_of(finished.folder)
    with pytest.raises(RunError, match="not empty"):
        loaded.save(saved)


@pytest.mark.parametrize("damage", ["missing", "no JSON", "another version", "a list"])
def test_a_result_that_cannot_be_read(damage: str, copied: Path) -> None:
    file = copied / "result.json"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text(
            {"no JSON": "{", "another version": '{"version": 99}', "a list": "[]"}[damage]
        )
    with pytest.raises(RunError) as refusal:
        MergeResult.load(copied)
    for part in ("expected:", "got:", "hint:"):
        assert part in str(refusal.value), str(refusal.value)
