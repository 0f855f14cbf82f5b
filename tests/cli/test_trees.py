"""Trees and trainings on the command line: from seeds to card with one command, stopped anywhere,
in parts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from mega_hf import MergeResult, merge
from mega_hf.recipe.schema import Recipe
from tests.tools import tiny, trainings
from tests.tools.run_files import FILES, names, weights_of
from tests.tools.started import TWO

SMALL = tiny.MERGE | {"population_size": 4, "generations": 9}
SEEDS = {f"s{seed}": {"seed": seed} for seed in (1, 2, 3, 4)}


def recipe(data: Path, **changes: Any) -> dict[str, Any]:
    return trainings.tree(data, SEEDS) | {"merge": SMALL, "merges": "pairwise"} | changes


def write(folder: Path, tree: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "asked.yaml"
    file.write_text(json.dumps(tree))
    return file


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """The tree of four, from seeds to card, that nothing disturbed."""
    return merge(Recipe.from_dict(recipe(data)), tmp_path_factory.mktemp("whole") / "out")


def test_from_seeds_to_card(whole: MergeResult) -> None:
    assert names(whole.folder) == FILES | {"nodes", "parents", "tree.png"}
    assert names(whole.folder / "parents") == set(SEEDS)
    card = (whole.folder / "README.md").read_text()
    assert "trained for this merge with seed 3" in card
    assert "```mermaid" in card


@pytest.mark.parametrize("stop", ["training", pytest.param("search", marks=pytest.mark.long)])
@pytest.mark.parametrize("processes", [1, TWO])
def test_killed_and_resumed_it_gives_the_same_file(
    stop: str, processes: int, data: Path, whole: MergeResult, tmp_path: Path, mega
) -> None:
    out = tmp_path / "out"
    words = ["merge", str(write(tmp_path, recipe(data))), "--out", str(out), "--quiet"]
    several = ["--num-processes", "2"] if processes == 2 else []
    program = [sys.executable, "-m", "mega_hf", *words, *several]
    process = subprocess.Popen(
        program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        end = time.monotonic() + 120
        while not _reached(stop, out):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.002)
    finally:
        # The launcher's workers have process groups of their own: one that is left would write on.
        workers = psutil.Process(process.pid).children(recursive=True)
        for one in [*workers, process]:
            one.kill()
        process.wait()
        psutil.wait_procs(workers, timeout=20)  # until then they hold the folder
    assert not (out / "result.json").exists()
    assert mega(*words).code == 0
    assert weights_of(out) == weights_of(whole.folder)
    assert MergeResult.load(out).record.models == whole.record.models
    assert not list(out.rglob(".mega-*")) + list(out.rglob("*@training"))


def _reached(stop: str, out: Path) -> bool:
    """Say whether a run is in the middle of its first training, or of its second merge."""
    if stop == "training":
        return any((out / "parents").glob("*@training"))
    journal = out / "journal.jsonl"
    return journal.exists() and journal.read_text().count('"fitness"') >= 31


def test_training_alone_and_one_parent(
    data: Path, whole: MergeResult, tmp_path: Path, mega
) -> None:
    file, out = write(tmp_path, recipe(data)), tmp_path / "out"
    answer = mega("train", file, "--out", out, "--parent", "s3", "--quiet")
    assert (answer.code, answer.out.split()) == (0, ["s3", str(out / "parents" / "s3")])
    assert names(out / "parents") == {"s3"}
    assert mega("train", file, "--out", out, "--quiet").code == 0
    made = {path: path.stat().st_mtime_ns for path in out.glob("parents/*/*.safetensors")}
    assert trainings.stored(out / "parents") == trainings.stored(whole.folder / "parents")
    assert mega("merge", file, "--out", out, "--quiet").code == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made, "trained again"
    assert weights_of(out) == weights_of(whole.folder)


def test_parents_shared_between_runs(
    data: Path, whole: MergeResult, tmp_path: Path, mega, monkeypatch
) -> None:
    shared = tmp_path / "shared"
    file = write(tmp_path, recipe(data))
    assert (
        mega("train", file, "--out", tmp_path / "first", "--parents", shared, "--quiet").code == 0
    )
    assert not (tmp_path / "first" / "parents").exists()
    monkeypatch.setattr(
        "mega_hf.training.trainer.Fit.run_epoch", lambda *_: pytest.fail("trained again")
    )
    answer = mega("merge", file, "--out", tmp_path / "second", "--parents", shared, "--quiet")
    assert answer.code == 0, answer.err
    assert weights_of(tmp_path / "second") == weights_of(whole.folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parent", "s9"], ["nothing to train", "s1, s2, s3, s4", "s9"]),
        (["--set", "parents={a: ORG/a, b: ORG/b}"], ["nothing to train", "mega-hf merge"]),
    ],
)
def test_nothing_to_train(
    words: list[str], said: list[str], data: Path, tmp_path: Path, mega
) -> None:
    answer = mega("train", write(tmp_path, recipe(data)), "--out", tmp_path / "out", *words)
    assert answer.code == 2
    assert all(word in answer.err for word in said), answer.err
    assert not (tmp_path / "out").exists()


def test_one_node_then_another_setting_then_the_final_model_alone(
    data: Path, whole: MergeResult, tmp_path: Path, mega
) -> None:
    file, out = write(tmp_path, recipe(data)), tmp_path / "out"
    shared = ["--out", out, "--parents", whole.folder / "parents", "--quiet"]
    answer = mega("merge", file, *shared, "--only", "s1+s2")
    assert answer.code == 0, answer.err
    assert "s1+s2: " in answer.out and "the same command without --only" in answer.out
    assert mega("merge", file, *shared).code == 0
    assert weights_of(out) == weights_of(whole.folder)
    tree = {"s1+s2": {"parents": ["s1", "s2"]}, "last": {"parents": ["s1+s2", "s3", "s4"]}}
    changed = ["--set", f"merges={json.dumps(tree)}"]
    refused = mega("merge", file, *shared, *changed)
    assert refused.code == 2
    assert "a run of a different recipe" in refused.err and "--update" in refused.err
    answer = mega("merge", file, *shared, *changed, "--update", "--keep", "final")
    assert answer.code == 0, answer.err
    assert "merged, level 2" in " ".join(answer.out.split())
    assert not (out / "nodes").exists()
    assert mega("merge", file, *shared, *changed).out == answer.out, (
        "the changed recipe is now the folder's own"
    )


def test_update_and_overwrite_are_two_things(data: Path, tmp_path: Path, capsys) -> None:
    from mega_hf.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["merge", str(write(tmp_path, recipe(data))), "--update", "--overwrite"])
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_the_dry_run_draws_the_tree_and_its_cost(data: Path, tmp_path: Path, mega) -> None:
    answer = mega("merge", write(tmp_path, recipe(data)), "--out", tmp_path / "out", "--dry-run")
    assert answer.code == 0, answer.err
    for line in (
        "tree         s1+s2+s3+s4  28 evaluations, about ",
        "├─ s1+s2  28 evaluations, about ",
        "│  ├─ s1  to train, about ",
        "   └─ s4  to train, about ",
        "84 in 3 merges",
    ):
        assert line in answer.out, answer.out
    assert "4 parents on 120 rows" in answer.out
    assert not (tmp_path / "out").exists()
    part = mega("merge", write(tmp_path, recipe(data)), "--dry-run", "--only", "s3+s4")
    assert "s1" not in part.out and "28 in 1 merge\n" in part.out
    assert mega("merge", write(tmp_path, recipe(data)), "--dry-run", "--only", "s5").code == 2


def test_snapshots_and_fine_tunes_as_parents(data: Path, tmp_path: Path, mega) -> None:
    parents = {
        "trunk": {"seed": 1, "checkpoints": 2},
        "tune": {"seed": 2, "from": "trunk@1", "epochs": 1},
    }
    tree = {"both": {"parents": ["trunk@1", "trunk", "tune"]}}
    made = recipe(data, merges=tree) | {
        "parents": {name: {"train": p} for name, p in parents.items()}
    }
    answer = mega("merge", write(tmp_path, made), "--out", tmp_path / "out", "--quiet")
    assert answer.code == 0, answer.err
    result = MergeResult.load(tmp_path / "out")
    assert [m.name for m in result.report.models if m.role == "parent"] == [
        "trunk@1",
        "trunk",
        "tune",
    ]
    said = {parent.name: parent.train.to_dict() for parent in result.record.parents}
    assert said["trunk@1"] == {"seed": 1, "epoch": 1}
    assert said["tune"] == {"seed": 2, "from": "trunk@1"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "starting from trunk@1" in card and "snapshot after epoch 1" in card
