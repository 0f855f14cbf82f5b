"""Valid folders to damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tools import tiny


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One valid folder for each way in which models are stored; opened once, so that libraries are
    in memory."""
    from mega_hf.models.load import open_model, try_model

    root = tmp_path_factory.mktemp("models")
    vit = tiny.timm_model("test_vit", img_size=tiny.SIZE, patch_size=4)
    made = {
        "timm": tiny.save_timm(root / "timm", tiny.timm_model()),
        "timm vit": tiny.save_timm(root / "timm-vit", vit),
        "vit": tiny.save_transformers(root / "vit", tiny.transformers_model("vit")),
        "resnet": tiny.save_transformers(
            root / "resnet", tiny.transformers_model("resnet"), shards="5KB"
        ),
        "wrapped": tiny.save_transformers(root / "wrapped", tiny.wrapped_model(root / "bare")),
    }
    for folder in made.values():
        try_model(open_model(folder), folder.name)
    return made


@pytest.fixture
def recipe_tree(tmp_path: Path) -> dict[str, Any]:
    """A recipe that says something at every key, over folders and files that are there."""
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "x.safetensors").write_bytes(b"")
    train = {
        "arch": "cifar_resnet8",
        "epochs": 4,
        "checkpoints": 2,
        "arch_args": {"x": 1},
        "optimizer": "sgd",
    }
    merge = {
        "population_size": 6,
        "generations": 2,
        "mutation": {"std": 0.1},
        "founders": {"include_parents": True},
    }
    return {
        "name": "tiny",
        "data": {
            "path": str(tmp_path),
            "validation": {"split": "train", "size": 5},
            "test": "test[:10]",
        },
        "parents": {
            "a": "./a",
            "b": {
                "arch": "x",
                "weights": "a/x.safetensors",
                "num_classes": 3,
                "data_config": {"mean": [0.5]},
            },
            "c": {"train": {"seed": 1}},
            "d": {"train": {"seed": 2, "from": "c"}},
            "e": "org/model@main",
        },
        "train": train,
        "merge": merge,
        "merges": {
            "low": {"parents": ["a", "b"]},
            "top": {"parents": ["low", "d@2", "e"], "seed": 3},
        },
        "evaluation": {"batch_size": 4, "memory_share": 0.5},
        "threads": 1,
        "push": {"repo": "org/name", "private": True, "branch": "main", "license": "mit"},
    }
