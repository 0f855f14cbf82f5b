"""A model's JSON with any value replaced: the model loads, or there is a clear error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mega_hf.errors import ParentError
from mega_hf.evaluation.compare import _describe
from mega_hf.models.load import build_model, open_model, try_model
from tests.hostile.cases import DEEP, SMALL, bounded, cases, mutated, used
from tests.tools import tiny

# What would reach out of the folder, or build something else, if a library were given it.
MODEL_ARGS: dict[str, Any] = {
    "checkpoint_path": "/etc/passwd",
    "pretrained": True,
    "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x"},
    "depth": 2.5,
    "embed_dim": -4,
    "img_size": 9,
    "cache_dir": "../x",
    "in_chans": 5,
    "num_classes": 7,
    "layers": [3] * 3,
    "block": "x",
    "pretrained_strict": False,
    "features_only": True,
}
TOP: dict[str, Any] = {
    "transformers_weights": "../b/model.safetensors",
    "quantization_config": {"quant_method": "x"},
    "attn_implementation": "evil/kernel",
    "auto_map": {"AutoConfig": "evil--x.Y"},
    "backbone": "hf-hub:evil/x",
    "model_type": "beit",
    "architecture": "resnet18",
    "num_hidden_layers": 17,
    "num_labels": 17,
    "num_classes": 17,
    "dtype": "float8",
    "torch_dtype": 3,
    "hidden_sizes": [4] * 4,
    "label_names": 5,
    "depths": [3] * 4,
    "architectures": ["x"],
    "problem_type": "x",
    "image_size": 12,
    "num_channels": 4,
}
ADDED = [((key,), value) for key, value in TOP.items()]
ADDED += [(("model_args", key), value) for key, value in MODEL_ARGS.items()]


def _copied(source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if not (target / file.name).exists():
            os.link(file, target / file.name)
    return target


def _replace(file: Path, content: str) -> None:
    file.unlink(missing_ok=True)  # it may be a link to the valid one
    file.write_text(content, encoding="utf-8", errors="surrogatepass")


@pytest.mark.parametrize("kind", ["timm", "timm vit", "vit", "resnet", "wrapped"])
def test_any_value_of_a_configuration(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = _copied(folders[kind], tmp_path / "x")
    valid = json.loads((folders[kind] / "config.json").read_text())

    @cases(40 if kind == "wrapped" else 80)
    @given(mutated(valid, ["resnet18"], SMALL), st.none() | st.sampled_from(ADDED))
    def check(config: Any, added: Any) -> None:
        if added is not None:
            *block, key = added[0]
            inner = config.setdefault(block[0], {}) if block else config
            if isinstance(inner, dict):
                inner[key] = added[1]
        _replace(folder / "config.json", json.dumps(config))
        used(
            lambda: open_model(folder),
            lambda opened: try_model(opened, "x"),
            lambda opened: _describe("x", opened),
        )

    check()


@pytest.mark.parametrize("kind", ["timm", "vit"])
def test_any_value_of_a_configuration_whose_weights_are_elsewhere(
    kind: str, folders, tmp_path: Path
) -> None:
    valid = json.loads((folders[kind] / "config.json").read_text())
    for file in folders[kind].glob("*.json"):
        shutil.copy(file, tmp_path / file.name)

    @cases(40)
    @given(mutated(valid, [32, 64, "cifar_resnet32"], SMALL))
    def check(config: Any) -> None:
        _replace(tmp_path / "config.json", json.dumps(config))
        used(lambda: build_model(tmp_path, "x", {}))

    check()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("vit", "preprocessor_config.json"),
        ("resnet", "preprocessor_config.json"),
        ("resnet", "model.safetensors.index.json"),
    ],
)
def test_any_value_of_the_other_files(
    kind: str, name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = _copied(folders[kind], tmp_path / "x")
    shards = [
        "../x/model-00001-of-00006.safetensors",
        "/dev/zero",
        "config.json",
        "..",
        "model.safetensors",
    ]

    @cases(60)
    @given(mutated(json.loads((folders[kind] / name).read_text()), shards, SMALL))
    def check(content: Any) -> None:
        _replace(folder / name, json.dumps(content))
        used(lambda: open_model(folder), lambda opened: try_model(opened, "x"))

    check()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    "content",
    ["", "{", DEEP, "[]", "null", "\ufeff{}", '{"a": 1' + "0" * 5000 + "}", "{}" + " " * 2**25],
)
def test_a_file_that_is_no_configuration(
    name: str, content: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = _copied(folders["vit"], tmp_path / "x")
    _replace(folder / name, content)
    with bounded(), pytest.raises(ParentError):
        open_model(folder)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop"])
def test_a_path_that_is_no_regular_file(
    name: str, kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = _copied(folders["vit"], tmp_path / "x")
    (folder / name).unlink()
    make = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda to: os.symlink("/dev/zero", to)}
    make.get(kind, lambda to: os.symlink(to, to))(folder / name)
    with bounded(), pytest.raises(ParentError):
        open_model(folder)


def test_a_link_out_of_the_folder_is_the_hubs_own_way(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for file in folders["vit"].iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert open_model(tmp_path).labels == tiny.NAMES


def test_nobody_is_asked_whether_to_run_code(
    folders: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    folder = _copied(folders["vit"], tmp_path / "x")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for key in ("AutoConfig", "AutoModelForImageClassification"):
        _replace(
            folder / "config.json", json.dumps({"model_type": "new", "auto_map": {key: "evil.X"}})
        )
        with bounded(), pytest.raises(ParentError):
            open_model(folder)
    processor = {"image_processor_type": "New", "auto_map": {"AutoImageProcessor": "evil.X"}}
    _replace(folder / "config.json", (folders["vit"] / "config.json").read_text())
    _replace(folder / "preprocessor_config.json", json.dumps(processor))
    with bounded(), pytest.raises(ParentError):
        open_model(folder)
    assert not (tmp_path / "ran").exists()
