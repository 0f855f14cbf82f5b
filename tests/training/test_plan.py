"""Planned trainings: what decides them, where they start, and errors before anything is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from mega_hf import Recipe
from mega_hf.errors import DataError, MegaError, ParentError
from mega_hf.models.compatibility import disagreements
from mega_hf.models.load import open_model
from mega_hf.models.timm_models import build_timm
from mega_hf.tasks import rows as reading
from mega_hf.tasks.splits import Splits, load_splits
from mega_hf.training import plan as training
from mega_hf.training.plan import check_training, open_start, save_trained, train_keys
from tests.tools import tiny, trainings


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm folder, a transformers folder, one that lacks a class, and one with broken weights."""
    made = tmp_path_factory.mktemp("models")
    tiny.save_timm(made / "timm", tiny.timm_model(seed=5))
    tiny.save_transformers(made / "vit", tiny.transformers_model("vit", seed=5))
    tiny.save_timm(made / "two", tiny.timm_model(classes=2), names=["dash", "slash"])
    tiny.save_timm(made / "broken", tiny.timm_model())
    (made / "broken" / "model.safetensors").write_bytes(b"no weights")
    return made


# --- What decides a parent


def key(
    data: Path,
    name: str = "a",
    parents: dict[str, Any] | None = None,
    threads: int = 1,
    **changes: Any,
) -> str:
    made = trainings.recipe(data, parents, threads, **changes)
    return train_keys(made, [name], load_splits(made.data))[name]


def test_the_key_is_of_every_setting(data: Path) -> None:
    others: list[dict[str, Any]] = [
        {"epochs": 3},
        {"batch_size": 31},
        {"optimizer": "sgd"},
        {"weight_decay": 0.1},
        {"arch": "cifar_resnet32"},
        {"data_config": {}},
        {"arch_args": {"in_chans": 3}},
        {"momentum": 0.8},
        {"learning_rate": 0.1},
        {"schedule": "cosine"},
        {"warmup_epochs": 1},
        {"label_smoothing": 0.1},
        {"augmentation": "flip-and-crop"},
        {"threads": 2},
        {"parents": {"a": {"seed": 3}, "b": {"seed": 2}}},
    ]
    keys = [key(data), *(key(data, **other) for other in others)]
    assert len(set(keys)) == len(keys)
    assert key(data) == keys[0] == key(data, checkpoints=2), (
        "which snapshots are kept changes no weight"
    )
    written_out = {"seed": 1, "momentum": 0.9, "schedule": "constant"}
    assert key(data, parents={"other": {"seed": 4}, "a": written_out}) == keys[0]


def test_the_key_is_of_rows_and_classes(data: Path, tmp_path: Path) -> None:
    made = trainings.recipe(data)
    other_rows = made.data.model_copy(update={"validation": "train[100:]"})
    renamed = {
        name: tiny.split(count, seed, ["x", "y", "z"])
        for seed, (name, count) in enumerate(tiny.ROWS.items(), 1)
    }
    other_names = made.data.model_copy(
        update={"path": str(tiny.write_splits(tmp_path / "data", renamed))}
    )
    keys = {
        train_keys(made, ["a"], load_splits(one))["a"]
        for one in (made.data, other_rows, other_names)
    }
    assert len(keys) == 3


