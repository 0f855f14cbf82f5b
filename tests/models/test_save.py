"""Saved folders are what the parents' own libraries load, on either side of the fence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import timm
import torch
from safetensors.torch import load_file

from mega_hf.models.load import open_model
from mega_hf.models.save import save_model, save_timm
from tests.tools import tiny

MODELS = {
    "cifar": (lambda: tiny.timm_model(), tiny.save_timm),
    "test_vit": (lambda: tiny.timm_model("test_vit", img_size=8, patch_size=4), tiny.save_timm),
    "resnet": (lambda: tiny.transformers_model("resnet"), tiny.save_transformers),
    "vit": (lambda: tiny.transformers_model("vit"), tiny.save_transformers),
    "convnext": (lambda: tiny.transformers_model("convnext"), tiny.save_transformers),
    "swin": (lambda: tiny.transformers_model("swin"), tiny.save_transformers),
}


@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back(kind: str, tmp_path: Path) -> None:
    make, save = MODELS[kind]
    save(tmp_path / "source", make())
    source = open_model(tmp_path / "source")
    state = {k: v + 1 if v.is_floating_point() else v for k, v in source.state().items()}
    kept = dict(state)
    save_model(tmp_path / "saved", source, state)
    assert state.keys() == kept.keys(), "transformers empties the dict that it is given"
    saved = open_model(tmp_path / "saved")
    assert all(torch.equal(tensor, saved.state()[name]) for name, tensor in kept.items())
    assert (saved.labels, saved.preprocessing, saved.structure) == (
        source.labels,
        source.preprocessing,
        source.structure,
    )
    # The model that was given is the search's resident one: saving must not touch it.
    assert not torch.equal(next(iter(source.state().values())), next(iter(saved.state().values())))


@pytest.mark.parametrize("kind", MODELS)
def test_names_on_disk_are_the_sources(kind: str, tmp_path: Path) -> None:
    """transformers renames entries in memory: what it wrote for the source, it must write for the
    merge."""
    make, save = MODELS[kind]
    save(tmp_path / "source", make())
    source = open_model(tmp_path / "source")
    save_model(tmp_path / "saved", source, source.state())
    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("source", "saved")
    )
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    with safetensors.safe_open(tmp_path / "saved" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_bytes_are_reproducible(tmp_path: Path) -> None:
    tiny.save_timm(tmp_path / "source", tiny.timm_model())
    source = open_model(tmp_path / "source")
    for name in ("one", "two"):
        save_model(tmp_path / name, source, source.state())
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_on_disk(dtype: torch.dtype, tmp_path: Path) -> None:
    for name, model, save in (
        (
            "timm",
            tiny.timm_model(),
            lambda folder, model: tiny.save_timm(folder, model, dtype=dtype),
        ),
        ("transformers", tiny.transformers_model("vit").to(dtype), tiny.save_transformers),
    ):
        save(tmp_path / name, model)
        source = open_model(tmp_path / name)
        save_model(tmp_path / f"{name}-saved", source, source.state())
        stored = load_file(tmp_path / f"{name}-saved" / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {dtype}
    from transformers import AutoModelForImageClassification

    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "transformers-saved")
    assert next(loaded.parameters()).dtype == dtype


def test_a_channels_last_model_can_be_saved(tmp_path: Path) -> None:
    model = tiny.timm_model().to(memory_format=torch.channels_last)
    (tmp_path / "model").mkdir()
    save_timm(tmp_path / "model", model, model.state_dict(), tiny.NAMES)
    again = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert torch.equal(
        again.state_dict()["conv1.weight"], tiny.timm_model().state_dict()["conv1.weight"]
    )


def test_transformers_loads_what_was_merged_from_timm(tmp_path: Path) -> None:
    """Its wrapper fails where timm's own export names num_classes twice."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = tiny.timm_model()
    tiny.save_timm(tmp_path / "source", model)
    config = json.loads((tmp_path / "source" / "config.json").read_text())
    config["model_args"] = {"num_classes": 3}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    source = open_model(tmp_path / "source")
    save_model(tmp_path / "saved", source, source.state())
    wrapped = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    AutoImageProcessor.from_pretrained(tmp_path / "saved")
    x = tiny.as_tensors(6, 1)[0]
    with torch.inference_mode():
        torch.testing.assert_close(wrapped(x).logits, model(x))
    assert list(wrapped.config.id2label.values()) == list(tiny.NAMES)


def test_a_timm_model_in_transformers_wrapper(tmp_path: Path) -> None:
    """Both libraries read what is saved of it, and nothing tells where it came from."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    tiny.save_transformers(tmp_path / "source", tiny.wrapped_model(tmp_path / "timm"))
    source = open_model(tmp_path / "source")
    assert (source.library, source.structure["architecture"]) == ("transformers", "test_resnet")
    state = {k: v + 1 if v.is_floating_point() else v for k, v in source.state().items()}
    save_model(tmp_path / "saved", source, state)
    AutoImageProcessor.from_pretrained(tmp_path / "saved")
    wrapped = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    plain = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    x = tiny.as_tensors(6, 1)[0]
    with torch.inference_mode():
        torch.testing.assert_close(wrapped(x).logits, plain(x))
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_shards_are_read_and_joined(kind: str, tmp_path: Path) -> None:
    model = tiny.transformers_model(kind)
    tiny.save_transformers(tmp_path / "whole", model)
    tiny.save_transformers(tmp_path / "shards", model, shards="3KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    whole, sharded = open_model(tmp_path / "whole"), open_model(tmp_path / "shards")
    assert all(torch.equal(tensor, whole.state()[name]) for name, tensor in sharded.state().items())
    save_model(tmp_path / "saved", sharded, sharded.state())
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
