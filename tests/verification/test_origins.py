"""verify finds changes by a forger who knows the digests: of origins, and foreign files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mega_hf import MergeResult, Recipe, VerificationError, merge, verify
from mega_hf.hub.bundle import portable_files
from mega_hf.report.card import write_card
from tests.tools import tiny
from tests.tools.forged import assert_named, claim, edit, give_recipe, rewrite, settle
from tests.tools.run_files import journal


def _config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "merged" / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    settle(folder)


def _reverse_labels(config: dict[str, Any]) -> None:
    config["label_names"] = config["label_names"][::-1]


def _other_pictures(config: dict[str, Any]) -> None:
    config["pretrained_cfg"]["mean"] = [9.0, 9.0, 9.0]


def _hide_files(folder: Path) -> None:
    """The record of a copy lists its files; an empty list must not switch off a check."""
    _config(folder, _other_pictures)
    edit(folder, lambda record: record.update(files={}))


def _add_adapter(folder: Path) -> None:
    (folder / "merged" / "adapter_config.json").write_text("{}")
    settle(folder)


def _add_model(folder: Path) -> None:
    shutil.copyfile(folder / "merged" / "model.safetensors", folder / "model.safetensors")


def _add_lines(folder: Path) -> None:
    lines = journal(folder)
    one = next(line for line in lines if line["kind"] == "fitness")
    lines[-1:-1] = [one | {"generation": 77, "index": i, "genome": f"{i:032x}"} for i in range(50)]
    rewrite(folder, lines)
    edit(
        folder,
        lambda record: [r["search"].update(evaluations=76) for r in (record, record["nodes"][0])],
    )


def _batch(size: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rewrite(
            folder,
            [x | {"batch_size": size} if x["kind"] == "header" else x for x in journal(folder)],
        )

    return change


HUB = {"hub": "google/vit", "revision": "0" * 40, "license": "apache-2.0"}
NET = {"hub": "imagenet-1k", "revision": "0" * 40}


def _parents(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda record: change(record["parents"]))


LIES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "labels": (lambda f: _config(f, _reverse_labels), "^merged: changed.*classes or label order"),
    "preprocessing": (lambda f: _config(f, _other_pictures), "^merged: changed.*preprocessing"),
    "files": (_hide_files, "^merged: changed.*preprocessing"),
    "an adapter": (_add_adapter, "^merged: changed.*files that would be loaded"),
    "two models": (_add_model, r"^\*.safetensors: changed.*the place of the model"),
    "a parent's origin": (
        _parents(lambda p: p[0].update(HUB)),
        "^result.json: .*parents.a.(local|hub|revision): ",
    ),
    "a parent twice": (
        _parents(lambda p: p.append(p[0] | HUB)),
        "^result.json: .*parents.a: none, not ",
    ),
    "a parent more": (
        _parents(lambda p: p.append(p[0] | {"name": "c"})),
        "^result.json: .*parents.c: none, not ",
    ),
    "the data's origin": (
        lambda f: claim(f, "data", "source", value=NET),
        "^result.json: .*data.source.hub: none, not imagenet-1k|data.source.local",
    ),
    "the rows": (
        lambda f: claim(f, "data", "test", "spec", value="test[:50%]"),
        "^result.json: .*data.test.spec: test, not ",
    ),
    "a name": (
        lambda f: claim(f, "recipe", "data", "path", "local", value="x"),
        "^result.json: .*recipe.data.path.local: data, not x",
    ),
    "content": (
        lambda f: claim(f, "recipe", "parents", "a", "sha256", value="0"),
        "^result.json: .*recipe.parents.a.sha256: ",
    ),
    "the device": (
        lambda f: claim(f, "environment", "device_kind", value="cuda"),
        "^result.json: .*environment.device_kind: cpu, not cuda",
    ),
    "lines of no search": (
        _add_lines,
        "^journal.jsonl: lines that the search of a.b does not need",
    ),
    "no batch": (_batch(0), "journal.jsonl:1: a damaged line"),
    "founders": (
        lambda f: give_recipe(f, lambda tree: tree["merge"].update(population_size=100_000)),
        "^journal.jsonl: no line for the 99994 other founders of a.b",
    ),
    "the order": (
        lambda f: give_recipe(f, lambda t: t.update(order="accuracy", merges="pairwise")),
        "does not rank",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_consistent_changes_are_named(lie: str, copied: Path) -> None:
    assert_named(copied, *LIES[lie])


def test_an_impossible_batch_size_is_named(copied: Path) -> None:
    _batch(2**50)(copied)
    with pytest.raises(VerificationError, match=r"^journal.jsonl: changed.*batch size"):
        verify(copied, evaluate=1)


def test_rows_that_a_line_leaves_out_are_evaluated_again(copied: Path) -> None:
    """A loser of the last generation decides nothing: claim none correct of few rows."""
    lines = journal(copied)
    merged = next(line for line in lines if line["kind"] == "merged")
    last = [line for line in lines if line["kind"] == "fitness" and line["generation"] == 5]
    loser = next(line for line in last if 22 < line["correct"] < merged["correct"])
    merged["history"][4]["mean"] = (merged["history"][4]["mean"] * 6 - loser["correct"] + 20) / 6
    loser |= {"correct": 0, "n": 40}
    rewrite(copied, lines)
    edit(
        copied,
        lambda record: [
            told.update(history=merged["history"]) for told in (record, record["nodes"][0])
        ],
    )
    write_card(MergeResult.load(copied))
    assert verify(copied).parents == 2, "nothing but the data can tell"
    with pytest.raises(
        VerificationError,
        match=rf"^journal.jsonl: individual {loser['index']} of generation 5 of a",
    ):
        verify(copied, evaluate=100)


def test_a_kept_intermediate_model_is_compared(treed_copy: Path) -> None:
    shutil.rmtree(treed_copy / "nodes" / "c+d")
    assert verify(treed_copy).parents == 4
    config = treed_copy / "nodes" / "a+b" / "config.json"
    config.write_text(
        config.read_text()
        .replace('"bar"', '"x"')
        .replace('"dash"', '"bar"')
        .replace('"x"', '"dash"')
    )
    with pytest.raises(VerificationError, match=r"^nodes/a\+b: changed.*label order"):
        verify(treed_copy)
    file = treed_copy / "nodes" / "a+b" / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"conv1.weight": weights["conv1.weight"] + 1}, file, {"format": "pt"})
    with pytest.raises(
        VerificationError, match=r"^nodes/a\+b: changed.*the weights: largest difference"
    ):
        verify(treed_copy)


def test_an_order_against_the_counts_is_named(four: dict[str, Any], tmp_path: Path) -> None:
    merge(Recipe.from_dict(four | {"order": "accuracy"}), tmp_path / "out")
    lines = journal(tmp_path / "out")
    order = next(line for line in lines if line["kind"] == "order")
    order["correct"] = {name: 60 - correct for name, correct in order["correct"].items()}
    rewrite(tmp_path / "out", lines)
    with pytest.raises(VerificationError, match=r"^journal.jsonl: changed.*the parents' order"):
        verify(tmp_path / "out")


def test_the_repository_and_the_placeholders_of_a_copy(
    finished, pair: tiny.Pair, tmp_path: Path
) -> None:
    for name, content in portable_files(finished, "me/merged", {"license": "mit"}).items():
        (tmp_path / name).write_bytes(
            content if isinstance(content, bytes) else content.read_bytes()
        )
    given = {"a": str(pair.a), "b": str(pair.b)}
    assert "not checked: me/merged, the repository that the card names" in str(
        verify(tmp_path, parents=given)
    )
    text = (tmp_path / "recipe.yaml").read_text()
    assert re.search("sha256: [0-9a-f]{64}", text)
    digest = finished.record.parents[0].sha256
    forged = Recipe.from_dict(
        json.loads(json.dumps(finished.record.recipe).replace(digest, "0" * 64))
    )
    give_recipe(tmp_path, lambda tree: tree.update(parents=forged.to_dict()["parents"]))
    with pytest.raises(VerificationError, match=r"^recipe.yaml: changed.*content of parents.a"):
        verify(tmp_path, parents=given)


@pytest.mark.parametrize(
    "change", [{"name": "renamed"}, {"merge": tiny.MERGE | {"generations": 3}}]
)
def test_an_updated_run_is_verified(change: dict[str, Any], copied: Path, pair: tiny.Pair) -> None:
    merge(Recipe.from_dict(pair.recipe(**change)), copied, update=True)
    assert verify(copied).parents == 2