def test_the_key_is_of_what_it_starts_from(data: Path, folders: Path, tmp_path: Path) -> None:
    other = tiny.save_timm(tmp_path / "other", tiny.timm_model(seed=6))
    moved = tiny.save_timm(tmp_path / "moved", tiny.timm_model(seed=5))
    shifted = json.loads((other / "config.json").read_text())
    preprocessed = tiny.save_timm(tmp_path / "preprocessed", tiny.timm_model(seed=5))
    shifted["pretrained_cfg"]["mean"] = [0.4] * 3
    (preprocessed / "config.json").write_text(json.dumps(shifted))
    bare = {"arch": "test_resnet", "weights": str(tmp_path / "w.safetensors"), "num_classes": 3}
    save_file(build_timm("test_resnet", 3, {}).state_dict(), bare["weights"])

    def bare_with(**arguments: Any) -> str:
        parents = {
            "w": bare | {"arch_args": arguments},
            "a": {"seed": 1, "arch": None, "from": "w"},
        }
        return key(data, parents=parents)

    def of(source: str | None, **trunk: Any) -> str:
        parents = {"trunk": {"seed": 9, "checkpoints": 2} | trunk, "a": {"seed": 1, "from": source}}
        return key(data, parents=parents)

    sources = [
        None,
        "trunk",
        "trunk@1",
        "trunk@2",
        str(folders / "timm"),
        str(other),
        str(preprocessed),
    ]
    keys = [*map(of, sources), of("trunk", seed=8), of("trunk", learning_rate=0.1)]
    keys += [bare_with(), bare_with(act_layer="silu"), bare_with(drop_rate=0.5)]
    assert len(set(keys)) == len(keys)
    assert of(str(moved)) == keys[4], "where a model lies decides nothing"
    assert of("trunk", checkpoints=1) == keys[1]


def test_the_rows_are_hashed_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainings.recipe(data)
    splits, hashed = load_splits(made.data), []
    monkeypatch.setattr(reading, "hash_rows", lambda split: hashed.append(1) or [b"x"])
    check_training(made, ["a", "b"], splits)
    assert train_keys(made, ["a", "b"], splits).keys() == {"a", "b"}
    assert len(hashed) == 1


def test_keys_of_sources_come_along(data: Path, splits: Splits) -> None:
    parents = {
        "a": {"seed": 1},
        "b": {"seed": 2, "from": "a"},
        "c": {"seed": 3, "from": "b"},
        "d": {"seed": 4},
    }
    assert set(train_keys(trainings.recipe(data, parents), ["c"], splits)) == {"a", "b", "c"}


# --- What training starts at


def test_the_seeds_weights_whatever_was_drawn_before(
    data: Path, splits: Splits, tmp_path: Path
) -> None:
    starts = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made = trainings.recipe(data)
        starts.append(
            [open_start(made, name, tmp_path, splits).opened.state() for name in ("a", "b")]
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, starts[1][0][name]) for name, tensor in starts[0][0].items())
    assert not torch.equal(starts[0][0]["conv1.weight"], starts[0][1]["conv1.weight"])


def test_what_a_parent_will_be(data: Path, splits: Splits, folders: Path, tmp_path: Path) -> None:
    """Architecture, classes and preprocessing of the model that is saved, known before it is
    trained."""
    bare = {
        "arch": "cifar_resnet8",
        "weights": str(folders / "timm" / "model.safetensors"),
        "num_classes": 3,
    }
    parents = {
        "a": {"seed": 1},
        "b": {"seed": 2, "from": "a"},
        "c": {"seed": 1, "from": str(folders / "timm")},
        "d": {"seed": 1, "arch": None, "from": str(folders / "vit")},
        "plain": bare | {"data_config": trainings.TRAIN["data_config"]},
        "e": {"seed": 1, "from": "plain"},
    }
    made = trainings.recipe(data, parents)
    for name in made.trained:
        start = open_start(made, "a" if name == "b" else name, tmp_path, splits)
        save_trained(tmp_path / name, start)
        fresh, saved = check_training(made, [name], splits)[name], open_model(tmp_path / name)
        assert disagreements(fresh, saved) == []
        assert saved.labels == (None if name == "e" else tiny.NAMES)
        assert all(
            torch.equal(tensor, start.opened.state()[key]) for key, tensor in saved.state().items()
        )


