"""Resolve references to parents, and find what keeps parents from being merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mega_hf.errors import ParentError
from mega_hf.models.compatibility import disagreements
from mega_hf.models.load import open_model
from mega_hf.models.references import open_parent, resolve
from mega_hf.recipe.parents import WeightsParent
from tests.tools import broken, tiny


def identify(opened) -> tuple[str, dict]:
    """Return a parent's digest and source."""
    return opened.parent.sha256, opened.parent.source


def test_a_folder(pair: tiny.Pair) -> None:
    folder, pinned = resolve(str(pair.a))
    assert (folder, pinned) == (pair.a, str(pair.a))
    digest, source = identify(open_parent("first", str(pair.a)))
    assert source == {"local": "a"}, "a path of this machine"
    assert len(digest) == 64


def test_the_digest_is_of_the_weights(pair: tiny.Pair, tmp_path: Path) -> None:
    """Wherever they lie, whatever they are called; but one changed number is another model."""
    digest = identify(open_parent("x", str(pair.a)))[0]
    assert identify(open_parent("y", broken.copy_model(pair.a, tmp_path / "copy")))[0] == digest
    bare = WeightsParent(
        arch="cifar_resnet8", weights=str(pair.a / "model.safetensors"), num_classes=3
    )
    bare_digest, source = identify(open_parent("z", bare))
    assert bare_digest == digest
    assert source == {"weights": "model.safetensors", "arch": "cifar_resnet8"}
    nudged = broken.copy_model(
        pair.a, tmp_path / "nudged", weights=lambda s: s["fc.bias"][:1].add_(1e-3)
    )
    assert identify(open_parent("x", nudged))[0] != digest


def test_parents_that_belong_together(pair: tiny.Pair) -> None:
    assert disagreements(open_model(pair.a), open_model(pair.b)) == []


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (broken.other_architecture, "architecture"),
        (broken.other_library, "library"),
        (broken.other_dtype, "dtypes"),
        (broken.other_classes, "number of classes"),
        (broken.other_order, "label order"),
        (broken.other_preprocessing, "preprocessing"),
    ],
)
def test_what_keeps_parents_apart(make, what: str, pair: tiny.Pair, tmp_path: Path) -> None:
    found = disagreements(open_model(pair.a), open_model(Path(make(pair, tmp_path))))
    assert any(what in name for name, _, _ in found), found


def test_names_are_missing_in_one_of_them(pair: tiny.Pair, tmp_path: Path) -> None:
    """No names are no contradiction."""
    unnamed = broken.copy_model(pair.b, tmp_path / "unnamed", lambda c: c.pop("label_names"))
    assert disagreements(open_model(pair.a), open_model(Path(unnamed))) == []


def test_what_training_alone_uses_keeps_nobody_apart(pair: tiny.Pair, tmp_path: Path) -> None:
    dropped = broken.copy_model(
        pair.b, tmp_path / "dropped", lambda c: c["pretrained_cfg"].update(tag="mine")
    )
    assert disagreements(open_model(pair.a), open_model(Path(dropped))) == []


@pytest.mark.parametrize(
    "name", ["timm:resnet18.nonsense", "timm:resnett18", "timm:cifar_resnet20"]
)
def test_weights_that_timm_has_not(name: str) -> None:
    with pytest.raises(ParentError) as refusal:
        resolve(name)
    assert name.removeprefix("timm:") in str(refusal.value)


def test_a_folder_that_was_meant_but_not_said(
    pair: tiny.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pair0/a` is a repository's name; a folder of that name is what the user meant."""
    monkeypatch.chdir(pair.a.parent.parent)
    reference = f"{pair.a.parent.name}/a"
    with pytest.raises(ParentError, match=f"write ./{reference}"):
        resolve(reference)


def test_defaults_written_out_are_no_difference(pair: tiny.Pair, tmp_path: Path) -> None:
    """timm writes in_chans and global_pool where they were given; other writers leave them out."""
    written = broken.copy_model(pair.b, tmp_path / "written")
    config = json.loads((Path(written) / "config.json").read_text())
    config["model_args"] = {"in_chans": 3, "global_pool": "avg"}
    (Path(written) / "config.json").write_text(json.dumps(config))
    assert disagreements(open_model(pair.a), open_model(Path(written))) == []


def test_bare_weights_have_the_preprocessing_that_the_recipe_says(pair: tiny.Pair) -> None:
    file = str(pair.a / "model.safetensors")
    said = {"input_size": [3, 8, 8], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    bare = WeightsParent(arch="cifar_resnet8", weights=file, num_classes=3, data_config=said)
    model = open_parent("z", bare).model
    assert {key: model.preprocessing[key] for key in said} == said
    assert model.input_shape == (3, 8, 8)
