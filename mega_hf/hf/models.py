"""A model from a folder, the way a user of timm or transformers loads it, with what must agree between parents."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from mega_hf.errors import ParentError, library_errors
from mega_hf.hf import cifar_resnet
from mega_hf.hf.quiet import without_bars
from mega_hf.hf.stored import read_config, read_dtypes, stored_dtypes

assert cifar_resnet.default_cfgs, "imported to register its names with timm"

# What two configurations may differ in without computing another function at inference.
_IRRELEVANT = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id", "architectures",
    "label_names", "num_classes", "num_labels", "initializer_range", "hidden_dropout_prob", "drop_rate",
    "attention_probs_dropout_prob", "drop_path_rate", "problem_type", "pretrained_cfg", "do_pooling",
}  # fmt: skip
_PICTURE = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class OpenModel:
    """A loaded classifier and everything that must be the same in models that are merged."""

    model: nn.Module  # float32, evaluation mode, on the CPU
    library: str  # timm or transformers
    structure: dict[str, Any]  # architecture and the arguments that decide its function
    labels: tuple[str, ...] | None  # class names by index, if the model knows them
    num_classes: int
    preprocessing: dict[str, Any]
    transform: Callable[[Image.Image], torch.Tensor]  # a picture to [channels, height, width] float32
    dtypes: dict[str, torch.dtype]  # of the floating entries, as stored; empty where that is not known
    folder: Path | None  # None if it was made from an architecture's name

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of what the model takes."""
        channels, height, width = self.transform(Image.new("RGB", (32, 32))).shape
        return channels, height, width

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of the state dict, in the dtypes that it was stored in."""
        return {k: v.to(self.dtypes.get(k, v.dtype), copy=True) for k, v in self.model.state_dict().items()}

    def learned(self) -> set[str]:
        """Return the names of the learned weights."""
        return {name for name, _ in self.model.named_parameters(remove_duplicate=False)}

    def tied(self) -> dict[str, str]:
        """Return second names of tensors that have several: second name -> first name."""
        first: dict[int, str] = {}
        tied = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            known = first.setdefault(id(parameter), name)
            if known != name:
                tied[name] = known
        return tied


def open_model(folder: Path, name: str = "") -> OpenModel:
    """Load a folder in timm's or transformers' layout, whichever its config.json is.

    Args:
        folder: config.json and *.safetensors.
        name: what errors call the model; its folder's name by default.

    Raises:
        ParentError: the folder can't be read as a classifier of either library.
    """
    name = name or folder.name
    config = read_config(folder, name)
    dtypes = stored_dtypes(folder, name)
    with library_errors(
        f"the model {name} can't be loaded", str(folder), "a classifier",
        "load it with timm or transformers alone to see what is missing",
    ):  # fmt: skip
        return _open_transformers(folder, dtypes) if "model_type" in config else _open_timm(folder, config, dtypes)


def unweighted_model(folder: Path, name: str, dtypes: dict[str, torch.dtype]) -> OpenModel:
    """Build what a folder's config.json describes, with random weights, e.g. to time it.

    Args:
        folder: config.json.
        name: what errors call the model.
        dtypes: of the floating entries, as stored.

    Raises:
        ParentError: the configuration can't be read, or its library can't build it.
    """
    config = read_config(folder, name)
    with library_errors(
        f"{name} can't be built", str(folder), "a classifier's config.json", "save it with its own library"
    ):
        is_timm = "model_type" not in config
        return _unweighted_timm(folder, config, dtypes) if is_timm else _unweighted_transformers(folder, dtypes)


def _unweighted_transformers(folder: Path, dtypes: dict[str, torch.dtype]) -> OpenModel:
    from transformers import AutoConfig, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    return _describe_transformers(model.float(), folder, dtypes)


def _unweighted_timm(folder: Path, config: dict[str, Any], dtypes: dict[str, torch.dtype]) -> OpenModel:
    known = config.get("pretrained_cfg", {})
    data_config = {key: known[key] for key in _PICTURE if key in known}
    arguments = {k: v for k, v in config.get("model_args", {}).items() if k != "num_classes"}
    model = build_timm(
        config["architecture"], config.get("num_classes", known.get("num_classes", 1000)), arguments, data_config
    )
    return describe_timm(model, _timm_structure(config), dtypes, _timm_labels(config), folder)


def build_timm(
    arch: str, num_classes: int, arch_args: dict[str, Any], data_config: dict[str, Any] | None = None
) -> nn.Module:
    """Make a timm model with fresh weights.

    Raises:
        ParentError: timm knows no such architecture, or it takes no such arguments.
    """
    unknown = [key for key in data_config or {} if key not in _PICTURE]
    if unknown:
        raise ParentError(
            f"an unknown key in data_config of {arch}", expected=f"some of {', '.join(_PICTURE)}", got=unknown[0],
            remedy="mend it, or leave it out",
        )  # fmt: skip
    overlay = {"num_classes": num_classes, **(data_config or {})}
    try:
        return timm.create_model(arch, num_classes=num_classes, pretrained_cfg_overlay=overlay, **arch_args).eval()
    except Exception as error:  # architectures raise whatever they met
        given = arch_args | (data_config or {})
        if given and timm.is_model(arch.partition(".")[0]):
            got = f"{given}: {type(error).__name__} {error}".strip()
            expected, remedy = f"arguments that {arch} takes", "mend them (arch_args and data_config, or config.json)"
            raise ParentError(f"timm can't build {arch}", expected=expected, got=got, remedy=remedy) from None
        known = ", ".join(timm.list_models(f"*{arch.split('.')[0][:8]}*")[:5]) or "timm.list_models()"
        raise ParentError(
            f"timm can't build {arch}: {error}", expected="an architecture of timm's", got=arch, remedy=known
        ) from None


def open_weights(
    arch: str,
    weights: Path,
    num_classes: int,
    arch_args: dict[str, Any],
    name: str,
    data_config: dict[str, Any] | None = None,
) -> OpenModel:
    """Load a bare safetensors file into an architecture of timm's; `data_config` is its preprocessing.

    Raises:
        ParentError: the file is damaged, or holds other entries than the architecture.
    """
    model = build_timm(arch, num_classes, arch_args, data_config)
    dtypes = read_dtypes(weights, name)
    try:
        model.load_state_dict(load_file(weights))
    except RuntimeError as error:
        message = " ".join(str(error).split())[:500]
        raise ParentError(
            f"{name}: the weights don't fit {arch}",
            where=str(weights),
            expected=arch,
            got=message,
            remedy="check arch, arch_args and num_classes",
        ) from None
    return describe_timm(model, timm_structure(arch, arch_args), dtypes, labels=None, folder=None)


def describe_timm(
    model: nn.Module,
    structure: dict[str, Any],
    dtypes: dict[str, torch.dtype],
    labels: tuple[str, ...] | None,
    folder: Path | None,
) -> OpenModel:
    """Return the record of a timm model.

    Raises:
        ParentError: no pictures can be prepared as its configuration says.
    """
    with library_errors(
        f"pictures can't be prepared for {structure['architecture']}", str(folder or ""),
        "timm's input_size, mean, std, interpolation, crop_pct",
        "mend data_config" if folder is None else "mend pretrained_cfg in config.json",
    ):  # fmt: skip
        config = resolve_model_data_config(model)
        mode = {1: "L", 3: "RGB"}.get(config["input_size"][0])
        if mode is None:
            raise ParentError(
                "unusable input", expected="1 or 3 colour channels", got=config["input_size"],
                remedy="only grey and colour pictures can be fed",
            )  # fmt: skip
        inner = create_transform(**config, is_training=False)
        inner(Image.new(mode, (32, 32)))  # some of it is not looked at before
    pool = getattr(model, "global_pool", None)
    structure = structure | {"global_pool": pool if isinstance(pool, str) else getattr(pool, "pool_type", None)}
    return OpenModel(
        model=model.eval(), library="timm", structure=_json(structure), labels=labels,
        num_classes=int(model.num_classes),  # type: ignore[arg-type]
        preprocessing=_json({k: config[k] for k in _PICTURE if k in config}),
        transform=lambda picture: inner(picture.convert(mode)), dtypes=_by_entry(model, dtypes), folder=folder,
    )  # fmt: skip


def _open_timm(folder: Path, config: dict[str, Any], dtypes: dict[str, torch.dtype]) -> OpenModel:
    if not (folder / "model.safetensors").is_file():  # timm would take a pickle that lies beside another name
        raise ParentError(
            "timm reads one unsharded file",
            where=str(folder),
            expected="model.safetensors",
            got="none",
            remedy="save it unsharded as model.safetensors",
        )
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return describe_timm(model, _timm_structure(config), dtypes, _timm_labels(config), folder)


def _timm_labels(config: dict[str, Any]) -> tuple[str, ...] | None:
    names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
    return tuple(map(str, names.values() if isinstance(names, dict) else names)) if names else None


def _timm_structure(config: dict[str, Any]) -> dict[str, Any]:
    return timm_structure(config["architecture"], config.get("model_args", {}))


def timm_structure(arch: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what decides a timm model's function, less what `describe_timm` reads off the model itself."""
    # Their defaults may be written out or not; img_size stands in the preprocessing too.
    read_off = _IRRELEVANT | {"in_chans", "global_pool", "img_size"}
    return {"architecture": arch, **{k: v for k, v in arguments.items() if k not in read_off}}