def test_an_architectures_arguments_are_saved(
    data: Path, splits: Splits, tmp_path: Path, monkeypatch
) -> None:
    """Whether timm writes them itself or not; models that differ in dropout alone can be merged."""
    from timm.models import _hub

    arguments = {"drop_path_rate": 0.1, "drop_rate": 0.2, "depth": 2}
    made = trainings.recipe(
        data, arch="test_vit", arch_args=arguments, data_config={"input_size": [3, 32, 32]}
    )
    if hasattr(_hub, "get_model_args"):
        monkeypatch.setattr(_hub, "get_model_args", lambda model, given: given)
    save_trained(tmp_path / "a", open_start(made, "a", tmp_path, splits))
    assert json.loads((tmp_path / "a" / "config.json").read_text())["model_args"] == arguments
    monkeypatch.undo()
    save_trained(tmp_path / "b", open_start(made, "a", tmp_path, splits))
    saved = open_model(tmp_path / "b")
    assert len(saved.model.blocks) == 2
    assert disagreements(check_training(made, ["a"], splits)["a"], saved) == []
    without = trainings.recipe(
        data, arch="test_vit", arch_args={"depth": 2}, data_config={"input_size": [3, 32, 32]}
    )
    assert disagreements(check_training(without, ["a"], splits)["a"], saved) == []


@pytest.mark.parametrize("kind", ["trained", "folder", "weights", "transformers"])
def test_a_source_gets_the_recipes_dropout(
    kind: str, data: Path, splits: Splits, tmp_path: Path
) -> None:
    """Whatever the source was saved with, the model that is trained has it, and else is the
    same."""
    model = tiny.timm_model("test_resnet", seed=5)
    tiny.save_timm(tmp_path / "a", model)
    tiny.save_transformers(tmp_path / "vit", tiny.transformers_model("vit", seed=5))
    bare = {
        "arch": "test_resnet",
        "weights": str(tmp_path / "a" / "model.safetensors"),
        "num_classes": 3,
    }
    above = {"trained": {"seed": 4}, "folder": str(tmp_path / "a"), "weights": bare}.get(
        kind, str(tmp_path / "vit")
    )
    parents = {"a": above, "b": {"seed": 1, "from": "a"}}
    shared = trainings.DROPPING if kind != "transformers" else trainings.DROPPING | {"arch": None}
    made = trainings.recipe(data, parents, **shared)
    opened = open_start(made, "b", tmp_path, splits).opened
    if kind == "transformers":
        assert opened.library == "transformers"
        return
    assert opened.model.drop_rate == 0.3
    assert not opened.model.training
    assert opened.transform is not None and opened.model.pretrained_cfg["input_size"] == (
        (3, 160, 160) if kind == "weights" else (3, 8, 8)
    )
    assert all(
        torch.equal(tensor, opened.state()[key]) for key, tensor in model.state_dict().items()
    )


def test_half_precision_stays_half_precision(data: Path, splits: Splits, tmp_path: Path) -> None:
    tiny.save_timm(tmp_path / "half", tiny.timm_model(seed=5), dtype=torch.float16)
    made = trainings.recipe(
        data, {"a": {"seed": 1, "from": str(tmp_path / "half")}, "b": {"seed": 2}}
    )
    start = open_start(made, "a", tmp_path, splits)
    assert start.opened.model.conv1.weight.dtype == torch.float32, "trained in float32"
    save_trained(tmp_path / "a", start)
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}


# --- Errors before anything is made


def check(made: Recipe) -> None:
    check_training(made, list(made.trained), load_splits(made.data))


def test_what_can_be_trained_is_no_error(data: Path, folders: Path) -> None:
    check(trainings.recipe(data, {"a": str(folders / "timm"), "b": {"seed": 1, "from": "a"}}))
    check_training(trainings.recipe(data), [], load_splits(trainings.recipe(data).data))


