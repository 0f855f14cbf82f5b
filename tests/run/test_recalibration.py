"""Merges whose BatchNorm statistics are computed anew: the same for all that is compared, replayed,
and verified."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from mega_hf import DataError, MergeResult, Recipe, RecipeError, VerificationError, merge, verify
from mega_hf.recipe.data import CalibrationRows, Data
from mega_hf.runtime.files import merged_digest
from mega_hf.tasks.splits import add_calibration, load_splits
from tests.tools import tiny
from tests.tools.forged import claim, settle
from tests.tools.run_files import journal, weights_of


def test_every_compared_row_of_the_report_is_recalibrated(
    finished: MergeResult, pair: tiny.Pair
) -> None:
    rows = {model.name: model for model in finished.report.models}
    for name, folder in (("a", pair.a), ("b", pair.b)):
        model = tiny.recalibrate(timm.create_model(f"local-dir:{folder}", pretrained=True).eval())
        for split in ("validation", "test"):
            counted = getattr(rows[f"{name} recalibrated"], split)
            assert abs(counted.correct - tiny.count(model, split)) <= 1
    card = (finished.folder / "README.md").read_text()
    assert "BatchNorm statistics were recomputed on 120 rows of train (seed 46)" in card


def test_the_merged_model_holds_the_statistics_that_its_weights_have(finished: MergeResult) -> None:
    model = timm.create_model(f"local-dir:{finished.merged}", pretrained=True).eval()
    found = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name
    }
    expected = tiny.recalibrate(model).state_dict()
    assert found and all(
        torch.allclose(expected[name], found[name], rtol=1e-3, atol=1e-5) for name in found
    )
    counters = {
        name: t for name, t in finished.weights.items() if name.endswith("num_batches_tracked")
    }
    assert len({int(counter) for counter in counters.values()}) == 1 and counters


def test_blending_gives_another_model_and_needs_no_training_image(
    pair: tiny.Pair, tmp_path: Path
) -> None:
    rows = {
        name: tiny.split(tiny.ROWS[name], seed) for seed, name in ((2, "validation"), (3, "test"))
    }
    data = {
        "path": str(tiny.write_splits(tmp_path / "data", rows)),
        "validation": "validation",
        "test": "test",
    }
    data |= {"second_look": 0.0}
    blend = tiny.MERGE | {"batchnorm": "blend"}
    result = merge(Recipe.from_dict(pair.recipe(data=data, merge=blend)), tmp_path / "out")
    assert [model.role for model in result.report.models] == [
        "parent",
        "parent",
        "baseline",
        "merged",
    ]
    assert "calibration" not in result.record.data
    with pytest.raises(DataError, match=r"no images to recalibrate[\s\S]*merge.batchnorm=blend"):
        merge(Recipe.from_dict(pair.recipe(data=data)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_model_without_batchnorm_needs_no_training_image(tmp_path: Path) -> None:
    rows = {
        name: tiny.split(tiny.ROWS[name], seed) for seed, name in ((2, "validation"), (3, "test"))
    }
    model = tiny.timm_model("test_vit", img_size=8, patch_size=4)
    pair = tiny.make_pair(
        tmp_path, model, strength=0.5, data=tiny.write_splits(tmp_path / "data", rows)
    )
    result = merge(Recipe.from_dict(pair.recipe()), tmp_path / "out")
    assert "treated_parent" not in [model.role for model in result.report.models]
    assert verify(tmp_path / "out").digests["file"] == result.record.digests.file


# --- Which rows


def test_calibration_rows_are_drawn_from_what_training_has(data: Path) -> None:
    spec = Data(path=str(data), train="train[:80]", calibration=CalibrationRows(size=50, seed=3))
    first, again = (add_calibration(load_splits(spec)) for _ in range(2))
    assert first.calibration is not None and again.calibration is not None
    rows = first.calibration.indices.tolist()
    assert len(set(rows)) == 50 and rows == sorted(rows) and max(rows) < 80
    assert rows == again.calibration.indices.tolist() and first.digests == again.digests
    other = load_splits(
        spec.model_copy(update={"calibration": CalibrationRows(size=50, seed=4)})
    ).calibration
    assert other is not None and other.indices.tolist() != rows
    assert first.data.calibration == spec.calibration
    assert first.calibration.spec == "50 rows of train[:80] (seed 3)"


def test_an_overlapping_slice_is_an_error(data: Path) -> None:
    for rows, what in (
        ("train[30:50]", "validation and calibration"),
        ("test[:5]", "test and calibration"),
    ):
        spec = Data(path=str(data), validation="train[40:60]", test="test", calibration=rows)
        with pytest.raises(DataError, match=f"{what} overlap"):
            load_splits(spec)
    fits = Data(path=str(data), validation="train[40:60]", test="test", calibration="train[:40]")
    assert add_calibration(load_splits(fits)).data.calibration == "train[:40]"


@pytest.mark.parametrize("wrong", [{"size": 1}, {"size": 10, "of": "train"}, 7, {"seed": "x"}])
def test_bad_calibrations(wrong: Any, pair: tiny.Pair) -> None:
    with pytest.raises(RecipeError, match=r"calibration"):
        Recipe.from_dict(pair.recipe(data={"path": str(pair.data), "calibration": wrong}))


def test_other_calibration_rows_rerun_the_merge(copied: Path, pair: tiny.Pair) -> None:
    tree = pair.recipe()
    before = weights_of(copied)
    changed = Recipe.from_dict(tree | {"data": tree["data"] | {"calibration": {"size": 60}}})
    merge(changed, copied, update=True)
    assert weights_of(copied) != before
    # more than there are
    back = Recipe.from_dict(tree | {"data": tree["data"] | {"calibration": {"size": 1280}}})
    merge(back, copied, update=True)
    assert weights_of(copied) == before


# --- Recipes of before


def test_a_recipe_that_blends_is_read_back_as_such(pair: tiny.Pair) -> None:
    blends = Recipe.from_dict(pair.recipe(merge=tiny.MERGE | {"batchnorm": "blend"}))
    recalibrates = Recipe.from_dict(pair.recipe())
    assert blends.sha256 != recalibrates.sha256
    assert next(iter(blends.nodes().values())).settings["batchnorm"] == "blend"
    assert Recipe.from_dict(blends.to_dict()).sha256 == blends.sha256


# --- Verification


def _shift_statistics(folder: Path, by: float) -> None:
    file = folder / "merged" / "model.safetensors"
    state = load_file(file)
    name = next(name for name in state if name.endswith("running_var"))
    save_file(state | {name: state[name] * by}, file, metadata={"format": "pt"})


def test_statistics_that_were_changed_are_noticed_without_data(copied: Path) -> None:
    _shift_statistics(copied, 1.5)
    with pytest.raises(
        VerificationError, match=r"^model.safetensors: [\s\S]*BatchNorm's statistics"
    ):
        verify(copied)


def test_statistics_that_a_forger_settled_are_noticed_with_the_data(copied: Path) -> None:
    from mega_hf.models.load import open_model
    from mega_hf.weights.space import digest

    _shift_statistics(copied, 1.5)
    state = open_model(copied / "merged").state()
    statistics = digest({name: tensor for name, tensor in state.items() if "running" in name})
    digests = {
        "statistics": statistics,
        "state": digest(state),
        "file": merged_digest(copied / "merged"),
    }
    lines = journal(copied)
    for line in lines:
        line.update(digests if line["kind"] == "merged" else {})
    from tests.tools.forged import rewrite

    rewrite(copied, lines)
    for key, value in digests.items():
        claim(copied, "digests", key, value=value)
        claim(copied, "nodes", 0, "digests", key, value=value)
    settle(copied)
    assert "BatchNorm's statistics: this takes the data" in str(verify(copied))
    with pytest.raises(
        VerificationError, match=r"statistics of a.b do not follow from its weights"
    ):
        verify(copied, evaluate=0)


def test_with_the_data_statistics_are_computed_again(copied: Path) -> None:
    verified = verify(copied, evaluate=2)
    assert verified.remeasured is not None and verified.remeasured.statistics_apart == 0
    assert "BatchNorm's statistics  recomputed: the same bits" in str(verified)


def test_without_a_model_the_data_give_its_very_file(copied: Path, finished: MergeResult) -> None:
    shutil.rmtree(copied / "merged")
    verified = verify(copied)
    assert (
        "file" not in verified.digests
        and verified.digests["weights"] == finished.record.digests.weights
    )
    assert "not rebuilt" in str(verified)
    assert json.dumps(verified.to_dict())
    verified = verify(copied, evaluate=3)
    assert verified.digests["file"] == finished.record.digests.file


def test_a_tree_without_its_models_is_verified(treed: MergeResult, treed_copy: Path) -> None:
    for folder in ("merged", "nodes"):
        shutil.rmtree(treed_copy / folder)
    assert verify(treed_copy, evaluate=5).digests["file"] == treed.record.digests.file


def test_a_run_whose_record_hides_that_it_was_recalibrated_is_named(copied: Path) -> None:
    from tests.tools.forged import edit

    edit(copied, lambda record: record["data"].pop("calibration"))
    with pytest.raises(
        VerificationError, match=r"result.json: changed since the run: search\.pictures_full"
    ):
        verify(copied)


def test_a_file_that_rounds_otherwise_is_said_to_be_another(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another processor: a last bit of a statistic differs, and every weight is the same."""
    from mega_hf.evaluation.calibration import Calibration

    shutil.rmtree(copied / "merged")
    recalibrate = Calibration.recalibrate

    def rounded(self: Calibration, forward: Any, dtypes: Any) -> Any:
        found = recalibrate(self, forward, dtypes)
        name = next(iter(found))
        found[name] = torch.nextafter(found[name], torch.full_like(found[name], torch.inf))
        return found

    monkeypatch.setattr(Calibration, "recalibrate", rounded)
    verified = verify(copied, evaluate=1)
    assert verified.digests["file"] != verified.digests["claimed_file"]
    assert "result.json's: BatchNorm's sums round differently on this machine" in str(verified)
