"""Load and build timm models, and describe what must agree between models that are merged."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torch.overrides import TorchFunctionMode

from mega_hf.errors import MegaError, ParentError, library_errors
from mega_hf.models import cifar_resnet
from mega_hf.models.loaded import IRRELEVANT, LoadedModel, by_entry, plain
from mega_hf.models.safety import check_arguments
from mega_hf.models.weight_files import read_dtypes
from mega_hf.runtime.files import file_stamps

assert cifar_resnet.default_cfgs, "imported to register its names with timm"

_ARCHITECTURE = re.compile(r"[\w.-]{1,200}")
_DATA_CONFIG = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")

_TENSOR_INITS = (
    "normal_",
    "uniform_",
    "log_normal_",
    "exponential_",
    "bernoulli_",
    "random_",
    "cauchy_",
    "geometric_",
)
_INITS = {init for name, init in vars(nn.init).items() if callable(init) and name.endswith("_")}
_INITS |= {getattr(torch.Tensor, name) for name in _TENSOR_INITS}


class SkipInit(TorchFunctionMode):
    """Build a model whose weights are loaded next, without initializing its parameters.

    Random initialization takes most of the time of building a model: a second for a ViT-B.
    Skipped parameters are filled with NaN, so that one that is then not loaded is found.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INITS:
            tensor = args[0] if args else kwargs["tensor"]
            # buffers need not be among what is loaded
            if isinstance(tensor, nn.Parameter):
                return tensor.detach().fill_(torch.nan)
        return func(*args, **kwargs)


def build_timm_from_folder(
    folder: Path, config: dict[str, Any], dtypes: dict[str, torch.dtype]
) -> LoadedModel:
    """Build what a folder's config.json describes, with random weights."""
    known = config.get("pretrained_cfg", {})
    data_config = {key: known[key] for key in _DATA_CONFIG if key in known}
    arguments = {k: v for k, v in config.get("model_args", {}).items() if k != "num_classes"}
    num_classes = config.get("num_classes", known.get("num_classes", 1000))
    model = build_timm(config["architecture"], num_classes, arguments, data_config)
    return describe_timm(model, _folder_structure(config), dtypes, _timm_labels(config), folder)


def build_timm(
    arch: str,
    num_classes: int,
    arch_args: dict[str, Any],
    data_config: dict[str, Any] | None = None,
) -> nn.Module:
    """Build a timm model with fresh weights.

    Raises:
        ParentError: timm has no such architecture, or it does not take these arguments.
    """
    unknown = [key for key in data_config or {} if key not in _DATA_CONFIG]
    if unknown:
        raise ParentError(
            f"an unknown key in data_config of {arch}",
            expected=f"some of {', '.join(_DATA_CONFIG)}",
            got=unknown[0],
            hint="correct this key, or leave it out",
        )
    try:
        if not _ARCHITECTURE.fullmatch(arch):  # timm would open a path, or hf-hub:...
            raise ValueError("not the name of an architecture")
        check_arguments(arch_args)
        return timm.create_model(
            arch,
            num_classes=num_classes,
            pretrained_cfg_overlay={"num_classes": num_classes, **(data_config or {})},
            **copy.deepcopy(arch_args),  # timm takes keys out of what it is given
        ).eval()
    except MegaError:
        raise
    except Exception as error:  # architectures raise anything
        arguments = arch_args | (data_config or {})
        if arguments and timm.is_model(arch.partition(".")[0]):
            raise ParentError(
                f"timm can't build {arch}",
                expected=f"arguments that {arch} takes",
                got=f"{arguments}: {type(error).__name__} {error}".strip(),
                hint="correct arch_args and data_config, or config.json",
            ) from None
        similar = timm.list_models(f"*{arch.split('.')[0][:8]}*")[:5]
        raise ParentError(
            f"timm can't build {arch}: {error}",
            expected="an architecture of timm's",
            got=arch,
            hint=", ".join(similar) or "timm.list_models()",
        ) from None


