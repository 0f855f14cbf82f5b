"""Load folders as their own libraries do, and describe the models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mega_hf.errors import ParentError
from mega_hf.models.load import build_model, open_model
from mega_hf.models.timm_models import open_weights
from tests.tools import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "timm": tiny.save_timm(root / "timm", tiny.timm_model()),
        "half": tiny.save_timm(root / "half", tiny.timm_model(), dtype=torch.bfloat16),
        "unnamed": tiny.save_timm(root / "unnamed", tiny.timm_model(), names=None),
        "resnet": tiny.save_transformers(root / "resnet", tiny.transformers_model("resnet")),
        "vit": tiny.save_transformers(root / "vit", tiny.transformers_model("vit")),
    }


@pytest.mark.parametrize("kind", ["timm", "resnet", "vit"])
def test_a_model_and_its_record(kind: str, folders: dict[str, Path]) -> None:
    opened = open_model(folders[kind])
    original = tiny.timm_model() if kind == "timm" else tiny.transformers_model(kind)
    assert opened.library == ("timm" if kind == "timm" else "transformers")
    assert (opened.labels, opened.num_classes) == (tiny.NAMES, 3)
    assert opened.input_shape == (3, 8, 8)
    assert not opened.model.training
    state = opened.state()
    assert state.keys() == original.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in original.state_dict().items())
    assert opened.learned() == {name for name, _ in original.named_parameters()}
    assert set(opened.dtypes.values()) == {torch.float32}
    json.dumps(opened.structure)
    json.dumps(opened.preprocessing)


@pytest.mark.parametrize("kind", ["timm", "resnet", "vit"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_images_are_transformed_as_configured(
    kind: str, mode: str, folders: dict[str, Path]
) -> None:
    """By hand: mean 0.5, standard deviation 0.25; whatever mode the image is stored in."""
    image = Image.fromarray(tiny.examples(1, 5)[0][0]).convert(mode)
    expected = (
        torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255 - 0.5
    ) / 0.25
    torch.testing.assert_close(
        open_model(folders[kind]).transform(image), expected, atol=1e-5, rtol=1e-5
    )


def test_half_precision_is_computed_in_float32_and_remembered(folders: dict[str, Path]) -> None:
    opened = open_model(folders["half"])
    assert {p.dtype for p in opened.model.parameters()} == {torch.float32}
    assert {t.dtype for t in opened.state().values() if t.is_floating_point()} == {torch.bfloat16}
    expected = tiny.timm_model().state_dict()["conv1.weight"].bfloat16()
    assert torch.equal(opened.state()["conv1.weight"], expected)


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_nothing_is_drawn_that_is_loaded(arch: str, tmp_path: Path) -> None:
    """Parameters are not initialized twice; buffers are those of a new model."""
    torch.manual_seed(3)
    arguments = {"img_size": 32} if arch == "test_vit" else {}
    new = tiny.timm_model(arch, **arguments)
    folder = tiny.save_timm(tmp_path / "model", new)
    before = torch.get_rng_state()
    opened = open_model(folder)
    bare = open_weights(arch, folder / "model.safetensors", 3, arguments, "x")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(bare.state()[name], value) for name, value in new.state_dict().items())
    for one, other in (
        (opened.model.named_parameters(), new.named_parameters()),
        (opened.model.named_buffers(), new.named_buffers()),
    ):
        expected = dict(other)
        assert all(torch.equal(value, expected.pop(name)) for name, value in one) and not expected


def test_a_state_is_a_copy(folders: dict[str, Path]) -> None:
    opened = open_model(folders["timm"])
    opened.state()["conv1.weight"].zero_()
    assert opened.state()["conv1.weight"].abs().sum() > 0


def test_a_model_without_names(folders: dict[str, Path]) -> None:
    assert open_model(folders["unnamed"]).labels is None


@pytest.mark.parametrize("kind", ["timm", "resnet", "vit", "unnamed"])
def test_a_model_without_its_weights(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """What --dry-run builds from the configuration is the same record; no weights file is
    needed."""
    for file in folders[kind].glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    built, opened = build_model(tmp_path, "x", {}), open_model(folders[kind])
    assert built.structure == opened.structure
    assert (built.labels, built.num_classes, built.preprocessing) == (
        opened.labels,
        opened.num_classes,
        opened.preprocessing,
    )
    assert {k: v.shape for k, v in built.state().items()} == {
        k: v.shape for k, v in opened.state().items()
    }


def test_bare_weights(folders: dict[str, Path]) -> None:
    opened = open_weights("cifar_resnet8", folders["timm"] / "model.safetensors", 3, {}, "x")
    assert torch.equal(opened.state()["fc.weight"], tiny.timm_model().state_dict()["fc.weight"])
    assert (opened.labels, opened.folder) == (None, None)


@pytest.mark.parametrize("kind", ["timm", "resnet", "vit"])
@pytest.mark.parametrize("head", [True, False])
def test_missing_weights_are_an_error_that_names_them(
    kind: str, head: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    """transformers only logs a warning and initializes them; nothing else may be left as it was."""
    from safetensors.torch import load_file, save_file

    for file in folders[kind].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    names = {True: ("classifier", "fc."), False: ("embed", "conv1")}[head]
    missing = [name for name in state if any(part in name for part in names)]
    for name in missing:
        del state[name]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParentError) as raised:
        open_model(tmp_path)
    assert any(name in str(raised.value) for name in missing), raised.value
    if kind == "timm":
        with pytest.raises(ParentError) as raised:
            open_weights("cifar_resnet8", tmp_path / "model.safetensors", 3, {}, "x")
        assert any(name in str(raised.value) for name in missing), raised.value


def test_weights_that_timm_leaves_out_without_an_error(tmp_path: Path, monkeypatch) -> None:
    """As it does where it can't adapt a first layer to another number of channels."""
    folder = tiny.save_timm(tmp_path / "model", tiny.timm_model())
    load = torch.nn.Module.load_state_dict

    def lenient(self, state, *_, **__):
        del state["conv1.weight"]
        return load(self, state, strict=False)

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lenient)
    with pytest.raises(ParentError, match=r"missing or NaN[\s\S]*conv1\.weight"):
        open_model(folder)


def test_a_model_that_asks_for_strangers_code(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["resnet"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "modeling_evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoModelForImageClassification": "modeling_evil.Evil"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ParentError):
        open_model(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_sharded_transformers_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tiny.transformers_model("vit")
    tiny.save_transformers(tmp_path / "whole", model)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    (tmp_path / "sharded" / "preprocessor_config.json").write_bytes(
        (tmp_path / "whole" / "preprocessor_config.json").read_bytes()
    )
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    whole, sharded = (open_model(tmp_path / name).state() for name in ("whole", "sharded"))
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_an_unknown_key_of_data_config_is_named() -> None:
    from mega_hf.models.timm_models import build_timm

    with pytest.raises(
        ParentError, match=r"unknown key in data_config[\s\S]*input_size[\s\S]*input_sise"
    ):
        build_timm("cifar_resnet8", 3, {}, {"input_sise": [3, 8, 8]})
