"""Plan trainings: their starting weights, what decides their result, and what would fail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch

from mega_hf.errors import DataError, ParentError, raise_if_out_of_space
from mega_hf.models.loaded import DROPOUT, LoadedModel
from mega_hf.models.references import open_parent, open_unweighted
from mega_hf.models.save import layout_digest, save_model
from mega_hf.models.timm_models import build_timm, describe_timm, timm_structure
from mega_hf.recipe.parents import ParentRef, ParentTrain, TrainedParent, WeightsParent
from mega_hf.recipe.placeholders import existing
from mega_hf.recipe.schema import Recipe
from mega_hf.recipe.tree import parent_name
from mega_hf.tasks.image_classification import match_classes
from mega_hf.tasks.rows import check_labels
from mega_hf.tasks.splits import Splits
from mega_hf.training.trainer import update


@dataclass(frozen=True)
class Start:
    """The model that a training starts from, and how to save it."""

    opened: LoadedModel
    arguments: dict[str, Any]  # of the architecture, where no folder's config.json holds them
    mapping: list[int]  # for each class of the data set the model's output


def trained_source(recipe: Recipe, name: str) -> str | None:
    """Return the trained parent whose weights, or snapshot, a trained parent starts from."""
    source = recipe.trained[name].train.source
    if isinstance(source, str) and isinstance(_source(recipe, name), TrainedParent):
        return parent_name(source)
    return None


def train_keys(recipe: Recipe, names: Collection[str], splits: Splits) -> dict[str, str]:
    """Return the digest of everything that decides the weights of each parent.

    That is settings, seed, threads, training rows, classes, and starting weights; not which
    snapshots are kept. Parents that these start from are included.

    Raises:
        MegaError: a source or a training image can't be read.
    """
    assert splits.train is not None, "check_training raises where there are none"
    shared = [recipe.threads, splits.train.digest, splits.class_names, splits.classes]
    keys: dict[str, str] = {}
    opened: dict[str, Any] = {}  # several parents may start from one model, which is read once

    def origin(name: str) -> Any:
        """Return what identifies the weights that a parent starts from; None for fresh ones."""
        source, reference = recipe.trained[name].train.source, _source(recipe, name)
        if source is None or reference is None:
            return None
        source = existing(source)
        if isinstance(reference, TrainedParent):
            above, _, epoch = source.partition("@")
            return [key(above), epoch]
        if source not in opened:
            loaded = open_parent(source, reference)
            arguments = reference.arch_args if isinstance(reference, WeightsParent) else {}
            opened[source] = [loaded.parent.sha256, layout_digest(loaded.model), arguments]
        return opened[source]

    def key(name: str) -> str:
        """Return the digest of one parent."""
        if name not in keys:
            settings = recipe.trained[name].train.model_dump(
                mode="json", exclude={"source", "checkpoints"}
            )
            decisive = json.dumps([settings, origin(name), *shared], sort_keys=True)
            keys[name] = hashlib.sha256(decisive.encode()).hexdigest()
        return keys[name]

    for name in names:
        key(name)
    return keys


def check_training(
    recipe: Recipe, names: Collection[str], splits: Splits
) -> dict[str, LoadedModel]:
    """Raise errors that would end trainings later; no weights are read or downloaded.

    Returns:
        name -> a model like the trained one, with fresh weights; equal models are one object.

    Raises:
        DataError: there are no rows to train on, one has no label, or a source lacks a class.
        ParentError: an architecture can't be built or does not take its images, or a source can't
            be opened.
    """
    if not names:
        return {}
    if splits.train is None or not len(splits.train):
        raise DataError(
            "no rows to train on",
            key="train",
            expected=f"rows of {splits.data.train}",
            got="none beside validation and test",
            hint="use a smaller validation split, or another split for data.train",
        )
    check_labels(splits.train, splits.classes)
    built: dict[str, LoadedModel] = {}
    models: dict[str, LoadedModel] = {}
    tried: set[tuple[int, int]] = set()
    for name in names:
        models[name] = model = _unweighted(recipe, name, splits, built)
        rows = min(2, recipe.trained[name].train.batch_size, len(splits.train))
        if (id(model), rows) not in tried:
            tried.add((id(model), rows))
            _try(name, model, rows)
    return models


def open_start(recipe: Recipe, name: str, folder: Path, splits: Splits) -> Start:
    """Return what a training starts from: weights drawn from its seed, or those of its source.

    Args:
        recipe: the parents.
        name: the parent to train.
        folder: where trained parents are saved; those that this one starts from must exist.
        splits: the classes.

    Raises:
        MegaError: the source can't be opened, or does not fit.
    """
    train, reference = recipe.trained[name].train, _source(recipe, name)
    if train.source is None or reference is None:
        opened, arguments = _from_seed(train, splits), train.arch_args
    else:
        # dropout says how to train: the recipe's replaces that of the source
        dropout = {key: value for key, value in train.arch_args.items() if key in DROPOUT}
        if isinstance(reference, WeightsParent):
            arguments = reference.arch_args | dropout
            reference = reference.model_copy(update={"arch_args": arguments})
        else:
            arguments = {}
        source = existing(train.source)
        opened = open_parent(source, reference, folder / source).model
        if dropout and opened.library == "timm" and opened.folder is not None:
            model = timm.create_model(f"local-dir:{opened.folder}", pretrained=True, **dropout)
            opened = replace(opened, model=model.eval())
    return Start(opened, arguments, _fit(name, train, opened, splits))


def save_trained(folder: Path, start: Start) -> None:
    """Save the model, trained by now, to a new folder."""
    state = {key: tensor.cpu().contiguous() for key, tensor in start.opened.state().items()}
    save_model(folder, start.opened, state)
    if start.opened.folder is None and start.arguments:  # not every version of timm writes them
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["model_args"] = config.get("model_args", {}) | start.arguments
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _source(recipe: Recipe, name: str) -> ParentRef | None:
    """Return the reference behind a trained parent's `from`; names of the recipe come first."""
    source = recipe.trained[name].train.source
    if source is None or source not in recipe.usable:
        return source
    return recipe.parents[parent_name(source)]