def open_weights(
    arch: str,
    weights: Path,
    num_classes: int,
    arch_args: dict[str, Any],
    name: str,
    data_config: dict[str, Any] | None = None,
) -> LoadedModel:
    """Load a bare safetensors file into a timm architecture.

    Args:
        arch: the architecture's name.
        weights: the file.
        num_classes: how many outputs the model has.
        arch_args: further arguments of the architecture.
        name: what errors call the model.
        data_config: its preprocessing, as timm's `pretrained_cfg` has it.

    Raises:
        ParentError: the file is damaged, or its entries are not those of the architecture.
    """
    dtypes = read_dtypes(weights, name)
    stamps = file_stamps([weights])
    with SkipInit():
        model = build_timm(arch, num_classes, arch_args, data_config)
    try:
        model.load_state_dict(load_file(weights))
    except Exception as error:  # the architecture's own hooks raise anything
        raise ParentError(
            f"{name}: the weights don't fit {arch}",
            where=str(weights),
            expected=arch,
            got=" ".join(str(error).split())[:500],
            hint="check arch, arch_args and num_classes",
        ) from None
    opened = describe_timm(model, timm_structure(arch, arch_args), dtypes, labels=None, folder=None)
    return replace(opened, stamps=stamps)


def describe_timm(
    model: nn.Module,
    structure: dict[str, Any],
    dtypes: dict[str, torch.dtype],
    labels: tuple[str, ...] | None,
    folder: Path | None,
) -> LoadedModel:
    """Return the record of a timm model.

    Raises:
        ParentError: images can't be prepared as its configuration says.
    """
    with library_errors(
        f"images can't be prepared for {structure['architecture']}",
        str(folder or ""),
        "timm's input_size, mean, std, interpolation, crop_pct",
        "correct data_config" if folder is None else "correct pretrained_cfg in config.json",
    ):
        config = resolve_model_data_config(model)
        mode = {1: "L", 3: "RGB"}.get(config["input_size"][0])
        if mode is None:
            raise ParentError(
                "unsupported input",
                expected="1 or 3 color channels",
                got=config["input_size"],
                hint="only grayscale and RGB images are supported",
            )
        inner = create_transform(**config, is_training=False)
        inner(Image.new(mode, (32, 32)))  # timm checks some of the values only here
    pool = getattr(model, "global_pool", None)
    structure = structure | {
        "global_pool": pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
    }
    return LoadedModel(
        model=model.eval(),
        library="timm",
        structure=plain(structure),
        labels=labels,
        num_classes=int(model.num_classes),  # type: ignore[arg-type]
        preprocessing=plain({k: config[k] for k in _DATA_CONFIG if k in config}),
        transform=lambda image: inner(image.convert(mode)),
        dtypes=by_entry(model, dtypes),
        folder=folder,
    )


def open_timm(folder: Path, config: dict[str, Any], dtypes: dict[str, torch.dtype]) -> LoadedModel:
    """Load a folder in timm's layout.

    Raises:
        ParentError: weights are missing.
    """
    # timm would load a pickle of another name
    if not (folder / "model.safetensors").is_file():
        raise ParentError(
            "timm reads one unsharded file",
            where=str(folder),
            expected="model.safetensors",
            got="none",
            hint="save it unsharded as model.safetensors",
        )
    with SkipInit():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    _check_loaded(model, folder)
    return describe_timm(model, _folder_structure(config), dtypes, _timm_labels(config), folder)


def _check_loaded(model: Any, folder: Path) -> None:
    """Raise ParentError if timm has not loaded a parameter, which it does not always say."""
    stored, classes = model.pretrained_cfg["num_classes"], model.num_classes
    if stored != classes:
        raise ParentError(
            "num_classes and the arguments differ",
            where=str(folder),
            expected=f"{stored} classes",
            got=f"{classes}",
            hint="correct num_classes or model_args in config.json",
        )
    missing = [name for name, weights in model.named_parameters() if bool(weights.isnan().all())]
    if missing:
        raise ParentError(
            "weights are missing or NaN",
            where=str(folder),
            expected="all of the model's weights",
            got=", ".join(missing[:5]),
            hint="save the whole model, head included, with timm's save_for_hf",
        )


def _timm_labels(config: dict[str, Any]) -> tuple[str, ...] | None:
    names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
    return tuple(map(str, names.values() if isinstance(names, dict) else names)) if names else None


def _folder_structure(config: dict[str, Any]) -> dict[str, Any]:
    return timm_structure(config["architecture"], config.get("model_args", {}))


def timm_structure(arch: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what decides a timm model's function, except what `describe_timm` adds."""
    # Defaults of these may be written out or not; img_size is in the preprocessing too.
    read_off = IRRELEVANT | {"in_chans", "global_pool", "img_size"}
    return {"architecture": arch, **{k: v for k, v in arguments.items() if k not in read_off}}
