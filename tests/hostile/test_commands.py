"""Commands with hostile recipes and models: no traceback, and nothing is executed or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given

from tests.hostile.cases import bounded, cases, mutated
from tests.tools import tiny


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def asked(folders: dict[str, Path], data: Path) -> dict[str, Any]:
    tree = {
        "name": "tiny",
        "data": {"path": str(data), "validation": "validation[:20]", "test": "test[:20]"},
    }
    bare = {
        "arch": "cifar_resnet8",
        "weights": str(folders["timm"] / "model.safetensors"),
        "num_classes": 3,
    }
    tree |= {
        "parents": {
            "a": str(folders["timm"]),
            "b": bare | {"arch_args": {}, "data_config": {"mean": [0.5] * 3}},
        }
    }
    return tree | {
        "merge": {"population_size": 4, "generations": 2, "seed": 46},
        "evaluation": {"batch_size": 5},
    }


def test_a_dry_run_of_any_recipe_writes_nothing(
    asked, tmp_path: Path, monkeypatch, mega: Callable[..., Any]
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    file = tmp_path / "r.yaml"

    @cases(60)
    @given(mutated(asked, ["../../x", "$(touch owned)", "train[:99999999]", "org/model"]))
    def check(tree: Any) -> None:
        file.write_text(yaml.dump(tree), encoding="utf-8", errors="surrogatepass")
        before = _snapshot(tmp_path)
        with bounded():
            answer = mega("merge", file, "--dry-run")
        assert answer.code in (0, 2)
        assert all(c.isprintable() or c == "\n" for c in answer.out + answer.err)
        assert _snapshot(tmp_path) == before

    check()


def test_text_of_a_model_does_not_control_the_terminal(
    folders: dict[str, Path], tmp_path: Path, mega: Callable[..., Any]
) -> None:
    both = []
    for name in "ab":
        folder = tiny.save_timm(tmp_path / name, tiny.timm_model(seed=ord(name)))
        config = json.loads((folder / "config.json").read_text())
        config["label_names"] = ["\x1b[2J", "\u202ecat\nmega-hf: all is well", "\x07"]
        (folder / "config.json").write_text(json.dumps(config))
        both.append(folder)
    answer = mega("compare", *both)
    assert answer.code == 0
    assert all(c.isprintable() or c == "\n" for c in answer.out)
    assert not any(line.startswith("mega-hf:") for line in answer.out.splitlines())


def test_a_hostile_model_is_an_error_in_every_command(
    asked, data: Path, tmp_path: Path, mega: Callable[..., Any]
) -> None:
    folder = tiny.save_timm(tmp_path / "x", tiny.timm_model())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_args": {"num_classes": 3, "checkpoint_path": "/x"}})
    )
    (tmp_path / "r.yaml").write_text(
        yaml.dump(asked | {"parents": {"a": asked["parents"]["a"], "x": str(folder)}})
    )
    before = _snapshot(tmp_path)
    for words in (
        ["compare", folder, asked["parents"]["a"]],
        ["evaluate", folder, "--data", data, "--split", "test"],
        ["merge", tmp_path / "r.yaml", "--out", tmp_path / "out"],
        ["merge", tmp_path / "r.yaml", "--dry-run"],
    ):
        answer = mega(*words)
        assert answer.code == 2 and "checkpoint_path" in answer.err
    assert _snapshot(tmp_path) == before
