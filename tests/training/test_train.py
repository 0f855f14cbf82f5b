"""Trainings that are resumed, killed or shared by processes; what is trained again."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import timm
import torch

from mega_hf import Recipe
from mega_hf.errors import DataError, RunError
from mega_hf.models.load import open_model
from mega_hf.training import train as making
from mega_hf.training import trainer as fitting
from tests.tools import tiny, trainings

KILLED = """
import json, sys
from pathlib import Path
from mega_hf import Recipe
from tests.tools import trainings
watch = trainings.Watch(int(sys.argv[3]), trainings.kill)
trainings.train(Path(sys.argv[2]), Recipe.from_dict(json.loads(sys.argv[1])), ["a"], watch)
"""
# Between them: every optimizer, every schedule, warm-up, augmentation, smoothing, dropout,
# snapshots.
WAYS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {
        "optimizer": "sgd",
        "schedule": "cosine",
        "warmup_epochs": 1,
        "augmentation": "flip-and-crop",
        "label_smoothing": 0.1,
        "weight_decay": 0.01,
        "checkpoints": 3,
    },
    "adamw": {
        "optimizer": "adamw",
        "schedule": "one-cycle",
        "augmentation": "flip-and-crop",
        **trainings.DROPPING,
    },
}


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of seeds 1 and 2, two epochs each."""
    folder = tmp_path_factory.mktemp("plain")
    trainings.train(folder, trainings.recipe(data))
    return trainings.stored(folder)


# --- The same bytes


def test_parents_are_models_of_their_own(
    data: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    watch = trainings.train(tmp_path, trainings.recipe(data))
    assert trainings.stored(tmp_path) == plain
    assert plain["a"] != plain["b"]
    assert (watch.titles, watch.totals, watch.done) == (["a", "b"], [8, 8], [8, 8])
    assert watch.texts[5].startswith("epoch 2/2 loss ")
    for name in plain:
        model = timm.create_model(f"local-dir:{tmp_path / name}", pretrained=True).eval()
        assert not [p for p in model.parameters() if not p.isfinite().all()]


def test_training_learns(data: Path, tmp_path: Path) -> None:
    ways: dict[str, Any] = {"a": {"seed": 1}, "b": WAYS["sgd"] | {"seed": 1, "learning_rate": 0.1}}
    trainings.train(tmp_path, trainings.recipe(data, ways, epochs=10))
    assert tiny.count(open_model(tmp_path / "a").model, "train") > 110, "of 120, by heart"
    assert tiny.count(open_model(tmp_path / "b").model, "test") > 50, "chance is 30 of 90"


def test_whatever_else_is_there_and_was_drawn(
    data: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    """In another order, beside another parent, after other draws, with other threads."""
    torch.manual_seed(3)
    draws, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        parents = {"c": {"seed": 3}, "b": {"seed": 2}, "a": {"seed": 1}}
        trainings.train(tmp_path, trainings.recipe(data, parents))
        assert torch.get_num_threads() == 2, "the number of threads was not put back"
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), draws)
    weights = trainings.stored(tmp_path)
    assert {name: weights[name] for name in "ab"} == plain


def test_any_number_of_processes(data: Path, plain: dict[str, bytes], tmp_path: Path) -> None:
    """Two that take turns: each trains what the other does not, and together all."""

    class Turn:
        device, count = torch.device("cpu"), 2

        def __init__(self, rank: int) -> None:
            self.rank, self.waited = rank, 0

        def share(self, items: int, width: int, measure: Any) -> None:
            assert all(measure(i) == [] for i in range(self.rank, items, self.count))

        def wait(self) -> None:
            self.waited += 1

    turns = [Turn(0), Turn(1)]
    watches = [trainings.train(tmp_path, trainings.recipe(data), processes=turn) for turn in turns]
    assert [watch.titles for watch in watches] == [["a"], ["b"]]
    assert [turn.waited for turn in turns] == [1, 1]
    assert trainings.stored(tmp_path) == plain


