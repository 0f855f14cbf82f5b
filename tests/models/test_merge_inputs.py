"""What a merge starts from: mapped weights, hashed once, and again only if their files change."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mega_hf import Recipe, merge
from mega_hf.errors import RunError
from mega_hf.models import merge_inputs
from mega_hf.models.load import open_model
from mega_hf.models.merge_inputs import ModelSource, open_inputs
from mega_hf.weights import space
from mega_hf.weights.mapped import map_files
from mega_hf.weights.space import digest
from tests.tools import tiny


def source_of(folder: Path) -> ModelSource:
    sha256 = digest(open_model(folder).view())
    return ModelSource(folder.name, sha256, "", partial(open_model, folder))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each state dict that a source hashes from here on."""
    calls: list[int] = []
    real = merge_inputs.digest
    monkeypatch.setattr(
        merge_inputs, "digest", lambda state: calls.append(len(state)) or real(state)
    )
    return calls


def test_genes_stand_in_the_models_order_whatever_that_of_its_file(pair: tiny.Pair) -> None:
    sources = {folder.name: source_of(folder) for folder in (pair.a, pair.b)}
    order = list(open_model(pair.a).view())
    assert list(map_files([pair.a / "model.safetensors"])) != order, "else this says nothing"
    opened = open_inputs(sources)
    learned = open_model(pair.a).learned()
    assert [s.name for s in opened.space.segments if s.learned] == [
        name for name in order if name in learned
    ]
    assert all(list(state) == order for state in opened.states.values())


def test_weights_are_hashed_once(pair: tiny.Pair, hashed: list[int]) -> None:
    source = source_of(pair.a)
    for _ in range(2):
        source.open()
        state = source.map()
        source.digest_without(state, ["fc.bias"])
    assert hashed == [len(state), len(state) - 1]


@pytest.mark.parametrize("use", [ModelSource.open, ModelSource.map])
def test_changed_files_are_hashed_again(use, pair: tiny.Pair, tmp_path: Path, hashed) -> None:
    """A change of time alone is no change of content."""
    folder = tmp_path / "model"
    shutil.copytree(pair.a, folder)
    source = source_of(folder)
    source.map()
    os.utime(folder / "model.safetensors", (1, 1))
    use(source)
    assert len(hashed) == 2
    shutil.copy(pair.b / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(RunError, match="model was changed during the run"):
        use(source)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_files_that_name_tensors_differently_are_copied(kind: str, tmp_path: Path, hashed) -> None:
    folder = tiny.save_transformers(tmp_path / "model", tiny.transformers_model(kind))
    source = source_of(folder)
    for _ in range(2):
        assert digest(source.map()) == source.sha256
    assert len(hashed) == 1


def test_a_merge_hashes_its_parents_once(
    pair: tiny.Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole when they are admitted, and once without BatchNorm's statistics."""
    counts: Counter[bytes] = Counter()

    class Sha256:
        def __init__(self) -> None:
            self.sha = hashlib.sha256()

        def update(self, content: bytes) -> None:
            counts[bytes(content)] += 1
            self.sha.update(content)

        def hexdigest(self) -> str:
            return self.sha.hexdigest()

    class Hashlib:
        sha256 = Sha256

    monkeypatch.setattr(space, "hashlib", Hashlib)
    small = tiny.MERGE | {"population_size": 4, "generations": 2}
    tree = pair.recipe(merge=small)
    del tree["baselines"], tree["data"]["second_look"]
    merge(Recipe.from_dict(tree), tmp_path / "out")
    for folder in (pair.a, pair.b):
        weights = load_file(folder / "model.safetensors")["conv1.weight"]
        assert counts[weights.numpy().tobytes()] == 2
