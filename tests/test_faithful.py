"""The saved model is the one that was evaluated, and the test split is read after the search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mega_hf import MergeResult, Recipe, merge
from mega_hf.evaluation.forward import ResidentModel
from tests.tools import tiny
from tests.tools.run_files import EVALUATIONS, lines

KINDS = {
    "no BatchNorm": lambda folder: tiny.make_pair(
        folder, tiny.timm_model("test_vit", img_size=8, patch_size=4), strength=0.5
    ),
    "transformers resnet": lambda folder: tiny.make_pair(
        folder, tiny.transformers_model("resnet"), tiny.save_transformers
    ),
    "transformers vit": lambda folder: tiny.make_pair(
        folder, tiny.transformers_model("vit"), tiny.save_transformers
    ),
    "bfloat16": lambda folder: tiny.make_pair(folder, tiny.timm_model(), dtype=torch.bfloat16),
    "float16": lambda folder: tiny.make_pair(folder, tiny.timm_model(), dtype=torch.float16),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_model_is_the_one_that_was_evaluated(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every kind of parent, in the stored dtype."""
    pair = KINDS[kind](tmp_path)
    measured: list[dict[str, torch.Tensor]] = []
    write = ResidentModel.write

    def spy(self: ResidentModel, state: dict[str, torch.Tensor], part: bool = False) -> None:
        write(self, state, part)
        measured.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})

    monkeypatch.setattr(ResidentModel, "write", spy)
    result = merge(Recipe.from_dict(pair.recipe()), tmp_path / "out")
    dtype = DTYPES.get(kind, torch.float32)
    stored = {k: v for k, v in result.weights.items() if v.is_floating_point()}
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    model = load(kind, result.merged)
    found = {k: v.float() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    assert any(
        all(torch.equal(found[k], state[k].contiguous()) for k in found) for state in measured
    )
    assert result.record.search.generation > 1 or result.record.search.index > 1, "a parent won"
    for split in ("validation", "test"):
        assert tiny.count(model.float(), split) == getattr(result.report.merged, split).correct
    if "vit" in kind or kind == "no BatchNorm":
        assert not any("running" in name for name in result.weights)


def load(kind: str, folder: Path) -> torch.nn.Module:
    if "transformers" in kind:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        processor = AutoImageProcessor.from_pretrained(folder)
        assert list(processor.image_mean) == [0.5] * 3
        return AutoModelForImageClassification.from_pretrained(folder).eval()
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def test_no_test_image_is_evaluated_before_the_search_has_ended(
    pair: tiny.Pair, tmp_path: Path
) -> None:
    rows = {row.numpy().tobytes() for row in tiny.as_tensors(90, 3)[0]}
    known = {row.numpy().tobytes() for row in tiny.as_tensors(60, 2)[0]}
    journal = tmp_path / "out" / "journal.jsonl"
    # which split, and how many individuals had been measured by then
    seen: list[tuple[str, int]] = []

    def spy(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_tensor(inputs[0]) and inputs[0].ndim == 4 and inputs[0].shape[1:] == (3, 8, 8):
            count = journal.read_text().count('"fitness"') if journal.exists() else 0
            for row in inputs[0].contiguous():
                seen.extend(
                    (name, count)
                    for name, kept in (("test", rows), ("validation", known))
                    if row.numpy().tobytes() in kept
                )

    handle = torch.nn.modules.module.register_module_forward_pre_hook(spy)
    try:
        merge(Recipe.from_dict(pair.recipe()), tmp_path / "out")
    finally:
        handle.remove()
    assert ("validation", 0) in seen, "the hook does not work"
    tested = [count for name, count in seen if name == "test"]
    assert len(tested) >= 4 * 90, "the report has not read the test split"
    assert set(tested) == {EVALUATIONS}


def test_individuals_with_infinite_logits_lose_and_the_search_continues(
    pair: tiny.Pair, tmp_path: Path
) -> None:
    mutation = {"rate": 0.3, "std": 1e6, "scope": "element", "relative": False}
    wild = tiny.MERGE | {"mutation": mutation, "population_size": 4, "generations": 3}
    recipe = pair.recipe(merge=wild)
    for name in "ab":  # half precision overflows where float32 would not
        model = tiny.timm_model()
        model.load_state_dict(load_file(getattr(pair, name) / "model.safetensors"))
        tiny.save_timm(tmp_path / name, model, dtype=torch.float16)
    recipe["parents"] = {name: str(tmp_path / name) for name in "ab"}
    result = merge(Recipe.from_dict(recipe), tmp_path / "out")
    assert None in [line["correct"] for line in lines(result.folder)[1:]]
    assert result.record.search.generation == 1
    assert sum(generation.failed for generation in result.history) > 0


def test_a_weights_file_with_an_architecture_can_be_merged(
    finished: MergeResult, pair: tiny.Pair, tmp_path: Path
) -> None:
    bare = {
        name: {
            "arch": "cifar_resnet8",
            "weights": str(folder / "model.safetensors"),
            "num_classes": 3,
        }
        for name, folder in (("a", pair.a), ("b", pair.b))
    }
    result = merge(
        Recipe.from_dict(pair.recipe(parents=bare, merge=tiny.MERGE | {"generations": 1})),
        tmp_path / "out",
    )
    assert "classes are matched by position" in " ".join(result.record.notices)
    assert str(tmp_path) not in (result.folder / "result.json").read_text()
    model = load("timm", result.merged)
    assert model.state_dict().keys() == result.weights.keys()