def test_memory_is_no_part_of_it(
    data: Path, plain: dict[str, bytes], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(making, "affordable_bytes", lambda processes: 0)
    trainings.train(tmp_path, trainings.recipe(data))
    assert trainings.stored(tmp_path) == plain


# --- Stopped and going on


@pytest.mark.parametrize("way", WAYS)
def test_stopped_in_every_epoch_it_ends_with_the_same_bytes(
    way: str, data: Path, tmp_path: Path
) -> None:
    made = trainings.recipe(data, epochs=3, **WAYS[way])
    trainings.train(tmp_path / "whole", made, ["a"])
    for epoch in (1, 2, 3):
        watch = trainings.Watch(batches=2 if epoch == 1 else 6)
        with pytest.raises(KeyboardInterrupt):  # in the second batch of each epoch
            trainings.train(tmp_path / "stopped", made, ["a"], watch)
        assert watch.done == [2 if epoch == 1 else 4 * (epoch - 2) + 6]
        assert "a" not in trainings.names_in(tmp_path / "stopped")
        assert ("a@training" in trainings.names_in(tmp_path / "stopped")) == (epoch > 1)
    watch = trainings.train(tmp_path / "stopped", made, ["a"])
    assert (watch.totals, watch.done) == ([12], [12])
    assert watch.texts[0].startswith("epoch 2/3 loss ")
    assert trainings.stored(tmp_path / "stopped") == trainings.stored(tmp_path / "whole")
    snapshots = {"a@1", "a@2", "a@3"} if way == "sgd" else set()
    assert trainings.names_in(tmp_path / "stopped") == {"a", *snapshots}


def test_stopped_after_the_last_epoch(
    data: Path, plain: dict[str, bytes], tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(making, "save_trained", lambda *_: trainings.Watch._interrupt())
        trainings.train(tmp_path, trainings.recipe(data), ["a"])
    assert trainings.names_in(tmp_path) == {"a@training"}
    watch = trainings.train(tmp_path, trainings.recipe(data), ["a"])
    assert len(watch.texts) == 1, "no batch was left"
    assert trainings.stored(tmp_path)["a"] == plain["a"]


def test_stopped_between_parents(data: Path, plain: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainings.train(tmp_path, trainings.recipe(data), watch=trainings.Watch(batches=9))
    assert trainings.names_in(tmp_path) == {"a"}
    assert trainings.train(tmp_path, trainings.recipe(data)).titles == ["b"], (
        "the parent that was done"
    )
    assert trainings.stored(tmp_path) == plain


@pytest.mark.slow
@pytest.mark.parametrize("batches", [2, 6])
def test_killed_it_goes_on(
    batches: int, data: Path, plain: dict[str, bytes], tmp_path: Path
) -> None:
    """And with another number of threads in the environment."""
    words = [
        sys.executable,
        "-c",
        KILLED,
        json.dumps(trainings.tree(data)),
        str(tmp_path),
        str(batches),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert trainings.names_in(tmp_path) == ({"a@training"} if batches > 4 else set())
    trainings.train(tmp_path, trainings.recipe(data))
    assert trainings.stored(tmp_path) == plain


def test_what_a_killed_process_left_is_removed(data: Path, tmp_path: Path) -> None:
    for name in (".mega-a", ".mega-a@1", ".mega-a@training", ".mega-b@7"):
        (tmp_path / name).mkdir()
    made = trainings.recipe(data, epochs=1)
    trainings.train(tmp_path, made, ["a"])
    assert trainings.names_in(tmp_path) == {
        "a",
        ".mega-b@7",
    }, "another process may be at the other parent"
    (tmp_path / "a@training").write_bytes(
        b"of a process that was killed before it could remove this"
    )
    assert trainings.train(tmp_path, made, ["a"]).titles == []
    assert trainings.names_in(tmp_path) == {"a", ".mega-b@7"}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "unreadable"])
def test_a_damaged_state_is_discarded(
    damage: str, data: Path, plain, tmp_path: Path, caplog
) -> None:
    file = trainings.stop(tmp_path, trainings.recipe(data))
    whole = file.read_bytes()
    middle = len(whole) // 2
    key = whole[:64].decode()
    contents = {
        "truncated": whole[:-20],
        "empty": b"",
        "foreign": b"something else",
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "unreadable": making._seal(key, b"whole, but nothing that torch reads"),
    }
    file.write_bytes(contents[damage])
    with caplog.at_level(logging.WARNING):
        watch = trainings.train(tmp_path, trainings.recipe(data), ["a"])
    assert "the start" in caplog.text or "starts again" in caplog.text
    assert watch.texts[0].startswith("epoch 1/2")
    assert trainings.stored(tmp_path)["a"] == plain["a"]
    assert trainings.names_in(tmp_path) == {"a"}


def test_a_state_of_other_settings_is_discarded(data: Path, plain, tmp_path: Path, caplog) -> None:
    trainings.stop(tmp_path, trainings.recipe(data, learning_rate=0.1))
    with caplog.at_level(logging.WARNING):
        trainings.train(tmp_path, trainings.recipe(data), ["a"])
    assert caplog.text == ""
    assert trainings.stored(tmp_path)["a"] == plain["a"]


# --- What is trained again


def test_trained_again_only_when_something_changes(data: Path, tmp_path: Path) -> None:
    def titles(made: Recipe) -> list[str]:
        return trainings.train(tmp_path, made).titles

    other = {"b": {"seed": 2}, "a": {"seed": 9}}
    assert titles(trainings.recipe(data, epochs=1)) == ["a", "b"]
    assert titles(trainings.recipe(data, epochs=1)) == []
    assert titles(trainings.recipe(data, other, epochs=1)) == ["a"]
    assert titles(trainings.recipe(data, other, epochs=1, learning_rate=0.1)) == ["b", "a"]


# --- Errors while training


def test_a_broken_training_image(tmp_path: Path) -> None:
    splits = {
        name: tiny.split(count, seed) for seed, (name, count) in enumerate(tiny.ROWS.items(), 1)
    }
    encoded = splits["train"].cast_column("image", datasets.Image(decode=False))
    images = [row["image"] for row in encoded]
    images[7] = {"bytes": images[7]["bytes"][:60], "path": None}
    columns = {"image": images, "label": splits["train"]["label"][:]}
    splits["train"] = datasets.Dataset.from_dict(columns, features=splits["train"].features)
    recipe = trainings.recipe(tiny.write_splits(tmp_path / "data", splits))
    with pytest.raises(DataError, match="a broken image in row 7 of train"):
        trainings.train(tmp_path / "parents", recipe, ["a"])
    assert not (tmp_path / "parents" / "a").exists()


@pytest.mark.parametrize("what", ["loss", "weights"])
def test_a_training_that_diverges(what: str, data: Path, tmp_path: Path, monkeypatch) -> None:
    calls = []
    real = fitting.update

    def diverging(model: Any, *rest: Any) -> float:
        calls.append(1)
        loss = real(model, *rest)
        if len(calls) == 8 and what == "weights":
            model.fc.weight.data[0, 0] = float("inf")
        return float("nan") if len(calls) == 8 and what == "loss" else loss

    monkeypatch.setattr(fitting, "update", diverging)
    with pytest.raises(RunError) as caught:
        trainings.train(tmp_path, trainings.recipe(data, checkpoints=2), ["a"])
    assert caught.value.expected == "a finite loss"
    assert (
        caught.value.got
        == {"loss": "nan", "weights": "weights that are not finite"}[what] + " in epoch 2 of a"
    )
    assert caught.value.hint == "use a smaller learning_rate"
    assert trainings.names_in(tmp_path) == {"a@1", "a@training"}, "of the first epoch, and whole"
