"""Estimates of --dry-run, compared with values computed by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mega_hf import Recipe, train
from mega_hf.errors import RunError
from mega_hf.run.estimate import _about, estimate
from tests.tools import tiny, trainings


def of_four(data: Path, **changes: object) -> Recipe:
    parents = {
        "a": {"seed": 1},
        "b": {"seed": 2},
        "c": {"seed": 3},
        "tune": {"seed": 4, "from": "a"},
    }
    tree = trainings.tree(data, parents) | {"merge": tiny.MERGE, "merges": "pairwise"}
    return Recipe.from_dict(tree | changes)


# two: a and c are of one
@pytest.mark.parametrize(("processes", "minutes"), [(1, 36), (2, 35), (3, 25), (8, 25)])
def test_training_minutes_are_shared_by_the_processes(
    processes: int, minutes: float, data: Path
) -> None:
    made = replace(estimate(of_four(data)), processes=processes)
    made.training.update({"a": 10, "b": 1, "c": 15, "tune": 10})
    assert made.training_minutes == minutes


def test_memory_is_the_maximum_over_the_stages(data: Path) -> None:
    made, picture = estimate(of_four(data)), 3 * 8 * 8
    train, validation, test = 120, 60, 90
    genomes = 2 + 6 + 4 + 2
    calibration = train  # all rows, since there are so few
    search = (2 + genomes) * made.weights + (validation + calibration) * picture
    assert made.memory_bytes == 4 * search
    light = replace(made, weights=1)
    assert light.memory_bytes == 4 * (2 + (validation + test + calibration) * picture), "the report"
    alone = replace(light, only="a+b", calibration=0)
    assert alone.memory_bytes == 4 * (4 + train * picture), "the training"
    part = replace(light, only="a+b", training={})
    assert part.memory_bytes == 4 * (2 + genomes + (validation + calibration) * picture)


def test_a_merge_by_coefficients_maps_parents_and_has_small_genomes(data: Path) -> None:
    made = [
        estimate(of_four(data, merge=tiny.MERGE | {"encoding": how}))
        for how in ("direct", "mixing")
    ]
    direct, mixing = (replace(one, training={}) for one in made)
    assert direct.memory_bytes - mixing.memory_bytes == 4 * 14 * direct.weights - 4 * 90 * 3 * 8 * 8
    assert mixing.mapped_bytes == 4 * 2 * mixing.weights and direct.mapped_bytes == 0
    assert "0 MiB of genomes" in str(mixing) and "mapped from disk" in str(mixing)
    assert "mapped" not in str(direct)


def test_a_line_sweep_of_four_parents_is_reported_as_impossible(data: Path) -> None:
    made = str(estimate(of_four(data, baselines=["line-sweep", "greedy_soup"])))
    assert "greedy_soup 10 evaluations\n             no line-sweep, which needs" in made
    assert "line-sweep" not in str(estimate(of_four(data, baselines=["greedy_soup"])))


def test_a_part_of_a_tree_reads_no_test_rows_and_makes_no_report(data: Path) -> None:
    whole, part = estimate(of_four(data)), estimate(of_four(data), only="a+b")
    assert "read once after the search" in str(whole)
    assert "read once" not in str(part) and "not read for a part of the tree" in str(part)
    searches = sum(map(part.node_minutes, part.nodes.values()))
    assert part.minutes == pytest.approx(part.training_minutes + searches)
    measured = 4 + 4 + 3 + 1  # parents, the same recalibrated, nodes, the average
    searches = sum(map(whole.node_minutes, whole.nodes.values()))
    report = (measured * (60 + 90) + (4 + 1) * 120) * whole.seconds_per_image / 60
    assert whole.minutes == pytest.approx(whole.training_minutes + searches + report)


def test_ranking_needs_all_parents_and_one_pass_each(data: Path) -> None:
    ranking = ["c", "b", "a", "tune"]
    made = estimate(of_four(data, order="accuracy"), only="c+b", ranking=ranking)
    assert set(made.training) == {"a", "b", "c", "tune"}
    assert list(made.nodes) == ["c+b"]
    searches = sum(map(made.node_minutes, made.nodes.values()))
    assert made.minutes == pytest.approx(
        made.training_minutes + searches + 4 * 60 * made.seconds_per_image / 60
    )


def test_trained_parents_cost_no_training(data: Path, tmp_path: Path, mega) -> None:
    recipe, kept = of_four(data), tmp_path / "out" / "parents"
    train(recipe, tmp_path / "out", parent="tune")
    made = estimate(recipe, kept=kept)
    assert (set(made.trained), set(made.training)) == ({"a", "tune"}, {"b", "c"})
    assert f"already trained: {kept / 'tune'}" in str(made) and "training     2 parents" in str(
        made
    )
    assert set(estimate(recipe, kept=tmp_path / "nothing").training) == {"a", "b", "c", "tune"}
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(json.dumps(recipe.to_dict()))
    assert "already trained" in mega("merge", file, "--out", out, "--dry-run").out
    assert "already trained" in mega("merge", file, "--parents", kept, "--dry-run").out
    assert (
        "already trained" not in mega("merge", file, "--out", out, "--overwrite", "--dry-run").out
    )


def test_parents_trained_with_other_settings_are_an_error(data: Path, tmp_path: Path) -> None:
    train(of_four(data), tmp_path / "out", parent="b")
    changed = of_four(data, train=trainings.TRAIN | {"learning_rate": 0.001})
    with pytest.raises(RunError, match="b already exists but was trained differently"):
        estimate(changed, kept=tmp_path / "out" / "parents")
    again = estimate(changed, kept=tmp_path / "out" / "parents", update=True)
    assert set(again.training) == {"a", "b", "c", "tune"}


@pytest.mark.parametrize(
    ("minutes", "text"),
    [(0.01, "1 second"), (0.5, "30 seconds"), (8, "8.0 minutes"), (90, "1.5 hours")],
)
def test_times_in_words(minutes: float, text: str) -> None:
    assert _about(minutes) == f"about {text}"
