"""`merge --seeds K`: one run per seed, the summary, and arguments that make no sense with it."""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mega_hf import MergeResult, Recipe
from mega_hf.run.estimate import estimate
from tests.tools import tiny, trainings
from tests.tools.run_files import journal
from tests.tools.started import MEGA

MERGE = tiny.MERGE | {"generations": 2}


def test_each_seed_is_a_run_of_its_own(pair: tiny.Pair, tmp_path: Path, mega: Any) -> None:
    out = tmp_path / "out"
    file = pair.write(tmp_path, merge=MERGE)
    answer = mega("merge", file, "--seeds", "3", "--out", out, "--quiet")
    assert answer.code == 0, answer.err
    results = [MergeResult.load(out / f"seed{seed}") for seed in (46, 47, 48)]
    assert [result.record.nodes[0].merge["seed"] for result in results] == [46, 47, 48]
    summary = json.loads((out / "seeds.json").read_text())
    merged = [result.report.merged.test.correct / 90 for result in results]
    assert [row["merged"] for row in summary["seeds"]] == merged
    assert summary["mean"]["merged"] == pytest.approx(statistics.fmean(merged))
    assert summary["deviation"]["merged"] == pytest.approx(statistics.stdev(merged))
    sure = [result for result in results if result.report.paired.p < 0.05]
    assert summary["better"] + summary["worse"] == len(sure)
    assert f"with {summary['better']} of 3 seeds, worse with {summary['worse']}" in answer.out
    before = [journal(out / f"seed{seed}") for seed in (46, 47, 48)]
    again = mega("merge", file, "--seeds=3", "--out", out, "--quiet")
    assert again.code == 0 and [journal(out / f"seed{seed}") for seed in (46, 47, 48)] == before


def test_parents_are_trained_once_for_all_seeds(data: Path, tmp_path: Path, mega: Any) -> None:
    tree = trainings.tree(data, {"a": {"seed": 1}, "b": {"seed": 2}}) | {"merge": MERGE}
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    answer = mega(
        "merge", tmp_path / "recipe.yaml", "--seeds", "2", "--out", tmp_path / "out", "--quiet"
    )
    assert answer.code == 0, answer.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "seed46",
        "seed47",
        "parents",
        "seeds.json",
    }
    assert not (tmp_path / "out" / "seed46" / "parents").exists()


def test_nodes_with_seeds_of_their_own_move_with_the_seed(
    four: dict[str, Any], tmp_path: Path, mega: Any
) -> None:
    merges = {"ab": {"parents": ["a", "b"], "seed": 7}, "all": {"parents": ["ab", "c", "d"]}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(four | {"merges": merges, "merge": MERGE}))
    answer = mega(
        "merge", tmp_path / "recipe.yaml", "--seeds", "2", "--out", tmp_path / "out", "--quiet"
    )
    assert answer.code == 0, answer.err
    seeds = [
        [node.merge["seed"] for node in MergeResult.load(tmp_path / "out" / name).record.nodes]
        for name in ("seed46", "seed47")
    ]
    assert seeds == [[7, 46], [8, 47]]


@pytest.mark.long
def test_two_processes_are_launched_once_for_all_seeds(
    pair: tiny.Pair, tmp_path: Path, mega: Any
) -> None:
    file = pair.write(tmp_path, merge=MERGE)
    words = [*MEGA, "merge", str(file), "--seeds", "2", "--num-processes", "2", "--quiet", "--out"]
    done = subprocess.run([*words, str(tmp_path / "two")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert mega("merge", file, "--seeds", "2", "--out", tmp_path / "one", "--quiet").code == 0
    assert (tmp_path / "two" / "seeds.json").read_bytes() == (
        tmp_path / "one" / "seeds.json"
    ).read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seeds", "1"], "2 or more"),
        (["--seeds", "2", "--only", "a+b"], "--seeds and --only can't"),
        (["--seeds", "2", "--push", "me/x"], "--seeds and --push can't"),
        # all would go to one repository
        (["--seeds", "2", "--set", "push.repo=me/x"], "--seeds and --push can't"),
    ],
)
def test_arguments_that_make_no_sense_with_seeds(
    more: list[str], said: str, pair: tiny.Pair, tmp_path: Path, mega: Any
) -> None:
    answer = mega("merge", pair.write(tmp_path, merge=MERGE), "--out", tmp_path / "out", *more)
    assert answer.code == 2 and said in answer.err and not (tmp_path / "out").exists()


def test_a_dry_run_estimates_all_seeds(data: Path, tmp_path: Path, mega: Any) -> None:
    """Parents are trained once, and all runs search."""
    tree = trainings.tree(data, {"a": {"seed": 1}, "b": {"seed": 2}}) | {"merge": MERGE}
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    answer = mega(
        "merge", tmp_path / "recipe.yaml", "--seeds", "3", "--out", tmp_path / "out", "--dry-run"
    )
    assert answer.code == 0 and "runs         3, one per seed, about" in answer.out, answer.err
    assert not (tmp_path / "out").exists()
    cost = replace(estimate(Recipe.from_dict(tree)), runs=3)
    lone = replace(cost, training={})
    assert cost.total_minutes == pytest.approx(3 * lone.minutes + cost.training_minutes)


def test_a_run_is_not_taken_for_a_folder_of_runs(
    copied: Path, pair: tiny.Pair, tmp_path: Path, mega: Any
) -> None:
    answer = mega("merge", pair.write(tmp_path, merge=MERGE), "--seeds", "2", "--out", copied)
    assert answer.code == 2 and "another --out" in answer.err
