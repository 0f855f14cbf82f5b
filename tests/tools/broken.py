"""Damaged or unfit parents, and the check of an error message."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.tools import tiny

Change = Callable[[Any], None]
# of every error that a user can cause
PARTS = ("expected:", "got:", "hint:")


def copy_model(
    source: Path, target: Path, config: Change | None = None, weights: Change | None = None
) -> str:
    """Copy a model's folder, and change its config or its weights."""
    shutil.copytree(source, target)
    if config:
        tree = json.loads((target / "config.json").read_text())
        config(tree)
        (target / "config.json").write_text(json.dumps(tree))
    if weights:
        state = load_file(target / "model.safetensors")
        weights(state)
        save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


def truncated(pair: tiny.Pair, folder: Path) -> str:
    path = copy_model(pair.b, folder / "cut")
    os.truncate(folder / "cut" / "model.safetensors", 100_000)
    return path


def empty_file(pair: tiny.Pair, folder: Path) -> str:
    path = copy_model(pair.b, folder / "empty")
    os.truncate(folder / "empty" / "model.safetensors", 0)
    return path


def pickled(pair: tiny.Pair, folder: Path) -> str:
    path = copy_model(pair.b, folder / "pickled")
    state = load_file(folder / "pickled" / "model.safetensors")
    torch.save(state, folder / "pickled" / "pytorch_model.bin")
    (folder / "pickled" / "model.safetensors").unlink()
    return path


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def disguised(pair: tiny.Pair, folder: Path) -> str:
    path = copy_model(pair.b, folder / "disguised")
    (folder / "disguised" / "model.safetensors").write_bytes(
        pickle.dumps(Bomb(folder / "exploded"))
    )
    return path


def not_finite(pair: tiny.Pair, folder: Path) -> str:
    return copy_model(
        pair.b, folder / "nan", weights=lambda s: s["fc.weight"][1, 2:3].fill_(float("nan"))
    )


def infinite_statistics(pair: tiny.Pair, folder: Path) -> str:
    return copy_model(
        pair.b, folder / "inf", weights=lambda s: s["bn1.running_var"][:1].fill_(float("inf"))
    )


def other_architecture(pair: tiny.Pair, folder: Path) -> str:
    return str(tiny.save_timm(folder / "other", tiny.timm_model("cifar_resnet32")))


def other_library(pair: tiny.Pair, folder: Path) -> str:
    return str(tiny.save_transformers(folder / "other", tiny.transformers_model("resnet")))


def other_shapes(pair: tiny.Pair, folder: Path) -> str:
    wide = torch.zeros(32, 17, 3, 3)
    return copy_model(
        pair.b, folder / "shapes", weights=lambda s: s.update({"layer2.0.conv1.weight": wide})
    )


def missing_entry(pair: tiny.Pair, folder: Path) -> str:
    return copy_model(pair.b, folder / "missing", weights=lambda s: s.pop("fc.bias"))


def other_dtype(pair: tiny.Pair, folder: Path) -> str:
    def halve(state: dict[str, torch.Tensor]) -> None:
        state.update({k: v.half() for k, v in state.items() if v.is_floating_point()})

    return copy_model(pair.b, folder / "half", weights=halve)


def other_classes(pair: tiny.Pair, folder: Path) -> str:
    return str(tiny.save_timm(folder / "four", tiny.timm_model(classes=4), (*tiny.NAMES, "fourth")))


def other_order(pair: tiny.Pair, folder: Path) -> str:
    return copy_model(
        pair.b, folder / "order", lambda c: c.update(label_names=list(reversed(tiny.NAMES)))
    )


def other_preprocessing(pair: tiny.Pair, folder: Path) -> str:
    return copy_model(
        pair.b, folder / "mean", lambda c: c["pretrained_cfg"].update(mean=[0.4, 0.5, 0.6])
    )


def not_a_model(pair: tiny.Pair, folder: Path) -> str:
    return copy_model(pair.b, folder / "strange", lambda c: c.pop("architecture"))


def not_json(pair: tiny.Pair, folder: Path) -> str:
    path = copy_model(pair.b, folder / "text")
    (folder / "text" / "config.json").write_text("{'architecture': ")
    return path


def assert_error(answer: Any, words: list[str], folder: Path) -> None:
    """Assert that a command failed with a complete error message and left no run folder."""
    assert answer.code == 2, answer
    missing = [word for word in words if word not in answer.err]
    assert not missing, f"{missing} not in:\n{answer.err}"
    lacking = [part for part in PARTS if part not in answer.err]
    assert not lacking, f"no {lacking} in:\n{answer.err}"
    assert not (folder / "out").exists(), "a run folder was left behind"
    assert not list(folder.rglob(".mega-*"))