def _open_transformers(folder: Path, dtypes: dict[str, torch.dtype]) -> OpenModel:
    from transformers import AutoModelForImageClassification

    with without_bars():
        model, info = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, use_safetensors=True
        )
    lost = sorted([*info["missing_keys"], *info["mismatched_keys"]], key=str)
    if lost:
        raise ParentError(
            "weights are missing", where=str(folder), expected="all of the model's", got=f"no {lost[0]}",
            remedy="save the whole model, head included, with save_pretrained",
        )  # fmt: skip
    return _describe_transformers(model, folder, dtypes)


def _describe_transformers(model: Any, folder: Path, dtypes: dict[str, torch.dtype]) -> OpenModel:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    unnamed = all(str(name) == f"LABEL_{i}" for i, name in enumerate(names))
    structure = {k: v for k, v in model.config.to_dict().items() if k not in _IRRELEVANT}
    kind = next(iter(set(dtypes.values())), torch.float32)
    return OpenModel(
        model=model.eval(), library="transformers",
        structure=_json({"architecture": type(model).__name__} | structure),
        labels=None if unnamed else tuple(map(str, names)), num_classes=model.config.num_labels,
        preprocessing={k: v for k, v in _json(processor.to_dict()).items() if not k.startswith("_")},
        transform=lambda picture: _processed(processor, picture), folder=folder,
        dtypes=_by_entry(model, dtypes, default=kind),
    )  # fmt: skip


def _processed(processor: Any, picture: Image.Image) -> torch.Tensor:
    return processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]


def _by_entry(
    model: nn.Module, stored: dict[str, torch.dtype], default: torch.dtype | None = None
) -> dict[str, torch.dtype]:
    """Match stored dtypes with the model's entries; where names differ on disk, the file's one dtype holds."""
    kinds = set(stored.values())
    default = next(iter(kinds)) if len(kinds) == 1 else default or torch.float32
    return {k: stored.get(k, default) for k, v in model.state_dict().items() if v.is_floating_point()}


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
