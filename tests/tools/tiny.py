"""Tiny data sets and models: 8 x 8 images of three classes, and networks that learn them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import mega_hf.models.cifar_resnet

assert mega_hf.models.cifar_resnet.default_cfgs, "imported to register its names with timm"

NAMES = ("bar", "dash", "slash")
ROWS = {"train": 120, "validation": 60, "test": 90}
SIZE = 8
# Several generations must improve: if a founder won, the merged file would not depend on breeding.
# The noise is small, so that children win on every processor, although each processor trains the
# tiny parents to different weights.
MERGE: dict[str, Any] = {
    "population_size": 6,
    "generations": 5,
    "mutation": {"rate": 0.2, "std": 0.1, "scope": "element", "relative": True},
    "seed": 46,
}


def examples(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images of noisy lines, [rows, 8, 8, 3] uint8, and their directions, [rows] int64."""
    draw = np.random.default_rng(seed)
    labels = np.arange(rows) % len(NAMES)
    images = draw.normal(110, 55, (rows, SIZE, SIZE, 3))
    for image, label, at in zip(images, labels, draw.integers(1, SIZE - 1, rows), strict=True):
        for i in range(SIZE):
            row, column = {0: (i, at), 1: (at, i), 2: ((i + at) % SIZE, i)}[int(label)]
            image[row, column] += 95
    return images.clip(0, 255).astype(np.uint8), labels


def split(rows: int, seed: int, names: Sequence[str] | None = NAMES) -> datasets.Dataset:
    """Return images and labels as a `datasets` split; without names, labels are integers."""
    images, labels = examples(rows, seed)
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    columns = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
    return datasets.Dataset.from_dict(columns, features=features)


def write_splits(folder: Path, splits: dict[str, datasets.Dataset]) -> Path:
    """Write splits in the layout of the Hub: data/SPLIT-00000-of-00001.parquet."""
    (folder / "data").mkdir(parents=True)
    for name, rows in splits.items():
        rows.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


def write_data(folder: Path, rows: dict[str, int] = ROWS) -> Path:
    """Write the tiny data set; each split has a seed of its own."""
    return write_splits(
        folder, {name: split(count, seed) for seed, (name, count) in enumerate(rows.items(), 1)}
    )


