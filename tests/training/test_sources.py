"""Snapshots of a training, and trainings that start from other models: parents, snapshots, folders,
bare weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from mega_hf.errors import ParentError
from mega_hf.models.load import open_model
from mega_hf.training import train as making
from tests.tools import tiny, trainings

# --- Snapshots


def test_snapshots_are_models(data: Path, tmp_path: Path) -> None:
    trainings.train(tmp_path / "shorter", trainings.recipe(data), ["a"])
    trainings.train(tmp_path / "out", trainings.recipe(data, epochs=4, checkpoints=2), ["a"])
    weights, shorter = trainings.stored(tmp_path / "out"), trainings.stored(tmp_path / "shorter")
    assert set(weights) == {"a", "a@2", "a@4"} == trainings.names_in(tmp_path / "out")
    assert weights["a@4"] == weights["a"] != weights["a@2"] == shorter["a"], (
        "constant: two epochs are two epochs"
    )
    folder = tmp_path / "out" / "a@2"
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert tiny.count(model, "test") == tiny.count(open_model(folder).model, "test")
    assert open_model(folder).labels == tiny.NAMES


def test_a_snapshot_that_is_missing_is_made(data: Path, tmp_path: Path) -> None:
    trainings.train(tmp_path, trainings.recipe(data, checkpoints=2), ["a"])
    weights = trainings.stored(tmp_path)
    assert set(weights) == {"a", "a@1", "a@2"}
    for fewer in (1, 0, 2):
        assert (
            trainings.train(tmp_path, trainings.recipe(data, checkpoints=fewer), ["a"]).titles == []
        )
    (tmp_path / "a@1" / "train.sha256").unlink()
    assert trainings.train(tmp_path, trainings.recipe(data, checkpoints=2), ["a"]).titles == ["a"]
    assert trainings.stored(tmp_path) == weights


def test_a_snapshot_that_is_asked_for_after_its_epoch(data: Path, tmp_path: Path) -> None:
    """The state on disk is beyond it: the training starts again."""
    trainings.stop(tmp_path, trainings.recipe(data))
    watch = trainings.train(tmp_path, trainings.recipe(data, checkpoints=2), ["a"])
    assert watch.texts[0].startswith("epoch 1/2")
    assert set(trainings.stored(tmp_path)) == {"a", "a@1", "a@2"}


def test_snapshots_of_other_settings_do_not_stay(data: Path, tmp_path: Path) -> None:
    trainings.train(tmp_path, trainings.recipe(data, checkpoints=2))
    trainings.train(tmp_path, trainings.recipe(data, checkpoints=1, learning_rate=0.1), ["a"])
    assert trainings.names_in(tmp_path) == {"a", "a@2", "b", "b@1", "b@2"}


# --- Sources


@pytest.mark.parametrize("source", ["trunk", "trunk@1", "timm", "weights", "transformers"])
def test_from_anything(source: str, data: Path, tmp_path: Path) -> None:
    """Training starts at the source's weights, is stopped and goes on, and leaves a model of the
    source's library."""
    models, out = tmp_path / "models", tmp_path / "out"
    tiny.save_timm(models / "timm", tiny.timm_model(seed=5))
    tiny.save_transformers(models / "vit", tiny.transformers_model("vit", seed=5))
    bare = {
        "arch": "cifar_resnet8",
        "weights": str(models / "timm" / "model.safetensors"),
        "num_classes": 3,
    }
    bare["data_config"] = trainings.TRAIN["data_config"]
    reference = {"timm": str(models / "timm"), "transformers": str(models / "vit")}.get(
        source, source
    )
    parents: dict[str, Any] = {"b": {"seed": 2, "from": reference}, "weights": bare}
    parents["trunk"] = {"seed": 7, "checkpoints": 2}
    parents["b"] |= {"arch": None} if source == "transformers" else {}
    made = trainings.recipe(data, parents)
    watch = trainings.train(out, made, ["b"])
    assert watch.titles == (["trunk", "b"] if "trunk" in source else ["b"])
    before = {"trunk": out / "trunk", "trunk@1": out / "trunk@1", "transformers": models / "vit"}
    started, ended = open_model(before.get(source, models / "timm")), open_model(out / "b")
    assert (ended.library, ended.labels) == (
        started.library,
        None if source == "weights" else tiny.NAMES,
    )
    assert ended.preprocessing == started.preprocessing
    moved = [
        (ended.state()[name] - started.state()[name]).abs().max() for name in started.learned()
    ]
    assert 0 < max(moved) < 0.05, "eight steps of Adam, of about 0.003 each"
    with pytest.raises(KeyboardInterrupt):
        done = 8 if "trunk" in source else 0
        trainings.train(tmp_path / "stopped", made, ["b"], trainings.Watch(batches=done + 5))
    trainings.train(tmp_path / "stopped", made, ["b"])
    assert trainings.stored(tmp_path / "stopped") == trainings.stored(out)


def test_the_classes_of_a_source_are_matched_by_name(data: Path, tmp_path: Path) -> None:
    """A source that knows the classes in another order keeps its order, and is as good as
    another."""
    order = (2, 0, 1)
    model = tiny.fit(tiny.timm_model(seed=5))
    with torch.no_grad():
        for parameter in (model.fc.weight, model.fc.bias):
            parameter.copy_(parameter[list(order)].clone())
    tiny.save_timm(tmp_path / "source", model, names=[tiny.NAMES[i] for i in order])
    parents = {"a": {"seed": 1, "from": str(tmp_path / "source")}, "b": {"seed": 2}}
    trainings.train(tmp_path / "out", trainings.recipe(data, parents), ["a"])
    opened = open_model(tmp_path / "out" / "a")
    assert opened.labels == tuple(tiny.NAMES[i] for i in order)
    assert tiny.count(opened.model, "train", [1, 2, 0]) > 90, "chance is 40 of 120"


def test_each_waits_for_what_it_starts_from(data: Path, tmp_path: Path) -> None:
    parents = {
        "leaf": {"seed": 4, "from": "branch"},
        "branch": {"seed": 3, "from": "trunk@1"},
        "other": {"seed": 5, "epochs": 1, "checkpoints": 0},
        "trunk": {"seed": 7},
        "unasked": {"seed": 8},
    }
    made = trainings.recipe(data, parents, checkpoints=2)
    assert making.training_levels(made, ["other", "leaf"]) == [
        ["other", "trunk"],
        ["branch"],
        ["leaf"],
    ]
    assert trainings.train(tmp_path, made, ["leaf"]).titles == ["trunk", "branch", "leaf"]
    changed = trainings.recipe(
        data, parents | {"branch": {"seed": 30, "from": "trunk@1"}}, checkpoints=2
    )
    assert trainings.train(tmp_path, changed, ["leaf"]).titles == ["branch", "leaf"]
    assert trainings.train(tmp_path, changed, ["leaf", "trunk"]).titles == []
    assert trainings.train(tmp_path, changed, []).titles == []


def test_a_source_of_another_architecture(data: Path, tmp_path: Path) -> None:
    parents = {"trunk": {"seed": 7, "arch": "cifar_resnet32"}, "b": {"seed": 2, "from": "trunk"}}
    with pytest.raises(ParentError, match="another architecture"):
        trainings.train(tmp_path, trainings.recipe(data, parents, epochs=1))