def test_each_architecture_is_built_once(
    data: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    build = training.build_timm
    monkeypatch.setattr(
        training, "build_timm", lambda arch, *rest: built.append(arch) or build(arch, *rest)
    )
    parents = {f"seed{seed}": {"seed": seed} for seed in range(5)}
    parents |= {
        "branch": {"seed": 1, "from": "seed0"},
        "other": {"seed": 1, "arch": "cifar_resnet32"},
    }
    check(trainings.recipe(data, parents))
    assert built == ["cifar_resnet8", "cifar_resnet32"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "cifar_resnet21"}, ["cifar_resnet21", "cifar_resnet8"]),
        ({"arch_args": {"widht": 3}}, ["widht", "correct arch_args"]),
        (
            {"arch": "resnet18", "arch_args": {"global_pool": "mean"}},
            ["can't build resnet18", "AssertionError"],
        ),
        ({"arch": "test_vit", "arch_args": {"act_layer": "foo"}}, ["can't build test_vit", "foo"]),
        ({"data_config": {"mean": "x"}}, ["images can't be prepared", "data_config"]),
        ({"data_config": {"interpolation": "cubist"}}, ["data_config"]),
        ({"data_config": {"input_size": [2, 8, 8]}}, ["1 or 3 color channels"]),
        (
            {"data_config": {"input_size": [1, 8, 8]}},
            ["images can't be prepared", "RuntimeError", "input_size"],
        ),
        ({"arch": "test_vit", "arch_args": {"img_size": 32}}, ["a can't be trained", "arch_args"]),
        (
            {"from": "{folders}/timm", "arch": "cifar_resnet32"},
            ["cifar_resnet32, its arch", "cifar_resnet8"],
        ),
        (
            {"from": "{folders}/vit"},
            ["cifar_resnet8, its arch", "ViTForImageClassification", "arch: null"],
        ),
        ({"from": "{folders}/two", "arch": None}, ["trained from", "lacks a class", "bar"]),
        ({"from": "{folders}/broken", "arch": None}, ["unreadable weights"]),
        ({"from": "timm:cifar_resnet8.nonsense"}, ["no such weights"]),
    ],
)
def test_what_would_end_training_later(changes, words, data: Path, folders: Path) -> None:
    changes = {k: v.format(folders=folders) if k == "from" else v for k, v in changes.items()}
    made = trainings.recipe(data, **changes)
    with pytest.raises((ParentError, DataError)) as caught:
        check(made)
    assert not [word for word in words if word not in str(caught.value)], str(caught.value)
    assert caught.value.expected and caught.value.hint


def test_bare_weights_are_looked_at(data: Path, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    bare = {"arch": "cifar_resnet8", "weights": str(tmp_path / "w.safetensors"), "num_classes": 3}
    with pytest.raises(ParentError, match="unreadable weights"):
        check(trainings.recipe(data, {"bare": bare, "a": {"seed": 1, "from": "bare"}}))


def test_weights_that_do_not_fit_their_architecture(
    data: Path, splits: Splits, tmp_path: Path
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    bare = {"arch": "cifar_resnet8", "weights": str(tmp_path / "w.safetensors"), "num_classes": 3}
    made = trainings.recipe(data, {"bare": bare, "a": {"seed": 1, "from": "bare"}})
    with pytest.raises(MegaError, match="the weights don't fit"):
        open_start(made, "a", tmp_path, splits)


def test_no_rows_to_train_on(tmp_path: Path) -> None:
    tiny.write_data(tmp_path / "data", {"validation": 60, "test": 90})
    with pytest.raises(DataError, match="no rows to train on"):
        check(trainings.recipe(tmp_path / "data"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "cifar_resnet21"}, ["cifar_resnet21"]),
        ({"optimizer": "adamm"}, ["adamm", "'adam'"]),
        ({"epochs": 0}, ["train.epochs", "0"]),
    ],
)
def test_the_command_line_says_it(changes, words, data: Path, tmp_path: Path, mega) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(trainings.tree(data, **changes) | {"merge": tiny.MERGE}))
    answer = mega("merge", file, "--out", tmp_path / "out")
    assert answer.code == 2
    assert not [word for word in words if word not in answer.err], answer.err
    assert not (tmp_path / "out").exists()


def test_what_is_saved_is_timms_own_layout(data: Path, splits: Splits, tmp_path: Path) -> None:
    """Contiguous, although it was trained with channels last."""
    start = open_start(trainings.recipe(data), "a", tmp_path, splits)
    state = {key: tensor.clone() for key, tensor in start.opened.model.state_dict().items()}
    start.opened.model.to(memory_format=torch.channels_last)
    save_trained(tmp_path / "a", start)
    model = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all(
        tensor.is_contiguous()
        for tensor in load_file(tmp_path / "a" / "model.safetensors").values()
    )
