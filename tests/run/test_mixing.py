"""Merges by coefficients: found by the same search, resumed, shared out, verified and pulled apart
as all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from mega_hf import MergeResult, Recipe, merge, verify
from mega_hf.run.journal import Journal
from tests.tools import tiny
from tests.tools.run_files import weights_of
from tests.tools.started import assert_one_result, merge_in_two

MIXING = tiny.MERGE | {"encoding": "mixing", "mutation": {"rate": 0.5, "std": 0.3}}
# so that no parent wins, on whatever processor
ALONE = MIXING | {"founders": {"include_parents": False}}
SMALL = {"batch_size": 10}


@pytest.fixture(scope="module")
def mixed(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    recipe = Recipe.from_dict(pair.recipe(merge=ALONE, evaluation=SMALL))
    return merge(recipe, tmp_path_factory.mktemp("mixed") / "out")


def test_the_winner_is_a_mixture_and_no_parent(mixed: MergeResult, pair: tiny.Pair) -> None:
    for parent in (pair.a, pair.b):
        weights = load_file(parent / "model.safetensors")
        assert not all(torch.equal(mixed.weights[name], tensor) for name, tensor in weights.items())
    assert mixed.record.notices == []


def test_the_recipe_of_the_run_has_the_encoding(mixed: MergeResult) -> None:
    recipe = Recipe.from_yaml(mixed.folder / "recipe.yaml")
    assert (recipe.merge.encoding, recipe.merge.granularity) == ("mixing", "layer")
    assert recipe.sha256 == mixed.record.digests.recipe
    assert mixed.record.nodes[0].merge["encoding"] == "mixing"


def test_a_granularity_without_effect_is_an_error(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    answer = mega("merge", pair.write(tmp_path), "--set", "merge.granularity=tensor", "--dry-run")
    assert answer.code == 2
    assert "granularity" in answer.err and "encoding: mixing" in answer.err
    both = ["--set", "merge.granularity=tensor", "--set", "merge.encoding=mixing"]
    answer = mega("merge", pair.write(tmp_path), *both, "--dry-run")
    assert answer.code == 0 and "from coefficients of the parents by tensor" in answer.out


def test_a_run_resumes_from_any_line(mixed: MergeResult, pair: tiny.Pair, tmp_path: Path) -> None:
    whole = (mixed.folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    recipe = Recipe.from_dict(pair.recipe(merge=ALONE, evaluation=SMALL))
    merge(recipe, tmp_path / "out")
    for kept in (3, 9, 15):
        (tmp_path / "out" / "result.json").unlink()
        (tmp_path / "out" / "journal.jsonl").write_bytes(b"".join(whole[:kept]))
        merge(recipe, tmp_path / "out")
        assert weights_of(tmp_path / "out") == weights_of(mixed.folder)


@pytest.mark.long
def test_two_processes_give_the_file_of_one(
    mixed: MergeResult, pair: tiny.Pair, tmp_path: Path
) -> None:
    file = pair.write(tmp_path, merge=ALONE, evaluation=SMALL)
    merge_in_two(file, tmp_path / "out")
    assert_one_result(tmp_path, mixed)


def test_verification_is_bit_for_bit(mixed: MergeResult, pair: tiny.Pair) -> None:
    found = verify(mixed.folder, evaluate=3)
    assert found.digests["file"] == mixed.record.digests.file


def test_full_evaluation_finds_the_same(
    mixed: MergeResult, pair: tiny.Pair, tmp_path: Path
) -> None:
    recipe = Recipe.from_dict(pair.recipe(merge=ALONE, evaluation=SMALL))
    merge(recipe, tmp_path / "out", full_evaluation=True)
    assert weights_of(tmp_path / "out") == weights_of(mixed.folder)


def test_merges_of_a_tree_do_not_share_fitnesses_of_coefficients(
    four: dict[str, Any], tmp_path: Path
) -> None:
    """Each parent is the coefficients 1 and 0 of its merge; what was measured of one must not be
    said of another."""
    result = merge(Recipe.from_dict(four | {"merge": MIXING}), tmp_path / "out")
    counted = {model.name: model.validation.correct for model in result.record.models}
    journal, known = Journal(tmp_path / "out" / "journal.jsonl"), 0
    for node in result.record.nodes:
        for index, parent in enumerate(node.parents):
            fitness = journal.nodes[node.name].find(1, index, None)
            if fitness is not None and fitness.seen == 60:
                known += 1
                assert fitness.correct == counted.get(f"{parent} recalibrated", counted[parent])
    assert known >= len(journal.nodes), "of each merge one at least was measured to its end"


def test_the_merges_of_a_tree_may_differ(four: dict[str, Any], tmp_path: Path) -> None:
    nodes: dict[str, Any] = {
        "ab": {"parents": ["a", "b"], "encoding": "direct"},
        "cd": {"parents": ["c", "d"], "granularity": "model"},
        "top": {"parents": ["ab", "cd"]},
    }
    # ab has no use for it
    Recipe.from_dict(four | {"merge": MIXING | {"granularity": "tensor"}, "merges": nodes})
    recipe = Recipe.from_dict(four | {"merge": MIXING, "merges": nodes})
    again = Recipe.from_dict(recipe.to_dict())
    assert again == recipe and again.sha256 == recipe.sha256
    found = {name: (node.encoding, node.granularity) for name, node in recipe.nodes().items()}
    assert found == {
        "ab": ("direct", "layer"),
        "cd": ("mixing", "model"),
        "top": ("mixing", "layer"),
    }
    merge(recipe, tmp_path / "out")
    verify(tmp_path / "out")


def test_the_published_code_has_no_coefficients(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    recipe = pair.write(tmp_path, merge=MIXING | {"variant": "reference"})
    answer = mega("merge", recipe, "--out", tmp_path / "out")
    assert answer.code == 2 and "encoding" in answer.err and "variant: default" in answer.err


def test_a_population_without_memory_is_an_error_before_its_allocation(
    pair: tiny.Pair, tmp_path: Path, mega, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=2**20))
    recipe = pair.write(tmp_path)
    answer = mega("merge", recipe, "--out", tmp_path / "out")
    assert (
        answer.code == 2
        and "not enough memory for the population" in answer.err
        and "encoding: mixing" in answer.err
    )
    mixing = mega(
        "merge", recipe, "--out", tmp_path / "out", "--update", "--set", "merge.encoding=mixing"
    )
    assert mixing.code == 0, mixing.err


def test_parents_with_other_tensor_names_on_disk_are_copied(
    pair: tiny.Pair, tmp_path: Path, mixed: MergeResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mega_hf.models.merge_inputs.is_mapped", lambda *_: False)
    merge(Recipe.from_dict(pair.recipe(merge=ALONE, evaluation=SMALL)), tmp_path / "out")
    assert weights_of(tmp_path / "out") == weights_of(mixed.folder)
    assert torch.isfinite(next(iter(mixed.weights.values()))).all()
