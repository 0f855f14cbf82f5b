"""A model from a folder, the way a user of timm or transformers loads it, with what must agree
between parents."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from torch import nn

from mega_hf.errors import MegaError, ParentError, library_errors
from mega_hf.models import cifar_resnet
from mega_hf.models.loaded import IRRELEVANT, LoadedModel, by_entry, plain
from mega_hf.models.safety import (
    Allowance,
    Undrawn,
    check_arguments,
    check_depth,
    check_pictures,
    rehearsal,
)
from mega_hf.models.weight_files import allowance, read_dtypes
from mega_hf.runtime.untrusted import JSON_LEVELS, VALUES, WHOLE, LimitExceeded, check_bounds

assert cifar_resnet.default_cfgs, "imported to register its names with timm"

_ARCHITECTURE = re.compile(r"[\w.-]{1,200}")
_PICTURE = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def _unweighted_timm(
    folder: Path, config: dict[str, Any], dtypes: dict[str, torch.dtype], allowed: Allowance
) -> LoadedModel:
    known = config.get("pretrained_cfg", {})
    data_config = {key: known[key] for key in _PICTURE if key in known}
    arguments = {k: v for k, v in config.get("model_args", {}).items() if k != "num_classes"}
    model = build_timm(
        config["architecture"],
        config.get("num_classes", known.get("num_classes", 1000)),
        arguments,
        data_config,
        allowed,
    )
    return describe_timm(model, _timm_structure(config), dtypes, _timm_labels(config), folder)


def build_timm(
    arch: str,
    num_classes: int,
    arch_args: dict[str, Any],
    data_config: dict[str, Any] | None = None,
    allowed: Allowance | None = None,
) -> nn.Module:
    """Make a timm model with fresh weights.

    Raises:
        ParentError: timm knows no such architecture, it takes no such arguments, or the model is
            larger than allowed.
    """
    unknown = [key for key in data_config or {} if key not in _PICTURE]
    if unknown:
        raise ParentError(
            f"an unknown key in data_config of {arch}",
            expected=f"some of {', '.join(_PICTURE)}",
            got=unknown[0],
            hint="mend it, or leave it out",
        )
    overlay = {"num_classes": num_classes, **(data_config or {})}

    def build() -> nn.Module:
        given = copy.deepcopy(arch_args)  # timm takes keys out of what it is given
        return timm.create_model(
            arch, num_classes=num_classes, pretrained_cfg_overlay=overlay, **given
        ).eval()

    try:
        if not _ARCHITECTURE.fullmatch(arch):  # a source of timm's, as hf-hub:, or a path
            raise LimitExceeded("no name of an architecture")
        check_arguments(arch_args)
        check_bounds([num_classes, arch_args, data_config or {}], JSON_LEVELS, WHOLE, VALUES)
        allowed = allowed or Allowance()
        check_depth(arch_args, allowed)
        with rehearsal(allowed) as built:
            built.append(build())
        return build()
    except MegaError:
        raise
    except Exception as error:  # architectures raise whatever they met
        given = arch_args | (data_config or {})
        if given and timm.is_model(arch.partition(".")[0]):
            got = f"{given}: {type(error).__name__} {error}".strip()
            expected = f"arguments that {arch} takes"
            hint = "mend them (arch_args and data_config, or config.json)"
            raise ParentError(
                f"timm can't build {arch}", expected=expected, got=got, hint=hint
            ) from None
        known = (
            ", ".join(timm.list_models(f"*{arch.split('.')[0][:8]}*")[:5]) or "timm.list_models()"
        )
        raise ParentError(
            f"timm can't build {arch}: {error}",
            expected="an architecture of timm's",
            got=arch,
            hint=known,
        ) from None


def open_weights(
    arch: str,
    weights: Path,
    num_classes: int,
    arch_args: dict[str, Any],
    name: str,
    data_config: dict[str, Any] | None = None,
) -> LoadedModel:
    """Load a bare safetensors file into an architecture of timm's; `data_config` is its
    preprocessing.

    Raises:
        ParentError: the file is damaged, or holds other entries than the architecture.
    """
    dtypes = read_dtypes(weights, name)
    with Undrawn():  # the file has all of it, or is refused
        model = build_timm(arch, num_classes, arch_args, data_config, allowance([weights], name))
    try:
        model.load_state_dict(load_file(weights))
    except Exception as error:  # of the architecture's own hooks
        message = " ".join(str(error).split())[:500]
        raise ParentError(
            f"{name}: the weights don't fit {arch}",
            where=str(weights),
            expected=arch,
            got=message,
            hint="check arch, arch_args and num_classes",
        ) from None
    return describe_timm(model, timm_structure(arch, arch_args), dtypes, labels=None, folder=None)


def describe_timm(
    model: nn.Module,
    structure: dict[str, Any],
    dtypes: dict[str, torch.dtype],
    labels: tuple[str, ...] | None,
    folder: Path | None,
) -> LoadedModel:
    """Return the record of a timm model.

    Raises:
        ParentError: no pictures can be prepared as its configuration says.
    """
    with library_errors(
        f"pictures can't be prepared for {structure['architecture']}",
        str(folder or ""),
        "timm's input_size, mean, std, interpolation, crop_pct",
        "mend data_config" if folder is None else "mend pretrained_cfg in config.json",
    ):
        config = resolve_model_data_config(model)
        check_pictures(config)
        mode = {1: "L", 3: "RGB"}.get(config["input_size"][0])
        if mode is None:
            raise ParentError(
                "unusable input",
                expected="1 or 3 colour channels",
                got=config["input_size"],
                hint="only grey and colour pictures can be fed",
            )
        inner = create_transform(**config, is_training=False)
        inner(Image.new(mode, (32, 32)))  # some of it is not looked at before
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
        preprocessing=plain({k: config[k] for k in _PICTURE if k in config}),
        transform=lambda picture: inner(picture.convert(mode)),
        dtypes=by_entry(model, dtypes),
        folder=folder,
    )


def _open_timm(
    folder: Path, config: dict[str, Any], dtypes: dict[str, torch.dtype], allowed: Allowance
) -> LoadedModel:
    # timm would take a pickle that lies beside another name
    if not (folder / "model.safetensors").is_file():
        raise ParentError(
            "timm reads one unsharded file",
            where=str(folder),
            expected="model.safetensors",
            got="none",
            hint="save it unsharded as model.safetensors",
        )
    with rehearsal(allowed) as built:
        built.append(timm.create_model(f"local-dir:{folder}", pretrained=False))
    with Undrawn():  # all of its parameters are in the file, or timm refuses it
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    stored, classes = model.pretrained_cfg["num_classes"], model.num_classes
    if stored != classes:  # timm would leave the head as it was drawn
        raise ParentError(
            "num_classes and the arguments differ",
            where=str(folder),
            expected=f"{stored} classes",
            got=f"{classes}",
            hint="mend num_classes or model_args in config.json",
        )
    return describe_timm(model, _timm_structure(config), dtypes, _timm_labels(config), folder)


def _timm_labels(config: dict[str, Any]) -> tuple[str, ...] | None:
    names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
    return tuple(map(str, names.values() if isinstance(names, dict) else names)) if names else None


def _timm_structure(config: dict[str, Any]) -> dict[str, Any]:
    return timm_structure(config["architecture"], config.get("model_args", {}))


def timm_structure(arch: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what decides a timm model's function, less what `describe_timm` reads off the model
    itself."""
    # Their defaults may be written out or not; img_size stands in the preprocessing too.
    read_off = IRRELEVANT | {"in_chans", "global_pool", "img_size"}
    return {"architecture": arch, **{k: v for k, v in arguments.items() if k not in read_off}}