def timm_model(
    arch: str = "cifar_resnet8", seed: int = 0, classes: int = len(NAMES), **arguments: Any
) -> nn.Module:
    """Make a timm model for the tiny images, with weights initialized from a seed."""
    config = {"input_size": (3, SIZE, SIZE), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    config |= {"crop_pct": 1.0, "num_classes": classes, "fixed_input_size": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(
            arch, num_classes=classes, pretrained_cfg_overlay=config, **arguments
        ).eval()


def save_timm(
    folder: Path,
    model: nn.Module,
    names: Sequence[str] | None = NAMES,
    dtype: torch.dtype | None = None,
):
    """Write a model in timm's layout, optionally in half precision."""
    from timm.models import save_for_hf

    folder.mkdir(parents=True)
    save_for_hf(
        model,
        folder,
        model_config={"label_names": list(names)} if names else {},
        safe_serialization=True,
    )
    if dtype is not None:
        state = model.state_dict()
        state |= {k: v.to(dtype) for k, v in state.items() if v.is_floating_point()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def transformers_model(kind: str, seed: int = 0) -> nn.Module:
    """Make a small transformers classifier: `resnet`, `vit`, `convnext` or `swin`."""
    import transformers as hf

    names = dict(enumerate(NAMES))
    labels: dict[str, Any] = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    stages: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
    vit = {"hidden_size": 16, "num_hidden_layers": 2, "patch_size": 4, "intermediate_size": 32}
    swin = {"patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
    sizes: dict[str, tuple[str, dict[str, Any]]] = {
        "resnet": ("ResNet", {"embedding_size": 8, "layer_type": "basic", **stages}),
        "vit": ("ViT", {"image_size": SIZE, "num_attention_heads": 2, **vit}),
        "convnext": ("ConvNext", {"patch_size": 2, "num_stages": 2, **stages}),
        "swin": ("Swin", {"image_size": SIZE, "window_size": 2, **swin}),
    }
    name, arguments = sizes[kind]
    config = getattr(hf, f"{name}Config")(**arguments, **labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(hf, f"{name}ForImageClassification")(config).eval()


def wrapped_model(folder: Path, arch: str = "test_resnet") -> nn.Module:
    """Make a timm model in transformers' wrapper, after saving it with timm in `folder`."""
    from transformers import AutoModelForImageClassification

    save_timm(folder, timm_model(arch))
    config = json.loads((folder / "config.json").read_text())
    config["model_args"].pop("num_classes", None)  # the wrapper passes it again
    (folder / "config.json").write_text(json.dumps(config))
    return AutoModelForImageClassification.from_pretrained(folder).eval()


def save_transformers(
    folder: Path, model: nn.Module, mean: float = 0.5, shards: str = "50GB"
) -> Path:
    """Write a model in transformers' layout with its image processor, in shards."""
    from transformers import ViTImageProcessor

    model.save_pretrained(folder, max_shard_size=shards)
    if model.config.model_type == "timm_wrapper":
        return folder  # its config.json describes the preprocessing
    size = {"height": SIZE, "width": SIZE}
    processor = ViTImageProcessor(size=size, image_mean=[mean] * 3, image_std=[0.25] * 3)
    processor.save_pretrained(folder)
    return folder


def fit(model: nn.Module, epochs: int = 10, learning_rate: float = 0.003) -> nn.Module:
    """Train a model on the tiny training rows (about a second)."""
    images, labels = as_tensors(ROWS["train"], 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    order = np.random.default_rng(0)
    model.train()
    for _ in range(epochs):
        for batch in torch.from_numpy(order.permutation(len(images))).split(30):
            output = model(images[batch])
            loss = nn.functional.cross_entropy(getattr(output, "logits", output), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def recalibrate(model: nn.Module) -> nn.Module:
    """Compute BatchNorm statistics on the tiny training rows, without any code of mega_hf."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    model(as_tensors(ROWS["train"], 1)[0])
    return model.eval()


def as_tensors(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalized images (mean 0.5, standard deviation 0.25) and labels, without mega_hf."""
    images, labels = examples(rows, seed)
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (scaled - 0.5) / 0.25, torch.from_numpy(labels)


def count(model: nn.Module, split_name: str, classes: Sequence[int] = (0, 1, 2)) -> int:
    """Count correct answers on a tiny split without mega_hf; `classes` maps labels to outputs."""
    images, labels = as_tensors(ROWS[split_name], list(ROWS).index(split_name) + 1)
    with torch.inference_mode():
        output = model(images)
    answers = getattr(output, "logits", output).argmax(dim=1)
    return int((answers == torch.tensor(classes)[labels]).sum())


def displaced(model: nn.Module, strength: float, seed: int = 0) -> tuple[dict, dict]:
    """Return two state dicts at equal distances on both sides of a model.

    Their average is far better than either, so no parent wins a merge of them.
    """
    draw = torch.Generator().manual_seed(seed)
    learned = {name for name, _ in model.named_parameters()}
    sides: tuple[dict, dict] = ({}, {})
    for name, tensor in model.state_dict().items():
        noise = torch.zeros(1)
        if name in learned:
            scale = tensor.std() if tensor.numel() > 1 else tensor.abs()
            scale = scale if scale > 0 else 0.02
            noise = torch.randn(tensor.shape, generator=draw) * strength * scale
        for side, sign in zip(sides, (1, -1), strict=True):
            moved = tensor + sign * noise if tensor.is_floating_point() else tensor.clone()
            side[name] = moved.contiguous()
    return sides


@dataclass(frozen=True)
class Pair:
    """Two parents and a data set on disk."""

    a: Path
    b: Path
    data: Path

    def recipe(self, **changes: Any) -> dict[str, Any]:
        """Return a recipe that merges them, as a tree; `changes` replace top-level keys."""
        rows = {"validation": "validation", "test": "test", "second_look": 0.0}
        tree = {"name": "tiny", "data": {"path": str(self.data), **rows}, "baselines": []}
        return tree | {"parents": {"a": str(self.a), "b": str(self.b)}, "merge": MERGE} | changes

    def write(self, folder: Path, **changes: Any) -> Path:
        """Write that recipe to a file (JSON is valid YAML) and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "recipe.yaml"
        file.write_text(json.dumps(self.recipe(**changes), indent=1))
        return file


def make_pair(
    folder: Path,
    model: nn.Module,
    save: Callable[..., Any] = save_timm,
    strength: float = 0.85,
    data: Path | None = None,
    **save_arguments: Any,
) -> Pair:
    """Train a model, move its weights to both sides, and save both models."""
    base = fit(model)
    for name, state in zip("ab", displaced(base, strength), strict=True):
        model.load_state_dict(state)
        save(folder / name, model, **save_arguments)
    return Pair(folder / "a", folder / "b", data or write_data(folder / "data"))
