"""The paper's ResNets: their sizes against the paper's, and timm treats them as its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from mega_hf.models import cifar_resnet
from tests.tools import tiny

# Blocks of two 3 x 3 convolutions with 16, 32 and 64 channels, 1 x 1 projections where shapes
# change.
WEIGHTS = {20: 272_474, 32: 466_906, 44: 661_338, 56: 855_770, 110: 1_730_714}


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_number_of_weights(depth: int) -> None:
    model = timm.create_model(f"cifar_resnet{depth}")
    assert sum(p.numel() for p in model.parameters()) == WEIGHTS[depth]
    convolutions = [
        m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    assert len(convolutions) + 1 == depth, "the classifier is the last layer"


@pytest.mark.parametrize(
    ("name", "layers", "learned", "counted"),
    [
        ("cifar_resnet56", 56, 855_770, "0.86"),
        ("cifar_resnet110", 110, 1_730_714, "1.74"),  # the paper says 1.78
        ("cifar_resnet152_mega", 186, 3_489_050, "3.51"),
    ],
)
def test_the_papers_count(name: str, layers: int, learned: int, counted: str) -> None:
    """In millions, with a bias in each convolution and BatchNorm's running mean and variance."""
    model = timm.create_model(name)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) + 1 == layers, (
        "the classifier is the last layer"
    )
    assert sum(p.numel() for p in model.parameters()) == learned
    statistics = sum(2 * m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert (
        f"{(learned + statistics + sum(m.out_channels for m in convolutions)) / 1e6:.2f}" == counted
    )


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet152_mega"])
def test_the_names_of_public_checkpoints(name: str) -> None:
    entries = timm.create_model(name).state_dict()
    parts = (
        "conv1",
        "bn1",
        "layer1.0.conv1",
        "layer1.0.bn1",
        "layer2.0.downsample.0",
        "layer3.0.downsample.1",
        "fc",
    )
    assert {f"{part}.weight" for part in parts} <= set(entries)
    assert {key.split(".")[0] for key in entries} == {
        "conv1",
        "bn1",
        "layer1",
        "layer2",
        "layer3",
        "fc",
    }
    assert not [key for key in entries if key.startswith("layer1.0.downsample")]


@pytest.mark.slow
def test_one_import_is_enough_to_load_a_merged_model(tmp_path: Path) -> None:
    """And it brings neither transformers nor datasets."""
    tiny.save_timm(tmp_path / "model", tiny.timm_model("cifar_resnet152_mega"))
    program = f"""
import sys
import mega_hf.models.cifar_resnet
print([name for name in ("transformers", "datasets", "pydantic") if name in sys.modules])
import timm
print(sum(p.numel() for p in timm.create_model("local-dir:{tmp_path / "model"}", pretrained=True).parameters()))
"""  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == [
        "[]",
        str(3_489_050 - 7 * 65),
    ], "three classes instead of ten"


def test_a_block_against_its_formula() -> None:
    torch.manual_seed(0)
    block = cifar_resnet.Block(16, 32, 2).eval()
    x = torch.randn(2, 16, 8, 8)
    inner = torch.relu(block.bn1(block.conv1(x)))
    shortcut = block.downsample(x)
    assert shortcut.shape == (2, 32, 4, 4)
    torch.testing.assert_close(block(x), torch.relu(block.bn2(block.conv2(inner)) + shortcut))


def test_timm_knows_them() -> None:
    assert len(timm.list_models("cifar_resnet*", pretrained=False)) >= 5
    config = timm.data.resolve_model_data_config(timm.create_model("cifar_resnet20"))
    assert (config["input_size"], config["crop_pct"]) == ((3, 32, 32), 1.0)
    assert (config["mean"], config["std"]) == (cifar_resnet.MEAN, cifar_resnet.STD)


def test_the_parts_that_timm_asks_for() -> None:
    model = timm.create_model("cifar_resnet20", num_classes=7, in_chans=1).eval()
    x = torch.zeros(2, 1, 32, 32)
    assert model(x).shape == (2, 7)
    assert model.forward_features(x).shape == (2, 64, 8, 8)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 64)
    assert model.get_classifier() is model.fc
    model.reset_classifier(0)
    assert model(x).shape == (2, 64)
    model.reset_classifier(4, "avg")
    assert model(x).shape == (2, 4)


def test_it_comes_back_from_timms_own_folder(tmp_path: Path) -> None:
    model = tiny.timm_model(seed=3)
    tiny.save_timm(tmp_path / "model", model)
    again = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    x = tiny.as_tensors(6, 1)[0]
    assert torch.equal(again(x), model(x))