def _from_seed(train: ParentTrain, splits: Splits) -> LoadedModel:
    assert train.arch is not None, "the recipe has an arch where it has no source"
    with torch.random.fork_rng(devices=[]):  # constructors draw from torch's generator
        torch.default_generator.manual_seed(train.seed)
        model = build_timm(train.arch, splits.classes, train.arch_args, train.data_config)
    structure = timm_structure(train.arch.partition(".")[0], train.arch_args)
    return describe_timm(model, structure, {}, splits.class_names, None)


def _unweighted(
    recipe: Recipe, name: str, splits: Splits, built: dict[str, LoadedModel]
) -> LoadedModel:
    """Return a model like the trained parent's, from `built` if there is one."""
    train, reference = recipe.trained[name].train, _source(recipe, name)
    if isinstance(reference, TrainedParent):
        model = _unweighted(recipe, str(trained_source(recipe, name)), splits, built)
    else:
        plain = reference.model_dump() if isinstance(reference, WeightsParent) else reference
        key = json.dumps(plain or [train.arch, train.arch_args, train.data_config], sort_keys=True)
        if key not in built:
            built[key] = (
                _from_seed(train, splits) if reference is None else open_unweighted(name, reference)
            )
        model = built[key]
    _fit(name, train, model, splits)
    return model


def _fit(name: str, train: ParentTrain, model: LoadedModel, splits: Splits) -> list[int]:
    """Return, for each class of the data set, the model's output.

    Raises:
        ParentError: the source has another architecture than the recipe says.
        DataError: the source lacks a class.
    """
    found, wanted = model.structure.get("architecture"), (train.arch or "").partition(".")[0]
    if train.source is not None and wanted and wanted != found:
        raise ParentError(
            f"{name} is trained from another architecture",
            expected=f"{wanted}, its arch",
            got=f"{found} ({train.source})",
            hint="use arch: null where from is given, or a source of that architecture",
        )
    try:
        return match_classes(model.labels, model.num_classes, splits.class_names, splits.classes)[0]
    except DataError as error:
        raise error.replace(
            what=f"{name} can't be trained from {train.source}: {error.what}"
        ) from None


def _try(name: str, model: LoadedModel, rows: int) -> None:
    """Make one training step on a batch of zeros, as training will."""
    optimizer = torch.optim.SGD(model.model.parameters(), lr=0.0)
    try:
        with torch.random.fork_rng(devices=[]):
            images = torch.zeros(rows, *model.input_shape)
            labels = torch.zeros(rows, dtype=torch.int64)
            update(model.model.train(), optimizer, images, labels, 0.0)
            model.model.eval().zero_grad(set_to_none=True)
    except Exception as error:  # architectures raise anything
        raise_if_out_of_space(error)
        raise ParentError(
            f"{name} can't be trained: {type(error).__name__}",
            expected="a model that takes the images",
            got=" ".join(str(error).split())[:300],
            hint="change input_size in train.data_config, arch_args, or the batch_size",
        ) from None
