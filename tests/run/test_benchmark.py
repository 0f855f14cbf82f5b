"""`mega-hf bench`: counts add up and nothing is left behind; speed itself is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mega_hf import Recipe, RunError, bench
from tests.tools import tiny

KEYS = {
    "search_pictures_per_second",
    "eager_pictures_per_second",
    "compiled_pictures_per_second",
    "naive_seconds",
    "search_seconds",
    "pictures_evaluated",
    "pictures_full",
    "peak_memory_bytes",
    "stages",
}


def recipe(pair: tiny.Pair) -> dict[str, object]:
    return pair.recipe(evaluation={"batch_size": 10})


@pytest.mark.usefixtures("order_free")
def test_counts_add_up_and_the_folder_is_removed(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(pair)))
    answer = mega("bench", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--json", "--quiet")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert set(found) >= KEYS
    assert found["evaluations"] == 6 + 4 * 5
    assert found["pictures_full"] == found["evaluations"] * (60 + 120)
    assert 60 <= found["pictures_evaluated"] < found["pictures_full"]
    stages = found["stages"]
    assert found["search_seconds"] == pytest.approx(stages["search"])
    assert found["search_pictures_per_second"] == pytest.approx(
        found["pictures_evaluated"] / stages["search"]
    )
    assert stages["evaluating"] + stages["other"] == pytest.approx(stages["search"], abs=0.01)
    assert all(found[key] > 0 for key in KEYS - {"stages"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


@pytest.mark.long
def test_full_evaluation_forwards_every_image(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe(pair)))
    words = ("--out", tmp_path / "out", "--quiet", "--full-evaluation", "--forward", "compiled")
    answer = mega("bench", tmp_path / "recipe.yaml", *words)
    assert answer.code == 0, answer.err
    # An individual that is the same as one that was measured is shown nothing.
    assert "26 individuals" in answer.out and "of 4,680" in answer.out
    assert "compiled float32" in answer.out
    assert "compiling" in answer.out
    assert "Ctrl-C stops" not in answer.err


def test_an_interrupted_benchmark_leaves_nothing(
    pair: tiny.Pair, tmp_path: Path, monkeypatch
) -> None:
    def interrupt(*_: object) -> None:
        assert (tmp_path / "out").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("mega_hf.run.benchmark.time_loops", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench(Recipe.from_dict(recipe(pair)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_an_error(pair: tiny.Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RunError, match="needs a new folder"):
        bench(Recipe.from_dict(recipe(pair)), out)
    assert list(out.iterdir()) == []
