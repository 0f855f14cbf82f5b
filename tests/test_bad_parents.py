"""A parent that cannot be loaded or merged is an error that leaves no files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools import broken, tiny
from tests.tools.broken import assert_error

BAD_PARENTS: dict[str, tuple[Callable[[tiny.Pair, Path], str], list[str]]] = {
    "does not exist": (
        lambda pair, folder: str(folder / "nowhere"),
        ["no such parent folder", "nowhere"],
    ),
    "truncated": (broken.truncated, ["unreadable weights", "model.safetensors", "truncated"]),
    "empty file": (broken.empty_file, ["unreadable weights", "model.safetensors"]),
    "a pickle": (broken.pickled, ["pytorch_model.bin", "pickle", "safe_serialization=True"]),
    "a pickle by another name": (broken.disguised, ["unreadable weights"]),
    "NaN": (broken.not_finite, ["NaN or infinity", "fc.weight"]),
    "infinite statistics": (broken.infinite_statistics, ["NaN or infinity", "bn1.running_var"]),
    "another architecture": (
        broken.other_architecture,
        ["a and b can't be merged", "cifar_resnet8", "cifar_resnet32"],
    ),
    "another library": (broken.other_library, ["a and b can't be merged", "timm", "transformers"]),
    "other shapes": (broken.other_shapes, ["layer2.0.conv1.weight", "[32, 17, 3, 3]"]),
    "a missing entry": (broken.missing_entry, ["fc.bias"]),
    "another dtype": (broken.other_dtype, ["a and b can't be merged", "float32", "float16"]),
    "other classes": (
        broken.other_classes,
        ["a and b can't be merged", "classes", "3 (a)", "4 (b)"],
    ),
    "other label order": (
        broken.other_order,
        ["label order", "('bar', 'dash', 'slash')", "('slash', 'dash', 'bar')"],
    ),
    "other preprocessing": (
        broken.other_preprocessing,
        ["preprocessing", "[0.5, 0.5, 0.5]", "[0.4, 0.5, 0.6]"],
    ),
    "no model": (broken.not_a_model, ["config.json", "architecture", "model_type"]),
    "no JSON": (broken.not_json, ["config.json", "JSON"]),
    "the same path": (lambda pair, folder: str(pair.a), ["another model than a"]),
    "the same content": (
        lambda pair, folder: broken.copy_model(pair.a, folder / "twin"),
        ["the same weights", "list this model once"],
    ),
    "neither folder nor id": (
        lambda pair, folder: "just-a-name",
        ["not a model", "./FOLDER", "just-a-name"],
    ),
    "no network": (lambda pair, folder: "org/model", ["can't be reached", "org/model", "./FOLDER"]),
}


@pytest.mark.parametrize("case", BAD_PARENTS)
def test_a_bad_parent_is_an_error(case: str, pair: tiny.Pair, tmp_path: Path, mega) -> None:
    make, words = BAD_PARENTS[case]
    recipe = pair.write(tmp_path, parents={"a": str(pair.a), "b": make(pair, tmp_path)})
    assert_error(mega("merge", recipe, "--out", tmp_path / "out"), words, tmp_path)
    assert not (tmp_path / "exploded").exists(), "a pickle was executed"


@pytest.mark.parametrize("weights", ["other shapes", "a pickle", "truncated"])
def test_a_bad_weights_file_is_an_error(
    weights: str, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    files = {
        "other shapes": (pair.b / "model.safetensors", ["don't fit cifar_resnet32"]),
        "a pickle": (
            Path(broken.pickled(pair, tmp_path)) / "pytorch_model.bin",
            [".safetensors", "save_pretrained"],
        ),
        "truncated": (
            Path(broken.truncated(pair, tmp_path)) / "model.safetensors",
            ["unreadable weights"],
        ),
    }
    file, words = files[weights]
    arch = "cifar_resnet32" if weights == "other shapes" else "cifar_resnet8"
    bare = {"arch": arch, "weights": str(file), "num_classes": 3}
    recipe = pair.write(tmp_path, parents={"a": str(pair.a), "b": bare})
    assert_error(mega("merge", recipe, "--out", tmp_path / "out"), words, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"data_config": {"interpolation": "foo"}},
            ["images can't be prepared", "correct data_config"],
        ),
        ({"data_config": {"mean": "x"}}, ["images can't be prepared", "correct data_config"]),
        ({"arch_args": {"block": "x"}}, ["can't build cifar_resnet8", "correct arch_args"]),
    ],
)
def test_wrong_arguments_of_a_weights_file_are_an_error(
    wrong, words, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    bare = {"arch": "cifar_resnet8", "weights": str(pair.b / "model.safetensors"), "num_classes": 3}
    recipe = pair.write(tmp_path, parents={"a": str(pair.a), "b": bare | wrong})
    for more in (["--out", tmp_path / "out"], ["--dry-run"]):
        assert_error(mega("merge", recipe, *more), words, tmp_path)


def test_a_config_that_cannot_be_built_is_an_error(pair: tiny.Pair, tmp_path: Path, mega) -> None:
    folder = broken.copy_model(
        pair.b, tmp_path / "odd", lambda config: config.update(model_args={"block": "x"})
    )
    recipe = pair.write(tmp_path, parents={"a": str(pair.a), "b": folder})
    for more in (["--out", tmp_path / "out"], ["--dry-run"]):
        assert_error(mega("merge", recipe, *more), [folder, "block", "odd"], tmp_path)
