"""Resolve a recipe's references to parents, and load them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE

from mega_hf.errors import ParentError, raise_if_out_of_space
from mega_hf.models.licenses import read_license
from mega_hf.models.load import build_model, open_model
from mega_hf.models.loaded import LoadedModel
from mega_hf.models.timm_models import (
    build_timm,
    describe_timm,
    open_weights,
    timm_structure,
)
from mega_hf.models.weight_files import read_dtypes, stored_dtypes
from mega_hf.recipe.parents import ParentRef, TrainedParent, WeightsParent
from mega_hf.recipe.paths import check_parent, is_local
from mega_hf.recipe.placeholders import LocalPlaceholder, existing
from mega_hf.runtime.hub_client import describe_error, set_timeout
from mega_hf.weights.space import digest

_DESCRIPTION = ["*.json", "README.md"]  # the card has the license
_WEIGHTS = ["*.safetensors"]
# subfolders hold checkpoints, merges of a tree or other formats, never the model itself
_BELOW = ["*/*"]


@dataclass(frozen=True)
class ParentInfo:
    """An identified parent, without its weights."""

    name: str
    sha256: str  # of its state dict: names, dtypes, shapes, bytes
    # {hub, revision}, {local}, {weights, arch} or {train}; never a path
    source: dict[str, Any]
    # of its card's front matter: {license}, perhaps with license_name and license_link
    license: dict[str, Any] | None = None


def resolve(reference: str, name: str = "", only_configuration: bool = False) -> tuple[Path, str]:
    """Return the folder behind a reference, downloaded if it is on the Hub.

    Args:
        reference: ORG/NAME@REVISION, timm:ARCH.TAG, or a folder's absolute path.
        name: what errors call the parent.
        only_configuration: do not download weights.

    Returns:
        the folder, and the reference with its revision pinned to a commit.

    Raises:
        ParentError: the reference doesn't exist, can't be read or has no safetensors, or there is
            no network.
    """
    problem = check_parent(reference)
    if problem:
        what, expected, got, hint = problem
        raise ParentError(f"{name or reference}: {what}", expected=expected, got=got, hint=hint)
    if is_local(reference):
        return Path(reference), reference
    repository, _, revision = _hub_repository(reference).partition("@")
    set_timeout()
    wanted = _DESCRIPTION if only_configuration else _DESCRIPTION + _WEIGHTS
    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=wanted, ignore_patterns=_BELOW
            )
        )
    except Exception as error:
        raise_if_out_of_space(error, HF_HUB_CACHE)
        raise _explain(error, repository, revision, name or reference) from None
    problem = check_parent(str(folder))
    if problem and not only_configuration:
        raise ParentError(
            f"{name or reference}: {problem[0]}",
            expected=problem[1],
            got=problem[2],
            hint=problem[3],
        )
    return folder, f"{repository}@{folder.name}"  # the Hub's cache names folders by commit


@dataclass(frozen=True)
class LoadedParent:
    """A parent with its loaded model."""

    parent: ParentInfo
    model: LoadedModel
    reference: ParentRef  # as in the recipe, with the revision pinned


def open_parent(name: str, reference: ParentRef, trained: Path | None = None) -> LoadedParent:
    """Load one parent of a recipe.

    Args:
        name: its name in the recipe, `NAME@EPOCH` for a snapshot.
        reference: its entry in the recipe.
        trained: its folder, if it was trained here.

    Raises:
        ParentError: as `resolve` and `open_model`.
    """
    pinned: ParentRef = reference
    if isinstance(reference, WeightsParent):
        file = Path(existing(reference.weights))
        model = open_weights(
            reference.arch,
            file,
            reference.num_classes,
            reference.arch_args,
            name,
            reference.data_config,
        )
    elif isinstance(reference, TrainedParent):
        assert trained is not None, "parents are trained before they are opened"
        model = open_model(trained, name)
    else:
        folder, pinned = resolve(existing(reference), name)
        model = open_model(folder, name)
    license = read_license(model.folder) if isinstance(reference, str) else None
    return LoadedParent(
        ParentInfo(name, digest(model.view()), origin_of(name, pinned), license), model, pinned
    )


def origin_of(name: str, reference: ParentRef) -> dict[str, Any]:
    """Return where a parent came from: {hub, revision}, {local}, {weights, arch} or {train}.

    Args:
        name: its name, `NAME@EPOCH` for a snapshot.
        reference: its entry in the recipe, with the revision pinned.
    """
    if isinstance(reference, WeightsParent):
        return {"weights": _called(reference.weights), "arch": reference.arch}
    if isinstance(reference, TrainedParent):
        epoch, start = name.partition("@")[2], reference.train.source
        said: dict[str, Any] = {"seed": reference.train.seed}
        said |= {"epoch": int(epoch)} if epoch else {}
        if start is not None:
            is_on_hub = isinstance(start, str) and not is_local(start)
            said["from"] = start if is_on_hub else _called(start)
        return {"train": said}
    if isinstance(reference, LocalPlaceholder) or is_local(reference):
        return {"local": _called(reference)}
    repository, _, commit = reference.partition("@")
    return {"hub": repository, "revision": commit}


def _called(path: str | LocalPlaceholder) -> str:
    """Return the name of a local folder or file, without its path."""
    return path.local if isinstance(path, LocalPlaceholder) else Path(path).name


def open_unweighted(name: str, reference: ParentRef) -> LoadedModel:
    """Build a parent from its configuration, with random weights; none are read or downloaded.

    The headers of local weights are checked. The dtypes of others are not known.

    Raises:
        ParentError: as `open_parent`.
    """
    if isinstance(reference, WeightsParent):
        dtypes = read_dtypes(Path(existing(reference.weights)), name)
        model = build_timm(
            reference.arch, reference.num_classes, reference.arch_args, reference.data_config
        )
        return describe_timm(
            model, timm_structure(reference.arch, reference.arch_args), dtypes, None, None
        )
    assert isinstance(reference, str), "trained parents are built by training.plan"
    folder, _ = resolve(reference, name, only_configuration=True)
    if is_local(reference):
        return build_model(folder, name, stored_dtypes(folder, name))
    return replace(build_model(folder, name, {}), dtypes={})


def _hub_repository(reference: str) -> str:
    """Return the repository on the Hub of timm:ARCH.TAG; other references as they are."""
    if not reference.startswith("timm:"):
        return reference
    name = reference.removeprefix("timm:")
    try:
        config = (
            timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) else None
        )
    except RuntimeError:  # the architecture has no such tag
        config = None
    if config is None or not config.hf_hub_id:
        near = ", ".join(timm.list_models(f"{name.split('.')[0]}*", pretrained=True)[:5])
        raise ParentError(
            f"{reference}: timm has no such weights",
            expected=f"e.g. {near or 'resnet18.a1_in1k'}",
            got=name,
            hint="timm.list_pretrained() lists all of them",
        )
    return config.hf_hub_id


def _explain(error: Exception, repository: str, revision: str, name: str) -> ParentError:
    """Return the error for an exception of the Hub's client."""
    what, hint = describe_error(error, repository, revision)
    if Path(repository).is_dir():
        what = f"understood as a repository on the Hub: {what}"
        hint = f"for the folder, write ./{repository}"
    got, at = f"{repository}@{revision or 'main'}", f"{name}: " if name != repository else ""
    return ParentError(f"{at}{what}", expected="a model on the Hub", got=got, hint=hint)
