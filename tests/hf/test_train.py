"""Parents from seeds: the same bytes from the same seed, trained once, trained again when anything changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from mega_hf import MergeResult, Recipe, merge
from mega_hf.hf import train as training
from tests import tiny

TRAIN = {
    "arch": "cifar_resnet20",
    "data_config": {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.25] * 3},
    "epochs": 2,
    "batch_size": 30,
    "learning_rate": 0.003,
}
SMALL = tiny.MERGE | {"population_size": 4, "generations": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny")


def recipe(data: Path, seeds: tuple[int, ...] = (1, 2), **changes: Any) -> dict[str, Any]:
    return {
        "name": "trained",
        "data": {"path": str(data), "validation": "validation", "test": "test"},
        "parents": {f"seed{seed}": {"train": {"seed": seed}} for seed in seeds},
        "train": TRAIN | changes,
        "merge": SMALL,
    }


def stored(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("parents/*/model.safetensors")}


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    return merge(Recipe.from_dict(recipe(data)), tmp_path_factory.mktemp("trained") / "out")


def test_parents_are_models_of_their_own(trained: MergeResult) -> None:
    weights = stored(trained.folder)
    assert set(weights) == {"seed1", "seed2"}
    assert weights["seed1"] != weights["seed2"]
    rows = {model["name"]: model for model in trained.report.models}
    for name in weights:
        model = timm.create_model(f"local-dir:{trained.folder / 'parents' / name}", pretrained=True).eval()
        assert tiny.count(model, "test") == rows[name]["test"]["correct"]
    assert [parent["train"] for parent in trained.record["parents"]] == [{"seed": 1}, {"seed": 2}]


def test_training_learns(data: Path, tmp_path: Path) -> None:
    tree = recipe(data, epochs=10) | {"merge": SMALL | {"generations": 1}}
    result = merge(Recipe.from_dict(tree), tmp_path / "out")
    best = max(model["test"]["correct"] for model in result.report.models[:2])
    assert best > 45, "chance is 30 of 90"


def test_the_seeds_weights_are_the_same_again(data: Path, trained: MergeResult, tmp_path: Path) -> None:
    """In another order, beside another parent, after other draws, with other threads: the same bytes."""
    torch.manual_seed(3)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = merge(Recipe.from_dict(recipe(data, (3, 2, 1))), tmp_path / "again")
        assert torch.get_num_threads() == 2, "the number of threads was not put back"
    finally:
        torch.set_num_threads(before)
    weights = stored(again.folder)
    assert {name: weights[name] for name in ("seed1", "seed2")} == stored(trained.folder)


def test_the_environments_threads_change_nothing(data: Path, trained: MergeResult, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(data)))
    words = [sys.executable, "-m", "mega_hf", "merge", str(file), "--out", str(tmp_path / "out"), "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert stored(tmp_path / "out") == stored(trained.folder)
    digest = MergeResult.load(tmp_path / "out").record["digests"]["file"]
    assert digest == trained.record["digests"]["file"]


def count_trainings(monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """Spy on the optimizer's creation, once a training: returns a list that grows with each."""
    trainings: list[int] = []
    create = training.create_optimizer_v2

    def spy(*arguments: Any, **keywords: Any) -> Any:
        trainings.append(1)
        if len(trainings) == stop_at:
            raise KeyboardInterrupt
        return create(*arguments, **keywords)

    monkeypatch.setattr(training, "create_optimizer_v2", spy)
    return trainings


def test_an_interruption_between_parents(data: Path, trained: MergeResult, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        count_trainings(context, stop_at=2)
        merge(Recipe.from_dict(recipe(data)), tmp_path / "out")
    assert set(stored(tmp_path / "out")) == {"seed1"}
    trainings = count_trainings(monkeypatch)
    result = merge(Recipe.from_dict(recipe(data)), tmp_path / "out")
    assert len(trainings) == 1, "the parent that was done was trained again"
    assert stored(result.folder) == stored(trained.folder)
    assert result.record["digests"]["file"] == trained.record["digests"]["file"]
    assert not list(result.folder.rglob(".mega-*"))


def test_trained_again_only_when_something_changes(data: Path, tmp_path: Path, monkeypatch) -> None:
    trainings = count_trainings(monkeypatch)
    out = tmp_path / "out"
    merge(Recipe.from_dict(recipe(data, epochs=1)), out)
    assert len(trainings) == 2
    (out / "result.json").unlink()
    merge(Recipe.from_dict(recipe(data, epochs=1)), out)
    assert len(trainings) == 2, "nothing had changed"
    merge(Recipe.from_dict(recipe(data, learning_rate=0.001, epochs=1)), out, overwrite=True)
    assert len(trainings) == 4, "another learning rate makes other parents"


def test_the_key_is_of_everything_that_decides(data: Path) -> None:
    from mega_hf.hf.data import load_splits
    from mega_hf.hf.train import train_keys

    def key(seed: int = 1, threads: int = 1, validation: str = "validation", **changes: Any) -> str:
        made = Recipe.from_dict(recipe(data, **changes) | {"data": {"path": str(data), "validation": validation}})
        assert made.train is not None
        return train_keys(made.train, {"a": seed}, threads, load_splits(made.data))["a"]

    keys = [
        key(), key(seed=2), key(threads=2), key(validation="train[100:]"), key(epochs=3), key(batch_size=31),
        key(optimizer="sgd"), key(weight_decay=0.1), key(arch="cifar_resnet32"), key(data_config={}),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "cifar_resnet21"}, ["cifar_resnet21", "cifar_resnet20"]),
        ({"arch_args": {"widht": 3}}, ["widht"]),
        ({"optimizer": "adamm"}, ["adamm", "'adam'"]),
        ({"epochs": 0}, ["train.epochs", "0"]),
    ],
)
def test_bad_training_settings(changes, words, data: Path, tmp_path: Path, mega) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(data, **changes)))
    answer = mega("merge", file, "--out", tmp_path / "out")
    assert answer.code == 2
    assert not [word for word in words if word not in answer.err], answer.err
    assert not (tmp_path / "out").exists()


def test_no_rows_to_train_on(tmp_path: Path, mega) -> None:
    tiny.write_data(tmp_path / "data", {"validation": 60, "test": 90})
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(tmp_path / "data")))
    answer = mega("merge", file, "--out", tmp_path / "out")
    assert answer.code == 2
    assert "no rows to train on" in answer.err
    assert not (tmp_path / "out").exists()
