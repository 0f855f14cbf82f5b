"""The result: its table, its one honest sentence, and what of it can be read back."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mega_hf.errors import RunError
from mega_hf.evaluation.statistics import mcnemar, wilson_interval
from mega_hf.report.record import RunRecord
from mega_hf.report.result import MergeResult
from mega_hf.report.table import Report


def _model(name, role, test, n=1000, validation=450):
    return {
        "name": name,
        "role": role,
        "validation": {"correct": validation, "n": 500},
        "test": {"correct": test, "n": n},
    }


PUBLISHED = Path(__file__).parents[2] / "model_cards" / "cifar10-resnet20-pair-default-46"
PAIRED = {"against": "a", "only_merged_right": 0, "only_other_right": 0, "p": 0.5} | {
    "low": 0.0,
    "high": 0.1,
}


def _made(models, **changes):
    """Return the report of a published run with other models."""
    record = json.loads((PUBLISHED / "result.json").read_text())
    return Report(RunRecord.from_dict(record | {"models": models, "paired": PAIRED} | changes))


def _models(merged, best=700, worst=650):
    models = [("b", "parent", worst), ("a", "parent", best), ("uniform_soup", "baseline", 500)]
    return [_model(*model) for model in [*models, ("merged", "merged", merged)]]


def _report(merged, best=700, p=0.5, worst=650, against="a"):
    return _made(_models(merged, best, worst), paired=PAIRED | {"p": p, "against": against})


def _finished(folder, report=None):
    report = report or _report(725)
    (folder / "merged").mkdir(parents=True)
    save_file({"w": torch.tensor([1.0, 2.0])}, folder / "merged" / "model.safetensors")
    (folder / "merged" / "config.json").write_text("{}")
    (folder / "README.md").write_text("# card\n")
    (folder / "result.json").write_bytes(report.record.encode())
    return report.record


# --- The sentence


def test_a_significant_gain_is_better():
    verdict = _report(725, p=0.0123).verdict
    assert (
        verdict
        == "Better than a, the best parent on validation, by 2.50 points on test (McNemar, p ="
        " 0.012)."
    )


def test_a_significant_loss_is_worse():
    verdict = _report(680, p=1e-9).verdict
    assert (
        verdict
        == "Worse than a, the best parent on validation, by 2.00 points on test (McNemar, p <"
        " 0.0001)."
    )


@pytest.mark.parametrize(("merged", "points"), [(725, "+2.50"), (680, "-2.00")])
@pytest.mark.parametrize("p", [0.05, 0.9])
def test_a_difference_within_chance_is_no_improvement(merged, points, p):
    assert (
        _report(merged, p=p).verdict
        == f"No significant improvement over a, the best parent on validation ({points} points on"
        f" test; McNemar, p = {p})."
    )


def test_equal_is_no_improvement():
    verdict = _report(700, p=1.0).verdict
    assert verdict == "No improvement over a, the best parent on validation (equal on test)."


def test_a_copy_of_a_parent_is_said_first():
    (node,) = _report(700).record.to_dict()["nodes"]
    node["parents"], node["search"]["generation"] = ["a", "b"], 1
    parents = [{"name": name, "local": name, "sha256": "0"} for name in "ab"]
    for index, more in (
        (0, ""),
        (1, " No improvement over a, the best parent on validation (equal on test)."),
    ):
        node["search"]["index"] = index
        copy = f"The merged model is a copy of the parent {'ab'[index]}: no merge was better."
        assert _made(_models(700), nodes=[node], parents=parents).verdict == copy + more


def test_the_comparison_is_with_the_parent_that_was_tested_against():
    assert "7.50 points" in _report(725, p=0.01, against="b").verdict


def _looked(chosen, **right):
    models = [
        _model("a", "parent", 700),
        _model("a recalibrated", "treated_parent", 700),
        _model("b", "parent", 650),
        _model("b recalibrated", "treated_parent", 690),
        _model("uniform_soup", "baseline", 710),
        _model("a+b", "searched", 715),
        _model("merged", "merged", 710),
    ]
    paired = PAIRED | {"against": "a recalibrated"}
    finalists = [
        {"name": name.replace("_and_", "+"), "correct": count, "n": 200}
        for name, count in right.items()
    ]
    look = json.loads((PUBLISHED / "result.json").read_text())["nodes"][0]
    look |= {"search": look["search"] | {"correct": 150, "n": 200}}
    look |= {"chosen": chosen, "finalists": finalists}
    return _made(models, paired=paired, second_look=look)


def test_the_held_out_selection_has_a_column_and_remarks():
    report = _looked("uniform_soup", uniform_soup=150, a=140, b=100, a_and_b=151)
    head, *rows = report.rows()
    assert head.index("held-out") == 3
    shown = {(row[0], row[1]): row[3] for row in rows}
    assert shown["a", "parent"] == "" and shown["a recalibrated", "parent"] == "70.00 %"
    assert shown["uniform_soup", "baseline"] == shown["merged", "merged"] == "75.00 %"
    assert shown["a+b", "searched"] == "75.50 %"
    assert "Final model, chosen on 200 held-out rows: uniform_soup (baseline)." in str(report)
    assert "a+b (151 correct) was ahead of uniform_soup (150 correct), but by no more" in str(
        report
    )
    assert "ahead of" not in str(
        _looked("uniform_soup", uniform_soup=150, a=140, b=100, a_and_b=150)
    )


def test_where_nothing_was_chosen_there_is_no_selection_bias():
    report = _report(725)
    assert "Selection bias" in str(report) and "(selected on)" in str(report)
    (node,) = report.record.to_dict()["nodes"]
    soup = node | {"merge": {"method": "uniform_soup"}}
    alone = str(_made(_models(725), nodes=[soup]))
    assert "Selection bias" not in alone and "(selected on)" not in alone


def test_a_parent_may_be_called_like_a_baseline_or_like_the_merged_model():
    for name in ("merged", "uniform_soup"):
        paired = PAIRED | {"against": name, "only_merged_right": 1, "p": 0.01}
        report = _made([_model(name, "parent", 700), *_models(725)], paired=paired)
        assert "2.50 points" in report.verdict
        assert report.merged.test.correct == 725


def test_the_sentence_agrees_with_the_test_of_real_answers():
    merged = torch.arange(1000).numpy() < 725
    other = torch.arange(1000).numpy() < 700
    paired = mcnemar("a", merged, other).to_dict()
    assert _made(_models(725), paired=paired).verdict.startswith(
        "Better than a, the best parent on validation,"
    )


# --- The table


def test_the_table_has_a_row_for_each_model_and_the_interval_of_its_test_accuracy():
    report = _report(725)
    head, *rows = report.rows()
    assert head == ("model", "role", "validation", "test", "95 % interval")
    assert [row[0] for row in rows] == ["b", "a", "uniform_soup", "merged"]
    low, high = wilson_interval(725, 1000)
    assert rows[-1][3:] == ("72.50 %", f"{100 * low:.2f} to {100 * high:.2f}")
    assert rows[0][2] == "90.00 %"


def test_only_the_merged_models_validation_is_marked_as_selected_on():
    marked = [row[0] for row in _report(725).rows() if "(selected on)" in row[2]]
    assert marked == ["merged"]


def test_the_text_is_the_table_and_the_sentence():
    report = _report(725)
    lines = str(report).splitlines()
    assert len(lines) == 2 + 4 + 3
    assert set(lines[1]) == {"-"}
    assert lines[-2] == report.verdict
    assert [line.index("parent") for line in lines[2:4]] == [lines[0].index("role")] * 2


# --- Files


NAMES = sorted(path.parent.name for path in PUBLISHED.parent.glob("*/result.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_published_record_is_written_back_byte_for_byte(name):
    folder = PUBLISHED.parent / name
    assert MergeResult.load(folder).record.encode() == (folder / "result.json").read_bytes()


def test_an_unknown_entry_is_an_error(tmp_path):
    record = json.loads((PUBLISHED / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(record | {"mood": "good"}))
    with pytest.raises(RunError, match="mood"):
        MergeResult.load(tmp_path)


def test_a_finished_run_is_read_back(tmp_path):
    record = _finished(tmp_path)
    result = MergeResult.load(tmp_path)
    assert result.record == record
    assert result.report == _report(725)
    assert result.history == record.history
    assert result.merged == tmp_path / "merged"
    assert MergeResult.load(str(tmp_path)).record == record


def test_the_weights_are_those_of_the_saved_file(tmp_path):
    _finished(tmp_path)
    save_file({"v": torch.tensor([3])}, tmp_path / "merged" / "model-2.safetensors")
    weights = MergeResult.load(tmp_path).weights
    assert sorted(weights) == ["v", "w"]
    assert torch.equal(weights["w"], torch.tensor([1.0, 2.0]))


def test_saving_copies_the_model_and_its_card(tmp_path):
    _finished(tmp_path / "run")
    saved = MergeResult.load(tmp_path / "run").save(tmp_path / "there")
    assert saved == tmp_path / "there"
    assert sorted(p.name for p in saved.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert (saved / "model.safetensors").read_bytes() == (
        tmp_path / "run/merged/model.safetensors"
    ).read_bytes()
    assert (saved / "README.md").read_text() == "# card\n"


def test_saving_into_an_empty_folder_is_fine_and_over_something_is_not(tmp_path):
    _finished(tmp_path / "run")
    result = MergeResult.load(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    result.save(tmp_path / "empty")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(RunError, match="not empty"):
        result.save(tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_saving_over_a_file_is_refused_in_words(tmp_path):
    _finished(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError):
        MergeResult.load(tmp_path / "run").save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no finished run"),
        ("{", "invalid result"),
        ("[]", "invalid result"),
        ("null", "invalid result"),
        ("{}", "invalid result"),
        ('{"version": 99}', "unknown version"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(RunError, match=message) as caught:
        MergeResult.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
