"""`method: auto`: what it chooses for which parents, written out in recipe, journal, result and
card."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from mega_hf import Recipe, RecipeError, VerificationError, merge, verify
from mega_hf.run.folder import read_stored
from mega_hf.weights.symmetry import find_symmetry
from tests.tools import tiny
from tests.tools.run_files import journal, weights_of
from tests.tools.started import merge_in_two
from tests.weights.permuted import shuffle

AUTO = tiny.MERGE | {"method": "auto"}


@pytest.fixture(scope="module")
def close(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two parents whose average is better than they are."""
    folder = tmp_path_factory.mktemp("auto") / "run"
    merge(Recipe.from_dict(pair.recipe(merge=AUTO)), folder)
    return folder


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_parents_in_one_loss_basin_are_mixed_by_few_coefficients(close: Path) -> None:
    told = record(close)
    settings = told["nodes"][0]["merge"]
    assert {key: settings[key] for key in ("method", "encoding", "granularity")} == {
        "method": "cma-es",
        "encoding": "mixing",
        "granularity": "stage",
    }
    assert settings["align"] == "none" and any(
        "one loss basin" in reason for reason in told["chosen"]["why"]
    )
    assert "chosen by evaluating the parents" in (close / "README.md").read_text()
    assert verify(close, evaluate=3).digests["file"] == told["digests"]["file"]


def test_the_choice_is_written_to_the_recipe(close: Path, pair: tiny.Pair) -> None:
    known, is_ours = read_stored(close / "recipe.yaml")
    (line,) = journal(close, "chosen")
    assert is_ours and known.merge.method == "cma-es" and line["settings"]["method"] == "cma-es"
    assert set(line["correct"]) == {"a", "b", "average"}
    before = (close / "journal.jsonl").read_bytes()
    again = merge(Recipe.from_dict(pair.recipe(merge=AUTO)), close)
    assert again.record.to_dict() == record(close), "it is still its recipe"
    assert (close / "journal.jsonl").read_bytes() == before


def test_parents_of_one_function_in_another_order_are_aligned(
    tmp_path: Path, pair: tiny.Pair
) -> None:
    """The second is the first, its channels shuffled, and a little noise, so that it is no copy."""
    model = tiny.fit(tiny.timm_model())
    first = tiny.save_timm(tmp_path / "first", model)
    groups = find_symmetry(model, (3, tiny.SIZE, tiny.SIZE), "cifar_resnet8").groups
    noise = torch.Generator().manual_seed(5)
    state = {
        name: (
            tensor + 0.001 * torch.randn(tensor.shape, generator=noise)
            if "conv" in name
            else tensor
        )
        for name, tensor in shuffle(model.state_dict(), groups)[0].items()
    }
    model.load_state_dict(state)
    other = tiny.save_timm(tmp_path / "other", model)
    tree = pair.recipe(merge=AUTO, parents={"a": str(first), "b": str(other)})
    told = merge(Recipe.from_dict(tree), tmp_path / "run").record.to_dict()
    assert told["chosen"]["settings"] == {
        "batchnorm": "recalibrate",
        "method": "mega",
        "encoding": "direct",
        "align": "activations",
    }
    assert told["chosen"]["correct"]["aligned average"] > told["chosen"]["correct"]["average"]
    assert verify(tmp_path / "run").parents == 2


def test_without_training_rows_statistics_are_blended(pair: tiny.Pair, tmp_path: Path) -> None:
    rows = {
        name: tiny.split(tiny.ROWS[name], seed) for seed, name in ((2, "validation"), (3, "test"))
    }
    data = {
        "path": str(tiny.write_splits(tmp_path / "data", rows)),
        "validation": "validation",
        "test": "test",
    }
    recipe = Recipe.from_dict(pair.recipe(data=data, merge=AUTO))
    told = merge(recipe, tmp_path / "run").record.to_dict()
    assert told["chosen"]["settings"]["batchnorm"] == "blend" and "calibration" not in told["data"]
    assert verify(tmp_path / "run").parents == 2


def test_an_interrupted_run_chooses_once(
    close: Path, pair: tiny.Pair, tmp_path: Path, interrupt: Any
) -> None:
    interrupt(4)
    with pytest.raises(KeyboardInterrupt):
        merge(Recipe.from_dict(pair.recipe(merge=AUTO)), tmp_path / "run")
    merge(Recipe.from_dict(pair.recipe(merge=AUTO)), tmp_path / "run")
    assert len(journal(tmp_path / "run", "chosen")) == 1
    assert weights_of(tmp_path / "run") == weights_of(close)


@pytest.mark.long
def test_two_processes_choose_alike(close: Path, pair: tiny.Pair, tmp_path: Path) -> None:
    file = pair.write(tmp_path, merge=AUTO)
    merge_in_two(file, tmp_path / "two")
    assert weights_of(tmp_path / "two") == weights_of(close)
    assert record(tmp_path / "two")["chosen"] == record(close)["chosen"]


def test_a_tree_is_chosen_for_as_a_whole(four: dict[str, Any], tmp_path: Path) -> None:
    tree = four | {"merge": AUTO}
    told = merge(Recipe.from_dict(tree), tmp_path / "run").record.to_dict()
    assert {node["merge"]["method"] for node in told["nodes"]} == {
        told["chosen"]["settings"]["method"]
    }
    assert set(told["chosen"]["correct"]) >= {"a", "b", "c", "d", "average"}
    assert verify(tmp_path / "run").parents == 4


@pytest.mark.parametrize("key", ["why", "settings", "correct"])
def test_a_forged_choice_fails_verification(key: str, close: Path, tmp_path: Path) -> None:
    folder = tmp_path / "forged"
    subprocess.run(["cp", "-r", str(close), str(folder)], check=True)
    told = record(folder)
    told["chosen"][key] = {
        "why": ["it is the best"],
        "settings": {"method": "mega"},
        "correct": {"a": 60},
    }[key]
    (folder / "result.json").write_text(json.dumps(told))
    with pytest.raises(VerificationError, match=rf"chosen\.{key}"):
        verify(folder)


@pytest.mark.parametrize(
    "more",
    [{"align": "weights"}, {"align_to": "b"}, {"encoding": "mixing"}, {"batchnorm": "blend"}],
)
def test_settings_that_auto_chooses_cant_be_given(more: dict[str, str], pair: tiny.Pair) -> None:
    with pytest.raises(RecipeError, match="nothing, since auto chooses it"):
        Recipe.from_dict(pair.recipe(merge=AUTO | more))


def test_a_dry_run_of_method_auto(pair: tiny.Pair, tmp_path: Path, mega: Any) -> None:
    answer = mega("merge", pair.write(tmp_path, merge=AUTO, baselines=["random"]), "--dry-run")
    assert answer.code == 0 and "method       auto: chosen after the parents" in answer.out
    assert "baselines    random 26 evaluations" in answer.out, (
        "as many as the search, whichever is chosen"
    )
