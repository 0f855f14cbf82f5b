"""Every form of parent in a portable copy: named by digest, given again with --set, to the same
weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mega_hf import MergeResult, Recipe, merge
from mega_hf.hub.bundle import portable_files, restore
from mega_hf.hub.privacy import check_no_private_paths, local_paths
from mega_hf.recipe.placeholders import placeholder_keys
from tests.hub.test_bundle import MIT, write
from tests.tools import tiny


@pytest.fixture(scope="module")
def result(pair: tiny.Pair, tmp_path_factory: pytest.TempPathFactory) -> MergeResult:
    """A run that merges a folder, a file, a network that is trained here, a snapshot of it, and a
    fine-tune."""
    folder = tmp_path_factory.mktemp("forms")
    shutil.copyfile(pair.b / "model.safetensors", folder / "b.safetensors")
    config = {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 1.0}
    arch = {"arch": "cifar_resnet8", "data_config": config}
    train = {"epochs": 2, "batch_size": 40, "learning_rate": 0.001, **arch}
    recipe = pair.recipe(
        parents={
            "folder": str(pair.a),
            "file": {**arch, "weights": str(folder / "b.safetensors"), "num_classes": 3},
            "seed": {"train": {"seed": 1, "checkpoints": 2, "epochs": 2}},
            "tune": {"train": {"seed": 2, "from": str(pair.b), "arch": None, "data_config": {}}},
        },
        train=train,
        merges={
            "one": {"parents": ["folder", "file"]},
            "two": {"parents": ["seed@1", "seed"]},
            "all": {"parents": ["one", "two", "tune"]},
        },
        merge={"population_size": 4, "generations": 2},
    )
    recipe["data"]["train"] = "train[:80]"
    return merge(Recipe.from_dict(recipe), folder / "run")


def test_each_is_named_by_its_digest(result: MergeResult) -> None:
    recipe = result.record.recipe
    keys = [".".join(key) for key in placeholder_keys(recipe)]
    assert keys == [
        "data.path",
        "parents.folder",
        "parents.file.weights",
        "parents.tune.train.from",
    ]
    known = {parent.name: parent.sha256 for parent in result.record.parents}
    assert recipe["parents"]["folder"]["sha256"] == known["folder"]
    assert recipe["parents"]["file"]["weights"] == {
        "local": "b.safetensors",
        "sha256": known["file"],
    }
    assert recipe["parents"]["tune"]["train"]["from"]["sha256"] == known["file"], (
        "the same model, as a folder"
    )


def test_it_is_made_again_elsewhere(
    result: MergeResult, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    files = portable_files(result, "me/x", MIT, with_nodes=True)
    check_no_private_paths(files, local_paths(result.folder), None)
    restored = restore(write(files, tmp_path / "copy"), tmp_path / "run", "me/x")
    here = str(result.folder.parent)
    assert not [
        path
        for path in (tmp_path / "run").rglob("*")
        if path.is_file() and here.encode() in path.read_bytes()
    ]
    recipe = tmp_path / "run" / "recipe.yaml"
    assert mega("merge", recipe, "--out", tmp_path / "run").code == 0
    places = {
        "data.path": pair.data,
        "parents.folder": pair.a,
        "parents.tune.train.from": pair.b,
        "parents.file.weights": result.folder.parent / "b.safetensors",
    }
    words = [word for key, place in places.items() for word in ("--set", f"{key}={place}")]
    for out in ("again", "run"):
        if out == "run":
            shutil.rmtree(tmp_path / "run" / "merged")
        answer = mega("merge", recipe, "--out", tmp_path / out, "--quiet", *words)
        assert answer.code == 0, answer.err
        made = MergeResult.load(tmp_path / out)
        assert made.record.digests.file == result.record.digests.file
        assert "by its digest" not in json.dumps(made.record.notices)
    assert restored.record.digests.file == result.record.digests.file


def test_another_model_to_start_from_is_noticed(
    result: MergeResult, pair: tiny.Pair, tmp_path: Path, mega
) -> None:
    (tmp_path / "recipe.yaml").write_bytes(
        bytes(portable_files(result, "me/x", MIT)["recipe.yaml"])
    )  # type: ignore[arg-type]
    places = {
        "data.path": pair.data,
        "parents.folder": pair.a,
        "parents.tune.train.from": pair.a,
        "parents.file.weights": result.folder.parent / "b.safetensors",
    }
    words = [word for key, place in places.items() for word in ("--set", f"{key}={place}")]
    answer = mega("merge", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--quiet", *words)
    assert answer.code == 0, answer.err
    said = [n for n in MergeResult.load(tmp_path / "out").record.notices if "by its digest" in n]
    assert [notice.split()[0] for notice in said] == ["parents.tune.train.from"]
